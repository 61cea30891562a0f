"""Libraries in other formats: `read_library`, `write_library`; of texts, `parse` and `render`.

| format | ending | what a round trip keeps |
| --- | --- | --- |
| `json` | .json | everything: the file of `ExperienceLibrary.save` |
| `csv` | .csv | ids, texts, scopes, effects |
| `md` | .md, .markdown | ids, texts, scopes, the next free id |
| `yaml` | .yaml, .yml | ids, texts: the agent file of the reference implementation |
| `txt` | .txt | texts, which are numbered from E1 |
| `skill` | SKILL.md | as `md`; the file that coding agents read |
| `prompt` | | nothing: it is only written, as a system prompt for use without DSPy |

The reference implementation counts from G0: its `G0` is `E1` here, and `E1` is written as `G0`.
`json` and `yaml` also read its `{"G0": "Name: text", ...}`, lists of strings, and a bare list of
`{"id": ..., "text": ...}`.
"""

from pathlib import Path
from typing import Any

from tfgrpo_dspy.checked import shown
from tfgrpo_dspy.errors import LibraryFormatError
from tfgrpo_dspy.experience import programs
from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.experience.library_files import json_value, record_text
from tfgrpo_dspy.experience.values import scope_note
from tfgrpo_dspy.files import read_text, write_text
from tfgrpo_dspy.interchange import agents, csv_tables, lists, skills
from tfgrpo_dspy.interchange.items import Item, is_id, library_of

FORMATS = ("json", "yaml", "md", "csv", "txt", "skill", "prompt")
_BY_ENDING = {f".{name}": name for name in FORMATS} | {
    ".yml": "yaml", ".markdown": "md", ".jsonl": "json", ".tsv": "csv"
}  # fmt: skip
_MOST_CHARACTERS = 10_000_000  # a library of thirty experiences has some 10,000


def format_of(path: str | Path) -> str:
    """The format that the ending of a file stands for. Raises LibraryFormatError: there is none."""
    named = _BY_ENDING.get(Path(path).suffix.lower())
    if Path(path).name == skills.FILE:
        return "skill"
    if named is None:
        raise LibraryFormatError(
            f"{path}: no format has this ending; rename the file to .json, .yaml, .md, .csv, .txt "
            "or SKILL.md, or pass its format."
        )
    return named


def read_library(path: str | Path, format: str | None = None) -> ExperienceLibrary:
    """The library in a file of any format; which one, its ending says if `format` does not.

    Raises:
        LibraryFormatError: no such format, or the file is not of it; names the line or the field.
        OSError: the file cannot be read.
    """
    named = format or format_of(path)
    return parse(read_text(path), named, source=str(path))


def write_library(
    library: ExperienceLibrary, path: str | Path, format: str | None = None, *, into: str = ""
) -> None:
    """Write the library to a file, as `render` gives it; an existing file is replaced.

    Raises:
        LibraryFormatError: no such format, or `into` does not fit it.
        OSError: the file cannot be written; it is as it was.
    """
    write_text(path, render(library, format or format_of(path), into=into))


def parse(text: str, format: str, source: str = "the text") -> ExperienceLibrary:
    """The library that a text of this format holds; `source` is its name in errors.

    Experiences without an id get the next free ones. An empty list is an empty library.

    Raises:
        LibraryFormatError: something in the text was not understood; says what to write instead.
    """
    text = text.removeprefix("\ufeff")
    if len(text) > _MOST_CHARACTERS:
        raise LibraryFormatError(f"{source}: {len(text)} characters; at most {_MOST_CHARACTERS}.")
    if format in ("json", "yaml"):
        return _from_value(_value(text, format, source), source)
    try:
        if format == "csv":
            return csv_tables.read_table(text)
        if format == "skill":
            return skills.read_skill(text)
        if format in ("md", "txt"):
            return lists.read_list(text, bullets_needed=format == "md")
    except ValueError as error:
        raise LibraryFormatError(f"{source}: {error}") from error
    raise LibraryFormatError(f"format={format!r}: json, yaml, md, csv, txt and skill can be read.")


