"""Briefs: whole texts in place of a predictor's instructions, tried beside single lines."""

import re
from pathlib import Path
from typing import Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import predictor, records
from scripted import EXTRACT, UPDATE, Latency, Prompt, Rule, chat, lessons, operations, scripted_lm

from tfgrpo_dspy import Execution, Experience, ExperienceLibrary, Reflection, TrainingFreeGRPO
from tfgrpo_dspy.gate.bayesian import uncovered
from tfgrpo_dspy.report import write_html
from tfgrpo_dspy.text import meaning

BRIEF, DRAFT = "`brief`", r"`lessons`(?s:.)*## examples ##"
"""Found in the prompts of WriteBrief and of DraftLessons only."""
WEIGHT = {"coal": "9", "gold": "4", "iron": "7"}
TABLE = "Answer with a number alone.\n\n| coal | gold | iron |\n| --- | --- | --- |\n| 9 | 4 | 7 |"


def case(n: int) -> dspy.Example:
    kind = [*WEIGHT][n % 3]
    question = f"Case {n}: what does {kind} weigh?"
    return dspy.Example(question=question, answer=WEIGHT[kind]).with_inputs("question")


TRAINSET, VALSET = [case(n) for n in range(30)], [case(n) for n in range(30, 50)]


def policy(prompt: Prompt) -> str:
    """Right where the table stands in the prompt; on coal in any case."""
    kind = re.findall(r"what does (\w+) weigh", prompt.user)[-1]
    knows = "| 9 | 4 | 7 |" in prompt.system or kind == "coal"
    return chat(answer=WEIGHT[kind] if knows else "no idea")


def is_right(gold: Any, pred: Any, trace: Any = None) -> dspy.Prediction:  # noqa: ARG001
    is_so = pred.answer == gold.get("answer")
    return dspy.Prediction(score=float(is_so), feedback=f"It is {gold.get('answer')}.")


def rules(brief: Any = TABLE) -> list[Rule]:
    written = brief if callable(brief) else chat(brief=brief)
    return [
        (BRIEF, written),
        (DRAFT, chat(lessons="None")),
        (EXTRACT, lessons("Think twice.")),
        (UPDATE, operations({"op": "ADD", "text": "Think twice.", "lessons": [1]})),
        ("weigh", policy),
    ]


def compiled(brief: Any = TABLE, student: Any = None, **settings: Any) -> Any:
    lm = settings.pop("lm", None) or scripted_lm(rules(brief), before=settings.pop("before", None))
    trainset = settings.pop("trainset", TRAINSET)
    usual: dict[str, Any] = {"max_lm_calls": 150, "max_demos": 0, "progress": False}
    optimizer = TrainingFreeGRPO(settings.pop("metric", is_right), **usual | settings)
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)):
        program = optimizer.compile(student or predictor(), trainset=trainset, valset=VALSET)
    program.engine = lm.engine
    return program


def asked(program: Any, pattern: str = BRIEF) -> list[str]:
    return [prompt.text for prompt in program.engine.prompts if re.search(pattern, prompt.text)]


def test_a_brief_that_helps_takes_the_place_of_the_instructions_of_the_result(
    tmp_path: Path,
) -> None:
    program = compiled(log_dir=tmp_path / "runs")
    results, library = program.detailed_results, ExperienceLibrary.from_program(program)
    assert program.signature.instructions.startswith(f"<learned-brief>\n{TABLE}\n</learned-brief>")
    assert dict(library.briefs) == {"self": TABLE} == dict(results.experiences.briefs)
    assert results.best.mean == 1.0 > results.student.mean
    assert not results.nothing_learned
    (told,) = results.briefs
    assert told.is_best and told.texts == {"self": TABLE} and told.effect
    assert "| coal | gold | iron |" in str(results)
    write_html(results, tmp_path / "run.html")
    assert "| coal | gold | iron |" in (tmp_path / "run.html").read_text(encoding="utf-8")


def test_a_brief_is_written_from_training_examples_alone_and_no_prompt_shows_another() -> None:
    program = compiled()
    reflections = asked(program, f"{BRIEF}|{DRAFT}|{EXTRACT}|{UPDATE}")
    first = asked(program)[0]
    assert len({*re.findall(r"Case (\d+):", first)}) == 30
    shown = {int(n) for text in reflections for n in re.findall(r"Case (\d+):", text)}
    assert shown == set(range(30))


def test_a_brief_that_does_not_help_is_not_in_the_result() -> None:
    program = compiled("Always answer: no idea.")
    assert program.signature.instructions == predictor().signature.instructions
    assert program.detailed_results.nothing_learned


