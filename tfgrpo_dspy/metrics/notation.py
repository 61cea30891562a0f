r"""Tokens of mathematical text: LaTeX commands and keyboard notation become one alphabet.

`\cdot` and `*` are the same token. What a run of letters means is decided here too: a function,
a constant, a product of variables (`2ab`), or a word (`5 apples`). Structure is the parser's
business.
"""

import re
import unicodedata
from dataclasses import dataclass

from tfgrpo_dspy.metrics.limits import NotMathematicsError
from tfgrpo_dspy.metrics.units import changes_value, is_unit


@dataclass(frozen=True, slots=True)
class Token:
    """One symbol; `is_spaced` when white space stands before it."""

    kind: str
    """`number`, `repeating`, `name`, `constant`, `function`, `macro`, `word` or `symbol`."""
    text: str
    is_spaced: bool = False


TRIGONOMETRIC = ("sin", "cos", "tan", "cot", "sec", "csc")
FUNCTIONS = {
    **{name: name for name in TRIGONOMETRIC},
    **{f"arc{name}": f"arc{name}" for name in TRIGONOMETRIC[:3]},
    **{f"a{name}": f"arc{name}" for name in TRIGONOMETRIC[:3]},
    **{name: name for name in ("sinh", "cosh", "tanh", "exp", "ln", "log", "sqrt", "abs")},
    **{"floor": "floor", "ceil": "ceil", "ceiling": "ceil", "factorial": "factorial"},
    **{"lg": "lg", "cbrt": "cbrt"},
}
GREEK = {
    unicodedata.name(letter).split()[-1].lower(): letter for letter in "αβγδεζηθικμνξοπρστυφχψω"
} | {"lambda": "λ"}
CONSTANTS = {
    **{"pi": "pi", "π": "pi", "e": "e", "i": "i", "reals": "reals"},
    **dict.fromkeys(("infty", "infinity", "inf", "oo"), "infinity"),
}
SYMBOL_OF_COMMAND = {
    **dict.fromkeys(("cdot", "times", "ast"), "*"),
    **dict.fromkeys(("le", "leq", "leqslant"), "<="),
    **dict.fromkeys(("ge", "geq", "geqslant"), ">="),
    **dict.fromkeys(("lvert", "rvert", "vert", "mid"), "|"),
    **dict.fromkeys(("circ", "degree"), "°"),
    **{name: name for name in ("cup", "cap", "setminus", "in", "pm", "mp")},
    **{"lt": "<", "gt": ">", "ne": "!=", "neq": "!=", "approx": "=", "div": "/", "prime": "'"},
    **{name: name for name in ("lfloor", "rfloor", "lceil", "rceil", "emptyset")},
    **{"varnothing": "emptyset", "%": "%", "\\": ";"},
    **{"{": r"\{", "}": r"\}", "lbrace": r"\{", "rbrace": r"\}"},
}
MACROS = ("frac", "binom")
SILENT_COMMAND = re.compile(
    r"left|right|[bB]igg?[lr]?|displaystyle|textstyle|q?quad|limits|rm|bf|[,;:!> ]"
)
SIZE_OF_WORD = {
    **{"dozen": 12, "hundred": 10**2, "thousand": 10**3},
    **{"million": 10**6, "billion": 10**9, "trillion": 10**12},
}
SYMBOL_OF_WORD = {"and": "and", "or": "or", "percent": "%", "degree": "°", "degrees": "°"}
NUMBER = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
GROUPED = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?")
SCANNER = re.compile(
    rf"""
      (?P<space>[\s~]+)
    | (?P<repeating>[0-9]*\.[0-9]*\\overline\s*\{{[0-9]+\}})
    | (?P<number>{NUMBER}(?:[eE][+-]?[0-9]+)?)
    | (?P<matrix>\\(?:begin|end)\s*\{{[bp]?matrix\}})
    | (?P<reals>\\mathbb\s*\{{?R\}}?)
    | (?P<text>\\(?:text|mathrm|textrm|textbf|textit|mbox|operatorname|mathbf|mathit)
        \s*\{{(?P<content>[^{{}}]*)\}})
    | (?P<command>\\(?:[A-Za-z]+|.))
    | (?P<letters>[^\W\d_]+)
    | (?P<symbol>\*\*|<=|>=|!=|==|[-+*/^_=<>()\[\]{{}}|,;!%°&'])
    """,
    re.VERBOSE,
)
SUBSCRIPT = re.compile(r"\s*_\s*(?:\{([^{}]{1,20})\}|([A-Za-z]|[0-9]+))|'")
FORMULA = re.compile(r"[0-9+*/^=<>\\]")
"""What a text has when short runs of letters in it are products of variables, not words."""


def tokens(text: str) -> list[Token]:
    """The tokens of a text that `plain` has been through.

    Raises:
        NotMathematicsError: a character, command or word has no meaning here.
    """
    return _Scanner(text).tokens()


