"""The questions to the reflection LM: their prompts, the texts in them, and the modules that ask.

Each prompt is a signature, the instruction its docstring. Fields that seldom change come first:
providers charge less for prompts that begin alike. Outputs are plain text, which small LMs write
more reliably than typed JSON. The LM explains or plans before it commits itself; both may be
absent. No prompt shows a sample answer: small LMs give it as theirs.

Each module asks one predictor and reads its answer in whatever form it comes. Where nothing can be
read, it asks once more and says which form is wanted; when that fails too, the answer is empty and
`parse_failures` says so.
"""

import copy
import enum
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import dspy
import pydantic

from tfgrpo_dspy.budget.meter import more_room, raw_answers
from tfgrpo_dspy.dspy_seam import Call, Unheard, get_annotation_name
from tfgrpo_dspy.errors import SettingsError
from tfgrpo_dspy.experience import ExperienceLibrary, bare_instructions, scope_note
from tfgrpo_dspy.reflection import lessons as reading
from tfgrpo_dspy.reflection.lessons import Lesson
from tfgrpo_dspy.rollout import Group, Rollout, Usage, fields_text, trajectory_text
from tfgrpo_dspy.text import BYTES_PER_TOKEN, counted, estimate_tokens, without_markers
from tfgrpo_dspy.user_code import named_predictors

_PROGRAM = "what the program does: its predictors with their instructions, inputs and outputs"
_KNOWN = "advice that is in the program's prompt already: [id] text; a star: for every predictor"
_LESSONS = "one lesson a line, nothing else; the word None if there is no lesson"


class SummarizeAttempt(dspy.Signature):
    """Summarise one attempt of a program, so that it can be compared with other attempts.

    For each step, say in one line what was done and what came of it. Quote exactly what decided the
    outcome, as score and feedback show: the mistake, the missing fact, the good idea. No advice.
    """

    program: str = dspy.InputField(desc=_PROGRAM)
    example: str = dspy.InputField(desc="the inputs that the program was given")
    expected: str = dspy.InputField(desc="the right answer (labels), where it is known")
    attempt: str = dspy.InputField(desc="score, feedback, steps and outputs of the attempt")
    summary: str = dspy.OutputField(desc="at most 200 words")


class _ForLessons(dspy.Signature):
    program: str = dspy.InputField(desc=_PROGRAM)
    objective: str = dspy.InputField(desc="what the lessons should improve")
    max_words: int = dspy.InputField(desc="the most words that one lesson may have; few need them")
    experiences: str = dspy.InputField(desc=_KNOWN)


class CompareAttempts(_ForLessons):
    """Compare the attempts of a program at each example, and write lessons for the program.

    A metric gave each attempt a score; higher is better. Its advantage says how far the score is
    above (+) or below (-) the mean of the example's attempts, in standard deviations. Below stand
    the experiences on trial, and briefs: texts in place of a predictor's instructions. Each attempt
    says which it was given; where those with one score better, or worse, it may be the reason.

    First write semantic_advantage, for each example: which step made the better attempts better? If
    no attempt is good, what did all of them miss?

    Then write lessons, one to three for each example, the most useful first, each on its own line:
    - "When <condition>, <advice>.", or only the advice if it always applies.
    - Concrete: clear to somebody who has not seen these attempts.
    - A rule or a fact that helps on similar examples (what a policy says, what a word means, which
      format is wanted), not the answer of one example.
    - Supported by the attempts, and not yet among the experiences.
    - For one predictor only: begin with its name in square brackets.

    If the attempts show nothing new, write None instead of guessing.
    """

    example: str = dspy.InputField(desc="the inputs that the program was given")
    expected: str = dspy.InputField(desc="the right answer (labels), where it is known")
    attempts: str = dspy.InputField(desc="the best first, with score, feedback, steps and outputs")
    semantic_advantage: str = dspy.OutputField(
        default="", desc="why the better attempts beat the worse ones, or what all of them missed"
    )
    lessons: str = dspy.OutputField(desc=_LESSONS)


