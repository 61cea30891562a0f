"""Defects of the reference implementation and of other prompt optimizers: none of them here.

Each docstring names the defect, with its number in the survey of peers: youtu-agent's `practice`
(1 to 17), dspy.GEPA (18 to 25), dspy.SIMBA (26 to 30), dspy.MIPROv2 (31, 32), DSPy's
ParallelExecutor and Evaluate (33 to 35), ACE (36 to 39). Not here: 15 and 22 (a store that
resumes), 23 (budgets; for the split see test_settings), 24 (see test_dspy_contract), 25 and
31 (nothing of ours can go wrong in that way).
"""

import decimal
import inspect
import itertools
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any

import dspy
import pytest
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
from small import grpo

import tfgrpo_dspy
from tfgrpo_dspy import (
    Experience,
    ExperienceLibrary,
    Gate,
    NoGate,
    RunFailedError,
)
from tfgrpo_dspy.rollout import rollout_id_for

UNPARSED = "I had rather not say."


def is_score(_: dspy.Example, pred: dspy.Prediction) -> float:
    """The answer is its own score."""
    return float(pred.answer)


def questions(n: int, kind: str = "question") -> list[dspy.Example]:
    return [
        dspy.Example(question=f"{kind} {i}", answer=f"label {i}").with_inputs("question")
        for i in range(n)
    ]


def in_training(rows: Sequence[Sequence[Any]]) -> Callable[[Prompt], Any]:
    """Rollout `index` of training example `i` answers `rows[i][index]` in each of 3 epochs."""
    answers = {
        rollout_id_for(0, epoch, i, index, "training") % 2**31: answer
        for epoch in range(3)
        for i, row in enumerate(rows)
        for index, answer in enumerate(row)
    }

    def answer(prompt: Prompt) -> Any:
        given = answers.get(prompt.seed, "0.5")
        if isinstance(given, BaseException) or given == UNPARSED:
            return given
        return chat(answer=given)

    return answer


class Run:
    """One compile; by default one epoch, no gate, and an UpdateLibrary that adds lesson 1."""

    def __init__(
        self,
        rows: Sequence[Sequence[Any]],
        *rules: Rule,
        metric: Any = is_score,
        student: Any = None,
        trainset: list[dspy.Example] | None = None,
        valset: list[dspy.Example] | None = None,
        lm: dspy.LM | None = None,
        adapter: Any = None,
        **arguments: Any,
    ) -> None:
        self.lm = lm or scripted_lm(self.rules(rows, *rules))
        defaults = {"gate": NoGate(), "epochs": 1, "group_size": len(rows[0]), "num_threads": 2}
        optimizer = grpo(metric, **defaults | {"progress": False} | arguments)
        with dspy.context(lm=self.lm, adapter=adapter):
            self.optimized = optimizer.compile(
                student or dspy.Predict("question -> answer"),
                trainset=trainset or questions(len(rows)),
                valset=valset,
            )
        self.results = self.optimized.detailed_results
        self.library = ExperienceLibrary.from_program(self.optimized)

    @staticmethod
    def rules(rows: Sequence[Sequence[Any]], *rules: Rule) -> list[Rule]:
        usual: list[Rule] = [
            (EXTRACT, lessons("Be exact.")),
            (UPDATE, operations({"op": "ADD", "text": "Be exact.", "lessons": [1]})),
            ("question", in_training(rows)),
        ]
        return [*rules, *usual]

    def prompts(self, pattern: str) -> list[Prompt]:
        engine = self.lm.engine
        assert isinstance(engine, ScriptedEngine)
        return [prompt for prompt in engine.prompts if re.search(pattern, prompt.text)]

    @property
    def refusals(self) -> list[str]:
        return [op.refused for update in self.results.updates for op in update.operations]


def of_example(number: int, answer: Any) -> Rule:
    """An answer of ExtractAdvantage for one example."""
    return (rf"(?s){EXTRACT}.*question: question {number}\b", answer)


