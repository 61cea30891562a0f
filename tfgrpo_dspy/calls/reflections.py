"""Asks reflection modules, and the user's `approve`: an answer is replayed where it is recorded.

Nothing that a module does can end the run: what it raises is counted and costs its own answer.
"""

import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import dspy
from pydantic import TypeAdapter

from tfgrpo_dspy.budget import Entry
from tfgrpo_dspy.budget.meter import CallWatcher, Meter, is_filtered, is_too_long, metered
from tfgrpo_dspy.calls import NOT_ASKED, Calls
from tfgrpo_dspy.dspy_seam import abilities_of, demo_keeping_adapter, watching
from tfgrpo_dspy.errors import LibraryError, RunStopped, TrainingCut, described
from tfgrpo_dspy.errors import shown as value_shown
from tfgrpo_dspy.events import Approve, Proposal
from tfgrpo_dspy.experience import AnyOperation, Applied, Keep, Refusal, operation_from
from tfgrpo_dspy.pool import Job
from tfgrpo_dspy.reflection import modules
from tfgrpo_dspy.reflection.lessons import Guard, admitted, encodable
from tfgrpo_dspy.reflection.modules import FILTERED, Answer, as_input, clip, shorter, tokens_of
from tfgrpo_dspy.rollout import Usage, rollout_id_for
from tfgrpo_dspy.sampling.examples import Example, media_in
from tfgrpo_dspy.sampling.one_rollout import sampling_copy
from tfgrpo_dspy.settings import RunInputs
from tfgrpo_dspy.text import shortened
from tfgrpo_dspy.user_code import copy_program, language_models, settled

Inputs = Mapping[str, Any]
Waited = Callable[..., Answer]
"""A question that is asked; called, it waits for the answer. If its argument is False, one that is
too long for the LM is not asked again with shorter inputs."""
DEFAULT_OBJECTIVE = "Whatever raises the score on examples that are not seen here."
IMAGES = "images"  # an input that is no field: its images are shown at the end of `example`
NOT_SHOWN = (
    "the reflection LM is told of an image, and not shown it: DSPy does not know that the LM takes "
    "images. Pass Reflection(show_images=True) if it does."
)
ASKED_TOKENS = 2_000  # of an input, in the record of an answer
MAX_HALVINGS = 4  # of what is shown, where the LM says that the prompt is too long
SHORTER = 0.7  # of the tokens that were too long: what an LM that has taken none is sent at most
STAGES = {
    "update": ("update", "operations", 0, "update"),
    "draft": ("draft", "lessons", 1, "draft"),
    "lesson": ("extract", "lessons", 2, "example"),
    "brief": ("brief", "brief", 1, "brief"),
    "summary": ("summarize", "summary", 2, "example"),
    "strategy": ("", "answer", 2, "update"),
}
"""By stage: the module of `Reflection` that is asked, the output that is wanted, the rank (of the
jobs that wait, those with the lowest rank are begun first), and what the question is about."""
ANSWERS = TypeAdapter(Answer)


