"""Experiences, operations and the library: values, rules of `apply`, diff, merge, files."""

import copy
import dataclasses
import doctest
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import tfgrpo_dspy.experience.library
from tfgrpo_dspy import Evidence, Experience, ExperienceLibrary, LibraryError, LibraryFormatError
from tfgrpo_dspy.experience import (
    Add,
    Delete,
    Effect,
    Keep,
    Limits,
    Modify,
    Refusal,
    operation_from,
)
from tfgrpo_dspy.experience.operations import gist

FIRST = Evidence(update=0, example=4, rollout_ids=(11, 12), scores=(0.0, 1.0))
SECOND = Evidence(update=1, example=2, rollout_ids=(21, 22), scores=(None, None))


@pytest.fixture
def library() -> ExperienceLibrary:
    """E1 for all, E2 for the predictor `solve`; E3 is retired, E4 is free."""
    return ExperienceLibrary(
        [
            Experience("E1", "Ask for the order number."),
            Experience("E2", "Say sorry first.", "solve"),
        ],
        next_number=4,
    )


def contents(library: ExperienceLibrary) -> list[tuple[str, str, str]]:
    return [(experience.id, experience.text, experience.scope) for experience in library]


# ---------------------------------------------------------------------- strategies

any_text = st.text(st.characters(codec="utf-8"), max_size=30)
experience_texts = any_text.filter(str.strip) | st.sampled_from(
    ["Ask.", "ask", "ASK!", "Say sorry first.", "one two three", "कि", "का", "x > 0", "x < 0"]
)
scopes = st.sampled_from(["*", "solve", "answer", "d['k']"])
evidence = st.builds(
    Evidence,
    update=st.integers(0, 50),
    example=st.integers(0, 99),
    rollout_ids=st.lists(st.integers(0, 2**63 - 1), max_size=3),
    scores=st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False), max_size=3),
)
all_evidence = st.lists(evidence, max_size=2, unique=True)


@st.composite
def libraries(draw: st.DrawFn) -> ExperienceLibrary:
    """Any library: any order of ids, any gaps, retired ids at the end too."""
    numbers = draw(st.lists(st.integers(1, 12), max_size=6, unique=True))
    experiences = [
        Experience(f"E{number}", draw(experience_texts), draw(scopes), tuple(draw(all_evidence)))
        for number in numbers
    ]
    retired = draw(st.integers(0, 3))
    return ExperienceLibrary(experiences, next_number=max(numbers, default=0) + 1 + retired)


good_operations = st.one_of(
    st.builds(Add, st.sampled_from(["Ask.", "ask", "Be brief.", "", "a b c d e f g"]), scopes),
    st.builds(Modify, st.sampled_from(["E1", "E2", "E3"]), experience_texts),
    st.builds(Delete, st.sampled_from(["E1", "E2", "E3", "E40"])),
    st.builds(Keep, st.sampled_from(["E1", "E2", "E3", "E40"]), evidence=st.just((FIRST,))),
)
rough_values = st.sampled_from(
    [None, "", " ", "E1", "e2", "[E3]", 1, "G1", "E0", "E99", 2.5, [], "*", "solve", "Ask."]
) | st.text(max_size=8)  # with half characters too
rough_mappings = st.fixed_dictionaries(
    {},
    optional={
        "op": st.sampled_from(
            ["ADD", "add", "MODIFY", "Update", "DELETE", "REMOVE", "KEEP", "MERGE", None, 3]
        ),
        "id": rough_values,
        "text": rough_values | experience_texts,
        "scope": rough_values,
        "reason": rough_values,
    },
)
anything = good_operations | rough_mappings | st.sampled_from([None, "ADD", 5, ("ADD", "Ask.")])
operation_lists = st.lists(anything, max_size=8)
limits = st.builds(
    Limits, max_experiences=st.integers(1, 6), max_experience_words=st.integers(1, 5)
)


# ---------------------------------------------------------------------- values


def test_outer_white_space_of_an_experience_is_no_part_of_its_text() -> None:
    assert Experience("E1", " \n Ask.\t").text == "Ask."


@pytest.mark.parametrize("wrong", ["E0", "E", "E01", "e1", "1", "[E1]", "E1 ", 1, None])
def test_an_id_is_e_and_a_number_from_1(wrong: Any) -> None:
    with pytest.raises(LibraryError, match="id="):
        Experience(wrong, "Ask.")