def known(*texts: str) -> dspy.Module:
    """A student with a library baked in, of ids E1, E2, ..."""
    experiences = [Experience(id=f"E{i}", text=text) for i, text in enumerate(texts, start=1)]
    return ExperienceLibrary(experiences).bake(dspy.Predict("question -> answer"))


# ---------------------------------------------------------------------- youtu-agent, practice


@pytest.mark.parametrize("answer", ['{"lesson": "Be kind."}', "null", "7", UNPARSED])
def test_one_groups_malformed_lessons_cost_that_group_only(answer: str) -> None:
    """1, 2: a group that answers an object wipes the batch's learning; `null` crashes the run."""
    malformed = chat(semantic_advantage="They differ.", lessons=answer)
    run = Run([["1", "0"], ["1", "0"]], of_example(0, malformed))
    assert [experience.text for experience in run.library] == ["Be exact."]
    assert "Be exact." in run.results.updates[0].lessons


@pytest.mark.parametrize("answer", ["null", "{}", '"ADD"', "7"])
def test_a_malformed_list_of_operations_loses_no_lesson_and_ends_nothing(answer: str) -> None:
    """1, 2: a merge plan that is no list loses everything, or crashes the run."""
    run = Run([["1", "0"]], (UPDATE, chat(operations=answer)), student=known("Count."))
    assert [e.text for e in run.library] == ["Count.", "Be exact."]


def test_one_operation_that_is_no_list_is_taken_for_a_list_of_one() -> None:
    """1, 2: the same, where the object says what it means."""
    answer = '{"op": "DELETE", "id": "E1"}'
    run = Run([["1", "0"]], (UPDATE, chat(operations=answer)), student=known("Count."))
    assert list(run.library) == []


def test_a_delete_needs_no_text() -> None:
    """3: a DELETE without content is ignored."""
    run = Run(
        [["1", "0"]],
        (UPDATE, operations({"op": "DELETE", "id": "E1"})),
        student=known("Count.", "Read."),
    )
    assert run.library.render() == "[E2*] Read."


def test_an_operation_on_an_unknown_id_is_recorded_with_the_reason_and_an_add_is_taken() -> None:
    """4: operations that name an unknown id vanish; in batch 1 that is every one with an id."""
    run = Run(
        [["1", "0"]],
        (
            UPDATE,
            operations(
                {"op": "ADD", "id": "G7", "text": "Be exact.", "lessons": [1]},
                {"op": "MODIFY", "id": "E7", "text": "Be brief."},
            ),
        ),
    )
    assert run.library.render() == "[E1*] Be exact."
    assert run.refusals == ["", "there is no E7"]


@pytest.mark.parametrize("id_", ["1", "E1", "e1", "[E1]", "[E1*]", "(1)"])
def test_an_id_is_understood_in_the_ways_that_lms_write_it(id_: str) -> None:
    """5: UPDATE with id `1` or `[G1]` becomes a duplicate ADD; lower-case `add` is dropped."""
    update = operations({"op": "update", "id": id_, "text": "Count twice."})
    run = Run([["1", "0"]], (UPDATE, update), student=known("Count."))
    assert run.library.render() == "[E1*] Count twice."


def test_a_modify_of_an_id_that_never_was_does_not_become_an_add() -> None:
    """5: UPDATE of a hallucinated id silently adds."""
    update = operations({"op": "MODIFY", "id": "E12", "text": "Count twice."})
    run = Run([["1", "0"]], (UPDATE, update), student=known("Count."))
    assert run.library.render() == "[E1*] Count."


def test_ids_stay_with_their_experiences_through_every_update() -> None:
    """6: everything is renumbered G0, G1, ... at every step: no identity, no provenance."""

    def update(prompt: Prompt) -> str:
        if "[E1*]" in prompt.user:
            return operations({"op": "DELETE", "id": "E1"}, {"op": "ADD", "text": "Be brief."})
        return operations({"op": "ADD", "text": "Be exact."}, {"op": "ADD", "text": "Round."})

    run = Run([["1", "0"]], (EXTRACT, lessons("Learn.")), (UPDATE, update), epochs=2)
    assert run.library.render() == "[E2*] Round.\n[E3*] Be brief."


