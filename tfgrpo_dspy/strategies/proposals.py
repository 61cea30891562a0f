"""Strategies that decide what lessons are drawn from, and which operations come beside them."""

import itertools
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean

import dspy

from tfgrpo_dspy.experience import Add, Experience, ExperienceLibrary, Modify
from tfgrpo_dspy.reflection.lessons import Lesson, read_lesson, sources_of
from tfgrpo_dspy.reflection.reading import read_lessons
from tfgrpo_dspy.reflection.texts import NO_EXPERIENCES, by_example
from tfgrpo_dspy.rollout import REASONING, Rollout
from tfgrpo_dspy.strategies import base
from tfgrpo_dspy.text import normalized, shortened

THOUGHTS = ("reasoning", "next_thought")
LONGEST, MOST = 200, 8  # bytes of a part that the note names, and how many it names
SHARED = (
    "These parts stand in attempts that scored higher and in attempts that scored lower alike. "
    "They did not make the difference: blame none of them, and write no lesson against them.\n"
)
N_CANDIDATES = 3  # of one answer
FEWEST_TEXTS = 2  # that came to stay: one alone has no direction
_ID = re.compile(r"\[(E[1-9]\d*)\*?\]:?")
_NAMED = re.compile(r"\W*(E[1-9]\d*)\W+(\w.*)")  # the id of an experience, and its new text
N_EXAMPLES = 6  # of the training set, in the question what matters
FIELD_BYTES = 1050  # of the inputs of each example that is shown, and of its labels
MATTERS = (
    "Somebody who has not seen the program run says what matters; heed it unless the facts differ: "
)


@base.strategy
class ConflictAware(base.Strategy):
    """Says what good and bad attempts of a group share, so that no lesson blames it.

    Above the mean of its group an attempt is good, below it bad. Parts that stand in both are in
    conflict: a step (a call of a predictor or tool with the same outputs) or, in the reasoning and
    in programs of one step, a sentence. The reflection LM reads that they did not make the
    difference; what the good attempts alone have may still be praised.
    Source: GTPO (arXiv 2508.03772).
    """

    def show(self, context: base.GroupContext, ask: base.Ask) -> base.Shown:
        rollouts = context.group.rollouts
        if not context.group.has_contrast:
            return base.Shown(rollouts)
        mean = fmean(context.group.scores)
        good = [_parts(rollout) for rollout in rollouts if (rollout.score or 0.0) > mean]
        bad = [_parts(rollout) for rollout in rollouts if not (rollout.score or 0.0) > mean]
        n = Counter(key for parts in (*good, *bad) for key in parts)
        texts = {key: text for parts in good for key, text in parts.items()}
        both = [key for key in texts if any(key in parts for parts in bad)]
        both.sort(key=lambda key: -n[key])
        lines = "\n".join(f"- {shortened(texts[key], LONGEST)}" for key in both[:MOST])
        return base.Shown(rollouts, f"{SHARED}{lines}" if lines else "")


def _parts(rollout: Rollout) -> dict[str, str]:
    """The steps of a rollout and the sentences of its reasoning, by what is compared of them."""
    by_form: dict[str, str] = {}
    for step in rollout.steps if len(rollout.steps) > 1 else ():
        values = [str(v) for name, v in step.outputs.items() if name not in REASONING]
        line = f"{step.kind} {step.name}: {' '.join(values)}"
        by_form[normalized(line)] = line
    for fields in (*(step.outputs for step in rollout.steps), rollout.outputs):
        for name in THOUGHTS:
            sentences = fields.get(name, "").replace("\n", ". ").split(". ")
            by_form |= {normalized(one): one for one in sentences if one.strip()}
    return by_form


def _lines(experiences: Iterable[Experience]) -> str:
    """A line for each: id, text, and the effect where it was measured."""
    return "\n".join(map(str, experiences)) or NO_EXPERIENCES


class FindRules(dspy.Signature):
    """Write advice for a program that goes further the way its advice has been changing.

    Lines of advice were tried in the program's prompt. Some came to stay, some went again; beside
    a line stands its measured effect on the score, where there is one. What do the lines that stay
    have in common that those that went lack? Which rule is behind several of them, and what does
    it say of inputs that none of them names? How would the best of them read if they were clearer,
    more exact, or held for more inputs?

    Write at most max_candidates lines, the most useful first, and nothing else:
    - "When <condition>, <advice>.", or only the advice if it always applies, for a new line.
    - "E3: " and the new text, for a better text of line E3.
    Only what the changes suggest. Write None if they suggest nothing.
    """

    program: str = dspy.InputField(desc="what the program does")
    max_words: int = dspy.InputField(desc="the most words that one line may have")
    max_candidates: int = dspy.InputField()
    before: str = dspy.InputField(desc="the advice that the program began with")
    came: str = dspy.InputField(desc="lines that are there now, with their effects")
    went: str = dspy.InputField(desc="lines that were tried and are gone, or were worded so before")
    candidates: str = dspy.OutputField(desc="one line each, or the word None")