@pytest.mark.parametrize("wrong", ["", " \n", 5, None])
def test_an_experience_without_text_cannot_be_built(wrong: Any) -> None:
    with pytest.raises(LibraryError, match="text="):
        Experience("E1", wrong)


@pytest.mark.parametrize("wrong", ["", 5, None])
def test_a_scope_is_a_name(wrong: Any) -> None:
    with pytest.raises(LibraryError, match="scope="):
        Experience("E1", "Ask.", wrong)


def test_half_a_character_is_no_text() -> None:
    with pytest.raises(LibraryError, match="half a character"):
        Experience("E1", "\ud83d")


def test_experiences_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Experience("E1", "Ask.").text = "Say."  # type: ignore[misc]


def test_evidence_takes_no_part_in_the_equality_of_experiences() -> None:
    plain, proven = Experience("E1", "Ask."), Experience("E1", "Ask.", evidence=(FIRST,))
    assert plain == proven
    assert hash(plain) == hash(proven)


@pytest.mark.parametrize(
    "other",
    [Experience("E2", "Ask."), Experience("E1", "ask."), Experience("E1", "Ask.", "solve"), "E1"],
)
def test_id_text_and_scope_take_part_in_the_equality_of_experiences(other: object) -> None:
    assert Experience("E1", "Ask.") != other


def test_an_id_that_occurs_twice_makes_no_library() -> None:
    with pytest.raises(LibraryError, match="E1"):
        ExperienceLibrary([Experience("E1", "Ask."), Experience("E1", "Say.")])


@pytest.mark.parametrize("wrong", [3, 0, -1, "5", 4.0])
def test_the_next_id_is_a_whole_number_above_every_id_in_use(wrong: Any) -> None:
    with pytest.raises(LibraryError, match=r"next_number=.*at least 4"):
        ExperienceLibrary([Experience("E3", "Ask.")], next_number=wrong)


def test_an_experience_is_found_by_its_id(library: ExperienceLibrary) -> None:
    assert library["E2"].text == "Say sorry first."
    with pytest.raises(KeyError):
        library["E3"]


def test_rendered_for_one_predictor_shows_what_that_predictor_is_given(
    library: ExperienceLibrary,
) -> None:
    assert library.render("answer") == "[E1*] Ask for the order number."
    assert library.render("solve") == "[E1*] Ask for the order number.\n[E2] Say sorry first."


def test_rendered_as_a_whole_says_for_whom_an_experience_is(library: ExperienceLibrary) -> None:
    assert library.render() == (
        "[E1*] Ask for the order number.\n[E2] Say sorry first. (for solve)"
    )


def test_the_empty_library_renders_to_nothing() -> None:
    assert ExperienceLibrary().render() == ""


def test_the_documented_example_of_a_library_holds() -> None:
    failed, tried = doctest.testmod(tfgrpo_dspy.experience.library)
    assert (failed, tried) == (0, 3)


# ---------------------------------------------------------------------- reading operations


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({"op": "ADD", "text": "Ask."}, Add("Ask.")),
        ({"op": "add", "text": "Ask.", "scope": "solve"}, Add("Ask.", "solve")),
        ({"op": " Modify ", "id": "[e2]", "text": "Ask."}, Modify("E2", "Ask.")),
        ({"op": "UPDATE", "id": 2, "text": "Ask."}, Modify("E2", "Ask.")),
        ({"op": "MODIFY", "id": "2", "text": "a", "scope": "b"}, Modify("E2", "a", "b")),
        ({"op": "DELETE", "id": "E2"}, Delete("E2")),
        ({"op": "remove", "id": "[E2*]", "reason": "wrong"}, Delete("E2", "wrong")),
        ({"op": "KEEP", "id": " (E2) "}, Keep("E2")),
        ({"op": "none", "id": "E2"}, Keep("E2")),
        ({"op": "ADD", "id": "E7", "text": "Ask.", "scope": None, "x": 1}, Add("Ask.")),
        ({"op": "ADD", "text": "Ask.", "scope": ""}, Add("Ask.")),
        ({"op": "MODIFY", "id": "E2", "text": "Ask.", "scope": ""}, Modify("E2", "Ask.", None)),
        ({"op": "DELETE", "id": "E2", "text": None}, Delete("E2")),
    ],
)
def test_what_an_lm_writes_is_read_forgivingly(written: dict[str, Any], meant: object) -> None:
    assert operation_from(written) == meant


def test_an_operation_carries_the_evidence_that_it_is_read_with() -> None:
    read = operation_from({"op": "ADD", "text": "Ask."}, (FIRST,))
    assert read == Add("Ask.", evidence=(FIRST,))


