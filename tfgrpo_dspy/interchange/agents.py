r"""The reference implementation's agent file: YAML whose `agent.instructions` end in experiences.

    instructions: "You are a helpful assistant.\n\n<HEADER>\n[G0]. Name: text\n[G1]. Name: text"

Only strings are read, so that no value of a file can do anything; in a file that is written into,
nothing but the instructions changes. Two kinds of text are written with a backslash in front: a
further line that looks like the next experience, and `${`, which OmegaConf would replace.
"""

import contextlib
import itertools
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import yaml

from tfgrpo_dspy.errors import LibraryFormatError, sentence
from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.experience.programs import PAPER_HEADER
from tfgrpo_dspy.interchange.items import Item, library_of

_NEW_FILE = """# @package _global_
defaults:
  - _self_

agent:
  name: agent
  instructions: You are a helpful assistant.
"""
_PLACE = ("agent", "instructions")
_MISSING = "agent.instructions is missing, or is no string"
_MARK = r"\[G[0-9]+\][.:]?(?:[ \t]|$)"
_MARKED = re.compile(rf"^{_MARK}", re.MULTILINE)
_HEADED = re.compile(rf"^{PAPER_HEADER}\s*\n(?={_MARK})", re.MULTILINE)
_ITEM = re.compile(rf"^(?=\[(G[0-9]+)){_MARK}(.*?)(?=\n{_MARK}|\Z)", re.MULTILINE | re.DOTALL)


class _Loader(yaml.BaseLoader):
    """Reads strings for all scalars; refuses a key that occurs twice: only the last would count."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        names = Counter(key.value for key in keys)
        for key in keys:
            if names[key.value] > 1:
                raise LibraryFormatError(
                    f"{self.name}: line {key.start_mark.line + 1}: the key {key.value!r:.60} "
                    f"occurs twice in one mapping; write it once."
                )
        return node


def read_instructions(instructions: Any, source: str) -> ExperienceLibrary:
    """The experiences at the end of the instructions; none if there are no such lines.

    Raises:
        LibraryFormatError: these are no instructions, an experience is empty, an id occurs twice.
    """
    if not isinstance(instructions, str):
        raise LibraryFormatError(f'{source}: {_MISSING}: write agent: {{instructions: "..."}}.')
    _, lines = _split(instructions)
    items = _ITEM.finditer(lines)
    return library_of(
        [Item(f"{source}: [{each[1]}]", each[1], _unescaped(each[2])) for each in items]
    )


def agent_file(library: ExperienceLibrary, into: str) -> str:
    """The agent file `into` (a small one by default) with these experiences in its instructions.

    Raises:
        LibraryFormatError: `into` is not the file of an agent.
    """
    into = into.removeprefix("\ufeff") or _NEW_FILE
    path = _path(yaml_value(into, "into", lambda _, node: node))
    key, value = path[-1] if len(path) == len(_PLACE) else (None, None)
    if not isinstance(value, yaml.ScalarNode):
        raise LibraryFormatError(f"into: {_MISSING}; pass the file of an agent as into=.")
    start, end = value.start_mark.index, value.end_mark.index
    old = into[start:end]
    line = into[:start].rpartition("\n")[2]
    indent = "\n" + " " * (len(line) - len(line.lstrip()) + 2)
    instructions = _with_experiences(value.value, library)
    written = yaml.safe_dump(instructions, default_style='"', allow_unicode=True, width=90)
    new = re.sub(r"\n *", lambda _: indent, written.strip())
    new = new.replace("\n", "\r\n") if "\r\n" in into else new
    text = into[:start] + new + old[len(old.rstrip()) :] + into[end:]
    expected = [(value.value, instructions)] * (value.value != instructions)
    aliases = [name for name, node in path if node.start_mark.index < name.end_mark.index]
    has_comment = value.style in ("|", ">") and "#" in old.partition("\n")[0]
    if aliases or has_comment or _changes(into, text) != expected:
        number = (aliases or [key])[0].start_mark.line + 1
        raise LibraryFormatError(
            f"into: line {number}: these instructions cannot be written back with all else as "
            f"it is: write them there as plain text, without an anchor (&), an alias (*), a tag "
            f"(!) or a comment (#)."
        )
    return text


def _path(node: Any) -> list[tuple[Any, Any]]:
    """The keys and values on the way from the root to the instructions, as far as there are any."""
    path = []
    for name in _PLACE:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        named = [(key, value) for key, value in pairs if key.value == name]
        path += named
        node = named[0][1] if named else None
    return path


def _changes(old: str, new: str) -> list[tuple[Any, Any]]:
    """Where two YAML texts differ, what each has there; a pair of None where one is no YAML."""
    with contextlib.suppress(yaml.YAMLError):
        events = [map(_content, yaml.parse(text, Loader=yaml.BaseLoader)) for text in (old, new)]
        return [pair for pair in itertools.zip_longest(*events) if pair[0] != pair[1]]
    return [(None, None)]


def _content(event: Any) -> Any:
    """What a part of a YAML text says: of a plain scalar its value, else also anchor and tag."""
    named = [getattr(event, name, None) for name in ("anchor", "tag")]
    if type(event) is yaml.ScalarEvent and named == [None, None]:
        return event.value
    return [type(event), *named, getattr(event, "value", None)]


def _with_experiences(instructions: str, library: ExperienceLibrary) -> str:
    """The instructions with these experiences in place of those at their end."""
    before, old = _split(instructions)
    end = old[len(old.rstrip()) :]  # line ends, such as those of a block of YAML
    lines = "\n".join(f"[G{each.number - 1}]. {_escaped(each.text)}" for each in library)
    if not lines:
        return (
            before.rstrip().removesuffix(PAPER_HEADER).removesuffix("\n\n") + end if old else before
        )
    return before + lines + end if old else f"{before}\n\n{PAPER_HEADER}\n{lines}"


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
    return re.sub(r"(?<!\\)((?:\\\\)*)\\(?=\$\{)", lambda match: match[1][::2], text)


def yaml_value(
    text: str, source: str, read: Callable[[Any, Any], Any] = _Loader.construct_document
) -> Any:
    """The value of a YAML text, with strings for all scalars, or what `read` makes of its root.

    Raises LibraryFormatError: it is not YAML, or a key occurs twice in one mapping.
    """
    try:
        loader = _Loader(text.removeprefix("\ufeff"))
        loader.name = source
        node = loader.get_single_node()
        return None if node is None else read(loader, node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise LibraryFormatError(
            f"{source} is not YAML: {where}{error.problem or error.context}."
        ) from error
    except LibraryFormatError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise LibraryFormatError(f"{source} is not YAML: {sentence(error)}") from error
    except RecursionError as error:
        raise LibraryFormatError(f"{source} is not a library: it is nested too deeply.") from error
