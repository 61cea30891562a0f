"""Promise 9: ids are never reused or renumbered; unchanged experiences keep order and prefix."""

from typing import Any

import dspy
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from runs import predictor, questions
from scripted import EXTRACT, UPDATE, Prompt, chat, lessons, operations, scripted_lm
from small import grpo

from tfgrpo_dspy import Decision, ExperienceLibrary, Gate, RunEvidence

WORDS = ("tea", "milk", "rice", "salt")
TEXTS = [f"When you are asked about {word}, look it up." for word in WORDS]
IDS = [f"E{number}" for number in range(1, 8)]
OPERATIONS = st.lists(
    st.one_of(
        st.fixed_dictionaries({"op": st.just("ADD"), "text": st.sampled_from(TEXTS)}),
        st.fixed_dictionaries(
            {
                "op": st.just("MODIFY"),
                "id": st.sampled_from(IDS),
                "text": st.sampled_from([f"{text} Twice." for text in TEXTS]),
            }
        ),
        st.fixed_dictionaries({"op": st.just("DELETE"), "id": st.sampled_from(IDS)}),
        st.fixed_dictionaries({"op": st.just("KEEP"), "id": st.sampled_from(IDS)}),
    ),
    max_size=4,
)
BATCHES = st.lists(OPERATIONS, min_size=4, max_size=4)


class Watching(Gate):
    """Lets every other update stay, and remembers what was proposed and what stood."""

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


def run(
    batches: list[list[dict[str, str]]], student: Any, rejects: int = 2
) -> tuple[Any, Watching]:
    """A compile of four updates; the reflection LM proposes these operations one by one."""
    left = iter(batches)

    def answer(prompt: Prompt) -> str:
        return chat(answer="yes" if prompt.random().random() < 0.5 else "no")

    lm = scripted_lm(
        [
            (EXTRACT, lessons("When you are asked, answer.", "Ask who asks.")),
            (UPDATE, lambda _prompt: operations(*next(left, []))),
            ("question", answer),
        ]
    )
    gate = Watching(rejects)
    optimizer = grpo(
        lambda _example, pred: pred.answer == "yes",
        gate=gate,
        group_size=4,
        batch_size=2,
        epochs=2,
        num_threads=2,
        progress=False,
    )
    with dspy.context(lm=lm):
        optimized = optimizer.compile(
            student, trainset=questions(4), valset=questions(1, start=100)
        )
    return optimized, gate


def check(before: ExperienceLibrary, after: ExperienceLibrary) -> None:
    """What holds for one library and the next one of a run."""
    old = {experience.id: experience for experience in before}
    new = {experience.id: experience for experience in after}
    assert len(new) == len(list(after))
    kept = [id_ for id_ in old if id_ in new]
    added = [id_ for id_ in new if id_ not in old]
    assert list(new) == kept + added  # old ones in their order, then the new ones
    assert all(int(id_[1:]) >= before.next_number for id_ in added)
    assert after.next_number == before.next_number + len(added)
    first_change = next((i for i, id_ in enumerate(old) if new.get(id_) != old[id_]), len(old))
    unchanged = list(before)[:first_change]
    assert after.render().startswith(ExperienceLibrary(unchanged).render())


@given(batches=BATCHES, rejects=st.sampled_from([0, 1, 2]))
@settings(max_examples=12, derandomize=True)
def test_ids_and_order_hold_through_every_update_of_a_run(
    batches: list[list[dict[str, str]]], rejects: int
) -> None:
    _, gate = run(batches, predictor(), rejects)
    for before, after in gate.steps:
        check(before, after)
    for (incumbent, _), stood in zip(gate.steps[1:], gate.stood, strict=False):
        assert incumbent == stood


@given(first=BATCHES, second=BATCHES)
@settings(max_examples=8, derandomize=True)
def test_a_second_run_takes_up_the_ids_where_the_first_left_them(
    first: list[list[dict[str, str]]], second: list[list[dict[str, str]]]
) -> None:
    known = ExperienceLibrary().apply([{"op": "ADD", "text": "Always answer."}])
    _, gate = run(first, known.bake(predictor()))
    left = gate.stood[-1] if gate.stood else known
    _, gate = run(second, left.bake(predictor()))
    assume(gate.steps and len(left))  # an empty library leaves no block, and no memory of ids
    assert gate.steps[0][0] == left
    for before, after in gate.steps:
        check(before, after)


def test_a_deleted_id_is_not_given_again_though_its_text_comes_back() -> None:
    tea, milk = TEXTS[:2]
    batches = [
        [{"op": "ADD", "text": tea}, {"op": "ADD", "text": milk}],
        [{"op": "DELETE", "id": "E2"}],
        [{"op": "ADD", "text": milk}],
        [{"op": "MODIFY", "id": "E1", "text": f"{tea} Twice."}],
    ]
    _, gate = run(batches, predictor())
    told = [[(e.id, e.text) for e in library] for library in gate.stood]
    assert told == [
        [("E1", tea), ("E2", milk)],
        [("E1", tea)],
        [("E1", tea), ("E3", milk)],
        [("E1", f"{tea} Twice."), ("E3", milk)],
    ]


def test_the_last_id_of_a_run_stays_retired_in_the_baked_program_and_the_next_run() -> None:
    tea, milk, rice = TEXTS[:3]
    library = ExperienceLibrary().apply([{"op": "ADD", "text": tea}, {"op": "ADD", "text": milk}])
    student = library.apply([{"op": "DELETE", "id": "E2"}]).bake(predictor())
    assert "(next id: E3)" in student.signature.instructions
    _, gate = run([[{"op": "ADD", "text": rice}]], student)
    assert [(e.id, e.text) for e in gate.stood[-1]] == [("E1", tea), ("E3", rice)]