@pytest.mark.parametrize(
    ("row", "use"),
    [
        (["3", "10"], "contrast"),
        (["-1", "0"], "contrast"),
        (["0.5", "0.5"], "no contrast"),
        (["1000000.0", "1000000.5"], "contrast"),
        (["0.5", "nan", "0.7"], "contrast"),
        (["0.5", "nan", "0.5"], "no contrast"),
    ],
    ids=str,
)
def test_scores_of_any_range_count_and_only_their_difference_matters(
    row: list[str], use: str
) -> None:
    """7: rewards are taken for 0 or 1: 0.5/0.5 is paid for, 3/10, -1/0 and NaN are skipped."""
    run = Run([row])
    assert [group.used_as for group in run.results.updates[0].groups] == [use]


def test_a_metric_that_returns_none_once_ends_nothing() -> None:
    """7, 20: one None crashes the run (youtu; GEPA, in whose progress bar it dies)."""
    run = Run([["1", "0", "7"]], metric=lambda _, pred: {"1": 1.0, "0": 0.0}.get(pred.answer))
    assert run.library.render() == "[E1*] Be exact."
    assert run.results.failures == {"metric": 1}


def test_rows_of_one_question_and_two_labels_are_two_groups() -> None:
    """8: groups are keyed by the question's text, and judged by the first row's label."""
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


def test_batches_are_shuffled_anew_and_the_tail_is_used() -> None:
    """9: the shuffle is a no-op, and the same last questions are never used."""
    run = Run([["1", "0"]] * 7, batch_size=3, epochs=2)
    batches = [[group.example for group in update.groups] for update in run.results.updates]
    first, second = list(itertools.chain(*batches[:3])), list(itertools.chain(*batches[3:]))
    assert sorted(first) == sorted(second) == list(range(7))
    assert list(range(7)) != first != second


def test_a_trainset_smaller_than_a_batch_is_one_batch() -> None:
    """9, 30, 32: ValueError, or an assertion, where the trainset is smaller than a batch."""
    run = Run([["1", "0"]] * 2, batch_size=50)
    assert [len(update.groups) for update in run.results.updates] == [2]


def grows(prompt: Prompt) -> str:
    """A lesson for each experience that is known: "one more", "two more", ..."""
    n = prompt.user.count("more.")
    return lessons(f"{['One', 'Two', 'Three', 'Four'][n]} more.")


def adds_what_grew(prompt: Prompt) -> str:
    (text,) = re.findall(r"1\. (\w+ more\.)", prompt.user)
    return operations({"op": "ADD", "text": text, "lessons": [1]})


def counts_experiences(prompt: Prompt) -> str:
    return chat(answer=str(prompt.system.count("more.") / 10))


def growing_run(n: int = 2, **arguments: Any) -> Run:
    """Every update learns one experience more; as deployed, the score is their number / 10."""
    rows = [["1", "0"]] * n
    training = in_training(rows)
    rules: list[Rule] = [
        (EXTRACT, grows),
        (UPDATE, adds_what_grew),
        ("question", lambda p: training(p) if p.temperature else counts_experiences(p)),
    ]
    lm = scripted_lm(rules, cache=True)
    return Run(
        rows,
        lm=lm,
        valset=questions(12, "validation question"),
        batch_size=n,
        **{"gate": Gate()} | arguments,
    )


def test_every_validation_score_is_that_of_the_library_at_hand() -> None:
    """10: the second evaluation of an epoch reports the first one's score without running."""
    runs = [growing_run(epochs=n, max_staleness=0) for n in (1, 2, 3)]  # a lesson builds on another
    means = [run.results.best.mean for run in runs]
    assert means == pytest.approx([0.1, 0.2, 0.3])