class CritiqueAttempts(_ForLessons):
    """Criticise the attempts of a program at each example, and write lessons for the program.

    Nobody knows the right answer, and there is no score. The answer that most attempts give is
    likely, but not certain, to be right. Each attempt says which experiences it was given.

    First write critique: what is wrong, missing or without reason in the steps? Where the attempts
    disagree, which of them has the better reason?

    Then write lessons, one to three for each example, the most useful first, each on its own line:
    - "When <condition>, <advice>.", or only the advice if it always applies.
    - Concrete: clear to somebody who has not seen these attempts.
    - A rule or a fact that helps on similar examples, not the answer of one example.
    - It mends a fault that you can point to, and is not yet among the experiences.
    - For one predictor only: begin with its name in square brackets.

    If the attempts show nothing new, write None instead of guessing.
    """

    example: str = dspy.InputField(desc="the inputs that the program was given")
    attempts: str = dspy.InputField(desc="steps and outputs, and the answer that most of them give")
    critique: str = dspy.OutputField(
        default="", desc="what is wrong or doubtful in the attempts, and where"
    )
    lessons: str = dspy.OutputField(desc=_LESSONS)


class ReadExamples(_ForLessons):
    """Read labelled examples of a task, and write lessons for a program that is to do it.

    Compare the inputs with the labels, and the examples with one another: what leads from inputs to
    labels that the program's instructions do not say?

    Write lessons, the most useful first, each on its own line:
    - "When <condition>, <advice>.", or only the advice if it always applies.
    - Concrete: clear to somebody who has not seen these examples.
    - A rule or a fact that helps on similar examples (what a policy says, what a word means, which
      format is wanted), not the label of one example.
    - Supported by the examples, and not yet among the experiences.
    - For one predictor only: begin with its name in square brackets.

    If the examples show nothing new, write None instead of guessing.
    """

    examples: str = dspy.InputField(desc="inputs and labels, example by example")
    lessons: str = dspy.OutputField(desc=_LESSONS)


class ProposeOperations(dspy.Signature):
    """Keep a short library of experiences true and useful: bring new lessons into it.

    Experiences are lines of advice in the program's prompt. Below each stands how many examples it
    was learned from and, where measured, its effect on the score, plus or minus the standard error;
    "on trial" means: not yet certain. Below each lesson stand the examples that it comes from, the
    scores of the attempts at them, and the reason. Do not propose again, in whatever words, what
    was tried and dropped, unless the new lessons show what was wrong with it. Put together what
    belongs together: lessons and examples may each hold a part of one table, one procedure or one
    complete pattern, which may have all the words that a line may have.

    First write plan: in a few sentences, which lessons say the same, which are new, and which
    experiences they confirm, correct or contradict.

    Then write operations, a JSON list of these:
    - {"op": "ADD", "text": ..., "lessons": [...]}: a new experience; one for lessons that say the
      same.
    - {"op": "MODIFY", "id": ..., "text": ..., "lessons": [...]}: a more precise, more general or
      more correct text, which keeps what was good.
    - {"op": "DELETE", "id": ..., "lessons": [...]}: it is wrong, or says the same as another.
    - {"op": "KEEP", "id": ..., "lessons": [...]}: lessons confirm it as it is.

    "lessons" holds the numbers of the lessons that the operation rests on; "scope" may name the one
    predictor that an experience is for ("*": every predictor), "reason" say why in a few words.

    A text is one line, "When <condition>, <advice>.", or only the advice if it always applies:
    general, concrete, and not the answer to one example. Leave out lessons that are vague or wrong.
    One lesson from one example is no reason to change or delete an experience that many examples
    support, or whose effect is clearly above 0.
    """

    program: str = dspy.InputField(desc=_PROGRAM)
    objective: str = dspy.InputField(desc="what the experiences should improve")
    limits: str = dspy.InputField(desc="how much the library may hold")
    experiences: str = dspy.InputField(desc="the library: [id] text; a star: for every predictor")
    dropped: str = dspy.InputField(desc="texts that were tried and are gone, with the reason")
    examples: str = dspy.InputField(desc="inputs and labels of some examples, where known")
    lessons: str = dspy.InputField(desc="the new lessons, numbered")
    plan: str = dspy.OutputField(default="", desc="what the lessons call for, in a few sentences")
    operations: str = dspy.OutputField(desc="a JSON list; [] if the library stays as it is")


