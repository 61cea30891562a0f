"""An optimizer for MLflow's `mlflow.genai.optimize_prompts`: learns advice for registered prompts.

The advice stands as a list at the end of a text prompt, and in the system message of a chat prompt.
"""

import json
import logging
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import dspy
import mlflow
from mlflow.genai.optimize import BasePromptOptimizer
from mlflow.genai.optimize.types import PromptOptimizerOutput

from tfgrpo_dspy.errors import MetricError, SettingsError
from tfgrpo_dspy.experience.library import library_in
from tfgrpo_dspy.experience.programs import HEADER, with_instructions
from tfgrpo_dspy.experience.values import ALL
from tfgrpo_dspy.optimizer import TrainingFreeGRPO
from tfgrpo_dspy.results import RunResults
from tfgrpo_dspy.tracking import MlflowListener, autologging

logger = logging.getLogger(__name__)

EXPECTED, RESPONSE = "expected", "response"
DataRecord = Mapping[str, Any]
EvaluationFunction = Callable[[dict[str, str], list[Any]], list[Any]]
"""MLflow's evaluation function: candidate prompts and records give a result for each record."""


class TrainingFreePromptOptimizer(BasePromptOptimizer):
    """Learns short advice for the prompts of a function, by Training-Free GRPO.

    Scorers' rationales are the feedback of a rollout, their scores its objectives, and what
    `aggregation` gives is the score. A third of the training data is kept to choose the result.
    Where the function answers the same question in the same way each time (a cache, temperature
    0), there is little to compare.

    Args:
        reflection_lm: a `dspy.LM` that writes the lessons, or the name of its model, such as
            "openai/gpt-5"; default: `dspy.settings.lm`.
        max_metric_calls: how often the function may be called and scored, all in all.
        settings: further arguments of `TrainingFreeGRPO`, such as `log_dir` or `max_cost`. Limits
            on LM calls and dollars count the reflection LM only.
    """

    def __init__(
        self, reflection_lm: Any = None, max_metric_calls: int = 100, **settings: Any
    ) -> None:
        self.reflection_lm = (
            dspy.LM(reflection_lm.replace(":/", "/"))
            if isinstance(reflection_lm, str)
            else reflection_lm
        )
        defaults = {"max_metric_calls": max_metric_calls, "max_demos": 0, "progress": False}
        if settings.get("max_demos"):
            fault = f"max_demos={settings['max_demos']}: a prompt of MLflow holds no demos"
            raise SettingsError(f"{fault}; leave it out.")
        self.settings = {**defaults, **settings, "reflection_lm": self.reflection_lm}
        TrainingFreeGRPO(_metric, **self.settings)  # refuses what cannot be used
        self.results: RunResults | None = None

    def optimize(
        self,
        eval_fn: EvaluationFunction,
        train_data: list[dict[str, Any]],
        target_prompts: dict[str, str],
        enable_tracking: bool = True,
    ) -> PromptOptimizerOutput:
        """The prompts with the advice that was learned; afterwards `results` says all of the run.

        Raises:
            SettingsError: there is no training data, or another argument cannot be used.
        """
        if not train_data:
            fault = "train_data is empty: pass records with inputs"
            raise SettingsError(f"{fault}, of which {self.settings['max_metric_calls']} are run.")
        examples, records = _examples(train_data)
        program = PromptProgram(target_prompts, _InBatches(eval_fn, records))
        settings = dict(self.settings)
        run = mlflow.active_run() if enable_tracking and not autologging() else None
        if run and "on_event" not in settings:
            settings["on_event"] = MlflowListener(mlflow, run.info.run_id)
        with dspy.context(lm=dspy.settings.lm or self.reflection_lm):
            program = TrainingFreeGRPO(_metric, **settings).compile(program, trainset=examples)
        self.results = results = program.detailed_results
        ends = [one for one in results.finalists if one.is_best]
        initial, final = [*results.finalists[:1], *ends][:1], ends
        return PromptOptimizerOutput(
            optimized_prompts=program.prompts(),
            initial_eval_score=results.student and results.student.mean,
            final_eval_score=results.best and results.best.mean,
            initial_eval_score_per_scorer=dict(initial[0].objectives) if initial else {},
            final_eval_score_per_scorer=dict(final[0].objectives) if final else {},
        )


class PromptProgram(dspy.Module):
    """A function that formats prompts and asks an LM; the instructions are these prompts."""

    def __init__(self, templates: Mapping[str, str], evaluate: "_InBatches") -> None:
        super().__init__()
        self.templates, self.names = dict(templates), dict[str, str]()
        self._evaluate = evaluate
        signature = dspy.Signature(f"{', '.join(evaluate.fields)} -> {RESPONSE}")
        for number, (name, template) in enumerate(templates.items()):
            attribute = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "prompt"
            attribute = f"prompt_{attribute}" if not number else f"prompt_{attribute}_{number}"
            self.names[name] = attribute
            setattr(self, attribute, dspy.Predict(with_instructions(signature, template)))

    def prompts(self) -> dict[str, str]:
        """The prompts with the advice that is baked in, by name."""
        library = library_in(self)
        return {
            name: with_advice(
                self.templates[name],
                [each.text for each in library if each.scope in (ALL, attribute)],
            )
            for name, attribute in self.names.items()
        }

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """The outputs of the user's function, with MLflow's evaluation of them."""
        result = self._evaluate(self.prompts(), inputs)
        prediction = _Evaluated(**{RESPONSE: result.outputs})
        prediction.evaluation = result
        return prediction


