"""Experiences, operations and the library: values, rules of `apply`, diff, merge, files."""

import copy
import dataclasses
import doctest
import json
import pickle
from pathlib import Path
from typing import Any

import dspy
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import tfgrpo_dspy.experience
from tfgrpo_dspy import (
    Effect,
    Evidence,
    Experience,
    ExperienceLibrary,
    LibraryError,
    LibraryFormatError,
)
from tfgrpo_dspy.experience import Add, Delete, Keep, Limits, Modify, operation_from

FIRST = Evidence(update=0, example=4, rollout_ids=(11, 12), scores=(0.0, 1.0))
SECOND = Evidence(update=1, example=2, rollout_ids=(21, 22), scores=(None, None))
LIBRARY = ExperienceLibrary(
    [Experience("E1", "Ask for the order number."), Experience("E2", "Say sorry first.", "solve")],
    next_number=4,
)
"""E3 is retired, E4 is free."""
MEASURED = {"effect": Effect(0.12, 0.04, 80), "n_tokens": 9, "is_on_trial": True}


def annotated(library: ExperienceLibrary, **annotations: Any) -> ExperienceLibrary:
    return library.holding(dataclasses.replace(each, **annotations) for each in library)


def contents(library: ExperienceLibrary) -> list[tuple[str, str, str]]:
    return [(experience.id, experience.text, experience.scope) for experience in library]


def refused(library: ExperienceLibrary, *operations: Any, **limits: int) -> list[tuple[Any, str]]:
    refusals = library.refusals(operations, Limits(**limits))
    return [(refusal.operation, refusal.reason) for refusal in refusals]


any_text = st.text(st.characters(codec="utf-8"), max_size=30)
experience_texts = any_text.filter(str.strip) | st.sampled_from(
    ["Ask.", "ask", "ASK!", "Say sorry first.", "one two three", "कि", "का", "x > 0", "x < 0"]
)
scopes = st.sampled_from(["*", "solve", "answer", "d['k']"])
rollout_ids = st.lists(st.integers(0, 2**63 - 1), max_size=3).map(tuple)
scores = st.lists(st.none() | st.floats(0, 1), max_size=3).map(tuple)
evidence = st.builds(Evidence, st.integers(0, 50), st.integers(0, 99), rollout_ids, scores)


@st.composite
def libraries(draw: st.DrawFn) -> ExperienceLibrary:
    """Any library: any gaps between the ids, retired ids at the end too."""
    numbers = draw(st.lists(st.integers(1, 12), max_size=6, unique=True))
    seen = st.lists(evidence, max_size=2, unique=True).map(tuple)
    experiences = [
        Experience(f"E{number}", draw(experience_texts), draw(scopes), draw(seen))
        for number in numbers
    ]
    free = max(numbers, default=0) + draw(st.integers(1, 4))
    drawn = ExperienceLibrary(experiences, next_number=free)
    return ExperienceLibrary().merge(drawn)  # no line twice


ids = st.sampled_from(["E1", "E2", "E3", "E40"])
operation_lists = st.lists(
    st.one_of(
        st.builds(Add, experience_texts | st.sampled_from(["", "a b c d e f g"]), scopes),
        st.builds(Modify, ids, experience_texts, st.none() | scopes),
        st.builds(Delete, ids),
        st.builds(Keep, ids, evidence=st.just((FIRST,))),
    ),
    max_size=8,
)
limits = st.builds(Limits, st.integers(1, 6), st.integers(1, 5))


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        *(((id_, "Ask."), "id=") for id_ in ("E0", "E", "E01", "e1", "1", "[E1]", "E1 ", 1, None)),
        *((("E1", text), "text=") for text in ("", " \n", 5, None, "\ud83d")),
        *((("E1", "Ask.", scope), "scope=") for scope in ("", 5, None)),
    ],
)
def test_an_experience_of_another_form_cannot_be_built(fields: Any, what: str) -> None:
    with pytest.raises(LibraryError, match=what):
        Experience(*fields)


def test_an_experience_is_frozen_stripped_and_equal_by_id_text_and_scope() -> None:
    plain, proven = (
        Experience("E1", " \n Ask.\t"),
        Experience("E1", "Ask.", "*", (FIRST,), **MEASURED),
    )
    assert plain.text == "Ask."
    with pytest.raises(dataclasses.FrozenInstanceError):
        plain.text = "Say."  # type: ignore[misc]
    assert {plain: "found"}[proven] == "found"
    for other in ("E2", "Ask."), ("E1", "ask."), ("E1", "Ask.", "solve"):
        assert Experience(*other) != plain