class RewriteInstructions(dspy.Signature):
    """Write the instructions of one predictor of a program anew: all that it should be told.

    Your text takes the place of the present instructions. Whoever follows it is given one input at
    a time, and sees nothing of what you see here.

    - Keep each demand of the present instructions, unless attempts show that it is wrong.
    - Say what leads from inputs to the right outputs: every rule, exception, fact, name, code and
      unit, and the exact form of the outputs. Compare the examples with one another: a rule must
      hold for each example that it applies to. Where they do not tell, do not guess.
    - Put together what belongs together. A table of all cases is welcome, so is a procedure in
      steps, a complete pattern to follow, and a few worked examples of unlike kinds.
    - In a worked example, each field stands by its name on a line of its own, and its value is
      bare, exactly as it must be put out: arrows, quotes and remarks beside a value are copied
      into answers. So are concrete values: in a pattern, say which parts stand for the input's.
    - Of advice that was tried, take over what helps, in your own words, and leave out what harms.
    - Attempts were made with the present instructions. Say what each failure missed, so that nobody
      misses it again; keep what made other attempts succeed.
    - Write for this predictor alone, in the language of the present instructions, at most 800
      words, and keep the names of fields as they are.
    """

    program: str = dspy.InputField(desc=_PROGRAM)
    objective: str = dspy.InputField(desc="what the new instructions should improve")
    predictor: str = dspy.InputField(desc="the name of the predictor to write for")
    present: str = dspy.InputField(desc="its instructions as they stand")
    examples: str = dspy.InputField(desc="inputs and labels, example by example")
    experiences: str = dspy.InputField(desc="advice that was tried, with its effect on the score")
    attempts: str = dspy.InputField(desc="attempts with the present instructions, failures first")
    brief: str = dspy.OutputField(desc="the text of the new instructions, and nothing else")


NO_EXPERIENCES, UNKNOWN, HIDDEN = "(none yet)", "(not known)", "(hidden)"
LEAST_SHOWN = 10  # rollouts, from which on an effect is told
MOST_SOURCES, MOST_DROPPED = 3, 20  # scores of a lesson, dropped texts that are shown


def as_input(text: str, tags: Iterable[str] = ()) -> str:
    """The text as it may stand in a prompt of DSPy's adapters; `tags`: fields of one in XML."""
    return without_markers(reading.encodable(text), tags)


def clip(text: str, max_tokens: int) -> str:
    """The text, or its beginning and end with a note of what was left out between them."""
    if estimate_tokens(text) <= max_tokens:
        return text
    encoded, half = text.encode("utf-8", "replace"), int(max_tokens * BYTES_PER_TOKEN) // 2
    head = encoded[:half].decode("utf-8", "ignore")
    tail = encoded[len(encoded) - half :].decode("utf-8", "ignore")
    return f"{head}\n[... {len(text) - len(head) - len(tail)} characters left out ...]\n{tail}"


def tokens_of(inputs: Mapping[str, Any]) -> int:
    """About how many tokens the texts among these inputs have together."""
    return sum(estimate_tokens(text) for text in inputs.values() if isinstance(text, str))


def shorter(inputs: Mapping[Any, Any], max_tokens: int) -> dict[Any, Any]:
    """The inputs with their longest texts clipped, all to one length, so that they fit."""
    sizes = sorted(estimate_tokens(text) for text in inputs.values() if isinstance(text, str))
    room, longest = max_tokens, max(sizes, default=0)
    for place, size in enumerate(sizes):
        if size * (len(sizes) - place) > room:
            longest = room // (len(sizes) - place)
            break
        room -= size
    return {k: clip(v, longest) if isinstance(v, str) else v for k, v in inputs.items()}


