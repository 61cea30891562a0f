"""The end of a run: a race on the validation set says which program is returned."""

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from tfgrpo_dspy.budget import Account
from tfgrpo_dspy.errors import RunStopped
from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.gate import Decision, Race, advice_of
from tfgrpo_dspy.reflection.texts import estimate_tokens
from tfgrpo_dspy.results import DemoTrial, Finalist, Gain, ScoreSummary
from tfgrpo_dspy.run.candidates import Candidate, Choice, candidates_of
from tfgrpo_dspy.run.context import RunContext
from tfgrpo_dspy.run.gate_answers import finalists_of
from tfgrpo_dspy.run.history import History
from tfgrpo_dspy.run.measuring import Measurements
from tfgrpo_dspy.sampling.demos import Demo

logger = logging.getLogger(__name__)

DEMOS_MEAN, DEMOS_SD = -0.02, 0.3
"""What demos are believed to add before they are measured, in standard deviations of the score:
every later call pays for them, and they may help a lot."""
DEMOS = "demos"
"""The name of the demos among the parts of a candidate."""


def finish(
    run: RunContext,
    history: History,
    valset: Sequence[Any],
    testset: Sequence[Any],
    demos: Sequence[Demo],
) -> Any:
    """The program to return, with `detailed_results` on it; it may show these demos."""
    run.ledger.open_reserve()
    measured = Measurements(run, "validation", valset, demos)
    choice = _choice(run, history, measured, demos, n_reserved=2 * len(testset))
    best = replace(choice.best, library=_with_prices(choice.best.library))
    shown = demos if best.has_demos else ()
    run.manifest.note(best.library, len(run.report.updates), run.report.ended_because, shown)
    tested: list[list[float | None]] = [[], []]
    if run.settings.metric is not None and testset:
        of_test = Measurements(run, "test", testset, demos)
        tested = _all_scores(run, of_test, [Candidate(history.start), best])
        if not all(tested):
            reason = run.ledger.stopped_because
            logger.warning("the test set was not measured: %s", reason)
    optimized = measured.bake(best)
    optimized.detailed_results = run.report.results(
        history.start, best, choice, tested, history.tried(), run.settings, run.ledger
    )
    return optimized


def _choice(
    run: RunContext,
    history: History,
    measured: Measurements,
    demos: Sequence[Demo],
    n_reserved: int,
) -> Choice:
    start, last = Candidate(history.start), Candidate(history.result())
    if run.settings.metric is None or not measured.n_examples:
        return Choice(last)
    if not run.settings.measures:
        before, after = _all_scores(run, measured, [start, last])
        return Choice(last, before, after)
    proposed = finalists_of(run.settings.gate, history.last)
    account = history.accounts[-1]
    if not account.n_rollouts:  # of rollouts made elsewhere none has tried what was learned
        proposed = (*proposed, history.last.library)
    libraries = [history.like_start(library) for library in proposed]
    candidates = candidates_of(history.start, libraries, bool(demos))
    decision = history.scaled_decision()
    choice = choose(run, measured, candidates, decision, account, n_reserved, len(demos))
    if len(choice.finalists) < 2 and last != start:
        logger.warning(
            "the result could not be measured, so the student is returned: %s; allow more, or "
            "pass a smaller valset",
            run.report.ended_because,
        )
    return choice


def _all_scores(
    run: RunContext, measured: Measurements, candidates: Sequence[Candidate]
) -> list[list[float | None]]:
    """Each candidate's scores on the whole set; empty where the budget does not reach."""
    with suppress(RunStopped):
        for candidate in candidates:
            pairs = [(candidate, place) for place in range(measured.n_examples)]
            run.loop.run(measured.run(pairs))
    return [measured.on_all_examples(candidate) for candidate in candidates]


def _with_prices(library: ExperienceLibrary) -> ExperienceLibrary:
    """The library with the tokens that each experience adds to a call, estimated from its line."""
    return library.holding(
        replace(e, price=estimate_tokens(f"[{e.id}*] {e.text}\n")) for e in library
    )


