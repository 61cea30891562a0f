"""One rollout: distinct samples, the full trajectory, failures told apart, nothing touched."""

import datetime
import re
from collections import Counter
from collections.abc import Callable
from enum import Enum
from types import MappingProxyType
from typing import Any

import dspy
import pydantic
import pytest
from dspy import lm15
from runs import learned, look_up, polite_rules
from scripted import EXTRACT, UPDATE, Prompt, chat, scripted_lm

from tfgrpo_dspy import Gate, NoGate
from tfgrpo_dspy.rollout import Rollout, Step, adapt_metric
from tfgrpo_dspy.sampling.one_rollout import RolloutTask, run_rollout, sampling_copy

EXAMPLE = dspy.Example(question="why?", answer="yes").with_inputs("question")
BECAUSE = [("question", chat(answer="yes"))]
SLOW_DOWN = lm15.RateLimitError("too many requests")


def exact(example: dspy.Example, pred: dspy.Prediction, _trace: object = None) -> bool:
    return pred.answer == example.answer


def rollout(
    program: dspy.Module,
    lm: dspy.LM | None,
    rollout_id: int = 77,
    temperature: float | None = 0.7,
    metric: Callable[..., Any] | None = exact,
    example: dspy.Example = EXAMPLE,
) -> Rollout:
    score = None if metric is None else adapt_metric(metric)
    with dspy.context(lm=lm or dspy.settings.lm):
        return run_rollout(RolloutTask(program, example, 3, rollout_id, temperature, score))


def failure_of(done: Rollout) -> tuple[str, float | None]:
    assert done.failure is not None
    return done.failure.kind, done.score


def ask(**config: Any) -> dspy.Predict:
    return dspy.Predict("question -> answer", **config)


class Program(dspy.Module):
    """Holds what it is given under the names given, and runs the function on itself."""

    def __init__(self, run: Callable[..., Any], **held: Any) -> None:
        super().__init__()
        vars(self).update(held)
        self.run = run

    def forward(self, question: str) -> Any:
        return self.run(self, question)


@pytest.mark.parametrize(
    ("lm", "rollout_id", "temperature", "seed"),
    [
        (dspy.LM("openai/gpt-4o-mini", temperature=0.2), 5, 0.7, None),
        (dspy.LM("openai/gpt-4o-mini", seed=1), 5, 0.7, 5),
        (dspy.LM("openai/gpt-4o-mini", seed=1), 2**31 + 6, 0.7, 6),
        (dspy.LM("openai/o3"), 5, None, None),
    ],
)
def test_a_provider_is_sent_a_rollout_id_for_the_cache_and_a_seed_where_its_user_gave_one(
    lm: dspy.LM, rollout_id: int, temperature: float | None, seed: int | None
) -> None:
    before = dict(lm.kwargs)
    copied = sampling_copy(lm, rollout_id, 0.7).kwargs
    assert (copied["temperature"], copied.get("seed")) == (temperature, seed)
    assert copied["rollout_id"] == rollout_id
    assert lm.kwargs == before


@pytest.mark.parametrize(
    ("of_lm", "config", "of_task", "sampled"),
    [
        (0.4, {"temperature": 0.0, "n": 1}, 0.7, [0.7] * 3),
        (0.4, {"rollout_id": 9}, 0.7, [0.7] * 3),
        (0.4, {"temperature": 0.0}, None, [0.0] * 3),
        (0.4, {}, None, [0.4] * 3),
        (0.0, {}, None, [0.0]),  # the cache may answer
    ],
)
def test_a_rollout_runs_at_its_own_temperature_or_at_that_of_the_predictor_or_of_the_lm(
    of_lm: float, config: dict[str, Any], of_task: float | None, sampled: list[float]
) -> None:
    lm, program = scripted_lm(BECAUSE, cache=True, temperature=of_lm), ask(**config)
    done = [rollout(program, lm, rollout_id, of_task) for rollout_id in (1, 2, 3)]
    assert [each.failure for each in done] == [None] * 3  # warnings are errors here
    assert [prompt.temperature for prompt in lm.engine.prompts] == sampled
    assert program.config == config


def by_context(self: Any, question: str, lm: Any) -> dspy.Prediction:
    with dspy.context(lm=lm):
        return self.ask(question=question)


