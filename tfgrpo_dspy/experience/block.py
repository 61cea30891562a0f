"""The baked block: how a library stands in a predictor's instructions, and how it is read back.

Text only, no programs. Reading back is exact for any text of an experience: what could end the
line, the block or the adapter's own sections is written as `\\uXXXX`.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tfgrpo_dspy.errors import LibraryError, LibraryFormatError
from tfgrpo_dspy.experience.values import ALL, Experience

BEGIN = "<experiences>"
END = "</experiences>"
HEADER = "Advice learned from earlier attempts:"
SHOWN_CHARACTERS = 120
"""How much of the instructions an error message quotes."""

_LINE = re.compile(r"\[(E[1-9][0-9]*)(\*?)\] (.+)")
_LAST_LINE = re.compile(r"\((?:order: (E[0-9]+(?: E[0-9]+)*); )?next id: E([1-9][0-9]*)\)")
_BEGIN_LINE = re.compile(rf"^{BEGIN}\n", re.MULTILINE)
_END_LINE = re.compile(rf"\n{END}(?=\n|\Z)")
_ESCAPE = re.compile(r"\\u([0-9a-f]{4})")
_TO_ESCAPE = re.compile(
    r"\\(?=u[0-9a-f]{4})"  # a backslash that would read as one of our escapes
    r"|[\x00-\x1f\x7f-\x9f\u2028\u2029]"  # what ends a line somewhere, and other controls
    r"|<(?=\s*/?\s*experiences)"  # our own delimiters
    r"|\[(?=\[\s*##)",  # the section markers of DSPy's chat adapter
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Block:
    """What one block says: its experiences, the order of the whole library, the next free id.

    `order` holds ids, and is empty where the library is in the order of its numbers.
    """

    experiences: tuple[Experience, ...]
    order: tuple[str, ...]
    next_number: int


def render_lines(experiences: Iterable[Experience]) -> str:
    """One line for each experience: `[E1*] text`; the star marks scope 'all'."""
    return "\n".join(
        f"[{experience.id}{'*' if experience.scope == ALL else ''}] {_escape(experience.text)}"
        for experience in experiences
    )


def write_block(visible: Sequence[Experience], order: Sequence[str], next_number: int) -> str:
    """The block for one predictor, from the experiences that it is given (at least one).

    `order` holds the ids of the whole library; they are written only where they do not ascend.
    """
    ascending = sorted(order, key=lambda id_: int(id_[1:])) == list(order)
    ids = "" if ascending else f"order: {' '.join(order)}; "
    last_line = f"({ids}next id: E{next_number})"
    return "\n".join([BEGIN, HEADER, render_lines(visible), last_line, END])


@dataclass(frozen=True, slots=True)
class Split:
    """Instructions, apart: what stands before the block, the block (None: none), what follows it.

    The three together are the instructions, byte for byte.
    """

    before: str
    block: str | None
    after: str

    @property
    def own(self) -> str:
        """The instructions without the block."""
        if self.block is None:
            return self.before
        before = self.before.removesuffix("\n\n")
        return before + self.after if before else self.after.removeprefix("\n\n")

    def with_block(self, block: str | None) -> str:
        """The instructions with this block in place of the other; at the end where none was."""
        if block is None:
            return self.own
        if self.block is None:
            return f"{self.before}\n\n{block}" if self.before else block
        return self.before + block + self.after


def split_instructions(instructions: str) -> Split:
    """Where the block stands in the instructions.

    Other optimizers append text behind it (SIMBA its rules), or put text around it (ReAct).

    Raises:
        LibraryFormatError: there are two blocks, or one that does not end.
    """
    found = [place for place in _blocks_in(instructions) if _is_ours(instructions[slice(*place)])]
    n_begun = instructions.count(f"{BEGIN}\n{HEADER}\n")
    if len(found) > 1 or n_begun > len(found):
        raise LibraryFormatError(
            f"The instructions {instructions[:SHOWN_CHARACTERS]!r}... hold {n_begun} blocks of "
            f"experiences, {len(found)} of which end with the line {END}; keep one block from the "
            f"line {BEGIN} to the line {END}, or none."
        )
    if not found:
        return Split(instructions, None, "")
    start, end = found[0]
    return Split(instructions[:start], instructions[start:end], instructions[end:])


def _blocks_in(instructions: str) -> Iterator[tuple[int, int]]:
    """Start and end of each text from a line BEGIN to the next line END, without another BEGIN."""
    for begin in _BEGIN_LINE.finditer(instructions):
        end = _END_LINE.search(instructions, begin.end() - 1)
        if end is not None and not _BEGIN_LINE.search(instructions, begin.end() - 1, end.start()):
            yield begin.start(), end.end()


def _is_ours(text: str) -> bool:
    """Whether it is a block of ours, be it damaged, and not a user's own use of the same tag."""
    lines = text.split("\n")
    return lines[1] == HEADER or bool(_LAST_LINE.fullmatch(lines[-2]))


def parse_block(text: str, predictor: str) -> Block:
    """What a block says, for the predictor in whose instructions it stands.

    Raises:
        LibraryFormatError: a line is not of the form that `write_block` gives; names it.
    """
    lines = text.split("\n")[2:-1]
    last_line = _LAST_LINE.fullmatch(lines[-1]) if lines else None
    if last_line is None:
        raise LibraryFormatError(
            f"The experiences baked into predictor {predictor!r} do not end with their next free "
            f"id but with {lines[-1:]!r}; restore the line '(next id: E<number>)', or remove the "
            f"whole block from {BEGIN} to {END}."
        )
    experiences = tuple(_parse_line(line, predictor) for line in lines[:-1])
    order = tuple(last_line[1].split()) if last_line[1] else ()
    next_number = int(last_line[2])
    taken = [experience.id for experience in experiences if experience.number >= next_number]
    if taken:
        raise LibraryFormatError(
            f"The experiences baked into predictor {predictor!r} give E{next_number} as their next "
            f"free id, but hold {taken}; raise the number in their last line."
        )
    return Block(experiences, order, next_number)


def plain_instructions(instructions: str) -> str:
    """The instructions with each baked experience as a line of its own, without ids and markers.

    Small models follow a plain line better than one in a block; large ones do not mind the block.

    Raises:
        LibraryFormatError: the block is damaged.
    """
    parts = split_instructions(instructions)
    if parts.block is None:
        return instructions
    advice = [experience.text for experience in parse_block(parts.block, "self").experiences]
    before = parts.before.removesuffix("\n\n")
    return "\n".join([before, *advice] if before else advice) + parts.after


def _parse_line(line: str, predictor: str) -> Experience:
    found = _LINE.fullmatch(line)
    if found is None:
        raise LibraryFormatError(
            f"The experiences baked into predictor {predictor!r} hold the line {line!r}; a line is "
            f"'[E<number>] text' (with a star behind the number for scope 'all')."
        )
    try:
        return Experience(found[1], _unescape(found[3]), ALL if found[2] else predictor)
    except LibraryError as error:
        raise LibraryFormatError(
            f"The experiences baked into predictor {predictor!r} hold the line {line!r}: {error}"
        ) from error


def _escape(text: str) -> str:
    return _TO_ESCAPE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found[1], 16)), text)