class _Scanner:
    """One pass over one text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self._is_spaced = False
        self._found: list[Token] = []
        self._separating: list[bool] = []
        """For each open bracket, whether a comma separates elements in it (`\\frac{1,234}{2}`)."""

    def tokens(self) -> list[Token]:
        while self._position < len(self._text):
            grouped = None if any(self._separating) else self._match(GROUPED)
            match = grouped or self._match(SCANNER)
            if match is None:
                raise NotMathematicsError(f"no symbol: {self._text[self._position]!r}")
            self._position = match.end()
            if grouped:
                self._add("number", grouped[0].replace(",", ""))
            else:
                self._scan(match)
        return self._found

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        return pattern.match(self._text, self._position)

    def _add(self, kind: str, text: str) -> None:
        self._found.append(Token(kind, text, self._is_spaced))
        self._is_spaced = False

    def _scan(self, match: re.Match[str]) -> None:
        scan_by_kind = {
            "space": self._scan_space,
            "reals": self._scan_reals,
            "matrix": self._scan_matrix,
            "text": self._scan_text,
            "command": self._scan_command,
            "letters": self._scan_letters,
            "symbol": self._scan_symbol,
        }
        kind = next(name for name, found in match.groupdict().items() if found is not None)
        if kind in scan_by_kind:
            scan_by_kind[kind](match)
        else:
            self._add(kind, match[0])

    def _scan_space(self, _: re.Match[str]) -> None:
        self._is_spaced = True

    def _scan_reals(self, _: re.Match[str]) -> None:
        self._add("constant", "reals")

    def _scan_matrix(self, match: re.Match[str]) -> None:
        self._add("symbol", "begin" if "begin" in match[0] else "end")

    def _scan_symbol(self, match: re.Match[str]) -> None:
        self._add_symbol(match[0])

    def _add_symbol(self, symbol: str) -> None:
        if symbol == "{":
            before = self._found[-1] if self._found else Token("symbol", "")
            is_call = before.kind in ("macro", "function")
            self._separating.append(not is_call and before.text not in ("^", "_", "}", "]"))
        elif symbol in ("(", "[", r"\{"):
            self._separating.append(True)
        elif symbol in (")", "]", "}", r"\}") and self._separating:
            self._separating.pop()
        self._add("symbol", {"**": "^", "==": "="}.get(symbol, symbol))

    def _scan_text(self, match: re.Match[str]) -> None:
        r"""`\text{m}` is a unit behind a value, a variable elsewhere."""
        content = match["content"].strip()
        if content in FUNCTIONS:
            self._add("function", FUNCTIONS[content])
        elif content.casefold() in SYMBOL_OF_WORD:
            self._add("symbol", SYMBOL_OF_WORD[content.casefold()])
        elif len(content) == 1 and not self._ends_value():
            self._add_name(content)
        elif content:
            self._add("word", content)

    def _ends_value(self) -> bool:
        last = self._found[-1] if self._found else Token("symbol", "")
        return last.kind not in ("symbol", "macro", "function") or last.text in (")", "]", "}", "%")

    def _scan_command(self, match: re.Match[str]) -> None:
        name = match[0][1:]
        variant = name.removeprefix("var")
        if name in SYMBOL_OF_COMMAND:
            self._add_symbol(SYMBOL_OF_COMMAND[name])
        elif name in MACROS:
            self._add("macro", name)
        elif name in FUNCTIONS:
            self._add("function", FUNCTIONS[name])
        elif name in CONSTANTS and len(name) > 1:
            self._add("constant", CONSTANTS[name])
        elif variant.casefold() in GREEK:
            letter = GREEK[variant.casefold()]
            self._add_name(letter if variant.islower() else letter.upper())
        elif SILENT_COMMAND.fullmatch(name):
            self._skip_after(name)
        else:
            raise NotMathematicsError(f"no meaning for \\{name}")

    def _skip_after(self, command: str) -> None:
        """White space, and the invisible bracket of `\\left.`."""
        if command in ("left", "right") and self._text[self._position :].startswith("."):
            self._position += 1
        self._is_spaced = True

    def _scan_letters(self, match: re.Match[str]) -> None:
        run, folded = match[0], match[0].casefold()
        if folded in SYMBOL_OF_WORD:
            self._add("symbol", SYMBOL_OF_WORD[folded])
        elif folded in SIZE_OF_WORD:
            self._add("symbol", "*")
            self._add("number", str(SIZE_OF_WORD[folded]))
        elif run == "U" and self._found and self._found[-1].text in (")", "]"):
            self._add("symbol", "cup")
        elif is_unit(run) and not self._text[match.end() :].strip():  # the "sec" of "5 sec"
            self._add("word", run)
        elif run in FUNCTIONS:
            self._add("function", FUNCTIONS[run])
        else:
            self._scan_names(run)

    def _scan_names(self, run: str) -> None:
        """One variable or constant, the argument of `sinx`, a product of letters, or a word."""
        if run in CONSTANTS or len(run) == 1:
            self._add_name(run)
        elif run in GREEK:
            self._add_name(GREEK[run])
        elif run[:-1] in FUNCTIONS:
            self._add("function", FUNCTIONS[run[:-1]])
            self._add_name(run[-1])
        elif self._is_product(run):
            for letter in run:
                self._add_name(letter)
        elif changes_value(run):
            raise NotMathematicsError(f"no meaning for {run}")
        else:
            self._add("word", run)

    def _is_product(self, run: str) -> bool:
        """Whether letters are variables: `ab` in `2ab + c` is, `apples`, `cm`, `5 men` are not."""
        is_counted = self._is_spaced and self._found and self._found[-1].kind == "number"
        longest = 2 if is_counted else 3
        return len(run) <= longest and not is_unit(run) and bool(FORMULA.search(self._text))

    def _add_name(self, name: str) -> None:
        """A variable with its subscripts and primes, or a constant when it has none."""
        subscripts = ""
        while match := self._match(SUBSCRIPT):
            self._position = match.end()
            subscripts += "_" + (match[1] or match[2]) if match[0] != "'" else "'"
        if name in CONSTANTS and not subscripts:
            self._add("constant", CONSTANTS[name])
        else:
            self._add("name", name + subscripts)