def by_argument(self: Any, question: str, lm: Any) -> dspy.Prediction:
    return self.ask(question=question, lm=lm)


def by_attribute(self: Any, question: str, lm: Any) -> dspy.Prediction:
    self.ask.lm = lm
    return self.ask(question=question)


@pytest.mark.parametrize("call", [by_context, by_argument, by_attribute])
@pytest.mark.parametrize("path", ["self.lms", "self.lms[0]", "self.lms['big'][0]"])
def test_an_lm_that_the_program_holds_is_sampled_and_counted(call: Any, path: str) -> None:
    def run(self: Any, question: str) -> dspy.Prediction:
        return call(self, question, eval(path))

    held = scripted_lm(BECAUSE, cache=True)
    lms: Any = {"self.lms": held, "self.lms[0]": [held]}.get(path, {"big": (held,)})
    program = Program(run, ask=ask(), lms=lms)
    for rollout_id in (11, 12):
        done = rollout(program, scripted_lm([]), rollout_id)
        assert (done.score, done.usage.n_lm_calls) == (1.0, 1)
    assert [(p.seed, p.temperature) for p in held.engine.prompts] == [(11, 0.7), (12, 0.7)]
    assert program.lms is lms
    assert program.ask.lm is None


def named_steps(done: Rollout) -> list[tuple[str, str]]:
    return [(step.kind, step.name) for step in done.steps]


def asking_twice(self: Any, question: str) -> dspy.Prediction:
    draft = self.draft(question=question)
    return self.final(question=f"{question} not {draft.answer}")


def two_asks() -> Program:
    return Program(asking_twice, draft=ask(), final=ask())


def test_a_rollout_holds_outputs_score_and_every_predictor_call_in_order() -> None:
    lm = scripted_lm([("not no", chat(answer="yes")), ("", chat(answer="no"))])
    done = rollout(two_asks(), lm)
    steps = (
        Step("predictor", "draft", {"question": "why?"}, {"answer": "no"}),
        Step("predictor", "final", {"question": "why? not no"}, {"answer": "yes"}),
    )
    counted = {"usage": done.usage, "n_metric_calls": 1}
    assert done == Rollout(3, 77, {"answer": "yes"}, steps, 1.0, shows_advice=False, **counted)


def calling(*names: str) -> Callable[..., Any]:
    """A program's `run` that calls its predictors of these names, one after the other."""

    def run(self: Any, question: str) -> Any:
        return [eval(name, dict(vars(self)))(question=question) for name in names][-1]

    return run


def frozen(program: dspy.Module) -> dspy.Module:
    program._compiled = True  # noqa: SLF001 - as BootstrapFewShot leaves it
    return program


@pytest.mark.parametrize(
    ("held", "names"),
    [
        ({"a": ask(), "b": ask()}, ["a", "b", "a"]),
        ({"all": [ask(), ask()]}, ["all[1]", "all[0]"]),
        ({"by": {"x": ask(), "y": ask()}}, ["by['x']", "by['y']"]),
        ({"deep": [[ask()], [ask()]]}, ["deep[0][0]", "deep[1][0]"]),
        ({"inner": two_asks()}, ["inner.draft", "inner.final"]),
        ({"old": frozen(two_asks()), "a": ask()}, ["old.draft", "old.final", "a"]),
    ],
)
def test_every_step_names_its_predictor(held: dict[str, Any], names: list[str]) -> None:
    done = rollout(Program(calling(*names), **held), scripted_lm(BECAUSE))
    assert named_steps(done) == [("predictor", name) for name in names]


def agent_lm(*turns: tuple[str, dict[str, Any]], **kwargs: Any) -> dspy.LM:
    """An LM that takes the turns (tool, arguments) one after the other, then answers."""

    def turn(prompt: Prompt) -> str:
        n_taken = prompt.user.count("[[ ## observation_")
        tool, arguments = turns[n_taken]
        return chat(next_thought="go on", next_tool_name=tool, next_tool_args=arguments)

    rules = [("`next_tool_name`", turn), ("`reasoning`", chat(reasoning="done", answer="yes"))]
    return scripted_lm(rules, **kwargs)


def divide(a: int, b: int) -> float:
    """Divides."""
    return a / b


