"""Promises 4 and 5: starting the same compile again goes on from its records; offline it replays.

All through `compile`, with scripted LMs whose calls are counted. What differs in code is another
function or class here; what must be the same and yet fail when touched looks at `TOUCHED`.
"""

import itertools
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dspy
import pytest
from dspy.utils.exceptions import LMServerError
from runs import AtCall, agent, library_texts, polite_rules, questions, records
from scripted import EXTRACT, UPDATE, Prompt, Rule, ScriptedEngine, chat, scripted_lm
from small import grpo
from test_promise_deterministic import chaotic_rules

import tfgrpo_dspy.budget as ledger
from tfgrpo_dspy import Gate, MissingRecordError, NoGate, SettingsError, StoreError, best_so_far
from tfgrpo_dspy.store import Store

REFLECTION = f"{EXTRACT}|{UPDATE}"
N_TRAINING, N_VALIDATION, GROUP_SIZE = 6, 8, 3
TOUCHED = SimpleNamespace(is_forbidden=False, failing="")
"""What the metrics and programs here do besides, set by a test: no part of what they are."""


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    yield
    vars(TOUCHED).update(is_forbidden=False, failing="")


def scored(example: Any, pred: Any, _trace: Any = None) -> dspy.Prediction:
    assert not TOUCHED.is_forbidden
    assert not TOUCHED.failing or TOUCHED.failing not in example.question
    return dspy.Prediction(score=float(pred.answer == "please"), feedback="Say please.")


def scored_as_well(example: Any, pred: Any, _trace: Any = None) -> dspy.Prediction:
    """Other code than `scored`, the same scores."""
    return scored(example, pred)


class Asking(dspy.Module):
    """A program whose code a test may forbid to run."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict("question -> answer")

    def forward(self, question: str) -> Any:
        assert not TOUCHED.is_forbidden
        return self.ask(question=question)


def lm_of(rules: list[Rule] | None = None, **kwargs: Any) -> Any:
    return scripted_lm(rules or chaotic_rules(), **kwargs)


def compiled(log_dir: Path | None = None, lm: Any = None, **changes: Any) -> Any:
    """One compile of the task, in a store or without."""
    given: dict[str, Any] = {"student": None, "metric": scored, **changes}
    student, metric = given.pop("student"), given.pop("metric")
    chosen = {"group_size": GROUP_SIZE, "epochs": 2, "batch_size": 3, "num_threads": 4}
    optimizer = grpo(metric, progress=False, log_dir=log_dir, **(chosen | given))
    with dspy.context(lm=lm or lm_of()):
        return optimizer.compile(
            student or Asking(),
            trainset=questions(N_TRAINING),
            valset=questions(N_VALIDATION, start=100),
        )


def offline(log_dir: Path, **changes: Any) -> Any:
    """The same, with LM, metric and program that fail when touched."""
    TOUCHED.is_forbidden = True
    lm = changes.pop("lm", None) or lm_of([("", AssertionError("touched"))])
    try:
        optimized = compiled(log_dir, lm, offline=True, **changes)
    finally:
        TOUCHED.is_forbidden = False
    assert lm.engine.n_calls() == 0
    return optimized


def facts(optimized: Any) -> str:
    """All of a result, as text, but for how long it took and where it came from."""
    results = optimized.detailed_results.to_dict()
    for told_apart in ("wall_time_s", "replayed"):
        del results[told_apart]
    results["settings"].pop("num_threads")
    results["settings"].pop("executor", None)
    results["usage"].pop("unfinished")  # what was paid for nothing is another story each time
    instructions = [p.signature.instructions for p in optimized.predictors()]
    return json.dumps([results, instructions], sort_keys=True)


def replayed(optimized: Any) -> dict[str, int]:
    return dict(optimized.detailed_results.replayed)


def n_policy(lm: Any) -> int:
    return int(lm.engine.n_calls() - lm.engine.n_calls(REFLECTION))


@pytest.fixture
def log_dir(tmp_path: Path) -> Path:
    return tmp_path / "log"


# ---------------------------------------------------------------------- the same again


@pytest.mark.parametrize(
    ("student", "changes"),
    [(Asking, {}), (agent, {}), (Asking, {"gate": NoGate()}), (Asking, {"summarize_always": True})],
    ids=["gate", "agent", "no gate", "summaries"],
)
def test_the_same_compile_again_makes_no_call_and_gives_the_same(
    student: Any, changes: dict[str, Any], log_dir: Path
) -> None:
    summary = (r"`summary`", lambda p: chat(summary=f"It went {p.random().random()}."))
    rules = [summary, *chaotic_rules()]
    changes = {"epochs": 1, "group_size": 2, **changes}
    alone = facts(compiled(lm=lm_of(rules), student=student(), **changes))
    assert facts(compiled(log_dir, lm_of(rules), student=student(), **changes)) == alone
    TOUCHED.is_forbidden = True
    for is_offline in (False, True):
        lm = lm_of([])
        again = compiled(log_dir, lm, student=student(), offline=is_offline, **changes)
        assert facts(again) == alone
        assert lm.engine.n_calls() == 0


def interrupted_after(n: int) -> AtCall:
    """Ends the run at the n-th call, as Ctrl-C in the middle of it would."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    return AtCall(n, interrupt)