MALFORMED = [
    ({}, "op=None"),
    ({"op": "MERGE", "id": "E1"}, "op='MERGE': the operations are ADD, MODIFY, DELETE, KEEP"),
    ({"op": "ADD"}, "op='ADD' needs a text"),
    ({"op": "MODIFY", "id": "E1"}, "op='MODIFY' needs a text"),
    ({"op": "ADD", "text": 5}, "text=5"),
    ({"op": "ADD", "text": "a", "scope": 5}, "scope=5"),
    ({"op": "MODIFY", "id": "E1", "text": "a", "scope": 5}, "scope=5"),
    ({"op": "MODIFY", "id": "G1", "text": "a"}, "id='G1'"),
    ({"op": "DELETE"}, "id='None'"),
    ({"op": "KEEP", "id": "E0"}, "id='E0'"),
    ({"op": "KEEP", "id": "E1", "reason": ["a"]}, r"reason=['a']"),
    ({"op": "ADD", "text": "\ud83d"}, "half a character"),
    (None, "None is no operation"),
    ("ADD Ask.", "'ADD Ask.' is no operation"),
]


@pytest.mark.parametrize(("written", "reason"), MALFORMED)
def test_a_malformed_operation_is_refused_with_what_is_wrong_with_it(
    library: ExperienceLibrary, written: Any, reason: str
) -> None:
    (refusal,) = library.refusals([written])
    assert refusal.operation is written
    assert reason in refusal.reason
    assert library.apply([written]) == library


@pytest.mark.parametrize("written", [w for w, _ in MALFORMED if isinstance(w, dict)])
def test_a_malformed_operation_cannot_be_built(written: dict[str, Any]) -> None:
    with pytest.raises(LibraryError):
        operation_from(written)


def test_a_malformed_operation_costs_itself_only(library: ExperienceLibrary) -> None:
    after = library.apply([{"op": "MERGE"}, None, {"op": "ADD", "text": "Be brief."}])
    assert contents(after) == [*contents(library), ("E4", "Be brief.", "*")]


# ---------------------------------------------------------------------- what operations do


def test_an_added_experience_goes_to_the_end_under_the_next_free_id(
    library: ExperienceLibrary,
) -> None:
    after = library.apply([Add("Be brief.", "answer", evidence=(FIRST,))])
    assert contents(after)[2:] == [("E4", "Be brief.", "answer")]
    assert after["E4"].evidence == (FIRST,)
    assert after.next_number == 5


def test_a_modified_experience_keeps_its_id_its_place_and_its_scope(
    library: ExperienceLibrary,
) -> None:
    after = library.apply([Modify("E1", " Ask first. "), Modify("E2", "Say sorry.", "answer")])
    assert contents(after) == [("E1", "Ask first.", "*"), ("E2", "Say sorry.", "answer")]


def test_a_modified_experience_keeps_its_evidence_and_gets_the_new() -> None:
    library = ExperienceLibrary([Experience("E1", "Ask.", evidence=(FIRST,))])
    after = library.apply([Modify("E1", "Ask first.", evidence=(SECOND,))])
    assert after["E1"].evidence == (FIRST, SECOND)


def test_a_delete_needs_no_text_and_retires_the_id(library: ExperienceLibrary) -> None:
    after = library.apply([{"op": "DELETE", "id": "E2"}]).apply([{"op": "ADD", "text": "New."}])
    assert contents(after) == [("E1", "Ask for the order number.", "*"), ("E4", "New.", "*")]


def test_the_id_of_the_last_experience_is_not_used_again_after_its_delete() -> None:
    library = ExperienceLibrary([Experience("E1", "Ask.")])
    after = library.apply([Delete("E1")]).apply([Add("Ask.")])
    assert contents(after) == [("E2", "Ask.", "*")]


def test_a_keep_adds_evidence_and_changes_nothing_else(library: ExperienceLibrary) -> None:
    after = library.apply([Keep("E2", evidence=(FIRST,))])
    assert after == library
    assert [experience.evidence for experience in after] == [(), (FIRST,)]


def test_evidence_that_is_there_is_not_added_again(library: ExperienceLibrary) -> None:
    once = library.apply([Keep("E2", evidence=(FIRST,))])
    assert once.apply([Keep("E2", evidence=(SECOND, FIRST))])["E2"].evidence == (FIRST, SECOND)