class ReflectionClient:
    """Asks reflection modules for one run; `common` holds the inputs that all of them get."""

    def __init__(self, inputs: RunInputs, calls: Calls) -> None:
        settings = self._settings = inputs.settings
        self._calls = calls
        self.beside = calls.pool.beside
        self._lm = settings.reflection_lm or dspy.settings.lm
        self._adapter = demo_keeping_adapter(modules.asking_once(dspy.settings.adapter), {})
        self._lms_of = functools.cache(language_models)
        self._modules = functools.cache(modules.AnswerQuestion)  # of strategies, by signature
        self._refused: list[int] = []  # tokens of prompts too long for an LM that has taken none
        n, max_words = settings.max_experiences, settings.reflection.max_experience_words
        self.common = {
            "program": modules.describe_program(inputs.student),
            "objective": settings.objective or DEFAULT_OBJECTIVE,
            "max_words": max_words,
            "limits": f"at most {n} experiences of at most {max_words} words each",
        }

    @property
    def answers(self) -> dict[int, list[Answer]]:
        """All answers by update, but for those to strategies, which several updates may share."""
        answers = defaultdict[int, list[Answer]](list)
        for entry in [*self._calls.journal.entries]:
            if isinstance(entry.value, Answer) and entry.role != "strategy":
                answers[entry.update or 0].append(entry.value)
        return answers

    @property
    def _takes_none(self) -> bool:
        every = [e.value for e in [*self._calls.journal.entries] if isinstance(e.value, Answer)]
        return all(answer.is_too_long or answer.error for answer in every)

    def images_of(self, examples: Iterable[Example]) -> list[str]:
        """The images in the examples' inputs, as DSPy writes them; none if the LM takes none."""
        by_example = [media_in(dict(example.raw.inputs())) for example in examples]
        images = [str(one) for media in by_example for one in media if isinstance(one, dspy.Image)]
        shows = self._settings.reflection.show_images
        if images and shows is None:
            shows = abilities_of(self._lm).get("supports_vision")
        if images and not shows:
            self._calls.report.count_failure("image not shown", NOT_SHOWN, len(images))
            return []
        return images

    def begin(
        self,
        stage: str,
        batch: Any,  # whose update and epoch count
        number: int,
        inputs: Callable[[int], Inputs],
        index: int = 0,
        signature: Any = None,  # of a strategy's question
    ) -> Waited:
        """Ask about an example, a draft or an update, by its number.

        `inputs(n)` shows as much as fits into a prompt that was halved n times, as far as it can;
        then the longest texts are cut, whatever they are. So it is asked again where `inputs(0)` is
        too long for the LM. `index` tells the rollouts of an example apart. Of a strategy's
        question `output` holds the output fields by name. Raises RunStopped: the run has ended;
        MissingRecordError: offline, and the answer is not recorded.
        """
        calls, (name, output, rank, noun) = self._calls, STAGES[stage]
        if signature is None:
            module, place = getattr(self._settings.reflection, name), (batch.epoch, number, index)
        else:
            module, place = self._modules(signature), (0, 0, 0)
        purpose = "update/0/0" if stage == "update" else stage  # as in earlier runs
        rollout_id = rollout_id_for(self._settings.seed, *place, purpose)

        def begun(shown: Inputs) -> Job[Answer]:
            key = calls.journal.keys.reflection(stage, module, rollout_id, shown)
            entry = Entry(key, stage, batch.update, f"{stage} of {noun} {number}")
            if calls.journal.store is not None:
                new = {k: str(v) for k, v in shown.items() if v is not self.common.get(k)}
                parts = (f"[{name}]\n{clip(text, ASKED_TOKENS)}" for name, text in new.items())
                entry.asked = "\n\n".join(parts)
            ask = functools.partial(self._answer, entry, module, output, rollout_id, shown)
            return calls.begin(entry, ANSWERS, ask, _without, (rank, batch.update))

        whole = {**self.common, **inputs(0)}
        job = begun(whole)

        def wait(shortens: bool = True) -> Answer:
            answer = calls.pool.result(job)
            why = answer.error
            for halving in range(1, MAX_HALVINGS + 1):
                if not (answer.is_too_long and shortens):
                    return answer
                fitting = {**self.common, **inputs(halving)}
                cut = shorter(fitting, tokens_of(whole) >> halving)
                if tokens_of(cut) >= tokens_of(whole):
                    break
                answer = calls.pool.result(begun(cut))
                why = answer.error or why
            if answer.is_too_long and why and self._takes_none:
                calls.ledger.cut(
                    "the reflection LM refused every prompt as too long, also the shortest; pass a "
                    f"reflection_lm with a larger context: {shortened(why, 200)}"
                )
            return answer

        return wait

    def _answer(
        self, entry: Entry, module: Any, output: str, rollout_id: int, inputs: Inputs, _job: Any
    ) -> Answer:
        """Ask the module, in this thread; its LMs are metered like all others.

        After prompts that were too long, while none was taken, one at a time; one that is hardly
        shorter than one of those is not sent.
        """
        prices, is_extra = self._settings.execution.prices, entry.role == "strategy"
        meter, tokens = Meter(self._calls.ledger, prices, is_extra), tokens_of(inputs)
        with self._calls.ledger.one_by_one if self._refused else nullcontext():
            if any(tokens > SHORTER * n for n in self._refused):
                return Answer(None, is_too_long=True)
            self._calls.ask(entry.update or 0)
            asked, settings = self._metered(module, rollout_id, meter)
            tags = [*inputs, output] if isinstance(self._adapter, dspy.XMLAdapter) else []
            shown = {k: as_input(v, tags) if isinstance(v, str) else v for k, v in inputs.items()}
            if images := shown.pop(IMAGES, None):  # behind what is escaped and shortened
                lines = ["\nThe images of the inputs, in their order:", *images]
                shown["example"] += "\n".join(lines)
            try:
                # short: all calls share the module; with none, a `CallWatcher` gets no entry
                with dspy.context(**settings, trace=[], disable_history=False, max_history_size=99):
                    prediction = asked(**shown)
                answer = _read(prediction, output, meter.usage)
            except (RunStopped, KeyboardInterrupt):
                raise
            except BaseException as error:  # noqa: BLE001 - a user's own module may raise anything
                lost, is_long = meter.provider_failure, is_too_long(error) or meter.may_be_too_long
                raised = f"{type(module).__name__} raised {described(error)}"
                message, is_lost = lost.message if lost else raised, bool(lost) and not is_long
                answer = Answer(None, meter.usage, 0, message, is_long, is_lost)
                if is_filtered(error):  # as one that comes as an answer
                    answer = Answer(None, meter.usage, 1, unread=FILTERED)
            meter.check()
            if answer.is_too_long and self._takes_none:
                self._refused.append(tokens)
            elif not answer.error:
                self._refused.clear()
            return answer

    def _metered(self, module: Any, rollout_id: int, meter: Meter) -> tuple[Any, dict[str, Any]]:
        """The module with metered LMs, and the settings of DSPy under which it is asked."""

        def own_copy(lm: Any) -> Any:
            return metered(sampling_copy(lm, rollout_id, None), meter)

        if self._lms_of(module):
            module = copy_program(module, own_copy)
        settings = {"lm": own_copy(self._lm), "adapter": self._adapter}
        return module, settings | watching(CallWatcher(meter))  # LMs that it does not hold


