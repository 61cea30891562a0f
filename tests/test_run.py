"""From groups to lessons to operations: who is asked what, and what becomes of the answers."""

import re
from typing import Any

import dspy
import pytest
from runs import UNPARSED, Run, add, knowing, predictor, questions, section
from scripted import EXTRACT, SUMMARIZE, UPDATE, Prompt, Rule, chat, lessons, operations
from small import grpo, paper_grpo

from tfgrpo_dspy import AddLessons, ExperienceLibrary, ExtractAdvantage, Gate, NoGate
from tfgrpo_dspy.experience import Experience
from tfgrpo_dspy.text import estimate_tokens

CORRECTION = r"## correction ##"
ONE = [["1", "0"]]
"""One group of two rollouts, with contrast."""


def is_score_with_feedback(_: dspy.Example, pred: dspy.Prediction) -> dspy.Prediction:
    return dspy.Prediction(score=float(pred.answer), feedback=f"{pred.answer} is not enough.")


def labelled(question: str, label: str) -> list[dspy.Example]:
    return [dspy.Example(question=question, answer=label).with_inputs("question")]


TOLD: dict[str, Any] = {"metric": is_score_with_feedback}
FLAT, FAILED, NOTHING = (
    [["0", "0"], ["1", "1"]],
    ["failure analysis", "no contrast"],
    ["no contrast"] * 2,
)


@pytest.mark.parametrize(
    ("rows", "arguments", "uses"),
    [
        ([["1", "0"], ["1", "1"], ["0.5", "0.2"]], {}, ["contrast", "no contrast", "contrast"]),
        (FLAT, TOLD, FAILED),
        (FLAT, {}, FAILED),  # by its label
        (FLAT, {"use_labels": False}, NOTHING),
        (FLAT, TOLD | {"failure_analysis": False}, NOTHING),
        (FLAT, TOLD | {"schedule": paper_grpo}, NOTHING),
    ],
)
def test_groups_that_can_teach_are_sent_to_extract_advantage(
    rows: list[list[str]], arguments: dict[str, Any], uses: list[str]
) -> None:
    run = Run(rows, (SUMMARIZE, chat(summary="Hm.")), **arguments)
    assert run.uses == uses
    sent = [section(prompt, "example") for prompt in run.texts(EXTRACT)]
    assert sent == [f"question: question {i}" for i, use in enumerate(uses) if "no" not in use]


def test_two_groups_that_teach_share_a_call_in_the_order_of_the_batch_but_no_ninth_waits() -> None:
    rows = [*([["1", "1"]] * 5), *([["1", "0"]] * 4)]
    trainset = [labelled(f"question {i}", f"label {i}")[0] for i in range(9)]
    run = Run(rows, groups_per_call=2, trainset=trainset, batch_size=9)
    a, b, c, d = (g.example for g in run.results.updates[0].groups if g.used_as == "contrast")
    two = f"Example 1\nquestion: question {a}\n\nExample 2\nquestion: question {b}"
    shown = {section(prompt, "example"): prompt for prompt in run.texts(EXTRACT)}
    assert shown.keys() == {two, f"question: question {c}", f"question: question {d}"}
    assert section(shown[two], "expected").splitlines()[-2:] == ["Example 2", f"answer: label {b}"]
    parts = re.findall(r"(?m)^(?:Example|Attempt) \d", section(shown[two], "attempts"))
    assert parts == ["Example 1", *(attempts := ["Attempt 1", "Attempt 2"]), "Example 2", *attempts]
    (experience,) = run.results.library["experiences"]
    assert [evidence["example"] for evidence in experience["evidence"]] == [a, b, c, d]


@pytest.mark.parametrize(
    ("failure", "scores", "use", "kind"),
    [
        (RuntimeError("down"), (0.5, 0.5), "no contrast", "provider"),
        (UNPARSED, (0.5, 0.0, 0.5), "contrast", "parse"),
    ],
    ids=["the provider's", "the program's own, which counts as 0"],
)
def test_a_failure_in_a_group_counts_if_it_is_the_programs_own(
    failure: Any, scores: tuple[float, ...], use: str, kind: str
) -> None:
    run = Run([["0.5", failure, "0.5"]], use_labels=False)
    (group,) = run.results.updates[0].groups
    assert (group.used_as, group.scores, group.failures) == (use, scores, (kind,))
    assert run.results.failures == {kind: 1}