def describe_program(program: Any) -> str:
    """The program's task: its own docstring, then its predictors, each field with its type."""
    kind = type(program)
    about = "" if kind.__module__.startswith("dspy.") else inspect.cleandoc(kind.__doc__ or "")
    parts = [f"Program {kind.__name__}: {clip(about, max_tokens=300)}"] if about else []
    for name, predictor in named_predictors(program):
        signature = predictor.signature
        lines = [f"Predictor {name}: {bare_instructions(predictor)}"]
        for kind_of_field in ("input", "output"):
            for each, info in getattr(signature, f"{kind_of_field}_fields").items():
                desc = (info.json_schema_extra or {}).get("desc", "")
                meaning = f": {desc}" if desc not in ("", f"${{{each}}}") else ""
                annotation = get_annotation_name(info.annotation) + _values_text(info.annotation)
                lines.append(f"- {kind_of_field} {each} ({annotation}){meaning}")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _values_text(annotation: Any) -> str:
    """The values of each Enum in an annotation, in words; "" where there is none."""
    if isinstance(annotation, enum.EnumMeta):
        values = ", ".join(str(member.value) for member in list(annotation))  # type: ignore[var-annotated]
        return f"; {annotation.__name__} is one of {values}"
    return "".join(dict.fromkeys(map(_values_text, get_args(annotation))))


def attempt_text(rollout: Rollout, steps: str | None = None) -> str:
    """Feedback, steps (or their summary, where it is given) and outputs; nothing is said twice."""
    shows_steps = steps is None and (len(rollout.steps) > 1 or rollout.failure is not None)
    feedback = rollout.feedback if shows_steps else rollout.words
    parts = [f"Feedback: {feedback}"] if feedback else []
    steps = trajectory_text(rollout) if shows_steps else steps
    parts += [steps] if steps else []
    outputs = dict(rollout.outputs)
    if any(step.kind == "tool" for step in rollout.steps):
        outputs.pop("trajectory", None)
        outputs.pop("history", None)
    parts += [f"Outputs:\n{fields_text(outputs)}"] if outputs else []
    return "\n".join(parts) or "(no outputs)"


def by_example(parts: Sequence[str]) -> str:
    """The parts, each below the number of its example; one alone has no number."""
    numbered = (f"Example {n}\n{part}" for n, part in enumerate(parts, start=1))
    return "\n\n".join(numbered if len(parts) > 1 else parts)


def feedback_text(group: Group) -> str:
    """The word of the metric, or of an error, on the worst attempt; "" if there is none."""
    worst = min(group.rollouts, key=lambda rollout: (rollout.score or 0.0, rollout.failure is None))
    return worst.words or getattr(worst.failure, "message", "")


def attempts_text(
    group: Group,
    texts: Sequence[str],
    libraries: Sequence[ExperienceLibrary],
    aids: Sequence[str],
    shown: ExperienceLibrary,
) -> str:
    """The attempts of a group, the best first, each with its score, its advantage and its text.

    It says which experiences it had; one in other words than those that are shown is told with
    them. `libraries` holds the library of each of `all_rollouts`, `aids` what it had besides, in
    words: a brief, demos, a hint, a teacher ("": nothing).
    """
    ids = [rollout.rollout_id for rollout in group.all_rollouts]
    aid_of = dict(zip(ids, aids, strict=True))
    library_of = dict(zip(ids, libraries, strict=True))
    usual = {experience.id: experience.text for experience in shown}
    scores, shown_scores, advantages = group.scores, group.score_texts, group.advantages
    order = sorted(range(len(texts)), key=lambda index: -scores[index] if scores else index)
    parts = []
    for place, index in enumerate(order, start=1):
        rollout, about = group.rollouts[index], list[str]()
        if scores:
            about = [f"score {shown_scores[index]}", f"advantage {advantages[index]:+z.2f}"]
        had = [
            e.id if usual.get(e.id) == e.text else f'{e.id} as "{e.text}"'
            for e in library_of[rollout.rollout_id]
        ]
        about += [f"with {', '.join(had) or 'no experience'}"] if usual or had else []
        about += [aid] if (aid := aid_of[rollout.rollout_id]) else []
        decisive = rollout.decisive_step(group.least_decisive)
        about += [] if decisive is None else [f"decided by step {decisive + 1}"]
        title = f" ({', '.join(about)})" if about else ""
        parts.append(f"Attempt {place}{title}\n{texts[index]}")
    if not scores:
        parts.append(f"The answer that most attempts give:\n{group.majority_answer}")
    return "\n\n".join(parts)


