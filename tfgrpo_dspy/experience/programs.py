"""Programs by their shape: predictors, LMs, copies, and the block in their instructions.

What could end a line of the block, the block or a section of the adapter stands as `\\uXXXX`.
"""

import copy
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tfgrpo_dspy.errors import LibraryError, LibraryFormatError
from tfgrpo_dspy.user_code import loops_here

ProgramT = TypeVar("ProgramT")
NUMBER = r"[1-9][0-9]{0,17}"  # of an id
BEGIN = "<experiences>"
END = "</experiences>"
BRIEF = "learned-brief"  # the tag around a text that has taken the place of the instructions
RESULTS = "detailed_results"  # what GEPA and this package set on the program that they return
HEADER = "Advice learned from earlier attempts:"
PAPER_HEADER = (
    "When solving problems, you MUST first carefully read and understand the helpful instructions "
    "and experiences:"
)

_REFUSING: set[type] = set()  # types that refused to be copied, which may take long to find out

_TRAILING = r"[ \t\r]*"  # what editors and prompt registries add to lines, or change their ends to
_BEGUN = re.compile(rf"{BEGIN}{_TRAILING}\n{HEADER}{_TRAILING}\n")
_BLOCK = re.compile(rf"^{_BEGUN.pattern}.*?\n{END}{_TRAILING}$", re.MULTILINE | re.DOTALL)
_LINE = re.compile(rf"\[(E{NUMBER})(\*?)\] (.+)")
_LAST_LINE = re.compile(rf"\(next id: E({NUMBER})\)")
BRIEF_BLOCK = re.compile(
    rf"^<{BRIEF}>{_TRAILING}\n(.*?)\n</{BRIEF}>{_TRAILING}$", re.MULTILINE | re.DOTALL
)
_ESCAPE = re.compile(r"\\u([0-9a-f]{4})")
_TO_ESCAPE = re.compile(
    r"\\(?=u[0-9a-f]{4})"  # a backslash that would read as one of our escapes
    r"|[\x00-\x1f\x7f-\x9f\u2028\u2029]"  # what ends a line somewhere, and other controls
    rf"|<(?=\s*/?\s*(?:experiences|{BRIEF}))"  # our own delimiters
    r"|\[(?=\[\s*##)",  # the section markers of DSPy's chat adapter
    re.IGNORECASE,
)


def escaped(text: str, kept: str = "") -> str:
    """The text as it may stand in instructions; the characters in `kept` stay."""
    return _TO_ESCAPE.sub(lambda m: m[0] if m[0] in kept else f"\\u{ord(m[0]):04x}", text)


def unescaped(text: str) -> str:
    """The text without the escapes in which it stands in instructions."""
    return _ESCAPE.sub(lambda code: chr(int(code[1], 16)), text)


def split_instructions(instructions: str) -> tuple[str, str, str]:
    """The text before the block, the block or "", the text behind. Raises LibraryFormatError."""
    blocks = list(_BLOCK.finditer(instructions))
    n_begun = len(_BEGUN.findall(instructions))
    if n_begun != len(blocks) or n_begun > 1:
        hold = f"The instructions {instructions[:120]!r}... hold {n_begun} blocks of experiences"
        whole = f"{len(blocks)} of which end with the line {END}"
        raise LibraryFormatError(f"{hold}, {whole}; keep one, or none.")
    if not blocks:
        return instructions, "", ""
    start, end = blocks[0].span()
    return instructions[:start], instructions[start:end], instructions[end:]


def replace_block(instructions: str, new: str = "") -> str:
    """The instructions with the new block in place of the old one, or at the end; or with none."""
    before, old, after = split_instructions(instructions)
    if old and new:
        return before + new + after
    if old:
        before = before.removesuffix("\n\n")
        return before + after if before else after.removeprefix("\n\n")
    return f"{before}\n\n{new}" if before and new else before + new


def lines_of(block: str, predictor: str) -> tuple[list[tuple[str, str, str]], int]:
    """Id, star and text of each line of a block, and the next free id. Or LibraryFormatError."""
    *lines, last = block.split("\n")[2:-1] or [""]
    where = f"The experiences baked into predictor {predictor!r}"
    if (match := _LAST_LINE.fullmatch(last.rstrip())) is None:
        way = f"restore the line '(next id: E<number>)', or remove all from {BEGIN} to {END}."
        raise LibraryFormatError(f"{where} end with {last!r:.200}; {way}")
    parsed = []
    for line in lines:
        if (parts := _LINE.fullmatch(line)) is None or not parts[3].strip():
            form = "a line is '[E<number>] text' (a star behind the number: for all), not empty."
            raise LibraryFormatError(f"{where} hold the line {line!r:.200}: {form}")
        parsed.append((parts[1], parts[2], unescaped(parts[3])))
    return parsed, int(match[1])


def with_brief(instructions: str, text: str) -> str:
    """The instructions with a brief in place of their brief, or of all that is before the block."""
    kept = escaped(text, kept="\n\t")
    written = f"<{BRIEF}>\n{kept}\n</{BRIEF}>"
    before, block, after = split_instructions(instructions)
    if BRIEF_BLOCK.search(before):
        written = BRIEF_BLOCK.sub(lambda _: written, before, count=1)
    elif block:
        written += "\n\n"
    return written + block + after


def plain_instructions(instructions: str) -> str:
    """The instructions without our delimiters. Raises LibraryFormatError."""
    before, block, after = split_instructions(_without_tags(instructions))
    advice = [text for _, _, text in lines_of(block, "self")[0]] if block else []
    before = before.removesuffix("\n\n") if block else before
    return "\n".join([before, *advice] if before else advice) + after