def test_a_run_ends_after_an_epoch_that_had_nothing_to_teach() -> None:
    run = Run([["1", "1"]] * 4, epochs=9, batch_size=2, max_staleness=0, use_labels=False)
    assert len(run.results.updates) == 2
    assert run.results.ended_because == "no group of a whole epoch had anything to teach"


@pytest.mark.parametrize(
    ("answers", "label", "n_groups"),
    [(["1", "1"], "1", 20), (["0", "0"], "0", 20), (["1", "1"], "2", 40), (["-1", "-1"], "1", 40)],
    ids=["all are right", "all are right, and 0 is", "one score only", "a lower score only"],
)
def test_a_run_ends_when_twenty_groups_were_right_or_forty_had_one_score(
    answers: list[str], label: str, n_groups: int
) -> None:
    trainset = [labelled(f"question {i}", label)[0] for i in range(50)]
    schedule: dict[str, Any] = {"epochs": 9, "batch_size": 2, "max_staleness": 0}
    run = Run([answers] * 50, trainset=trainset, metric=is_score_with_feedback, **schedule)
    assert sum(len(update.groups) for update in run.results.updates) == n_groups


@pytest.mark.parametrize("gate", [Gate(), NoGate()])
def test_a_measured_run_ends_when_its_result_has_not_changed_for_two_epochs(gate: Gate) -> None:
    schedule: dict[str, Any] = {"epochs": 3, "batch_size": 1, "max_staleness": 0}
    run = Run([["1", "0"]] * 8, gate=gate, valset=labelled("question 9", "1"), **schedule)
    assert len(run.results.updates) == (17 if gate.measures else 24), "the first adds the lesson"


def test_extract_advantage_sees_all_that_it_needs_and_the_program_without_its_baked_block() -> None:
    known = ExperienceLibrary([Experience(id="E7", text="Count twice.")])
    student = dspy.Predict(dspy.Signature("question -> answer", "Count the words."))
    run = Run(
        ONE,
        metric=is_score_with_feedback,
        student=known.bake(student),
        trainset=labelled("question 0", "label 0"),
        objective="Counting.",
    )
    (prompt,) = run.texts(EXTRACT)
    names = ("program", "objective", "experiences", "example", "expected", "max_words")
    assert {name: section(prompt, name) for name in names} == {
        "program": (
            "Predictor self: Count the words.\n- input question (str)\n- output answer (str)"
        ),
        "objective": "Counting.",
        "experiences": "[E7*] Count twice.",
        "example": "question: question 0",
        "expected": "answer: label 0",
        "max_words": "80",
    }
    one, two = section(prompt, "attempts").split("\n\n")
    assert one.startswith("Attempt 1 (score 1, advantage +1.00, with E7)")
    assert two == (
        "Attempt 2 (score 0, advantage -1.00, with E7)\n"
        "Feedback: 0 is not enough.\nOutputs:\nanswer: 0"
    )
    assert "<experiences>" not in prompt
    assert "next id" not in prompt


def test_with_use_labels_false_no_label_reaches_the_reflection_lm() -> None:
    run = Run(ONE, trainset=labelled("question 0", "label 0"), use_labels=False)
    (prompt,) = run.texts(EXTRACT)
    assert section(prompt, "expected") == "(hidden)"
    assert not any("label 0" in prompt for prompt in run.texts(f"{EXTRACT}|{UPDATE}"))
    assert "score 1, advantage" in prompt


def test_without_a_metric_labels_are_not_known_and_the_majority_answer_is_shown() -> None:
    with pytest.warns(UserWarning, match="metric=None"):
        run = Run([["7", "8", "8"]], metric=None, trainset=labelled("question 0", "label 0"))
    assert run.uses == ["no ground truth"]
    (prompt,) = run.texts(EXTRACT)
    assert "[[ ## expected ## ]]" not in prompt
    assert "The answer that most attempts give:\nanswer: 8" in prompt
    assert "score" not in prompt.rpartition("[[ ## attempts ## ]]")[2]
    assert "label" not in prompt.rpartition("[[ ## example ## ]]")[2]


@pytest.mark.parametrize(("staleness", "known"), [(0, "[E1*] Be exact."), (1, "(none yet)")])
def test_the_library_that_extract_advantage_sees_is_that_of_the_rollouts(
    staleness: int, known: str
) -> None:
    run = Run([["1", "0"], ["1", "0"]], batch_size=1, max_staleness=staleness)
    seen = sorted(section(prompt, "experiences") for prompt in run.texts(EXTRACT))
    assert seen == ["(none yet)", known]


