"""The account of a run: costs, failures, updates, why nothing was learned; a bar; rows of tables.

A run tells its report what happens, and asks it for nothing but the results. The bar is tqdm's:
refreshed on a terminal every second, elsewhere once a minute. A row is a dict by the names of
columns, ready for JSON.
"""

import contextlib
import logging
import math
import re
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from tfgrpo_dspy import results as records
from tfgrpo_dspy.budget import USAGE, Entry, Ledger
from tfgrpo_dspy.errors import described
from tfgrpo_dspy.events import BudgetUsed, Event, ExperienceChanged, UpdateDecided
from tfgrpo_dspy.experience import Add, Advice, Applied, ExperienceLibrary, Modify, Operation
from tfgrpo_dspy.gate.bayesian import Decision
from tfgrpo_dspy.reflection.lessons import TOO_MANY, Lesson
from tfgrpo_dspy.reflection.modules import FILTERED, Answer, clip
from tfgrpo_dspy.results import REFLECTIONS, RunResults
from tfgrpo_dspy.rollout import Group, Rollout, Usage, fields_text
from tfgrpo_dspy.sampling.examples import Additions, Example, SampledGroup
from tfgrpo_dspy.settings import RunSettings
from tfgrpo_dspy.settings.preparation import plan_of
from tfgrpo_dspy.store import Journal
from tfgrpo_dspy.text import WORD, cleaned, counted, printable, shortened

logger = logging.getLogger(__name__)

