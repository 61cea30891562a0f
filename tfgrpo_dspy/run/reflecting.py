"""Groups and labelled examples become lessons, and these operations; attempts and labels, briefs.

A brief takes the place of a predictor's instructions. The first ones come from labelled examples,
beside the first batch. Later ones revise the brief that leads, or the student's own instructions:
several failures in one call, and a few successes.
"""

import itertools
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

from tfgrpo_dspy.calls import Calls
from tfgrpo_dspy.calls.reflections import IMAGES, Inputs, ReflectionClient, Waited
from tfgrpo_dspy.errors import described
from tfgrpo_dspy.experience import ALL, Evidence, Operation, Refusal, bare_instructions
from tfgrpo_dspy.gate.bayesian import BRIEF_ABOVE, Decision
from tfgrpo_dspy.reflection import lessons as reading
from tfgrpo_dspy.reflection import modules as texts
from tfgrpo_dspy.reflection.lessons import Lesson
from tfgrpo_dspy.reflection.modules import Answer
from tfgrpo_dspy.rollout import Group, Rollout
from tfgrpo_dspy.run import planning
from tfgrpo_dspy.run.planning import TEACHING, Batch, Brief, Extracted, Update
from tfgrpo_dspy.sampling.examples import Example, SampledGroup
from tfgrpo_dspy.settings import EXAMPLES_OF_BRIEF, EXAMPLES_OF_DRAFT, RunInputs, n_unlike_drafts
from tfgrpo_dspy.strategies.base import Proposed
from tfgrpo_dspy.text import cleaned_text, estimate_tokens, n_words, shortened
from tfgrpo_dspy.user_code import named_predictors

EXAMPLES_SHOWN, EXAMPLE_TOKENS = 6, 200  # of labelled examples in the prompt for operations
REASON_BYTES, EXAMPLE_BYTES = 210, 87  # how long they may be in the prompt of an update
CLEAR_SHARE = 0.01
"""In the first batch, before a range of scores is known, so large a share of the score itself is a
contrast for sure: its lessons need not wait for the rest of the batch."""
MOST_IN_VAIN, TIMES_IN_VAIN = 8, 4
"""After 8 groups in a row that gave nothing new, one call a batch asks for more; after 4 times as
many, one call in four batches, and so on."""
BRIEF_TOKENS = 800  # of each in a prompt for lessons
FEWEST_ALIKE, SHOWN_ALIKE, MOVED_SHARE = 5, 40, 0.1
"""From 5 groups on (of the last 40) whose answers differ while their scores do not, with contrast
in fewer than a tenth as many, a middling score is taken for one of the example alone."""
NEIGHBOURS = 8  # groups that wait for each other, to share calls
Found = tuple[list[Lesson], list[str]]
"""The lessons that are taken; the texts of those that are refused, each with the reason."""
MOST_WORDS = 2_000  # of a brief
FAILURES, SUCCESSES, EXAMPLES_OF_REVISION, LEAST_FAILURES = 8, 3, 10, 2
"""In the prompt of a revision: attempts and labelled examples at most, and failures at least."""
MOST_UNSURE = 5  # briefs of which none is surely better than the student's own instructions
LEAST_TRIED = 8  # rollouts of each brief: before that, no other one is written