def render(library: ExperienceLibrary, format: str, *, into: str = "") -> str:
    """The library as text of this format.

    `into` is the text that the experiences become a part of: for `yaml` and `skill` that of such a
    file, of which all else is kept byte for byte; for `prompt` the instructions, with or without a
    baked library. Other formats take none.

    Raises:
        LibraryFormatError: no such format, or `into` does not fit it.
    """
    if format == "yaml":
        return agents.agent_file(library, into)
    if format == "skill":
        return skills.skill_file(library, into)
    if format == "prompt":
        return _prompt(library, programs.replace_block(into))
    if into:
        raise LibraryFormatError(
            f"format={format!r} takes no into=; 'yaml', 'skill' and 'prompt' do."
        )
    if format == "json":
        return record_text(library.to_dict())
    writers = {"md": lists.markdown, "csv": csv_tables.table, "txt": lists.plain_list}
    if format not in writers:
        raise LibraryFormatError(f"format={format!r}: the formats are {', '.join(FORMATS)}.")
    return writers[format](library)


def rewritten(text: str, library: ExperienceLibrary, format: str, source: str) -> str:
    """The text of a library file with this library in place of its own, and all else as it was.

    Raises:
        LibraryFormatError: something would be lost; says what, and in which line it is.
    """
    if format in ("json", "yaml"):
        value = _value(text, format, source)
        place = "experiences" if format == "json" else "agent"
        if not (isinstance(value, dict) and place in value):
            raise LibraryFormatError(
                f"{source}: experiences can be written back where {place!r} is, and there is none; "
                f"make a library file of it: tfgrpo import {source} -o library.json"
            )
    elif line := lists.first_heading(text) if format in ("md", "txt") else "":
        raise LibraryFormatError(f"{source}: {line} is no experience, and would be lost.")
    if format == "csv":
        new = csv_tables.table_like(library, text)
    else:
        new = render(library, format, into=text if format in ("yaml", "skill") else "")
    back = parse(new, format, source)
    names = ("text", "scope") if format == "txt" else ("id", "text", "scope")
    wanted, read = ([[getattr(e, name) for name in names] for e in of] for of in (library, back))
    if wanted != read:
        lost = next((each for each in wanted if each not in read), wanted)
        raise LibraryFormatError(
            f"{source}: a file of this form cannot hold {', '.join(names)} {shown(lost)}."
        )
    return new


def _value(text: str, format: str, source: str) -> Any:
    """What JSON, JSON lines or YAML holds."""
    if format == "yaml":
        return agents.yaml_value(text, source)
    return json_value(text, source, is_lines=True)


def _from_value(value: Any, source: str) -> ExperienceLibrary:
    """The library in what JSON or YAML holds; every form of it is told by its type."""
    if isinstance(value, dict) and "agent" in value:
        agent = value["agent"]
        instructions = agent.get("instructions") if isinstance(agent, dict) else None
        return agents.read_instructions(instructions, source)
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return library_of([Item(f"{source}: [{n}]", "", text) for n, text in enumerate(value)])
    if isinstance(value, list):
        value = {"experiences": value}
    if isinstance(value, dict) and (not value or any(map(is_id, value))):
        faults = [id_ for id_, text in value.items() if not isinstance(text, str)]
        if faults:
            raise LibraryFormatError(f'{source}: {shown(faults[0])}: write "{faults[0]}": "text".')
        return library_of([Item(f"{source}: [{id_}]", id_, text) for id_, text in value.items()])
    return ExperienceLibrary.from_dict(value, source)


def _prompt(library: ExperienceLibrary, instructions: str) -> str:
    """The instructions, and below them the experiences as a list that people read, too."""
    texts = ["\n  ".join(each.text.splitlines()) + scope_note(each.scope) for each in library]
    advice = "\n- ".join([programs.HEADER, *texts]) if texts else ""
    return "\n\n".join(filter(None, [instructions, advice])) + "\n"
