"""A gate for one thing at a time: incumbent against candidates on the same examples."""

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tfgrpo_dspy.experience import ExperienceLibrary, Keep
from tfgrpo_dspy.gate.protocol import Decision, TrialEvidence, Trials


@dataclass(frozen=True, slots=True)
class PairedGate:
    """The update stays if its mean gain on the whole validation set is above its standard error.

    Gains are measured pair by pair: the same examples, the same rollout ids. Ties and losses keep
    the incumbent, and so do gains too small to be told from noise: accepting whatever is higher
    takes in nearly every second useless lesson. Of an update of several operations, each alone is a
    candidate besides all together: a good line can be buried by bad ones. Candidates are raced:
    all are tried on `screen` examples, the better half (by mean gain) on twice as many, and so on
    to the whole set; one that lies behind the incumbent by more than a standard error is out.

    Args:
        screen: how many examples the first round takes.
        max_singles: how many operations are candidates alone, those with the most evidence; 0:
            only all together.
        min_errors: by how many of its standard errors the mean gain must lie above 0; with 0,
            any mean gain above 0 is enough.
        metric: scores the trials in place of the optimizer's metric.
    """

    screen: int = 10
    max_singles: int = 8
    min_errors: float = 1.0
    metric: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if self.screen < 1:
            raise ValueError(f"screen={self.screen}: the first round takes at least 1 example.")
        if self.max_singles < 0:
            raise ValueError(f"max_singles={self.max_singles}: pass 0 or more.")
        if not 0 <= self.min_errors < math.inf:
            raise ValueError(f"min_errors={self.min_errors}: pass 0 or more, 1.0 by default.")

    def next(self, evidence: TrialEvidence) -> Trials | Decision:
        """The next round's trials, or the decision."""
        order = list(range(evidence.n_examples))
        random.Random(f"gate/{evidence.update}").shuffle(order)
        racing = self._candidates(evidence)
        n_shown = min(self.screen, len(order))
        while True:
            examples = order[:n_shown]
            missing = [lib for lib in racing if not evidence.has_tried(lib, examples)]
            if missing or not evidence.has_tried(evidence.incumbent, examples):
                return Trials.of((evidence.incumbent, *racing), examples)
            racing = self._ahead(racing, evidence, examples)
            if not racing:
                return Decision(evidence.incumbent, f"behind after {n_shown} examples")
            if n_shown == len(order):
                return self._final(racing[0], evidence, examples)
            n_shown = min(2 * n_shown, len(order))

    def most_trials(self, n_examples: int) -> int:
        """How many rollouts the decision on one update takes at most, the incumbent's included."""
        racing, n_shown, n_trials = 1 + self.max_singles, min(self.screen, n_examples), 0
        tried = 0
        while True:
            n_trials += (racing + 1) * (n_shown - tried)
            if n_shown >= n_examples:
                return n_trials
            racing, tried, n_shown = math.ceil(racing / 2), n_shown, min(2 * n_shown, n_examples)

    def _candidates(self, evidence: TrialEvidence) -> list[ExperienceLibrary]:
        keeps = [op for op in evidence.operations if isinstance(op, Keep)]
        changes = [op for op in evidence.operations if not isinstance(op, Keep)]
        candidates = [evidence.proposed]
        if len(changes) > 1:
            changes.sort(key=lambda operation: -len(operation.evidence))
            candidates += [
                evidence.incumbent.apply([*keeps, operation], evidence.limits)
                for operation in changes[: self.max_singles]
            ]
        return [lib for lib in dict.fromkeys(candidates) if lib != evidence.incumbent]

    def _ahead(
        self, racing: list[ExperienceLibrary], evidence: TrialEvidence, examples: list[int]
    ) -> list[ExperienceLibrary]:
        """The better half of those that are not clearly behind, the best first."""
        gains = {library: evidence.gains(library, examples) for library in racing}
        alive = [library for library in racing if not _is_behind(gains[library])]
        alive.sort(key=lambda library: -statistics.fmean(gains[library]))
        return alive[: math.ceil(len(racing) / 2)]

    def _final(
        self, winner: ExperienceLibrary, evidence: TrialEvidence, examples: list[int]
    ) -> Decision:
        gains = evidence.gains(winner, examples)
        gain, error = statistics.fmean(gains), _standard_error(gains)
        measured = f"{gain:+.3f} (standard error {error:.3f}) on {len(gains)} validation examples"
        if gain > 0 and gain > self.min_errors * error:
            return Decision(winner, measured)
        return Decision(evidence.incumbent, measured)


def _is_behind(gains: Sequence[float]) -> bool:
    """Nothing was measured, or the mean gain is below 0 by more than a standard error."""
    if not gains:
        return True
    return statistics.fmean(gains) + _standard_error(gains) < 0


def _standard_error(gains: Sequence[float]) -> float:
    return statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
