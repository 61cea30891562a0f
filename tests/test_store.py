"""The run store: records survive, nothing in it is ever executed, keys hold what results depend on.

Databases are changed by sqlite3 in a closed store; programs and metrics whose source changes are
modules that the tests write.
"""

import contextlib
import functools
import importlib.util
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from runs import learned, records
from scripted import scripted_lm

from tfgrpo_dspy import NoGate, TrainingFreeGRPOError
from tfgrpo_dspy.errors import StoreError
from tfgrpo_dspy.redaction import redacted
from tfgrpo_dspy.store import (
    Store,
    Unseen,
    digest,
    object_identity,
)

KEY = "rollout:1"
DATABASE = "tfgrpo_store.db"


ALL = {KEY: {"x": 1}, "latest:run": {"run": "run:1"}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A closed store with two records."""
    store = Store(tmp_path / "log")
    for key, record in ALL.items():
        store.put(key, record)
    store.close()
    return tmp_path / "log"


def change(folder: Path, sql: str, *values: Any) -> None:
    """Run one statement on the database of a closed store."""
    with sqlite3.connect(folder / DATABASE) as connection:
        connection.execute(sql, values)
    connection.close()


# ---------------------------------------------------------------------- records


def test_a_record_stays_as_the_first_writer_put_it_and_the_second_is_told(folder: Path) -> None:
    store = Store(folder)
    assert store.put(KEY, {"x": "other"}) == {"x": 1}
    assert store.put("rollout:3", {"x": 3}) is None
    store.replace("latest:run", {"run": "run:2"})
    store.close()
    expected = {KEY: {"x": 1}, "rollout:3": {"x": 3}, "latest:run": {"run": "run:2"}}
    assert records(folder, "rollout", "latest") == expected


@pytest.mark.parametrize(
    "text", ["x" * 200_000, "nul \0, lone \ud800, \u2028, emoji \U0001f600", "", "\\u0000"]
)
def test_texts_of_any_length_and_letters_come_back_and_make_no_file(
    text: str, folder: Path
) -> None:
    store = Store(folder)
    store.put("rollout:long", {"text": text})
    assert store.get("rollout:long") == {"text": text}
    store.close()
    assert {path.name for path in folder.iterdir()} == {DATABASE}


def test_every_text_is_cleaned_before_it_is_written_and_no_number(tmp_path: Path) -> None:
    secrets = ('pä"ss\\word', "12345678")
    store = Store(tmp_path / "log", lambda text: redacted(text, secrets))
    store.put(KEY, {"a": [f"it is {secrets[0]}!"], "n": 912345678, secrets[1]: None})
    assert store.get(KEY) == {"a": ["it is (secret)!"], "n": 912345678, "(secret)": None}
    store.close()


# ---------------------------------------------------------------------- damage

DAMAGED: dict[str, tuple[str, str]] = {
    **{
        f"the text {text[:9]!r}": (f"'{text}'", "The record 'rollout:1' is damaged")
        for text in ("", "{", "[1]", "null", '"x"', "[" * 100_000, "9" * 5000)
    },
    "a number": ("7", "The record 'rollout:1' is damaged"),
    "a pickle": ("x'80049505000000000000008c0178942e'", "The record 'rollout:1' is damaged"),
    "bytes that are no UTF-8": ("CAST(x'ff7b7d' AS TEXT)", r"Cannot read the run .* is damaged"),
}


@pytest.mark.parametrize(("value", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_row_that_holds_no_record_is_an_error_that_says_so(
    value: str, message: str, folder: Path
) -> None:
    change(folder, f"UPDATE records SET text = {value} WHERE key = '{KEY}'")
    store = Store(folder)
    with pytest.raises(StoreError, match=message):
        store.get(KEY)
    store.close()


def test_a_database_cut_off_in_the_middle_is_an_error(folder: Path) -> None:
    store = Store(folder)
    for number in range(50):
        store.put(f"rollout:more{number}", {"text": "y" * 5000})
    store.close()
    whole = (folder / DATABASE).read_bytes()
    (folder / DATABASE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match="damaged") as caught:
        Store(folder).get("rollout:more49")
    assert "intact" not in str(caught.value)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a small run."""
    folder = tmp_path_factory.mktemp("store") / "log"
    dspy.configure_cache(enable_disk_cache=False)
    learned(log_dir=folder, gate=NoGate(), epochs=1, batch_size=6)
    return folder


ODD = (None, 7, "x", [], {}, [[[]]], {"a": [1]}, -1, int("9" * 4200))


def paths_in(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something could stand in a JSON value; of a list its first place only."""
    yield before
    places = list(value) if isinstance(value, dict) else []
    if isinstance(value, list) and value:
        places = [0]
    for place in places:
        yield from paths_in(value[place], (*before, place))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("stage", ["run", "rollout", "lesson"])
def test_a_record_with_odd_types_never_raises_anything_but_our_own_errors(
    stage: str, run_folder: Path, tmp_path: Path
) -> None:
    key, record = next(iter(records(run_folder, stage).items()))
    cases = [(path, odd) for path in paths_in(record) for odd in ODD]
    for number, (path, odd) in enumerate(random.Random(stage).sample(cases, min(len(cases), 12))):
        changed: Any = {"record": json.loads(json.dumps(record))}
        place = changed
        for name in ("record", *path)[:-1]:
            place = place[name]
        place[("record", *path)[-1]] = odd
        folder = tmp_path / str(number)
        shutil.copytree(run_folder, folder)
        text = json.dumps(changed["record"])
        change(folder, "UPDATE records SET text = ? WHERE key = ?", text, key)
        with contextlib.suppress(TrainingFreeGRPOError):
            learned(log_dir=folder, gate=NoGate(), epochs=1, batch_size=6)


# ---------------------------------------------------------------------- folders


def test_a_store_of_another_format_is_refused_and_left_alone(folder: Path) -> None:
    change(folder, "PRAGMA user_version = 77")
    before = (folder / DATABASE).read_bytes()
    with pytest.raises(StoreError, match="of format 77; this version of tfgrpo_dspy reads format"):
        Store(folder)
    assert (folder / DATABASE).read_bytes() == before


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / DATABASE).write_bytes(b"somebody's" * 1000)
    with pytest.raises(StoreError, match=r"Cannot open the run store .* is damaged"):
        Store(tmp_path)
    assert (tmp_path / DATABASE).read_bytes() == b"somebody's" * 1000


def test_a_log_dir_under_a_regular_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "log"):
        with pytest.raises(StoreError, match="Cannot open the run store log_dir="):
            Store(path)
    assert (tmp_path / "file").read_text() == "x"


def test_only_a_folder_that_is_a_store_is_an_existing_one(folder: Path, tmp_path: Path) -> None:
    assert Store.existing(tmp_path / "nothing") is None
    assert not (tmp_path / "nothing").exists()
    store = Store.existing(folder)
    assert store is not None
    store.close()


def child(script: str, *arguments: Any, **options: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        **options,
    )


WRITER = """
import json, sys
from tfgrpo_dspy.store import Store
name = sys.argv[2]
input()
store = Store(sys.argv[1])
first = []
for number in range(150):
    first += [] if store.put(f"rollout:{number}", {"by": name}) else [number]
    store.put(f"rollout:{name}/{number}", {})
print(json.dumps(first))
"""


@pytest.mark.slow
def test_several_processes_write_at_once_and_nothing_is_lost_or_written_twice(
    tmp_path: Path,
) -> None:
    writers = {name: child(WRITER, tmp_path / "log", name) for name in "abc"}
    for writer in writers.values():
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    first = {name: json.loads(writer.communicate()[0]) for name, writer in writers.items()}
    written = records(tmp_path / "log", "rollout")
    assert len(written) == 150 + 3 * 150
    written_by = {number: name for name, numbers in first.items() for number in numbers}
    assert written_by == {n: written[f"rollout:{n}"]["by"] for n in range(150)}
    assert sum(map(len, first.values())) == 150


# ---------------------------------------------------------------------- keys

PLAIN = st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False)
JSON = st.recursive(
    PLAIN, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
)


@given(one=st.lists(JSON, max_size=3), other=st.lists(JSON, max_size=3))
@example(one=["a", "b"], other=["ab"])
@example(one=[["a"], "b"], other=["a", ["b"]])
@example(one=["1"], other=[1])
@example(one=[True], other=[1])
@example(one=[None], other=[])
def test_any_change_of_a_part_gives_another_digest(one: list[Any], other: list[Any]) -> None:
    one_text, other_text = (json.dumps(parts, sort_keys=True) for parts in (one, other))
    assert (digest(*one) == digest(*other)) == (one_text == other_text)
    assert digest(*one) == digest(*json.loads(one_text))


class Opaque:
    pass


# ---------------------------------------------------------------------- identities


@pytest.fixture
def user_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Loads a user's module of this source, always under the same name."""
    n_loaded = 0

    def load(source: str) -> Any:
        nonlocal n_loaded
        n_loaded += 1
        path = tmp_path / f"v{n_loaded}" / "user_code.py"
        path.parent.mkdir()
        path.write_text(source)
        spec = importlib.util.spec_from_file_location("user_code", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "user_code", module)
        spec.loader.exec_module(module)
        return module

    yield load


def of_metric(metric: Any) -> str:
    return digest(object_identity(metric, Unseen()))


METRICS = """
import dataclasses, functools

def plain(example, pred, trace=None, strict=False):
    return float(example.a == pred.a)

def keywords(example, pred, *, weight=1.0):
    return weight * (example.a == pred.a)

def closing_over(key, exact):
    def metric(example, pred, trace=None):
        return float(example[key] == pred[key] if exact else key in pred)
    return metric

def near(tolerance, example, pred, key="a"):
    return float(abs(example[key] - pred[key]) < tolerance)

class Judge:
    def __init__(self, level, key):
        self.level, self.key = level, key
    def __call__(self, example, pred, trace=None):
        return float(pred.a > self.level)
    def method(self, example, pred, trace=None):
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
    return float(example.a == pred.a)

over, under = (lambda e, p: e.a > p.a), (lambda e, p: e.a < p.a)

METRICS = {
    "plain": plain,
    "keywords": keywords,
    "closure": closing_over("answer", True),
    "partial": functools.partial(near, 0.1, key="b"),
    "object": Judge(0.5, "answer"),
    "method": Judge(0.5, "answer").method,
    "slotted": Slotted(0.5),
    "decorated": decorated,
    "cached": cached,
    "lambda": over,
    "other lambda": under,
}
"""


@pytest.mark.parametrize(
    ("metric", "before", "after"),
    [
        ("plain", "float(example.a == pred.a)\n\ndef keywords", "1.0\n\ndef keywords"),
        ("plain", "strict=False", "strict=True"),
        ("keywords", "weight=1.0", "weight=2.0"),
        ("closure", 'closing_over("answer", True)', 'closing_over("reply", True)'),
        ("closure", "if exact else key in pred", "if exact else 0.5"),
        ("partial", "near, 0.1", "near, 0.2"),
        ("object", 'Judge(0.5, "answer"),', 'Judge(0.6, "answer"),'),
        ("object", "pred.a > self.level", "pred.a < self.level"),
        ("method", 'Judge(0.5, "answer").method', 'Judge(0.6, "answer").method'),
        ("slotted", "Slotted(0.5)", "Slotted(0.6)"),
        ("decorated", "@scaled(2)", "@scaled(3)"),
        (
            "cached",
            "cached(example, pred):\n    return float",
            "cached(example, pred):\n    return",
        ),
        ("lambda", "e.a > p.a", "e.a >= p.a"),
    ],
)
def test_a_metric_counts_by_its_source_defaults_closure_arguments_and_attributes(
    metric: str, before: str, after: str, user_code: Any
) -> None:
    assert METRICS.count(before) >= 1
    first = of_metric(user_code(METRICS).METRICS[metric])
    same = of_metric(user_code("# moved down\n\n" + METRICS).METRICS[metric])
    other = of_metric(user_code(METRICS.replace(before, after)).METRICS[metric])
    assert first == same
    assert other != first


def test_metrics_that_differ_have_different_digests_also_two_lambdas_in_one_line(
    user_code: Any,
) -> None:
    metrics = user_code(METRICS).METRICS
    assert len({of_metric(metric) for metric in metrics.values()}) == len(metrics)


def test_what_has_no_source_is_known_by_name_and_said_to_be() -> None:
    unseen = Unseen()
    namespace: dict[str, Any] = {"__name__": "notebook"}
    exec("def without_source(example, pred): return 1.0", namespace)
    object_identity(namespace["without_source"], unseen)
    object_identity({"x": Opaque()}, unseen)
    assert sorted(unseen.names) == ["notebook.without_source", "test_store.Opaque"]


def test_what_holds_itself_has_an_identity_too() -> None:
    def looped(example: Any, pred: Any) -> Any:
        return other(example, pred)

    def other(example: Any, pred: Any) -> Any:
        return looped(example, pred) and cycle

    cycle: list[Any] = [looped, other]
    cycle.append(cycle)
    assert of_metric(looped) == of_metric(looped) != of_metric(other)


PROGRAM = '''
import enum
import dspy, pydantic

class Colour(enum.Enum):
    RED = "red"

class Found(pydantic.BaseModel):
    place: str

class Helper:
    def __init__(self):
        self.lock = object()

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
        self.settings = {"key": "a", "depth": 3, "names": {"x", "y", "z"}}
        self.raw = b"bytes"
        self.helper = Helper()
    def forward(self, question):
        return self.agent(question=question)

def program():
    return Program()
'''


def of_program(program: Any) -> str:
    return digest(object_identity(program, Unseen()))


@pytest.mark.parametrize(
    ("before", "after"),
    [
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
        ('"names": {"x", "y", "z"}', '"names": {"x", "y"}'),
        ('"question -> answer"', '"question -> reply"'),
        ("tools=[lookup]", "tools=[lookup], max_iters=3"),
    ],
)
def test_a_program_counts_by_its_code_tools_signatures_demos_and_state(
    before: str, after: str, user_code: Any
) -> None:
    assert PROGRAM.count(before) == 1
    first, same = (of_program(user_code(PROGRAM).program()) for _ in range(2))
    other = of_program(user_code(PROGRAM.replace(before, after)).program())
    assert first == same
    assert other != first


def test_methods_of_a_class_made_by_a_function_count_with_what_they_close_over() -> None:
    def program_of(limit: int) -> Any:
        class Program(dspy.Module):
            def __init__(self) -> None:
                super().__init__()
                self.answer = dspy.Predict("q -> a")

            def forward(self, q: str) -> Any:
                return self.answer(q=q[:limit])

        return Program()

    assert of_program(program_of(3)) == of_program(program_of(3)) != of_program(program_of(4))


def test_what_a_program_remembers_of_earlier_calls_does_not_count() -> None:
    program = dspy.ChainOfThought("question -> answer")
    before = of_program(program)
    program.history.append({"prompt": "x"})
    program.callbacks.append(object())
    program.detailed_results = {"wall_time_s": 3}
    for predictor in program.predictors():
        predictor.traces.append("x")
        predictor.train.append("x")
        predictor.callbacks.append(object())
    assert of_program(program) == before
    assert of_program(program.deepcopy()) == before
    assert of_program(dspy.ChainOfThought("question -> answer")) == before


def of_lm(lm: Any) -> str:
    return digest(object_identity(lm, Unseen()))


def api_lm(model: str = "openai/gpt-4o-mini", **kwargs: Any) -> Any:
    own = {} if "engine" in kwargs else {"api_key": "sk-one-two-three"}
    return dspy.LM(model, **{**own, "temperature": 0.5, **kwargs})


@pytest.mark.parametrize(
    "other", [{"api_base": "https://elsewhere.org/v1"}, {"model_type": "responses"}], ids=str
)
def test_an_lm_counts_by_its_endpoint_and_kind(other: dict[str, Any]) -> None:
    assert of_lm(api_lm(**other)) == of_lm(api_lm(**other)) != of_lm(api_lm())


class KeyedLM(dspy.LM):
    """An LM class of the user's own, which holds a key."""

    def __init__(self, api_token: str) -> None:
        super().__init__("openai/gpt-4o-mini", api_key=api_token)
        self.api_token = api_token


SECRETS: dict[str, Any] = {
    "key": lambda n: api_lm(api_key=f"sk-secret-{n}"),
    "header": lambda n: api_lm(extra_headers={"Authorization": f"Bearer secret-{n}"}),
    "trace header": lambda n: api_lm(headers={"X-Trace": f"secret-{n}"}),
    "attribute": lambda n: KeyedLM(f"sk-secret-{n}"),
    "endpoint": lambda n: api_lm(api_base=f"https://me:secret-{n}@host.org:80/v1?key=secret-{n}"),
}


@pytest.mark.parametrize("lm", SECRETS.values(), ids=SECRETS)
def test_keys_and_headers_do_not_count_and_are_in_no_identity(lm: Any) -> None:
    assert of_lm(lm(1)) == of_lm(lm(2))
    assert "secret-" not in json.dumps(object_identity(lm(1), Unseen()))


def test_an_engine_without_fingerprint_is_known_by_its_class_and_said_to_be() -> None:
    unseen = Unseen()
    object_identity(scripted_lm([]), unseen)
    assert unseen.names == {"scripted.ScriptedEngine"}


def test_api_keys_paths_and_addresses_are_in_no_identity_of_a_program(user_code: Any) -> None:
    module = user_code(PROGRAM)
    program = module.program()
    program.api_key = program.settings["api_key"] = "sk-secret-secret"
    program.path = Path(__file__)
    program.first.lm = api_lm()
    program.hook = functools.partial(module.lookup, limit=2)
    text = json.dumps(object_identity(program, Unseen()))
    assert "sk-" not in text
    assert str(Path(__file__).parent) not in text
    assert str(Path(module.__file__).parent) not in text
    assert " at 0x" not in text
    before = of_program(program)
    program.api_key = "sk-another"
    program.client = {"access_token": "two", "headers": {"X": "2"}}
    with_client = of_program(program)
    program.client = {"access_token": "three", "headers": {"X": "3"}}
    assert of_program(program) == with_client != before


DIGESTS = """
import sys
sys.path[:0] = sys.argv[1:]
import user_code, user_metrics
from test_store import api_lm, of_lm, of_metric, of_program
print(of_program(user_code.program()), of_lm(api_lm()),
      *(of_metric(metric) for metric in user_metrics.METRICS.values()))
"""


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_two_processes_give_the_same_digests_from_other_folders_and_with_other_hash_seeds(
    tmp_path: Path,
) -> None:
    found = []
    for seed in ("1", "2"):
        place = tmp_path / seed
        place.mkdir()
        (place / "user_code.py").write_text(PROGRAM)
        (place / "user_metrics.py").write_text(METRICS)
        environment = {**os.environ, "PYTHONHASHSEED": seed, "DSPY_CACHEDIR": str(tmp_path)}
        environment["OPENAI_API_KEY"] = f"sk-of-seed-{seed}"
        process = child(DIGESTS, place, Path(__file__).parent, env=environment)
        found.append(process.communicate(timeout=50)[0].split())
    assert found[0] == found[1]
    assert len(set(found[0])) == 2 + 11