def test_libraries_are_equal_with_equal_experiences_and_next_id_and_in_the_order_of_ids() -> None:
    ask, say = Experience("E9", "Ask."), Experience("E10", "Say.")
    library = ExperienceLibrary([ask, say])
    assert library == ExperienceLibrary([say, ask], next_number=11)
    assert [experience.id for experience in ExperienceLibrary([say, ask])] == ["E9", "E10"]
    assert {annotated(LIBRARY, **MEASURED): "found"}[LIBRARY] == "found"
    for experiences, next_number in ([ask, say], 12), ([ask], 11):
        assert ExperienceLibrary(experiences, next_number=next_number) != library
    with pytest.raises(LibraryError, match=r"'E9', 'E9'.*: one occurs twice"):
        ExperienceLibrary([ask, Experience("E9", "Say.")])


def test_a_library_is_shown_with_scopes_and_with_what_was_measured() -> None:
    rendered = "[E1*] Ask for the order number.\n[E2] Say sorry first. (for solve)"
    assert LIBRARY.render() == rendered
    assert ExperienceLibrary().render() == ""
    assert repr(LIBRARY) == "<ExperienceLibrary of 2: E1, E2>"
    known, measured = LIBRARY.experiences[0], dataclasses.replace(LIBRARY["E2"], **MEASURED)
    assert str(LIBRARY.holding([known, measured])) == (
        "[E1] Ask for the order number.\n[E2] Say sorry first. (for solve)  "
        "(effect +0.12 \N{PLUS-MINUS SIGN} 0.04 by 80 rollouts, 9 tokens, on trial)"
    )


def test_the_documented_example_of_a_library_holds() -> None:
    assert doctest.testmod(tfgrpo_dspy.experience) == (0, 3)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({"op": "ADD", "text": "Ask."}, Add("Ask.")),
        ({"op": " Modify ", "id": "[e2]", "text": "Ask."}, Modify("E2", "Ask.")),
        ({"op": "UPDATE", "id": 2, "text": "Ask."}, Modify("E2", "Ask.")),
        ({"op": "MODIFY", "id": "2", "text": "a", "scope": "b"}, Modify("E2", "a", "b")),
        ({"op": "remove", "id": "[E2*]", "reason": "wrong"}, Delete("E2", reason="wrong")),
        ({"op": "KEEP", "id": " (E2) "}, Keep("E2")),
        ({"op": "ADD", "id": "E7", "text": "Ask.", "scope": None, "x": 1}, Add("Ask.")),
        ({"op": "MODIFY", "id": "E2", "text": "Ask.", "scope": ""}, Modify("E2", "Ask.", None)),
    ],
)
def test_what_an_lm_writes_is_read_forgivingly(written: dict[str, Any], meant: object) -> None:
    assert operation_from(written) == meant


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ({}, "op=None: the operations are"),
        ({"op": "AD", "text": "Ask."}, "op='AD': the operations are ADD, MODIFY, DELETE, KEEP"),
        ({"op": "ADD", "text": 5}, "text=5"),
        ({"op": "MODIFY", "id": "G1", "text": "a"}, "id='G1'"),
        ({"op": "KEEP", "id": "E1", "reason": ["a"]}, r"reason=['a']"),
        ({"op": "ADD", "text": "\ud83d"}, r"text='\ud83d': give a string without lone surrogates"),
        (None, "None: it should be a valid dict"),
        ("ADD Ask.", "'ADD Ask.': it should be a valid dict"),
    ],
)
def test_a_malformed_operation_is_refused_with_what_is_wrong_with_it(
    written: Any, reason: str
) -> None:
    ((operation, why),) = refused(LIBRARY, written)
    assert operation is written
    assert reason in why
    with pytest.raises(LibraryError) as raised:
        LIBRARY.apply([Add("Be brief."), written])
    assert reason in str(raised.value)


def test_a_modified_experience_keeps_scope_and_evidence_but_not_what_was_measured() -> None:
    library = annotated(LIBRARY, **MEASURED, evidence=(FIRST,))
    modify = [Modify("E1", "Ask.", "answer"), Modify("E2", " Say it. ", evidence=(SECOND,))]
    after = library.apply(modify)
    assert contents(after) == [("E1", "Ask.", "answer"), ("E2", "Say it.", "solve")]
    assert after["E2"].evidence == (FIRST, SECOND)
    assert str(after["E2"]) == "[E2] Say it. (for solve)"