def _read(prediction: Any, output: str, usage: Usage) -> Answer:
    whys = (getattr(prediction, name, "") for name in ("semantic_advantage", "critique"))
    why = next(filter(None, whys), "")
    n_unparsed = int(getattr(prediction, "parse_failures", 0))
    if not (n_unparsed or hasattr(prediction, output)):  # it would pass for none
        form = f"dspy.Prediction({output}=...)"
        raise TypeError(f"forward returned {value_shown(prediction)}; return {form}")
    return Answer(
        modules.read_output(output, getattr(prediction, output, None)),
        usage,
        n_unparsed,
        explanation=str(why),
        unread=encodable(str(getattr(prediction, "unread", "") or "")),
    )


def _without(why: TrainingCut | TimeoutError, _where: str) -> Answer:
    if isinstance(why, TrainingCut):
        return NOT_ASKED
    return Answer(None, error=f"the reflection {why}", is_lost=True)


@dataclass(frozen=True, slots=True)
class _Approved:
    operations: tuple[AnyOperation, ...]
    error: str = ""


APPROVALS = TypeAdapter(_Approved)


def approved(
    inputs: RunInputs, calls: Calls, proposal: Proposal, applied: Applied, guard: Guard
) -> Applied:
    """The library with the operations that the user lets through, or gives in their place.

    Refused are those that the user rejects, too, and those in their place that cannot be made: they
    are checked as the operations of the reflection LM are. An answer with one of them is not
    recorded. Any other answer of `approve` changes nothing; if it raises, the run ends. Raises
    MissingRecordError: offline, and there is no record.
    """
    ask, proposed, library = inputs.settings.approve, proposal.operations, proposal.library
    if ask is None or all(isinstance(operation, Keep) for operation in proposed):
        return applied
    bare = (replace(e, evidence=(), effect=None, is_on_trial=False) for e in library)
    shown = [asdict(replace(operation, evidence=())) for operation in proposed]
    key = calls.journal.keys.approval([library.holding(bare).to_dict(), shown])
    record = calls.lookup(f"approval of update {proposal.update}", key, APPROVALS)
    answer = record or calls.journal.cleaned(_asked(ask, calls, proposal), APPROVALS)
    if answer.error:
        calls.report.count_failure("approval", answer.error)
        failed = (Refusal(op, f"approve failed: {answer.error}") for op in proposed)
        return replace(library.applied(()), refused=(*applied.refused, *failed))
    checked = [
        op if op in proposed else admitted(op, inputs.predictors, guard) for op in answer.operations
    ]
    passed = [each for each in checked if not isinstance(each, Refusal)]
    outcome = library.applied(passed, inputs.settings.limits)
    faults = [each for each in (*checked, *outcome.refused) if isinstance(each, Refusal)]
    for fault in faults:
        calls.report.count_failure("approval", f"{fault.operation}: {fault.reason}")
    if record is None and not faults:
        calls.journal.keep(key, answer, APPROVALS, is_lost=False)
    rejected = (op for op in proposed if op not in answer.operations)
    refused = (Refusal(op, "rejected by approve") for op in rejected)
    return replace(outcome, refused=(*applied.refused, *refused, *faults))


def _asked(ask: Approve, calls: Calls, proposal: Proposal) -> _Approved:
    proposed = proposal.operations

    def answered() -> Any:  # a sequence as a list: one that raises does so here
        answer = settled(ask(proposal))
        return [*answer] if isinstance(answer, Sequence) and not isinstance(answer, str) else answer

    try:
        with calls.ledger.standing():
            answer = calls.pool.call(answered)
    except (RunStopped, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001 - whatever the user's function raises ends the run
        calls.ledger.fail(f"approve raised {described(error)}", error)
    if isinstance(answer, bool):
        return _Approved(proposed if answer else ())
    if not isinstance(answer, list):
        return _Approved((), f"approve gave {answer!r}; give True, False or a list of operations.")
    operations: list[Any] = []
    try:
        for wanted, before in itertools.zip_longest(answer, proposed[: len(answer)]):
            operation = operation_from(wanted)
            if type(operation) is type(before) and not operation.evidence:  # it was edited
                operation = replace(operation, evidence=before.evidence)
            operations.append(operation)
    except LibraryError as error:
        return _Approved((), str(error))
    return _Approved(tuple(operations))