def library_text(library: ExperienceLibrary) -> str:
    """The library for UpdateLibrary: below each experience its support and its measured effect."""
    lines = []
    for line, experience in zip(library.render().split("\n"), library, strict=False):
        about = []
        if experience.evidence:
            about = [f"learned from {counted(len(experience.evidence), 'example')}"]
        effect = experience.effect
        if effect is not None and effect.n_rollouts >= LEAST_SHOWN:
            measured = f"{effect.estimate:+z.2f} \N{PLUS-MINUS SIGN} {effect.standard_error:.2f}"
            about.append(f"measured effect on the score {measured}")
        about += ["on trial"] if experience.is_on_trial else []
        lines += [line, f"    {'; '.join(about)}"] if about else [line]
    return "\n".join(lines) or NO_EXPERIENCES


def lessons_text(lessons: Iterable[Lesson]) -> str:
    """The lessons, numbered; below each the examples that it comes from, and the reason."""
    lines = []
    reasons: dict[str, int] = {}
    for number, lesson in enumerate(lessons, start=1):
        lines.append(f"{number}. {lesson.text}{scope_note(lesson.scope)}")
        if lesson.evidence:
            n, sources = len(lesson.evidence), list[str]()
            for evidence in lesson.evidence[:MOST_SOURCES]:
                scores = ", ".join(f"{s:.3g}" for s in evidence.scores if s is not None)
                sources.append(f"scores {scores}" if scores else "no scores")
            sources[0] += f' at "{lesson.example}"' if lesson.example else ""
            sources += ["..."] * (n > MOST_SOURCES)
            lines.append(f"    from {counted(n, 'example')}: {'; '.join(sources)}")
        if lesson.reason:
            first = reasons.setdefault(lesson.reason, number)
            lines.append(f"    why: {lesson.reason if first == number else f'as lesson {first}'}")
    return "\n".join(lines)


def packed_lessons(lessons: Iterable[Lesson], max_tokens: int) -> list[list[Lesson]]:
    """The lessons in their order, in as few prompts as the size of one allows."""
    parts, room = list[list[Lesson]](), 0
    for lesson in lessons:
        size = estimate_tokens(lessons_text([lesson])) + 2  # its number may have more digits
        if size > room:
            parts, room = [*parts, []], max_tokens
        parts[-1].append(lesson)
        room -= size
    return parts


def dropped_text(dropped: Sequence[Lesson]) -> str:
    """The lessons that were tried and dropped, as text; of many the first, the most tried ones."""
    lines = [
        f"- {each.text}{scope_note(each.scope)}{each.reason and f': {each.reason}'}"
        for each in dropped[:MOST_DROPPED]
    ]
    return "\n".join(lines) or "(none)"


READERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "lessons": (reading.read_lessons, "one lesson a line, or the word None"),
    "operations": (
        reading.read_operations,
        'a JSON list such as [{"op": "ADD", "text": "...", "lessons": [1]}], or []',
    ),
    "brief": (reading.read_instructions, "the text of the new instructions"),
}
"""By the name of an output: what reads its value, or raises ValueError; the form that is wanted."""
PLAIN = pydantic.TypeAdapter(Any)
SHOWN_UNREAD = 300  # characters of an answer that could not be read
FILTERED = "a content filter of the provider held the answer back"


