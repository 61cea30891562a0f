"""Odd answers, scores and programs, over which other prompt optimizers stumble, end no run."""

import itertools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dspy
import pytest
from runs import Run, in_training, knowing, learned, polite_answer, polite_rules
from scripted import EXTRACT, UPDATE, Prompt, Rule, chat, lessons, operations, scripted_lm

from tfgrpo_dspy import NoGate

NO_TEXT = "the text is empty"


@pytest.mark.parametrize(
    ("answer", "library", "refusals"),
    [
        *(
            (chat(operations=no_list), "[E1*] Count.\n[E2*] Read.\n[E3*] Be exact.", [""])
            for no_list in ("null", "{}", '"ADD"', "7")
        ),
        (chat(operations='{"op": "DELETE", "id": "E1"}'), "[E2*] Read.", [""]),
        *(
            (
                operations({"op": "update", "id": id_, "text": "Count twice."}),
                "[E1*] Count twice.\n[E2*] Read.",
                [""],
            )
            for id_ in ("1", "E1", "e1", "[E1]", "[E1*]", "(1)")
        ),
        *(
            (
                operations({"op": "ADD", "text": text}),
                "[E1*] Count.\n[E2*] Read.\n[E3*] Be exact.",
                [""],
            )
            for text in (
                "[E4*] Be exact.",
                "E4* Be exact. learned from 2 examples; on trial",
                "Be exact. measured effect on the score +0.12 \u00b1 0.05; on trial",
                "Be exact.: effect +0.012 (standard error 0.026, 2 rollouts): worth its tokens",
                "Be exact. on trial",
                "[E4*] Be exact. (learned from 2 examples; on trial)",
                "Be exact. [on trial]",
                "Be exact. from 2 examples: scores 1, 0; scores 0.5, 0",
                "- Be exact.",
                "[Lesson 3] Be exact.",
                "Example 2: Be exact.",
                "**Be exact.** (examples 1, 3)",
            )
        ),
        *(
            (operations({"op": "ADD", "text": id_}), "[E1*] Count.\n[E2*] Read.", [NO_TEXT])
            for id_ in ("E1*", "[E1*]", "E2", "E2* (on trial)", "...", "<new text>", "N/A.")
        ),
        (
            operations({"op": "ADD", "text": "State effect +0.5 (standard error 0.1, n = 9) so."}),
            "[E1*] Count.\n[E2*] Read.\n[E3*] State effect +0.5 (standard error 0.1, n = 9) so.",
            [""],
        ),
        (
            operations(*({"op": "ADD", "text": f"Advice of kind {i}"} for i in "abc")),
            "[E1*] Count.\n[E2*] Read.\n[E3*] Advice of kind a\n[E4*] Advice of kind b",
            ["", "", "the library is full: 4 experiences"],
        ),
    ],
)
def test_an_operation_is_understood_or_refused_with_a_reason(
    answer: str, library: str, refusals: list[str]
) -> None:
    run = Run([["1", "0"]], (UPDATE, answer), student=knowing("Count.", "Read."), max_experiences=4)
    assert run.library.render() == library
    assert sorted(run.refusals) == sorted(refusals)


@pytest.mark.parametrize(
    ("row", "scores", "use"),
    [
        (["3", "10"], (3.0, 10.0), "contrast"),
        (["-1", "0"], (-1.0, 0.0), "contrast"),
        (["0.5", "0.5"], (0.5, 0.5), "no contrast"),
        (["1000000.0", "1000000.5"], (1e6, 1e6 + 0.5), "contrast"),
        *((["0.5", bad, "0.7"], (0.5, 0.7), "contrast") for bad in ("nan", "inf", "-inf")),
        (["0.5", "nan", "0.5"], (0.5, 0.5), "no contrast"),
    ],
)
def test_scores_of_any_range_count_and_what_is_not_finite_is_a_failure(
    row: list[str], scores: tuple[float, ...], use: str
) -> None:
    run = Run([row], use_labels=False)
    (group,) = run.results.updates[0].groups
    assert (group.scores, group.used_as) == (scores, use)
    assert run.results.failures.get("metric", 0) == len(row) - len(scores)