def test_a_keep_adds_evidence_once_and_changes_nothing_else() -> None:
    library = annotated(LIBRARY, **MEASURED)
    after = library.apply([Keep("E2", evidence=(FIRST,))])
    after = after.apply([Keep("E2", evidence=(SECOND, FIRST))])
    expected = dataclasses.replace(library["E2"], evidence=(FIRST, SECOND))
    assert after.to_dict() == library.holding([library["E1"], expected]).to_dict()


EARLIER = "an earlier operation of this list names E1; the first one counts"


@pytest.mark.parametrize(
    ("operations", "limits", "reasons"),
    [
        ([Modify("E3", "Be brief."), Delete("E3"), Keep("E77")], {},
         ["there is no E3", "there is no E3", "there is no E77"]),
        ([Modify("E1", "Ask first."), Delete("E1"), Keep("E1")], {}, [None, EARLIER, EARLIER]),
        ([Add(""), Modify("E1", "  \n")], {}, ["the text is empty"] * 2),
        ([Add("one two three"), Add("one two three four"), Modify("E1", "one two three four")],
         {"max_experience_words": 3}, [None, *["4 words; at most 3 are allowed"] * 2]),
        ([Add("Be brief."), Add("Be kind.")], {"max_experiences": 3},
         [None, "the library is full: 3 experiences"]),
        ([Add("Be brief."), Delete("E1")], {"max_experiences": 2}, [None, None]),
        ([Keep("E1"), Delete("E1"), Delete("E3"), Add("Be brief.")], {"max_experiences": 2},
         [None, EARLIER, "there is no E3", "the library is full: 2 experiences"]),
        ([Add("Be brief."), Add("be brief!")], {}, [None, "E4 says this already"]),
        ([Add("Ask for the order number!"), Delete("E1")], {}, [None, None]),
        ([Modify("E1", "Be brief."), Add("Ask for the order number."), Add("be brief")], {},
         [None, None, "E1 says this already"]),
        ([Modify("E1", "Ask for the order number. "), Modify("E2", "Say sorry first.", "solve")],
         {}, ["E1 says just this already", "E2 says just this already"]),
        ([Modify("E1", "Ask for the ORDER number!"), Modify("E2", "Say sorry first.", "answer")],
         {}, [None, None]),
        ([Add("say sorry first", scope) for scope in ("solve", "*", "answer")], {},
         ["E2 says this already"] * 2 + [None]),
        ([Add("ask for the order number", "solve")], {}, ["E1 says this already"]),
    ],
)  # fmt: skip
def test_operations_are_refused_for_a_reason_and_the_others_take_effect(
    operations: list[Any], limits: dict[str, int], reasons: list[str | None]
) -> None:
    expected = [pair for pair in zip(operations, reasons, strict=True) if pair[1]]
    assert refused(LIBRARY, *operations, **limits) == expected
    taken = [operation for operation, reason in zip(operations, reasons, strict=True) if not reason]
    assert LIBRARY.apply(operations, Limits(**limits)) == LIBRARY.apply(taken, Limits(**limits))


SAME = [
    ("Say sorry first.", "SAY  SORRY\nFIRST!"),
    ("Say sorry first.", "\uff33ay sorry, first"),
    ("caf\u00e9", "cafe\u0301"),
]
DIFFERENT = [
    *(("Return x > 0.", "Return x < 0."), ("Write it in C.", "Write it in C++."), ("!!", "??")),
    *(("Pay in $.", "Pay in \u20ac."), ("Round to 0.5.", "Round to 05.")),
    ("\u0926\u093f\u0928", "\u0926\u093e\u0928"),  # Devanagari, day and gift
]


@pytest.mark.parametrize(("one", "other"), SAME + DIFFERENT)
def test_texts_are_compared_without_case_punctuation_and_spacing(one: str, other: str) -> None:
    found = refused(ExperienceLibrary.from_texts([one]), Add(other))
    assert found == [(Add(other), "E1 says this already")] * ((one, other) in SAME)


