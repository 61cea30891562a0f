"""The programs that may be returned, and which one was chosen."""

from collections.abc import Sequence
from dataclasses import dataclass

from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.results import DemoTrial, ExampleScores, Finalist


@dataclass(frozen=True, slots=True)
class Candidate:
    """A program that may be returned: the student with a library, and with demos or without."""

    library: ExperienceLibrary
    has_demos: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """The program to return, and what was measured of the candidates.

    `before` and `after` are the scores of student and result on the same validation examples;
    empty where the budget did not reach.
    """

    best: Candidate
    before: ExampleScores = ()
    after: ExampleScores = ()
    finalists: tuple[Finalist, ...] = ()
    demo_trial: DemoTrial | None = None


def candidates_of(
    start: ExperienceLibrary, libraries: Sequence[ExperienceLibrary], has_demos: bool
) -> list[Candidate]:
    """The student and its rivals; demos are tried with the first of these and the student alone."""
    candidates = [Candidate(start), *map(Candidate, libraries)]
    if has_demos:
        candidates += [Candidate(each.library, has_demos=True) for each in candidates[1::-1]]
    return list(dict.fromkeys(candidates))
