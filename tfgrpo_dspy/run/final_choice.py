"""The end of a run: a race on the validation set says which program is returned."""

import itertools
import logging
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import replace
from typing import Any

import dspy

from tfgrpo_dspy.budget.account import Account, Amount
from tfgrpo_dspy.calls.context import RunContext
from tfgrpo_dspy.errors import RunStopped
from tfgrpo_dspy.events import RunEnded
from tfgrpo_dspy.experience.programs import named_predictors
from tfgrpo_dspy.gate.model import DEMOS_PRICE
from tfgrpo_dspy.gate.race import Race, Scores
from tfgrpo_dspy.listeners.rows import worst_first
from tfgrpo_dspy.reflection.texts import estimate_tokens
from tfgrpo_dspy.results import Candidate
from tfgrpo_dspy.results.records import (
    DemoRecord,
    Finalist,
    HeldOut,
    ScoreSummary,
    TriedAdvice,
    compared,
    front_of,
)
from tfgrpo_dspy.results.rows import RolloutRow
from tfgrpo_dspy.run import condensing
from tfgrpo_dspy.run.condensing import condensed_choice, records_of
from tfgrpo_dspy.run.history import History
from tfgrpo_dspy.run.measurements import Measurements
from tfgrpo_dspy.sampling.additions import Additions
from tfgrpo_dspy.settings.checks import inputs_text, policy_lms
from tfgrpo_dspy.settings.schedule import MIN_PROGRAMS_MEASURED, MIN_VALIDATION

logger = logging.getLogger(__name__)

DEMOS_SD = 0.3
"""How much demos that no training rollout showed may add, in standard deviations of the score."""
DEMOS_ERROR = 0.25
"""How far the effect of demos on validation may be from that in training, in the same unit."""
SMALLEST_ROUND = MIN_PROGRAMS_MEASURED * MIN_VALIDATION  # rollouts
NOTHING = Amount()


def finish(run: RunContext, history: History, valset: Sequence[Any], testset: Sequence[Any]) -> Any:
    """The student with the library that wins on validation, and `detailed_results` on it.

    With `NoGate`, or without a metric or a validation set, nothing is compared, and the last
    library is returned, whether it is better or not.
    """
    if run.settings.metric is None:
        valset = testset = ()
    entries: dict[int, Finalist] = {}
    why = "the last library: nothing is compared"
    if is_race := run.settings.measures and bool(valset):
        candidates = _candidates(history, set(map(inputs_text, valset)))
    else:
        candidates = _with_student(history, Additions(history.result()))
    run.ledger.open_reserve()  # not before: a gate that hangs could spend it
    measured = Measurements(run, "validation", valset, candidates, history)
    if is_race:
        place, entries, why = _race(run, history, measured)
    else:
        place = len(candidates) - 1
        measured.make_all(run.settings.n_validation)
    best = candidates[place]
    if not best.condensed:  # with the tokens that each experience adds to a call
        priced = [replace(e, price=estimate_tokens(f"[{e.id}*] {e.text}\n")) for e in best.library]
        best = replace(best, library=best.library.holding(priced))
    ended_because = "" if run.ledger.is_failure else run.ended_because
    run.manifest.note(best, ended_because, history.repeated)
    n_more = 2 * (len(testset) - run.settings.data.n_test)  # a testset after the run was finished
    if n_more > 0:
        run.ledger.raise_limits(*history.latest.account.reserve(n_more))
    tested = _tested(run, history, testset, best)
    last = len(tested.candidates) - 1
    examples = [*measured.examples(place), *tested.examples(last)]
    program = _reported(
        run,
        history,
        best,
        [*measured.rollouts, *tested.rollouts],
        **measured.outcome(place),
        finalists=tuple(entries.values()),
        taken_because=_reason(why, place, entries),
        front=tuple(_front(run.student, candidates, entries)),
        test=_held_out(run, tested),
        examples=worst_first(examples),
    )
    evaluations = [measured.evaluations(0, place), tested.evaluations(0, last)]
    run.report.tell_evaluations(itertools.chain(*evaluations))
    return program


def _reason(why: str, place: int, entries: Mapping[int, Finalist]) -> str:
    """Why the result was taken, also where another candidate beats it in every objective."""
    result, others = entries.get(place), entries.values()
    if result is None or not any(other.dominates(result) for other in compared([*others])):
        return why
    return f"{why}; another is better in every objective, and not surely in the score"


