"""The key table: each part of what a record depends on, changed alone, makes its stages anew.

One small run is recorded; each row changes one thing of it and compiles again on a copy of the
store. What the engine and the metric are asked then is what was not replayed.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy import lm15
from runs import records
from scripted import EXTRACT, UPDATE, Prompt, ScriptedEngine, chat, lessons, operations
from small import grpo

import tfgrpo_dspy.store as run_store
from tfgrpo_dspy import ExtractAdvantage, NoGate, UpdateLibrary

ALL = {"rollout", "score", "lesson", "update"}
SAMPLES, REFLECTIONS = {"rollout", "score"}, {"lesson", "update"}


class Engine(ScriptedEngine):
    """Answers by prompt and seed; a part of its name is the weights that it runs."""

    def __init__(self, fingerprint: str = "weights 1") -> None:
        add = {"op": "ADD", "text": "Say please.", "lessons": [1]}
        rules = [(EXTRACT, lessons("Say please.")), (UPDATE, operations(add)), ("", self.polite)]
        super().__init__(rules)
        self.fingerprint = fingerprint

    @staticmethod
    def polite(prompt: Prompt) -> str:
        # not by the text of the prompt: what changes there must not change the lessons too
        return chat(answer="please" if (prompt.seed or 0) % 2 else "no")

    def complete(self, request: lm15.Request) -> lm15.Response:
        MADE.add(self.stage(request))
        return super().complete(request)

    def stage(self, request: lm15.Request) -> str:
        text = f"{request.system} {[message.text for message in request.messages]}"
        found = [s for s, p in (("lesson", EXTRACT), ("update", UPDATE)) if re.search(p, text)]
        return found[0] if found else "rollout"


MADE: set[str] = set()
"""The stages in which the engine or the metric was asked."""


def metric_of(level: float = 0.0) -> Callable[..., Any]:
    def metric(_example: Any, pred: Any, _trace: Any = None) -> Any:
        MADE.add("score")
        return dspy.Prediction(score=float(pred.answer == "please") + 0 * level, feedback="Hm.")

    return metric


def lm_of(engine: Any = None, model: str = "scripted", **kwargs: Any) -> dspy.LM:
    given = {"cache": False, "max_tokens": 50, **kwargs}
    return dspy.LM(model, engine=engine or Engine(), **given)


def served_lm(port: int) -> dspy.LM:
    lm = lm_of()
    lm.port = port
    return lm


def examples(*questions: str, label: str = "please") -> list[dspy.Example]:
    made = [dspy.Example(question=q, answer=label).with_inputs("question") for q in questions]
    return made


class OtherAdapter(dspy.ChatAdapter):
    """Another one, whose prompts are the same; so are those of the other classes here."""


class OtherExtract(ExtractAdvantage): ...


class OtherUpdate(UpdateLibrary): ...


class OtherPredict(dspy.Predict): ...


def run(log_dir: Path, **changes: Any) -> set[str]:
    """The stages that were not replayed."""
    MADE.clear()
    parts: dict[str, Any] = {
        "lm": lm_of(), "adapter": dspy.ChatAdapter(),
        "student": dspy.Predict("question -> answer"), "metric": metric_of(),
        "trainset": examples("one", "two"), "valset": examples("three"),
        "reflection_lm": lm_of(), **changes,
    }  # fmt: skip
    names = ("student", "lm", "adapter", "metric", "trainset", "valset")
    student, lm, adapter, metric, trainset, valset = (parts.pop(name) for name in names)
    given = {"group_size": 4, "batch_size": 2, "epochs": 1, "gate": NoGate(), "progress": False}
    with dspy.context(lm=lm, adapter=adapter, callbacks=parts.pop("callbacks", [])):
        optimizer = grpo(metric, log_dir=log_dir, **given, **{"num_threads": 2, **parts})
        optimizer.compile(student, trainset=trainset, valset=valset)
    return set(MADE)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys") / "log"
    dspy.configure_cache(enable_disk_cache=False)
    assert run(folder) == ALL
    return folder


def instructed(text: str) -> dspy.Predict:
    return dspy.Predict(dspy.Signature("question -> answer", text))


def holding(**attributes: Any) -> dspy.Predict:
    program = dspy.Predict("question -> answer")
    vars(program).update(attributes)
    return program


REPLAYED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "threads": {"num_threads": 4},
    "callbacks": {"callbacks": [dspy.utils.callback.BaseCallback()]},
    "DSPy's cache": {"lm": lm_of(cache=True), "reflection_lm": lm_of(cache=True)},
    "retries": {"lm": lm_of(num_retries=7)},
    "a seed of the LM, which each sample sets anew": {"lm": lm_of(seed=5)},
    "the errors allowed": {"max_errors": 50},
    "a budget that is not reached": {"max_lm_calls": 1000},
    "the port of the LM": {"lm": served_lm(port=8001)},
    "the adapter that DSPy uses anyhow": {"adapter": None},
}
CHANGED: dict[str, tuple[dict[str, Any], set[str]]] = {
    "instructions": ({"student": instructed("Answer.")}, ALL),
    "demos": ({"student": holding(demos=[dspy.Example(question="q", answer="a")])}, SAMPLES),
    "code of the program": ({"student": OtherPredict("question -> answer")}, SAMPLES),
    "the program's own LM": ({"student": holding(lm=lm_of(top_p=0.5))}, SAMPLES),
    "a parameter of the LM": ({"lm": lm_of(top_p=0.5)}, SAMPLES),
    "the weights of the LM": ({"lm": lm_of(Engine("weights 2"))}, SAMPLES),
    "adapter": ({"adapter": OtherAdapter()}, ALL),
    "an argument of the adapter": (
        {"adapter": dspy.ChatAdapter(use_native_function_calling=True)},
        ALL,
    ),
    "temperature": ({"temperature": 0.9}, SAMPLES),
    "seed": ({"seed": 1}, ALL),
    "an input": ({"trainset": examples("one", "another")}, SAMPLES | {"lesson", "update"}),
    "a label": (
        {"trainset": examples("one", "two", label="Please")},
        SAMPLES | {"lesson", "update"},
    ),
    "a label of the validation set": ({"valset": examples("three", label="Please")}, SAMPLES),
    "what the metric closes over": ({"metric": metric_of(1.0)}, SAMPLES),
    "the LM of the reflections": ({"reflection_lm": lm_of(top_p=0.5)}, REFLECTIONS),
    "objective": ({"objective": "Manners."}, REFLECTIONS),
    "code of the extraction": ({"extract": OtherExtract()}, {"lesson"}),
    "code of the update": ({"update": OtherUpdate()}, {"update"}),
    "version": ({"version": "2"}, ALL),
}


@pytest.mark.parametrize("changes", REPLAYED.values(), ids=REPLAYED)
def test_what_results_do_not_depend_on_is_in_no_key(
    changes: dict[str, Any], recorded: Path, tmp_path: Path
) -> None:
    shutil.copytree(recorded, tmp_path / "log")
    assert run(tmp_path / "log", **changes) == set()


def test_another_minor_version_of_dspy_may_write_other_prompts(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(recorded, tmp_path / "log")
    monkeypatch.setattr(run_store, "DSPY", "3.99")
    assert run(tmp_path / "log") == ALL


@pytest.mark.parametrize(("changes", "anew"), CHANGED.values(), ids=CHANGED)
def test_each_part_of_a_key_changed_alone_makes_its_stages_anew(
    changes: dict[str, Any], anew: set[str], recorded: Path, tmp_path: Path
) -> None:
    shutil.copytree(recorded, tmp_path / "log")
    assert run(tmp_path / "log", **changes) == anew
    assert run(tmp_path / "log") == set()  # the records of the first run stand beside the others


class Page:
    """A value whose class tells nothing of its text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text