@pytest.mark.parametrize("answer", ["", "None", "no text at all", "I cannot do that."])
def test_an_lm_that_writes_no_brief_is_asked_once_and_once_more_for_the_form(answer: str) -> None:
    program = compiled(lambda _: answer if answer == "no text at all" else chat(brief=answer))
    without = compiled(reflection=Reflection(brief=None))
    if not answer.startswith("I cannot"):  # that is a text
        assert 1 <= len(asked(program)) <= 2
        assert len(asked(program, DRAFT)) == len(asked(without, DRAFT)) > 2
    assert not asked(without)


def test_the_paper_has_no_briefs() -> None:
    assert TrainingFreeGRPO.paper(is_right).settings.arguments["brief"] is None


def test_failures_of_the_brief_that_leads_become_a_rival_brief() -> None:
    half = "Answer with a number alone. Coal: 9."

    def brief(prompt: Prompt) -> str:
        is_revision = "It is 4." in prompt.user and "It is 7." in prompt.user
        return chat(brief=TABLE if is_revision else half)

    program = compiled(brief)
    assert dict(ExperienceLibrary.from_program(program).briefs) == {"self": TABLE}
    revision = next(text for text in asked(program) if "It is 4." in text)
    assert "Score 0" in revision and "Expected: answer: 4" in revision
    assert revision.count("Labels:") == 10
    hidden = asked(compiled(brief, reflection=Reflection(use_labels=False)))
    assert hidden and "Labels:" not in "".join(hidden)


def test_a_revision_shows_the_whole_library_where_its_prompt_has_room() -> None:
    lines = [" ".join(f"word{n}x{k}" for k in range(30)) for n in range(12)]
    student = ExperienceLibrary.from_texts(lines).bake(predictor())
    program = compiled("Answer with a number alone. Coal: 9.", student)
    revision = next(text for text in asked(program) if "Score 0" in text)
    assert all(line in revision for line in lines)


def test_without_labels_a_brief_is_written_from_attempts_and_feedback() -> None:
    told = {e.question: e.answer for e in (*TRAINSET, *VALSET)}

    def metric(gold: Any, pred: Any, trace: Any = None) -> dspy.Prediction:  # noqa: ARG001
        right = told[gold.question]
        return dspy.Prediction(score=float(pred.answer == right), feedback=f"It is {right}.")

    unlabelled = [example.inputs() for example in TRAINSET]
    program = compiled(metric=metric, trainset=unlabelled)
    assert dict(ExperienceLibrary.from_program(program).briefs) == {"self": TABLE}
    assert "Expected: (not known)" in asked(program)[0]


@pytest.mark.parametrize("threads", [4, 16])
def test_briefs_are_the_same_for_any_number_of_threads(threads: int) -> None:
    def brief(prompt: Prompt) -> str:
        parts = TABLE.splitlines() if prompt.random().random() < 0.7 else ["Guess."]
        return chat(brief="\n".join(parts))

    settings: dict[str, Any] = {"batch_size": 5, "group_size": 2, "max_lm_calls": 200}
    settings["execution"] = Execution(max_staleness=1)
    one, many = (
        compiled(brief, num_threads=n, before=Latency(n), **settings) for n in (1, threads)
    )
    assert one.signature.instructions == many.signature.instructions
    assert one.detailed_results.briefs == many.detailed_results.briefs


def test_a_run_that_is_started_again_asks_for_no_brief_again(tmp_path: Path) -> None:
    first = compiled(log_dir=tmp_path)
    again, offline = compiled(log_dir=tmp_path), compiled(log_dir=tmp_path, offline=True)
    assert asked(first) and not again.engine.prompts and not offline.engine.prompts
    assert {p.signature.instructions for p in (first, again, offline)} == {
        first.signature.instructions
    }
    assert records(tmp_path, "brief")


WORKED = "question\nCase 2: a box of copper\nanswer\nZ91\nLast."


@pytest.mark.parametrize("kept", ["Answer.", "If the box holds cedar, answer Z91.", WORKED])
@pytest.mark.parametrize("copper", ["copper", "一箱铜线"])
def test_a_brief_beside_an_experience_has_no_line_about_its_case(copper: str, kept: str) -> None:
    kinds, fields = f"{copper} cedar marble amber rubber linen salt".split(), {"question", "answer"}
    boxes = tuple(f"Case {n}: a box of {kind}" for n in range(4) for kind in kinds)
    advice, left_out = (f"If the box holds {copper}, answer {code}." for code in ("Z91", "Q11"))
    brief = f"- {left_out}\n{kept}"
    assert uncovered(brief, [Experience("E1", advice)], boxes, fields) == kept
    assert uncovered(brief, [], boxes, fields) == brief


