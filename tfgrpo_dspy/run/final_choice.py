"""The end of a run: a race on the validation set says which program is returned."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from tfgrpo_dspy.budget import Account, Amount
from tfgrpo_dspy.errors import RunStopped
from tfgrpo_dspy.experience import ExperienceLibrary
from tfgrpo_dspy.gate import Decision, Race, advice_of
from tfgrpo_dspy.reflection import estimate_tokens
from tfgrpo_dspy.results import DemoTrial, Finalist
from tfgrpo_dspy.run.context import RunContext
from tfgrpo_dspy.run.heldout import Comparison, gain_between, summary_of
from tfgrpo_dspy.run.measuring import Measurements, Pair
from tfgrpo_dspy.sampling import Demo, with_demos

DEMOS_MEAN, DEMOS_SD = -0.02, 0.3
"""What demos are believed to add before they are measured, in standard deviations of the score:
every later call pays for them, and they may help a lot."""
DEMOS = "demos"
"""The name of the demos among the parts of a candidate."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A program that may be returned: the student with a library, and with demos or without."""

    library: ExperienceLibrary
    has_demos: bool = False

    def parts(self) -> frozenset[str]:
        """The names of what it has: its advice, and the demos."""
        advice = {"\x00".join(advice_of(experience)) for experience in self.library}
        return frozenset(advice | ({DEMOS} if self.has_demos else set()))


@dataclass(frozen=True, slots=True)
class Choice(Comparison):
    """The program to return, and what was measured of the candidates.

    `run` is that of the student, with the demos if it has any.
    """

    run: RunContext
    library: ExperienceLibrary


class FinalChoice:
    """Races the candidates of one run.

    Args:
        run: of the student without demos.
        measured: the validation set, with that student.
        demos: those that may be shown; empty: none.
        account: what the run has taken until now, answers from a cache included.
        n_kept: rollouts that are kept for the test set.
    """

    def __init__(
        self,
        run: RunContext,
        measured: Measurements,
        demos: tuple[Demo, ...],
        account: Account,
        n_kept: int,
    ) -> None:
        shown = replace(run, student=with_demos(run.student, demos)) if demos else run
        self._runs = {False: run, True: shown}
        self._measured = {False: measured, True: measured.beside(shown)}
        self._demos = demos
        self._account = account
        self._n_kept = n_kept
        self._scores: dict[tuple[int, int], float | None] = {}

    def make(
        self,
        start: ExperienceLibrary,
        libraries: Sequence[ExperienceLibrary],
        decision: Decision,
    ) -> Choice:
        """The candidate that wins; the student's library where none does.

        Args:
            start: the library of the student.
            libraries: what the gate proposes, the most promising first. The demos are tried with
                the first of them, and with the student alone.
            decision: what is believed of their experiences.
        """
        candidates = [Candidate(start), *map(Candidate, libraries)]
        if self._demos:
            candidates += [Candidate(c.library, has_demos=True) for c in candidates[1::-1]]
        candidates = list(dict.fromkeys(candidates))
        race = _race(candidates, decision, self._measured[False].n_examples)
        with suppress(RunStopped):  # what was measured by then decides
            while pairs := race.next(self._scores, self._n_left()):
                self._measure(candidates, pairs)
        return self._choice(candidates, race)

    def _measure(self, candidates: Sequence[Candidate], pairs: Sequence[tuple[int, int]]) -> None:
        wanted: dict[bool, list[Pair]] = {has_demos: [] for has_demos in self._measured}
        for c, place in pairs:
            wanted[candidates[c].has_demos].append((candidates[c].library, place))
        for has_demos, taken in self._runs[False].loop.run(self._taken_by(wanted)).items():
            self._account = self._account.after_rollouts(taken, len(wanted[has_demos]))
        floor = min(measured.lowest for measured in self._measured.values())
        found = {has_demos: of_each.scores(floor) for has_demos, of_each in self._measured.items()}
        self._scores = {
            (c, place): found[candidates[c].has_demos][candidates[c].library, place]
            for c, place in [*self._scores, *pairs]
        }

    async def _taken_by(self, wanted: Mapping[bool, Sequence[Pair]]) -> dict[bool, Amount]:
        """What the rollouts of a round take, which are all under way at once."""
        spawn = self._runs[False].loop.spawn
        begun = {d: spawn(self._measured[d].run(pairs)) for d, pairs in wanted.items()}
        return {has_demos: await taken for has_demos, taken in begun.items()}

    def _n_left(self) -> int | None:
        """How many rollouts the budget pays for; None: it sets no limit."""
        each = self._account.reserve(1)
        n, _ = self._account.n_fitting(each, each * self._n_kept)
        ledger = self._runs[False].ledger
        for limit, used, one in (
            (ledger.budget.max_lm_calls, ledger.n_lm_calls, each.n_lm_calls),
            (ledger.budget.max_metric_calls, ledger.n_metric_calls, each.n_metric_calls),
        ):
            if limit is not None and one > 0:
                n = min(n, math.floor((limit - used) / one) - self._n_kept)
        return None if math.isinf(n) else max(0, int(n))

    def _choice(self, candidates: Sequence[Candidate], race: Race) -> Choice:
        scores, n = self._scores, race.n_measured(self._scores)
        best = race.winner(scores)
        measured = [c for c in range(len(candidates)) if (c, 0) in scores]
        of_each = {c: [scores[c, i] for i in range(n) if (c, i) in scores] for c in measured}
        finalists = tuple(
            Finalist(
                ids=tuple(experience.id for experience in candidates[c].library),
                has_demos=candidates[c].has_demos,
                score=summary_of(of_each[c]),
                chance=race.chance(c, 0, scores),
                is_best=c == best,
            )
            for c in measured
        )
        chosen = candidates[best]
        return Choice(
            run=self._runs[chosen.has_demos],
            library=chosen.library,
            demos=self._demos if chosen.has_demos else (),
            before=of_each.get(0, []),
            after=of_each.get(best, []),
            finalists=finalists,
            demo_trial=self._demo_trial(candidates, of_each, race, best),
        )

    def _demo_trial(
        self,
        candidates: Sequence[Candidate],
        of_each: dict[int, list[float | None]],
        race: Race,
        best: int,
    ) -> DemoTrial | None:
        """What demos gain on the same library without: the result's, else the first one's."""
        tried = [
            (c, candidates.index(replace(candidates[c], has_demos=False)))
            for c in of_each
            if candidates[c].has_demos
        ]
        tried = [(c, bare) for c, bare in tried if bare in of_each]
        if not tried:
            return None
        c, bare = next((pair for pair in tried if pair[0] == best), tried[0])
        return DemoTrial(
            n=len(self._demos),
            gain=gain_between(of_each[bare], of_each[c]),
            chance=race.chance(c, bare, self._scores),
            is_kept=candidates[best].has_demos,
        )


def _race(candidates: Sequence[Candidate], decision: Decision, n_examples: int) -> Race:
    sd = decision.score_sd or 1.0
    parts = {name: (0.0, sd) for candidate in candidates for name in candidate.parts()}
    parts[DEMOS] = (DEMOS_MEAN * sd, DEMOS_SD * sd)
    for advice, belief in decision.beliefs.items():
        parts["\x00".join(advice)] = (belief.mean, belief.sd)
    return Race(tuple(c.parts() for c in candidates), parts, sd, n_examples)


def with_prices(library: ExperienceLibrary) -> ExperienceLibrary:
    """The library with the tokens that each experience adds to a call, estimated from its line."""
    return library.annotated(
        {e.id: {"price": estimate_tokens(f"[{e.id}*] {e.text}\n")} for e in library}
    )
