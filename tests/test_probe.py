"""A probe says before a run whether there is anything to win, for at most 40 LM calls."""

import asyncio
import random
from typing import Any

import dspy
import pytest
from runs import agent, agent_lm, is_polite, polite_lm, polite_rules, predictor, questions
from scripted import Prompt, chat, scripted_lm

from tfgrpo_dspy import TrainingFreeGRPO
from tfgrpo_dspy.errors import RunFailedError
from tfgrpo_dspy.results.probe import Probe


def probe_of(
    lm: Any = None,
    metric: Any = is_polite,
    student: Any = None,
    n: int = 30,
    examples: Any = None,
    **settings: Any,
) -> Probe:
    given = {"max_lm_calls": 400, "num_threads": 4, "progress": False, **settings}
    optimizer = TrainingFreeGRPO(metric, **given)
    with dspy.context(lm=lm or polite_lm()):
        return optimizer.probe(student or predictor(), trainset=examples or questions(n))


def test_a_probe_of_a_plain_program_makes_at_most_40_calls_and_says_what_it_found() -> None:
    lm = polite_lm()
    probe = probe_of(lm)
    assert 0 < lm.engine.n_calls() <= 40
    assert probe.n_lm_calls == lm.engine.n_calls()
    assert probe.student is not None and 0 < probe.student.mean < 1
    assert (probe.chance, probe.gain) == pytest.approx((0.80763, 0.32611), abs=2e-5)
    assert probe.with_words == 1.0
    assert probe.noise == 0.0
    assert str(probe).startswith(probe.sentence)
    assert str(probe).endswith(
        "  foretold from simulated runs of 400 LM calls\n"
        "  not seen: whether there is anything to learn"
    )


@pytest.mark.parametrize("n", [6, 30])
def test_each_example_counts_once_and_no_interval_reaches_beyond_the_scores(n: int) -> None:
    probe = probe_of(n=n)
    assert probe.student is not None and probe.demos is not None
    assert probe.student.n == probe.n_examples < probe.n_attempts
    assert 0 == probe.student.low < probe.student.mean < probe.student.high <= 1
    assert -1 <= probe.demos.low < probe.demos.mean < probe.demos.high <= 1


def test_an_agent_takes_at_most_40_calls() -> None:
    lm = agent_lm()
    assert probe_of(lm, student=agent()).n_lm_calls == lm.engine.n_calls() <= 40


def test_the_calls_of_a_judge_count_against_the_40() -> None:
    judge = dspy.Predict("verdict_on -> grade: float")

    def judged(_example: Any, pred: Any, _trace: Any = None) -> float:
        return float(judge(verdict_on=pred.answer).grade)

    lm = scripted_lm([("`grade`", chat(grade="0.5")), *polite_rules()])
    assert probe_of(lm, judged).n_lm_calls == lm.engine.n_calls() <= 40


def test_a_fallback_of_the_adapter_counts_against_the_40() -> None:
    rules = [rule for rule in polite_rules() if rule[0] != "question"]
    lm = scripted_lm([*rules, ("question", "I had rather not say.")])
    probe = probe_of(lm)
    assert probe.n_lm_calls == lm.engine.n_calls() <= 40


def test_a_metric_that_judges_the_same_output_unlike_is_noise() -> None:
    judge = dspy.Predict("verdict_on -> grade: float")

    def judged(_example: Any, pred: Any, _trace: Any = None) -> float:
        return float(judge(verdict_on=pred.answer).grade)

    grades = iter(range(1000))
    grade = ("`grade`", lambda _prompt: chat(grade=str(next(grades) % 2)))
    lm = scripted_lm([grade, *polite_rules()], cache=False)
    assert probe_of(lm, judged, num_threads=1).noise == 1.0


DRAFTED = ("`lessons`", chat(lessons="When a customer asks, say please."))


@pytest.mark.parametrize(
    ("advised", "word"), [("no", "cannot say"), ("please", "likely that a run gains")]
)
def test_where_the_noise_of_the_metric_is_all_that_differs_only_a_sure_change_foretells(
    advised: str, word: str
) -> None:
    luck = random.Random(0)

    def graded(_example: Any, pred: Any, _trace: Any = None) -> float:
        return (pred.answer == "please") * 0.4 + 0.2 * luck.random()

    def answer(prompt: Prompt) -> str:
        return chat(answer=advised if "say please" in prompt.system else "no")

    lm = scripted_lm([DRAFTED, ("question", answer)])
    probe = probe_of(lm, graded, num_threads=1)
    assert probe.noise is not None and probe.noise > 0.5
    assert word in probe.sentence
    noise = "most of what scores differ by is noise"
    assert any(noise in why for why in probe.unknown) == (advised == "no")


