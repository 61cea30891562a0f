"""Training-Free GRPO, the loop: what the paper's algorithm says, in its order, and nothing else.

Source: arXiv 2510.08191. How each verb is done is `pipeline`'s business.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from os import PathLike
from typing import Any

from dspy.teleprompt import Teleprompter

from tfgrpo_dspy.experience import ExperienceLibrary
from tfgrpo_dspy.gate import Gate, NoGate
from tfgrpo_dspy.pipeline import Pipeline
from tfgrpo_dspy.pipeline.batches import Batch
from tfgrpo_dspy.pipeline.schedule import Handle
from tfgrpo_dspy.reflection import Lesson
from tfgrpo_dspy.rollout import Rollout, Usage
from tfgrpo_dspy.sampling.traces import read_traces
from tfgrpo_dspy.settings import DEFAULT_STALENESS, DEFAULT_TEMPERATURE, WHOLE_TRAINSET, Settings
from tfgrpo_dspy.settings.checks import prepare, prepare_learning
from tfgrpo_dspy.settings.plan import Plan, plan_of


class TrainingFreeGRPO(Teleprompter):
    """Learns a short library of experiences for a DSPy program, and bakes it into instructions.

    Args:
        metric: `metric(example, pred, trace=None)`, or GEPA's five-argument form; returns a float,
            a bool or `dspy.Prediction(score=..., feedback=...)`, more is better. None: the mode
            without ground truth (paper, section 3.3): lessons from agreement and self-critique.
        reflection_lm: writes the lessons; default: `dspy.settings.lm`.
        objective: in words, what the experiences should be about.
        group_size: rollouts for each example, at least 2.
        epochs: passes over the training set.
        temperature: of training rollouts; None: each LM's own. Trials of the gate are always
            measured at the LM's own.
        batch_size: examples for each update; default: a fifth of the trainset, at least 5, at
            most 20.
        max_experiences: how many experiences the library may hold.
        max_experience_words: how many words each may have.
        min_contrast: scores of a group that differ by no more than this do not differ.
        use_labels: False hides `example.labels()` from the reflection LM; scores are still used.
        gate: decides over each update; default: `AutoGate()`, without a metric `NoGate()`.
        draft_lessons, summarize_trajectory, extract_advantage, update_library: the reflection
            modules, each replaceable; see `tfgrpo_dspy.reflection`.
        summarize_always: summarise every trajectory, not only those that are too long.
        failure_analysis: also draw lessons from groups without contrast that score below the best
            seen (or no higher than `failure_score`) and carry feedback.
        update_per_group: ask for the operations of each group first, then merge them: the extra
            call of the reference implementation.
        drafts: how often lessons are drawn from labels alone first, of ten training examples at a
            time (`DraftLessons`). They are the run's first update, what most drafts say first, and
            the gate decides on it as on any other; with `max_staleness=0` no training rollout is
            made before. For labels that tell how they come about; 0: none.
        max_demos: how many of the best training rollouts become demos of the result (DSPy's own,
            in its predictors), if they likely help it on the validation set; 0: none. They take no
            rollout but those of that test, and make every later prompt longer.
        max_staleness: by how many updates the library that a batch's rollouts are made with may be
            behind: with 1, they run while the update before is still proposed and gated; with 0,
            they wait for it, as in the paper.
        num_threads: how many rollouts and reflections are under way at once; default:
            `dspy.settings.num_threads`; with an executor of processes twice its workers.
        executor: where rollouts are run: any `concurrent.futures.Executor`, such as a
            `ProcessPoolExecutor` or dask's `Client.get_executor()`; default: threads. Program,
            metric, LMs (with their keys) and the settings of `dspy.context` are sent to its workers
            by cloudpickle, and never written to a disk.
        rollout_timeout_s: seconds that a rollout or a reflection may take from its start; what
            takes longer is lost, not begun again.
        quorum: the share of a group's rollouts with which it goes on when the others take over
            three times as long as the run's rollouts mostly do; those are left out, and recorded
            so. None: a group waits for all of its rollouts.
        hedge: begin a rollout or a reflection that takes so long a second time; the first that is
            there counts, both are paid. With quorum or hedge, what is learned depends on the clock.
        failure_score: the score of a rollout in which the program failed.
        max_errors: how many rollouts and reflections may fail, by other than an unparsed answer,
            before the run is ended; default: half of them, and in any case 20.
        auto: "light", "medium" or "heavy" fill `max_metric_calls` and `max_lm_calls` with what a
            third, two thirds or all of the epochs take at most.
        max_metric_calls, max_lm_calls, max_cost, max_minutes: hard limits of the whole run; what
            is replayed from `log_dir` counts at what it cost when it was made, time from the start
            of this compile. `max_cost` is in US dollars, and takes the worst case of each call
            first. When one is reached, the best program so far is returned.
        prices: US dollars for a million prompt and completion tokens, by model, such as
            `{"openai/my-model": (0.15, 0.60)}`; default: DSPy's price list.
        log_dir: the folder of the run store: what is recorded there is not computed again, so the
            same compile goes on where another was stopped.
        offline: replay from `log_dir` only; no LM, program or metric is called.
        version: names what fingerprints cannot see (helper functions, weights); another version,
            other records.
        seed: of shuffling, splitting and rollout ids; same seed, same answers, same library.
        progress: whether to show a progress bar.

    Raises:
        SettingsError: an argument that cannot be used; names every fault.
    """

    def __init__(
        self,
        metric: Callable[..., Any] | None,
        *,
        reflection_lm: Any = None,
        objective: str | None = None,
        group_size: int = 5,
        epochs: int = 3,
        temperature: float | None = DEFAULT_TEMPERATURE,
        batch_size: int | None = None,
        max_experiences: int = 30,
        max_experience_words: int = 40,
        min_contrast: float = 1e-9,
        use_labels: bool = True,
        gate: Gate | None = None,
        auto: str | None = None,
        max_metric_calls: int | None = None,
        max_lm_calls: int | None = None,
        max_cost: float | None = None,
        max_minutes: float | None = None,
        prices: Mapping[str, tuple[float, float]] | None = None,
        num_threads: int | None = None,
        executor: Executor | None = None,
        max_staleness: int = DEFAULT_STALENESS,
        rollout_timeout_s: float | None = None,
        quorum: float | None = None,
        hedge: bool = False,
        failure_score: float = 0.0,
        max_errors: int | None = None,
        log_dir: str | PathLike[str] | None = None,
        offline: bool = False,
        version: str | None = None,
        seed: int = 0,
        progress: bool = True,
        draft_lessons: Any = None,
        summarize_trajectory: Any = None,
        extract_advantage: Any = None,
        update_library: Any = None,
        summarize_always: bool = False,
        failure_analysis: bool = True,
        update_per_group: bool = False,
        drafts: int = 0,
        max_demos: int = 0,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name in Settings.names()}
        super().__init__()
        self.settings = Settings(**arguments)

    @classmethod
    def paper(cls, metric: Callable[..., Any] | None, **overrides: Any) -> "TrainingFreeGRPO":
        """The paper's own schedule, to compare with.

        Group size 5, 3 epochs of one batch each, every rollout summarised, lessons from groups
        with contrast only, no gate, the last library returned. `update_per_group=True` adds the
        reference implementation's call for each group.
        """
        schedule: dict[str, Any] = {
            "group_size": 5,
            "epochs": 3,
            "batch_size": WHOLE_TRAINSET,
            "summarize_always": True,
            "failure_analysis": False,
            "max_staleness": 0,
            "gate": NoGate(),
        }
        return cls(metric, **(schedule | overrides))

    def compile(
        self,
        student: Any,
        *,
        trainset: list[Any],
        teacher: Any = None,
        valset: list[Any] | None = None,
        testset: list[Any] | None = None,
    ) -> Any:
        """The student, in a copy, with the best library found baked into its instructions.

        A student that has a library baked in goes on from it.

        Args:
            student: a DSPy program; it is not changed.
            trainset: examples with inputs; their labels are for metric and reflection LM.
            teacher: must be None.
            valset: what the gate measures on; default: a third of the trainset, at most 100. Of a
                limited budget, measuring the student on it takes a twentieth: of a larger set so
                many examples are used, at least 10, drawn by `seed`.
            testset: examples that choose nothing: student and result are measured on them at the
                end, for `detailed_results.test`.

        Returns:
            The program, with `detailed_results` (`tfgrpo_dspy.results.RunResults`) on it.

        Raises:
            SettingsError: student, data or LMs that cannot be used; before the first LM call.
            LibraryFormatError: the library baked into the student is damaged.
            StoreError: `log_dir` cannot be used; offline, that a record is missing.
            RunFailedError: a refused key, an unknown model, or more than `max_errors` failures;
                `.program` of it is the best so far.
        """
        settings, training, validation = prepare(
            self.settings, student, trainset, valset, teacher, testset
        )
        data = (trainset, training, validation, testset or ())
        with Pipeline(settings, student, *data) as pipeline:
            with pipeline.until_stopped():
                pipeline.run(self._loop(pipeline))
            return pipeline.finish()

    async def _loop(self, pipeline: Pipeline) -> None:
        """Nothing here waits for more than it needs: batches overlap as far as staleness allows."""
        async for batch in pipeline.batches():
            if batch.is_draft:
                lessons = pipeline.draft(batch)
            else:
                lessons = pipeline.extract(batch, pipeline.sample(batch))
            pipeline.begin_update(batch, self._update(pipeline, batch, lessons))
        await pipeline.all_updates()

    async def _update(
        self, pipeline: Pipeline, batch: Batch, lessons: Handle[list[Lesson]]
    ) -> ExperienceLibrary:
        library = await pipeline.library_before(batch)
        operations = await pipeline.propose(batch, library, await lessons)
        return await pipeline.decide(batch, library, operations)

    def learn(
        self,
        student: Any,
        *,
        traces: str | PathLike[str] | Iterable[Mapping[str, Any]],
        valset: list[Any] | None = None,
    ) -> Any:
        """The student with what can be learned from rollouts made elsewhere, such as in production.

        The program is not run for them: one pass over the traces, in batches. Without a `valset`
        it is not run at all, and every update stays, as nothing measures it.

        Args:
            student: a DSPy program; it is not changed.
            traces: a file of JSON lines, or mappings, with "inputs" and "outputs" (mappings of
                fields) and, where there are any, "score" (a number), "feedback", "labels" (a
                mapping), "steps" (a list of mappings with "name", "inputs", "outputs" and, where
                they apply, "kind" and "error") and "error" (the program failed). Traces with equal
                inputs form a group, in the order of their first.
            valset: what the gate measures updates on, with the optimizer's metric.

        Returns:
            The program, with `detailed_results` on it.

        Raises:
            SettingsError: student, traces or LMs that cannot be used; names every fault.
            StoreError, RunFailedError: as `compile`.
        """
        examples, recorded = read_traces(traces)
        settings, validation = prepare_learning(self.settings, student, examples, recorded, valset)
        training = range(len(examples))
        with Pipeline(settings, student, examples, training, validation) as pipeline:
            with pipeline.until_stopped():
                pipeline.run(self._learning_loop(pipeline, recorded))
            return pipeline.finish()

    async def _learning_loop(
        self, pipeline: Pipeline, recorded: Sequence[Sequence[Rollout]]
    ) -> None:
        async for batch in pipeline.batches(epochs=1, group_size=0):
            if batch.is_draft:
                lessons = pipeline.draft(batch)
            else:
                groups = [pipeline.given(batch, index, recorded[index]) for index in batch.examples]
                lessons = pipeline.extract(batch, groups)
            pipeline.begin_update(batch, self._update(pipeline, batch, lessons))
        await pipeline.all_updates()

    def estimate(
        self,
        student: Any,
        *,
        trainset: list[Any],
        valset: list[Any] | None = None,
        testset: list[Any] | None = None,
        probe: bool = False,
    ) -> Plan:
        """What `compile` would do at most, without a call; `str` of it is a table.

        Args:
            student, trainset, valset, testset: as for `compile`.
            probe: run two rollouts, for what a rollout really takes; with `log_dir` they are
                those that `compile` starts with, and are not paid twice.

        Raises:
            SettingsError, StoreError, RunFailedError: as `compile`.
        """
        settings, training, validation = prepare(
            self.settings, student, trainset, valset, None, testset
        )
        examples = [trainset[index] for index in training]
        probed: list[Usage] = []
        if probe:
            with Pipeline(settings, student, trainset, training, validation) as pipeline:
                probed = pipeline.probe()
        n_test = len(testset or ())
        return plan_of(settings, student, examples, len(validation), probed, n_test=n_test)

    def get_params(self) -> dict[str, Any]:
        """The settings that are numbers, strings or flags, as a new dict."""
        return self.settings.scalars()