@dataclass(frozen=True, slots=True)
class Answer:
    """A module's answer, and what went wrong, as the run keeps and records it."""

    output: Any  # None if no part of it can be used
    usage: Usage = field(default_factory=Usage)
    parse_failures: int = 0
    error: str = ""
    is_too_long: bool = False  # the prompt was, for the model
    is_lost: bool = False  # the provider or the clock failed
    explanation: str = ""  # what an extraction gives beside its lessons
    unread: str = ""  # how an answer begins that could not be read

    @property
    def is_useless(self) -> bool:
        """True if the call failed, or nothing in the answer could be read."""
        return self.output is None and bool(self.error or self.parse_failures)


def read_output(name: str, value: Any) -> Any:
    """The value of an output as JSON; a module of the user's own may answer anything.

    None: lessons or operations that cannot be read.
    """
    plain = PLAIN.dump_python(value, mode="json")
    if name not in ("lessons", "operations") or plain is None:
        return plain
    try:
        return READERS[name][0](plain)
    except ValueError:
        return None


class _ReflectionModule(dspy.Module):
    """Asks one predictor, which is given those of the inputs that its signature has."""

    default_signature: Any = None
    unscored_signature: Any = None
    default_tokens = 12_000

    def __init__(
        self, signature: Any = None, adapter: dspy.Adapter | None = None, shown_tokens: int = 0
    ) -> None:
        super().__init__()
        self.ask = dspy.Predict(signature or self.default_signature)
        self.callbacks, self.ask.callbacks = Unheard(), Unheard()
        outputs = [*self.ask.signature.output_fields]
        for name in self.default_signature.output_fields if self.default_signature else ():
            if name in (*READERS, "summary") and name not in outputs:
                fault = f"{type(self).__name__}: the signature has the outputs {outputs}"
                raise SettingsError(f"{fault}; add {name!r}, which is what the run reads.")
        if self.unscored_signature:
            self.ask_unscored = dspy.Predict(signature or self.unscored_signature)
        self.adapter = adapter
        self.shown_tokens = shown_tokens or self.default_tokens

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """The predictor's answer, with `parse_failures` (0 to 2; 2: all outputs are absent).

        `unread` is how the first answer, or refusal, begins that could not be read. After one that
        was cut, or only thought, the LM has more room.
        """
        ask = self.ask if inputs.get("is_scored", True) else self.ask_unscored
        signature, first, correction = ask.signature, None, ""
        accepted = {name: value for name, value in inputs.items() if name in signature.input_fields}
        with dspy.context(adapter=asking_once(self.adapter or dspy.settings.adapter)):
            while True:
                text = ""
                with raw_answers() as seen:
                    try:
                        outputs = dict(ask(signature=signature, **accepted))
                    except dspy.AdapterParseError as error:
                        outputs, text = {}, str(error.lm_response or "")
                call = seen[-1] if seen else Call(text=text)
                answer, call = _read(signature, outputs, call, correction)
                if first is not None:
                    break
                if answer:
                    return dspy.Prediction(**answer, parse_failures=0)
                if call.is_filtered:  # asked again, it would be again
                    return dspy.Prediction(parse_failures=1, unread=FILTERED)
                names, first = [*signature.output_fields], call
                form = "; ".join(f"{name}: {READERS[name][1]}" for name in names if name in READERS)
                fault = "was cut off before its end; be brief"
                fault = fault if call.is_cut else "could not be read"
                fields = f"{', '.join(names)}{form and f' ({form})'}"
                correction = (  # in the prompt's words; the unread answer would only be noise
                    f"Your previous answer {fault}. Answer again with the output fields {fields}, "
                    "each under its own marker, and nothing else."
                )
                accepted["correction"] = correction
                if call.is_cut and (room := more_room(ask.lm or dspy.settings.lm)):
                    accepted["config"] = room
                why = dspy.InputField(desc="why your previous answer could not be used")
                signature = signature.append("correction", why, type_=str)
        unread = (first.text or first.refusal)[:SHOWN_UNREAD]
        return dspy.Prediction(**answer, parse_failures=1 if answer else 2, unread=unread)