def test_a_probe_that_is_replayed_says_that_no_output_was_scored_twice(tmp_path: Any) -> None:
    first, second = (probe_of(log_dir=tmp_path) for _ in range(2))
    assert (first.noise, second.noise) == (0.0, None)
    assert [why for why in second.unknown if "scored twice" in why]


def test_a_judge_that_answers_from_a_cache_of_its_own_leaves_the_noise_unknown() -> None:
    judge = dspy.Predict("verdict_on -> grade: float")
    grades = [("`grade`", lambda prompt: chat(grade=str(prompt.random().random())))]
    judge.set_lm(scripted_lm(grades, cache=True))

    def judged(_example: Any, pred: Any, _trace: Any = None) -> float:
        return float(judge(verdict_on=pred.answer).grade)

    probe = probe_of(metric=judged)
    assert probe.noise is None
    assert [why for why in probe.unknown if "scored twice: a limit, a cache" in why]


def test_a_program_that_only_fails_or_scores_0_shows_no_other_scale() -> None:
    rules = [rule for rule in polite_rules() if rule[0] != "question"]

    def answer(prompt: Prompt) -> str:
        return chat(answer="no") if prompt.random().random() < 0.6 else "I had rather not say."

    probe = probe_of(scripted_lm([*rules, ("question", answer)]))
    assert probe.student is not None and probe.student.mean == 0.0
    assert probe.chance is None
    assert not any("between 0 and 1" in why for why in probe.unknown)


def test_demos_that_make_answers_readable_are_seen_to_raise_the_score() -> None:
    def answer(prompt: Prompt) -> str:
        is_read = "please" in prompt.user or prompt.random().random() < 0.4
        return chat(answer="please") if is_read else "I had rather not say."

    probe = probe_of(scripted_lm([DRAFTED, ("question", answer)]))
    assert probe.demos is not None and probe.demos.mean > 0.3
    assert probe.student is not None and probe.student.mean < 0.7


@pytest.mark.filterwarnings("ignore:.*too few to hold some out")
@pytest.mark.parametrize(("n", "is_known"), [(1, False), (2, False), (3, True)])
def test_two_examples_foretell_nothing(n: int, is_known: bool) -> None:
    probe = probe_of(n=n)
    assert (probe.chance is not None) == is_known
    few = f"only {2 * n} attempts without additions have a score"
    assert any(few in why for why in probe.unknown) == (not is_known)


@pytest.mark.parametrize("has_field", [False, True], ids=["no such field", "max_demos=0"])
def test_labels_that_make_no_demos_are_named(has_field: bool) -> None:
    name = "answer" if has_field else "gold"
    examples = [
        dspy.Example(question=f"question {i}", **{name: "please"}).with_inputs("question")
        for i in range(30)
    ]
    probe = probe_of(examples=examples, **({"max_demos": 0} if has_field else {}))
    most = 0 if has_field else 16
    assert probe.demos is None
    assert f"no labels could be shown as demos (max_demos={most})" in probe.unknown


def test_fewer_calls_are_made_where_the_budget_is_smaller() -> None:
    lm = polite_lm()
    probe_of(lm, max_lm_calls=20)
    assert 0 < lm.engine.n_calls() <= 20


def test_a_refused_key_ends_the_probe_as_it_ends_a_run() -> None:
    def refuse(_prompt: Any) -> str:
        why = "the key is wrong"
        raise dspy.LMAuthError(why, model="scripted", provider="nobody")

    with pytest.raises(RunFailedError, match="the key is wrong"):
        probe_of(scripted_lm([("question", refuse)]))


def test_a_metric_that_never_works_ends_the_probe_after_three_attempts_as_it_ends_a_run() -> None:
    lm = polite_lm()
    with pytest.raises(RunFailedError, match="no score to any of the first 3 rollouts"):
        probe_of(lm, metric=lambda _example, _pred: None)
    assert lm.engine.n_calls() == 3


def test_aprobe_gives_what_probe_gives() -> None:
    optimizer = TrainingFreeGRPO(is_polite, max_lm_calls=400, num_threads=4, progress=False)
    with dspy.context(lm=polite_lm()):
        awaited = asyncio.run(optimizer.aprobe(predictor(), trainset=questions(30)))
    assert str(awaited) == str(probe_of())


