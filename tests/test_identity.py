"""Keys hold what results depend on: programs, metrics and LMs count by their code and state.

What changes is the source of a user's module that the tests write.
"""

import functools
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import dspy
import pytest
from scripted import scripted_lm

from tfgrpo_dspy.reflection.lessons import task_text
from tfgrpo_dspy.user_code import Identities, digest


def test_parts_that_differ_in_value_type_or_place_have_different_digests() -> None:
    parts: list[list[Any]] = [["a", "b"], ["ab"], [["a"], "b"], ["a", ["b"]], ["1"], [1], [True]]
    parts += [[None], [], [1.0], [{"a": 1, "b": 2}], [{"a": 2, "b": 1}], ["\ud800"]]
    assert len({digest(*each) for each in parts}) == len(parts)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


def digest_of(thing: Any) -> str:
    return digest(Identities().of(thing))


CODE = '''
import dataclasses, enum, functools, typing
import dspy, pydantic

def plain(example, pred, trace=None, strict=False):
    return float(example.a == pred.a)

def keywords(example, pred, *, weight=1.0):
    return weight * (example.a == pred.a)

def closing_over(key):
    def metric(example, pred, trace=None):
        return float(example[key] == pred[key])
    return metric

LEAST, UNUSED = 0.5, 1
WORDS = {"yes": ["aye"]}
MOST = 2.0

def tidy(text):
    return text.strip() if text else same(text, "")

def same(one, other):
    return tidy(one) == tidy(other)

class Scale:
    factor = 1.0

class Config:
    def __init__(self):
        self.depth = 3

config = Config()

def by_helpers(example, pred, trace=None):
    matches = [same(word, pred.a) for word in WORDS["yes"]]
    return Scale.factor * Judge.most * float(any(matches) and pred.b > LEAST) + (
        config.depth + by_kinds(example, pred))

class Judge:
    most = MOST
    def __init__(self, level):
        self.level = level
    def __call__(self, example, pred, trace=None):
        return min(self.most, float(pred.a > self.level))

class Grader:
    def __init__(self, level):
        self.level = level
    def grade(self, example, pred, trace=None):
        return float(pred.a > self.level)

@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    level: float
    def __call__(self, example, pred, trace=None):
        return float(pred.a >= self.level)

def scaled(factor):
    def wrap(function):
        @functools.wraps(function)
        def wrapper(example, pred, trace=None):
            return factor * function(example, pred)
        return wrapper
    return wrap

@scaled(2)
def decorated(example, pred):
    return float(example.a == pred.a)

@functools.lru_cache
def cached(example, pred):
    return float(example.b == pred.b)

over, under = (lambda e, p: e.a > p.a), (lambda e, p: e.a < p.a)

class Colour(enum.Enum):
    RED = "red"

class Found(pydantic.BaseModel):
    place: str

@dataclasses.dataclass
class Limits:
    depth: int

class Helper:
    def __init__(self):
        self.lock = object()

def shortened(text):
    return text[:5]

def lookup(name: str, limit: int = 3) -> str:
    """Look a name up."""
    return name[:limit]

class Program(dspy.Module):
    def __init__(self):
        super().__init__()
        self.first = dspy.Predict(
            dspy.Signature("question: str, hue: Colour -> found: Found", "Find it.",
                           custom_types={"Colour": Colour, "Found": Found})
            .with_updated_fields("question", desc="what is asked")
        )
        self.first.demos = [dspy.Example(question="q", found="f"), {"question": "p"}]
        self.agent = dspy.ReAct("question -> answer", tools=[lookup])
        self.settings = {"key": "a", "limits": Limits(3), "names": {"x", "y", "z"}}
        self.raw = b"bytes"
        self.helper = Helper()
    @property
    def first_line(self):
        return shortened
    def forward(self, question):
        return self.agent(question=question)

def made_by(length):
    class Made(dspy.Module):
        def forward(self, q):
            return self.answer(q=q[:length])
    return Made()

class Grade(enum.Enum):
    BAD = 0

class Bounds(typing.NamedTuple):
    least: int
    def doubled(self):
        return self.least * 2

@functools.singledispatch
def size(value):
    return 0

@size.register
def _(value: str):
    return len(value)

class Marks:
    @functools.cached_property
    def highest(self):
        return same("a", self.most) + 1

Marks.count = plain
Marks.known = ("a",)
BOUNDS = Bounds(1)

def by_kinds(example, pred, grade=Grade.BAD):
    marks = Marks.count(example, pred) + len(Marks.known)
    return BOUNDS.doubled() + size(pred) + marks

THINGS = {
    "plain": plain, "keywords": keywords, "closure": closing_over("answer"),
    "partial": functools.partial(plain, strict=1), "object": Judge(0.5),
    "method": Grader(0.5).grade, "slotted": Slotted(0.5), "decorated": decorated,
    "cached": cached, "lambda": over, "other lambda": under,
    "program": Program(), "made": made_by(3), "helpers": by_helpers,
}
'''
CHANGES = [
    ("plain", "float(example.a == pred.a)\n\ndef keywords", "1.0\n\ndef keywords"),
    ("plain", "strict=False", "strict=True"),
    ("keywords", "weight=1.0", "weight=2.0"),
    ("closure", 'closing_over("answer")', 'closing_over("reply")'),
    ("closure", "float(example[key] == pred[key])", "0.5"),
    ("partial", "strict=1", "strict=2"),
    ("object", "Judge(0.5)", "Judge(0.6)"),
    ("object", "float(pred.a > self.level))\n\nclass Grader", "1.0)\n\nclass Grader"),
    ("object", "MOST = 2.0", "MOST = 3.0"),
    ("method", "Grader(0.5)", "Grader(0.6)"),
    ("method", "def grade(self, example, pred, trace=None)", "def grade(self, example, pred)"),
    ("slotted", "Slotted(0.5)", "Slotted(0.6)"),
    ("decorated", "@scaled(2)", "@scaled(3)"),
    ("cached", "float(example.b == pred.b)", "1.0"),
    ("lambda", "e.a > p.a", "e.a >= p.a"),
    ("made", "made_by(3)", "made_by(4)"),
    ("helpers", "text.strip()", "text.strip().lower()"),
    ("helpers", "LEAST, UNUSED = 0.5", "LEAST, UNUSED = 0.6"),
    ("helpers", '["aye"]', '["yea"]'),
    ("helpers", "factor = 1.0", "factor = 2.0"),
    ("helpers", "MOST = 2.0", "MOST = 3.0"),
    ("helpers", "BAD = 0", "BAD = 1"),
    ("helpers", "return self.least * 2", "return self.least * 3"),
    ("helpers", "return len(value)", "return len(value) + 1"),
    ("helpers", "Marks.count = plain", "Marks.count = keywords"),
    ("helpers", 'Marks.known = ("a",)', 'Marks.known = ("b",)'),
    ("helpers", "self.depth = 3", "self.depth = 4"),
    ("program", "text[:5]", "text[:6]"),
    *(
        ("program", before, after)
        for before, after in (
            ("return self.agent(question=question)", "return self.agent(question=question + '!')"),
            ("return name[:limit]", "return name"),
            ("limit: int = 3", "limit: int = 4"),
            ('"""Look a name up."""', '"""Look up a name."""'),
            ('"Find it."', '"Find it fast."'),
            ('desc="what is asked"', 'desc="what they ask"'),
            ('RED = "red"', 'BLUE = "blue"'),
            ("place: str", "place: str\n    reason: str"),
            ('question="q", found="f"', 'question="q", found="g"'),
            ('"key": "a"', '"key": "b"'),
            ("Limits(3)", "Limits(4)"),
            ('"names": {"x", "y", "z"}', '"names": {"x", "y"}'),
            ('"question -> answer"', '"question -> reply"'),
            ("tools=[lookup]", "tools=[lookup], max_iters=3"),
        )
    ),
]


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    """Loads a user's module of this source, always under the same name; gives its THINGS."""

    def load(source: str) -> dict[str, Any]:
        path = tmp_path / f"v{len(list(tmp_path.iterdir()))}" / "user_code.py"
        path.parent.mkdir()
        path.write_text(source)
        spec = importlib.util.spec_from_file_location("user_code", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "user_code", module)
        spec.loader.exec_module(module)
        return dict(module.THINGS)

    return load