@pytest.mark.parametrize(
    ("budget", "n_raced"),
    [({"max_lm_calls": 30}, 16), ({"max_lm_calls": 47}, 16), ({"max_metric_calls": 40}, 0)],
    ids=str,
)
def test_a_run_that_a_budget_ended_replays_offline_and_goes_on_from_there_without_it(
    budget: dict[str, Any], n_raced: int, log_dir: Path
) -> None:
    """`n_raced`: rollouts of libraries that are other ones without a budget."""
    lm, first_lm, second_lm = lm_of(), lm_of(), lm_of()
    alone = facts(compiled(lm=lm))
    first = compiled(log_dir, first_lm, num_threads=1, **budget)
    (name,) = budget
    assert first.detailed_results.ended_because.startswith(name)
    assert facts(offline(log_dir, num_threads=1, **budget)) == facts(first)
    assert facts(compiled(log_dir, second_lm)) == alone
    n_again = first_lm.engine.n_calls() + second_lm.engine.n_calls() - lm.engine.n_calls()
    assert n_raced <= n_again <= n_raced + 1, "the update of the batch that was cut is another one"


def test_the_minutes_of_an_earlier_start_do_not_count(
    log_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the clock of these runs, each call takes a minute."""
    n_calls = itertools.count(1)
    later = [0.0]

    def call(_prompt: Prompt) -> None:
        later[0] += 60
        if next(n_calls) == 40 and log_dir.exists():
            raise KeyboardInterrupt

    minutes = SimpleNamespace(monotonic=lambda: time.monotonic() + later[0])
    monkeypatch.setattr(ledger, "time", minutes)
    settings = {"num_threads": 1, "max_minutes": 50}
    whole = compiled(lm=lm_of(), num_threads=1).detailed_results
    cut = compiled(lm=lm_of(before=call), **settings).detailed_results
    assert cut.ended_because.startswith("max_minutes=50")
    n_calls = itertools.count(1)
    with pytest.raises(KeyboardInterrupt):
        compiled(log_dir, lm_of(before=call), **settings)
    resumed = compiled(log_dir, lm_of(before=call), **settings).detailed_results
    assert resumed.ended_because == whole.ended_because


def test_more_epochs_go_on_from_a_finished_run(log_dir: Path) -> None:
    lm, second_lm = lm_of(), lm_of()
    alone = facts(compiled(lm=lm, epochs=3))
    first = compiled(log_dir, epochs=1)
    assert first.detailed_results.ended_because == "all epochs are done"
    second = compiled(log_dir, second_lm, epochs=3)
    assert facts(second) == alone
    n_replayed = sum(replayed(second).values())
    assert replayed(second)["rollout"] == N_TRAINING * GROUP_SIZE
    assert replayed(second)["lesson"] >= 2
    assert second_lm.engine.n_calls() == lm.engine.n_calls() - n_replayed
    assert facts(offline(log_dir, epochs=1)) == facts(first)


# ---------------------------------------------------------------------- what a change leaves


def advising(advice: str) -> Any:
    """A reflection LM that always gives this lesson, and adds it."""
    engine = ScriptedEngine(polite_rules(advice)[:2])
    return dspy.LM("advisor", engine=engine, cache=False)


def test_another_reflection_lm_keeps_the_rollouts_before_the_first_other_update(
    log_dir: Path,
) -> None:
    first = compiled(log_dir, gate=Gate())
    assert first.detailed_results.updates[0].accepted
    lm, alone_lm = lm_of(), lm_of()
    other = advising("Say please at once.")  # which the first run never had at the same update
    second = compiled(log_dir, lm, gate=Gate(), reflection_lm=other)
    assert facts(second) == facts(compiled(lm=alone_lm, gate=Gate(), reflection_lm=other))
    reused = replayed(second)
    assert n_policy(lm) == n_policy(alone_lm) - reused.get("validation", 0) - reused["rollout"] > 0
    assert reused["rollout"] == 2 * 3 * GROUP_SIZE, "the batches that began before the first update"
    assert "lesson" not in reused
    assert facts(offline(log_dir, gate=Gate())) == facts(first)


# ---------------------------------------------------------------------- offline

CHANGED = "this run was not recorded there; from the nearest one that was, it differs in: "
ROLLOUT = r"training rollout of training example \d+: "
MISSING = {
    "metric": ({"metric": scored_as_well}, ROLLOUT + CHANGED + r"metric\."),
    "reflection": (
        {"reflection_lm": advising("x")},
        rf"lesson of example \d: {CHANGED}reflection LM\.",
    ),
    "epochs": ({"epochs": 4}, f"{ROLLOUT}the recorded run did not come so far"),
}


@pytest.mark.parametrize(("change", "message"), MISSING.values(), ids=MISSING)
def test_offline_a_missing_piece_is_named_with_its_example_and_the_likely_reason(
    change: dict[str, Any], message: str, log_dir: Path
) -> None:
    first = compiled(log_dir)
    with pytest.raises(MissingRecordError, match=message) as raised:
        offline(log_dir, **change)
    assert "Run the same compile with offline=False first." in str(raised.value)
    assert facts(offline(log_dir)) == facts(first)


# ---------------------------------------------------------------------- what was lost

LOST = r"question (2|103)\b"


def now_and_then(answer: Any, pattern: str) -> list[Rule]:
    """The rules, but prompts of the program with the pattern get this answer."""
    extract, update, *others = chaotic_rules()
    return [extract, update, (pattern, answer), *others]


def without_counts(optimized: Any) -> dict[str, Any]:
    """What a run says of itself, but for how often the metric was asked."""
    told = json.loads(facts(optimized))[0]
    return {name: value for name, value in told.items() if name != "metric_calls"}


@pytest.mark.parametrize("kind", ["provider", "timeout", "metric"])
def test_lost_rollouts_are_no_records_replay_offline_and_are_made_again(
    kind: str, log_dir: Path
) -> None:
    released = threading.Event()

    def hang(_prompt: Prompt) -> str:
        released.wait(15)
        return chat(answer="late")

    lost: dict[str, Any] = {"provider": LMServerError("down"), "timeout": hang}
    rules = now_and_then(lost[kind], LOST) if kind in lost else chaotic_rules()
    changes: dict[str, Any] = {"epochs": 1, "group_size": 2}
    limit = {"rollout_timeout_s": 0.8} if kind == "timeout" else {}
    TOUCHED.failing = "question 2" if kind == "metric" else ""
    first = compiled(log_dir, lm_of(rules, num_retries=0), **changes, **limit)
    released.set()
    TOUCHED.failing = ""
    assert first.detailed_results.failures[kind] >= 2
    assert all(r["failure"] is None for r in records(log_dir, "rollout").values())
    assert "late" not in json.dumps(records(log_dir, "rollout"))
    assert without_counts(offline(log_dir, **changes, **limit)) == without_counts(first)
    second_lm = lm_of()
    second = compiled(log_dir, second_lm, **changes)
    assert facts(second) == facts(compiled(**changes))
    assert second.detailed_results.failures == {}
    assert replayed(second)["rollout"] >= 3
    assert 2 * n_policy(second_lm) >= first.detailed_results.failures[kind]  # one was made twice
    assert facts(offline(log_dir, **changes)) == facts(second)


@pytest.mark.parametrize(
    "limit", [{"max_lm_calls": 60}, {"max_metric_calls": 60}, {"max_lm_calls": 300}], ids=str
)
def test_in_a_finished_run_with_a_budget_a_loss_stands_and_the_same_program_comes_back(
    limit: dict[str, int], log_dir: Path
) -> None:
    lost = iter([LMServerError("down")])

    def once(_prompt: Prompt) -> Any:
        return next(lost, chat(answer="please"))

    changes: dict[str, Any] = {**limit, "epochs": 9, "max_demos": 0}
    rules = [*polite_rules()[:2], ("question 2", once), *polite_rules()[2:]]
    first = compiled(log_dir, lm_of(rules, num_retries=0), **changes)
    assert first.detailed_results.failures["provider"] == 1
    lm = lm_of()
    assert facts(compiled(log_dir, lm, **changes)) == facts(first)
    assert lm.engine.prompts == []
    assert library_texts(best_so_far(log_dir, Asking())) == library_texts(first) != []


def test_the_programs_own_failures_are_results_and_are_not_tried_again(log_dir: Path) -> None:
    rules = now_and_then("no fields at all", LOST)
    first = compiled(log_dir, lm_of(rules), epochs=1)
    n_failed = first.detailed_results.failures["parse"]
    assert n_failed >= GROUP_SIZE
    stored = records(log_dir, "rollout").values()
    assert sum(record["failure"] is not None for record in stored) == n_failed
    lm = lm_of(rules)
    assert facts(compiled(log_dir, lm, epochs=1)) == facts(first)
    assert lm.engine.n_calls() == 0


def test_a_reflection_that_the_provider_lost_is_asked_again_online_and_lost_again_offline(
    log_dir: Path,
) -> None:
    rules = [(UPDATE, LMServerError("down")), *chaotic_rules()]
    first = compiled(log_dir, lm_of(rules, num_retries=0), epochs=1)
    assert first.detailed_results.failures["reflection error"] >= 1
    assert records(log_dir, "update") == {}
    assert facts(offline(log_dir, lm=lm_of([], num_retries=0), epochs=1)) == facts(first)
    second = compiled(log_dir, lm_of(num_retries=0), epochs=1)
    assert facts(second) == facts(compiled(lm=lm_of(num_retries=0), epochs=1))


# ---------------------------------------------------------------------- the store itself


def test_where_another_process_was_first_its_result_counts(log_dir: Path) -> None:
    def compiled_by(is_polite: bool, before: Any = None) -> Any:
        def answer(prompt: Prompt) -> str:
            return chat(answer="please" if (prompt.seed or 0) % 2 == is_polite else "no")

        lm = scripted_lm([*polite_rules()[:2], ("question", answer)], before=before)
        return compiled(log_dir, lm=lm, num_threads=1)

    others: list[Any] = []
    own = compiled_by(True, AtCall(1, lambda: others.append(compiled_by(False))))
    assert facts(own) == facts(others[0])


def test_best_so_far_gives_the_program_of_a_run_that_was_interrupted(log_dir: Path) -> None:
    before_update_2 = interrupted_after(N_VALIDATION + 3 * GROUP_SIZE + 20)
    with pytest.raises(KeyboardInterrupt):
        compiled(log_dir, lm_of(polite_rules("Be kind."), before=before_update_2), gate=NoGate())
    assert library_texts(best_so_far(log_dir, Asking())) == ["Be kind."]


@pytest.mark.parametrize("stage", ["rollout", "lesson", "update", "run"])
def test_a_record_of_another_form_is_a_store_error(stage: str, log_dir: Path) -> None:
    compiled(log_dir, epochs=1)
    store = Store(log_dir)
    for key in records(log_dir, stage):
        store.replace(key, {"x": 1})
    store.close()
    with pytest.raises(StoreError, match="is damaged"):
        compiled(log_dir, epochs=1)


# ---------------------------------------------------------------------- learning from traces


def trace(question: str, answer: str, score: float | None, **more: Any) -> dict[str, Any]:
    scored = {} if score is None else {"score": score}
    return {"inputs": {"question": question}, "outputs": {"answer": answer}, **scored, **more}


STEPS = [
    {"name": "ask", "inputs": {"question": "first"}, "outputs": {"answer": "please"}},
    {"kind": "tool", "name": "lookup", "inputs": {"q": "manners"}, "error": "no book"},
]
TRACES = [
    trace("first", "no", 0.0, feedback="be polite", labels={"answer": "please"}),
    trace("second", "no", 0),
    trace("first", "please", 1.0, steps=STEPS),
    trace("second", "please", 1),
    {"inputs": {"question": "third"}, "error": "ValueError: too odd", "score": 0.0},
]


def learned_from(traces: Any, lm: Any, log_dir: Path | None = None, **changes: Any) -> Any:
    optimizer = grpo(changes.pop("metric", None), progress=False, log_dir=log_dir, **changes)
    with dspy.context(lm=lm):
        return optimizer.learn(Asking(), traces=traces)


def traced_lm() -> Any:
    return scripted_lm(polite_rules("Always say please.")[:2])


def groups_of(optimized: Any) -> list[tuple[int, tuple[float, ...]]]:
    updates = optimized.detailed_results.updates
    return sorted((group.example, group.scores) for update in updates for group in update.groups)


def test_traces_are_learned_from_without_running_the_program(log_dir: Path) -> None:
    lm, again_lm = traced_lm(), traced_lm()
    TOUCHED.is_forbidden = True
    optimized = learned_from(TRACES, lm, log_dir)
    assert library_texts(optimized) == ["Always say please."]
    assert n_policy(lm) == 0
    assert groups_of(optimized) == [(0, (0.0, 1.0)), (1, (0.0, 1.0)), (2, (0.0,))]
    assert lm.engine.n_calls(EXTRACT) == 3, "also the single attempt, which scored less"
    for is_offline in (False, True):
        again = learned_from(TRACES, again_lm, log_dir, offline=is_offline)
        assert facts(again) == facts(optimized)
    assert again_lm.engine.n_calls() == 0


@pytest.mark.parametrize("as_given", [Path, str])
def test_traces_may_be_a_file_of_json_lines_with_any_letters(as_given: Any, tmp_path: Path) -> None:
    odd = trace("with \u2028 and \x85 inside", "no", 0.0)
    path = tmp_path / "traces.jsonl"
    lines = [json.dumps(item, ensure_ascii=False) for item in (*TRACES, odd)]
    path.write_text("\n\n".join(lines) + "\r\n", encoding="utf-8")
    assert len(groups_of(learned_from(as_given(path), traced_lm()))) == 4


def test_every_fault_in_traces_is_named_by_its_number(tmp_path: Path) -> None:
    odd_steps: list[Any] = [5, ["x"], [{"inputs": {}}]]
    faulty: list[Any] = [
        TRACES[0],
        "text",
        {"outputs": {"a": 1}},
        {"inputs": {"q": "x"}},
        *(trace("x", "y", score) for score in (float("nan"), 10**400)),
        *(trace("x", "y", 1.0, steps=steps) for steps in odd_steps),
        trace("x", "y", 1.0, labels=3),
    ]
    with pytest.raises(SettingsError) as raised:
        learned_from(faulty, traced_lm())
    named = [f"trace {number}: " in str(raised.value) for number in range(1, 11)]
    assert named == [False, *[True] * 9]
    path = tmp_path / "traces.jsonl"
    path.write_text(json.dumps(TRACES[0]) + "\n{not json\n")
    with pytest.raises(SettingsError, match=r"trace 2: .*is not JSON"):
        learned_from(path, traced_lm())
