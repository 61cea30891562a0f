"""MLflow: a compile as a run of it, and an optimizer for the prompts of its registry.

`mlflow.dspy.autolog(log_compiles=True)` turns the first on; `mlflow.genai.optimize_prompts` takes a
`TrainingFreePromptOptimizer`.
"""

import contextlib
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import dspy
import mlflow
from mlflow.entities import Metric, Param
from mlflow.genai.optimize import BasePromptOptimizer
from mlflow.genai.optimize.types import PromptOptimizerOutput
from mlflow.utils import autologging_utils
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from tfgrpo_dspy.errors import MetricError, SettingsError, described
from tfgrpo_dspy.events import Event, RunEnded, UpdateDecided
from tfgrpo_dspy.experience import ALL, HEADER, ExperienceLibrary, with_instructions
from tfgrpo_dspy.listeners import as_columns
from tfgrpo_dspy.optimizer import TrainingFreeGRPO
from tfgrpo_dspy.report import html
from tfgrpo_dspy.results import Row, RunResults
from tfgrpo_dspy.settings import Reflection, RunSettings
from tfgrpo_dspy.text import known_secrets, redacted

logger = logging.getLogger(__name__)

N_COMPILES = "tfgrpo.n_compiles"  # a tag of a run of MLflow
LONGEST_PARAMETER = 500  # characters, which every store of MLflow takes
RESPONSE = "response"
Record = Mapping[str, Any]
Evaluate = Callable[[dict[str, str], list[Any]], list[Any]]  # of records, under prompts by name


def _is_autologging() -> bool:
    utils: Any = autologging_utils
    is_off = utils.autologging_is_disabled("dspy")
    return not is_off and bool(utils.get_autologging_config("dspy", "log_compiles", False))


@contextlib.contextmanager
def tracked(settings: RunSettings) -> Iterator[RunSettings]:
    """The settings with a listener to this compile's run of MLflow, which may be a new one."""
    is_own, status = False, "FAILED"
    if _is_autologging():
        with _logged("this compile is not shown in MLflow"):
            is_own = mlflow.active_run() is None  # where autolog did not know this package
            run = mlflow.active_run() or mlflow.start_run()
            settings = replace(settings, trackers=(MlflowListener(run.info.run_id),))
    try:
        yield settings
        status = "FINISHED"
    finally:
        if is_own:
            with _logged("the run of MLflow could not be ended"):
                mlflow.end_run(status)