ROLES = ("rollout", "validation", "test", *REFLECTIONS, "metric")
"""The purposes of LM calls: training rollouts, the final choice, the test set, reflections,
judges inside metrics."""
PHASES = {"rollout": "training", "validation": "final choice", "test": "test set"}
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
    """Counts while the run goes on, in a log and a progress bar; `results` at its end.

    The bar shows the phase, its rollouts, LM calls of the budget, update, experiences, and dollars.
    """

    def __init__(self, settings: RunSettings, ledger: Ledger, journal: Journal) -> None:
        self._settings, self._ledger, self._entries = settings, ledger, journal.entries
        self._clean = journal.redacted  # takes secrets out of what is logged
        self._updates = list[records.UpdateRecord]()
        self.failures = Counter[str]()
        self._advice = Counter[bool | str | None]()  # whether it is shown, or NO_CALL
        self._listeners = [*filter(None, [settings.on_event]), *settings.trackers]
        self._about = "update 1"
        is_shown = settings.progress and sys.stderr is not None
        is_rewritten = is_shown and (sys.stderr.isatty() or "ipykernel" in sys.modules)
        self._open = contextlib.ExitStack()
        if is_rewritten:
            self._open.enter_context(logging_redirect_tqdm())
        self._bar = tqdm(
            total=max(1, math.ceil(plan_of(settings).total.n_rollouts)),
            desc=PHASES["rollout"],
            disable=not is_shown,
            dynamic_ncols=True,
            mininterval=1.0 if is_rewritten else 60.0,
            miniters=0,
        )
        self._open.callback(self._bar.close)
        self.tick()

    def tick(self, n: int = 0) -> None:
        """Move on by `n` rollouts, and refresh the bar, if it was not refreshed for a while."""
        taken, most = self._ledger.taken, self._settings.max_lm_calls
        dollars = f", ${taken.cost:.4f}" if taken.cost else ""
        calls = f"{taken.n_lm_calls}{'' if most is None else f'/{most}'} calls"
        self._bar.set_postfix_str(f"{calls}, {self._about}{dollars}", refresh=False)
        self._bar.update(n)

    def close(self) -> None:
        """End the bar, which is full then, though a run may need fewer rollouts than planned."""
        self._bar.n = self._bar.total = max(1, self._bar.n)
        self._bar.refresh()
        self._open.close()

    def count(self, entry: Entry) -> None:
        """Show a rollout or an answer, and count what went wrong with it."""
        result, advice = entry.value, self._advice
        if isinstance(result, Answer):
            is_filtered = result.unread == FILTERED
            unread = f"an answer of the reflection LM could not be read: {result.unread!r}"
            self.count_failure("reflection error", result.error, bool(result.error))
            self.count_failure("reflection filtered", FILTERED, is_filtered)
            self.count_failure("reflection parse", unread, result.parse_failures - is_filtered)
            return
        self._bar.set_description_str(PHASES[entry.role], refresh=False)
        self._bar.total = max(self._bar.total or 0, self._bar.n + 1)  # maybe more than was planned
        self.tick(n=1)
        if result.failure is not None:
            is_counted = result.failure.kind.is_counted
            self.count_failure(result.failure.kind.value, result.failure.message, is_counted)
        elif entry.has_advice:
            is_shown = result.shows_advice if result.usage.n_answers else NO_CALL
            advice[is_shown] += 1
            is_rule = advice[NO_CALL] >= max(UNSHOWN, advice.total() - advice[NO_CALL])
            self.count_failure("no LM call", NO_CALL, is_shown == NO_CALL and is_rule)
            is_rule = not advice[True] and advice[False] >= UNSHOWN
            self.count_failure("advice not shown", NOT_SHOWN, is_shown is False and is_rule)

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

    def add_update(self, decided: UpdateDecided) -> None:
        """Keep, log and show the record of the update; tell all listeners of it."""
        record, taken = decided.record, self._ledger.taken
        self._updates.append(record)
        for text in record.refused_lessons:
            kind = "lesson too many" if text.endswith(TOO_MANY) else "lesson refused"
            self.count_failure(kind, text)
        mean = "" if record.mean_score is None else f", mean score {record.mean_score:z.3f}"
        source = f"{counted(len(record.groups), 'example')}{mean}"
        kinds = Counter(records.CHANGES_IN_WORDS[change.kind] for change in record.changes)
        logger.info(
            "update %d (epoch %d): %s; %s; experiences: %s, %d in the library; %d LM calls so far",
            record.update + 1, record.epoch + 1,
            source if record.groups else "labelled examples",
            counted(len(record.lessons), "lesson"),
            ", ".join(f"{n} {kind}" for kind, n in kinds.items()) or "no change",
            record.library_size, record.n_lm_calls,
        )  # fmt: skip
        self._about = f"update {record.update + 1}, {counted(record.library_size, 'experience')}"
        self.tick()
        for change in record.changes:
            self.tell(ExperienceChanged(record.update, change))
        self.tell(decided)
        limits = {name: n for name, n in asdict(self._settings.budget).items() if n is not None}
        n_calls, n_scores = int(taken.n_lm_calls), int(taken.n_metric_calls)
        self.tell(BudgetUsed(n_calls, n_scores, taken.cost, self._ledger.seconds / 60, limits))

    def tell(self, event: Event) -> None:
        """Call each listener with the event; what it raises is counted, and ends nothing."""
        for listener in self._listeners:
            try:
                listener(event)
            except Exception as error:  # noqa: BLE001 - whatever a user's function raises
                name = "on_event" if listener is self._settings.on_event else "MLflow"
                self.count_failure("listener", f"{name} raised {described(error)}")

    @property
    def _usage(self) -> dict[str, Usage]:
        """The cost of all rollouts and answers, by role; that of judges has one of its own."""
        usage = dict.fromkeys(ROLES, Usage())
        for entry in self._entries:
            usage[entry.role] += entry.value.usage
            usage["metric"] += getattr(entry.value, "metric_usage", Usage())
        return usage

    def results(self, is_student: bool, ended_because: str, **fields: Any) -> RunResults:
        """The results of the run; `fields`: those of them that the final choice knows."""
        ledger = self._ledger
        why = self._why_nothing_was_learned(ended_because, **fields) if is_student else ""
        if is_student and not ledger.is_failure:
            logger.warning("nothing was learned: %s", why)
        taken, usage = ledger.taken, self._usage
        used = sum(usage.values(), Usage())
        replayed = (entry.role for entry in self._entries if entry.is_replayed)
        n_lost = max(0, int(taken.n_lm_calls) - used.n_lm_calls)
        lost = Usage(n_lost, cost_usd=max(0.0, taken.cost - used.cost_usd) if n_lost else 0.0)
        noted = (about if about == USAGE else "parameter left out" for _, about in ledger.left_out)
        failures = +self.failures | Counter(noted)
        return RunResults(
            updates=tuple(self._updates), usage={**usage, "unfinished": lost},
            metric_calls=int(taken.n_metric_calls),
            replayed=dict(sorted(Counter(replayed).items())),
            failures=dict(sorted(failures.items())),
            ended_because=ledger.stopped_because if ledger.is_failure else ended_because,
            nothing_learned=why, wall_time_s=ledger.seconds,
            settings=cleaned(self._settings.result_scalars(), self._clean) | asdict(ledger.budget),
            schedule=self._settings.schedule, **fields,
        )  # fmt: skip

    def _why_nothing_was_learned(
        self,
        ended_because: str,
        student: records.ScoreSummary | None = None,
        candidates: Sequence[records.Candidate] = (),
        **_: Any,
    ) -> str:
        updates = self._updates
        seen = [score for update in updates for score in update.scores]
        most, least = max(seen, default=math.inf), min(seen, default=math.inf)
        is_top = most > min(least, 0.0) or "the best score" in ended_because
        if student and student.mean is not None and student.mean >= most and is_top:
            return f"the student already scores {student}, and no attempt scored more"
        used = Counter(group.used_as for update in updates for group in update.groups)
        proposing = [
            u for u in updates if any(o.op != "KEEP" and not o.refused for o in u.operations)
        ]
        n_stood = sum(update.accepted for update in proposing)
        tried = {c.text for update in updates for c in update.changes if c.kind != "dropped"}
        few = "groups had fewer than two rollouts that count"
        if self._settings.data.is_recorded:
            few = "inputs have one trace, which has no feedback, and no score to learn from"
        in_vain = "lines were tried, and none beat the student"
        if len(candidates) < 2:
            in_vain = "lines were learned, and none was compared with the student"
        counts = {
            f"attempts scored {most:z.3f}, and none another score": len(seen) * (most == least),
            f"of {used.total()} groups had no contrast": used["no contrast"],
            few: used["too few rollouts"],
            "groups were not asked for lessons: enough were on trial": used["enough on trial"],
            "groups were not asked for lessons: those before gave nothing new": used[
                "no lesson of late"
            ],
            "answers were replayed from a cache": self._usage["rollout"].n_cached_calls,
            **{f"failures of kind '{kind}'": n for kind, n in sorted(self.failures.items())},
            "updates were rejected by the gate": len(proposing) - n_stood,
            in_vain: n_stood and len(tried),
            "updates brought no change that the library takes": 0 if proposing else len(updates),
        }
        reasons = []
        for what, n in counts.items():
            if n == 1:  # "updates were rejected" -> "1 update was rejected"
                what = re.sub(r"^(\w+)s\b", r"\1", what)
                what = what.replace(" were ", " was ", 1).replace(" have ", " has ", 1)
            reasons += [f"{n} {what}"] * (n > 0)
        is_spent = ended_because.startswith("max_")
        ends = self._ledger.stopped_because or self._ledger.cut_because
        if ends or is_spent or not reasons:  # without a reason it ended before there was one
            is_one = sum(bool(u.groups) for u in updates) == 1 and (is_spent or not ends)
            after = " after one update; a larger budget has more" if is_one else ""
            reasons.insert(0, f"the run ended: {ended_because}{after}")
        return "; ".join(reasons)