@pytest.mark.parametrize(("field", "kind"), [("answer", Page), ("password", str)])
def test_every_field_of_an_example_counts_by_its_text(
    field: str, kind: Any, tmp_path: Path
) -> None:
    def of(*texts: str) -> list[dspy.Example]:
        examples = (dspy.Example(question="?", **{field: kind(text)}) for text in texts)
        return [example.with_inputs("question") for example in examples]

    assert run(tmp_path, trainset=of("one", "two")) == ALL
    assert run(tmp_path, trainset=of("one", "two")) == set()
    assert run(tmp_path, trainset=of("one", "another")) >= SAMPLES


def test_two_answers_to_one_prompt_are_two_records(tmp_path: Path) -> None:
    """Two of three drafts are shown the same examples; they differ by their seeds only."""
    engine = Engine()
    draft = r"output fields are:\n1. `lessons`(?s:.)*## examples ##"
    engine.rules = [(draft, lambda prompt: lessons(f"Say {prompt.seed}.")), *engine.rules]
    run(tmp_path / "log", reflection_lm=lm_of(engine), drafts=3)
    prompts = [prompt.text for prompt in engine.prompts if re.search(draft, prompt.text)]
    assert (len(prompts), len(set(prompts))) == (3, 2)
    drafts = records(tmp_path / "log", "draft").values()
    assert len({json.dumps(record["output"]) for record in drafts}) == 3