class Rambling(dspy.Module):
    """Two steps, the first of which writes `n_words` words."""

    def __init__(self, n_words: int) -> None:
        super().__init__()
        self.n_words = n_words
        self.ask = dspy.Predict("question -> answer")
        self.check = dspy.Predict("notes, number -> verdict")

    def forward(self, question: str) -> dspy.Prediction:
        number = self.ask(question=question).answer
        notes = f"start {'ramble ' * (self.n_words if number == '1' else 1)} finish"
        self.check(notes=notes, number=number)
        return dspy.Prediction(answer=number)


def rambling_run(n_words: int, *rules: Rule, **arguments: Any) -> Run:
    check: Rule = (r"\n1\. `verdict`", chat(verdict="fine"))
    summary: Rule = (SUMMARIZE, chat(summary="It rambled."))
    return Run(ONE, *rules, summary, check, student=Rambling(n_words), **arguments)


def test_a_trajectory_that_is_too_long_is_summarised_and_a_short_one_beside_it_is_not() -> None:
    run = rambling_run(300, extract=ExtractAdvantage(shown_tokens=300))
    (long_one,) = run.texts(SUMMARIZE)
    assert long_one.count("ramble") > 30
    (prompt,) = run.texts(EXTRACT)
    assert prompt.count("ramble ") == 1
    assert "Attempt 1 (score 1, advantage +1.00)\nIt rambled.\nOutputs:\nanswer: 1" in prompt
    assert "in notes: start ramble  finish" in prompt


def test_in_the_papers_schedule_every_rollout_is_summarised() -> None:
    run = rambling_run(1, schedule=paper_grpo)
    summarised = [section(prompt, "attempt").splitlines()[0] for prompt in run.texts(SUMMARIZE)]
    assert summarised == ["Score: 0", "Score: 1"]
    assert run.texts(EXTRACT)[0].count("It rambled.") == 2


def test_in_the_papers_schedule_one_lesson_is_taken_of_each_group_whatever_is_written() -> None:
    rules = (EXTRACT, lessons("Be exact.", "Be brief.", "Be kind.")), (SUMMARIZE, chat(summary="."))
    paper, ours = (Run(ONE, *rules, schedule=schedule) for schedule in (paper_grpo, grpo))
    taken = [run.results.updates[0].lessons for run in (paper, ours)]
    assert taken == [("Be exact.",), ("Be exact.", "Be brief.", "Be kind.")]


def test_no_prompt_outgrows_its_budget_also_where_the_summary_fails() -> None:
    run = rambling_run(5000, (SUMMARIZE, UNPARSED), extract=ExtractAdvantage(shown_tokens=400))
    (prompt,) = run.texts(EXTRACT)
    attempts = prompt.rpartition("[[ ## attempts ## ]]\n")[2].partition("\n\n[[ ##")[0]
    assert estimate_tokens(attempts) < 450
    assert "characters left out" in attempts
    assert run.results.failures == {"reflection parse": 2}
    assert all(estimate_tokens(text) < 400 + 800 for text in run.texts(SUMMARIZE))


def test_an_answer_that_does_not_parse_is_asked_for_exactly_once_more() -> None:
    run = Run(ONE, (CORRECTION, lessons("Be exact.")), (EXTRACT, UNPARSED))
    (again,) = run.texts(CORRECTION)
    assert section(again, "correction").startswith("Your previous answer could not be read.")
    assert UNPARSED not in again
    assert len(run.texts(EXTRACT)) == 2
    assert run.results.reflection_usage.n_lm_calls == 3
    assert run.results.failures == {"reflection parse": 1}
    assert run.library.render() == "[E1*] Be exact."


def test_an_update_that_does_not_parse_twice_keeps_its_lessons_as_adds() -> None:
    run = Run(ONE, (EXTRACT, lessons("Be exact.", "[self] Show the unit.")), (UPDATE, UNPARSED))
    assert len(run.texts(UPDATE)) == 2
    assert run.results.failures == {"reflection parse": 2}
    assert run.library.render() == "[E1*] Be exact.\n[E2*] Show the unit."
    first, second = run.results.library["experiences"]
    assert first["evidence"] == second["evidence"] != ()


def by_example(*texts: str) -> Rule:
    """ExtractAdvantage draws from each example the text at its number."""

    def answer(prompt: Prompt) -> str:
        return lessons(texts[int(section(prompt.text, "example").rpartition(" ")[2])])

    return (EXTRACT, answer)