def test_applying_leaves_the_library_as_it_was(library: ExperienceLibrary) -> None:
    library.apply([Add("New."), Modify("E1", "Other."), Delete("E2")])
    assert contents(library) == [
        ("E1", "Ask for the order number.", "*"),
        ("E2", "Say sorry first.", "solve"),
    ]
    assert library.next_number == 4


# ---------------------------------------------------------------------- what is refused


def reasons(refusals: tuple[Refusal, ...]) -> list[str]:
    return [refusal.reason for refusal in refusals]


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "MODIFY", "id": "E3", "text": "Be brief."},
        {"op": "MODIFY", "id": "E77", "text": "Be brief."},
        {"op": "MODIFY", "id": "G1", "text": "Be brief."},
        Delete("E3"),
        Keep("E3"),
    ],
)
def test_an_operation_on_an_unknown_id_is_refused_and_adds_nothing(
    library: ExperienceLibrary, operation: Any
) -> None:
    assert len(library.refusals([operation])) == 1
    assert library.apply([operation]) == library


def test_of_two_operations_on_one_id_the_first_counts(library: ExperienceLibrary) -> None:
    given = [Modify("E1", "Ask first."), Delete("E1"), Keep("E1")]
    assert contents(library.apply(given))[0] == ("E1", "Ask first.", "*")
    assert [refusal.operation for refusal in library.refusals(given)] == given[1:]
    assert (
        reasons(library.refusals(given))
        == ["an earlier operation of this list names E1; the first one counts"] * 2
    )


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_text_is_refused(library: ExperienceLibrary, text: str) -> None:
    given = [Add(text), Modify("E1", text)]
    assert reasons(library.refusals(given)) == ["the text is empty"] * 2


def test_a_text_of_too_many_words_is_refused(library: ExperienceLibrary) -> None:
    given = [Add("one two three"), Add("one two three four"), Modify("E1", "one two three four")]
    refusals = library.refusals(given, Limits(max_experience_words=3))
    assert [refusal.operation for refusal in refusals] == given[1:]
    assert reasons(refusals) == ["4 words; at most 3 are allowed"] * 2


def test_an_add_into_a_full_library_is_refused(library: ExperienceLibrary) -> None:
    given = [Add("Be brief."), Add("Be kind.")]
    refusals = library.refusals(given, Limits(max_experiences=3))
    assert [refusal.operation for refusal in refusals] == [given[1]]
    assert reasons(refusals) == ["the library is full: 3 experiences"]


def test_a_delete_makes_room_for_an_add_of_the_same_list(library: ExperienceLibrary) -> None:
    given = [Add("Be brief."), Delete("E1")]
    after = library.apply(given, Limits(max_experiences=2))
    assert [experience.id for experience in after] == ["E2", "E4"]
    assert library.refusals(given, Limits(max_experiences=2)) == ()


def test_a_refused_delete_makes_no_room(library: ExperienceLibrary) -> None:
    given = [Keep("E1"), Delete("E1"), Delete("E3"), Add("Be brief.")]
    after = library.apply(given, Limits(max_experiences=2))
    assert [experience.id for experience in after] == ["E1", "E2"]


@pytest.mark.parametrize(
    "text", ["Say sorry first.", "say sorry, first", "SAY  SORRY\nFIRST!", "\uff33ay sorry first"]
)
def test_what_the_library_says_already_is_refused_whatever_case_and_punctuation(text: str) -> None:
    library = ExperienceLibrary([Experience("E1", "Say sorry first."), Experience("E2", "Other.")])
    given = [Add(text), Modify("E2", text)]
    assert reasons(library.refusals(given)) == ["E1 says this already"] * 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Return x > 0.", "Return x < 0."),
        ("Write it in C.", "Write it in C++."),
        ("Pay in $.", "Pay in \u20ac."),
        ("\u0926\u093f\u0928", "\u0926\u093e\u0928"),  # Devanagari, day and gift: vowel signs
        ("Round to 0.5.", "Round to 05."),
        ("!!", "??"),
    ],
)
def test_texts_that_say_different_things_have_different_gists(one: str, other: str) -> None:
    assert gist(one) != gist(other)


def test_the_two_ways_to_write_an_accent_make_no_difference() -> None:
    assert gist("caf\u00e9") == gist("cafe\u0301")


@pytest.mark.parametrize(
    ("scope", "other", "meet"),
    [
        ("*", "*", True),
        ("*", "solve", True),
        ("solve", "*", True),
        ("solve", "solve", True),
        ("solve", "answer", False),
    ],
)
def test_texts_are_compared_where_a_predictor_would_be_given_both(
    scope: str, other: str, meet: bool
) -> None:
    library = ExperienceLibrary([Experience("E1", "Ask.", scope)])
    assert bool(library.refusals([Add("ask", other)])) is meet