def test_tool_calls_stand_among_the_predictor_calls_with_arguments_result_and_error() -> None:
    lm = agent_lm(("look_up", {"page": "7"}), ("divide", {"a": 1, "b": 0}), ("finish", {}))
    done = rollout(dspy.ReAct("question -> answer", tools=[look_up, divide]), lm)
    names = [step.name for step in done.steps if step.kind == "predictor"]
    assert names == ["react", "react", "react", "extract.predict"]
    error = "ZeroDivisionError: division by zero"
    assert done.steps[1] == Step("tool", "look_up", {"page": "7"}, {"result": "page 7"})
    assert done.steps[3] == Step("tool", "divide", {"a": "1", "b": "0"}, {}, error)
    assert done.steps[5].outputs == {"result": "Completed."}
    assert (done.score, done.failure) == (1.0, None)


def test_a_step_shows_its_inputs_as_they_were_though_the_program_changes_them_later() -> None:
    def refine(self: Any, question: str) -> Any:
        tried: list[Any] = []
        loop: list[Any] = []
        loop.append(loop)
        self.ask(question=question, tried=[], unused=loop)
        for number in range(3):
            pred = self.ask(question=question, tried=tried)
            tried.append({"notes": [number]})
            tried[0]["notes"].append("changed")
        return pred

    program = Program(refine, ask=dspy.Predict("question, tried: list -> answer"))
    _, *steps = rollout(program, scripted_lm(BECAUSE)).steps
    assert [step.inputs["tried"] for step in steps] == [
        "[]",
        '[{"notes": [0, "changed"]}]',
        '[{"notes": [0, "changed", "changed"]}, {"notes": [1]}]',
    ]


def test_an_answer_that_does_not_parse_is_shown_as_the_last_step_with_what_was_malformed() -> None:
    count = dspy.Predict("question -> number: int")
    program = Program(calling("ask", "count"), ask=ask(), count=count)
    done = rollout(program, scripted_lm([("`number`", chat(number="seven or eight")), *BECAUSE]))
    assert done.failure is not None
    assert done.failure.kind == "parse"
    assert "seven or eight" in done.failure.message
    assert named_steps(done) == [("predictor", "ask"), ("predictor", "count")]
    unparsed = done.steps[-1]
    assert "seven or eight" in unparsed.outputs["unparsed answer"]
    assert "why?" in unparsed.inputs["prompt"]
    assert unparsed.error == done.failure.message
    assert done.usage.n_lm_calls == 3


class Page(pydantic.BaseModel):
    title: str


class Aliased(pydantic.BaseModel):
    title: str = pydantic.Field(alias="Title")


class Shown(Page):
    images: list[dspy.Image]


AN_IMAGE = dspy.Image(url="data:image/png;base64,AAAA")
A_CIRCLE: list[Any] = []
A_CIRCLE.append(A_CIRCLE)


class Grade(Enum):
    GOOD, BAD = "very good", "bad"


class Size(Enum):
    SMALL, LARGE = 1, 2


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is", "as it is"), (["a", 1, None], '["a", 1, null]'),
        (MappingProxyType({"a": Page(title="T")}), '{"a": {"title": "T"}}'),
        (Page(title="später"), '{"title": "später"}'), ({"b", "a"}, '["a", "b"]'),
        (Aliased(Title="T"), '{"Title": "T"}'), (Grade.GOOD, "very good"),
        ([Grade.GOOD, Size.SMALL], '["very good", 1]'),
        (datetime.date(2025, 1, 2), "2025-01-02"), (dspy.Reasoning(content="so"), "so"),
        (A_CIRCLE, "<list>"), (AN_IMAGE, "<image>"),
        (Shown(title="T", images=[AN_IMAGE]), '{"title": "T", "images": ["<image>"]}'),
        (Unprintable(), "<Unprintable>"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_outputs_of_every_type_become_text(value: Any, text: str) -> None:
    program = Program(lambda _self, _question: dspy.Prediction(answer=value), ask=ask())
    assert rollout(program, scripted_lm([]), metric=None).outputs == {"answer": text}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (SLOW_DOWN, "provider"),
        (lm15.ServerError("down"), "provider"),
        (lm15.InvalidRequestError("what?"), "provider"),
        (lm15.ContextLengthError("8193 tokens, at most 8192"), "program"),
    ],
)
def test_a_providers_failure_is_not_the_programs_but_a_prompt_that_is_too_long_is(
    error: Exception, kind: str
) -> None:
    asked: list[Any] = []
    lm = scripted_lm([("question", error)], num_retries=0)
    done = rollout(ask(), lm, metric=lambda *_: asked.append(1))
    assert failure_of(done) == (kind, None)
    assert str(error) in done.failure.message
    assert done.usage.n_failed_calls == 1
    assert asked == []