@settings(max_examples=150)
@given(libraries(), operation_lists, limits)
@example(ExperienceLibrary(), [Add("x")], Limits())
@example(ExperienceLibrary((Experience("E1", "\x1b"),)), [Modify("E1", "\x1b")], Limits())
def test_every_operation_takes_effect_or_is_refused_within_the_limits_and_in_order(
    library: ExperienceLibrary, operations: list[Any], limits: Limits
) -> None:
    after = library.apply(operations, limits)
    left_out = {id(refusal.operation) for refusal in library.refusals(operations, limits)}
    taken = [operation for operation in operations if id(operation) not in left_out]
    assert library.refusals(taken, limits) == ()
    assert library.apply(taken, limits) == after

    before = {experience.id: (experience.text, experience.scope) for experience in library}
    now = {experience.id: (experience.text, experience.scope) for experience in after}
    changed = {id_ for id_ in before.keys() & now.keys() if before[id_] != now[id_]}
    assert {op.id for op in taken if isinstance(op, Delete)} == before.keys() - now.keys()
    assert {op.id for op in taken if isinstance(op, Modify)} == changed
    added = [f"E{number}" for number in range(library.next_number, after.next_number)]
    assert len(added) == sum(isinstance(op, Add) for op in taken)
    assert list(now) == [*(id_ for id_ in before if id_ in now), *added]
    assert len(after) <= max(len(library), limits.max_experiences)
    longest = max((len(after[id_].text.split()) for id_ in [*changed, *added]), default=0)
    assert longest <= limits.max_experience_words


def test_a_diff_says_what_was_added_removed_and_modified_in_whatever_order() -> None:
    after = LIBRARY.apply([Delete("E1"), Modify("E2", "Say sorry.", "*"), Add("Be brief.")])
    assert LIBRARY.diff(after).split("\n") == [
        "+ [E4] Be brief.",
        "- [E1] Ask for the order number.",
        "~ [E2] Say sorry first. (for solve) -> [E2] Say sorry.",
    ]
    ours = ExperienceLibrary.from_texts(["Ask first.", "Be brief.", "Say sorry."])
    other = ExperienceLibrary.from_texts(["Say sorry.", "ASK FIRST", "Be brief."])
    assert ours.diff(other) == "~ [E1] Ask first. -> [E2] ASK FIRST"
    assert LIBRARY.diff(LIBRARY.apply([Keep("E1", evidence=(FIRST,))])) == ""


def test_merging_keeps_own_ids_and_gives_colliding_ones_the_next_free() -> None:
    one = ExperienceLibrary([Experience("E1", "Ask.")], next_number=4)  # E2 and E3 are retired
    other = ExperienceLibrary([Experience("E2", "Be brief."), Experience("E5", "Be kind.")])
    merged = one.merge(other)
    assert merged.render() == "[E1*] Ask.\n[E5*] Be kind.\n[E6*] Be brief."
    assert merged.next_number == 7
    assert one.merge(ExperienceLibrary(next_number=9)).next_number == 9
    assert ExperienceLibrary().merge(other) == other


def test_merging_keeps_what_both_say_in_one_scope_once_with_the_evidence_of_both() -> None:
    asked_otherwise = Experience("E7", "ASK!", "solve", (FIRST, SECOND))
    one = ExperienceLibrary([Experience("E1", "Ask.", "solve", (FIRST,))])
    merged = one.merge(ExperienceLibrary([Experience("E1", "Ask.", "answer"), asked_otherwise]))
    assert contents(merged) == [("E1", "Ask.", "solve"), ("E8", "Ask.", "answer")]
    assert merged["E1"].evidence == (FIRST, SECOND)


@settings(max_examples=60)
@given(libraries())
def test_a_saved_pickled_or_copied_library_is_as_it_was_with_its_annotations(
    tmp_path: Path, library: ExperienceLibrary
) -> None:
    library = annotated(library, **MEASURED)
    library.save(tmp_path / "library.json")
    loaded = ExperienceLibrary.load(str(tmp_path / "library.json"))
    for other in loaded, copy.deepcopy(library), pickle.loads(pickle.dumps(library)):  # noqa: S301
        assert other == library
        assert other.to_dict() == library.to_dict()
        assert str(other) == str(library)


