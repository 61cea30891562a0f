r"""The reference implementation's agent file: YAML whose `agent.instructions` end in experiences.

    instructions: "You are a helpful assistant.\n\n<HEADER>\n[G0]. Name: text\n[G1]. Name: text"

Only strings are read, so that no value of a file can do anything; in a file that is written into,
nothing but the instructions changes. Two kinds of text are written with a backslash in front: a
further line that looks like the next experience, and `${`, which OmegaConf would replace.
"""

import re
from typing import Any

import yaml

from tfgrpo_dspy.errors import LibraryFormatError, sentence
from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.interchange.items import Item, library_of

HEADER = (
    "When solving problems, you MUST first carefully read and understand the helpful instructions "
    "and experiences:"
)
_NEW_FILE = """# @package _global_
defaults:
  - _self_

agent:
  name: agent
  instructions: You are a helpful assistant.
"""
_MISSING = "agent.instructions is missing, or is no string"
_MARK = r"\[G[0-9]+\][.:]?(?:[ \t]|$)"
_MARKED = re.compile(rf"^{_MARK}", re.MULTILINE)
_HEADED = re.compile(rf"^{HEADER}\s*\n(?={_MARK})", re.MULTILINE)
_ITEM = re.compile(rf"^(?=\[(G[0-9]+)){_MARK}(.*?)(?=\n{_MARK}|\Z)", re.MULTILINE | re.DOTALL)


def yaml_value(text: str, source: str) -> Any:
    """The value of a YAML text, with strings for all scalars. Raises LibraryFormatError."""
    return _from_yaml(yaml.load, text, source)


def read_instructions(instructions: Any, source: str) -> ExperienceLibrary:
    """The experiences at the end of the instructions; none if there are no such lines.

    Raises:
        LibraryFormatError: these are no instructions, an experience is empty, an id occurs twice.
    """
    if not isinstance(instructions, str):
        raise LibraryFormatError(f'{source}: {_MISSING}: write agent: {{instructions: "..."}}.')
    _, lines = _split(instructions)
    found = _ITEM.finditer(lines)
    return library_of(
        [Item(f"{source}: [{each[1]}]", each[1], _unescaped(each[2])) for each in found]
    )


def agent_file(library: ExperienceLibrary, into: str, source: str) -> str:
    """The agent file `into` (a small one by default) with these experiences in its instructions.

    Raises:
        LibraryFormatError: `into` is not the file of an agent.
    """
    into = into.removeprefix("\ufeff") or _NEW_FILE
    agent = _from_yaml(yaml.compose, into, source)
    for name in "agent", "instructions":
        pairs = agent.value if isinstance(agent, yaml.MappingNode) else []
        agent = next((value for key, value in pairs if key.value == name), None)
    if not isinstance(agent, yaml.ScalarNode):
        raise LibraryFormatError(f"{source}: {_MISSING}; pass the file of an agent as into=.")
    start, end = agent.start_mark.index, agent.end_mark.index
    old = into[start:end]
    line = into[:start].rpartition("\n")[2]
    indent = "\n" + " " * (len(line) - len(line.lstrip()) + 2)
    written = yaml.safe_dump(
        _with_experiences(agent.value, library), default_style='"', allow_unicode=True, width=90
    )
    new = re.sub(r"\n *", lambda _: indent, written.strip())
    return into[:start] + new + old[len(old.rstrip()) :] + into[end:]


def _with_experiences(instructions: str, library: ExperienceLibrary) -> str:
    """The instructions with these experiences in place of those at their end."""
    before, old = _split(instructions)
    lines = "\n".join(f"[G{each.number - 1}]. {_escaped(each.text)}" for each in library)
    if not lines:
        return before.rstrip().removesuffix(HEADER).removesuffix("\n\n") if old else before
    return before + lines if old else f"{before}\n\n{HEADER}\n{lines}"


def _split(instructions: str) -> tuple[str, str]:
    """What stands before the first experience, its header included, and the rest."""
    headed = _HEADED.search(instructions)
    marked = _MARKED.search(instructions)
    start = headed.end() if headed else marked.start() if marked else len(instructions)
    return instructions[:start], instructions[start:]


def _escaped(text: str) -> str:
    text = re.sub(r"(?<!\\)(\\*)\$\{", r"\1\1\\${", text)
    return re.sub(rf"^(?=\\*{_MARK})", r"\\", text, flags=re.MULTILINE)


def _unescaped(text: str) -> str:
    text = re.sub(rf"^\\(?=\\*{_MARK})", "", text, flags=re.MULTILINE)
    # An even number of backslashes is a real interpolation, which only a file of others can hold.
    return re.sub(r"(?<!\\)((?:\\\\)*)\\(?=\$\{)", lambda found: found[1][::2], text)


def _from_yaml(read: Any, text: str, source: str) -> Any:
    try:
        return read(text.removeprefix("\ufeff"), Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise LibraryFormatError(
            f"{source} is not YAML: {where}{error.problem or error.context}."
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        raise LibraryFormatError(f"{source} is not YAML: {sentence(error)}") from error
    except RecursionError as error:
        raise LibraryFormatError(f"{source} is not a library: it is nested too deeply.") from error
