"""From groups to lessons to operations: who is asked what, and what becomes of the answers."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import UNPARSED, in_training, is_score
from scripted import (
    EXTRACT,
    SUMMARIZE,
    UPDATE,
    Prompt,
    Rule,
    ScriptedEngine,
    chat,
    lessons,
    operations,
    scripted_lm,
)
from small import grpo, paper_grpo, run_settings

from tfgrpo_dspy import (
    AddLessons,
    Decision,
    Evidence,
    Experience,
    ExperienceLibrary,
    ExtractAdvantage,
    Gate,
    NoGate,
    TrainingFreeGRPO,
)
from tfgrpo_dspy.experience.values import Add, Operation, Refusal
from tfgrpo_dspy.reflection.lessons import Lesson
from tfgrpo_dspy.reflection.texts import estimate_tokens
from tfgrpo_dspy.run.asking import ReflectionClient
from tfgrpo_dspy.run.batches import Batch
from tfgrpo_dspy.run.context import RunContext
from tfgrpo_dspy.run.reflecting import propose

CORRECTION = r"## correction ##"
Table = Sequence[Sequence[str | BaseException]]


def is_score_with_feedback(_: dspy.Example, pred: dspy.Prediction) -> dspy.Prediction:
    return dspy.Prediction(score=float(pred.answer), feedback=f"{pred.answer} is not enough.")


class Run:
    """One compile over a table of answers, without a gate unless one is given."""

    def __init__(
        self,
        table: Table,
        *rules: Rule,
        metric: Any = is_score,
        student: Any = None,
        trainset: list[dspy.Example] | None = None,
        valset: list[dspy.Example] | None = None,
        adapter: Any = None,
        schedule: Callable[..., TrainingFreeGRPO] = grpo,
        **arguments: Any,
    ) -> None:
        self.lm = scripted_lm([*rules, ("question", in_training(table))])
        optimizer = schedule(
            metric,
            **{"gate": NoGate(), "epochs": 1, "group_size": len(table[0]), "num_threads": 2}
            | {"progress": False}
            | arguments,
        )
        with dspy.context(lm=self.lm, adapter=adapter):
            self.optimized = optimizer.compile(
                student or dspy.Predict("question -> answer"),
                trainset=trainset or questions(len(table)),
                valset=valset,
            )
        self.results = self.optimized.detailed_results
        self.library = ExperienceLibrary.from_program(self.optimized)

    def prompts(self, pattern: str) -> list[str]:
        """The texts of the prompts that match, sorted."""
        engine = self.lm.engine
        assert isinstance(engine, ScriptedEngine)
        return sorted(p.text for p in engine.prompts if re.search(pattern, p.text))

    @property
    def uses(self) -> list[str]:
        """What each group of the first update was used as, by example."""
        groups = sorted(self.results.updates[0].groups, key=lambda group: group.example)
        return [group.used_as for group in groups]


def questions(n: int) -> list[dspy.Example]:
    return [
        dspy.Example(question=f"question {i}", answer=f"label {i}").with_inputs("question")
        for i in range(n)
    ]


def section(prompt: str, name: str) -> str:
    """What stands in the last section of that name."""
    return re.split(
        r"\n\n(?:\[\[ ## |Respond with)", prompt.rpartition(f"[[ ## {name} ## ]]\n")[2]
    )[0]


ONE_LESSON: list[Rule] = [
    (EXTRACT, lessons("Be exact.")),
    (UPDATE, operations({"op": "ADD", "text": "Be exact.", "lessons": [1]})),
]


# ---------------------------------------------------------------------- which groups are sent


def test_only_groups_whose_scores_differ_are_sent_to_extract_advantage() -> None:
    run = Run([["1", "0"], ["1", "1"], ["0.5", "0.25"]], *ONE_LESSON)
    sent = [section(prompt, "example") for prompt in run.prompts(EXTRACT)]
    assert sent == ["question: question 0", "question: question 2"]
    assert run.uses == ["contrast", "no contrast", "contrast"]


def test_a_group_that_fails_throughout_with_feedback_is_sent_as_a_failure_analysis() -> None:
    run = Run([["0", "0"], ["1", "1"]], *ONE_LESSON, metric=is_score_with_feedback)
    assert run.uses == ["failure analysis", "no contrast"]
    (prompt,) = run.prompts(EXTRACT)
    assert "Attempt 1 (score 0, advantage +0.00)\nFeedback: 0 is not enough." in prompt


@pytest.mark.parametrize(
    "arguments",
    [{"metric": is_score}, {"failure_analysis": False}, {"schedule": paper_grpo}],
    ids=["no feedback", "switched off", "the paper's schedule"],
)
def test_a_group_that_fails_throughout_is_not_analysed(arguments: dict[str, Any]) -> None:
    run = Run([["0", "0"], ["1", "1"]], **{"metric": is_score_with_feedback} | arguments)
    assert run.uses == ["no contrast", "no contrast"]


# ---------------------------------------------------------------------- failures in a group


def test_a_providers_failure_makes_no_contrast() -> None:
    run = Run([["0.5", "0.5", RuntimeError("down")]])
    assert run.uses == ["no contrast"]
    assert run.results.updates[0].groups[0].scores == (0.5, 0.5)
    assert run.results.updates[0].groups[0].failures == ("provider",)


def test_the_programs_own_failure_stands_in_its_group_at_0() -> None:
    run = Run([["0.5", UNPARSED, "0.5"]], *ONE_LESSON)
    assert run.uses == ["contrast"]
    assert run.results.updates[0].groups[0].scores == (0.5, 0.0, 0.5)
    assert run.results.failures == {"parse": 1}


# ---------------------------------------------------------------------- what ExtractAdvantage sees


def test_extract_advantage_sees_all_that_it_needs_and_the_program_without_its_baked_block() -> None:
    known = ExperienceLibrary([Experience(id="E7", text="Count twice.")])
    student = dspy.Predict(dspy.Signature("question -> answer", "Count the words."))
    run = Run(
        [["1", "0"]],
        *ONE_LESSON,
        metric=is_score_with_feedback,
        student=known.bake(student),
        objective="Counting.",
    )
    (prompt,) = run.prompts(EXTRACT)
    names = ("program", "objective", "experiences", "example", "expected", "max_words")
    assert {name: section(prompt, name) for name in names} == {
        "program": (
            "Predictor self: Count the words.\n- input question (str)\n- output answer (str)"
        ),
        "objective": "Counting.",
        "experiences": "[E7*] Count twice.",
        "example": "question: question 0",
        "expected": "answer: label 0",
        "max_words": "40",
    }
    attempts = prompt.rpartition("[[ ## attempts ## ]]\n")[2].partition("\n\nRespond with")[0]
    assert attempts == (
        "Attempt 1 (score 1, advantage +1.00)\n"
        "Feedback: 1 is not enough.\n"
        "Outputs:\n"
        "answer: 1\n"
        "\n"
        "Attempt 2 (score 0, advantage -1.00)\n"
        "Feedback: 0 is not enough.\n"
        "Outputs:\n"
        "answer: 0"
    )
    assert "<experiences>" not in prompt
    assert "next id" not in prompt


def test_with_use_labels_false_no_label_reaches_the_reflection_lm() -> None:
    run = Run([["1", "0"]], *ONE_LESSON, schedule=paper_grpo, use_labels=False,
              summarize_always=False)  # fmt: skip
    prompts = run.prompts(f"{EXTRACT}|{UPDATE}")
    assert [section(prompt, "expected") for prompt in run.prompts(EXTRACT)] == ["(hidden)"]
    assert not any("label 0" in prompt for prompt in prompts)
    assert "score 1, advantage" in run.prompts(EXTRACT)[0]


def test_without_a_metric_labels_are_not_known_and_the_majority_answer_is_shown() -> None:
    with pytest.warns(UserWarning, match="metric=None"):
        run = Run([["7", "8", "8"], ["1", "1", "1"]], *ONE_LESSON, metric=None)
    assert run.uses == ["no ground truth", "no ground truth"]
    prompt, _ = run.prompts(EXTRACT)
    assert "[[ ## expected ## ]]" not in prompt
    assert "The answer that most attempts give:\nanswer: 8" in prompt
    assert "score" not in prompt.rpartition("[[ ## attempts ## ]]")[2]
    assert "label" not in prompt.rpartition("[[ ## example ## ]]")[2]


@pytest.mark.parametrize(
    ("staleness", "known"), [(0, "[E1*] Be exact."), (1, "(none yet)")], ids=["0", "1"]
)
def test_the_library_that_extract_advantage_sees_is_that_of_the_rollouts(
    staleness: int, known: str
) -> None:
    run = Run([["1", "0"], ["1", "0"]], *ONE_LESSON, batch_size=1, max_staleness=staleness)
    seen = sorted(section(prompt, "experiences") for prompt in run.prompts(EXTRACT))
    assert seen == ["(none yet)", known]


# ---------------------------------------------------------------------- long trajectories


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
    check: Rule = ("verdict", chat(verdict="fine"))
    summary: Rule = (SUMMARIZE, chat(summary="It rambled."))
    return Run(
        [["1", "0"]], *rules, *ONE_LESSON, summary, check, student=Rambling(n_words), **arguments
    )


def test_a_trajectory_that_is_too_long_is_summarised_and_a_short_one_beside_it_is_not() -> None:
    run = rambling_run(300, extract=ExtractAdvantage(attempts_tokens=300))
    (long_one,) = run.prompts(SUMMARIZE)
    assert long_one.count("ramble") > 30
    (prompt,) = run.prompts(EXTRACT)
    assert prompt.count("ramble ") == 1
    assert "Attempt 1 (score 1, advantage +1.00)\nIt rambled.\nOutputs:\nanswer: 1" in prompt
    assert "in notes: start ramble  finish" in prompt


@pytest.mark.parametrize(
    "arguments",
    [{"schedule": paper_grpo}, {"summarize_always": True}],
    ids=["paper", "summarize_always"],
)
def test_in_the_papers_schedule_every_rollout_is_summarised(arguments: dict[str, Any]) -> None:
    run = rambling_run(1, **arguments)
    assert [section(p, "attempt").splitlines()[0] for p in run.prompts(SUMMARIZE)] == [
        "Score: 0",
        "Score: 1",
    ]
    assert run.prompts(EXTRACT)[0].count("It rambled.") == 2


def test_no_prompt_outgrows_its_budget_also_where_the_summary_fails() -> None:
    run = rambling_run(5000, (SUMMARIZE, UNPARSED), extract=ExtractAdvantage(attempts_tokens=400))
    (prompt,) = run.prompts(EXTRACT)
    attempts = prompt.rpartition("[[ ## attempts ## ]]\n")[2].partition("\n\n[[ ##")[0]
    assert estimate_tokens(attempts) < 450
    assert "characters left out" in attempts
    assert run.results.failures == {"reflection parse": 2}
    assert all(estimate_tokens(p) < 400 + 800 for p in run.prompts(SUMMARIZE))


# ---------------------------------------------------------------------- answers that do not parse


def test_an_answer_that_does_not_parse_is_asked_for_exactly_once_more() -> None:
    plain = dspy.ChatAdapter(use_json_adapter_fallback=False)
    run = Run(
        [["1", "0"]],
        (CORRECTION, lessons("Be exact.")),
        (EXTRACT, UNPARSED),
        *ONE_LESSON,
        adapter=plain,
    )
    (again,) = run.prompts(CORRECTION)
    assert section(again, "correction").startswith("Your previous answer could not be read.")
    assert UNPARSED not in again
    assert len(run.prompts(EXTRACT)) == 2
    assert run.results.failures == {"reflection parse": 1}
    assert run.library.render() == "[E1*] Be exact."


def test_an_update_that_does_not_parse_twice_keeps_its_lessons_as_adds() -> None:
    run = Run(
        [["1", "0"]],
        (EXTRACT, lessons("Be exact.", "[self] Show the unit.")),
        (UPDATE, UNPARSED),
        adapter=dspy.ChatAdapter(use_json_adapter_fallback=False),
    )
    assert len(run.prompts(UPDATE)) == 2
    assert run.results.failures == {"reflection parse": 2}
    assert run.library.render() == "[E1*] Be exact.\n[E2*] Show the unit."
    first, second = run.results.library["experiences"]
    assert first["evidence"] == second["evidence"] != ()


def test_a_reflection_is_not_asked_for_in_json_unless_the_user_set_an_adapter_that_does() -> None:
    run = Run([["1", "0"]], (EXTRACT, UNPARSED))
    assert run.results.reflection_usage.n_lm_calls == 2
    assert run.results.reflection_usage.n_second_calls == 0


# ---------------------------------------------------------------------- lessons


def by_example(**texts: str) -> Rule:
    """ExtractAdvantage answers for the example whose question is named (q0, q1, ...)."""

    def answer(prompt: Prompt) -> str:
        number = section(prompt.text, "example").rpartition(" ")[2]
        return lessons(*texts[f"q{number}"].split("|"))

    return (EXTRACT, answer)


def test_near_duplicate_lessons_are_one_with_the_evidence_of_all_their_groups() -> None:
    run = Run(
        [["1", "0"], ["1", "0"], ["1", "0"]],
        by_example(
            q0="Give the number, never the unit.",
            q1="Give the number, never the unit!",
            q2="Give the number, never the unit, always.",
        ),
        (UPDATE, operations({"op": "ADD", "text": "Numbers alone.", "lessons": [1]})),
    )
    (prompt,) = run.prompts(UPDATE)
    text, sources, why = section(prompt, "lessons").splitlines()
    assert text.startswith("1. Give the number, never the unit")
    assert re.fullmatch(
        r'    from 3 examples: scores 1, 0 at "question: question \d"; scores 1, 0; scores 1, 0',
        sources,
    )
    assert why == "    why: The better attempts follow the advice."
    (experience,) = run.results.library["experiences"]
    assert sorted(item["example"] for item in experience["evidence"]) == [0, 1, 2]


def test_a_lesson_that_the_library_has_already_is_a_keep_with_its_evidence() -> None:
    known = ExperienceLibrary([Experience(id="E3", text="Be exact.")], next_number=9)
    run = Run(
        [["1", "0"]],
        (EXTRACT, lessons("be exact")),
        student=known.bake(dspy.Predict("question -> answer")),
    )
    assert run.prompts(UPDATE) == []
    (update,) = run.results.updates
    assert [(op.op, op.id, op.reason, op.refused) for op in update.operations] == [
        ("KEEP", "E3", "seen again", "")
    ]
    assert run.library == known
    (experience,) = run.results.library["experiences"]
    assert [item["example"] for item in experience["evidence"]] == [0]


def test_an_experience_that_was_seen_again_can_be_modified_by_the_same_update() -> None:
    known = ExperienceLibrary([Experience(id="E1", text="Be exact.")])
    run = Run(
        [["1", "0"]],
        (EXTRACT, lessons("Be exact.", "Round to two digits.")),
        (UPDATE, operations({"op": "MODIFY", "id": "E1", "text": "Be exact: two digits.",
                             "lessons": [1]})),
        student=known.bake(dspy.Predict("question -> answer")),
    )  # fmt: skip
    assert run.library.render() == "[E1*] Be exact: two digits."
    (experience,) = run.results.library["experiences"]
    assert [item["example"] for item in experience["evidence"]] == [0]


def test_a_lesson_that_copies_its_example_is_refused_recorded_and_not_passed_on() -> None:
    trainset = [
        dspy.Example(
            question="question 0 of the boy who has three apples and gives one away", answer="two"
        ).with_inputs("question")
    ]
    copied = "For the boy who has three apples and gives one away, say two."
    run = Run([["1", "0"]], (EXTRACT, lessons(copied, "Subtract.")),
              (UPDATE, operations({"op": "ADD", "text": "Subtract.", "lessons": [1]})),
              trainset=trainset)  # fmt: skip
    (update,) = run.results.updates
    assert update.lessons == ("Subtract.",)
    assert update.refused_lessons == (
        f"{copied} (copies the training data: 'the boy who has three apples and gives')",
    )
    assert re.findall(r"(?m)^\d+\. .*$", section(run.prompts(UPDATE)[0], "lessons")) == [
        "1. Subtract."
    ]


# ---------------------------------------------------------------------- operations


def test_malformed_operations_are_refused_one_by_one_and_the_others_count() -> None:
    known = ExperienceLibrary([Experience(id="E1", text="Be exact.")])
    run = Run(
        [["1", "0"]],
        (EXTRACT, lessons("Round.", "Count.")),
        (
            UPDATE,
            operations(
                {"op": "add", "text": "Round to two digits.", "lessons": [1, 99, 0, -1]},
                {"op": "MERGE", "id": "E1", "text": "?"},
                {"op": "MODIFY", "id": "E9", "text": "Unknown."},
                {"op": "MODIFY", "id": "first", "text": "No id."},
                {"op": "DELETE"},
                {"op": "ADD", "text": " "},
                {"op": "ADD", "text": "word " * 41},
                {"op": "ADD", "text": "be EXACT"},
                {"op": "MODIFY", "id": "[e1]", "text": "Be exact and brief.", "lessons": [2]},
                {"op": "DELETE", "id": "E1"},
            ),
        ),
        student=known.bake(dspy.Predict("question -> answer")),
    )
    assert run.library.render() == "[E1*] Be exact and brief.\n[E2*] Round to two digits."
    recorded = run.results.updates[0].operations
    assert sorted((op.op, op.id, op.refused) for op in recorded) == [
        ("ADD", "", ""),
        ("ADD", "", "41 words; at most 40 are allowed"),
        ("ADD", "", "E1 says this already"),
        ("ADD", "", "the text is empty"),
        ("DELETE", "", "id='': an id is 'E' and a number from 1, such as 'E1'."),
        ("DELETE", "E1", "an earlier operation of this list names E1; the first one counts"),
        ("MERGE", "E1", "op='MERGE': the operations are ADD, MODIFY, DELETE, KEEP."),
        ("MODIFY", "E1", ""),
        ("MODIFY", "E9", "there is no E9"),
        ("MODIFY", "first", "id='first': an id is 'E' and a number from 1, such as 'E1'."),
    ]


class TwoStages(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.reader = dspy.Predict("question -> note")
        self.writer = dspy.Predict("question, note -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        return self.writer(question=question, note=self.reader(question=question).note)


NOTE: Rule = (r"(?s)Your output fields are:\n1. `note`", chat(note="noted"))


def test_a_lesson_for_one_predictor_is_shown_as_such_and_its_operation_keeps_the_scope() -> None:
    run = Run(
        [["1", "0"]],
        (EXTRACT, lessons("[writer] Be exact.", "Read twice.")),
        (UPDATE, operations({"op": "ADD", "text": "Be exact.", "scope": "writer", "lessons": [1]},
                            {"op": "ADD", "text": "Read twice.", "lessons": [2]})),
        NOTE,
        student=TwoStages(),
    )  # fmt: skip
    assert re.findall(r"(?m)^\d+\. .*$", section(run.prompts(UPDATE)[0], "lessons")) == [
        "1. Be exact. (for writer)",
        "2. Read twice.",
    ]
    assert run.library.render() == "[E1] Be exact. (for writer)\n[E2*] Read twice."


def test_advice_for_an_unknown_predictor_is_taken_for_all_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = Run(
        [["1", "0"]],
        (EXTRACT, lessons("[editor] Be exact.")),
        (UPDATE, operations({"op": "ADD", "text": "Be exact.", "scope": "editor"},
                            {"op": "ADD", "text": "Be brief.", "scope": "READER"})),
        NOTE,
        student=TwoStages(),
    )  # fmt: skip
    assert run.library.render() == "[E1*] Be exact.\n[E2] Be brief. (for reader)"
    assert run.results.failures == {"unknown scope": 2}
    assert "names none of ['reader', 'writer']" in caplog.text


def test_a_modify_widens_a_scope_to_all_where_it_says_so() -> None:
    known = ExperienceLibrary([Experience(id="E1", text="Be exact.", scope="writer")])
    run = Run(
        [["1", "0"]],
        (EXTRACT, lessons("Round.")),
        (UPDATE, operations({"op": "MODIFY", "id": "E1", "text": "Be exact!", "scope": "*"})),
        NOTE,
        student=known.bake(TwoStages()),
    )
    assert run.library.render() == "[E1*] Be exact!"


@pytest.mark.parametrize("gate", [NoGate(), Gate()], ids=["no gate", "gate"])
def test_the_limits_hold_at_every_moment_and_in_every_prompt(gate: Any) -> None:
    def many(prompt: Prompt) -> str:
        found = section(prompt.text, "lessons").partition("\n")[0]
        texts = [f"{found} advice number {i} {'and so on ' * (i % 3)}" for i in range(6)]
        return operations(*({"op": "ADD", "text": text} for text in texts))

    run = Run(
        [["1", "0"]] * 3,
        by_example(q0="Zero.", q1="One.", q2="Two."),
        (UPDATE, many),
        gate=gate,
        batch_size=1,
        epochs=2,
        max_experiences=4,
        max_experience_words=8,
        trainset=questions(3),
        valset=questions(9)[3:],
    )
    shown = [re.findall(r"^ *\[E\d+\*?\] (.*)$", p, re.MULTILINE) for p in run.prompts("question")]
    assert max(map(len, shown)) == 4
    assert max(len(line.split()) for lines in shown for line in lines) == 8
    assert max(update.library_size for update in run.results.updates) <= 4


# ---------------------------------------------------------------------- many lessons


class Adding(dspy.Module):
    """A user's UpdateLibrary: an ADD for every lesson, and a KEEP of E1 by the first."""

    def __init__(self, lessons_tokens: int) -> None:
        super().__init__()
        self.lessons_tokens = lessons_tokens
        self.shown: list[str] = []

    def forward(self, lessons: str, **_: Any) -> dspy.Prediction:
        self.shown.append(lessons)
        texts = re.findall(r"(?m)^\d+\. (.*)$", lessons)
        adds = [{"op": "ADD", "text": text, "lessons": [n]} for n, text in enumerate(texts, 1)]
        return dspy.Prediction(operations=[*adds, {"op": "KEEP", "id": "E1", "lessons": [1]}])