@contextlib.contextmanager
def _logged(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever the tracking server brings about
        logger.warning("%s: %s", what, redacted(described(error), known_secrets([])))


class MlflowListener:
    """Logs what a run tells to one MLflow run; after a fault of the server, nothing more.

    The second compile in a run is a child run of it, "compile 2", and so on.
    """

    def __init__(self, run_id: str) -> None:
        self._client, self._run_id, self._has_failed = mlflow.MlflowClient(), run_id, False
        self._rollouts: list[Row] = []
        run = self._client.get_run(run_id)
        self._experiment_id = run.info.experiment_id
        n = int(run.data.tags.get(N_COMPILES, 0)) + 1
        self._client.set_tag(run_id, N_COMPILES, n)
        self._is_child = n > 1
        self._run_id = self._child(f"compile {n}") if self._is_child else run_id

    def _child(self, name: str) -> str:
        tags = {MLFLOW_PARENT_RUN_ID: self._run_id}
        return str(self._client.create_run(self._experiment_id, None, tags, name).info.run_id)

    def __call__(self, event: Event) -> None:
        """Log what the event tells."""
        if self._has_failed:
            return
        self._has_failed = True
        if isinstance(event, UpdateDecided):
            record = event.record
            self._rollouts += event.rollouts
            figures = {"training_score": record.mean_score, "experiences": record.library_size}
            figures |= {"lm_calls": record.n_lm_calls, "cost_usd": record.cost_usd}
            self._log_metrics(self._run_id, record.update, figures)
            file = f"library/update_{record.update:04}.json"
            self._client.log_dict(self._run_id, event.library.to_dict(), file)
        elif isinstance(event, RunEnded):
            self._log_end(event.results, as_columns([*self._rollouts, *event.rollouts]))
        self._has_failed = False

    def _log_end(self, results: RunResults, rollouts: list[Row]) -> None:
        client, run_id = self._client, self._run_id
        settings = {**results.settings, **results.schedule}.items()
        params = [(k, str(v)[:LONGEST_PARAMETER]) for k, v in settings if v is not None]
        client.log_batch(run_id, params=[Param(f"tfgrpo.{name}", value) for name, value in params])
        client.log_text(run_id, str(results), "summary.txt")
        client.log_text(run_id, html(results), "report.html")
        columns = {name: [row[name] for row in rollouts] for row in rollouts[:1] for name in row}
        client.log_table(run_id, columns, "rollouts.json")
        used = {"lm_calls": results.spent.n_lm_calls, "cost_usd": results.spent.cost_usd}
        test, by_name = results.test, {each.name: each for each in results.candidates}
        tested = {"student": test and test.student, "result": test and test.best}
        scores = {"student": results.student, **{k: each.score for k, each in by_name.items()}}
        for name, score in (scores | {"result": results.best}).items():
            on_test, candidate = tested.get(name), by_name.get(name)
            figures: dict[str, Any] = {
                "validation_score": score and score.mean,
                "test_score": on_test and on_test.mean,
                "tokens_added_to_a_call": candidate and candidate.added.n_tokens,
            }
            objectives = candidate.objectives if candidate else {}
            figures |= {f"validation_objective.{k}": v for k, v in objectives.items()}
            child = self._child(name)
            self._log_metrics(child, 0, figures)
            client.set_terminated(child)
            if name == "student":
                self._log_metrics(run_id, 0, figures)
            elif name == "result":
                self._log_metrics(run_id, len(results.updates), figures | used)
        if self._is_child:
            client.set_terminated(run_id)

    def _log_metrics(self, run_id: str, step: int, figures: Mapping[str, float | None]) -> None:
        now = int(time.time() * 1000)
        metrics = [
            Metric(re.sub(r"[^\w\-. /]", "_", name), float(value), now, step)
            for name, value in figures.items()
            if value is not None
        ]
        self._client.log_batch(run_id, metrics=metrics)


class TrainingFreePromptOptimizer(BasePromptOptimizer):
    """Learns short advice for the prompts of a function, by Training-Free GRPO.

    The advice stands as a list at the end of a text prompt, and in the system message of a chat
    prompt. Scorers' rationales are the feedback of a rollout, their scores its objectives, and what
    `aggregation` gives is the score. A third of the training data is kept to choose the result.

    Args:
        reflection_lm: a `dspy.LM` that writes the lessons, or the name of its model, such as
            "openai/gpt-5"; default: `dspy.settings.lm`.
        max_metric_calls: how often the function may be called and scored, all in all.
        settings: further arguments of `TrainingFreeGRPO`, such as `log_dir` or `max_cost`, but for
            demos and briefs. Limits on LM calls and dollars count the reflection LM only.
    """

    def __init__(
        self, reflection_lm: Any = None, max_metric_calls: int = 100, **settings: Any
    ) -> None:
        if isinstance(reflection_lm, str):
            reflection_lm = dspy.LM(reflection_lm.replace(":/", "/"))
        if isinstance(reflection := settings.get("reflection", Reflection()), Reflection):
            settings["reflection"] = replace(reflection, brief=None)  # the prompts keep their text
        settings = {"max_metric_calls": max_metric_calls, "progress": False, **settings}
        self.settings = {**settings, "reflection_lm": reflection_lm, "max_demos": 0}
        TrainingFreeGRPO(_metric, **self.settings)  # refuses what cannot be used
        self.results: RunResults | None = None

    def optimize(
        self,
        eval_fn: Evaluate,
        train_data: list[dict[str, Any]],
        target_prompts: dict[str, str],
        enable_tracking: bool = True,
    ) -> PromptOptimizerOutput:
        """The prompts with the advice that was learned; afterwards `results` says all of the run.

        Of records with the same inputs the first one counts. Raises SettingsError.
        """
        if not train_data:
            raise SettingsError(f"train_data={train_data}: pass records with inputs.")
        records = {_key(record["inputs"]): record for record in reversed(train_data)}
        fields = dict.fromkeys(name for one in records.values() for name in one["inputs"])
        program = PromptProgram(target_prompts, fields, _in_batches(eval_fn, records))
        settings, trainset = dict(self.settings), [*map(_example, reversed(records.values()))]
        run = mlflow.active_run() if enable_tracking and not _is_autologging() else None
        if run and "on_event" not in settings:
            settings["on_event"] = MlflowListener(run.info.run_id)
        with dspy.context(lm=dspy.settings.lm or settings["reflection_lm"]):
            program = TrainingFreeGRPO(_metric, **settings).compile(program, trainset=trainset)
        self.results = results = program.detailed_results
        before, after = results.candidates[:1], [e for e in results.candidates if e.is_best]
        return PromptOptimizerOutput(
            optimized_prompts=program.prompts(),
            initial_eval_score=results.student and results.student.mean,
            final_eval_score=results.best and results.best.mean,
            initial_eval_score_per_scorer=dict(before[0].objectives) if before else {},
            final_eval_score_per_scorer=dict(after[0].objectives) if after else {},
        )


class PromptProgram(dspy.Module):
    """A function that formats prompts and asks an LM; the instructions are these prompts."""

    def __init__(
        self, templates: Mapping[str, str], fields: Iterable[str], evaluate: Callable[..., Any]
    ) -> None:
        super().__init__()
        self.templates, self._evaluate = dict(templates), evaluate
        signature = dspy.Signature(f"{', '.join(fields)} -> {RESPONSE}")
        for number, (name, template) in enumerate(templates.items(), 1):
            attribute = re.sub(r"\W+", "_", f"prompt_{number}_{name}")
            setattr(self, attribute, dspy.Predict(with_instructions(signature, template)))

    def prompts(self) -> dict[str, str]:
        """The prompts with the advice that is baked in, by name."""
        library = ExperienceLibrary.from_program(self)
        pairs = zip(self.named_predictors(), self.templates.items(), strict=True)
        return {
            name: with_advice(text, [e.text for e in library if e.scope in (ALL, predictor)])
            for (predictor, _), (name, text) in pairs
        }

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """The outputs of the user's function, with MLflow's evaluation of them."""
        result = self._evaluate(self.prompts(), inputs)
        prediction = _Evaluated(**{RESPONSE: result.outputs})
        prediction.evaluation = result
        return prediction


class _Evaluated(dspy.Prediction):
    evaluation: Any = None  # MLflow's `EvaluationResultRecord`, which is none of the fields


def _in_batches(
    eval_fn: Evaluate, records: Mapping[str, Record]
) -> Callable[[dict[str, str], Mapping[str, Any]], Any]:
    """MLflow's evaluation of the record with these inputs, under these prompts.

    The function is called once at a time, as it patches prompts for the whole process. Records that
    wait for the same prompts are evaluated in one call, in MLflow's threads.
    """
    at_work, waiting = threading.Lock(), list[tuple[dict[str, str], Record, Future[Any]]]()

    def evaluated(prompts: dict[str, str], inputs: Mapping[str, Any]) -> Any:
        done: Future[Any] = Future()
        waiting.append((prompts, records[_key(inputs)], done))
        with at_work:
            batch = [] if done.done() else [one for one in [*waiting] if one[0] == prompts]
            for one in batch:
                waiting.remove(one)
            try:
                results = eval_fn(prompts, [record for _, record, _ in batch]) if batch else []
                for (_, _, future), result in zip(batch, results, strict=True):
                    future.set_result(result)
            except BaseException as error:  # noqa: BLE001 - each rollout raises it
                for future in (future for _, _, future in batch if not future.done()):
                    future.set_exception(error)
        return done.result()

    return evaluated


def with_advice(template: str, advice: Sequence[str]) -> str:
    """The template with the advice; what would be a variable there is written with a space."""
    if not advice:
        return template
    texts = (re.sub(r"([{}])(?=[{}%])", r"\1 ", " ".join(text.split())) for text in advice)
    block = "\n- ".join([HEADER, *texts])
    messages: Any = None
    with contextlib.suppress(ValueError):
        messages = json.loads(template)  # a chat prompt is JSON here
    if not (messages and isinstance(messages, list)):
        return f"{template}\n\n{block}"
    if system := next((m for m in messages if m["role"] == "system"), None):
        system["content"] += f"\n\n{block}"
    else:
        messages.insert(0, {"role": "system", "content": block})
    return json.dumps(messages, ensure_ascii=False)


def _example(record: Record) -> dspy.Example:
    inputs, expected = record["inputs"], record.get("expectations") or record.get("outputs")
    labels = {} if expected is None else {"expected": expected}
    return dspy.Example({**labels, **inputs}).with_inputs(*inputs)


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