def numbered(prompt: str) -> list[str]:
    """The lines of the lessons that UpdateLibrary is shown."""
    return re.findall(r"(?m)^\d+\. .*$", section(prompt, "lessons"))


def examples_of(run: Run) -> list[list[int]]:
    """The examples that each experience of the result was learned from."""
    found = run.results.library["experiences"]
    return [sorted(evidence["example"] for evidence in each["evidence"]) for each in found]


def test_near_duplicate_lessons_are_one_with_the_evidence_of_all_their_groups() -> None:
    unit = "Give the number, never the unit"
    run = Run(
        ONE * 3,
        by_example(f"{unit}.", f"{unit}!", f"{unit}, always."),
        (UPDATE, operations(add("Numbers alone.", 1))),
    )
    (prompt,) = run.texts(UPDATE)
    text, sources, why = section(prompt, "lessons").splitlines()
    assert text.startswith("1. Give the number, never the unit")
    assert re.fullmatch(
        r'    from 3 examples: scores 1, 0 at "question: question \d"; scores 1, 0; scores 1, 0',
        sources,
    )
    assert why == "    why: The better attempts follow the advice."
    assert examples_of(run) == [[0, 1, 2]]


def test_a_lesson_that_the_library_has_already_is_a_keep_with_its_evidence() -> None:
    known = ExperienceLibrary([Experience(id="E3", text="Be exact.")], next_number=9)
    run = Run(ONE, (EXTRACT, lessons("be exact")), student=known.bake(predictor()))
    assert run.texts(UPDATE) == []
    (operation,) = run.results.updates[0].operations
    assert (operation.op, operation.id, operation.reason) == ("KEEP", "E3", "seen again")
    assert run.refusals == [""]
    assert run.library == known
    assert examples_of(run) == [[0]]


def test_an_experience_that_was_seen_again_can_be_modified_by_the_same_update() -> None:
    modify = {"op": "MODIFY", "id": "E1", "text": "Be exact: two digits.", "lessons": [1]}
    said = by_example("Be exact.", "Round to two digits.")
    run = Run(ONE * 2, said, (UPDATE, operations(modify)), student=knowing("Be exact."))
    assert run.library.render() == "[E1*] Be exact: two digits."
    assert examples_of(run) == [[0, 1]]


