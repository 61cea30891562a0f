"""Promise 3 with pipelining: what runs at the same time changes when a run ends, never how.

With `max_staleness=s` the rollouts of batch b are made with the library of update b-1-s.
"""

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import is_polite, predictor, questions
from scripted import EXTRACT, UPDATE, Latency, Prompt, Rule, chat, lessons, operations, scripted_lm
from small import grpo
from test_promise_deterministic import run
from test_promise_resume import facts, interrupted_after, replayed

from tfgrpo_dspy import AddLessons, BayesianGate, ExperienceLibrary, Gate, NoGate
from tfgrpo_dspy.rollout import rollout_id_for

WAIT_S = 10.0
"""How long a test waits for what should come; it does not come where something waits in vain."""

GATES = {"no gate": NoGate(), "gate": BayesianGate()}


@pytest.mark.parametrize(("staleness", "gate"), [(0, "gate"), (1, "gate"), (2, "no gate")])
@given(seed=st.integers(0, 10**6), salt=st.integers(0, 10**6))
@settings(max_examples=2, derandomize=True)
def test_any_threads_and_latencies_give_the_same_bit_for_bit(
    staleness: int, gate: str, seed: int, salt: int
) -> None:
    chosen: dict[str, Any] = {"max_staleness": staleness, "gate": GATES[gate], "seed": seed}
    alone = facts(run(1, **chosen))
    for num_threads in (4, 16):
        assert facts(run(num_threads, Latency(salt + num_threads), **chosen)) == alone
    assert '"op": "ADD"' in alone


@pytest.mark.parametrize("staleness", [0, 2])
@given(n=st.integers(8, 30), salt=st.integers(0, 10**6))
@settings(max_examples=2, derandomize=True)
def test_so_does_a_run_that_goes_on_where_another_was_interrupted(
    tmp_path_factory: pytest.TempPathFactory, staleness: int, n: int, salt: int
) -> None:
    log_dir: Path = tmp_path_factory.mktemp("log_dir")
    chosen: dict[str, Any] = {"max_staleness": staleness, "gate": GATES["gate"]}
    with pytest.raises(KeyboardInterrupt):
        run(4, interrupted_after(n), log_dir=log_dir, **chosen)
    resumed = run(16, Latency(salt), log_dir=log_dir, **chosen)
    assert facts(resumed) == facts(run(1, **chosen))
    assert n - 4 <= sum(replayed(resumed).values())
    offline = run(1, log_dir=log_dir, offline=True, **chosen)
    assert facts(offline) == facts(resumed)


# ---------------------------------------------------------------------- whose library, what order

ADVICE = (
    "Apples ripen.", "Bridges sway.", "Candles drip.", "Dogs bark.",
    "Engines hum.", "Flags flutter.", "Glaciers melt.", "Horns blow.",
)  # fmt: skip
"""The lesson of each of eight training examples; four batches of two."""
SEEDS = {
    rollout_id_for(0, 0, example, index, "training") % 2**31: (example, index)
    for example in range(len(ADVICE))
    for index in range(2)
}


def example_of(prompt: Prompt) -> int:
    (found,) = re.findall(r"question: question (\d+)\b", prompt.user)[-1:]
    return int(found)


def in_training(prompt: Prompt) -> bool:
    return re.search(r"question \d\b", prompt.user) is not None


def contrasting(prompt: Prompt) -> str:
    """In training, the first rollout of each group is polite; as deployed, one with advice is."""
    is_good = not SEEDS[prompt.seed or 0][1] if in_training(prompt) else "*]" in prompt.system
    return chat(answer="please" if is_good else "no")


def failing(prompt: Prompt) -> str:
    """In training every rollout fails."""
    return chat(answer="no") if in_training(prompt) else contrasting(prompt)


def add_all(prompt: Prompt) -> str:
    texts = re.findall(r"^\d+\. (.*)$", prompt.user, re.MULTILINE)
    return operations(*({"op": "ADD", "text": text, "lessons": [1]} for text in texts))


RULES: list[Rule] = [
    (EXTRACT, lambda prompt: lessons(ADVICE[example_of(prompt)])),
    (UPDATE, add_all),
]


