"""Programs of every kind: async ones, inputs with images, several stages and their credit."""

import asyncio
import copy
import gc
import re
from collections import Counter
from typing import Any, ClassVar
from weakref import WeakSet

import dspy
import pytest
from runs import (
    ADVICE,
    is_polite,
    learned,
    library_texts,
    polite_answer,
    polite_rules,
    predictor,
    questions,
)
from scripted import (
    EXTRACT,
    UPDATE,
    AsyncEngine,
    Prompt,
    ScriptedEngine,
    chat,
    lessons,
    operations,
    scripted_lm,
)
from small import grpo

from tfgrpo_dspy import (
    Experience,
    ExperienceLibrary,
    Gate,
    LibraryError,
    NoGate,
    Reflection,
    TrainingFreeGRPO,
)

# ------------------------------------------------------------------------------ async


class AsyncOnly(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ask = predictor()

    async def aforward(self, question: str) -> Any:
        both = await asyncio.gather(*(self.ask.acall(question=question) for _ in range(2)))
        return both[0]


class AsyncForward(AsyncOnly):
    async def forward(self, question: str) -> Any:
        return await self.aforward(question)


@pytest.mark.parametrize("kind", [AsyncOnly, AsyncForward])
def test_a_program_that_has_aforward_only_or_an_async_forward_is_optimized(kind: Any) -> None:
    engine = ScriptedEngine(polite_rules())
    lm = dspy.LM("scripted", engine=engine, async_engine=AsyncEngine(engine), cache=False)
    program = learned(kind(), lm=lm, gate=Gate(), epochs=1, group_size=2)
    assert library_texts(program) == [ADVICE]
    assert program.detailed_results.usage["rollout"].n_lm_calls == 2 * 12


# ----------------------------------------------------------------------------- images

PIXEL = "data:image/png;base64,iVBORw0KGgo="
IMAGE = dspy.Image(url=PIXEL)
KINDS = {dspy.Image: "dspy.Image", str: "str"}


class SeeingEngine(ScriptedEngine):
    """Keeps the kinds of the parts of each request for lessons."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.parts: list[Counter[str]] = []

    def complete(self, request: Any) -> Any:
        response = super().complete(request)
        if re.search(EXTRACT, self.prompts[-1].text):
            parts = (part for message in request.messages for part in message.parts)
            self.parts.append(Counter(type(part).__name__ for part in parts))
        return response

    def n_images(self) -> set[int]:
        """How many images the requests for lessons have."""
        return {kinds["ImagePart"] for kinds in self.parts}


def seen(show_images: bool | None, photo: Any = IMAGE) -> tuple[Any, Any]:
    """A compile on examples with an image, or what is given in its place, and the engine."""
    engine = SeeingEngine([*polite_rules()[:2], ("", polite_answer)])
    trainset = [
        example.copy(photo=photo).with_inputs("photo", "question") for example in questions(6)
    ]
    student = dspy.Predict(f"photo: {KINDS[type(photo)]}, question -> answer")
    given: dict[str, Any] = {"num_threads": 1, "progress": False, "show_images": show_images}
    with dspy.context(lm=dspy.LM("scripted", engine=engine, cache=False)):
        program = grpo(is_polite, gate=NoGate(), epochs=1, **given).compile(
            student, trainset=trainset
        )
    return program, engine


def test_a_reflection_lm_that_takes_images_is_shown_those_of_the_example() -> None:
    program, engine = seen(True)
    assert engine.n_images() == {1}
    assert "image not shown" not in program.detailed_results.failures


def test_another_reflection_lm_is_told_that_there_is_an_image_and_the_log_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    program, engine = seen(None)
    assert engine.n_images() == {0}
    prompts = [prompt.text for prompt in engine.prompts if re.search(EXTRACT, prompt.text)]
    assert all("photo: <image>" in text and "base64" not in text for text in prompts)
    assert program.detailed_results.failures["image not shown"] == len(prompts)
    assert caplog.text.count("Pass Reflection(show_images=True)") == 1


# ----------------------------------------------------------------------------- credit


class Stages(dspy.Module):
    """Three predictors one after the other; the middle one is at fault."""

    def __init__(self) -> None:
        super().__init__()
        self.read = dspy.Predict("question -> facts")
        self.route = dspy.ChainOfThought("facts -> desk")
        self.write = dspy.Predict("desk -> answer")

    def forward(self, question: str) -> Any:
        desk = self.route(facts=self.read(question=question).facts).desk
        return self.write(desk=desk)


def blames_the_middle(
    gold: Any, pred: Any, trace: Any = None, pred_name: str | None = None, pred_trace: Any = None
) -> Any:
    del gold, trace
    is_right = pred.answer == "refunds"
    if pred_name is None:
        return dspy.Prediction(score=float(is_right), feedback="" if is_right else "Wrong desk.")
    (_, _, outputs), *_ = pred_trace
    if pred_name == "route.predict":
        wrong = outputs.desk != "refunds"
        return dspy.Prediction(score=0.0, feedback="This is the wrong desk." if wrong else "Right.")
    return dspy.Prediction(score=1.0, feedback="Fine.")


def stage_rules(seed: int) -> list[Any]:
    """SIMULATED: the reflection LM blames the predictor that the feedback names, else any."""

    def middle(prompt: Prompt) -> str:
        knows = "Send complaints to refunds." in prompt.system
        is_right = prompt.random().random() < (0.95 if knows else 0.3)
        return chat(reasoning="hm", desk="refunds" if is_right else "sales")

    def blame(prompt: Prompt) -> str:
        found = re.findall(r"feedback on ([\w.]+): This is the wrong desk", prompt.user)
        any_ = prompt.random(str(seed)).choice(["read", "route", "write"])
        name = found[0].partition(".")[0] if found else any_
        return lessons(f"[{name}] Send complaints to refunds.")

    def propose(prompt: Prompt) -> str:
        scope = re.findall(r"Send complaints to refunds\. \(for ([\w.]+)\)", prompt.user)
        op = {"op": "ADD", "text": "Send complaints to refunds.", "lessons": [1]}
        return operations(op | {"scope": scope[-1]} if scope else op)

    def same(prompt: Prompt) -> str:
        return chat(answer=re.findall(r"\[\[ ## desk ## \]\]\n(\w+)", prompt.user)[-1])

    return [
        (EXTRACT, blame),
        (UPDATE, propose),
        (r"\[\[ ## facts ## \]\]\nf", middle),
        (r"\[\[ ## desk ## \]\]\n(sales|refunds)", same),
        ("", chat(facts="f")),
    ]


def test_a_lesson_lands_at_the_stage_that_a_five_argument_metric_blames() -> None:
    """SIMULATED, three seeds. The lesson names `route`; the predictor is `route.predict`."""
    scopes = []
    for seed in range(3):
        with dspy.context(lm=scripted_lm(stage_rules(seed))):
            program = grpo(
                blames_the_middle, group_size=3, epochs=3, progress=False, seed=seed, gate=None
            ).compile(Stages(), trainset=questions(8), valset=questions(12, start=50))
        scopes.append({experience.scope for experience in ExperienceLibrary.from_program(program)})
    assert scopes == [{"route.predict"}] * 3


def test_what_a_metric_says_of_every_predictor_alike_is_not_said_again() -> None:
    def metric(
        gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None
    ) -> Any:
        del pred_name, pred_trace
        return blames_the_middle(gold, pred, trace)

    lm = scripted_lm(stage_rules(0))
    with dspy.context(lm=lm):
        grpo(metric, group_size=2, epochs=1, progress=False, gate=NoGate()).compile(
            Stages(), trainset=questions(8)
        )
    shown = "".join(prompt.text for prompt in lm.engine.prompts)
    assert "Feedback: Wrong desk." in shown
    assert "feedback on " not in shown


FORGOTTEN = "The right word is please."


def words_in_a_prediction(score: float) -> Any:
    return dspy.Prediction(score=score, feedback="" if score else FORGOTTEN)


def words_in_a_mapping(score: float) -> Any:
    return {"score": score, "feedback": FORGOTTEN}


def words_alone(score: float) -> Any:
    return "" if score else FORGOTTEN


def nothing(score: float) -> Any:
    return score


class Asked:
    """A metric of GEPA's form: `of_predictor` is what it answers where it is asked about one."""

    def __init__(self, of_predictor: Any, of_whole: str = "") -> None:
        self.of_predictor, self.of_whole = of_predictor, of_whole
        self.names: Counter[Any] = Counter()

    def __call__(
        self, gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None
    ) -> Any:
        del trace, pred_trace
        self.names[pred_name] += 1
        score = float(pred.answer == gold.answer)
        if pred_name is not None:
            return self.of_predictor(score)
        return dspy.Prediction(score=score, feedback=self.of_whole) if self.of_whole else score


def one_for_all(metric: Asked, answer: str = "no", **given: Any) -> Any:
    """What is learned where every attempt fails alike until the advice is followed."""

    def reflect(prompt: Prompt) -> str:
        return lessons(ADVICE) if FORGOTTEN in prompt.user else lessons("None")

    def reply(prompt: Prompt) -> str:
        return chat(answer="please" if ADVICE in prompt.system else answer)

    update = operations({"op": "ADD", "text": ADVICE, "lessons": [1]})
    lm = scripted_lm([(EXTRACT, reflect), (UPDATE, update), ("question", reply)])
    reflection = Reflection(drafts=0, use_labels=False)
    settings = {"max_lm_calls": 300, "progress": False, "max_demos": 0} | given
    with dspy.context(lm=lm):
        optimizer = TrainingFreeGRPO(metric, reflection=reflection, **settings)
        return optimizer.compile(dspy.Predict("question -> answer"), trainset=questions(30))


@pytest.mark.parametrize(
    ("of_predictor", "of_whole"),
    [
        (words_in_a_prediction, ""),
        (words_in_a_mapping, "Wrong."),
        (words_alone, ""),
        (words_alone, "Wrong."),
    ],
)
def test_words_that_a_metric_has_for_the_only_predictor_teach(
    of_predictor: Any, of_whole: str
) -> None:
    metric = Asked(of_predictor, of_whole)
    done = one_for_all(metric)
    assert library_texts(done) == [ADVICE]
    assert done.detailed_results.best.mean == 1.0
    assert done.detailed_results.metric_calls == metric.names.total()


@pytest.mark.parametrize("answer", ["no", "please"])
def test_a_metric_with_nothing_to_say_of_the_only_predictor_is_not_asked_for_ever(
    answer: str,
) -> None:
    metric = Asked(nothing, of_whole="Hm.")
    done = one_for_all(metric, answer, max_lm_calls=600)
    updates = done.detailed_results.updates
    n_first = [sum(len(group.scores) for group in update.groups) for update in updates[:2]]
    assert len(updates) > 3
    assert metric.names["self"] == sum(n_first), "as long as no update was decided"


def test_metric_calls_about_predictors_are_counted_and_limited() -> None:
    asked: Counter[Any] = Counter()

    def metric(
        gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None
    ) -> Any:
        asked[pred_name] += 1
        return blames_the_middle(gold, pred, trace, pred_name, pred_trace)

    with dspy.context(lm=scripted_lm(stage_rules(0))):
        results = (
            grpo(metric, group_size=2, progress=False, max_metric_calls=180)
            .compile(Stages(), trainset=questions(8), valset=questions(6, start=50))
            .detailed_results
        )
    assert asked["read"] == asked["route.predict"] == asked["write"] > 0
    assert asked[None] > asked["read"]  # validation rollouts are scored only
    assert results.metric_calls == asked.total() <= 180


class Corpus:
    """What a program holds, and copies of it: how many there are at once, at most."""

    copies: ClassVar[WeakSet["Corpus"]] = WeakSet()
    n_scored = most = 0

    def __deepcopy__(self, _memo: Any) -> "Corpus":
        copied = Corpus()
        Corpus.copies.add(copied)
        return copied


def test_a_run_holds_few_copies_of_a_program_however_many_libraries_it_tries() -> None:
    def metric(example: Any, pred: Any, _trace: Any = None) -> dspy.Prediction:
        Corpus.n_scored += 1
        if Corpus.n_scored % 40 == 0:  # it takes long in a process that holds much
            gc.collect()
            Corpus.most = max(Corpus.most, len(Corpus.copies))
        return is_polite(example, pred)

    student = predictor()
    student.corpus = Corpus()
    with dspy.context(lm=scripted_lm(polite_rules())):
        optimizer = TrainingFreeGRPO(metric, max_lm_calls=200, num_threads=1, progress=False)
        done = optimizer.compile(student, trainset=questions(40))
    assert done.detailed_results.usage["rollout"].n_lm_calls > 100
    assert 0 < Corpus.most < 15


class Shared(dspy.Module):
    """Is its own copy, as users make what DSPy could not copy otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = predictor()

    def __deepcopy__(self, _memo: Any) -> "Shared":
        return self

    def forward(self, question: str) -> Any:
        return self.ask(question=question)


class Holding(Shared):
    """A program that is copied, and holds one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Shared()

    def __deepcopy__(self, memo: Any) -> "Holding":
        copied = Holding()
        copied.ask, copied.inner = copy.deepcopy(self.ask, memo), copy.deepcopy(self.inner, memo)
        return copied


@pytest.mark.parametrize(("kind", "name"), [(Shared, "ask"), (Holding, "inner.ask")])
def test_a_program_whose_copies_would_change_it_is_refused_before_the_first_call(
    kind: Any, name: str
) -> None:
    lm, student = scripted_lm(polite_rules()), kind()
    with pytest.raises(LibraryError, match=f"a copy of it has the same predictor '{name}'"):
        learned(student, lm=lm)
    assert lm.engine.n_calls() == 0
    library = ExperienceLibrary([Experience("E1", ADVICE)])
    with pytest.raises(LibraryError, match="the same predictor"):
        library.bake(student)
    assert library_texts(student) == []