def test_of_two_adds_that_say_the_same_the_second_is_refused() -> None:
    given = [Add("Ask."), Add("ask!")]
    assert contents(ExperienceLibrary().apply(given)) == [("E1", "Ask.", "*")]
    assert reasons(ExperienceLibrary().refusals(given)) == [
        "an earlier ADD of this list says this already"
    ]


def test_what_a_deleted_experience_said_may_be_added_in_the_same_list(
    library: ExperienceLibrary,
) -> None:
    after = library.apply([Add("Ask for the order number!"), Delete("E1")])
    assert contents(after)[1:] == [("E4", "Ask for the order number!", "*")]


def test_what_a_modified_experience_said_may_be_added_behind_it(
    library: ExperienceLibrary,
) -> None:
    given = [Modify("E1", "Be brief."), Add("Ask for the order number."), Add("be brief")]
    refusals = library.refusals(given)
    assert [refusal.operation for refusal in refusals] == given[2:]
    assert reasons(refusals) == ["E1 says this already"]


def test_a_modify_that_changes_nothing_is_refused(library: ExperienceLibrary) -> None:
    given = [Modify("E1", "Ask for the order number. "), Modify("E2", "Say sorry first.", "solve")]
    assert reasons(library.refusals(given)) == [
        "E1 says just this already",
        "E2 says just this already",
    ]


def test_a_modify_may_change_case_punctuation_or_scope_only(library: ExperienceLibrary) -> None:
    given = [Modify("E1", "Ask for the ORDER number!"), Modify("E2", "Say sorry first.", "answer")]
    assert contents(library.apply(given)) == [
        ("E1", "Ask for the ORDER number!", "*"),
        ("E2", "Say sorry first.", "answer"),
    ]


# ---------------------------------------------------------------------- for all operations


def kind_of(operation: Any) -> type:
    return type(operation_from(operation) if isinstance(operation, Mapping) else operation)


def id_of(operation: Any) -> str:
    read = operation_from(operation) if isinstance(operation, Mapping) else operation
    return str(read.id)


@settings(max_examples=100)
@given(libraries(), operation_lists, limits)
@example(ExperienceLibrary(), [{"op": "ADD", "text": "x", "scope": ""}], Limits())
def test_every_operation_takes_effect_or_is_refused_and_none_does_both(
    library: ExperienceLibrary, operations: list[Any], limits: Limits
) -> None:
    after = library.apply(operations, limits)
    refusals = library.refusals(operations, limits)
    refused = {id(refusal.operation) for refusal in refusals}
    assert all(refusal.reason for refusal in refusals)

    taken = [operation for operation in operations if id(operation) not in refused]
    assert len(taken) + len(refusals) == len(operations)
    assert library.refusals(taken, limits) == ()
    assert library.apply(taken, limits) == after

    before = {experience.id: experience.content for experience in library}
    now = {experience.id: experience.content for experience in after}
    ids = {kind: [id_of(op) for op in taken if kind_of(op) is kind] for kind in (Modify, Delete)}
    n_added = sum(kind_of(operation) is Add for operation in taken)
    assert sorted(ids[Delete]) == sorted(before.keys() - now.keys())
    assert sorted(ids[Modify]) == sorted(
        id_ for id_ in before.keys() & now.keys() if before[id_] != now[id_]
    )
    assert n_added == len(now.keys() - before.keys())


@settings(max_examples=200)
@given(libraries(), operation_lists, limits)
def test_any_operations_leave_a_library_within_its_limits_and_in_its_order(
    library: ExperienceLibrary, operations: list[Any], limits: Limits
) -> None:
    after = library.apply(operations, limits)
    ids = [experience.id for experience in after]
    stayed = [experience.id for experience in library if experience.id in ids]
    added = [f"E{number}" for number in range(library.next_number, after.next_number)]
    assert ids == [*stayed, *added]
    assert len(after) <= max(len(library), limits.max_experiences)
    old = {experience.content for experience in library}
    for experience in after:
        if experience.content not in old:
            assert len(experience.text.split()) <= limits.max_experience_words