class _Evaluated(dspy.Prediction):
    """A prediction with its `EvaluationResultRecord`, which is none of its fields."""

    evaluation: Any = None


class _InBatches:
    """Calls the evaluation function once at a time: it patches prompts for the whole process.

    Records that wait for the same prompts are evaluated in one call, in MLflow's threads.
    """

    def __init__(self, eval_fn: EvaluationFunction, records: Mapping[str, DataRecord]) -> None:
        self._eval_fn, self._records = eval_fn, records
        self.fields = dict.fromkeys(name for one in records.values() for name in one["inputs"])
        self._at_work, self._guard = threading.Lock(), threading.Lock()
        self._waiting: list[tuple[dict[str, str], DataRecord, Future[Any]]] = []

    def __call__(self, prompts: dict[str, str], inputs: Mapping[str, Any]) -> Any:
        """MLflow's evaluation of the record with these inputs, under these prompts."""
        done: Future[Any] = Future()
        with self._guard:
            self._waiting.append((prompts, self._records[_key(inputs)], done))
        with self._at_work:
            if not done.done():
                self._evaluate(prompts)
        return done.result()

    def _evaluate(self, prompts: dict[str, str]) -> None:
        with self._guard:
            batch = [one for one in self._waiting if one[0] == prompts]
            self._waiting = [one for one in self._waiting if one[0] != prompts]
        try:
            results = self._eval_fn(prompts, [record for _, record, _ in batch])
            for (_, _, done), result in zip(batch, results, strict=True):
                done.set_result(result)
        except BaseException as error:  # noqa: BLE001 - each rollout raises it
            for _, _, done in batch:
                if not done.done():
                    done.set_exception(error)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_InBatches":
        return self


def with_advice(template: str, advice: Sequence[str]) -> str:
    """The template with the advice; what would be a variable there is written with a space."""
    if not advice:
        return template
    texts = (" ".join(text.split()) for text in advice)
    block = "\n- ".join([HEADER, *(re.sub(r"([{}])(?=[{}%])", r"\1 ", text) for text in texts)])
    messages = _messages(template)
    if messages is None:
        return f"{template}\n\n{block}"
    place = next((k for k, one in enumerate(messages) if one["role"] == "system"), None)
    if place is None:
        messages.insert(0, {"role": "system", "content": block})
    else:
        messages[place]["content"] = f"{messages[place]['content']}\n\n{block}"
    return json.dumps(messages, ensure_ascii=False)


def _messages(template: str) -> list[Any] | None:
    """The messages of a chat prompt, which MLflow passes as JSON; None: it is a text."""
    try:
        parsed = json.loads(template)
    except ValueError:
        return None
    is_chat = isinstance(parsed, list) and all(isinstance(m, dict) and "role" in m for m in parsed)
    return parsed if is_chat and parsed else None


def _examples(train_data: Iterable[DataRecord]) -> tuple[list[dspy.Example], dict[str, DataRecord]]:
    """An example for each record of its own inputs, and the records by their inputs."""
    examples, records, n_records = [], dict[str, DataRecord](), 0
    for record in train_data:
        n_records += 1
        inputs = record["inputs"]
        if (key := _key(inputs)) in records:
            continue
        records[key] = record
        expected = record.get("expectations") or record.get("outputs")
        labels = {} if expected is None else {_free(EXPECTED, inputs): expected}
        examples.append(dspy.Example(**inputs, **labels).with_inputs(*inputs))
    if n_repeated := n_records - len(examples):
        logger.warning("%d records are left out: they have the inputs of others", n_repeated)
    return examples, records


def _free(name: str, taken: Iterable[str]) -> str:
    return _free(f"{name}_", taken) if name in taken else name


def _key(inputs: Mapping[str, Any]) -> str:
    return json.dumps(dict(inputs), sort_keys=True, default=repr)


def _metric(_example: Any, prediction: Any, _trace: Any = None) -> dspy.Prediction:
    """The score of MLflow's scorers, their rationales, and the score of each."""
    result = prediction.evaluation
    if result.score is None:
        raise MetricError(f"scorers={None}: pass scorers, which say what is better.")
    feedback = "\n".join(f"{name}: {why}" for name, why in result.rationales.items() if why)
    objectives = dict(result.individual_scores)
    return dspy.Prediction(score=result.score, feedback=feedback, objectives=objectives)
