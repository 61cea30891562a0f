"""Briefs: the reflection LM writes the instructions of the predictors anew, as one text each.

The first ones come from labelled examples, beside the first batch. Later ones revise the brief that
leads, or the student's own instructions: several failures in one call, and a few successes.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from tfgrpo_dspy.calls import Calls
from tfgrpo_dspy.calls.reflections import ReflectionClient
from tfgrpo_dspy.experience import bare_instructions
from tfgrpo_dspy.gate.bayesian import BRIEF_ABOVE
from tfgrpo_dspy.gate.protocol import Decision
from tfgrpo_dspy.reflection import modules as texts
from tfgrpo_dspy.reflection.lessons import Lesson
from tfgrpo_dspy.reflection.modules import Answer
from tfgrpo_dspy.rollout import Rollout
from tfgrpo_dspy.run.updates import Batch, Brief, Update
from tfgrpo_dspy.sampling.examples import SampledGroup
from tfgrpo_dspy.settings import EXAMPLES_OF_BRIEF, RunInputs
from tfgrpo_dspy.text import cleaned_text, n_words
from tfgrpo_dspy.user_code import named_predictors

MOST_WORDS = 2_000  # of a brief
FAILURES, SUCCESSES, EXAMPLES_OF_REVISION, LEAST_FAILURES = 8, 3, 10, 2
"""In the prompt of a revision: attempts and labelled examples at most, and failures at least."""
MOST_IN_VAIN = 5  # briefs of which none is surely better than the student's own instructions
LEAST_TRIED = 8  # rollouts of each brief: before that, no other one is written


class Briefer:
    """Asks for the briefs of one run."""

    def __init__(self, inputs: RunInputs, client: ReflectionClient, calls: Calls) -> None:
        self._inputs, self._settings = inputs, inputs.settings
        self._client, self._calls = client, calls
        self._own = {name: bare_instructions(p) for name, p in named_predictors(inputs.student)}

    def first(self, batch: Batch) -> list[Brief]:
        """The briefs from labelled examples: none, or as many as the budget tests."""

        def begun(number: int) -> Callable[[], tuple[tuple[str, str], ...]]:
            shown = {"examples": self._labelled(number, EXAMPLES_OF_BRIEF)}
            return self._begun(batch, number, self._own, shown)

        n = self._settings.n_briefs if self._labelled(0, 1) else 0
        briefs = [Brief(begun(0)())] if n else []
        if any(brief.texts for brief in briefs):  # one that cannot write is not asked for more
            briefs += [Brief(wait()) for wait in [begun(number) for number in range(1, n)]]
        return briefs

    def _labelled(self, number: int, most: int) -> list[str]:
        """Training examples with their labels, drawn by the number of a brief."""
        examples, may_show = self._inputs.examples, self._settings.reflection.use_labels
        labelled = [k for k in self._inputs.training if may_show and examples[k].labels]
        mixed = random.Random(f"{self._settings.seed}/briefs/{number}")
        drawn = mixed.sample(labelled, min(len(labelled), most))
        return [f"{examples[k].text}\nLabels:\n{examples[k].labels_text}" for k in drawn]

    def revisions(
        self,
        batch: Batch,
        before: Update,
        groups: Sequence[SampledGroup],
        dropped: Sequence[Lesson],
    ) -> Callable[[], tuple[Brief, ...]]:
        """Ask for a revision of what leads before this batch, whose groups show failures of it.

        What is given waits for it.
        """
        beliefs = before.decision.briefs
        are_tried = all(belief.n_rollouts >= LEAST_TRIED for belief in beliefs)
        if not (self._settings.n_briefs and before.may_brief and are_tried):
            return tuple
        lead = leading(before.decision)
        is_sure = lead and beliefs[lead - 1].chance >= BRIEF_ABOVE
        if not is_sure and len(beliefs) >= MOST_IN_VAIN:
            return tuple
        every = [*_attempts(reversed(groups), lead), *_attempts(reversed(before.groups), lead)]
        scores = before.score_range.including(r.score for _, r in every)
        enough = scores.highest - scores.least_contrast
        failures = [(s, r) for s, r in every if (r.score or 0.0) < enough]
        n_new = sum(any(s is group for group in groups) for s, _ in failures)
        if scores.is_flat or len(failures) < LEAST_FAILURES or not n_new:
            return tuple
        successes = [(s, r) for s, r in every if (r.score or 0.0) >= enough]
        shown = [*failures[:FAILURES], *successes[:SUCCESSES]]
        present = self._own | (dict(before.briefs[lead - 1].texts) if lead else {})
        advice = [texts.library_text(before.decision.library)]
        advice += ["Tried and dropped:\n" + texts.dropped_text(dropped)] if dropped else []
        attempts = [self._attempt_text(sampled, rollout) for sampled, rollout in shown]
        examples = self._labelled(len(before.briefs), EXAMPLES_OF_REVISION)
        inputs = {"attempts": attempts, "experiences": ["\n\n".join(advice)], "examples": examples}
        written = self._begun(batch, 0, present, inputs)
        return lambda: (Brief(written(), parent=lead),)

    def _attempt_text(self, sampled: SampledGroup, rollout: Rollout) -> str:
        example = self._inputs.examples[rollout.example]
        labels = example.labels_text if self._settings.reflection.use_labels else texts.HIDDEN
        had = ", ".join(sampled.additions_of(rollout).parts)
        return (
            f"Score {rollout.score:.3g}{had and f', with {had}'}\n{example.text}\n"
            f"Expected: {labels or texts.UNKNOWN}\n{texts.attempt_text(rollout)}"
        )

    def _begun(
        self, batch: Batch, number: int, present: dict[str, str], shown: dict[str, list[str]]
    ) -> Callable[[], tuple[tuple[str, str], ...]]:
        """Ask for a text for each predictor; what is given waits for those that are usable."""
        max_tokens = getattr(self._settings.reflection.brief, "shown_tokens", 12_000)

        def inputs(name: str, halving: int) -> dict[str, Any]:
            names = ("examples", "experiences", "attempts")
            parts = {(k, n): text for k in names for n, text in enumerate(shown.get(k, []))}
            cut = texts.shorter(parts, max_tokens >> halving)
            fields = {k: [text for (of, _), text in cut.items() if of == k] for k in names}
            shown_by_name = {k: texts.by_example(each) or "(none)" for k, each in fields.items()}
            return {"predictor": name, "present": present[name], **shown_by_name}

        asked = {
            name: self._client.begin("brief", batch, number, partial(inputs, name), index)
            for index, name in enumerate(present)
        }

        def written() -> tuple[tuple[str, str], ...]:
            texts_ = {name: self._usable(wait()) for name, wait in asked.items()}
            new = {name: text for name, text in texts_.items() if text != present[name].strip()}
            others = {name: text for name, text in present.items() if text != self._own[name]}
            return (
                tuple((others | {k: v for k, v in new.items() if v}).items())
                if any(new.values())
                else ()
            )

        return written

    def _usable(self, answer: Answer) -> str:
        """The text of an answer; "": it is too long."""
        text = cleaned_text(str(answer.output or "")).strip()
        if n_words(text) <= MOST_WORDS:
            return text
        why = f"it has {n_words(text)} words, of at most {MOST_WORDS}"
        self._calls.report.count_failure("brief refused", f"{why}: {text}")
        return ""


def leading(decision: Decision) -> int:
    """The brief with the highest expected score, from 1; 0: the student's own instructions.

    One that was hardly tried does not lead.
    """
    means = [0.0, *(b.mean * (b.n_rollouts >= LEAST_TRIED) for b in decision.briefs)]
    return means.index(max(means))


def _attempts(groups: Iterator[SampledGroup], brief: int) -> Iterator[tuple[SampledGroup, Rollout]]:
    """The worst scored attempt with this brief of each group, those with aid left out."""
    for sampled in groups:
        scored = [r for r in sampled.unaided.rollouts if r.score is not None]
        attempts = [r for r in scored if sampled.additions_of(r).brief == brief]
        if attempts:
            yield sampled, min(attempts, key=lambda rollout: rollout.score or 0.0)