def _front(
    student: Any, candidates: Sequence[Additions], entries: Mapping[int, Finalist]
) -> Iterator[Candidate]:
    front = front_of([*entries.values()])
    for place, finalist in entries.items():
        if any(finalist is one for one in front):
            yield Candidate(candidates[place].bake(student), finalist)


def unmeasured(run: RunContext, history: History) -> Any:
    """The student with the library of an interrupted run, which no validation checked."""
    run.ended_because = "interrupted"
    best = Additions(history.result())
    return _reported(run, history, best, student=None, best=None)


def _reported(
    run: RunContext,
    history: History,
    additions: Additions,
    rollouts: Sequence[RolloutRow] = (),
    **fields: Any,
) -> Any:
    """The student with these additions, and `detailed_results`, which are recorded, too."""
    optimized = additions.bake(run.student)
    results = run.report.results(
        ended_because=run.ended_because,
        is_student=additions == Additions(history.start),
        tried=tuple(
            TriedAdvice(*advice, belief.effect, belief.chance)
            for advice, belief in history.decision.beliefs.items()
            if belief.effect
        ),
        switched=history.switched,
        n_demos=len(additions.demos),
        demos=tuple(DemoRecord(demo.predictor, dict(demo.fields)) for demo in additions.demos),
        condensed=records_of(run.student, additions),
        program=type(run.student).__name__,
        origin=run.manifest.origin,
        library=additions.library.to_dict(),
        instructions=_instructions(run.student, optimized),
        lms=(_names(policy_lms(run.student)), _names([run.settings.reflection_lm])),
        **fields,
    )
    run.manifest.note_results(results, rollouts)
    run.report.tell(RunEnded(results, tuple(rollouts)))
    logger.info("the run ended (%s): %s", results.ended_because, results.in_a_line)
    optimized.detailed_results = results
    return optimized


def _instructions(student: Any, optimized: Any) -> dict[str, tuple[str, str]]:
    """The instructions of each predictor, before and after."""
    after = dict(named_predictors(optimized))
    return {
        name: (predictor.signature.instructions, after[name].signature.instructions)
        for name, predictor in named_predictors(student)
    }


def _names(lms: Sequence[Any]) -> str:
    return ", ".join(dict.fromkeys(str((lm or dspy.settings.lm).model) for lm in lms))


def _with_student(history: History, result: Additions) -> list[Additions]:
    """The student and the result; the result alone where it is the student."""
    student = Additions(history.start)
    return [result] if result == student else [student, result]


def _candidates(history: History, hidden: Set[str]) -> list[Additions]:
    """The student and its rivals, each without and with the likeliest set of demos.

    The other sets are there without advice.
    """
    bare = [Additions(library) for library in (history.start, *history.finalists())]
    candidates = {(each.library, each.demos): each for each in bare}
    beliefs = dict(enumerate(history.decision.demos, start=1))
    numbers = range(1, history.demos.n_sets + 1)
    for number in sorted(numbers, key=lambda k: -beliefs[k].mean if beliefs else k):
        demos = history.demos.choose(number, history.latest.best, hidden)
        for each in bare if demos else ():
            shown = replace(each, demos=demos, demo_set=number)
            candidates.setdefault((each.library, demos), shown)
        bare = bare[:1]
    return list(candidates.values())


def _tested(
    run: RunContext, history: History, testset: Sequence[Any], best: Additions
) -> Measurements:
    """The student, which is first, and the result, which is last, on the test set."""
    candidates = _with_student(history, best)
    measured = Measurements(run, "test", testset, candidates, history)
    measured.make_all(len(testset))
    return measured


def _held_out(run: RunContext, tested: Measurements) -> HeldOut | None:
    """The scores on the test set, if there are any of both."""
    outcome = tested.outcome(len(tested.candidates) - 1)
    if outcome["student"] and outcome["best"]:
        return HeldOut(**outcome)
    if tested.n_examples:
        logger.warning("the test set was not measured: %s", run.ledger.stopped_because)
    return None


