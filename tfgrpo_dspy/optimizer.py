"""Training-Free GRPO (arXiv 2510.08191) as a DSPy optimizer: its arguments and its methods."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import replace
from os import PathLike
from typing import Any

from tfgrpo_dspy.dspy_seam import Teleprompter
from tfgrpo_dspy.gate.bayesian import NoGate
from tfgrpo_dspy.rollout import Rollout
from tfgrpo_dspy.run import Run
from tfgrpo_dspy.sampling.examples import read_traces
from tfgrpo_dspy.settings import Execution, PaperReflection, RunInputs, Settings, taking
from tfgrpo_dspy.settings.preparation import Plan, async_code, plan_of, prepare
from tfgrpo_dspy.user_code import Identities, awaited, loop_of


class TrainingFreeGRPO(Teleprompter):
    """Learns a short library of experiences for a DSPy program, and bakes it into instructions.

    With a budget and nothing else set, the optimizer derives its schedule (group size, batch size,
    epochs, drafts, demos, what is kept for validation). What is set here wins.

    Args:
        metric: `metric(example, pred, trace=None)`, or GEPA's five-argument form; returns a float,
            a bool or `dspy.Prediction(score=..., feedback=...)`, more is better. None: without
            ground truth (paper, section 3.3): lessons from agreement and self-critique.
        reflection_lm: writes the lessons; default: `dspy.settings.lm`.
        objective: in words, what the experiences should be about.
        auto: "light", "medium" or "heavy", where there is no `max_lm_calls`: 5, 12 or 30 for each
            training example and LM call of a rollout, and at least 100, 200 or 400. What a
            testset takes comes on top.
        max_lm_calls: how many LM calls the whole run may make. This and the next three are hard
            limits; when one is reached, the best program so far is returned. Replays from
            `log_dir` count at what they cost when they were made.
        max_metric_calls: how often the metric may be called.
        max_cost: how many US dollars the run may cost; the highest price of a call is taken first.
        max_minutes: how long the run may take, from the start of this compile.
        group_size: rollouts for each example, at least 2; default: derived.
        batch_size: examples for each update; default: derived.
        epochs: passes over the training set, at most; default: 5; with a budget what it pays for.
        temperature: of training rollouts. The first of each group runs at the LM's own, as
            validation does, unless the gate measures no result. "own": every rollout uses the LM's
            own temperature; default: 0.7, or a reasoning model's own. A sampling parameter that a
            provider refuses is left out from then on.
        max_experiences: how many experiences the library may hold (`BayesianGate` keeps 90 %).
        max_demos: how many labelled training examples (where no label fits a predictor: of the best
            training rollouts) a set of demos has. Several sets are tried by training rollouts; the
            result shows one if it wins with it. Default: derived; 0: none.
        gate: decides which experiences stay, and which rollouts are given them; default:
            `BayesianGate()`, without a metric `NoGate()`.
        strategies: what else the run does to learn more from the same calls, such as
            `(TieredHints(),)`; asked in this order. "auto": hints and objectives of one scale,
            where the first groups show that they are needed. See docs/strategies.md.
        reflection: how the reflection LM is asked, as a `Reflection(...)`.
        execution: where and how rollouts are run, as an `Execution(...)`.
        on_event: a function that is called with each event of the run (`tfgrpo_dspy.events`):
            an update was decided, an experience changed, the budget, the end. The run waits for it;
            what it raises is counted, and logged once.
        approve: a function that is called with the `Proposal` of each update that would change
            the library: True makes the operations, False makes none, a list makes these instead.
            The answers are recorded, and are not asked for again on resume.
        log_dir: the folder of the run store: what is recorded there is not computed again, so the
            same compile goes on where another was stopped.
        offline: replay from `log_dir` only; no LM, program or metric is called.
        version: names what fingerprints cannot see (weights, files, servers).
        num_threads: how many rollouts and reflections run at once; default:
            `dspy.settings.num_threads`, or as many as the executor has threads or processes.
        seed: of shuffling, splitting and rollout ids; same seed, same answers, same library.
        progress: whether to show a progress bar.

    Raises:
        SettingsError: an argument that cannot be used; names every fault.
    """

    @taking(Settings)
    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings

    @classmethod
    def paper(cls, metric: Callable[..., Any] | None, **overrides: Any) -> "TrainingFreeGRPO":
        """The paper's own schedule, to compare with.

        Group size 5, 3 epochs of one batch each, every rollout of a group with contrast summarised,
        one lesson of each of these groups, of at most 32 words, no limit to how many are kept, no
        drafts, no demos, no gate, the last library returned.
        """
        on_policy = Execution(max_staleness=0)
        for name, group in {"reflection": PaperReflection(), "execution": on_policy}.items():
            chosen: Any = overrides.get(name) or group
            if isinstance(group, type(chosen)):  # the constructor refuses anything else
                usual, identity = vars(type(chosen)()), Identities().of
                fields = vars(chosen).items()
                changes = {k: v for k, v in fields if identity(v) != identity(usual[k])}
                chosen = replace(group, **changes)
            overrides[name] = chosen
        schedule = {"group_size": 5, "epochs": 3, "batch_size": sys.maxsize, "max_demos": 0}
        schedule["max_experiences"] = sys.maxsize
        return cls(metric, **({"gate": NoGate()} | schedule | overrides))

    def compile(
        self,
        student: Any,
        *,
        trainset: list[Any],
        teacher: Any = None,
        valset: list[Any] | None = None,
        testset: list[Any] | None = None,
        num_threads: int | None = None,
        seed: int | None = None,
        max_errors: int | None = None,
    ) -> Any:
        """A copy of the student with the best library baked in, and with `detailed_results`.

        `detailed_results` is a `tfgrpo_dspy.results.RunResults`. A student that has a library
        baked in goes on from it.

        Args:
            student: a DSPy program; it is not changed.
            trainset: examples with inputs; their labels are for metric, reflection LM and demos.
            teacher: not used; a warning says so.
            valset: what student and candidates are compared on at the end; default: a third of the
                trainset, at most 100. Of a larger set than the budget pays for, some examples are
                used, drawn by `seed`.
            testset: examples that choose nothing: student and result are measured on them at the
                end, for `detailed_results.test`.
            num_threads, seed, max_errors: for this compile, in place of the optimizer's own.

        Raises:
            SettingsError: student, data or LMs that cannot be used; before the first LM call.
            LibraryFormatError: the library baked into the student is damaged.
            StoreError: `log_dir` cannot be used; offline, that a record is missing.
            GateError: the gate raised, or gave something else than it was asked for.
            RunFailedError: a refused key, an unknown model, a broken executor, or more than
                `max_errors` failures; its `.program` is the best so far.
        """
        changes: dict[str, Any] = {"num_threads": num_threads, "seed": seed}
        if max_errors is not None:
            execution = self.settings.arguments["execution"]
            changes["execution"] = replace(execution, max_errors=max_errors)
        settled = replace(self.settings, **{k: v for k, v in changes.items() if v is not None})
        with _run_of(prepare(settled, student, trainset, valset, teacher, testset)) as run:
            return run.run()

    acompile = awaited(compile)

    def learn(
        self,
        student: Any,
        *,
        traces: str | PathLike[str] | Iterable[Mapping[str, Any]],
        valset: list[Any] | None = None,
        testset: list[Any] | None = None,
    ) -> Any:
        """The student with what can be learned from rollouts made elsewhere, such as in production.

        One pass over the traces, in batches. The program is run on `valset` and `testset` only;
        without a `valset` every update stays, as nothing measures it.

        Args:
            student: a DSPy program; it is not changed.
            traces: mappings, or a file of them (JSON lines, or a JSON array). They have "inputs"
                and "outputs" (mappings of fields) and, where there are any, "score" (a number),
                "feedback", "labels" (a mapping), "steps" (a list of mappings with "name", "inputs",
                "outputs" and, where they apply, "kind" and "error") and "error" (the program
                failed). Traces with equal inputs form a group, in the order of their first.
            valset, testset: as in `compile`, for the optimizer's metric.

        Raises SettingsError: student, traces or LMs that cannot be used; and as `compile`.
        """
        examples, recorded = read_traces(traces)
        sets = {"valset": valset, "testset": testset, "recorded": recorded}
        with _run_of(prepare(self.settings, student, examples, **sets), recorded) as run:
            return run.run()

    alearn = awaited(learn)

    def estimate(
        self,
        student: Any,
        *,
        trainset: list[Any],
        valset: list[Any] | None = None,
        testset: list[Any] | None = None,
    ) -> Plan:
        """The plan of a `compile`, without a call; `str` is a table. Raises SettingsError."""
        return plan_of(prepare(self.settings, student, trainset, valset, None, testset).settings)

    def get_params(self) -> dict[str, Any]:
        """The settings that are numbers, strings, flags or None, as a new dict."""
        return self.settings.scalars()


@contextmanager
def _run_of(
    inputs: RunInputs, recorded: Sequence[Sequence[Rollout]] | None = None
) -> Iterator[Run]:
    """The run, which is shown in MLflow where that is in use."""
    tracking: AbstractContextManager[Any] = nullcontext(inputs.settings)
    if "mlflow.dspy" in sys.modules:
        from tfgrpo_dspy.integrations.mlflow import tracked  # noqa: PLC0415 - importing is slow

        tracking = tracked(inputs.settings)
    with (
        loop_of(async_code(inputs.settings, inputs.student)),
        tracking as settings,
        closing(Run(replace(inputs, settings=settings), recorded)) as run,
    ):
        yield run
