"""The account of a run: costs, failures, updates, and why nothing was learned.

A run tells its report what happens, and asks it for nothing but the results.
"""

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partialmethod
from typing import Any

from tfgrpo_dspy.budget.ledger import Ledger
from tfgrpo_dspy.errors import described
from tfgrpo_dspy.events import BudgetUsed, Event, ExperienceChanged, UpdateDecided
from tfgrpo_dspy.listeners.progress import Progress
from tfgrpo_dspy.outside import printable
from tfgrpo_dspy.redaction import cleaned
from tfgrpo_dspy.reflection.answer import Answer
from tfgrpo_dspy.reflection.lessons import TOO_MANY
from tfgrpo_dspy.results import REFLECTIONS, RunResults
from tfgrpo_dspy.results.records import Candidate, ScoreSummary, UpdateRecord
from tfgrpo_dspy.rollout import Rollout, Usage
from tfgrpo_dspy.settings.schedule import RunSettings
from tfgrpo_dspy.wording import counted, shortened

logger = logging.getLogger(__name__)

ROLES = ("rollout", "validation", "test", *REFLECTIONS, "metric")
"""The purposes of LM calls: training rollouts, the final choice, the test set, reflections,
judges inside metrics."""
UNSHOWN = 5  # rollouts with experiences, none of which had them in a prompt, before that is said
NOT_SHOWN = (
    "no prompt held the experiences that the program was given, so it cannot learn. Call the "
    "predictors that are attributes of the program, without `signature=`, and set no instructions "
    "in `forward`. Call none that `forward` makes, and none through a function that was made of "
    "them before, as by dspy.asyncify(self.ask), dspy.streamify or KNNFewShot: the program is "
    "copied for each rollout, and such a function calls the predictor of the original."
)
NO_CALL = (
    "no LM call of the program is seen. What it keeps of earlier answers, or says without an LM, "
    "teaches nothing; calls in threads that it starts, or past DSPy, are neither counted nor "
    "limited. Keep no answers between calls, and use dspy.Parallel for threads."
)
NO_OUTPUT = (
    "the program returned nothing (None, or a prediction without fields), and no score differs. "
    "Let `forward` return what the metric looks at, such as dspy.Prediction(answer=...)."
)
LOGGED_BYTES = 500  # of a failure, whose message may quote a whole answer of an LM