@base.strategy
class Induction(base.Strategy):
    """Proposes rules behind single lines, and better texts of them, by induction over the library.

    Every few updates the reflection LM is shown the library that the student began with, what came
    since, what went or was worded otherwise, and the measured effects. It proposes lines that go
    further that way: a rule behind several of them, a better text of one. The gate judges these
    like any other candidate. It is asked again as long as one of the latest candidates is there and
    has a positive effect. Better = now + (now - before), in words, is ExPO (arXiv 2404.16792).

    Args:
        every: how many updates lie between two questions, at least 1.
    """

    every: base.Least1 = 10

    def propose(self, context: base.UpdateContext, ask: base.Ask) -> base.Proposed:
        operations: tuple[Add | Modify, ...] = ()
        is_asked = context.update and not context.update % self.every
        for update in range(self.every, context.update + 1, self.every) if is_asked else ():
            libraries = context.libraries[: update + 1]
            texts = {operation.text for operation in operations}
            effects = [e.effect for e in libraries[-1] if e.text in texts]
            if texts and not any(effect and effect.estimate > 0 for effect in effects):
                return base.Proposed(context.lessons)
            operations = self._rules(libraries, context.predictors, ask)  # remembers its answers
        return base.Proposed(context.lessons, operations)

    def _rules(
        self, libraries: Sequence[ExperienceLibrary], predictors: Sequence[str], ask: base.Ask
    ) -> tuple[Add | Modify, ...]:
        """The operations that the reflection LM answers; each rests on what it resembles."""
        start, library = libraries[0], libraries[-1]
        of_start, now = ({experience.advice for experience in each} for each in (start, library))
        came = [experience for experience in library if experience.advice not in of_start]
        if len(came) < FEWEST_TEXTS:
            return ()
        went = {one.advice: one for one in itertools.chain(*libraries) if one.advice not in now}
        answer = ask(
            FindRules,
            max_candidates=N_CANDIDATES,
            before=_lines(start),
            came=_lines(came),
            went=_lines(went.values()),
        )
        learned = [Lesson(each.text, each.scope, each.evidence) for each in came]
        operations = list[Add | Modify]()
        for line in read_lessons(_ID.sub(r"\1:", answer.get("candidates", "None")))[:N_CANDIDATES]:
            named = _NAMED.fullmatch(line)
            text, scope = read_lesson(named[2] if named else line, predictors)
            evidence = tuple(e for source in sources_of(text, learned) for e in source.evidence)
            if named and named[1] in library:
                operations.append(Modify(named[1], text, evidence=evidence))
            else:
                operations.append(Add(text, scope, evidence=evidence))
        return tuple(operations)


class SayWhatMatters(dspy.Signature):
    """Say which input fields, and which properties of the inputs, decide what the right answer is.

    The program has not been run yet. Use what you know of the world and of tasks like this one;
    in few examples much agrees by accident with the labels, so do not rely on them alone.

    In at most three sentences, say which fields or properties of the inputs the right answer
    depends on, the most important first, and which do not matter although one might think so.
    """

    program: str = dspy.InputField(desc="what the program does")
    examples: str = dspy.InputField(desc="inputs and, where they are known, labels")
    matters: str = dspy.OutputField(desc="at most three sentences, or the word None")


@base.strategy
class AttributionPrior(base.Strategy):
    """Learns from the reflection LM what matters in the inputs, without a rollout.

    One question shows it the program and a few examples. What it says decides the answer is told
    it again whenever it writes lessons: for few examples, where much agrees with the labels by
    accident. Source: attribution regularizers (arXiv 2502.20268).
    """

    def show(self, context: base.GroupContext, ask: base.Ask) -> base.Shown:
        n, parts = min(N_EXAMPLES, len(context.training)), []
        for position in random.Random("attribution").sample(sorted(context.training), n):
            example = context.examples[position]
            texts = (example.text, "Labels:", context.shown_labels(example))
            parts.append("\n".join(shortened(text, FIELD_BYTES) for text in texts))
        answer = ask(SayWhatMatters, examples=by_example(parts))  # always the same question
        matters = shortened(answer.get("matters", ""), FIELD_BYTES)
        note = f"{MATTERS}{matters}" if read_lessons(matters) else ""
        return base.Shown(context.group.rollouts, note)
