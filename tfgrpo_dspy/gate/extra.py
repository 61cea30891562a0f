"""Extra rollouts of training examples, where those that are paid for anyway tell too little.

Each is made twice, with a random half of what is on trial and with the other half. They are
training examples, made as training rollouts are: so no validation example that a test uses has had
a say in who is tested.
"""

import random
from dataclasses import dataclass

from tfgrpo_dspy.experience import ExperienceLibrary
from tfgrpo_dspy.gate.effects import Row, balanced_presence
from tfgrpo_dspy.gate.on_trial import OnTrial
from tfgrpo_dspy.gate.protocol import Trial, TrialEvidence


@dataclass(frozen=True, slots=True)
class ExtraPairs:
    """The trials of one update, in pairs; and in each, who is present."""

    update: int
    trials: tuple[tuple[Trial, frozenset[str]], ...]

    @classmethod
    def of(cls, state: OnTrial, evidence: TrialEvidence, n_pairs: int) -> "ExtraPairs":
        """So many pairs on training examples drawn for this update."""
        ids = sorted(state.tried)
        draw = random.Random(f"extra/{evidence.update}")
        among = evidence.training_examples
        n_pairs = min(n_pairs, len(among)) if ids else 0
        if not n_pairs:
            return cls(evidence.update, ())
        examples = draw.sample(among, n_pairs)
        halves = balanced_presence(len(ids), n_pairs, f"extra/{evidence.update}")
        trials = []
        for example, half in zip(examples, halves, strict=True):
            first = frozenset(id_ for id_, is_in in zip(ids, half, strict=True) if is_in)
            for present in (first, frozenset(ids) - first):
                library = ExperienceLibrary(
                    state.holding(evidence.incumbent, present),
                    next_number=evidence.incumbent.next_number,
                )
                trials.append((Trial(library, example, evidence.update, on="training"), present))
        return cls(evidence.update, tuple(trials))

    def rows(self, evidence: TrialEvidence) -> tuple[Row, ...]:
        """What they have shown, once they are made."""
        return tuple(
            Row(f"{self.update}+{trial.example}", present, evidence.scores[trial])
            for trial, present in self.trials
        )