def test_a_saved_library_is_json_that_people_can_read(tmp_path: Path) -> None:
    ExperienceLibrary([Experience("E2", "Sag „bitte“.", "solve", (FIRST,))]).save(tmp_path / "a")
    text = (tmp_path / "a").read_text(encoding="utf-8")
    assert len(text.splitlines()) == 13  # one line for all the evidence of an experience
    assert '\n      "text": "Sag „bitte“.",\n' in text
    seen = {"update": 0, "example": 4, "rollout_ids": [11, 12], "scores": [0.0, 1.0]}
    said = {"id": "E2", "text": "Sag „bitte“.", "scope": "solve", "evidence": [seen]}
    form = {"format": "tfgrpo_dspy.library", "version": 1}
    assert json.loads(text) == {**form, "next_number": 3, "experiences": [said]}


def test_a_library_that_somebody_wrote_by_hand_can_be_loaded() -> None:
    written = {"experiences": [{"id": "E1", "text": "Ask."}, {"id": "E2", "text": "Say."}]}
    assert ExperienceLibrary.from_dict(written) == ExperienceLibrary.from_texts(["Ask.", "Say."])


def record(**changes: Any) -> str:
    return json.dumps({**LIBRARY.to_dict(), **changes})


def of(**changes: Any) -> str:
    return record(experiences=[{"id": "E1", "text": "Ask.", **changes}])


@pytest.mark.parametrize(
    ("text", "what"),
    [
        *((text, "is not JSON: line 1, column 1: Expecting value") for text in ("", "E1: Ask.")),
        ("[]", r'\[\]: it should be .*\{"experiences": \[\{"id": "E1", "text": "..."\}\]\}'),
        (
            '{"experiences": [\n  {"id": "E1"\n   "text": "Ask."}]}',
            "line 3, column 4: Expecting ','",
        ),
        ("[" * 200_000, "cannot be read: maximum recursion"),
        (b"\x80\x04\x95\xff", "save the file as UTF-8"),
        ('{"signature": {"instructions": "Answer."}}', "signature: extra inputs are not permitted"),
        ('{"version": 1}', 'experiences: field required.*"experiences": .*"text"'),
        (record(format="other"), "format='other': it should be"),
        (record(next_number=1), "next_number=1"),
        (of(id="G1"), r"experiences\[0\]\.id='G1': an id is 'E' and a number from 1"),
        (of(text=5), r"experiences\[0\]\.text=5: it should be a valid string"),
        *((of(text=text), r"experiences\[0\]\.text=") for text in (" ", "\ud83d")),
        (of(txet=1), r"experiences\[0\]\.txet: unexpected keyword argument"),
        (of(id="E1")[:-2] + ', {"id": "E1", "text": "Say."}]}', "ids .*: one occurs twice"),
        (of(evidence=[{"update": 1}]), r"evidence\[0\]\.example: field required"),
        (record(experiences=[{}] * 9), "And 13 more"),
        (of(text=["Ask."] * 9000), "^.{1,250}$"),
    ],
)
def test_a_file_that_is_not_a_library_is_refused_with_the_field_and_what_to_write(
    tmp_path: Path, text: str | bytes, what: str
) -> None:
    path = tmp_path / "library.json"
    with pytest.raises(FileNotFoundError):
        ExperienceLibrary.load(path)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(LibraryFormatError, match=what) as raised:
        ExperienceLibrary.load(path)
    message = str(raised.value)
    assert message.startswith(str(path))
    assert "pydantic" not in message


def test_one_text_in_place_of_a_list_is_refused() -> None:
    with pytest.raises(LibraryError, match=r"pass a list of texts: \['Ask first.'\]"):
        ExperienceLibrary.from_texts("Ask first.")


def test_an_interval_reaches_no_further_than_the_scale_of_the_scores() -> None:
    assert Effect(0.2, 0.1, 40).bounds == pytest.approx((0.2 - 0.196, 0.2 + 0.196))
    assert Effect(0.2, 0.5, 40, widest=0.6).bounds == (-0.6, 0.6)
    assert Effect(-0.2, 0.5, 40, widest=2.0).bounds == pytest.approx((-1.18, 0.78))


def test_a_line_that_stands_twice_in_an_edited_library_or_program_is_one_line() -> None:
    twice = [Experience(f"E{n}", text) for n, text in ((1, "Ask."), (2, "Wait."), (7, "ask!"))]
    library = ExperienceLibrary.from_dict(ExperienceLibrary(twice).to_dict())
    baked = ExperienceLibrary(twice).bake(dspy.Predict("question -> answer"))
    for read in (library, ExperienceLibrary.from_program(baked)):
        assert (read.render(), read.next_number) == ("[E1*] Ask.\n[E2*] Wait.", 8)
