"""Promise 8: no key reaches a log, a report or a file.

The LM is a real client: DSPy's own way to an OpenAI-shaped server, on the loopback interface.
"""

import functools
import json
import logging
import os
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import dspy
import pytest
from chat_server import ChatServer, Fault, server
from runs import (
    ADVICE,
    agent,
    agent_lm,
    is_polite,
    learned,
    library_texts,
    optimizer_of,
    polite_lm,
    polite_rules,
    predictor,
    questions,
)
from scripted import chat, scripted_lm

from tfgrpo_dspy import ExperienceLibrary, NoGate, RunFailedError, SettingsError
from tfgrpo_dspy.experience import Add
from tfgrpo_dspy.report import html
from tfgrpo_dspy.strategies.base import Credit, Proposed, Shown, Strategy
from tfgrpo_dspy.text import known_secrets, redacted

__all__ = ["server"]  # a fixture

KEY = "sk-7hJ2-only-in-this-test"
REFUSED = "Incorrect API key provided: "


def half_right(example: Any, _pred: Any) -> dspy.Prediction:
    return dspy.Prediction(score=float(example.question.endswith("1")), feedback="Say please.")


@pytest.fixture(params=["argument", "environment"])
def lm(request: pytest.FixtureRequest, server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An LM whose key is given in one of the two ways."""
    server.rules = [*polite_rules()[:2], ("", chat(answer="please"))]
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    kwargs = {"api_key": KEY} if request.param == "argument" else {}
    lm = server.lm(temperature=1.0, **kwargs)
    yield lm
    lm.close()


def compiled(lm: Any, student: Any = None, **settings: Any) -> Any:
    given = {"metric": half_right, "gate": NoGate(), "group_size": 2, **settings}
    with dspy.context(lm=lm):
        return optimizer_of(**given).compile(
            student or predictor(), trainset=questions(5), valset=questions(3, start=100)
        )


def test_an_api_key_is_in_no_file_no_report_and_no_log_line(
    lm: Any, server: ChatServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    student = predictor()
    student.lm = lm
    with caplog.at_level(logging.DEBUG):
        optimized = compiled(lm, student)
        optimized.save(tmp_path / "program.json")
        ExperienceLibrary.from_program(optimized).save(tmp_path / "library.json")
    results = optimized.detailed_results
    assert server.keys == {KEY}
    assert library_texts(optimized) == [ADVICE]
    assert ADVICE in (tmp_path / "library.json").read_text()
    written = [path.read_text() for path in tmp_path.iterdir()]
    reported = [json.dumps(results.to_dict()), repr(results), caplog.text]
    reported.append(repr(optimizer_of(reflection_lm=lm).get_params()))
    assert [text for text in [*written, *reported] if KEY in text] == []
    assert "update 1 (epoch 1)" in caplog.text
    ours = [entry.getMessage() for entry in caplog.records if entry.name.startswith("tfgrpo_dspy")]
    for prompted in ("question 1", ADVICE, "Say please."):
        assert prompted not in "".join(ours)


@pytest.mark.parametrize("status", [500, 401])
def test_a_key_that_the_provider_sends_back_is_in_no_log_no_report_and_no_error(
    status: int, lm: Any, server: ChatServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.plan = lambda _n, _p: Fault(status, REFUSED, echoes_key=True)
    shown = ""
    with caplog.at_level(logging.DEBUG, logger="tfgrpo_dspy"):
        try:
            results = compiled(lm).detailed_results
        except RunFailedError as failed:
            shown = "".join(traceback.format_exception(failed))
            results = failed.program.detailed_results
    assert f"{REFUSED}(secret)" in (caplog.text if status == 500 else shown)
    assert server.keys == {KEY}
    reported = (shown, json.dumps(results.to_dict()), caplog.text)
    assert [text for text in reported if KEY in text] == []


class Telling(dspy.Module):
    """A program that fails with what its LM was given."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:  # noqa: ARG002
        message = f"refused with {KEY}"
        raise ValueError(message)


@pytest.mark.parametrize("max_errors", [0, 2, 5])
def test_a_key_in_the_error_that_ends_a_run_is_not_told(lm: Any, max_errors: int) -> None:
    with pytest.raises(RunFailedError) as failed:
        compiled(lm, Telling(), max_errors=max_errors)
    assert "refused with (secret)" in str(failed.value)
    assert KEY not in "".join(traceback.format_exception(failed.value))


def refusing(shown: str, **attributes: Any) -> dspy.LM:
    """An LM whose errors show the key, which is in one of its attributes."""
    lm = scripted_lm([("", RuntimeError(f"the client refused {shown}"))], num_retries=0)
    vars(lm).update(attributes)
    return lm


def unreachable(url: str) -> dspy.LM:
    given = {"api_key": "none", "cache": False, "num_retries": 0}
    return dspy.LM("openai/gpt-4o-mini", api_base=url, **given)


def with_client(key: str) -> dspy.LM:
    lm = refusing(key)
    lm.engine.client = SimpleNamespace(headers={"Accept": "application/json", "X-Account": key})
    return lm


def answering(key: str) -> dspy.LM:
    lm = scripted_lm([*polite_rules()[:2], ("", chat(answer=f"no, {key}"))])
    lm.engine.api_key = key
    return lm


def judge_of(key: str) -> Any:
    """A metric that holds an LM, and shows its key."""
    judge = dspy.LM("openai/judge", api_key=key, num_retries=0)

    def judged(example: Any, _pred: Any, _trace: Any = None) -> float:
        if example.question[-1] in "02468":  # not always: that would end the run at once
            raise ValueError(f"the judge refused {judge.kwargs['api_key']}")
        return 0.5

    return judged


def judged_by_the_lm(_example: Any, pred: Any) -> float:
    return float(dspy.Predict("claim -> grade: float")(claim=str(pred.answer)).grade)


def judged_by_a_module(key: str) -> Any:
    judge = dspy.Predict("claim -> grade: float")
    judge.lm = refusing(key, api_token=key)
    return lambda _example, pred, _trace=None: float(judge(claim=str(pred.answer)).grade)


def graded(judge: Any, _example: Any, pred: Any, _trace: Any = None) -> float:
    return float(judge(f"claim: {pred.answer}")[0])


def refusing_to_judge(key: str) -> dspy.LM:
    lm = refusing(key, api_token=key)
    lm.engine.rules = [("claim", lm.engine.rules[0][1]), *polite_rules()]
    return lm


class Proposing(Strategy):
    def propose(self, context: Any, _ask: Any) -> Proposed:
        return Proposed(context.lessons, (Add(f"Always send {KEY} with it."),))


JUDGE = refusing(KEY, api_token=KEY)
QUOTED = 'sk-7hJ2"quoted\\in-this-test'
PLACES: dict[str, dict[str, Any]] = {
    "password in the endpoint": {"lm": unreachable(f"http://me:{KEY}@127.0.0.1:9/v1?key={KEY}")},
    "judge that the metric holds": {"metric": judge_of(KEY)},
    "judge in a module": {"metric": judged_by_a_module(KEY)},
    "judge in a partial": {"metric": functools.partial(graded, refusing(KEY, api_token=KEY))},
    "judge of a bound method": {"metric": MethodType(graded, refusing(KEY, api_token=KEY))},
    "judge of a default argument": {"metric": lambda e, p, _t=None, lm=JUDGE: graded(lm, e, p)},
    "judge, without a store": {"metric": judge_of(KEY), "log_dir": None},
    "LM as the judge": {"lm": refusing_to_judge(KEY), "metric": judged_by_the_lm},
    "reflection LM": {"reflection_lm": refusing(KEY, api_token=KEY)},
    "attribute of an LM class": {"lm": refusing(KEY, api_token=KEY)},
    "client of the engine": {"lm": with_client(KEY)},
    "answers": {"lm": answering(KEY)},
    "operation of a strategy": {"lm": with_client(KEY), "strategies": (Proposing(),)},
    "answer of approve": {"lm": answering(KEY), "approve": lambda _: KEY},
    "objective": {"lm": with_client(KEY), "objective": f"Never say {KEY}."},
    "quotes, shown as JSON": {"lm": refusing(json.dumps({"k": QUOTED}), api_token=QUOTED)},
    "quotes, shown by repr": {"lm": refusing(repr([QUOTED]), api_token=QUOTED)},
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_key_at_any_place_of_an_lm_is_in_no_byte_of_store_log_and_results(
    place: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"lm": polite_lm(), "max_errors": 1000, "log_dir": tmp_path, **place}
    with caplog.at_level(logging.DEBUG, logger="tfgrpo_dspy"):
        results = compiled(**settings).detailed_results
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    texts = [stored.decode(errors="replace"), caplog.text, str(results.to_dict()), str(results)]
    assert [text for text in texts if KEY[:12] in text] == []
    assert "(secret)" in "".join(texts)


@pytest.mark.parametrize(
    ("name", "value", "is_secret"),
    [
        ("API_KEY_2", "sk-verysecret-12345", True),
        ("PGPASSWORD", "hunter2hunter2", True),
        ("GITHUB_PAT", "ghp_0123456789", True),
        ("POSTGRES_PASSWORD", "password", False),
        ("AWS_REGION", "us-east-12", False),
        ("SORT_KEY", "customer_id", False),
        ("PRIMARY_KEY_COLUMN", "CustomerId", False),
        ("TOKENIZER_PATH", "/models/customer_id", False),
        ("AWS_SECRET_ACCESS_KEY", "/bPxRfiCYEXAMPLEKEY", True),
        ("SIGNING_KEY", __file__, False),
    ],
)
def test_a_variable_of_the_environment_holds_a_secret_by_its_name_but_plain_words_are_none(
    name: str, value: str, is_secret: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("SHORTER_KEY", value[:9] if is_secret else "")  # each counts as a whole
    advice = f"When a customer asks, join on {value}."
    settings = {"metric": half_right, "gate": NoGate(), "epochs": 1, "log_dir": tmp_path}
    results = learned(lm=polite_lm(advice), **settings).detailed_results
    shown = advice.replace(value, "(secret)") if is_secret else advice
    assert shown in str([(update.operations, update.lessons) for update in results.updates])
    assert (value.encode() in (tmp_path / "tfgrpo_store.db").read_bytes()) != is_secret


def test_settings_that_are_refused_do_not_print_a_key() -> None:
    lm = dspy.LM("openai/gpt-4o-mini", api_key=KEY)
    with pytest.raises(SettingsError) as raised:
        optimizer_of(gate=lm, extract=lm, epochs=0)
    assert KEY not in str(raised.value)


# -------------------------------------------------------------------------- the user's own data


DAYS = {
    "TOKEN_VALID_UNTIL": "2026-11-30",  # in the data, so it is no secret
    "AWS_KEY_ZONE_KEY": "eu-central-1b",
    "SESSION_TOKENS_USED": "12345678",
}


@pytest.mark.parametrize("where", ["label", "instructions", "input", "demo", "field"])
def test_what_stands_in_the_users_own_data_is_never_taken_out(
    where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    for name, value in DAYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PARTNER_API_KEY", KEY)
    texts = " ".join(DAYS.values())
    student, rows = predictor(), questions(6)
    if where == "instructions":
        student.signature = student.signature.with_instructions(f"Answer {texts}.")
    elif where == "field":
        student.signature = student.signature.with_updated_fields("question", desc=texts)
    elif where == "demo":
        student.demos = [dspy.Example(question="q", answer=texts)]
    else:
        more = {"answer": texts} if where == "label" else {"question": f"{texts} 1"}
        rows[0] = rows[0].copy(**more).with_inputs("question")
    lm = scripted_lm([*polite_rules(f"Say {texts}.")[:2], ("", chat(answer=f"{texts} {KEY}"))])
    with dspy.context(lm=lm), caplog.at_level(logging.INFO, logger="tfgrpo_dspy"):
        optimized = optimizer_of(
            metric=half_right, gate=NoGate(), group_size=2, log_dir=tmp_path
        ).compile(student, trainset=rows, valset=questions(3, start=100))
    assert library_texts(optimized) == [f"Say {texts}."]
    reported = json.dumps(optimized.detailed_results.to_dict())
    assert texts in reported and KEY not in reported
    said = [entry.getMessage() for entry in caplog.records if "kept out" in entry.getMessage()]
    kept_out = next(line for line in said if line.startswith("kept out"))
    assert "PARTNER_API_KEY" in kept_out and KEY not in "".join(said)
    shown = next(line for line in said if line.startswith("not kept out"))
    assert all(name in shown and name not in kept_out for name in DAYS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOKEN_EXPIRES", "2026-11-30"),
        ("MAX_TOKENS_TOTAL", "1000000000"),
        ("AWS_REGION_KEY", "eu-central-1"),
        ("API_KEY_CREATED", "2026-11-30"),
    ],
)
def test_a_variable_that_says_something_about_a_secret_is_none(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert known_secrets([]).count(value) == 0


def test_a_secret_with_quotes_is_cleaned_out_of_json_that_stands_in_json(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DB_PASSWORD", 'pä"ss\\word')
    shown = json.dumps({"log": json.dumps({"tried": 'pä"ss\\word'})})
    assert redacted(shown, known_secrets([])) == json.dumps({"log": '{"tried": "(secret)"}'})


def test_a_value_with_quotes_that_stands_in_a_nested_label_is_no_secret(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DOOR_PASSWORD", 'three"quotes')
    label = {"said": 'three"quotes'}
    rows = [each.copy(answer=label).with_inputs("question") for each in questions(12)]
    with dspy.context(lm=polite_lm('Say three"quotes.')), caplog.at_level(logging.INFO):
        optimized = optimizer_of(gate=NoGate()).compile(
            predictor(), trainset=rows[:6], valset=rows[6:]
        )
    assert library_texts(optimized) == ['Say three"quotes.']
    assert "not kept out, as it stands in the examples or the program: the value of DOOR_PASS" in (
        caplog.text
    )
    assert not [line for line in caplog.messages if line.startswith("kept out") and "DOOR" in line]


@pytest.mark.parametrize("place", ["feedback", "outputs", "error", "steps"])
def test_a_key_in_recorded_traces_is_in_no_prompt_and_in_no_report(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARTNER_API_KEY", KEY)
    step = {"kind": "tool", "name": "get", "inputs": {"auth": KEY}, "outputs": {"result": KEY}}
    more = {"feedback": f"refused {KEY}", "outputs": {"answer": KEY}, "error": f"no {KEY}",
            "steps": [step, step]}  # fmt: skip
    traces = [
        {"inputs": {"question": "q"}, "outputs": {"answer": str(n)}, "score": float(n)}
        | ({place: more[place]} if n == 0 else {})
        for n in range(2)
    ]
    lm = scripted_lm([*polite_rules()[:2]])
    with dspy.context(lm=lm):
        optimized = optimizer_of(metric=None).learn(predictor(), traces=traces)
    prompts = [prompt.text for prompt in lm.engine.prompts]
    assert any("(secret)" in text for text in prompts)
    assert not any(KEY in text for text in prompts)
    assert KEY not in json.dumps(optimized.detailed_results.to_dict())


class Noting(Strategy):
    def show(self, context: Any, _ask: Any) -> Shown:
        return Shown(context.group.rollouts, f"It was sent with {KEY}.")

    def credit(self, *_: Any) -> Credit:
        return Credit({}, note=f"It cost {KEY}.")


def test_a_key_in_the_notes_of_a_strategy_is_in_no_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARTNER_API_KEY", KEY)
    lm = agent_lm()
    compiled(lm, agent(), metric=is_polite, strategies=(Noting(),))
    prompts = "".join(prompt.text for prompt in lm.engine.prompts)
    assert all(f"It {what} (secret)." in prompts for what in ("was sent with", "cost"))
    assert KEY not in prompts


def rejected() -> None:
    raise PermissionError(f"401 for {os.environ['SERVICE_TOKEN']}")


@dataclass(frozen=True)
class Rejected(Strategy):
    def rescue(self, *_: Any) -> Any:
        rejected()


def rejected_unless_polite(_example: Any, pred: Any, _trace: Any = None) -> float:
    return 1.0 if pred.answer == "please" else rejected() or 0.0


CODE: dict[str, dict[str, Any]] = {
    "approve": {"approve": lambda _proposal: rejected()},
    "on_event": {"on_event": lambda _event: rejected()},
    "a strategy": {"strategies": [Rejected()]},
    "a metric that mostly fails": {"metric": rejected_unless_polite},
}


@pytest.mark.parametrize("given_", CODE.values(), ids=CODE)
def test_what_the_users_own_code_raises_shows_no_secret(
    given_: dict[str, Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVICE_TOKEN", "tok-0123456789xyz")
    shown = ""
    with caplog.at_level(logging.DEBUG):
        try:
            program = learned(**given_)
        except RunFailedError as failed:
            shown, program = str(failed), failed.program
    results = program.detailed_results
    said = "\n".join([shown, caplog.text, json.dumps(results.to_dict()), html(results)])
    assert "401 for (secret)" in said
    assert "tok-0123456789xyz" not in said