class Fruitful:
    """One epoch over the eight examples, in which every group gives its lesson."""

    def __init__(
        self,
        before: Callable[[Prompt], None] | None = None,
        answers: Callable[[Prompt], str] = contrasting,
        **changes: Any,
    ) -> None:
        chosen = {"group_size": 2, "epochs": 1, "batch_size": 2, "progress": False}
        chosen |= {"num_threads": 16, "gate": NoGate()}
        self.lm = scripted_lm([*RULES, ("question", answers)], before=before)
        optimizer = grpo(is_polite, **(chosen | changes))
        with dspy.context(lm=self.lm):
            self.optimized = optimizer.compile(
                predictor(), trainset=questions(len(ADVICE)), valset=questions(4, start=100)
            )
        self.updates = self.optimized.detailed_results.updates
        self.texts = [e.text for e in ExperienceLibrary.from_program(self.optimized)]

    @property
    def batches(self) -> list[list[int]]:
        return [[group.example for group in update.groups] for update in self.updates]

    @property
    def kinds(self) -> str:
        """What was asked, in its order, a letter each: Rollout, Extraction, Update, Final."""
        return "".join(kind_of(prompt) for prompt in self.lm.engine.prompts)


def kind_of(prompt: Prompt) -> str:
    for letter, pattern in (("E", EXTRACT), ("U", UPDATE)):
        if re.search(pattern, prompt.text):
            return letter
    return "R" if in_training(prompt) else "F"


def trained_on(prompt: Prompt) -> int | None:
    """The example of a training rollout."""
    return SEEDS[prompt.seed or 0][0] if kind_of(prompt) == "R" else None


@pytest.fixture(scope="module")
def batches() -> list[list[int]]:
    """The examples of each batch, in their order, which depends on the seed only."""
    dspy.configure_cache(enable_disk_cache=False)
    with dspy.context(lm=None, adapter=None, callbacks=[]):
        return Fruitful(num_threads=1).batches


@pytest.mark.parametrize("staleness", [0, 1, 2, 10])
@pytest.mark.parametrize("num_threads", [1, 16])
def test_the_rollouts_of_a_batch_see_the_library_of_so_many_updates_before(
    staleness: int, num_threads: int
) -> None:
    made = Fruitful(Latency(staleness), num_threads=num_threads, max_staleness=staleness)
    seen: dict[int, set[tuple[str, ...]]] = {}
    for prompt in made.lm.engine.prompts:
        example = trained_on(prompt)
        if example is not None:
            known = tuple(re.findall(r"\[E\d+\*\] (.*)", prompt.system))
            batch = next(i for i, examples in enumerate(made.batches) if example in examples)
            seen.setdefault(batch, set()).add(known)
    in_order = [ADVICE[example] for examples in made.batches for example in examples]
    assert seen == {b: {tuple(in_order[: 2 * max(0, b - staleness)])} for b in range(4)}


@pytest.mark.parametrize("answers", [contrasting, failing])
@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_lessons_come_in_the_order_of_the_groups_though_the_last_group_is_done_first(
    staleness: int, answers: Callable[[Prompt], str], batches: list[list[int]]
) -> None:
    was_begun = {last: threading.Event() for _, last in batches}
    waits_for = {first: was_begun[last] for first, last in batches}
    in_vain: list[int] = []

    def before(prompt: Prompt) -> None:
        example = trained_on(prompt)
        if example in was_begun:
            was_begun[example].set()
        if example in waits_for and not waits_for[example].wait(WAIT_S):
            in_vain.append(example)

    made = Fruitful(before, answers, max_staleness=staleness, update=AddLessons())
    assert in_vain == []
    in_order = [ADVICE[example] for examples in batches for example in examples]
    assert [text for update in made.updates for text in update.lessons] == in_order
    assert made.texts == in_order
    evidence = made.optimized.detailed_results.library["experiences"]
    found = [(e["evidence"][0]["update"], e["evidence"][0]["example"]) for e in evidence]
    assert found == [(b, example) for b, examples in enumerate(batches) for example in examples]


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_what_is_waited_for_goes_before_what_is_not(staleness: int) -> None:
    """One thread: a lesson as soon as its group is done, an update as soon as its lessons are."""
    made = Fruitful(num_threads=1, max_staleness=staleness, gate=Gate())
    # The first three rollouts, which show whether the metric works, are of both examples by turns.
    assert re.fullmatch(r"RRR(ER|RE)EU(RRERREU){3}F{8}", made.kinds)
    asked = [(trained_on(p), kind_of(p)) for p in made.lm.engine.prompts]
    trained = [example for example, kind in asked if kind == "R"]
    assert trained[4:] == [e for batch in made.batches[1:] for e in batch for _ in range(2)]


def test_rollouts_of_the_next_update_run_while_that_before_them_is_written(
    batches: list[list[int]],
) -> None:
    was_begun = threading.Event()
    in_vain: list[str] = []

    def before(prompt: Prompt) -> None:
        if trained_on(prompt) in batches[1]:
            was_begun.set()
        if kind_of(prompt) == "U" and not was_begun.wait(WAIT_S):
            in_vain.append(prompt.text)

    Fruitful(before, max_staleness=1)
    assert in_vain == []