KNOWN = ExperienceLibrary([Experience(id="E1", text="Be exact.")])


def consolidated(
    module: Any,
    drawn: Sequence[Lesson],
    dropped: Sequence[Lesson] = (),
    **arguments: Any,
) -> tuple[list[Operation], list[Refusal]]:
    lm = scripted_lm([])
    settings = run_settings(is_score, update=module, **arguments)
    with dspy.context(lm=lm):
        run = RunContext.of(settings, dspy.Predict("question -> answer"), questions(40))
        batch = Batch(0, 0, (), Decision(KNOWN, "start"))
        return run.loop.run(propose(ReflectionClient(run), batch, KNOWN, drawn, dropped))


def drawn_lessons(n: int, n_words: int = 1) -> list[Lesson]:
    return [
        Lesson(f"advice{i} {'word ' * n_words}".strip(), "*", (Evidence(0, i, (i,), (1.0,)),))
        for i in range(n)
    ]


@given(st.integers(1, 40), st.integers(20, 200), st.integers(1, 6))
@settings(max_examples=30)
def test_lessons_too_many_for_one_prompt_are_asked_about_in_several_and_keep_their_evidence(
    n: int, budget: int, n_words: int
) -> None:
    module = Adding(budget)
    found, refused = consolidated(module, drawn_lessons(n, n_words))
    assert refused == []
    assert all(estimate_tokens(text) <= budget or "\n2. " not in text for text in module.shown)
    adds = [operation for operation in found if isinstance(operation, Add)]
    assert [e.example for add in adds for e in add.evidence] == list(range(n))
    (keep,) = [operation for operation in found if operation.op == "KEEP"]
    assert len(keep.evidence) == len(module.shown)


