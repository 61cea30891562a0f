"""The progress bar of a run, by tqdm: on a terminal every second, elsewhere once a minute."""

import contextlib
import math
import sys
import time

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from tfgrpo_dspy.budget.ledger import Ledger
from tfgrpo_dspy.results.records import UpdateRecord
from tfgrpo_dspy.settings.plan import plan_of
from tfgrpo_dspy.settings.schedule import RunSettings
from tfgrpo_dspy.wording import counted

PHASES = {"rollout": "training", "validation": "final choice", "test": "test set"}
BAR = "{desc}, {percentage:.0f}% |{bar:10}| {elapsed}<{remaining}{postfix}"
"""The most important stands first: a narrow terminal shows the beginning."""


class Progress:
    """Shows phase, LM calls of the budget, scores, update, experiences, and dollars.

    In training there is one score: the mean of the latest update, with the advice that its rollouts
    were given. Student and best candidate are compared in the final choice, student and result on
    the test set: before, no two means are of the same examples.
    """

    def __init__(self, settings: RunSettings, ledger: Ledger) -> None:
        self._ledger, self._max_lm_calls = ledger, settings.max_lm_calls
        self._scores: dict[str, float] = {}
        self._phase, self._about = PHASES["rollout"], "update 1"
        is_shown = settings.progress and sys.stderr is not None
        is_rewritten = is_shown and (sys.stderr.isatty() or "ipykernel" in sys.modules)
        self._refresh_s, self._shown_s = 1.0 if is_rewritten else 60.0, time.monotonic()
        self._open = contextlib.ExitStack()
        if is_rewritten:
            self._open.enter_context(logging_redirect_tqdm())
        self._bar = tqdm(
            total=max(1, math.ceil(plan_of(settings).total.n_rollouts)),
            bar_format=BAR,
            desc=self._state,
            disable=not is_shown,
            dynamic_ncols=True,
            mininterval=math.inf,  # it is shown by `tick`
        )
        self._open.callback(self._bar.close)

    def show_rollout(self, role: str) -> None:
        """Move on by one rollout of this role."""
        if self._phase != PHASES[role]:  # scores of one phase are not those of another
            self._phase, self._scores = PHASES[role], {}
        self._bar.total = max(self._bar.total or 0, self._bar.n + 1)  # maybe more than was planned
        self._bar.update()
        self.tick()

    def show_update(self, record: UpdateRecord) -> None:
        """Show the scores and the size of the library after an update."""
        self._about = f"update {record.update + 1}, {counted(record.library_size, 'experience')}"
        if record.mean_score is not None:
            self._scores = {"score": record.mean_score}
        self.tick()

    def show_scores(self, **scores: float) -> None:
        """Show these mean scores, by what they are of, in place of those before."""
        self._scores = scores
        self.tick()

    def tick(self) -> None:
        """Refresh the bar, if it was not refreshed for a while."""
        if time.monotonic() - self._shown_s >= self._refresh_s:
            self._show()

    @property
    def _state(self) -> str:
        """The phase, the calls and the scores."""
        limit = "" if self._max_lm_calls is None else f"/{self._max_lm_calls}"
        scores = "".join(f", {name} {score:z.3f}" for name, score in self._scores.items())
        return f"{self._phase} {self._ledger.n_lm_calls}{limit} calls{scores}"

    def _show(self) -> None:
        self._shown_s = time.monotonic()
        dollars = f", ${self._ledger.cost:.4f}" if self._ledger.cost else ""
        self._bar.set_description_str(self._state, refresh=False)
        self._bar.set_postfix_str(f"{self._about}{dollars}")

    def close(self) -> None:
        """End the bar, which is full then, though a run may need fewer rollouts than planned."""
        self._bar.n = self._bar.total = max(1, self._bar.n)
        self._show()
        self._open.close()
