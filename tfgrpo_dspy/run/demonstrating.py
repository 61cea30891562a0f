"""The best training rollouts, as demos of the result: they are paid for already."""

import logging
import statistics
from collections.abc import Sequence
from typing import Any

from tfgrpo_dspy.rollout import Group, Rollout
from tfgrpo_dspy.sampling import Demo, demos_of

logger = logging.getLogger(__name__)


class Demonstrator:
    """Keeps the rollout of each training example that scored best; of several the latest.

    The latest was made with what had been learned by then. Examples that are validated on too are
    left out: their answers would be shown.

    Args:
        student: its predictors show the demos.
        trainset: all examples that groups are of.
        valset: the validation set.
        most: how many rollouts may be shown.
    """

    def __init__(
        self, student: Any, trainset: Sequence[Any], valset: Sequence[Any], most: int
    ) -> None:
        self._student = student
        self._trainset = trainset
        self._valset = valset
        self._most = most
        self._scores: list[float] = []
        self._best: dict[int, Rollout] = {}

    def see(self, groups: Sequence[Group]) -> None:
        """Look at the groups of an update that is decided."""
        if not self._most:
            return
        for group in groups:
            self._scores += group.scores
            for rollout in group.rollouts:
                if rollout.failure is None and rollout.score is not None:
                    self._keep(rollout, rollout.score)

    def _keep(self, rollout: Rollout, score: float) -> None:
        known = self._best.get(rollout.example)
        if known is None or known.score is None or score >= known.score:
            self._best.pop(rollout.example, None)  # the latest stands last
            self._best[rollout.example] = rollout

    def demos(self) -> tuple[Demo, ...]:
        """Those of the best rollouts that score above the mean of all, the best first."""
        if not self._scores:
            return ()
        mean = statistics.fmean(self._scores)
        latest = reversed(self._best.values())
        good = [rollout for rollout in latest if rollout.score is not None and rollout.score > mean]
        good.sort(key=lambda rollout: rollout.score or 0.0, reverse=True)
        found: list[Demo] = []
        n_shown = n_unusable = 0
        for rollout in good:
            if n_shown == self._most:
                break
            if self._trainset[rollout.example] in self._valset:
                continue
            demos = demos_of(rollout, self._student)
            n_shown += bool(demos)
            n_unusable += not demos
            found.extend(demos)
        if n_unusable:
            logger.info(
                "%d good rollouts cannot be shown as demos: fields are missing, or of types that "
                "their text does not give back",
                n_unusable,
            )
        return tuple(found)