class RunReport:
    """Counts while the run goes on, in a log and a progress bar; `results` at its end."""

    def __init__(
        self, settings: RunSettings, ledger: Ledger, clean: Callable[[str], str] = str
    ) -> None:
        """`clean` takes secrets out of what is logged."""
        self._updates: list[UpdateRecord] = []
        self.failures: Counter[str] = Counter()
        self._usage = {role: Usage() for role in ROLES}
        self._replayed: Counter[str] = Counter()
        self._advice: Counter[bool | str | None] = Counter()  # whether it is shown, or NO_CALL
        self.progress = Progress(settings, ledger)
        self._settings = settings
        self._ledger = ledger
        self._clean = clean
        self._listeners = [*filter(None, [settings.on_event]), *settings.trackers]

    def count(self, role: str, result: Any, is_replayed: bool) -> None:
        """Count what a rollout or an answer has cost, and what went wrong with it."""
        self._usage[role] += result.usage
        self._replayed[role] += is_replayed
        if isinstance(result, Answer):
            self.count_failure("reflection error", result.error, bool(result.error))
            message = f"an answer of the reflection LM could not be read: {result.unread!r}"
            self.count_failure("reflection parse", message, result.parse_failures)
            return
        self._usage["metric"] += result.metric_usage
        self.progress.show_rollout(role)
        if result.failure is not None and result.failure.kind.is_counted:
            self.count_failure(result.failure.kind.value, result.failure.message)

    def count_advice(self, rollout: Rollout) -> None:
        """Count whether a rollout with experiences called an LM, and showed them to it."""
        is_shown = rollout.shows_advice if rollout.usage.n_answers else NO_CALL
        counts = self._advice
        counts[is_shown] += 1
        if is_shown == NO_CALL:
            n_calling = counts.total() - counts[NO_CALL]
            is_rule = counts[NO_CALL] >= max(UNSHOWN, n_calling)
            self.count_failure("no LM call", NO_CALL, is_rule)
        elif is_shown is False:
            is_rule = not counts[True] and counts[False] >= UNSHOWN
            self.count_failure("advice not shown", NOT_SHOWN, is_rule)

    def count_without_output(self, first: Sequence[Rollout]) -> None:
        """Count the first rollouts that did not fail if none has an output, nor another score."""
        done = [rollout for rollout in first if rollout.failure is None]
        differ = any(each.outputs for each in done) or len({each.score for each in done}) > 1
        self.count_failure("no output", NO_OUTPUT, 0 if differ else len(done))

    def count_failure(self, kind: str, message: str, times: int = 1) -> None:
        """Count a failure; the first of its kind is logged."""
        if times and not self.failures[kind]:
            shown = shortened(printable(self._clean(message)), LOGGED_BYTES)
            logger.warning("first failure of kind %r: %s", kind, shown)
        self.failures[kind] += times

    unknown_scope = partialmethod(count_failure, "unknown scope")

    def add_update(self, decided: UpdateDecided) -> None:
        """Keep, log and show the record of the update; tell all listeners of it."""
        record = decided.record
        self._updates.append(record)
        for text in record.refused_lessons:
            kind = "lesson too many" if text.endswith(TOO_MANY) else "lesson refused"
            self.count_failure(kind, text)
        logger.info("%s", in_words(record))
        self.progress.show_update(record)
        for change in record.changes:
            self.tell(ExperienceChanged(record.update, change))
        self.tell(decided)
        ledger, limits = self._ledger, asdict(self._settings.budget)
        self.tell(
            BudgetUsed(
                n_lm_calls=ledger.n_lm_calls,
                n_metric_calls=ledger.n_metric_calls_made,
                cost_usd=ledger.cost,
                minutes=ledger.seconds / 60,
                limits={name: value for name, value in limits.items() if value is not None},
            )
        )

    def tell(self, event: Event) -> None:
        """Call each listener with the event; what it raises is counted, and ends nothing."""
        for listener in self._listeners:
            try:
                listener(event)
            except Exception as error:  # noqa: BLE001 - whatever a user's function raises
                name = "on_event" if listener is self._settings.on_event else "MLflow"
                self.count_failure("listener", f"{name} raised {described(error)}")

    def results(self, is_student: bool, ended_because: str, **fields: Any) -> RunResults:
        """The results of the run; `fields`: those of them that the final choice knows."""
        why = self._why_nothing_was_learned(ended_because, **fields) if is_student else ""
        if is_student and not self._ledger.is_failure:
            logger.warning("nothing was learned: %s", why)
        ledger = self._ledger
        n_lost, lost = ledger.lost
        noted = {"parameter left out": len(ledger.left_out), "unseen call": ledger.n_unseen}
        return RunResults(
            updates=tuple(self._updates),
            usage={**self._usage, "unfinished": Usage(n_lost, cost_usd=lost)},
            metric_calls=ledger.n_metric_calls_made,
            replayed=dict(sorted((+self._replayed).items())),
            failures=dict(sorted((+self.failures | +Counter(noted)).items())),
            ended_because=ledger.stopped_because if ledger.is_failure else ended_because,
            nothing_learned=why,
            wall_time_s=ledger.seconds,
            settings=cleaned(self._settings.result_scalars(), self._clean) | asdict(ledger.budget),
            schedule=self._settings.schedule,
            **fields,
        )

    def _why_nothing_was_learned(
        self,
        ended_because: str,
        student: ScoreSummary | None = None,
        candidates: Sequence[Candidate] = (),
        **_: Any,
    ) -> str:
        most = max([score for update in self._updates for score in update.scores], default=math.inf)
        if student and student.mean is not None and student.mean >= most > 0.0:
            return f"the student already scores {student}, and no attempt scored more"
        used = Counter(group.used_as for update in self._updates for group in update.groups)
        stood = [
            update.accepted
            for update in self._updates
            if any(op.op != "KEEP" and not op.refused for op in update.operations)
        ]
        changes = [change for update in self._updates for change in update.changes]
        n_lines = len({change.text for change in changes if change.kind != "dropped"})
        in_vain = "lines were tried, and none beat the student"
        if len(candidates) < 2:
            in_vain = "lines were learned, and none was compared with the student"
        few = "groups had fewer than two rollouts that count"
        if self._settings.data.is_recorded:
            few = "inputs have one trace, which has no feedback, and no score to learn from"
        counts = {
            f"of {used.total()} groups had no contrast": used["no contrast"],
            few: used["too few rollouts"],
            "groups were not asked for lessons: enough were on trial": used["enough on trial"],
            "groups were not asked for lessons: those before gave nothing new": used[
                "no lesson of late"
            ],
            "answers were replayed from a cache": self._usage["rollout"].n_cached_calls,
            **{f"failures of kind '{kind}'": n for kind, n in sorted(self.failures.items())},
            "updates were rejected by the gate": len(stood) - sum(stood),
            in_vain: n_lines if any(stood) else 0,
            "updates brought no change that the library takes": 0 if stood else len(self._updates),
        }
        reasons = [_counted(n, what) for what, n in counts.items() if n]
        is_early = bool(self._ledger.stopped_because) or ended_because.startswith("max_")
        if is_early or not reasons:  # without a reason it ended before there was one
            is_one = sum(bool(update.groups) for update in self._updates) == 1
            after = " after one update; a larger budget has more" if is_one else ""
            reasons.insert(0, f"the run ended: {ended_because}{after}")
        return "; ".join(reasons)


def _counted(n: int, what: str) -> str:
    """`1, "updates were rejected" -> "1 update was rejected"`."""
    if n == 1:
        what = re.sub(r"^(\w+)s\b", r"\1", what)
        what = what.replace(" were ", " was ", 1).replace(" have ", " has ", 1)
    return f"{n} {what}"


def in_words(record: UpdateRecord) -> str:
    """The update in a line that needs no glossary."""
    mean = "" if record.mean_score is None else f", mean score {record.mean_score:z.3f}"
    source = f"{counted(len(record.groups), 'example')}{mean}"
    source = source if record.groups else "labelled examples"
    return (
        f"update {record.update + 1} (epoch {record.epoch + 1}): {source}; "
        f"{counted(len(record.lessons), 'lesson')}; experiences: "
        f"{record.changes_in_words or 'no change'}, {record.library_size} in the library; "
        f"{record.n_lm_calls} LM calls so far"
    )
