"""Answers of an LM without thoughts and code fences; JSON that was cut off gets its end."""

import contextlib
import json
import re

_NAMES = (
    r"(?:[a-z]{1,12}:)?(?:think|thinking|thought|thoughts|reasoning|reason|reflection|analysis"
    r"|scratchpad|monologue|inner_monologue|antthinking|chain_of_thought)"
)
_BEGINS = re.compile(
    rf"^[^\S\n]*(?:<({_NAMES})\b[^<>\n]{{0,80}}>|\[({_NAMES})\]|\u25c1({_NAMES})\u25b7"
    r"|<\|(start_thinking|begin_of_thought|thinking|think)\|>"
    r"|(?:<\|start\|>assistant)?<\|channel\|>(?:analysis|commentary|thought)\b[^<\n]{0,80}"
    r"<\|message\|>|<\|channel>thought\b)",
    re.IGNORECASE | re.MULTILINE,
)
_ENDS = re.compile(
    rf"</{_NAMES}\s*>|\[/{_NAMES}\]|\u25c1/{_NAMES}\u25b7|<\|(?:end_thinking|end_of_thought"
    r"|/think(?:ing)?)\|>|<\|channel\|>final\b[^<\n]{0,80}<\|message\|>|<channel\|>",
    re.IGNORECASE,
)
"""The end of a thought; of harmony's channels the beginning of the final one."""
_ORPHAN = re.compile(
    rf"(?s)^.*(?:</think>|\[/think\]|\n[^\S\n]*{_ENDS.pattern}[^\S\n]*(?=\n))", re.I
)
_MARKS = re.compile(r"<\|(?:end|return|start|eot_id|im_end|end_of_text)\|>(?:assistant)?", re.I)
_ENDED = re.compile(r"[.!?\u2026\u3002\uff01\uff1f][\"'\u201d\u00bb)\]*`]*$|##\s*\]\]$")
_JSON = re.compile(r"^[^\S\n]*(?:```\w*\s*)?(?:\[\s*[\"'{]|\{\s*[\"'])", re.MULTILINE)


def without_thoughts(text: str) -> tuple[str, bool]:
    """The text without thoughts, in whatever tag or channel; whether one of them never ends."""
    kept, rest = "", text
    while begin := _BEGINS.search(rest):
        kept += rest[: begin.start()]
        end = _ENDS.search(rest, begin.end())
        if end is None:
            return kept, True
        rest = rest[end.end() :]
    kept += rest
    if _ENDS.search(kept):  # its beginning stood in the prompt
        kept = _ORPHAN.sub("", kept)
    return _MARKS.sub("", kept) if kept != text else kept, False


def finished(text: str) -> str:
    """The text that was cut off, without its last line, sentence or item if that has no end."""
    if "[[ ## completed" in text:
        return text
    if start := _JSON.search(text):
        with contextlib.suppress(ValueError, RecursionError):
            json.loads(re.sub(r"^```\w*|```$", "", text[start.start() :].strip()))
            return text
        end = max(text.rfind("},"), text.rfind("}\n"))
        end = end if end > start.start() else text.rfind('",')
        return text[: end + 1] if end > start.start() else text[: start.start()]
    lines = text.rstrip().splitlines()
    if not lines or _ENDED.search(lines[-1]):
        return text
    last = lines.pop()
    while lines and last[:1].isspace() and not _ENDED.search(lines[-1]):
        last = lines.pop()  # an item of several lines
    return "\n".join(lines)
