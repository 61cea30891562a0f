"""Runs for tests of gates that try advice in training groups: update after update, with scores."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gate_play import play
from hypothesis import strategies as st

from tfgrpo_dspy import Evidence, Experience, ExperienceLibrary
from tfgrpo_dspy.experience import Add, Delete, Keep, Limits, Modify, Operation, sift
from tfgrpo_dspy.gate import (
    Decision,
    GroupEvidence,
    GroupPlan,
    Trial,
    TrialEvidence,
    TrialThenConfirm,
)

N_TRAINING, N_VALIDATION, GROUP_SIZE = 24, 60, 4
GOOD, USELESS, HARMFUL, NEW = "Be exact.", "Be brief.", "Shout.", "Be exact and kind."
GAINS = {GOOD: 0.5, HARMFUL: -0.4, NEW: 0.5}

ScoreOf = Callable[[ExperienceLibrary, str], float | None]
"""The score of a rollout with this library; the name says which rollout it is."""


def worth(gains: Mapping[str, float] = GAINS, base: float = 0.4) -> ScoreOf:
    """0 or 1: the chance is moved by what each text of the library is worth."""

    def score(library: ExperienceLibrary, name: str) -> float:
        chance = base + sum(gains.get(own.text, 0.0) for own in library)
        return float(random.Random(name).random() < chance)

    return score


@dataclass
class Life:
    """One run: updates one after another, with groups made as the gate says."""

    gate: Any = field(default_factory=TrialThenConfirm)
    score: ScoreOf = field(default_factory=worth)
    library: ExperienceLibrary = field(default_factory=ExperienceLibrary)
    memory: Any = None
    n_validation: int = N_VALIDATION
    n_groups: int = 12
    limits: Limits = field(default_factory=Limits)
    max_trials: int | None = None
    n_ahead: int | None = None
    seed: int = 0
    concerned: Mapping[str, frozenset[int]] | None = None
    update: int = 0
    asked: list[Trial] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    known: dict[Trial, float | None] = field(default_factory=dict)

    @property
    def tests(self) -> list[Trial]:
        """The trials on validation examples, each once: those that a test is made of."""
        return [trial for trial in dict.fromkeys(self.asked) if trial.on == "validation"]

    @property
    def n_extra(self) -> int:
        """How many trials on training examples it asked for."""
        return sum(trial.on == "training" for trial in dict.fromkeys(self.asked))

    def group(self, example: int) -> GroupEvidence:
        plan = GroupPlan(
            self.library, example, self.update, GROUP_SIZE, self._concerned(example), self.memory
        )
        libraries = (self.library,) * GROUP_SIZE
        if any(own.is_on_trial for own in self.library):
            libraries = self.gate.assign(plan)
        name = f"{self.seed}/{self.update}/{example}"
        scores = tuple(self.score(lib, f"{name}/{i}") for i, lib in enumerate(libraries))
        return GroupEvidence(example, libraries, scores)

    def _concerned(self, example: int) -> tuple[Experience, ...]:
        given_ = self.concerned or {}
        return tuple(
            own for own in self.library
            if own.is_on_trial and example in given_.get(own.text, frozenset())
        )  # fmt: skip

    def evidence(
        self, *operations: Operation, groups: tuple[GroupEvidence, ...] | None = None
    ) -> TrialEvidence:
        first = self.update * self.n_groups
        examples = [(first + i) % N_TRAINING for i in range(self.n_groups)]
        evidence = TrialEvidence(
            self.library,
            tuple(operations),
            self.n_validation,
            self.update,
            limits=self.limits,
            scores=self.known,
            n_updates=12,
            n_training=N_TRAINING,
            groups=tuple(map(self.group, examples)) if groups is None else groups,
            memory=self.memory,
            max_trials=self.max_trials,
            n_ahead=self.n_ahead,
        )
        everyone = {own.id: own for own in (*evidence.proposed, *self.library)}
        given_ = self.concerned or {}
        concerns = {id_: given_[own.text] for id_, own in everyone.items() if own.text in given_}
        return replace(evidence, concerns=None if self.concerned is None else concerns)

    def then(
        self, *operations: Operation, groups: tuple[GroupEvidence, ...] | None = None
    ) -> Decision:
        """One update more; with groups of its own, or with those that are given."""
        evidence = self.evidence(*operations, groups=groups)

        def answer(trial: Trial) -> float | None:
            name = f"{self.seed}/{trial.on}/{trial.example}/{trial.index}"
            self.known[trial] = self.score(trial.library, name)
            return self.known[trial]

        decision, asked = play(self.gate, evidence, answer)
        self.asked += [trial for trials in asked for trial in trials.trials]
        self.decisions.append(decision)
        self.library, self.memory = decision.library, decision.memory
        self.update += 1
        return decision

    def until_decided(self, id_: str, most: int = 12) -> Decision:
        """Updates without an operation, until this one is on trial no more."""
        for _ in range(most):
            decision = self.then()
            if id_ not in self.gate.on_trial(self.memory):
                return decision
        raise AssertionError(f"{id_} is on trial still: {decision.reason}")


def texts(library: ExperienceLibrary | None) -> list[str]:
    return [own.text for own in library or ()]


def given_to_programs(decision: Decision) -> ExperienceLibrary:
    return decision.library if decision.exported is None else decision.exported


def on_trial(life: Life) -> set[str]:
    assert life.gate.on_trial(life.memory) == {own.id for own in life.library if own.is_on_trial}
    return set(life.gate.on_trial(life.memory))


def from_groups(n: int) -> tuple[Evidence, ...]:
    return tuple(Evidence(0, example, (1, 2), (0.0, 1.0)) for example in range(n))


SETTLED = ExperienceLibrary([Experience("E1", GOOD)])


STORIES: dict[str, list[list[Operation]]] = {
    "add": [[Add(GOOD), Add(USELESS)], [Add(HARMFUL)], [], []],
    "modify": [[Modify("E1", NEW)], [Modify("E1", GOOD)], [Add(USELESS)], []],
    "delete": [[Delete("E1"), Add(GOOD)], [], [Delete("E2")], []],
}


SLATE, AMBER = (f"When a case is of kind {kind}, answer T08." for kind in ("slate", "amber"))
NARROW = {SLATE: frozenset(range(0, N_TRAINING, 3)), AMBER: frozenset({1, 2})}
TEXTS = [SLATE, AMBER, GOOD, USELESS, HARMFUL, NEW, "Be kind.", "Check twice."]


@st.composite
def operations_on(
    draw: st.DrawFn, library: ExperienceLibrary, limits: Limits, words: Sequence[str]
) -> list[Operation]:
    """Operations that the library takes."""
    sources = st.sampled_from([(), from_groups(1), from_groups(3)])
    kinds: list[Any] = [st.builds(Add, st.sampled_from(words), evidence=sources)]
    if len(library):
        ids = st.sampled_from([own.id for own in library])
        kinds += [
            st.builds(Delete, ids),
            st.builds(Keep, ids, evidence=sources),
            st.builds(Modify, ids, st.sampled_from(words), evidence=sources),
        ]
    taken, _ = sift(library, draw(st.lists(st.one_of(kinds), max_size=5)), limits)
    return taken


def check_invariants(life: Life, before: ExperienceLibrary, taken: Sequence[Operation]) -> None:
    decision, exported = life.decisions[-1], life.decisions[-1].exported
    assert exported is not None
    assert len(decision.library) <= life.limits.max_experiences
    assert decision.library.next_number >= before.next_number
    assert exported.next_number == decision.library.next_number
    ids = {own.id for own in decision.library}
    gone = {own.id for own in before} - ids
    assert gone <= set(decision.dropped)
    assert not ids & set(decision.dropped)
    assert all(decision.dropped.values())
    assert {own.id for own in exported} <= ids
    new = {own.id for own in decision.library if own.number >= before.next_number}
    n_adds = sum(isinstance(operation, Add) for operation in taken)
    assert len(new) <= n_adds
    given_ = {own.id for own in exported}
    assert all(own.is_on_trial for own in decision.library if own.id in new - given_)


def check_ids(life: Life, start: ExperienceLibrary, modified_ids: set[str]) -> None:
    """No id stands for two texts, unless a MODIFY has changed it."""
    said: dict[str, set[str]] = {}
    shown = [*(trial.library for trial in life.asked), *(d.library for d in life.decisions)]
    shown += [decision.exported or decision.library for decision in life.decisions]
    for library in (start, *shown):
        for own in library:
            said.setdefault(own.id, set()).add(own.text)
    twice = {id_ for id_, of in said.items() if len(of) > 1}
    assert twice <= modified_ids
