"""How long a compile must take at least: its calls as a graph, run by a simulated list scheduler.

A `Task` takes a server for its time once all that it needs is done; a join takes neither. Of those
that are ready the one with the lowest order begins, of equals the one that was ready first: the
order that `pipeline` uses. There is no overhead. `compile_graph` is our task graph, rollout by
rollout, with the latencies and answers that `speed_lm` will give; `reference_graph` that of the
reference's five stages a batch, each of which waits for the whole stage before.
"""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from speed_lm import GROUP_SIZE, Latency, is_right, trial_sample

from tfgrpo_dspy.rollout import rollout_id_for

VALIDATION_START = 500
"""The number of the first validation case."""


@dataclass(frozen=True, slots=True)
class Task:
    """A call; `stage` "" and no time: a join. `needs` are positions in the graph, lower ones."""

    seconds: float
    needs: tuple[int, ...] = ()
    order: tuple[int, ...] = ()
    stage: str = ""
    sample: int | str = 0

    @property
    def is_join(self) -> bool:
        return not self.stage


def makespan(tasks: Sequence[Task], n_servers: int) -> float:
    """When the last task is done, begun at 0 and run by so many servers in the order given."""
    blocked, followers = _edges(tasks)
    waiting: list[tuple[tuple[int, ...], int, int]] = []
    running: list[tuple[float, int]] = []
    count = itertools.count()
    now, ready = 0.0, [position for position, task in enumerate(tasks) if not task.needs]
    while ready or waiting or running:
        for position in _calls(ready, tasks, blocked, followers):
            heapq.heappush(waiting, (tasks[position].order, next(count), position))
        while waiting and len(running) < n_servers:
            position = heapq.heappop(waiting)[2]
            heapq.heappush(running, (now + tasks[position].seconds, position))
        ready = []
        if running:
            now, position = heapq.heappop(running)
            ready = _opened(position, blocked, followers)
    return now


def _calls(
    ready: Sequence[int], tasks: Sequence[Task], blocked: list[int], followers: list[list[int]]
) -> list[int]:
    """The calls that may begin: those that are ready, or wait for ready joins only."""
    calls, left = [], deque(ready)
    while left:
        position = left.popleft()
        if tasks[position].is_join:
            left.extend(_opened(position, blocked, followers))
        else:
            calls.append(position)
    return calls


def critical_path_s(tasks: Sequence[Task]) -> float:
    """The longest chain of tasks that need each other: no number of servers is faster."""
    ends: list[float] = []
    for task in tasks:
        ends.append(task.seconds + max((ends[need] for need in task.needs), default=0.0))
    return max(ends, default=0.0)


def work_s(tasks: Sequence[Task]) -> float:
    """The time of all tasks together."""
    return sum(task.seconds for task in tasks)


def _edges(tasks: Sequence[Task]) -> tuple[list[int], list[list[int]]]:
    """For each task, how many it waits for, and which wait for it."""
    followers: list[list[int]] = [[] for _ in tasks]
    for position, task in enumerate(tasks):
        for need in task.needs:
            if need >= position:
                message = f"task {position} needs {need}, which does not come before it"
                raise ValueError(message)
            followers[need].append(position)
    return [len(task.needs) for task in tasks], followers


def _opened(position: int, blocked: list[int], followers: list[list[int]]) -> list[int]:
    """Those that wait for nothing any more now that this one is done."""
    opened = []
    for follower in followers[position]:
        blocked[follower] -= 1
        if not blocked[follower]:
            opened.append(follower)
    return opened


# ---------------------------------------------------------------------- the graphs


@dataclass(frozen=True, slots=True)
class Shape:
    """What a compile does; `all_calls`: the reference's calls, with our schedule.

    These are a summary of each rollout of a group with contrast, and an update call for each
    such group before that of the batch. `n_trials`: validation rollouts for each update.
    """

    n_examples: int = 100
    epochs: int = 3
    batch_size: int = 25
    staleness: int = 1
    n_trials: int = 0
    all_calls: bool = False
    seed: int = 0

    def batches(self) -> list[tuple[int, list[int]]]:
        """Epoch and examples of each batch, in the optimizer's order."""
        batches = []
        for epoch in range(self.epochs):
            order = list(range(self.n_examples))
            random.Random(f"{self.seed}/{epoch}").shuffle(order)
            starts = range(0, self.n_examples, self.batch_size)
            batches += [(epoch, order[start : start + self.batch_size]) for start in starts]
        return batches