@pytest.mark.parametrize(("name", "before", "after"), CHANGES)
def test_code_counts_by_its_source_its_defaults_what_it_closes_over_and_what_it_holds(
    name: str, before: str, after: str, loaded: Callable[[str], dict[str, Any]]
) -> None:
    assert CODE.count(before) == 1
    first = digest_of(loaded(CODE)[name])
    assert digest_of(loaded("# moved down\n\n" + CODE)[name]) == first
    assert digest_of(loaded(CODE.replace(before, after))[name]) != first


def test_what_code_does_not_name_does_not_count(loaded: Callable[[str], dict[str, Any]]) -> None:
    other = CODE.replace("UNUSED = 0.5, 1", "UNUSED = 0.5, 2")
    assert digest_of(loaded(CODE)["helpers"]) == digest_of(loaded(other)["helpers"])


IMPORTED = "importlib.import_module('owned.text')"


@pytest.mark.parametrize(
    "lines",
    [
        ["import owned.text", "def metric(e, p):", "    return owned.text.norm(p)"],
        ["import owned", "def metric(e, p):", "    return owned.text.norm(p)"],
        ["def metric(e, p):", "    import owned.text as t", "    return t.norm(p)"],
        ["def metric(e, p):", "    from owned.text import norm", "    return norm(p)"],
        ["def metric(e, p):", "    from owned import text, none", "    return text.norm(p)"],
        [
            "import importlib as i",
            "def metric(e, p):",
            "    return i.import_module('owned.text').norm(p)",
        ],
        ["def metric(e, p):", "    return __import__('owned').text.norm(p)"],
    ],
)
def test_a_function_of_a_module_within_a_package_counts_by_its_source(
    lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digest(body: str) -> str:
        folder = tmp_path / body
        (folder / "owned").mkdir(parents=True)
        (folder / "owned" / "__init__.py").write_text("from . import text\n")
        (folder / "owned" / "text.py").write_text(f"def norm(s):\n    return s.{body}()\n")
        (folder / "owned_metric.py").write_text("\n".join(lines))
        monkeypatch.syspath_prepend(str(folder))
        for name in ("owned", "owned.text", "owned_metric"):
            sys.modules.pop(name, None)
        return digest_of(importlib.import_module("owned_metric").metric)

    assert digest("strip") != digest("lower")


class Opaque:
    pass


def test_what_has_no_source_is_known_by_name_and_said_to_be() -> None:
    identities = Identities()
    namespace: dict[str, Any] = {"__name__": "notebook"}
    exec("def without_source(example, pred): return 1.0", namespace)
    identities.of([namespace["without_source"], {"x": Opaque()}, scripted_lm([])])
    named = ["notebook.without_source", "scripted.ScriptedEngine", "test_identity.Opaque"]
    assert sorted(identities.by_name) == named


@pytest.mark.parametrize("call", ["eval('a.b')", "open('rules.txt')", "import_module(p.a)"])
def test_code_that_does_more_than_its_source_says_is_named(call: str, loaded: Any) -> None:
    source = f"from importlib import import_module\ndef metric(e, p):\n    return {call}\n"
    identities = Identities()
    identities.of(loaded(source + "THINGS = {'metric': metric}\n")["metric"])
    assert identities.by_name == {"what user_code.metric reads or evaluates"}


def test_what_holds_itself_has_an_identity_too() -> None:
    def looped(example: Any, pred: Any) -> Any:
        return other(example, pred)

    def other(example: Any, pred: Any) -> Any:
        return looped(example, pred) and cycle

    cycle: list[Any] = [looped, other]
    cycle.append(cycle)
    assert digest_of(looped) == digest_of(looped) != digest_of(other)


def test_a_type_that_holds_a_dict_counts_by_its_schema() -> None:
    kinds = [Annotated[Literal["yes", each], {"unit": ["x"]}] for each in ("no", "no", "never")]
    programs = [
        dspy.Predict(dspy.Signature("q -> a", "").with_updated_fields("a", type_=list[kind]))
        for kind in kinds
    ]
    first, same, other = (digest(Identities().of(each)) for each in programs)
    assert first == same != other
    assert '"never"' in json.dumps(Identities().of(programs[2]))
    assert "never" in task_text(programs[2])


def test_what_a_program_remembers_of_earlier_calls_does_not_count() -> None:
    program = dspy.ChainOfThought("question -> answer")
    before = digest_of(program)
    program.history.append({"prompt": "x"})
    program.callbacks.append(object())
    program.detailed_results = {"wall_time_s": 3}
    for predictor in program.predictors():
        predictor.traces.append("x")
        predictor.train.append("x")
        predictor.callbacks.append(object())
    assert digest_of(program) == digest_of(program.deepcopy()) == before
    assert digest_of(dspy.ChainOfThought("question -> answer")) == before


def api_lm(**kwargs: Any) -> Any:
    given = {"api_key": "sk-one-two-three", "temperature": 0.5, **kwargs}
    return dspy.LM("openai/gpt-4o-mini", **given)


def test_an_lm_counts_by_its_kind_and_its_sampling() -> None:
    others = [{}, {"top_p": 0.5}, {"model_type": "responses"}, {"max_tokens": 7}]
    assert len({digest_of(api_lm(**other)) for other in [*others, *others]}) == 4


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"api_base": "http://localhost:8001/v1"},
        {"base_url": "https://elsewhere.org/v1"},
        {"api_version": "2026-01-01", "azure_endpoint": "https://mine.example.org"},
        {"aws_region_name": "eu-west-1"},
        {"organization": "org-2"},
    ],
)
def test_a_model_is_the_same_wherever_it_is_reached(elsewhere: dict[str, str]) -> None:
    assert digest_of(api_lm(**elsewhere)) == digest_of(api_lm())


def with_client(secret: str) -> dspy.Module:
    program = dspy.Predict("question -> answer")
    program.api_key = secret
    program.client = {"access_token": secret, "headers": {"X": secret}, "path": Path(__file__)}
    program.hook = functools.partial(digest_of, Opaque())
    return program


SECRETS: dict[str, Callable[[str], Any]] = {
    "key": lambda secret: api_lm(api_key=secret),
    "header": lambda secret: api_lm(extra_headers={"Authorization": f"Bearer {secret}"}),
    "trace header": lambda secret: api_lm(headers={"X-Trace": secret}),
    "endpoint": lambda secret: api_lm(api_base=f"https://me:{secret}@host.org:80/v1?key={secret}"),
    "program": with_client,
}


@pytest.mark.parametrize("holding", SECRETS.values(), ids=SECRETS)
def test_keys_headers_paths_and_addresses_do_not_count_and_are_in_no_identity(
    holding: Callable[[str], Any],
) -> None:
    assert digest_of(holding("sk-secret-1")) == digest_of(holding("sk-secret-2"))
    text = json.dumps(Identities().of(holding("sk-secret-1")))
    for unwanted in ("secret-", str(Path(__file__).parent), " at 0x"):
        assert unwanted not in text
