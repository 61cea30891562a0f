"""SKILL.md, the file of advice that coding agents read: front matter in YAML, then Markdown.

The experiences stand under the heading `# Experiences`, in the list that `lists` writes. All else
of a file that is written into stays: the front matter, and what stands around that section.
"""

import re

from tfgrpo_dspy.errors import LibraryFormatError
from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.interchange import lists

FILE = "SKILL.md"
_NEW_FILE = """\
---
name: learned-experiences
description: Advice learned from scored attempts. Read it before you do this task.
---

"""
_FRONT = re.compile(r"---\r?\n.*?^---\s*?$\n?", re.DOTALL | re.MULTILINE)
_SECTION = re.compile(rf"^{lists.TITLE}[ \t]*\r?\n.*?(?=^#{{1,6}}\s|\Z)", re.DOTALL | re.MULTILINE)


def read_skill(text: str) -> ExperienceLibrary:
    """The experiences of the file.

    Raises:
        LibraryFormatError: there is no section of experiences, or two, or a line of it is no item.
    """
    start, end = _place(text)
    if start == end:
        raise LibraryFormatError(
            f"there is no heading {lists.TITLE!r}: write it above the list of experiences."
        )
    return lists.read_list("\n" * text.count("\n", 0, start) + text[start:end], bullets_needed=True)


def skill_file(library: ExperienceLibrary, into: str) -> str:
    """The file `into` (a small one by default) with these experiences in its section."""
    into = into or _NEW_FILE
    start, end = _place(into)
    if start < end:
        read_skill(into)  # raises where the section holds what would be lost
    before, after = into[:start], into[end:]
    if start == end and before.strip() and not before.endswith(("\n\n", "\n\r\n")):
        before = before.rstrip() + ("\r\n\r\n" if "\r\n" in into else "\n\n")
    section = lists.markdown(library) + "\n" * bool(after)
    return before + (section.replace("\n", "\r\n") if "\r\n" in into else section) + after


def _place(text: str) -> tuple[int, int]:
    """Where the section of experiences begins and ends; twice the end of a text without one."""
    front = _FRONT.match(text)
    sections = [*_SECTION.finditer(text, front.end() if front else 0)]
    if len(sections) > 1:
        line = text.count("\n", 0, sections[1].start()) + 1
        raise LibraryFormatError(f"line {line}: {lists.TITLE!r} stands there twice: keep one.")
    return sections[0].span() if sections else (len(text), len(text))