@settings(max_examples=100)
@given(st.lists(operation_lists, max_size=5))
def test_no_id_comes_back_however_many_updates_there_are(updates: list[list[Any]]) -> None:
    library, gone = ExperienceLibrary(), set[str]()
    for operations in updates:
        after = library.apply(operations, Limits(max_experiences=4))
        gone |= {experience.id for experience in library} - {e.id for e in after}
        assert not gone & {experience.id for experience in after}
        assert after.next_number >= library.next_number
        assert len(after) <= 4
        library = after


# ---------------------------------------------------------------------- equality


def test_equal_libraries_have_the_same_experiences_order_and_next_id() -> None:
    ask, say = Experience("E1", "Ask."), Experience("E2", "Say.")
    library = ExperienceLibrary([ask, say])
    assert library == ExperienceLibrary([ask, say], next_number=3)
    assert library != ExperienceLibrary([say, ask])
    assert library != ExperienceLibrary([ask, say], next_number=4)
    assert library != ExperienceLibrary([ask])
    assert library != [ask, say]


@given(libraries())
def test_evidence_takes_no_part_in_equality_and_hash(library: ExperienceLibrary) -> None:
    bare = ExperienceLibrary(
        [Experience(*experience.content) for experience in library],
        next_number=library.next_number,
    )
    assert bare == library
    assert {bare: "found"}[library] == "found"


@given(libraries())
def test_a_copied_or_pickled_library_is_equal_with_its_evidence(
    library: ExperienceLibrary,
) -> None:
    for other in (copy.deepcopy(library), pickle.loads(pickle.dumps(library))):  # noqa: S301
        assert other == library
        assert other.to_dict() == library.to_dict()


# ---------------------------------------------------------------------- annotations

MEASURED = {"effect": Effect(0.12, 0.04, 80), "price": 9, "is_on_trial": True}


def test_an_annotated_library_is_equal_and_knows_what_was_measured(
    library: ExperienceLibrary,
) -> None:
    annotated = library.annotated({"E2": MEASURED})
    assert annotated == library
    assert (annotated["E2"].effect, annotated["E2"].price) == (Effect(0.12, 0.04, 80), 9)
    assert annotated["E2"].is_on_trial
    assert annotated["E1"].effect is library["E2"].effect is None


def test_annotations_of_what_is_not_there_or_is_no_annotation_are_refused(
    library: ExperienceLibrary,
) -> None:
    with pytest.raises(LibraryError, match=r"ids \['E3'\] are not in the library"):
        library.annotated({"E3": MEASURED})
    with pytest.raises(LibraryError, match=r"\['text'\] are no annotations"):
        library.annotated({"E1": {"text": "Another."}})


def test_a_modify_voids_what_was_measured_of_the_old_text_and_a_keep_does_not(
    library: ExperienceLibrary,
) -> None:
    annotated = library.annotated({"E1": {**MEASURED, "evidence": (FIRST,)}})
    modified = annotated.apply([Modify("E1", "Ask politely.", evidence=(SECOND,))])["E1"]
    assert (modified.effect, modified.price, modified.is_on_trial) == (None, None, False)
    assert modified.evidence == (FIRST, SECOND)
    kept = annotated.apply([Keep("E1", evidence=(SECOND,))])["E1"]
    assert (kept.effect, kept.price, kept.is_on_trial) == (Effect(0.12, 0.04, 80), 9, True)


def test_a_saved_library_loads_with_what_was_measured(
    library: ExperienceLibrary, tmp_path: Path
) -> None:
    annotated = library.annotated({"E2": MEASURED})
    annotated.save(tmp_path / "library.json")
    loaded = ExperienceLibrary.load(tmp_path / "library.json")
    assert loaded.to_dict() == annotated.to_dict()
    assert loaded["E2"].effect == Effect(0.12, 0.04, 80)
    assert loaded["E1"].effect is None


def test_a_file_from_before_experiences_had_effects_loads(library: ExperienceLibrary) -> None:
    record = library.to_dict()
    assert set(record["experiences"][0]) == {"id", "text", "scope", "evidence"}
    assert ExperienceLibrary.from_dict(record) == library


def test_a_damaged_effect_is_a_damaged_library(library: ExperienceLibrary) -> None:
    record = library.annotated({"E1": MEASURED}).to_dict()
    record["experiences"][0]["effect"] = {"estimate": 0.1}
    with pytest.raises(LibraryFormatError, match="damaged"):
        ExperienceLibrary.from_dict(record)


# ---------------------------------------------------------------------- diff