def test_validation_and_the_returned_program_run_at_the_lms_own_temperature() -> None:
    """11: evaluation runs at the temperature of rollouts, which also stays in what is exported."""
    lm = scripted_lm(Run.rules([["1", "0"]]), temperature=0.3)
    student = dspy.Predict("question -> answer")
    run = Run([["1", "0"]], lm=lm, student=student, temperature=1.2,
              valset=questions(1, "validation question"), gate=Gate())  # fmt: skip
    assert {p.temperature for p in run.prompts("validation question")} == {0.3}
    assert {p.temperature for p in run.prompts(r"\]\]\nquestion \d")} == {1.2}
    assert lm.kwargs["temperature"] == 0.3
    assert run.optimized.lm is None
    assert run.optimized.config == student.config


def test_without_ground_truth_the_reflection_lm_sees_neither_label_nor_critique() -> None:
    """12: without ground truth, the metric's critique is shown all the same."""
    with pytest.warns(UserWarning, match="metric=None"):
        run = Run([["1", "0"]], metric=None)
    (prompt,) = run.prompts(EXTRACT)
    assert "label 0" not in prompt.user
    assert "Feedback" not in prompt.user
    assert "advantage +" not in prompt.user


@pytest.mark.parametrize("num_threads", [1, 3])
def test_so_many_rollouts_run_at_once_as_there_are_threads_and_no_more(num_threads: int) -> None:
    """12: the knob for the concurrency of rollouts is dead."""
    together = threading.Barrier(num_threads, timeout=10)
    inside, most, lock = [0], [0], threading.Lock()

    def before(prompt: Prompt) -> None:
        if prompt.temperature is None:
            return
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        together.wait()
        with lock:
            inside[0] -= 1

    rows = [["1", "1", "1"]] * 4
    lm = scripted_lm(Run.rules(rows), before=before)
    Run(rows, lm=lm, num_threads=num_threads)
    assert most[0] == num_threads


def test_experiences_stand_at_the_same_place_in_training_and_in_what_is_deployed() -> None:
    """13: learned in the user's question, deployed in the system's instructions."""
    run = growing_run(epochs=2, max_staleness=0)  # epoch 1 trains with what epoch 0 learned
    (trained, *_) = [p for p in run.prompts(r"\]\]\nquestion 0") if "One more" in p.system]
    with dspy.context(lm=run.lm):
        run.optimized(question="question 0")
    deployed = run.prompts("question 0")[-1]
    assert trained.system.replace("(next id: E2)", "[E2*] Two more.\n        (next id: E3)") == (
        deployed.system
    )
    assert trained.user == deployed.user


def test_each_optimizer_has_its_own_metric_and_two_may_run_in_one_process() -> None:
    """14: a class-level dict makes a second run reuse the first one's judge."""
    first = Run([["1", "0"]])
    second = Run([["1", "0"]], metric=lambda _, pred: 5 + float(pred.answer))
    assert first.results.updates[0].groups[0].scores == (1.0, 0.0)
    assert second.results.updates[0].groups[0].scores == (6.0, 5.0)


def test_where_no_lesson_was_found_update_library_is_not_asked() -> None:
    """16: an empty answer is sent on, and the model makes operations up."""
    run = Run([["1", "0"]], (EXTRACT, lessons()))
    assert run.prompts(UPDATE) == []
    assert list(run.library) == []


def test_a_provider_that_refuses_the_key_is_not_reported_as_a_parse_failure() -> None:
    """16: authentication and rate limits are reported as decoding failures."""
    refused = dspy.utils.exceptions.LMAuthError("wrong key")
    with pytest.raises(RunFailedError, match="ended by failures: LMAuthError: wrong key"):
        Run([["1", "0"]], (EXTRACT, refused))
    with pytest.raises(RunFailedError, match="ended by failures: LMAuthError: wrong key"):
        Run([[refused, refused]])
    slow_down = dspy.utils.exceptions.LMRateLimitError("slow down")
    lm = scripted_lm(Run.rules([["1", "0"]], (EXTRACT, slow_down)), num_retries=0)
    assert Run([["1", "0"]], lm=lm).results.failures == {"reflection error": 1}
    lm = scripted_lm(Run.rules([[slow_down, slow_down]]), num_retries=0)
    assert Run([[slow_down, slow_down]], lm=lm).results.failures == {"provider": 2}


