"""How many more updates a limited budget has room for, at the pace of those before."""

from tfgrpo_dspy.pipeline.batches import TEACHING, Batch
from tfgrpo_dspy.pipeline.shares import VALIDATION_SHARE, used_up
from tfgrpo_dspy.rollout import Usage
from tfgrpo_dspy.settings import Settings


class Pace:
    """What the updates of one run have used of its budget.

    It takes nothing into account that depends on timing, so that a run that is repeated decides
    the same: neither what is in flight, nor what reflection really took, of which a part may be the
    next batch's; a call for each group that was reflected on, and for the update, stands for it.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._n_updates = 0
        self._training = Usage()
        self._n_training = 0
        self._before: float | None = None
        self._used = 0.0

    def note(self, batch: Batch, n_trials: int, trials: Usage) -> None:
        """An update is about to be decided; so many trials, at this price, were made so far.

        At the first update these are the student's measurement, which does not come again.
        """
        rollouts = [rollout for group in batch.groups for rollout in group.all_rollouts]
        n_reflections = sum(use in TEACHING for use in batch.uses) + bool(batch.lessons)
        self._training += sum((own.usage for own in rollouts), Usage(n_lm_calls=n_reflections))
        self._n_training += len(rollouts)
        self._n_updates += 1
        if self._before is None:
            self._before = used_up(self._settings, trials, n_trials)
        total = self._training + trials
        self._used = used_up(self._settings, total, self._n_training + n_trials)

    def n_updates_left(self, most: int) -> int:
        """How many updates are to come: so many, or as many as the budget has room for."""
        of_updates = self._used - (self._before or 0.0)
        if of_updates <= 0:
            return most
        left = 1 - VALIDATION_SHARE - self._used  # at the end the result is measured
        return max(0, min(most, int(left / of_updates * self._n_updates)))
