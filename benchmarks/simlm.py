"""A simulated LM, for comparing prompt optimizers in minutes, without a bill. NOTHING IS REAL.

**The task** (`simlm_world.py`). A request names one or two items; the answer is the code of each.
Nobody has told the program the codes: each is a lesson to be learned. So every example needs one
or two lessons, each lesson holds for many examples, and no example alone has all of them.

**The policy** (`simlm_policy.py`) answers requests. Its chance on an item is that of the example's
difficulty, unless its prompt holds a lesson about the item (right: high; wrong: it does what it is
told; both: in between; vague: little better), or a demo in which the item has its right code.
Advice about other items, useless advice, and a long prompt distract it; so does, a little, the
wording of the instruction. Its luck belongs to example and sample, and is in part drawn again with
every other prompt.

**The reflection side** (`simlm_reflection.py`) answers whatever output fields it is asked for,
whoever asks: it is told apart from the policy by the fields, never by the optimizer. It knows
nothing of the hidden codes. It reads what its prompt claims (labels, demos, answers, verdicts of
feedback, scores, better and worse attempts), weighs the claims for each item, and where one code
is ahead it may write a lesson: as claimed, vague, or wrong, with the chances below. Where claims
mislead, its lesson is wrong. Lessons that its prompt holds already it keeps.

Both are pure functions of the prompt and the sample (the seed, which `tasks.seeded` makes of a
rollout id; at temperature 0 there is one sample), and come through DSPy's normal adapters as text.
`SimulatedLM` tells the engine which of `n` completions is meant.

**What it cannot show.** How good advice really is, or whether an LM follows it: here a sentence of
one form works, and works at once. Whether a prompt of one optimizer gets better lessons out of an
LM than another's: all are read alike, however they ask, so prompt wording, chain of thought and
a critic's cleverness count for nothing. Lessons that interact, or hold only together; tasks in
which demos teach format, style or reasoning (here they teach single facts, which few-shot
optimizers deserve better than); what a better reflection LM would change; anything of latency,
context limits and parse failures. What it does show: what an optimizer makes of a budget, where
the value of its moves is the same for all: how many samples it pays for each piece of evidence,
and how well it tells good changes from bad ones.

The parameters were set once, before any comparison was looked at. Where this world favours one
optimizer or another, `tasks/simulated.py` varies it: wrong labels, no labels, wrong lessons that
agree, merges that err, other wordings, a strong reflection LM.
"""

import itertools
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import dspy
from dspy import lm15
from simlm_policy import Policy
from simlm_reflection import Reflector
from simlm_texts import Prompt, output_fields, response
from simlm_world import WORDINGS, World
from tasks.seeded import seeded

POLICY, REFLECTION = "simulated/policy", "simulated/reflection"
ANSWER_FIELD = "answer"
"""Who asks for this field is a program and wants the policy; all others want reflection."""


@dataclass(frozen=True)
class Parameters:
    """What can be set; the values are those of every figure that names no others."""

    # ---- the policy
    chance_hard: float = 0.05  # on an item nothing is known about, in the hardest example
    chance_easy: float = 0.50  # and in the easiest; examples lie evenly between
    chance_with_lesson: float = 0.97  # a right lesson in the prompt, the easiest example
    lesson_lost_when_hard: float = 0.10  # how much less of it in the hardest
    chance_with_wrong_lesson: float = 0.05
    share_when_contradicted: float = 0.60  # of the chance with a lesson, where a wrong one is too
    demo_strength: float = 0.70  # share of the way from without to with a lesson
    vague_strength: float = 0.15  # likewise
    lost_by_other_lesson: float = 0.003  # each lesson that is about another item: share of chance
    lost_by_useless_line: float = 0.015  # each vague or useless line: likewise
    most_lost_by_lines: float = 0.25
    free_words: int = 400  # of prompt, before its length begins to distract
    lost_by_1000_words: float = 0.04
    wording: float = 0.03  # an instruction's wording moves the chance by at most this
    redrawn_luck: float = 0.30  # share of examples whose luck another prompt draws again
    usual_mistake: float = 0.50  # share of wrong answers that are the item's usual mistake

    # ---- reflection: for each item that the prompt has evidence for
    unsaid_claim: float = 1.0  # weight of a label, a demo, an answer that nothing is said about
    lesson_as_claimed: float = 0.50  # writes what the evidence says
    lesson_vague: float = 0.15
    lesson_wrong: float = 0.10  # names another code; the rest: sees nothing
    attention: float = 5.0  # with evidence for more items than this, each is seen less often
    useless_line: float = 0.20  # chance of a useless line in what one call writes
    lesson_dropped: float = 0.0  # lines that a rewriting or a merge loses
    lesson_garbled: float = 0.0  # lessons that a rewriting or a merge gives another code
    misconceived: tuple[str, ...] = ()  # items about which lessons are wrong as often as elsewhere
    # as claimed, and as claimed as often as elsewhere wrong; all wrong ones name the same code
    wordings: tuple[str, ...] = WORDINGS[:1]  # each new lesson is worded in one of these ways


_COMPLETIONS: ContextVar[Iterator[int]] = ContextVar("simulated_completions")


class SimulatedEngine:
    """Policy and reflection side, as a DSPy engine.

    Args:
        world: the hidden truth.
        parameters: see `Parameters`.
    """

    supported_params = frozenset({"temperature", "max_tokens", "seed"})

    def __init__(self, world: World, parameters: Parameters | None = None) -> None:
        self.parameters = parameters or Parameters()
        self.policy = Policy(world, self.parameters)
        self.reflector = Reflector(self.parameters)
        self.fingerprint = f"simulated {world} {self.parameters}"

    def __deepcopy__(self, memo: dict[int, Any]) -> "SimulatedEngine":
        return self  # stateless, but for caches

    def complete(self, request: lm15.Request) -> lm15.Response:
        """The answer to a request, in the format that its system message asks for."""
        prompt = Prompt.of(request, _sample(request))
        fields = output_fields(prompt.system)
        side = self.policy if ANSWER_FIELD in fields.names else self.reflector
        answer = fields.formatted(side.answers(prompt, fields))
        return response(request, prompt, answer)


class SimulatedLM(dspy.LM):
    """A `dspy.LM` whose engine learns which completion of several is meant."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        token = _COMPLETIONS.set(itertools.count())
        try:
            return super().__call__(*args, **kwargs)
        finally:
            _COMPLETIONS.reset(token)

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        token = _COMPLETIONS.set(itertools.count())
        try:
            return await super().acall(*args, **kwargs)
        finally:
            _COMPLETIONS.reset(token)


def policy_lm(engine: SimulatedEngine) -> dspy.LM:
    """The policy, as deployed: at temperature 0."""
    return seeded(SimulatedLM(POLICY, engine=engine, temperature=0.0, max_tokens=4000))


def reflection_lm(engine: SimulatedEngine) -> dspy.LM:
    """The reflection LM, at temperature 1."""
    return seeded(SimulatedLM(REFLECTION, engine=engine, temperature=1.0, max_tokens=32000))


def _sample(request: lm15.Request) -> str:
    """What sets this sample apart; at temperature 0 there is only one."""
    if not request.config.temperature:
        return "deterministic"
    return f"{request.config.seed}/{next(_COMPLETIONS.get(itertools.count()))}"