def test_a_batch_in_which_every_rollout_failed_ends_nothing() -> None:
    """17: IndexError where all rollouts failed."""
    run = Run([[RuntimeError("down")] * 2] * 3, epochs=3)
    assert run.results.failures == {"provider": 12}  # the next batch was under way (staleness 1)
    assert run.results.ended_because == ("no group of a whole epoch had anything to teach")


def test_a_summary_that_fails_does_not_take_its_rollout_out_of_the_group() -> None:
    """17: a lost summary can turn a mixed group into a uniform one, after it was paid for."""
    run = Run([["1", "0"]], (SUMMARIZE, UNPARSED), summarize_always=True)
    (prompt,) = run.prompts(EXTRACT)
    assert "Attempt 1 (score 1, advantage +1.00)" in prompt.user
    assert "Attempt 2 (score 0, advantage -1.00)" in prompt.user
    assert run.library.render() == "[E1*] Be exact."


def test_every_public_name_can_be_imported() -> None:
    """17: `from utu.practice import *` fails on a name that is not there."""
    assert [name for name in tfgrpo_dspy.__all__ if not hasattr(tfgrpo_dspy, name)] == []
    assert tfgrpo_dspy.__all__ == sorted(tfgrpo_dspy.__all__)


def test_an_update_that_hurts_is_not_kept() -> None:
    """17: no gate; only the last library is kept."""
    run = Run(
        [["1", "0"]],
        ("Be exact(?s:.*)validation question", chat(answer="0.1")),
        valset=questions(2, "validation question"),
        gate=Gate(),
    )
    assert list(run.library) == []
    assert run.results.best.mean == 0.5


# ---------------------------------------------------------------------- dspy.GEPA


def test_the_metric_is_called_once_for_each_rollout_and_never_again_for_its_feedback() -> None:
    """18: the metric is called again for feedback, uncounted: 42 calls of 30."""
    calls: list[str] = []

    def metric(example: dspy.Example, pred: dspy.Prediction) -> dspy.Prediction:
        calls.append(example.question)
        return dspy.Prediction(score=float(pred.answer), feedback="So so.")

    run = Run([["1", "0", "1"]] * 2, metric=metric, valset=questions(3, "validation question"),
              gate=Gate())  # fmt: skip
    assert len(calls) == 2 * 3 + 2 * 3
    assert run.results.policy_usage.n_lm_calls == len(calls)


class Twins(dspy.Module):
    """Two predictors of one signature."""

    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.Predict("text -> result")
        self.second = dspy.Predict("text -> result")

    def forward(self, question: str) -> dspy.Prediction:
        first = self.first(text=question).result
        return dspy.Prediction(answer=self.second(text=f"again {first}").result)


def test_steps_of_two_predictors_of_one_signature_are_told_apart() -> None:
    """19: credit leaks between predictors whose signatures are equal."""
    training = in_training([["1", "0"]])
    rule: Rule = ("## result ##", lambda p: training(p).replace("answer", "result"))
    run = Run([["1", "0"]], rule, student=Twins())
    (prompt,) = run.prompts(EXTRACT)
    assert "Step 1, predictor first\n  in text: question 0\n  out result: 1" in prompt.user
    assert "Step 2, predictor second\n  in text: again 1\n  out result: 1" in prompt.user