def test_compile_with_the_same_log_dir_uses_the_rollouts_again(tmp_path: Any) -> None:
    probe_of(log_dir=tmp_path)
    optimizer = TrainingFreeGRPO(
        is_polite, max_lm_calls=400, num_threads=4, progress=False, log_dir=tmp_path
    )
    with dspy.context(lm=polite_lm()):
        result = optimizer.compile(predictor(), trainset=questions(30)).detailed_results
    assert result.replayed["rollout"] >= 8
    assert result.replayed["draft"] == 3


@pytest.mark.parametrize(("answer", "says"), [("please", "unlikely"), ("no", "cannot say")])
def test_where_all_attempts_score_the_same_only_a_perfect_student_is_judged(
    answer: str, says: str
) -> None:
    rules = [rule for rule in polite_rules() if rule[0] != "question"]
    probe = probe_of(scripted_lm([*rules, ("question", chat(answer=answer))]))
    assert probe.differing == 0
    assert says in probe.sentence
    assert any("all attempts have the same" in why for why in probe.unknown)


def test_where_demos_alone_reach_a_better_score_it_is_not_said_that_nobody_knows_of_one() -> None:
    def answer(prompt: Prompt) -> str:
        return chat(answer="please" if "please" in prompt.user else "no")

    probe = probe_of(scripted_lm([DRAFTED, ("question", answer)]))
    assert probe.demos is not None and probe.demos.mean == 1.0
    assert probe.chance is not None
    assert probe.unknown == ()


class Patient(dspy.Module):
    """Asks so many times, and takes the last answer."""

    def __init__(self, n_times: int) -> None:
        super().__init__()
        self.reply, self.n_times = predictor(), n_times

    def forward(self, question: str) -> Any:
        return [self.reply(question=question) for _ in range(self.n_times)][-1]


@pytest.mark.parametrize(("n_times", "why"), [(15, "2 attempts"), (50, "no attempt has a score")])
def test_a_program_that_takes_too_many_calls_is_not_judged(n_times: int, why: str) -> None:
    lm = polite_lm(cache=False)
    probe = probe_of(lm, student=Patient(n_times))
    assert probe.n_lm_calls == lm.engine.n_calls() <= 40
    assert probe.chance is None and "cannot say" in probe.sentence
    assert "not seen" not in str(probe)
    assert any(why in each for each in probe.unknown)


def test_scores_of_another_scale_foretell_nothing() -> None:
    def points(_example: Any, pred: Any, _trace: Any = None) -> float:
        return 100.0 * (pred.answer == "please")

    probe = probe_of(metric=points)
    assert probe.chance is None
    assert any("not between 0 and 1" in why for why in probe.unknown)


def test_without_a_metric_nothing_is_predicted() -> None:
    with pytest.warns(UserWarning, match="metric=None"):
        probe = probe_of(metric=None)
    assert probe.chance is None and "cannot say" in probe.sentence
    assert "there is no metric, and so no score" in probe.unknown


def test_drafts_that_give_no_advice_are_named() -> None:
    rules = [rule for rule in polite_rules() if "lessons" not in rule[0]]
    probe = probe_of(scripted_lm([("`lessons`", chat(lessons="None")), *rules]))
    assert probe.advice is None and probe.demos is not None
    assert probe.unknown == ("no advice was drafted from labels (3 calls)",)


def test_a_metric_without_words_and_examples_without_labels_are_named() -> None:
    def is_please(_example: Any, pred: Any, _trace: Any = None) -> float:
        return float(pred.answer == "please")

    bare = [dspy.Example(question=e.question).with_inputs("question") for e in questions(30)]
    probe = probe_of(metric=is_please, examples=bare)
    assert probe.with_words == 0
    assert "no example has labels that could be shown" in probe.unknown
    assert probe.demos is None


class Renewed(dspy.Module):
    """Asks a predictor that it makes anew."""

    def __init__(self) -> None:
        super().__init__()
        self.reply = predictor()

    def forward(self, question: str) -> Any:
        return predictor()(question=question)


def test_a_program_that_shows_no_advice_is_named() -> None:
    seen = (
        "what advice does is not seen: the program had experiences, and no prompt of it held them"
    )
    drafted = ("`lessons`", chat(lessons="When a customer asks, say please."))
    assert seen in probe_of(scripted_lm([drafted, *polite_rules()]), student=Renewed()).unknown
    assert not probe_of(scripted_lm([drafted, *polite_rules()])).unknown