def choose(
    run: RunContext,
    measured: Measurements,
    candidates: Sequence[Candidate],
    decision: Decision,
    account: Account,
    n_reserved: int,
    n_demos: int,
) -> Choice:
    """The candidate that wins on the validation set; the student, which is first, if none does.

    Args:
        run: pays for the rollouts.
        measured: the validation set.
        candidates: the student, then the others, the most promising first.
        decision: what is believed of their experiences.
        account: what the run has taken until now, answers from a cache included.
        n_reserved: rollouts that are kept for the test set.
        n_demos: how many demos a candidate that has demos shows.
    """
    sd = decision.score_sd or 1.0
    parts = {name: (0.0, sd) for candidate in candidates for name in _parts(candidate)}
    parts[DEMOS] = (DEMOS_MEAN * sd, DEMOS_SD * sd)
    for advice, belief in decision.beliefs.items():
        parts["\x00".join(advice)] = (belief.mean, belief.sd)
    race = Race(tuple(map(_parts, candidates)), parts, sd, measured.n_examples)
    scores: dict[tuple[int, int], float | None] = {}
    with suppress(RunStopped):  # what was measured by then decides
        while pairs := race.next(scores, _n_left(run, account, n_reserved)):
            pairs.sort(key=lambda pair: candidates[pair[0]].has_demos)
            taken, n = run.loop.run(measured.run((candidates[c], place) for c, place in pairs))
            account = account.after_rollouts(taken, n)
            found = measured.scores()
            scores = {(c, i): found[candidates[c], i] for c, i in [*scores, *pairs]}
    return _choice_of(race, scores, candidates, n_demos)


def _choice_of(
    race: Race,
    scores: Mapping[tuple[int, int], float | None],
    candidates: Sequence[Candidate],
    n_demos: int,
) -> Choice:
    """The winner of the race, and the scores of each candidate that took part."""
    best, n = race.winner(scores), race.n_measured(scores)
    by_candidate = {
        c: [scores[c, i] for i in range(n) if (c, i) in scores]
        for c in range(len(candidates))
        if (c, 0) in scores
    }
    finalists = tuple(
        Finalist(
            ids=tuple(experience.id for experience in candidates[c].library),
            has_demos=candidates[c].has_demos,
            score=ScoreSummary.of(of_candidate),
            chance=race.chance(c, 0, scores),
            is_best=c == best,
        )
        for c, of_candidate in by_candidate.items()
    )
    trial = None
    if pair := _demo_pair(candidates, list(by_candidate), best):
        shown, bare = pair
        gain = Gain.between(by_candidate[bare], by_candidate[shown])
        chance = race.chance(shown, bare, scores)
        trial = DemoTrial(n_demos, gain, chance, is_kept=candidates[best].has_demos)
    before, after = by_candidate.get(0, []), by_candidate.get(best, [])
    return Choice(candidates[best], before, after, finalists, trial)


def _parts(candidate: Candidate) -> frozenset[str]:
    """The names of what it has more than the bare program: its advice, and the demos."""
    advice = {"\x00".join(advice_of(experience)) for experience in candidate.library}
    return frozenset(advice | ({DEMOS} if candidate.has_demos else set()))


def _n_left(run: RunContext, account: Account, n_reserved: int) -> int | None:
    """How many rollouts the budget pays for; None: it sets no limit."""
    each = account.reserve(1)
    n, _ = account.n_fitting(each, each * n_reserved)
    ledger = run.ledger
    for limit, used, one in (
        (ledger.budget.max_lm_calls, ledger.n_lm_calls, each.n_lm_calls),
        (ledger.budget.max_metric_calls, ledger.n_metric_calls, each.n_metric_calls),
    ):
        if limit is not None and one > 0:
            n = min(n, math.floor((limit - used) / one) - n_reserved)
    return None if math.isinf(n) else max(0, int(n))


def _demo_pair(
    candidates: Sequence[Candidate], measured: Sequence[int], best: int
) -> tuple[int, int] | None:
    """A candidate with demos and the same one without: the result's, else the first one's."""
    pairs = [
        (c, candidates.index(replace(candidates[c], has_demos=False)))
        for c in measured
        if candidates[c].has_demos
    ]
    pairs = [pair for pair in pairs if pair[1] in measured]
    return next((pair for pair in pairs if pair[0] == best), pairs[0] if pairs else None)