class Loop(dspy.Module):
    """Calls its one predictor six times."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict("question, turn: int -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        return [self.ask(question=question, turn=turn) for turn in range(6)][-1]


def test_every_call_of_a_predictor_is_shown_and_not_one_at_random() -> None:
    """19: a loop of ten steps teaches from one step."""
    run = Run([["1", "0"]], student=Loop())
    (prompt,) = run.prompts(EXTRACT)
    for step in range(1, 7):
        assert prompt.user.count(f"Step {step}, predictor ask") == 2
    assert [prompt.user.count(f"in turn: {turn}") for turn in range(6)] == [2] * 6


@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
def test_a_score_that_is_no_finite_number_is_a_failure_and_never_a_result(bad: str) -> None:
    """20: NaN is accepted, and is the result."""
    run = Run([[bad, "0.5", "0.7"]], valset=questions(2, "validation question"),
              gate=Gate())  # fmt: skip
    assert run.results.updates[0].groups[0].scores == (0.5, 0.7)
    assert run.results.failures == {"metric": 1}


def test_a_partly_parsed_answer_is_shown_as_well_as_total_garbage() -> None:
    """21: partial parse failures crash inside the handler, and are dropped."""
    partial = "[[ ## reasoning ## ]]\nIt is nearly right.\n\n[[ ## completed ## ]]"
    seed = rollout_id_for(0, 0, 0, 1, "training") % 2**31
    good = chat(reasoning="Hm.", answer="1")
    rules = [*Run.rules([])[:2], ("`answer`", lambda p: partial if p.seed == seed else good)]
    run = Run([["1", "?"]], *rules, student=dspy.ChainOfThought("question -> answer"))
    assert run.results.failures == {"parse": 1}
    (prompt,) = run.prompts(EXTRACT)
    assert "It is nearly right." in prompt.user


# ---------------------------------------------------------------------- dspy.SIMBA


def test_an_update_that_changes_nothing_is_not_measured() -> None:
    """26: a skipped strategy still evaluates the unchanged clone: 92 rollouts for nothing."""
    run = Run([["1", "1"]] * 4, valset=questions(5, "validation question"), gate=Gate(),
              epochs=3)  # fmt: skip
    assert len(run.prompts("validation question")) == 0


def scores_of_type(kind: Callable[[float], Any]) -> tuple[float | None, ...]:
    run = Run([["1", "0"]], metric=lambda _, pred: kind(float(pred.answer)))
    scores: tuple[float | None, ...] = run.results.updates[0].groups[0].scores
    return scores


def test_decimals_and_booleans_are_scores() -> None:
    """27: Decimal scores become 0.0 in silence."""
    assert scores_of_type(decimal.Decimal) == (1.0, 0.0)
    assert scores_of_type(bool) == (1.0, 0.0)
    assert scores_of_type(int) == (1.0, 0.0)


def test_numpy_scalars_are_scores() -> None:
    """27: np.float32 and np.bool_ become 0.0 in silence."""
    numpy = pytest.importorskip("numpy")
    for kind in (numpy.float32, numpy.bool_, numpy.int64, numpy.array):
        assert scores_of_type(kind) == (1.0, 0.0)


def test_a_typo_in_the_metric_does_not_look_like_a_bad_program() -> None:
    """27: an exception of the metric is a score of 0.0 and a warning."""
    run = Run([["1", "0"]], metric=lambda _, pred: float(pred.anwser))
    assert run.results.updates[0].groups[0].scores == ()
    assert "2 failures of kind 'metric'" in run.results.nothing_learned


def test_with_a_cache_every_epoch_still_samples_afresh() -> None:
    """28: rollout ids restart at every step, and cached answers are replayed: 48 calls of 108."""
    rows = [["1", "0", "1"]] * 4
    lm = scripted_lm(Run.rules(rows), cache=True)
    run = Run(rows, lm=lm, epochs=3, trainset=questions(4))
    assert run.results.policy_usage.n_lm_calls == 3 * 4 * 3
    assert run.results.policy_usage.n_cached_calls == 0


def test_the_users_lms_and_examples_are_what_they_were() -> None:
    """29: the teacher's LM keeps a rollout id; inputs of the trace are changed."""
    policy_lm = scripted_lm(Run.rules([["1", "0"]]))
    reflection_lm = scripted_lm(Run.rules([["1", "0"]]))
    kwargs = [dict(policy_lm.kwargs), dict(reflection_lm.kwargs)]
    classes = [type(policy_lm), type(reflection_lm)]
    trainset = questions(1)
    Run([["1", "0"]], lm=policy_lm, reflection_lm=reflection_lm, trainset=trainset)
    assert [policy_lm.kwargs, reflection_lm.kwargs] == kwargs
    assert [type(policy_lm), type(reflection_lm)] == classes == [dspy.LM, dspy.LM]
    assert trainset == questions(1)