def asking_once(adapter: Any) -> Any:
    """The adapter, or DSPy's default, without its second call in JSON.

    That asks what was filtered once more, and takes all that an LM rambles for a lesson.
    """
    adapter = copy.copy(adapter or dspy.ChatAdapter())
    adapter.use_json_adapter_fallback = False
    return adapter


def _read(
    signature: Any, answer: dict[str, Any], call: Call, correction: str
) -> tuple[dict[str, Any], Call]:
    """The outputs of a call, none where they cannot be read; and the call.

    An answer that is a thought without an end counts as cut, too. Texts that a small LM has only
    copied from the correction are left out.
    """
    text, only_thinks = reading.without_thoughts(call.text)
    raw = replace(call, is_cut=call.is_cut or only_thinks)
    text = reading.finished(text) if raw.is_cut else text
    if text != raw.text or not answer:
        answer = reading.fields_in(signature, text) or ({} if raw.is_cut else answer)
    for name, value in answer.items():  # what follows a marker is no more of the text
        answer[name] = value.partition("[[ ##")[0] if isinstance(value, str) else value
    try:
        read = {name: READERS[name][0](answer[name]) for name in READERS.keys() & answer}
    except ValueError:
        return {}, raw
    if raw.is_cut and text != raw.text and not all(read.values()):
        return {}, raw
    for name, value in read.items():
        if isinstance(value, list):
            copied = correction.casefold()
            value = [x for x in value if str(x).strip().casefold() not in copied]
        answer[name] = value
    return answer, raw


class SummarizeTrajectory(_ReflectionModule):
    """(program, example, expected, attempt) -> summary: a trajectory too long to be shown whole."""

    default_signature = SummarizeAttempt


class ExtractAdvantage(_ReflectionModule):
    """Groups -> why their good rollouts beat the bad ones, and lessons: the semantic advantage.

    Groups without scores (`is_scored=False`) are criticised instead, by another prompt. Where the
    attempts of a group have more than `shown_tokens`, the long trajectories are summarised. The
    other modules that ask the reflection LM take the same arguments.

    Args:
        signature: another prompt, with the same outputs; default: that of the module.
        adapter: a `dspy.Adapter`, such as `tfgrpo_dspy.local.PlainAdapter` for small models;
            default: `dspy.settings.adapter`.
        shown_tokens: how many tokens (estimated) of attempts, examples or lessons a prompt has;
            default: 12,000, of `UpdateLibrary` 4,000.

    Raises:
        SettingsError: the signature lacks the output that the run reads, such as `lessons`.
    """

    default_signature = CompareAttempts
    unscored_signature = CritiqueAttempts


class DraftLessons(_ReflectionModule):
    """(program, labelled examples) -> lessons, beside the first batch.

    One prompt shows `n_examples`, which are cut where they have more than `shown_tokens`.
    """

    default_signature = ReadExamples
    n_examples = 10


class UpdateLibrary(_ReflectionModule):
    """(library, dropped texts, lessons) -> operations; several prompts above `shown_tokens`."""

    default_signature = ProposeOperations
    default_tokens = 4_000


class WriteBrief(_ReflectionModule):
    """(examples with labels, or attempts) -> brief: a predictor's instructions, written anew."""

    default_signature = RewriteInstructions


class AnswerQuestion(_ReflectionModule):
    """The question of a strategy -> `answer`: the output fields of its signature, by name."""

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """The answer, empty where it could not be read, with `parse_failures`."""
        answer = dict(super().forward(**inputs))
        notes = {name: answer.pop(name) for name in ("parse_failures", "unread") if name in answer}
        return dspy.Prediction(**notes, answer=answer)


class AddLessons(dspy.Module):
    """Takes every lesson as an ADD, without an LM call: for LMs too small to edit a library."""

    shown_tokens = 10**9

    def forward(self, **_: Any) -> dspy.Prediction:
        """No `operations`: the run then adds the lessons as they are."""
        return dspy.Prediction(operations=None, parse_failures=0)
