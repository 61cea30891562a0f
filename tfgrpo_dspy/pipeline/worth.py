"""What each experience of the result is worth: its effect, from all rollouts of the run; its price.

Whatever was rolled out, in groups or in trials, had some experiences and lacked others: all of it
is evidence (`gate.effects`), with the example as block: groups and trials of one training example
are one block, and so are all trials of one validation example.
"""

import functools
import math
from collections.abc import Iterable, Iterator, Mapping

from tfgrpo_dspy.experience import ExperienceLibrary
from tfgrpo_dspy.gate import GroupEvidence, Trial
from tfgrpo_dspy.gate.effects import Row, estimate_effects
from tfgrpo_dspy.reflection import estimate_tokens


def with_worth(
    library: ExperienceLibrary,
    groups: Iterable[GroupEvidence],
    scores: Mapping[Trial, float | None],
) -> ExperienceLibrary:
    """The library with each experience's effect, where one was measured, and its price.

    An effect that the gate has measured stays: it is that on the examples which the experience
    concerns, where the gate knows them.

    The price is an estimate from the length of its line: nobody knows the tokens of every LM.
    """
    estimates = estimate_effects(_telling_rows(library, groups, scores))
    prices = {
        experience.id: {"price": estimate_tokens(f"[{experience.id}*] {experience.text}\n")}
        for experience in library
    }
    effects = {
        experience.id: {"effect": estimates[name].effect}
        for experience in library
        if experience.effect is None
        and (name := _name(experience.content)) in estimates
        and math.isfinite(estimates[name].effect.standard_error)
    }
    return library.annotated({id_: prices[id_] | effects.get(id_, {}) for id_ in prices})


def _telling_rows(
    library: ExperienceLibrary,
    groups: Iterable[GroupEvidence],
    scores: Mapping[Trial, float | None],
) -> Iterator[Row]:
    """The rollouts of those examples that were tried with more than one part of the library."""
    own = _names(library)  # only what is there at the end is asked about
    present = functools.cache(lambda held: _names(held) & own)
    by_example: dict[tuple[str, int], list[Row]] = {}

    def add(example: tuple[str, int], held: ExperienceLibrary, score: float | None) -> None:
        by_example.setdefault(example, []).append(Row(example, present(held), score))

    for group in groups:
        for held, score in zip(group.libraries, group.scores, strict=True):
            add(("training", group.example), held, score)
    for trial, score in scores.items():
        add((trial.on, trial.example), trial.library, score)
    for rows in by_example.values():
        if len({row.present for row in rows}) > 1:
            yield from rows


def _names(library: ExperienceLibrary) -> frozenset[str]:
    return frozenset(_name(experience.content) for experience in library)


def _name(content: tuple[str, str, str]) -> str:
    return "\x00".join(content)
