"""Every trial of an update's candidates as a row, and the effects that the rows show."""

from tfgrpo_dspy.experience import Delete, ExperienceLibrary
from tfgrpo_dspy.gate.candidates import Candidates
from tfgrpo_dspy.gate.effects import Row, estimate_effects
from tfgrpo_dspy.gate.protocol import TrialEvidence


def annotated(
    candidates: Candidates, chosen: frozenset[int], evidence: TrialEvidence
) -> ExperienceLibrary:
    """The library of the chosen, with the effect of each as all of the update's trials show it."""
    library = candidates.library(chosen)
    measured = estimate_effects(rows_of(candidates, evidence))
    annotations = {
        candidates.id_of(k): {"effect": measured[str(k)].effect}
        for k in chosen
        if not isinstance(candidates.changes[k], Delete)
        and str(k) in measured
        and measured[str(k)].is_known
    }
    return library.annotated(annotations)


def rows_of(candidates: Candidates, evidence: TrialEvidence) -> list[Row]:
    """A row for each trial of the run whose library is the incumbent with some candidates."""
    present: dict[ExperienceLibrary, frozenset[str] | None] = {}
    rows = []
    for trial, score in evidence.scores.items():
        if trial.library not in present:
            found = candidates.present_in(trial.library)
            present[trial.library] = None if found is None else frozenset(map(str, found))
        names = present[trial.library]
        if names is not None:
            rows.append(Row((trial.on, trial.example), names, score))
    return rows