class Desk(dspy.Module):
    """Finds the kind, then its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.find = dspy.Predict(dspy.Signature("question -> kind", "Find the kind."))
        self.answer = dspy.Predict(dspy.Signature("question, kind -> answer", "Say the weight."))

    def forward(self, question: str) -> dspy.Prediction:
        return self.answer(question=question, kind=self.find(question=question).kind)


def test_each_predictor_has_a_brief_of_its_own() -> None:
    def brief(prompt: Prompt) -> str:
        name = re.search(r"## predictor ## \]\]\n(\w+)", prompt.user)[1]  # type: ignore[index]
        return chat(brief=TABLE if name == "answer" else "Find the kind.\nIt is a metal, or coal.")

    rules_of_desk = [(r"`kind`(?s:.)*structure(?s:.)*## kind ##(?!.*`answer`)", policy_of_find)]
    lm = scripted_lm([*rules(brief)[:4], *rules_of_desk, ("weigh", policy)])
    program = compiled(student=Desk(), lm=lm, max_lm_calls=300)
    briefs = dict(ExperienceLibrary.from_program(program).briefs)
    assert briefs == {"answer": TABLE, "find": "Find the kind.\nIt is a metal, or coal."}
    assert "Predictor find: Find the kind." in asked(program)[0]


def policy_of_find(prompt: Prompt) -> Any:
    if "Say the weight" in prompt.system or "| 9 |" in prompt.system:
        return policy(prompt)
    return chat(kind="a kind")


@pytest.mark.parametrize("leak", ["\n\n[[ ## completed ## ]]", " [[ ## completed ## ]] So be it."])
def test_markers_that_leak_into_a_brief_are_cut_off(leak: str) -> None:
    program = compiled(lambda _: f"[[ ## brief ## ]]\n{TABLE}{leak}")
    assert dict(ExperienceLibrary.from_program(program).briefs) == {"self": TABLE}


def test_a_secret_in_a_brief_reaches_no_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "verysecretkey1234567890"
    monkeypatch.setenv("SERVICE_API_KEY", secret)
    program = compiled(f"{TABLE}\nUse {secret}.", log_dir=tmp_path)
    assert secret not in program.signature.instructions
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert secret.encode() not in stored


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
TAGS = [f"<{end}{tag}>" for tag in ("learned-brief", "experiences") for end in ("", "/")]
PIECES = st.sampled_from([*TAGS, "\n", "[[ ## a ## ]]", "\\u0041"])


@given(st.lists(TEXTS | PIECES, min_size=1, max_size=6), st.lists(TEXTS, max_size=3), st.booleans())
def test_what_is_baked_beside_a_brief_is_found_again(
    parts: list[str], advice: list[str], is_baked_before: bool
) -> None:
    lines = {meaning(text): " ".join(text.split()) for text in advice if text.strip()}
    experiences = [Experience(f"E{n}", text) for n, text in enumerate(lines.values(), 1)]
    library = ExperienceLibrary(experiences, next_number=9, briefs={"self": "".join(parts)})
    student = predictor()
    if is_baked_before:
        student = (
            ExperienceLibrary.from_texts(["Be brief."]).briefed([("self", "Old.")]).bake(student)
        )
    baked = library.bake(student)
    found = ExperienceLibrary.from_program(baked)
    assert found.experiences == library.experiences
    assert found.briefs == (library.briefs or ExperienceLibrary.from_program(student).briefs)
    assert library.bake(baked).signature.instructions == baked.signature.instructions


def test_experiences_are_replaced_beside_a_brief_which_stays() -> None:
    first = ExperienceLibrary.from_texts(["Be brief."]).briefed([("self", "The whole.\nText.")])
    baked = first.bake(predictor())
    again = ExperienceLibrary.from_texts(["Be kind."]).bake(baked)
    assert ExperienceLibrary.from_program(again).briefs == first.briefs
    assert again.signature.instructions.count("The whole.\nText.") == 1
    bare = ExperienceLibrary().bake(again).signature.instructions
    assert bare == "<learned-brief>\nThe whole.\nText.\n</learned-brief>"
    assert first.merge(ExperienceLibrary(briefs={"other": "More."})).briefs == (
        ("other", "More."),
        ("self", "The whole.\nText."),
    )
    assert "The whole." in str(first) and "brief of self" in first.diff(ExperienceLibrary())