class TwoStages(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.reader = dspy.Predict("question -> note")
        self.writer = dspy.Predict("question, note -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        return self.writer(question=question, note=self.reader(question=question).note)


def two_stages(*rules: Rule, student: Any = None, **arguments: Any) -> Run:
    note: Rule = (r"(?s)Your output fields are:\n1. `note`", chat(note="noted"))
    return Run(ONE, *rules, note, student=student or TwoStages(), **arguments)


def test_a_lesson_for_one_predictor_is_shown_as_such_and_its_operation_keeps_the_scope() -> None:
    run = two_stages(
        (EXTRACT, lessons("[writer] Be exact.", "Read twice.")),
        (UPDATE, operations(add("Be exact.", 1, scope="writer"), add("Read twice.", 2))),
    )
    assert numbered(run.texts(UPDATE)[0]) == ["1. Be exact. (for writer)", "2. Read twice."]
    assert run.library.render() == "[E1] Be exact. (for writer)\n[E2*] Read twice."


def test_advice_for_an_unknown_predictor_is_taken_for_all() -> None:
    run = two_stages(
        (EXTRACT, lessons("[editor] Be exact.")),
        (UPDATE, operations(add("Be exact.", scope="editor"), add("Be brief.", scope="READER"))),
    )
    assert run.library.render() == "[E1*] Be exact.\n[E2] Be brief. (for reader)"


def test_a_modify_widens_a_scope_to_all_where_it_says_so() -> None:
    known = ExperienceLibrary([Experience(id="E1", text="Be exact.", scope="writer")])
    modify = {"op": "MODIFY", "id": "E1", "text": "Be exact!", "scope": "*"}
    rules: list[Rule] = [(EXTRACT, lessons("Round.")), (UPDATE, operations(modify))]
    run = two_stages(*rules, student=known.bake(TwoStages()))
    assert run.library.render() == "[E1*] Be exact!"


@pytest.mark.parametrize("gate", [NoGate(), Gate()], ids=["no gate", "gate"])
def test_the_limits_hold_at_every_moment_and_in_every_prompt(gate: Any) -> None:
    def many(prompt: Prompt) -> str:
        found = section(prompt.text, "lessons").partition("\n")[0].removeprefix("1. ")
        texts = [f"{found} some advice number {i} {'and so on ' * (i % 3)}" for i in range(6)]
        return operations(*map(add, texts))

    run = Run(
        ONE * 3, by_example("Zero.", "One.", "Two."), (UPDATE, many), gate=gate, batch_size=1,
        epochs=2, max_experiences=4, max_experience_words=8, valset=questions(6, start=3),
    )  # fmt: skip
    shown = [re.findall(r"^ *\[E\d+\*?\] (.*)$", p, re.MULTILINE) for p in run.texts("question")]
    assert max(map(len, shown)) == 4
    assert max(len(line.split()) for lines in shown for line in lines) == 8
    assert max(update.library_size for update in run.results.updates) <= 4


class Adding(dspy.Module):
    """A user's UpdateLibrary: an ADD for every lesson."""

    def __init__(self, shown_tokens: int) -> None:
        super().__init__()
        self.shown_tokens = shown_tokens
        self.shown: list[str] = []

    def forward(self, lessons: str, **_: Any) -> dspy.Prediction:
        self.shown.append(lessons)
        texts = re.findall(r"(?m)^\d+\. (.*)$", lessons)
        adds = [add(text, number) for number, text in enumerate(texts, 1)]
        return dspy.Prediction(operations=adds)


@pytest.mark.parametrize("budget", [20, 90, 2000])
def test_lessons_too_many_for_one_prompt_are_asked_about_in_several_and_keep_their_evidence(
    budget: int,
) -> None:
    module, texts = Adding(budget), [f"rule{i} holds for word{i}." for i in range(12)]
    run = Run(ONE * 12, by_example(*texts), update=module, batch_size=12, max_experiences=20)
    assert sorted(examples_of(run)) == [[i] for i in range(12)]
    assert (len(module.shown) == 1) == (budget == 2000)
    assert all(estimate_tokens(text) <= budget or "\n2. " not in text for text in module.shown)


class Own(dspy.Module):
    """Gives, as this output, what it was given for the number of the example, or raises it."""

    def __init__(self, output: str, *answers: Any) -> None:
        super().__init__()
        self.output = output
        self.answers = answers

    def forward(self, example: str = "0", **_: Any) -> Any:
        answer = self.answers[int(example.rpartition(" ")[2])]
        if isinstance(answer, Exception):
            raise answer
        return dspy.Prediction(**{self.output: answer})


class Returning(dspy.Module):
    """Returns this, whatever it is."""

    def __init__(self, returned: Any) -> None:
        super().__init__()
        self.returned = returned

    def forward(self, **_: Any) -> Any:
        return self.returned


@pytest.mark.parametrize(
    "returned",
    [{"lessons": ["Be exact."]}, ["Be exact."], "Be exact.", None, dspy.Prediction(lesson="Go.")],
    ids=["dict", "list", "text", "None", "another field"],
)
def test_a_module_of_the_users_own_that_does_not_return_its_output_is_named(
    returned: Any, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(ONE, extract=Returning(returned))
    assert run.results.failures == {"reflection error": 1}
    assert "Returning raised TypeError: forward returned" in caplog.text
    assert "return dspy.Prediction(lessons=...)" in caplog.text


def test_modules_of_the_users_own_take_the_place_of_ours_and_cost_one_answer_at_most() -> None:
    run = Run(
        ONE * 2,
        extract=Own("lessons", KeyError("no such field"), ["Be exact."]),
        update=Own("operations", [add("Own words.", 1)]),
    )
    assert run.library.render() == "[E1*] Own words."
    assert run.results.reflection_usage.n_lm_calls == 0
    assert run.results.failures == {"reflection error": 1}


def test_add_lessons_takes_every_lesson_without_a_call() -> None:
    told = lessons("Be exact.", "Be brief.", "word " * 81)
    run = Run(ONE, (EXTRACT, told), update=AddLessons())
    assert run.texts(UPDATE) == []
    assert run.library.render() == "[E1*] Be exact.\n[E2*] Be brief."
    assert run.refusals == ["", "", "81 words; at most 80 are allowed"]
    assert run.results.failures == {}


def test_every_rollout_has_the_dspy_context_of_the_caller() -> None:
    seen: list[Any] = []

    def metric(_example: Any, _pred: Any, _trace: Any = None) -> float:
        seen.append(dspy.settings.provide_traceback)
        return 0.0

    with dspy.context(provide_traceback="the caller's"):
        Run(ONE * 2, metric=metric)
    assert set(seen) == {"the caller's"}