def _race(
    run: RunContext, history: History, measured: Measurements
) -> tuple[int, dict[int, Finalist], str]:
    """The winner's place (0: student), all that took part by their places, and why it won."""
    account, sd = history.latest.account, history.score_sd
    candidates = [_parts(candidate) for candidate in measured.candidates]
    parts = {part: (0.0, sd) for candidate in candidates for part in candidate}
    parts |= {advice: (b.mean, b.sd) for advice, b in history.decision.beliefs.items()}
    sets = range(1, history.demos.n_sets + 1)
    parts |= {number: (0.0, DEMOS_SD * sd) for number in sets}
    beliefs = history.decision.demos
    if any(belief.n_rollouts for belief in beliefs):
        errors = (math.hypot(belief.sd, DEMOS_ERROR * sd) for belief in beliefs)
        parts |= zip(sets, zip((b.mean for b in beliefs), errors, strict=True), strict=True)
    prices = dict.fromkeys(sets, DEMOS_PRICE * sd)
    race = Race(tuple(candidates), parts, prices, sd, measured.n_examples)
    with suppress(RunStopped):  # what was measured by then decides
        while pairs := _next_round(run, race, account, measured.scores()):
            account = account.after_rollouts(measured.make(pairs))
            measured.show()
    why = race.why(measured.scores())

    def n_left(more: Amount) -> float:
        left = _n_left(run, account, run.settings.data.n_of_test_set, more)
        return math.inf if left is None else left

    choice = condensed_choice(run, history, measured, race, n_left)
    race, best, scores = choice.race, choice.place, measured.scores()
    finalists = {
        c: Finalist(
            ids=tuple(experience.id for experience in candidate.library),
            demo_set=candidate.demo_set,
            score=ScoreSummary.of(measured.scores_of(c), measured.scale),
            chance=race.chance(c, 0, scores),
            is_best=c == best,
            objectives=measured.objectives_of(c),
            is_condensed=bool(candidate.condensed),
        )
        for c, candidate in enumerate(measured.candidates)
        if (c, 0) in scores
    }
    if len(finalists) < 2 <= len(candidates) and not run.ledger.is_failure:
        logger.warning(
            "the result could not be measured, so the student is returned: %s; allow more, or "
            "pass a smaller valset",
            run.ended_because,
        )
    return best, finalists, "; ".join(filter(None, (why, choice.why)))


def _next_round(
    run: RunContext, race: Race, account: Account, scores: Scores
) -> list[tuple[int, int]]:
    """What the race measures next; what the test set needs is kept.

    Where that leaves hardly anything, the first round has half of all, and begins with one example
    in any case: the ledger says whether that can be paid. While the student leads, the test set
    needs half of what both need: the race goes on with the other half. A candidate that wins by it
    is measured on fewer test examples, and the student on the same.
    """
    data, more = run.settings.data, condensing.kept(run)
    n_more = condensing.n_kept(run, race.n_examples, scores)
    n_left = _n_left(run, account, data.n_of_test_set + n_more, more)
    if n_left is not None and not scores and n_left < SMALLEST_ROUND:
        n_left = max(MIN_PROGRAMS_MEASURED, n_left, (_n_left(run, account, 0) or 0) // 2)
    pairs = race.next(scores, n_left)
    if scores and not pairs and race.winner(scores) == 0:
        pairs = race.next(scores, _n_left(run, account, data.n_test + n_more, more))
    return pairs


def _parts(candidate: Additions) -> frozenset[Hashable]:
    """What it has more than the bare program: its advice, and the number of its set of demos."""
    advice: set[Hashable] = {experience.advice for experience in candidate.library}
    return frozenset(advice | {candidate.demo_set} if candidate.demos else advice)


def _n_left(
    run: RunContext, account: Account, n_reserved: int, more: Amount = NOTHING
) -> int | None:
    """How many rollouts the budget pays for beside these and `more`; None: it sets no limit."""
    later, used, ledger = account.later, account.used, run.ledger
    lost = Amount(  # calls that came to nothing, and the worst that the last call may cost
        ledger.n_lost + max(0.0, ledger.n_lm_calls - used.n_lm_calls),
        max(0.0, ledger.n_metric_calls - used.n_metric_calls),
        ledger.lost + max(run.settings.data.dollars_of_dearest_call, ledger.dearest),
    )
    n, _ = account.n_fitting(later, later * n_reserved + lost + more)
    return None if math.isinf(n) else int(n)