def test_rows_of_one_question_with_two_labels_are_two_groups() -> None:
    trainset = [
        dspy.Example(question="question 0", answer=label).with_inputs("question")
        for label in ("0", "1")
    ]
    run = Run(
        [["0", "1"], ["0", "0"]],
        metric=lambda example, pred: float(example.answer == pred.answer),
        trainset=trainset,
    )
    groups = {group.example: group.scores for group in run.results.updates[0].groups}
    assert groups == {0: (1.0, 0.0), 1: (0.0, 0.0)}


def test_with_a_cache_every_epoch_still_samples_afresh() -> None:
    rules: list[Rule] = [
        (EXTRACT, lessons("Be exact.")),
        (UPDATE, operations({"op": "ADD", "text": "Be exact.", "lessons": [1]})),
        ("question", in_training([["1", "0", "1"]] * 4)),
    ]
    run = Run([["1", "0", "1"]] * 4, lm=scripted_lm(rules, cache=True), epochs=3)
    usage = run.results.policy_usage
    assert (usage.n_lm_calls, usage.n_cached_calls) == (3 * 4 * 3, 0)


class OwnLM(dspy.BaseLM):
    """An LM of the user's own class, which reports this usage; every n-th answer is empty."""

    def __init__(self, usage: Any, empty_every: int = 10**9) -> None:
        super().__init__("own", cache=False, num_retries=0, max_tokens=1000)
        self.reported, self.empty_every = usage, empty_every
        self.numbers = itertools.count(1)

    def forward(self, _prompt: Any = None, messages: Any = None, **_kwargs: Any) -> Any:
        number = next(self.numbers)
        text = "".join(message["content"] for message in messages)
        found = (answer for pattern, answer in polite_rules()[:2] if re.search(pattern, text))
        content = next(found, "") or polite_answer(Prompt(text, text, number, None))
        message = SimpleNamespace(content=content)
        choices = [SimpleNamespace(message=message, finish_reason="stop")]
        choices = choices if number % self.empty_every else []
        return SimpleNamespace(choices=choices, usage=self.reported, model="own")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("n_tokens", [-3, "many", float("nan"), float("inf"), None])
def test_reported_tokens_that_are_no_amount_are_estimated(tmp_path: Path, n_tokens: Any) -> None:
    lm = OwnLM({"prompt_tokens": n_tokens, "completion_tokens": 2})
    first, again = (learned(lm=lm, log_dir=tmp_path, gate=NoGate()) for _ in range(2))
    for usage in (first.detailed_results.policy_usage, again.detailed_results.policy_usage):
        assert usage.prompt_tokens > 50 * usage.n_lm_calls
        assert usage.completion_tokens == 2 * usage.n_lm_calls > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_answer_without_a_completion_is_a_failure_of_the_provider_not_of_the_metric() -> None:
    failures = learned(lm=OwnLM({}, empty_every=7)).detailed_results.failures
    assert failures["provider"] > 0
    assert "metric" not in failures


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tokens_that_an_engine_does_not_report_are_estimated_and_that_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    given: dict[str, Any] = {"prices": {"own": (1.0, 2.0)}, "gate": NoGate(), "epochs": 1}
    results = learned(lm=OwnLM({}), max_cost=1.0, **given).detailed_results
    assert results.ended_because == "all epochs are done"
    assert 50 * results.spent.n_lm_calls < results.spent.n_tokens < 1000 * results.spent.n_lm_calls
    tokens = results.spent.prompt_tokens + 2 * results.spent.completion_tokens
    assert results.spent.cost_usd == pytest.approx(tokens / 1e6)
    assert results.failures == {"usage not reported": 1}
    assert sum("reports no usage" in line for line in caplog.messages) == 1