class Reflector:
    """Draws lessons from groups and labels of one run, operations from these, and writes briefs."""

    def __init__(self, inputs: RunInputs, client: ReflectionClient, calls: Calls) -> None:
        self._inputs, self._settings, self._examples = inputs, inputs.settings, inputs.examples
        self._client, self._report = client, calls.report
        self._own = {name: bare_instructions(p) for name, p in named_predictors(inputs.student)}
        program = reading.task_text(inputs.student, inputs.settings.objective or "")
        self._task = reading.Task(program, lambda: ((e.inputs, e.labels) for e in inputs.examples))

    # ------------------------------------------------------------------ lessons of groups

    def extract(
        self,
        batch: Batch,
        groups: Sequence[Callable[[], SampledGroup]],  # each waits for one
        show: Callable[[SampledGroup], tuple[SampledGroup, str]],
    ) -> Extracted:
        """The lessons of the groups; `show` gives what to compare of a group, with a note."""
        settings, base, n_shown = self._settings, batch.base, self._settings.groups_per_call
        size, all_groups = max(NEIGHBOURS, n_shown), cache(lambda: [group() for group in groups])
        is_full = sum(e.is_on_trial for e in batch.library) >= settings.most_on_trial
        is_thrifty = settings.measures and not settings.data.is_recorded
        times = base.n_in_vain // MOST_IN_VAIN if is_thrifty else 0
        is_resting = times >= TIMES_IN_VAIN and batch.update % times
        lead = leading(base.decision)
        leads_surely = lead > 0 and base.decision.briefs[lead - 1].chance >= BRIEF_ABOVE

        used: list[tuple[SampledGroup, str]] = []
        shown: list[tuple[SampledGroup, str]] = []
        calls: list[Callable[[], Found]] = []
        for place, waited in enumerate(groups):
            if place % size == 0:  # how many may be asked
                n_left = (0 if place or is_resting else n_shown) if times else size
            whole = waited()
            sampled, note = show(whole) if whole.additions else (whole, "")
            use, group = self._use_of(batch, sampled.group, all_groups)
            sampled = replace(sampled, group=group)
            if use == "contrast" and is_thrifty and _is_explained(batch, sampled, lead):
                use = planning.EXPLAINED
            if use in TEACHING and leads_surely:
                use = planning.LEFT
            elif use in TEACHING and (is_full or not n_left):
                use = "enough on trial" if is_full else planning.NOT_ASKED
            n_left -= use in TEACHING
            used += [(whole, use)] if whole.additions else []
            shown += [(sampled, note)] * (use in TEACHING)
            is_last = place + 1 == len(groups) or (place + 1) % size == 0
            if shown and (len(shown) == n_shown or is_last):
                calls.append(self._client.beside(partial(self._lessons_of, batch, shown)))
                shown = []
        lessons, refused = _together(call() for call in calls)
        taken, uses = [group for group, _ in used], [use for _, use in used]
        merged = tuple(reading.merge_lessons(lessons))
        return Extracted(merged, tuple(refused), tuple(taken), tuple(uses))

    def _use_of(
        self, batch: Batch, group: Group, all_groups: Callable[[], list[SampledGroup]]
    ) -> tuple[str, Group]:
        """What a group is used as: one of `TEACHING`, or why it teaches nothing.

        Also the group with the range of scores by which this was decided: where the scores of
        earlier updates do not suffice, it is that of the batch, which must be whole then.
        """
        is_single = len(group.rollouts) == 1 and self._settings.data.is_recorded
        if len(group.rollouts) < 2 and not is_single:
            return "too few rollouts", group
        if self._settings.metric is None:
            is_taught = group.has_feedback or not is_single
            return "no ground truth" if is_taught else "too few rollouts", group
        labels = self._examples[group.example].labels
        is_told = group.has_feedback or bool(labels and self._settings.reflection.use_labels)
        says_why = is_told or (is_single and not group.score_range.is_flat)
        is_analysed = self._settings.reflection.failure_analysis and says_why
        groups = [sampled.group for sampled in batch.base.groups[-SHOWN_ALIKE:]]
        if (group.has_contrast or is_analysed) and not _is_clear(group, labels):
            groups += [sampled.group for sampled in all_groups()]
            every = (rollout.score for each in groups for rollout in each.all_rollouts)
            group = replace(group, score_range=group.score_range.including(every))
        if group.has_contrast:
            return "contrast", group
        if is_analysed and not (group.is_at_best(labels) or _is_only_hard(group, groups)):
            return "failure analysis", group
        return "no contrast", group

    def _lessons_of(
        self,
        batch: Batch,
        shown: list[tuple[SampledGroup, str]],
        attempts: Sequence[list[str]] = (),
    ) -> Found:
        """The lessons that ExtractAdvantage draws from these groups, in one call.

        Where they are too long for one prompt, each has its own. `attempts` are the texts of their
        rollouts, where these are known.
        """
        client, groups = self._client, [sampled.group for sampled, _ in shown]
        examples = [self._examples[group.example] for group in groups]
        max_tokens = getattr(self._settings.reflection.extract, "shown_tokens", 12_000)
        images = client.images_of(examples)
        attempts = attempts or [self._attempts(batch, g, max_tokens) for g in groups]

        def inputs(halving: int) -> Inputs:
            cut = [
                [texts.clip(text, (max_tokens >> halving) // len(of_group)) for text in of_group]
                for of_group in attempts
            ]
            asked = self._asked(batch, shown, cut if halving else attempts)
            return asked | ({IMAGES: images} if images else {})

        wait = client.begin("lesson", batch, groups[0].example, inputs)
        answer = wait(len(shown) == 1)
        if answer.is_too_long and len(shown) > 1:
            pairs = zip(shown, attempts, strict=True)
            return _together(self._lessons_of(batch, [one], [text]) for one, text in pairs)
        evidence = []
        for group in groups:
            ids = tuple(rollout.rollout_id for rollout in group.rollouts)
            scores = tuple(rollout.score for rollout in group.rollouts)
            evidence.append(Evidence(batch.update, group.example, ids, scores))
        decisive, names = {group.decisive_predictor for group in groups}, self._inputs.predictors
        is_one = len(decisive) == 1 < len(names) and decisive <= {*names}  # took the decisive steps
        return self._read(answer, examples, evidence, scope=decisive.pop() if is_one else ALL)

    def _asked(
        self,
        batch: Batch,
        shown: Sequence[tuple[SampledGroup, str]],
        attempts: Sequence[Sequence[str]],
    ) -> dict[str, Any]:
        """The inputs of ExtractAdvantage for these groups, whose attempts have these texts.

        A note that all of them have stands there once; the briefs are those of some attempts.
        """
        sampled_groups, notes = [sampled for sampled, _ in shown], [note for _, note in shown]
        about, parts = [self._about(sampled.group) for sampled in sampled_groups], list[str]()
        for sampled, of_group in zip(sampled_groups, attempts, strict=True):
            pairs = zip(sampled.additions, sampled.aids, strict=True)
            aids = [", ".join(filter(None, (*one.arms, aid))) for one, aid in pairs]
            had = [additions.library for additions in sampled.additions]
            parts.append(texts.attempts_text(sampled.group, of_group, had, aids, batch.library))
        numbered = [f"Example {n}\n{note}" for n, note in enumerate(notes, start=1) if note]
        noted = numbered if len({*notes}) > 1 else filter(None, notes[:1])
        briefs = (
            f"Brief {number} of predictor {name}:\n{texts.clip(text, BRIEF_TOKENS)}"
            for number in sorted({one.brief for s in sampled_groups for one in s.additions} - {0})
            for name, text in batch.base.briefs[number - 1].texts
        )
        feedback = (texts.feedback_text(sampled.group) for sampled in sampled_groups)
        return {
            **{name: texts.by_example([one[name] for one in about]) for name in about[0]},
            "objective": "\n\n".join([str(self._client.common["objective"]), *noted]),
            "experiences": "\n\n".join([batch.library.render() or texts.NO_EXPERIENCES, *briefs]),
            "attempts": texts.by_example(parts),
            "feedback": "\n".join(filter(None, feedback)),
            "is_scored": bool(sampled_groups[0].group.scores),
        }

    def _about(self, group: Group) -> dict[str, str]:
        example = self._examples[group.example]
        labels = self._labels_of(example) if self._settings.metric else ""
        return {"example": example.text, "expected": labels or texts.UNKNOWN}

    def _labels_of(self, example: Example) -> str:
        return example.labels_text if self._settings.reflection.use_labels else texts.HIDDEN

    def _attempts(self, batch: Batch, group: Group, max_tokens: int) -> list[str]:
        """A text for each rollout: whole where all fit, a summary where they are too long."""
        attempts = [texts.attempt_text(rollout) for rollout in group.rollouts]
        sizes = [estimate_tokens(text) for text in attempts]
        share = max_tokens // len(attempts)
        longest = share if sum(sizes) > max_tokens else max_tokens
        if self._settings.reflection.summarize_always:
            longest = 0
        asked: dict[int, Waited] = {}
        for index, (rollout, text) in enumerate(zip(group.rollouts, attempts, strict=True)):
            if sizes[index] > longest:
                score = "" if rollout.score is None else f"Score: {rollout.score:.3g}\n"
                inputs = {**self._about(group), "attempt": score + texts.clip(text, max_tokens)}
                begin = partial(self._client.begin, "summary", batch, group.example)
                asked[index] = begin(partial(_whole, inputs), index)
        for index, wait in asked.items():
            if summary := wait().output:
                attempts[index] = texts.attempt_text(group.rollouts[index], str(summary))
            attempts[index] = texts.clip(attempts[index], share)
        return attempts

    def _read(
        self,
        answer: Answer,
        examples: Sequence[Example],
        evidence: Sequence[Evidence],
        scope: str = ALL,
    ) -> Found:
        shown = [shortened(example.text, EXAMPLE_BYTES) for example in examples]
        blank = Lesson("", scope, tuple(evidence), shortened(answer.explanation, REASON_BYTES))
        most, guard = self._settings.limits.max_experience_words, self._against(examples)
        names, output = self._inputs.predictors, answer.output or ()
        lessons, refused = reading.lessons_in(output, blank, names, guard, shown, most)
        return lessons[: self._settings.reflection.lessons_per_group * len(examples)], refused

    # ------------------------------------------------------------------ lessons of labels

    def draft(self, batch: Batch) -> Extracted:
        """The lessons that at least two drafts give; all, if no two agree. And the first briefs."""
        settings = self._settings
        max_tokens = getattr(settings.reflection.draft, "shown_tokens", 12_000)

        def asked(number: int, examples: Sequence[Example]) -> Callable[[], Found]:
            def inputs(halving: int) -> Inputs:
                share = (max_tokens >> halving) // len(examples)
                shown = [texts.clip(_labelled(each), share) for each in examples]
                library = batch.library.render() or texts.NO_EXPERIENCES
                return {"experiences": library, "examples": texts.by_example(shown)}

            wait = self._client.begin("draft", batch, number, inputs)
            source = Evidence(batch.update, number, (), ())  # tells the drafts apart in merging
            return lambda: self._read(wait(), examples, [source])

        def brief(number: int) -> Callable[[], Brief]:
            shown = {"examples": self._drawn(number, EXAMPLES_OF_BRIEF)}
            return cache(self._begun(batch, number, self._own, shown))

        n_briefs = settings.n_briefs if self._drawn(0, 1) else 0
        briefs = [brief(0)] if n_briefs else []
        parts = enumerate(itertools.islice(self._draft_parts(), settings.drafts))
        begun = [asked(number, examples) for number, examples in parts]
        if any(first().texts for first in briefs):  # an LM that cannot write is not asked for more
            briefs += [brief(number) for number in range(1, n_briefs)]
        drawn, refused = _together(each() for each in begun)
        merged = reading.merge_lessons(drawn)
        repeated = [lesson for lesson in merged if len(lesson.evidence) > 1]
        lessons = tuple(replace(lesson, evidence=()) for lesson in repeated or merged)
        return Extracted(lessons, tuple(refused), briefs=tuple(written() for written in briefs))

    def _draft_parts(self) -> Iterator[list[Example]]:
        """The examples of each draft: all once, then once more, never the same set too early."""
        labelled = [e for i in self._inputs.training if (e := self._examples[i]).labels]
        n_shown = getattr(self._settings.reflection.draft, "n_examples", EXAMPLES_OF_DRAFT)
        n_unlike, seen = n_unlike_drafts(len(labelled), n_shown), set[frozenset[int]]()
        for number in itertools.count() if labelled else ():
            order = [*range(len(labelled))]
            random.Random(f"{self._settings.seed}/drafts/{number}").shuffle(order)
            for start in range(0, len(order), n_shown):
                part = order[start : start + n_shown]
                if frozenset(part) not in seen or len(seen) == n_unlike:
                    seen.add(frozenset(part))
                    yield [labelled[k] for k in part]

    # ------------------------------------------------------------------ briefs

    def _drawn(self, number: int, most: int) -> list[str]:
        examples, may_show = self._examples, self._settings.reflection.use_labels
        labelled = [k for k in self._inputs.training if may_show and examples[k].labels]
        mixed = random.Random(f"{self._settings.seed}/briefs/{number}")
        drawn = mixed.sample(labelled, min(len(labelled), most))
        return [_labelled(examples[k]) for k in drawn]

    def revised(
        self,
        batch: Batch,
        before: Update,
        groups: Sequence[SampledGroup],
        dropped: Sequence[Lesson],
    ) -> Callable[[], Brief] | None:
        """Ask for a revision of what leads before this batch, whose groups show failures of it.

        What is given waits for it; None: nothing is revised.
        """
        beliefs, lead = before.decision.briefs, leading(before.decision)
        leads_surely = lead > 0 and beliefs[lead - 1].chance >= BRIEF_ABOVE
        are_tried = all(belief.n_rollouts >= LEAST_TRIED for belief in beliefs)
        may_brief = self._settings.n_briefs and before.may_brief and are_tried
        if not may_brief or (len(beliefs) >= MOST_UNSURE and not leads_surely):
            return None
        every = [*_attempts(reversed(groups), lead), *_attempts(reversed(before.groups), lead)]
        scores = before.score_range.including(r.score for _, r in every)
        enough = scores.highest - scores.least_contrast
        failures = [(s, r) for s, r in every if (r.score or 0.0) < enough]
        n_new = sum(any(s is group for group in groups) for s, _ in failures)
        if scores.is_flat or len(failures) < LEAST_FAILURES or not n_new:
            return None
        successes = [(s, r) for s, r in every if (r.score or 0.0) >= enough]
        attempts = []
        for sampled, rollout in (*failures[:FAILURES], *successes[:SUCCESSES]):
            had, example = sampled.additions_of(rollout).parts, self._examples[rollout.example]
            score = f"Score {rollout.score:.3g}{', with ' if had else ''}{', '.join(had)}"
            expected = f"Expected: {self._labels_of(example) or texts.UNKNOWN}"
            parts = (score, example.text, expected, texts.attempt_text(rollout))
            attempts.append("\n".join(parts))
        advice = [texts.library_text(before.decision.library)]
        advice += ["Tried and dropped:\n" + texts.dropped_text(dropped)] if dropped else []
        examples = self._drawn(len(before.briefs), EXAMPLES_OF_REVISION)
        inputs = {"attempts": attempts, "experiences": ["\n\n".join(advice)], "examples": examples}
        present = self._own | (dict(before.briefs[lead - 1].texts) if lead else {})
        return self._begun(batch, 0, present, inputs, lead)

    def _begun(
        self,
        batch: Batch,
        number: int,
        present: dict[str, str],
        shown: dict[str, list[str]],
        parent: int = 0,
    ) -> Callable[[], Brief]:
        max_tokens = getattr(self._settings.reflection.brief, "shown_tokens", 12_000)

        def inputs(name: str, halving: int) -> Inputs:
            names = ("examples", "experiences", "attempts")
            parts = {(k, n): text for k in names for n, text in enumerate(shown.get(k, ()))}
            cut = texts.shorter(parts, max_tokens >> halving).items()
            fields = {k: texts.by_example([t for (of, _), t in cut if of == k]) for k in names}
            fields = {k: text or "(none)" for k, text in fields.items()}
            return {"predictor": name, "present": present[name], **fields}

        asked = {
            name: self._client.begin("brief", batch, number, partial(inputs, name), index)
            for index, name in enumerate(present)
        }

        def written() -> Brief:
            new = dict[str, str]()
            for name, wait in asked.items():
                text = cleaned_text(str(wait().output or "")).strip()
                if (n := n_words(text)) > MOST_WORDS:
                    why = f"it has {n} words, of at most {MOST_WORDS}"
                    self._report.count_failure("brief refused", f"{why}: {text}")
                elif text and text != present[name].strip():
                    new[name] = text
            others = {name: text for name, text in present.items() if text != self._own[name]}
            return Brief(tuple((others | new).items()) if new else (), parent)

        return written

    # ------------------------------------------------------------------ operations

    def propose(
        self,
        batch: Batch,
        before: Update,
        proposed: Proposed,
        dropped: Sequence[Lesson],
        guard: reading.Guard,
    ) -> tuple[list[Operation], list[Refusal]]:
        """The operations that the lessons call for, and the refused ones: malformed, copies.

        A lesson that the library has already, in nearly the same words, is a KEEP with its
        evidence. UpdateLibrary is asked about the others, and told what was tried and dropped;
        where they are too many for one prompt, it is asked several times.
        """
        library = before.decision.library
        keeps, new = reading.known_lessons(proposed.lessons, library)
        names, settings = self._inputs.predictors, self._settings.reflection
        shown = {"experiences": texts.library_text(library), "dropped": texts.dropped_text(dropped)}

        def begin(part: Sequence[Lesson]) -> tuple[Sequence[Lesson], Waited]:
            """Labels are shown of the examples that the lessons come from; of drafts, of some."""
            sources = (evidence.example for lesson in part for evidence in lesson.evidence)
            places = dict.fromkeys(self._inputs.training if batch.is_draft else sources)
            examples = [self._examples[k] for k in places if self._settings.shows_labels]
            labelled = [_labelled(each) for each in examples if each.labels][:EXAMPLES_SHOWN]
            text = texts.by_example([texts.clip(text, EXAMPLE_TOKENS) for text in labelled])
            asked = {**shown, "examples": text or "(none)", "lessons": texts.lessons_text(part)}
            return part, self._client.begin("update", batch, batch.update, partial(_whole, asked))

        max_tokens = getattr(settings.update, "shown_tokens", 4_000)
        begun, every = deque(map(begin, texts.packed_lessons(new, max_tokens))), list[Any](keeps)
        while begun:
            part, wait = begun.popleft()
            is_one, middle = len(part) == 1, len(part) // 2
            answer = wait(is_one)
            if answer.is_too_long and not is_one:
                begun.extendleft(reversed([begin(part[:middle]), begin(part[middle:])]))
            else:
                every += reading.operations_in(answer.output, part, library, names, guard)
        every += [reading.admitted(operation, names, guard) for operation in proposed.operations]
        operations = [each for each in every if not isinstance(each, Refusal)]
        return reading.settled(operations, dropped), [x for x in every if isinstance(x, Refusal)]

    def why_in_vain(self, batch: Batch) -> str:
        """Why no more reflections are worth asking for after this batch; "": they are."""
        answers = self._client.answers
        is_new = not batch.is_draft and batch.update in answers
        return planning.why_useless(answers, batch.update, self._settings) if is_new else ""

    # ------------------------------------------------------------------ the guard

    def guard_of(self, batch: Batch, proposed: Proposed) -> reading.Guard:
        """The guard against copies of all that the reflection LM was shown for an update."""
        lessons, added = proposed.lessons, proposed.operations
        sources = {evidence.example for each in (*lessons, *added) for evidence in each.evidence}
        if batch.is_draft or any(getattr(each, "text", "") and not each.evidence for each in added):
            sources.update(range(len(self._examples)))  # it may copy any
        return self._against([self._examples[i] for i in sorted(sources.union(batch.examples))])

    def _against(self, examples: Iterable[Example]) -> reading.Guard:
        return reading.Guard(((e.inputs, e.labels) for e in examples), self._task, self._refuses)

    def _refuses(self, text: str, reason: str) -> bool:
        guard = self._settings.reflection.guard
        refuses = guard == "refuse"
        if callable(guard):
            try:
                refuses = bool(guard(text, reason))
            except BaseException as error:  # noqa: BLE001 - whatever the user's function raises
                self._report.count_failure("guard", f"guard raised {described(error)}")
                refuses = True
        if not refuses and guard != "off":
            self._report.count_failure("advice let in", f"{text} ({reason})")
        return refuses


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


def _labelled(example: Example) -> str:
    return f"{example.text}\nLabels:\n{example.labels_text}"


def _whole(inputs: Inputs, _halving: int) -> Inputs:
    return inputs  # the longest texts are cut then, whatever they are


def _together(results: Iterable[Found]) -> Found:
    pairs = [*results]
    return [x for taken, _ in pairs for x in taken], [x for _, refused in pairs for x in refused]


def _is_explained(batch: Batch, sampled: SampledGroup, lead: int) -> bool:
    """Whether a best attempt had all that is known, and a worse one lacked some of it."""
    ids = {experience.id for experience in batch.library}
    had = [
        (one.score, additions.brief == lead and {e.id for e in additions.library} >= ids)
        for one in sampled.unaided.rollouts
        for additions in [sampled.additions_of(one)]
    ]
    best = max(score or 0.0 for score, _ in had)
    has_best = any(is_whole for score, is_whole in had if score == best)
    return has_best and not any(is_whole for score, is_whole in had if score != best)


def _is_clear(group: Group, labels: Mapping[str, str]) -> bool:
    """Whether other groups of the batch cannot change what the group is used as."""
    if not group.has_contrast:
        return not group.score_range.is_flat and not group.is_at_best(labels)
    low, high = min(group.scores), max(group.scores)
    return not group.score_range.is_flat or high - low > CLEAR_SHARE * max(abs(low), abs(high))


def _is_only_hard(group: Group, others: Sequence[Group]) -> bool:
    """Whether the group's middling score says how hard the example is, and nothing of the answers.

    So it is where other answers have hardly ever another score, in the other groups.
    """
    others = [replace(each, score_range=group.score_range) for each in others]
    n_moved = sum(each.has_contrast for each in others)
    are_unlike = [len({r.answer for r in each.rollouts}) > 1 for each in (group, *others)]
    n_alike = sum(are_unlike[1:]) - n_moved
    is_lowest = min(group.scores) <= group.score_range.lowest + group.least_contrast
    is_moot = n_alike >= FEWEST_ALIKE and n_moved < MOVED_SHARE * n_alike
    return is_moot and not is_lowest and are_unlike[0]