@dataclass(slots=True)
class _Graph:
    shape: Shape
    latency: Latency
    tasks: list[Task] = field(default_factory=list)

    def call(
        self, stage: str, sample: int | str, needs: Sequence[int], order: tuple[int, ...]
    ) -> int:
        seconds = self.latency.of(stage, sample)
        self.tasks.append(Task(seconds, tuple(needs), order, stage, sample))
        return len(self.tasks) - 1

    def join(self, needs: Sequence[int]) -> int:
        self.tasks.append(Task(0.0, tuple(needs)))
        return len(self.tasks) - 1

    def ids(self, epoch: int, example: int, purpose: str) -> list[int]:
        """The rollout ids of a group's rollouts, or of their summaries."""
        numbers = range(GROUP_SIZE)
        return [rollout_id_for(self.shape.seed, epoch, example, i, purpose) for i in numbers]

    def lesson_id(self, epoch: int, example: int) -> int:
        return rollout_id_for(self.shape.seed, epoch, example, 0, "lesson")

    def update_id(self, epoch: int, update: int, place: str) -> int:
        return rollout_id_for(self.shape.seed, epoch, update, 0, f"update/{place}")

    def has_contrast(self, epoch: int, example: int) -> bool:
        return len({is_right(rollout) for rollout in self.ids(epoch, example, "training")}) == 2


def compile_graph(shape: Shape, latency: Latency) -> list[Task]:
    """The calls of our compile: nothing waits for more than it needs and `staleness` asks.

    With trials, the student's come first, and nothing needs them.
    """
    graph = _Graph(shape, latency)
    decided: list[int] = []
    _trials(graph, 0, [])
    for update, (epoch, examples) in enumerate(shape.batches()):
        behind = update - 1 - shape.staleness
        library = decided[behind : behind + 1] if behind >= 0 else []
        groups = [
            [
                graph.call("rollout", rollout, library, (3, update))
                for rollout in graph.ids(epoch, example, "training")
            ]
            for example in examples
        ]
        lessons = [
            _lesson(graph, update, epoch, example, group)
            for example, group in zip(examples, groups, strict=True)
            if graph.has_contrast(epoch, example)
        ]
        sampled = [rollout for group in groups for rollout in group]
        asked = graph.join([*sampled, *lessons, *decided[-1:]])
        proposed = graph.join(_update(graph, update, epoch, len(lessons), asked))
        decided.append(graph.join([proposed, *_trials(graph, update + 1, [proposed])]))
    return graph.tasks


def _lesson(graph: _Graph, update: int, epoch: int, example: int, group: Sequence[int]) -> int:
    order = (2, update)
    if graph.shape.all_calls:
        whole = graph.join(group)
        summaries = graph.ids(epoch, example, "summary")
        group = [graph.call("summary", summary, [whole], order) for summary in summaries]
    return graph.call("lesson", graph.lesson_id(epoch, example), group, order)


def _update(graph: _Graph, update: int, epoch: int, n_lessons: int, needs: int) -> list[int]:
    """The update calls: one; or one for each group, and then one if there are several."""
    if not n_lessons:
        return [needs]
    n_first = n_lessons if graph.shape.all_calls else 1
    ids = [graph.update_id(epoch, update, f"0/{number}") for number in range(n_first)]
    first = [graph.call("update", sample, [needs], (0,)) for sample in ids]
    if not graph.shape.all_calls or n_first == 1:
        return first
    return [graph.call("update", graph.update_id(epoch, update, "1/0"), first, (0,))]


def _trials(graph: _Graph, n_experiences: int, needs: Sequence[int]) -> list[int]:
    """The gate's trials of a library of so many experiences."""
    cases = range(VALIDATION_START, VALIDATION_START + graph.shape.n_trials)
    samples = [trial_sample(case, n_experiences) for case in cases]
    return [graph.call("trial", sample, needs, (1,)) for sample in samples]


def reference_graph(shape: Shape, latency: Latency) -> list[Task]:
    """The reference's schedule: five stages for each batch, with a barrier after each."""
    graph = _Graph(shape, latency)
    barrier: list[int] = []

    def stage(name: str, samples: Sequence[int]) -> None:
        nonlocal barrier
        if samples:
            barrier = [graph.join([graph.call(name, s, barrier, (0,)) for s in samples])]

    for update, (epoch, examples) in enumerate(shape.batches()):
        taught = [example for example in examples if graph.has_contrast(epoch, example)]
        stage("rollout", [r for e in examples for r in graph.ids(epoch, e, "training")])
        stage("summary", [s for e in taught for s in graph.ids(epoch, e, "summary")])
        stage("lesson", [graph.lesson_id(epoch, example) for example in taught])
        places = [f"0/{number}" for number in range(len(taught))]
        stage("update", [graph.update_id(epoch, update, place) for place in places])
        stage("update", [graph.update_id(epoch, update, "1/0")] if taught else [])
    return graph.tasks


def rollouts_graph(shape: Shape, latency: Latency) -> list[Task]:
    """The training rollouts alone, none of which waits for anything."""
    graph = _Graph(shape, latency)
    for epoch, examples in shape.batches():
        for example in examples:
            for rollout in graph.ids(epoch, example, "training"):
                graph.call("rollout", rollout, (), (0,))
    return graph.tasks