def test_a_diff_says_what_was_added_removed_and_modified(library: ExperienceLibrary) -> None:
    after = library.apply([Delete("E1"), Modify("E2", "Say sorry."), Add("Be brief.")])
    assert str(library.diff(after)) == (
        "+ [E4] Be brief.\n"
        "- [E1] Ask for the order number.\n"
        "~ [E2] Say sorry first. (for solve) -> Say sorry. (for solve)"
    )


def test_a_diff_shows_a_change_of_scope(library: ExperienceLibrary) -> None:
    after = library.apply([Modify("E2", "Say sorry first.", "*")])
    assert str(library.diff(after)) == "~ [E2] Say sorry first. (for solve) -> Say sorry first."


def test_equal_libraries_have_no_difference(library: ExperienceLibrary) -> None:
    supported = library.apply([Keep("E1", evidence=(FIRST,))])
    assert not library.diff(supported)
    assert str(library.diff(supported)) == "no difference"


@given(libraries(), libraries())
def test_a_diff_backwards_has_added_and_removed_exchanged(
    one: ExperienceLibrary, other: ExperienceLibrary
) -> None:
    there, back = one.diff(other), other.diff(one)
    assert there.added == back.removed
    assert set(there.modified) == {(old, new) for new, old in back.modified}


# ---------------------------------------------------------------------- merge


def test_merging_keeps_own_ids_and_gives_colliding_ones_the_next_free() -> None:
    mine = ExperienceLibrary([Experience("E1", "Ask."), Experience("E2", "Say sorry.")])
    theirs = ExperienceLibrary([Experience("E2", "Be brief."), Experience("E5", "Be kind.")])
    assert contents(mine.merge(theirs)) == [
        ("E1", "Ask.", "*"),
        ("E2", "Say sorry.", "*"),
        ("E6", "Be brief.", "*"),
        ("E5", "Be kind.", "*"),
    ]
    assert mine.merge(theirs).next_number == 7


def test_merging_revives_no_retired_id() -> None:
    mine = ExperienceLibrary([Experience("E1", "Ask.")], next_number=4)  # E2 and E3 are retired
    theirs = ExperienceLibrary([Experience("E2", "Be brief.")])
    assert [experience.id for experience in mine.merge(theirs)] == ["E1", "E4"]


def test_merging_remembers_the_ids_that_the_other_has_retired() -> None:
    mine = ExperienceLibrary([Experience("E1", "Ask.")])
    assert mine.merge(ExperienceLibrary(next_number=9)).next_number == 9


def test_merging_keeps_what_both_say_once_with_the_evidence_of_both() -> None:
    mine = ExperienceLibrary([Experience("E1", "Ask.", evidence=(FIRST,))])
    theirs = ExperienceLibrary([Experience("E7", "ASK!", evidence=(FIRST, SECOND))])
    merged = mine.merge(theirs)
    assert contents(merged) == [("E1", "Ask.", "*")]
    assert merged["E1"].evidence == (FIRST, SECOND)


def test_merging_keeps_one_text_for_two_predictors_twice() -> None:
    mine = ExperienceLibrary([Experience("E1", "Ask.", "solve")])
    theirs = ExperienceLibrary([Experience("E1", "Ask.", "answer")])
    assert contents(mine.merge(theirs)) == [("E1", "Ask.", "solve"), ("E2", "Ask.", "answer")]


@given(libraries())
def test_merging_a_library_with_itself_or_with_nothing_changes_nothing(
    library: ExperienceLibrary,
) -> None:
    assert library.merge(library) == library
    assert library.merge(ExperienceLibrary()).to_dict() == library.to_dict()


def test_merging_into_an_empty_library_gives_the_other_with_its_ids() -> None:
    theirs = ExperienceLibrary([Experience("E3", "Ask."), Experience("E1", "Say.")], next_number=7)
    assert ExperienceLibrary().merge(theirs) == theirs


@given(libraries(), libraries())
def test_merging_loses_no_advice_and_moves_no_own_experience(
    mine: ExperienceLibrary, theirs: ExperienceLibrary
) -> None:
    merged = mine.merge(theirs)
    assert contents(merged)[: len(mine)] == contents(mine)
    said = {(gist(experience.text), experience.scope) for experience in merged}
    assert said == {(gist(e.text), e.scope) for library in (mine, theirs) for e in library}
    own = {experience.id for experience in mine}
    for experience in merged:
        assert experience.id in own or experience.number >= mine.next_number
    assert merged.merge(theirs) == merged


# ---------------------------------------------------------------------- files