def named_predictors(program: Any) -> list[tuple[str, Any]]:
    """The program's predictors by name, as DSPy lists them (frozen sub-modules are left out).

    Raises LibraryError: it is no program.
    """
    if not hasattr(program, "named_predictors") or isinstance(program, type):
        raise LibraryError(f"program={program!r:.100}: pass a dspy.Module, not its file or class.")
    return list(program.named_predictors())


def instructions_of(before: Any, after: Any) -> dict[str, tuple[str, str]]:
    """The instructions of each predictor in a program and in a copy of it."""
    pairs = zip(named_predictors(before), named_predictors(after), strict=True)
    return {
        name: (p.signature.instructions, q.signature.instructions) for (name, p), (_, q) in pairs
    }


def bare_instructions(predictor: Any) -> str:
    """The predictor's instructions, or its brief, without the experiences behind them."""
    return _without_tags(replace_block(predictor.signature.instructions))


def _without_tags(instructions: str) -> str:
    return BRIEF_BLOCK.sub(lambda match: unescaped(match[1]), instructions)


def with_instructions(signature: Any, instructions: str) -> Any:
    """The signature with these instructions, byte for byte."""
    # behind an empty first line DSPy's `inspect.cleandoc` takes no indentation away
    return signature.with_instructions(f"\n{instructions}")


def introduced(program: ProgramT) -> ProgramT:
    """A copy with the paper's own sentence before the experiences. Raises LibraryError."""
    copied = copy_to_change(program)
    for _, predictor in named_predictors(copied):
        instructions = predictor.signature.instructions
        before = replace_block(instructions).removesuffix(f"\n\n{PAPER_HEADER}")
        new = replace_block(f"{before}\n\n{PAPER_HEADER}", split_instructions(instructions)[1])
        predictor.signature = with_instructions(predictor.signature, new)
    return copied


def copy_program(program: ProgramT, lm_for: Callable[[Any], Any] = lambda lm: lm) -> ProgramT:
    """A deep copy; in place of each LM stands what `lm_for` gives for it, by default the same LM.

    Results of an earlier optimizer stay behind. What refuses to be copied (a lock, a connection, an
    event loop) is shared, but never a module (DSPy's own copy would share the predictors of a list
    that holds such a thing), nor a tool, whose function is shared.
    """
    modules = _modules_of(program)
    held_things = _held_by(modules)
    shared: dict[int, Any] = {id(loop): loop for loop in loops_here()}
    for held in held_things:
        if is_lm(held):
            shared[id(held)] = lm_for(held)
        elif type(held).__module__ == "dspy.primitives.example":  # such as a demo
            if all(type(value) is str for value in vars(held)["_store"].values()):
                shared[id(held)] = held.copy()
        elif type(held) in _REFUSING:
            shared[id(held)] = _shared(held)
    try:
        copied = copy.deepcopy(program, dict(shared))
    except Exception:  # noqa: BLE001 - anything that a program holds may refuse to be copied
        before = dict(shared)
        for held in held_things:
            try:
                copy.deepcopy(held, dict(before))
            except Exception as error:  # noqa: BLE001 - as above
                if isinstance(error, TypeError):  # such as that of a lock; another error may pass
                    _REFUSING.add(type(held))
                shared[id(held)] = _shared(held)
        copied = copy.deepcopy(program, dict(shared))
    for module in _modules_of(copied) if any(RESULTS in vars(m) for m in modules) else ():
        results = vars(module).get(RESULTS)  # a program may use the name, too
        is_read = isinstance(results, dict) and "ended_because" in results
        if is_read or type(results).__module__.startswith(("tfgrpo_dspy.", "dspy.teleprompt.")):
            del vars(module)[RESULTS]
    return copied


def _shared(held: Any) -> Any:
    is_tool = hasattr(held, "func") and hasattr(held, "model_copy")
    return held.model_copy() if is_tool else held


def copy_to_change(program: ProgramT) -> ProgramT:
    """A copy that may be changed. Raises LibraryError: it shares a predictor with the program."""
    originals, copied = dict(named_predictors(program)), copy_program(program)
    if kept := [name for name, each in named_predictors(copied) if each is originals.get(name)]:
        fault = f"program={type(program).__name__}: a copy of it has the same predictor {kept[0]!r}"
        way = "let __deepcopy__ of the module that holds it give a new module"
        raise LibraryError(f"{fault}, which would be changed with the copy; {way}.")
    return copied


def _modules_of(program: Any) -> list[Any]:
    return [module for _, module in program.named_sub_modules()]


def language_models(program: Any) -> list[Any]:
    """Every LM that a module of the program holds, as an attribute or in a list or dict of one."""
    return [held for held in _held_by(_modules_of(program)) if is_lm(held)]


def is_lm(value: Any) -> bool:
    """True if it is an LM, of DSPy or like one."""
    return hasattr(value, "num_retries") and callable(getattr(value, "copy", None))


def _held_by(modules: Sequence[Any]) -> list[Any]:
    """The objects that these modules hold besides modules, once each, where DSPy looks."""
    seen = {id(module) for module in modules}
    lms: list[Any] = []
    waiting: list[Any] = [vars(module) for module in modules]
    while waiting:
        container = waiting.pop(0)
        for item in container.values() if isinstance(container, dict) else container:
            if id(item) not in seen:
                seen.add(id(item))
                (waiting if isinstance(item, dict | list | tuple) else lms).append(item)
    return lms