# ---------------------------------------------------------------------- modules of the user's own


class OwnExtract(dspy.Module):
    """Answers by the example's number what it was given, or raises it."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        super().__init__()
        self.answers = answers

    def forward(self, example: str, **_: Any) -> Any:
        answer = self.answers[example]
        if isinstance(answer, Exception):
            raise answer
        return answer


class OwnUpdate(dspy.Module):
    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, **_: Any) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_modules_of_the_users_own_take_the_place_of_ours() -> None:
    extract = OwnExtract({"question: question 0": dspy.Prediction(lessons=["Be exact."])})
    update = OwnUpdate(
        dspy.Prediction(operations=[{"op": "ADD", "text": "Own words.", "lessons": [1]}])
    )
    run = Run([["1", "0"]], extract=extract, update=update)
    assert run.library.render() == "[E1*] Own words."
    assert run.results.reflection_usage.n_lm_calls == 0


def test_a_module_that_raises_costs_its_own_answer_only() -> None:
    extract = OwnExtract(
        {
            "question: question 0": KeyError("no such field"),
            "question: question 1": dspy.Prediction(lessons=["Be exact."]),
        }
    )
    run = Run([["1", "0"], ["1", "0"]], ONE_LESSON[1], extract=extract)
    assert run.library.render() == "[E1*] Be exact."
    assert run.results.failures == {"reflection error": 1}


def test_add_lessons_takes_every_lesson_without_a_call() -> None:
    run = Run(
        [["1", "0"]],
        (EXTRACT, lessons("Be exact.", "Be brief.", "word " * 41)),
        update=AddLessons(),
    )
    assert run.prompts(UPDATE) == []
    assert run.library.render() == "[E1*] Be exact.\n[E2*] Be brief."
    assert [op.refused for op in run.results.updates[0].operations] == [
        "",
        "",
        "41 words; at most 40 are allowed",
    ]
    assert run.results.failures == {}


# ---------------------------------------------------------------------- threads


def test_every_rollout_has_the_dspy_context_of_the_caller() -> None:
    seen: list[Any] = []

    def metric(_example: Any, _pred: Any, _trace: Any = None) -> float:
        seen.append(dspy.settings.provide_traceback)
        return 0.0

    with dspy.context(provide_traceback="the caller's"):
        Run([["1", "0"]] * 2, metric=metric)
    assert set(seen) == {"the caller's"}
