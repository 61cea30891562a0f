"""The event simulation of `benchmarks/speed_graph.py`: the ideal that runs stand beside."""

import sys
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from speed_graph import (
    Shape,
    Task,
    compile_graph,
    critical_path_s,
    makespan,
    reference_graph,
    work_s,
)
from speed_lm import CHANCE, GROUP_SIZE, Latency

LATENCY = Latency(draw=3)


def call(seconds, *needs, order=(0,)):
    return Task(seconds, needs, order, "rollout")


def join(*needs):
    return Task(0.0, needs)


@st.composite
def graphs(draw):
    tasks = []
    for position in range(draw(st.integers(1, 12))):
        earlier = st.integers(0, position - 1) if position else st.nothing()
        needs = draw(st.lists(earlier, max_size=3, unique=True)) if position else []
        seconds, order = draw(st.integers(1, 9)), draw(st.integers(0, 2))
        is_join = draw(st.booleans())
        tasks.append(join(*needs) if is_join else call(float(seconds), *needs, order=(order,)))
    return tasks


def test_a_worked_graph_takes_as_long_as_it_does_by_hand():
    # two servers: 0 runs 0-3; 1 runs 0-1, then 2 1-5; the join needs 0 and 1, so 4 runs 3-5
    worked = [call(3.0), call(1.0), call(4.0), join(0, 1), call(2.0, 3)]
    assert makespan(worked, 2) == 5.0
    assert makespan(worked, 1) == work_s(worked) == 10.0
    assert makespan(worked, 3) == critical_path_s(worked) == 5.0


def test_of_tasks_that_wait_the_lowest_order_begins_first():
    late_first = [call(1.0, order=(1,)), call(1.0, order=(0,)), call(5.0, 1)]
    assert makespan(late_first, 1) == 7.0
    # 0 and 2 begin; 3 runs 1-6, and 1 runs 5-6; had 1 begun before 2, 3 would run 2-7
    assert makespan([call(5.0), *late_first[:2], call(5.0, 2)], 2) == 6.0


def test_a_join_takes_neither_time_nor_server():
    chained = [call(2.0), join(0), join(1), call(3.0, 2)]
    assert makespan(chained, 1) == 5.0
    assert makespan([join(), join(0)], 1) == 0.0


def test_a_task_that_needs_a_later_one_is_refused():
    with pytest.raises(ValueError, match="task 0 needs 1"):
        makespan([call(1.0, 1), call(1.0)], 1)


@given(graphs(), st.integers(1, 4))
def test_no_schedule_is_shorter_than_its_critical_path_or_its_work_over_the_servers(
    tasks, n_servers
):
    took = makespan(tasks, n_servers)
    assert took >= critical_path_s(tasks)
    assert took >= work_s(tasks) / n_servers


@given(graphs(), st.integers(1, 4))
def test_no_list_schedule_is_longer_than_work_over_servers_and_critical_path_together(
    tasks, n_servers
):
    limit = work_s(tasks) / n_servers + critical_path_s(tasks) * (1 - 1 / n_servers)
    assert makespan(tasks, n_servers) <= limit + 1e-9


@given(graphs())
def test_enough_servers_take_as_long_as_the_critical_path(tasks):
    assert makespan(tasks, len(tasks)) == critical_path_s(tasks)


def test_our_schedule_made_to_make_the_references_calls_makes_the_very_same_calls():
    # but for batches with one lesson only, for which one update call of ours is enough
    ours = compile_graph(Shape(20, 2, 10, all_calls=True), LATENCY)
    theirs = reference_graph(Shape(20, 2, 10), LATENCY)
    assert sorted((t.stage, t.sample) for t in ours if t.stage) == sorted(
        (t.stage, t.sample) for t in theirs if t.stage
    )
    assert work_s(ours) == pytest.approx(work_s(theirs))
    assert makespan(ours, 8) < makespan(theirs, 8)


def test_more_staleness_shortens_the_critical_path_and_changes_no_call():
    strict, stale = (compile_graph(Shape(10, 2, 5, staleness=s), LATENCY) for s in (0, 1))
    assert [(t.stage, t.sample, t.seconds) for t in strict] == [
        (t.stage, t.sample, t.seconds) for t in stale
    ]
    assert critical_path_s(stale) < critical_path_s(strict)


def test_rollouts_of_a_batch_wait_for_the_update_before_by_one_more_with_each_staleness():
    def waits(staleness):
        """For each batch, whether its rollouts wait for anything."""
        graph = compile_graph(Shape(10, 2, 5, staleness=staleness), LATENCY)
        rollouts = [task for task in graph if task.stage == "rollout"]
        return [bool(rollouts[batch * 25].needs) for batch in range(4)]

    assert waits(0) == [False, True, True, True]
    assert waits(1) == [False, False, True, True]
    assert waits(2) == [False, False, False, True]


def test_sixty_percent_of_groups_are_expected_to_have_contrast():
    expected = 1 - CHANCE**GROUP_SIZE - (1 - CHANCE) ** GROUP_SIZE
    assert expected == pytest.approx(0.6, abs=0.001)


def test_latencies_have_the_median_asked_for_and_depend_on_their_sample_only():
    seconds = sorted(LATENCY.of("rollout", sample) for sample in range(4001))
    assert seconds[2000] == pytest.approx(0.05, rel=0.05)
    assert LATENCY.of("rollout", 7) == Latency(draw=3).of("rollout", 7)
    assert Latency(reflection_factor=3.0, draw=3).of("lesson", 7) == pytest.approx(
        3 * LATENCY.of("lesson", 7)
    )