@settings(max_examples=60)
@given(libraries())
def test_a_saved_library_loads_as_it_was_with_its_evidence(
    tmp_path: Path, library: ExperienceLibrary
) -> None:
    library.save(tmp_path / "library.json")
    loaded = ExperienceLibrary.load(str(tmp_path / "library.json"))
    assert loaded == library
    assert [e.evidence for e in loaded] == [e.evidence for e in library]


def test_a_saved_library_is_json_that_people_can_read_and_review(tmp_path: Path) -> None:
    library = ExperienceLibrary([Experience("E2", "Sag „bitte“.", "solve", (FIRST,))])
    library.save(tmp_path / "library.json")
    assert (
        (tmp_path / "library.json").read_text(encoding="utf-8")
        == """\
{
  "format": "tfgrpo_dspy.library",
  "version": 1,
  "next_number": 3,
  "experiences": [
    {
      "id": "E2",
      "text": "Sag „bitte“.",
      "scope": "solve",
      "evidence": [
        {
          "update": 0,
          "example": 4,
          "rollout_ids": [
            11,
            12
          ],
          "scores": [
            0.0,
            1.0
          ]
        }
      ]
    }
  ]
}
"""
    )


def record(**changes: Any) -> str:
    good = ExperienceLibrary([Experience("E1", "Ask.", evidence=(FIRST,))]).to_dict()
    assert changes.keys() <= good.keys()
    return json.dumps({**good, **changes})


def experience_record(**changes: Any) -> str:
    good = {"id": "E1", "text": "Ask.", "scope": "*", "evidence": []}
    return record(experiences=[{**good, **changes}])


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "is not a library"),
        ("[E1] Ask.", "is not a library"),
        ("[]", "is not a library"),
        ('{"signature": {"instructions": "Answer."}}', "is not a library"),
        (record(format="other"), "is not a library"),
        (record(version=2), "version 2, newer than 1"),
        (record(version=None), "version None"),
        (record(version="1"), "version '1'"),
        ('{"format": "tfgrpo_dspy.library", "version": 1}', "is not a library"),
        (record(experiences=None), "is not a library"),
        (record(experiences=["E1"]), "damaged library"),
        (record(experiences=[{"id": "E1"}]), "damaged library: .*text"),
        (record(next_number=1), "damaged library: .*next_number=1"),
        (record(next_number="2"), "damaged library: .*next_number='2'"),
        (record(next_number=2.5), "damaged library: .*next_number=2.5"),
        (experience_record(id="G1"), "damaged library: .*id='G1'"),
        (experience_record(text=" "), "damaged library: .*text=' '"),
        (experience_record(text=5), "damaged library: .*text=5"),
        (experience_record(scope=""), "damaged library: .*scope=''"),
        (experience_record(other=1), "damaged library: .*other"),
        (experience_record(evidence=None), "damaged library"),
        (experience_record(evidence=[{"update": 1}]), "damaged library"),
        (experience_record(text="\ud83d"), "damaged library: .*half a character"),
    ],
)
def test_a_file_that_is_not_a_library_is_refused_with_its_name_and_what_is_wrong(
    tmp_path: Path, text: str, what: str
) -> None:
    path = tmp_path / "library.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(LibraryFormatError, match=rf"library\.json .*{what}"):
        ExperienceLibrary.load(path)


def test_a_binary_file_is_not_a_library(tmp_path: Path) -> None:
    path = tmp_path / "library.pkl"
    path.write_bytes(b"\x80\x04\x95\xff")
    with pytest.raises(LibraryFormatError, match="is not a library"):
        ExperienceLibrary.load(path)


def test_a_library_file_that_is_not_there_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ExperienceLibrary.load(tmp_path / "library.json")


def test_a_library_that_somebody_wrote_by_hand_can_be_loaded(tmp_path: Path) -> None:
    path = tmp_path / "library.json"
    path.write_text('{"experiences": [{"id": "E1", "text": "Ask first."}]}', encoding="utf-8")
    library = ExperienceLibrary.load(path)
    assert library == ExperienceLibrary([Experience("E1", "Ask first.")])
    assert library.next_number == 2


def test_a_library_of_texts_numbers_them_from_1() -> None:
    library = ExperienceLibrary.from_texts(["Ask first.", "Be brief."])
    assert [(e.id, e.text, e.scope) for e in library] == [
        ("E1", "Ask first.", "*"),
        ("E2", "Be brief.", "*"),
    ]


def test_an_id_is_in_the_library_that_holds_its_experience() -> None:
    library = ExperienceLibrary.from_texts(["Ask first."])
    assert "E1" in library
    assert "E2" not in library
    assert library["E1"] in library
