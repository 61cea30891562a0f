"""Promise 9: ids are never reused or renumbered; unchanged experiences keep order and prefix."""

from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from runs import Run, predictor, questions
from scripted import UPDATE, operations

from tfgrpo_dspy import Decision, ExperienceLibrary, Gate, RunEvidence

TEXTS = [f"When you are asked about {word}, look it up." for word in ("tea", "milk", "rice")]
IDS = st.sampled_from([f"E{number}" for number in range(1, 8)])


def written(op: str, **fields: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, str]]:
    return st.fixed_dictionaries({"op": st.just(op), **fields})


OPERATIONS = st.one_of(
    written("ADD", text=st.sampled_from(TEXTS)),
    written("MODIFY", id=IDS, text=st.sampled_from([f"{text} Twice." for text in TEXTS])),
    written("DELETE", id=IDS),
    written("KEEP", id=IDS),
)
BATCHES = st.lists(st.lists(OPERATIONS, max_size=4), min_size=4, max_size=4)


class Watching(Gate):
    """Lets every other update stay (or all, with `rejects=2`); remembers what was proposed."""

    def __init__(self, rejects: int) -> None:
        self.rejects = rejects
        self.steps: list[tuple[ExperienceLibrary, ExperienceLibrary]] = []
        self.stood: list[ExperienceLibrary] = []

    def decide(self, evidence: RunEvidence) -> Decision:
        stays = len(self.steps) % 2 != self.rejects
        incumbent = evidence.previous.library
        self.steps.append((incumbent, evidence.proposed))
        self.stood.append(evidence.proposed if stays else incumbent)
        return Decision(self.stood[-1], "by turns")


def run(batches: list[list[dict[str, str]]], student: Any, rejects: int = 2) -> Watching:
    """The gate after a compile of four updates; the reflection LM proposes these operations."""
    left, gate = iter(batches), Watching(rejects)
    update = (UPDATE, lambda _prompt: operations(*next(left, [])))
    given = {"gate": gate, "batch_size": 2, "epochs": 2, "student": student}
    Run([["1", "0"]] * 4, update, valset=questions(1, start=100), **given)
    return gate


def check(steps: list[tuple[ExperienceLibrary, ExperienceLibrary]]) -> None:
    """What holds for each library of a run and the one proposed after it."""
    for before, after in steps:
        old = {experience.id: experience for experience in before}
        new = {experience.id: experience for experience in after}
        added = [id_ for id_ in new if id_ not in old]
        assert list(new) == [*(id_ for id_ in old if id_ in new), *added]
        assert all(int(id_[1:]) >= before.next_number for id_ in added)
        assert after.next_number == before.next_number + len(added)
        first_change = next((i for i, id_ in enumerate(old) if new.get(id_) != old[id_]), len(old))
        unchanged = ExperienceLibrary(list(before)[:first_change])
        assert after.render().startswith(unchanged.render())


@given(batches=BATCHES, rejects=st.sampled_from([0, 1, 2]))
@settings(max_examples=12, derandomize=True)
def test_ids_and_order_hold_through_every_update_of_a_run(
    batches: list[list[dict[str, str]]], rejects: int
) -> None:
    gate = run(batches, predictor(), rejects)
    check(gate.steps)
    assert [before for before, _ in gate.steps[1:]] == gate.stood[:-1]


@given(first=BATCHES, second=BATCHES)
@settings(max_examples=8, derandomize=True)
def test_a_second_run_takes_up_the_ids_where_the_first_left_them(
    first: list[list[dict[str, str]]], second: list[list[dict[str, str]]]
) -> None:
    left = run(first, ExperienceLibrary.from_texts(["Always answer."]).bake(predictor())).stood[-1]
    assume(len(left))  # an empty library leaves no block, and no memory of ids
    gate = run(second, left.bake(predictor()))
    assert gate.steps[0][0] == left
    check(gate.steps)


def test_the_last_id_of_a_run_stays_retired_in_the_baked_program_and_the_next_run() -> None:
    tea, milk, rice = TEXTS
    library = ExperienceLibrary.from_texts([tea, milk]).apply([{"op": "DELETE", "id": "E2"}])
    student = library.bake(predictor())
    assert "(next id: E3)" in student.signature.instructions
    after = run([[{"op": "ADD", "text": rice}]], student).stood[-1]
    assert after.render() == f"[E1*] {tea}\n[E3*] {rice}"