def test_a_program_whose_source_cannot_be_read_is_optimized() -> None:
    """30: `inspect.getsource` fails for programs of a REPL, and nothing is learned."""
    names: dict[str, Any] = {"dspy": dspy}
    exec(  # as in a REPL
        "class Typed(dspy.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.ask = dspy.Predict('question -> answer')\n"
        "    def forward(self, question):\n"
        "        return self.ask(question=question)\n",
        names,
    )
    student = names["Typed"]()
    with pytest.raises((OSError, TypeError)):
        inspect.getsource(type(student))
    assert Run([["1", "0"]], student=student).library.render() == "[E1*] Be exact."


def test_a_program_with_several_lms_is_optimized_and_each_is_called() -> None:
    """30: several LMs are a ValueError."""
    student = Twins()
    training = in_training([["1", "0"]])
    rule: Rule = ("## result ##", lambda p: training(p).replace("answer", "result"))
    student.first.lm, student.second.lm = scripted_lm([rule]), scripted_lm([rule])
    run = Run([["1", "0"]], student=student)
    assert run.library.render() == "[E1*] Be exact."
    assert [student.first.lm.engine.n_calls(), student.second.lm.engine.n_calls()] == [2, 2]
    assert run.optimized.first.lm is student.first.lm
    assert run.optimized.second.lm is student.second.lm


# ---------------------------------------------------------------------- dspy.MIPROv2


def test_a_failing_evaluation_is_no_score_of_zero() -> None:
    """32: an evaluation that fails is swallowed as 0.0."""
    run = Run([["1", "0"]], ("validation question", RuntimeError("down")),
              valset=questions(3, "validation question"), gate=Gate())  # fmt: skip
    assert (run.results.student.mean, run.results.student.n, run.results.student.n_failed) == (
        None,
        0,
        3,
    )


def test_seed_0_is_a_seed_of_its_own() -> None:
    """32: `seed or self.seed` makes a seed of 0 impossible."""
    orders = [
        [g.example for g in Run([["1", "0"]] * 9, seed=seed).results.updates[0].groups]
        for seed in (0, 9, 10)
    ]
    assert orders[0] not in orders[1:]


# ---------------------------------------------------------------------- ParallelExecutor, Evaluate


def test_a_slow_rollout_is_run_once() -> None:
    """33: items slower than a timeout are run again, and again."""
    others_are_done = threading.Event()
    seen: list[int | None] = []
    lock = threading.Lock()

    def before(prompt: Prompt) -> None:
        if prompt.temperature is None:
            return
        with lock:
            seen.append(prompt.seed)
            is_first, is_last = len(seen) == 1, len(seen) == 12
        if is_last:
            others_are_done.set()
        if is_first:
            assert others_are_done.wait(10)

    rows = [["1", "1", "1"]] * 4
    Run(rows, lm=scripted_lm(Run.rules(rows), before=before))
    assert len(seen) == len(set(seen)) == 12


def test_many_failures_cost_only_themselves() -> None:
    """34: the tenth failure ends everything with a bare Exception, and loses what was finished."""
    rows: list[list[Any]] = [[RuntimeError("down"), RuntimeError("down"), "1", "0"]] * 20
    run = Run(rows)
    assert run.results.failures == {"provider": 40}
    assert run.library.render() == "[E1*] Be exact."
    assert len(run.results.updates) == 4


