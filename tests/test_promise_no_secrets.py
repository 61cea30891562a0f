"""Promise 8: no key reaches a log, a report or a file; reading a library executes nothing.

The LM is a real client: DSPy's own way to an OpenAI-shaped server, on the loopback interface.
"""

import json
import logging
import pickle
import traceback
from pathlib import Path
from typing import Any

import dspy
import pytest
from chat_server import ChatServer, Fault, server
from runs import (
    ADVICE,
    is_polite,
    library_texts,
    optimizer_of,
    polite_lm,
    predictor,
    questions,
)
from scripted import EXTRACT, UPDATE, chat, lessons, operations

from tfgrpo_dspy import (
    ExperienceLibrary,
    LibraryFormatError,
    NoGate,
    RunFailedError,
    SettingsError,
)

__all__ = ["server"]  # a fixture

KEY = "sk-7hJ2-only-in-this-test"
REFUSED = "Incorrect API key provided: "


def half_right(example: Any, _pred: Any) -> dspy.Prediction:
    return dspy.Prediction(score=float(example.question.endswith("1")), feedback="Say please.")


def rules() -> list[tuple[str, str]]:
    add = {"op": "ADD", "text": ADVICE, "lessons": [1]}
    return [
        (EXTRACT, lessons(ADVICE)),
        (UPDATE, operations(add)),
        ("", chat(answer="please")),
    ]


@pytest.fixture(params=["argument", "environment"])
def lm(request: pytest.FixtureRequest, server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An LM whose key is given in one of the two ways."""
    server.rules = rules()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    kwargs = {"api_key": KEY} if request.param == "argument" else {}
    lm = server.lm(temperature=1.0, **kwargs)
    yield lm
    lm.close()


def compiled(lm: Any, student: Any = None) -> Any:
    with dspy.context(lm=lm):
        return optimizer_of(metric=half_right, gate=NoGate(), group_size=2).compile(
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


def test_a_key_that_the_provider_sends_back_in_its_error_is_not_logged(
    lm: Any, server: ChatServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.plan = lambda _n, _p: Fault(500, REFUSED, echoes_key=True)
    with caplog.at_level(logging.DEBUG, logger="tfgrpo_dspy"):
        results = compiled(lm).detailed_results
    assert server.keys == {KEY}
    assert results.failures == {"provider": 5 * 2 + 3}
    assert "Incorrect API key provided: (secret)" in caplog.text
    assert KEY not in caplog.text
    assert KEY not in json.dumps(results.to_dict())


def test_a_key_that_the_provider_refuses_and_sends_back_is_not_in_the_error_that_ends_the_run(
    lm: Any, server: ChatServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.plan = lambda _n, _p: Fault(401, REFUSED, echoes_key=True)
    with (
        caplog.at_level(logging.DEBUG, logger="tfgrpo_dspy"),
        pytest.raises(RunFailedError, match=r"Incorrect API key provided: \(secret\)") as failed,
    ):
        compiled(lm)
    assert server.keys == {KEY}
    shown = "".join(traceback.format_exception(failed.value))
    reported = json.dumps(failed.value.program.detailed_results.to_dict())
    assert [text for text in (shown, reported, caplog.text) if KEY in text] == []


def test_a_key_in_the_error_of_an_lm_judge_or_of_the_reflection_lm_is_not_logged(
    lm: Any, server: ChatServer, caplog: pytest.LogCaptureFixture
) -> None:
    def judged(_example: Any, pred: Any) -> float:
        return float(dspy.Predict("claim -> grade: float")(claim=str(pred.answer)).grade)

    student = predictor()
    student.lm = polite_lm()
    server.plan = lambda _n, _p: Fault(500, REFUSED, echoes_key=True)
    with caplog.at_level(logging.DEBUG, logger="tfgrpo_dspy"), dspy.context(lm=lm):
        for metric in (judged, is_polite):
            optimizer_of(metric=metric, gate=NoGate()).compile(student, trainset=questions(5))
    assert "first failure of kind 'metric'" in caplog.text
    assert "first failure of kind 'reflection error'" in caplog.text
    assert server.keys == {KEY}
    assert KEY not in caplog.text
    assert KEY[:12] not in caplog.text


def test_no_prompt_and_no_answer_is_logged_while_all_goes_well(
    lm: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="tfgrpo_dspy"):
        compiled(lm)
    assert "update 0" in caplog.text
    for text in ("question 1", ADVICE, "Say please."):
        assert text not in caplog.text


def test_settings_that_are_refused_do_not_print_a_key() -> None:
    lm = dspy.LM("openai/gpt-4o-mini", api_key=KEY)
    with pytest.raises(SettingsError) as raised:
        optimizer_of(gate=lm, extract=lm, epochs=0)
    assert KEY not in str(raised.value)


# ---------------------------------------------------------------------- reading executes nothing


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


@pytest.mark.parametrize("protocol", [0, 5])
def test_a_pickle_in_place_of_a_library_is_refused_and_not_run(
    protocol: int, tmp_path: Path
) -> None:
    path = tmp_path / "library.json"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "touched"), protocol=protocol))
    with pytest.raises(LibraryFormatError, match="is not a library"):
        ExperienceLibrary.load(path)
    assert not (tmp_path / "touched").exists()


def test_code_in_a_library_stays_text(tmp_path: Path) -> None:
    text = f"__import__('pathlib').Path({str(tmp_path / 'touched')!r}).touch()"
    library = ExperienceLibrary().apply([{"op": "ADD", "text": text}])
    library.save(tmp_path / "library.json")
    loaded = ExperienceLibrary.load(tmp_path / "library.json")
    baked = loaded.bake(predictor())
    assert [experience.text for experience in ExperienceLibrary.from_program(baked)] == [text]
    assert not (tmp_path / "touched").exists()