CELL_BYTES = 300  # of a text in an `ExampleRow`
MOST_COMPARISONS = 2  # of a text
INPUT_BYTES, OUTPUT_TOKENS, FEEDBACK_BYTES = 210, 150, 210  # how long a comparison shows them
MANY_REFUSED = 0.8  # of the prompts with an advice, for it to be named as the reason
PUNCTUATION = ".,;:!?()\"'"
Measured = Mapping[int, tuple[Rollout, float | None]]
"""By example: a rollout, and the score that it counts with."""


class Changes:
    """Finds the changes of each update; `texts` are the training examples as text."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = tuple(texts)
        self._shown, self._refused = Counter[Advice](), Counter[Advice]()
        """The numbers of rollouts that had an advice, and of those whose prompt was refused."""
        self._comparisons: dict[Advice, tuple[records.Comparison, ...]] = {}
        """By text and scope: a modified text may become that of an experience updates later."""

    def of_update(
        self,
        before: ExperienceLibrary,
        proposed: Applied,
        groups: Sequence[SampledGroup],
        lessons: Sequence[Lesson],
        decision: Decision,
    ) -> tuple[records.Change, ...]:
        """The changes by the decision on the lessons of these groups, by id."""
        self._count_prompts(groups)
        compared, after = self.compared(proposed.operations, groups, lessons), decision.library
        taken = {each.advice for each in after}  # under an id of the gate's, which may be another
        gone: dict[str, Advice] = {}  # what was added and at once refused by the gate, or has left
        for (id_, operation), comparisons in zip(proposed.accepted, compared, strict=True):
            if isinstance(operation, Add | Modify):
                advice = proposed.library[id_].advice
                self._comparisons[advice] = comparisons
                if isinstance(operation, Add) and advice not in taken:
                    gone[id_] = advice
        old_of, changes = {each.id: each for each in before}, list[records.Change]()
        for new in after:
            old, line = old_of.get(new.id), (new.id, new.text, new.scope, "", new.effect)
            if old is None or old.advice != new.advice:
                seen = self._comparisons.get(new.advice, ())
                changes.append(records.Change("changed" if old else "born", *line, seen))
            if not new.is_on_trial and (old is None or old.is_on_trial) and new.effect:
                changes.append(records.Change("settled", *line))
        rivals = {rival.advice for rival in decision.rivals.values()}
        gone |= {each.id: each.advice for each in before}
        for id_, advice in gone.items():
            if id_ in after or advice in rivals:
                continue
            if id_ not in before:
                seen = self._comparisons.get(advice, ())
                changes.append(records.Change("born", id_, *advice, comparisons=seen))
            reason = decision.dropped.get(id_, "the reflection LM deleted it")
            n, n_shown = self._refused[advice], self._shown[advice]
            if n >= MANY_REFUSED * n_shown > 0:
                reason = f"the provider refused {n} of {n_shown} prompts with it; {reason}"
            changes.append(records.Change("dropped", id_, *advice, reason))
        return tuple(changes)

    def _count_prompts(self, groups: Sequence[SampledGroup]) -> None:
        for sampled in groups:
            for one, rollout in zip(sampled.additions, sampled.group.all_rollouts, strict=True):
                failure, advices = rollout.failure, [each.advice for each in one.library]
                is_refused = failure is not None and failure.refuses_prompt
                self._refused.update(advices if is_refused else ())
                is_lost = failure is not None and failure.kind == "provider" and not is_refused
                self._shown.update(() if is_lost else advices)

    def compared(
        self,
        operations: Sequence[Operation],
        groups: Sequence[SampledGroup],
        lessons: Sequence[Lesson],
    ) -> tuple[tuple[records.Comparison, ...], ...]:
        """For each operation, the first groups of this update that it rests on.

        Of those that its evidence names these are the ones whose examples share the most words with
        its text, but for words that all of them have; those with contrast stand first.
        """
        group_of = {sampled.group.example: sampled.group for sampled in groups}
        compared = []
        for operation in operations:
            sources = [one for one in operation.evidence if one.example in group_of]
            if len(sources) > 1:
                words = [_words(self._texts[one.example]) for one in sources]
                special = _words(getattr(operation, "text", "")) - words[0].intersection(*words)
                counts = [len(special & of_one) for of_one in words]
                about = zip(sources, counts, strict=True)
                sources = [one for one, n in about if 2 * n >= max(counts)]
            sources.sort(key=lambda source: len({*source.scores}) < 2)
            shown = []
            for source in sources[:MOST_COMPARISONS]:
                why = next((each.reason for each in lessons if source in each.evidence), "")
                shown.append(self._comparison(group_of[source.example], why))
            compared.append(tuple(shown))
        return tuple(compared)

    def _comparison(self, group: Group, advantage: str) -> records.Comparison:
        def rank(rollout: Rollout, sign: int) -> tuple[float, bool]:
            return sign * (rollout.score or 0.0), any(v is not None for v in rollout.values)

        best = max(group.rollouts, key=lambda rollout: rank(rollout, 1))
        worst = max(reversed(group.rollouts), key=lambda rollout: rank(rollout, -1))
        inputs = shortened(self._texts[group.example], INPUT_BYTES)
        return records.Comparison(group.example, inputs, _summary(best), _summary(worst), advantage)


def _words(text: str) -> set[str]:
    return {match[0].strip(PUNCTUATION) for match in WORD.finditer(text.casefold())}


def _summary(rollout: Rollout) -> records.RolloutSummary:
    names = ["start", *(f"{n}. {step.name}" for n, step in enumerate(rollout.steps, start=1))]
    values = zip(names, rollout.values, strict=True)
    return records.RolloutSummary(
        outputs=clip(_outputs(rollout), OUTPUT_TOKENS),
        score=rollout.score,
        feedback=shortened(rollout.words, FEEDBACK_BYTES),
        values=tuple((name, value) for name, value in values if value is not None),
        measure=rollout.measure,
    )


def _outputs(rollout: Rollout | None) -> str:
    if rollout is None:
        return ""
    return fields_text(rollout.outputs) or (rollout.failure.message if rollout.failure else "")


def training_rows(update: int, groups: Iterable[SampledGroup]) -> tuple[records.Row, ...]:
    """The rollouts of an update, with the scores of the metric."""
    rows = []
    for one in groups:
        rollouts = (one.measured or one.group).all_rollouts
        for rollout, additions, aid in zip(rollouts, one.additions, one.aids, strict=True):
            rows.append(rollout_row(rollout, "training", additions, update, aid))
    return tuple(rows)


def rollout_row(
    rollout: Rollout, set: str, additions: Additions, update: int | None = None, aid: str = ""
) -> records.Row:
    """The row of a rollout on an example of this set, with the help (`aid`) that it had."""
    failure = rollout.failure
    return {
        "set": set,  # "training", "validation" or "test"
        "update": update,  # from 0; None outside training
        "example": rollout.example,  # the position in its set
        "rollout_id": rollout.rollout_id,
        "score": rollout.score,
        "outputs": fields_text(rollout.outputs),
        "feedback": rollout.words,
        "failure": f"{failure.kind}: {failure.message}" if failure else "",
        "experiences": " ".join(experience.id for experience in additions.library),
        "n_demos": len(additions.demos),
        "aid": aid,  # a hint, a teacher, a start from another rollout
        "n_lm_calls": rollout.usage.n_lm_calls,
        "n_tokens": rollout.usage.n_tokens,
        "dollars": rollout.usage.cost_usd,
        "objectives": dict(rollout.objectives),
    }


def example_rows(
    set: str, examples: Sequence[Example], student: Measured, result: Measured
) -> list[records.ExampleRow]:
    """A row for each example that both, or one of them, were measured on."""
    rows = []
    for example in sorted({*student, *result}):
        (before, old), (after, new) = (of.get(example, (None, None)) for of in (student, result))
        gave, words = [_outputs(one) for one in (before, after)], after.words if after else ""
        texts = (examples[example].text, *gave, words)
        inputs, *others = [shortened(text, CELL_BYTES) for text in texts]
        rows.append(records.ExampleRow(set, example, inputs, old, new, *others))
    return rows


def worst_first(rows: Iterable[records.ExampleRow]) -> tuple[records.ExampleRow, ...]:
    """First the examples that the result has no score on, then those with its lowest scores."""

    def place(row: records.ExampleRow) -> tuple[bool, float, float]:
        result = row.result or 0.0
        return row.result is not None, result, result - (row.student or 0.0)

    return tuple(sorted(rows, key=place))


def objective_means(values: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each objective, over those that have it."""
    columns = [*values]
    names = dict.fromkeys(name for of_one in columns for name in of_one)
    return {n: statistics.fmean(of_one[n] for of_one in columns if n in of_one) for n in names}


def as_columns(rows: Iterable[Any]) -> list[records.Row]:
    """The rows as dicts that all have the same keys; an objective is a column `objective NAME`."""
    plain = [dict(row) if isinstance(row, Mapping) else asdict(row) for row in rows]
    names = dict.fromkeys(name for row in plain for name in row.get("objectives", ()))
    for row in plain:
        objectives = row.pop("objectives", {})
        row.update({f"objective {name}": objectives.get(name) for name in names})
    return plain