def test_outputs_that_are_arrays_are_compared_with_nothing() -> None:
    """35: a worker's numpy result raises 'truth value is ambiguous'."""
    numpy = pytest.importorskip("numpy")

    class Arrays(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ask = dspy.Predict("question -> answer")

        def forward(self, question: str) -> dspy.Prediction:
            answer = self.ask(question=question).answer
            return dspy.Prediction(answer=numpy.array([float(answer), 0.0]))

    run = Run([["1", "0"]], student=Arrays(), metric=lambda _, pred: pred.answer.sum())
    assert run.library.render() == "[E1*] Be exact."
    assert run.results.failures == {}


# ---------------------------------------------------------------------- ACE


def test_an_operation_is_either_applied_or_refused_with_a_reason_never_ignored() -> None:
    """36: UPDATE, DELETE and MERGE pass validation and are not applied."""
    update = operations(
        {"op": "UPDATE", "id": "E1", "text": "Count twice."},
        {"op": "DELETE", "id": "E2"},
        {"op": "MERGE", "id": "E3", "text": "Both."},
        {"op": "KEEP", "id": "E3", "lessons": [1]},
    )
    run = Run([["1", "0"]], (UPDATE, update), student=known("Count.", "Read.", "Round."))
    assert run.library.render() == "[E1*] Count twice.\n[E3*] Round."
    assert sorted(zip([op.op for op in run.results.updates[0].operations], run.refusals,
                      strict=True)) == [
        ("DELETE", ""),
        ("KEEP", ""),
        ("MERGE", "op='MERGE': the operations are ADD, MODIFY, DELETE, KEEP."),
        ("MODIFY", ""),
    ]  # fmt: skip


def test_a_library_is_kept_to_its_size() -> None:
    """36: a playbook only grows; its budget is only printed in the prompt."""
    update = operations(*({"op": "ADD", "text": f"Advice of kind {i}"} for i in "abcdef"))
    run = Run([["1", "0"]], (UPDATE, update), max_experiences=4)
    assert len(run.library) == 4
    assert run.refusals.count("the library is full: 4 experiences") == 2


def test_a_warm_start_never_gives_an_id_a_second_time() -> None:
    """37: ids start at 1 again, and collide with those of the initial playbook."""
    retired = ExperienceLibrary([Experience(id="E2", text="Count.")], next_number=6)
    run = Run([["1", "0"]], student=retired.bake(dspy.Predict("question -> answer")))
    assert run.library.render() == "[E2*] Count.\n[E6*] Be exact."
    again = Run(
        [["1", "0"]],
        (UPDATE, operations({"op": "DELETE", "id": "E6"}, {"op": "ADD", "text": "Round."})),
        (EXTRACT, lessons("Learn.")),
        student=run.optimized,
    )
    assert again.library.render() == "[E2*] Count.\n[E7*] Round."


def test_the_students_own_score_is_measured_and_a_small_trainset_is_validated_too() -> None:
    """38: the baseline is never scored; fewer examples than eval_steps are never validated."""
    run = Run([["1", "0"]] * 6, valset=questions(3, "validation question"), gate=Gate())
    assert (run.results.student.mean, run.results.student.n) == (0.5, 3)


def test_failures_of_the_program_count_in_the_validation_score() -> None:
    """39: errors are dropped from the denominator, so flaky runs look better."""
    half: Rule = ("validation question [02]", UNPARSED)
    run = Run([["1", "0"]], half, valset=questions(4, "validation question"), gate=Gate())
    assert run.results.student.mean == 0.25
    assert (run.results.student.n, run.results.student.n_failed) == (4, 0)


def test_a_candidate_that_fails_where_it_would_do_badly_does_not_look_better() -> None:
    """39: what fails is left out, so a library that breaks the program on hard examples wins."""
    run = Run(
        [["1", "0"]],
        ("Be exact(?s:.*)validation question [0-3]", UNPARSED),
        ("Be exact(?s:.*)validation question", chat(answer="1")),
        ("validation question [0-3]", chat(answer="0.4")),
        ("validation question", chat(answer="0.9")),
        valset=questions(6, "validation question"),
        gate=Gate(),
    )
    assert list(run.library) == []


def test_an_empty_answer_of_the_provider_is_a_failure_and_nothing_stands_in_for_it() -> None:
    """39: an empty response is replaced by a made-up answer of another domain."""
    seed = rollout_id_for(0, 0, 0, 1, "training") % 2**31
    rules = [*Run.rules([])[:2], ("`answer`", lambda p: "" if p.seed == seed else chat(answer="1"))]
    run = Run([["1", "?"]], *rules)
    assert run.results.failures == {"parse": 1}
    assert run.results.updates[0].groups[0].scores == (1.0, 0.0)