def swallowing(self: Any, question: str) -> dspy.Prediction:
    try:
        return self.ask(question=question)
    except Exception:  # noqa: BLE001 - what users write
        return dspy.Prediction(answer="yes")


@pytest.mark.parametrize("end", ["", "garbage", lm15.ContextLengthError("too long"), ValueError()])
def test_a_providers_failure_that_the_program_hides_still_gives_no_score(end: Any) -> None:
    def run(self: Any, question: str) -> dspy.Prediction:
        answer = swallowing(self, question)
        if isinstance(end, ValueError):
            raise end
        return self.count(question=question) if end else answer

    program = Program(run, ask=ask(), count=dspy.Predict("question -> number: int"))
    done = rollout(program, scripted_lm([("`number`", end), ("", SLOW_DOWN)], num_retries=0))
    assert failure_of(done) == ("provider", None)


def judged(_example: Any, pred: dspy.Prediction) -> float:
    return float(dspy.Predict("claim -> grade: float")(claim=pred.answer).grade)


def test_an_lm_judge_uses_the_users_lm_at_its_own_settings_and_is_counted_apart() -> None:
    lm = scripted_lm([("claim", chat(grade="0.5")), *BECAUSE], temperature=0.2, cache=True)
    for rollout_id in (1, 2):
        done = rollout(ask(), lm, rollout_id, metric=judged)
        assert (done.score, done.usage.n_lm_calls, done.usage.n_cached_calls) == (0.5, 1, 0)
    assert (done.metric_usage.n_lm_calls, done.metric_usage.n_cached_calls) == (0, 1)
    judging = [prompt for prompt in lm.engine.prompts if "claim" in prompt.text]
    assert [(prompt.seed, prompt.temperature) for prompt in judging] == [(None, 0.2)]
    assert named_steps(done) == [("predictor", "self")]


def graded_wrongly(said: str) -> Rollout:
    """A rollout whose metric says this of a wrong answer."""
    signature = dspy.make_signature(
        {"question": (str, dspy.InputField()), "grade": (Grade, dspy.OutputField())}
    )
    example = dspy.Example(question="q", grade=Grade.GOOD).with_inputs("question")
    score = adapt_metric(lambda *_: dspy.Prediction(score=0.0, feedback=said))
    with dspy.context(lm=scripted_lm([("question", chat(grade="bad"))])):
        return run_rollout(RolloutTask(dspy.Predict(signature), example, 0, 1, 0.7, score))


@pytest.mark.parametrize(
    ("said", "read"),
    [
        (f"{Grade.GOOD} was expected, not {Grade.BAD}.", "very good was expected, not bad."),
        (f"Wrong: {Grade.BAD!r}", "Wrong: bad"),
        ("See Grade.GOODNESS and grade.md.", "See Grade.GOODNESS and grade.md."),
    ],
)
def test_feedback_names_members_of_enums_by_the_values_that_the_lm_writes(
    said: str, read: str
) -> None:
    rollout = graded_wrongly(said)
    assert rollout.outputs == {"grade": "bad"}
    assert rollout.feedback == read


@pytest.mark.parametrize(("gate", "n_own"), [(None, 1), (NoGate(), 0)])
def test_the_first_rollout_of_a_group_has_the_temperature_of_the_result(
    gate: Gate | None, n_own: int
) -> None:
    lm = scripted_lm(polite_rules(), temperature=0.3)
    learned(lm=lm, gate=gate, group_size=3, epochs=1, max_demos=0, drafts=0)
    rollouts = [p for p in lm.engine.prompts if not re.search(f"{EXTRACT}|{UPDATE}", p.text)]
    of_training = [p for p in rollouts if re.search(r"question [0-5]\b", p.text)]
    counts = Counter(prompt.temperature for prompt in of_training)
    assert counts == Counter({0.3: 6 * n_own, 0.7: 6 * (3 - n_own)})
