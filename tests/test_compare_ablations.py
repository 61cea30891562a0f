"""Each ablation of the comparison changes what its name says: the prompts of a small run."""

import functools
import re
from dataclasses import dataclass, field, replace
from typing import Any

import dspy
import pytest
from dspy import lm15

for package in ("gepa", "optuna", "numpy", "scipy"):
    pytest.importorskip(package)

from compare_ablations import ABLATIONS  # noqa: E402
from compare_budget import POLICY, REFLECTION, Account, BudgetSpentError, counted  # noqa: E402
from compare_observe import Observer  # noqa: E402
from compare_optimizers import OPTIMIZERS, Setup  # noqa: E402
from compare_tasks import find  # noqa: E402
from simlm import SimulatedEngine, policy_lm, reflection_lm  # noqa: E402
from simlm_texts import Prompt, output_fields  # noqa: E402
from simlm_world import World  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # metric=None warns

BUDGET = 300
ATTEMPT = re.compile(r"^Attempt \d+(?: \(score ([\d.]+), advantage ([+-][\d.]+)\))?", re.MULTILINE)


class RecordingEngine(SimulatedEngine):
    """Keeps the requests that it answers."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.requests: list[lm15.Request] = []

    def complete(self, request: lm15.Request) -> lm15.Response:
        self.requests.append(request)
        return super().complete(request)


@dataclass
class Seen:
    """What the LMs were asked, the user's part of each prompt; and the result."""

    rollouts: list[Prompt] = field(default_factory=list)
    trials: list[Prompt] = field(default_factory=list)
    lessons: list[str] = field(default_factory=list)
    critiques: list[str] = field(default_factory=list)
    summaries: list[str] = field(default_factory=list)
    updates: list[str] = field(default_factory=list)
    direct: list[str] = field(default_factory=list)
    program: Any = None

    @property
    def attempts(self) -> list[list[tuple[str, str]]]:
        """Score and advantage of each attempt, for each prompt that asks for lessons."""
        return [ATTEMPT.findall(text) for text in self.lessons]

    @property
    def groups(self) -> list[Any]:
        return [g for update in self.program.detailed_results.updates for g in update.groups]


@functools.cache
def seen(name: str) -> Seen:
    dspy.configure_cache(enable_disk_cache=False)  # what another variant asked is asked again
    task = find("sim:easy", 0)
    engine = RecordingEngine(task.metric.world)  # type: ignore[attr-defined]
    account, student = Account(BUDGET), task.student()
    observer = Observer(account, student)
    policy = counted(policy_lm(engine), POLICY, account)
    setup = Setup(
        task=replace(task),
        budget=BUDGET,
        seed=0,
        policy=policy,
        reflection=counted(reflection_lm(engine), REFLECTION, account),
        observer=observer,
        n_threads=2,
        calls=1.0,
    )
    found = Seen()
    try:
        with dspy.context(lm=policy, callbacks=[observer]):
            found.program = (OPTIMIZERS | ABLATIONS)[name](setup)
    except BudgetSpentError:
        found.program = observer.best
    for request in engine.requests:
        sort(request, found)
    return found


def sort(request: lm15.Request, found: Seen) -> None:
    prompt = Prompt.of(request, "")
    names = output_fields(prompt.system).names
    by_field = {
        "semantic_advantage": found.lessons,
        "critique": found.critiques,
        "summary": found.summaries,
        "operations": found.updates,
    }
    for name, texts in by_field.items():
        if name in names:
            texts.append(prompt.user)
            return
    if "answer" in names:
        (found.rollouts if request.config.temperature else found.trials).append(prompt)
    else:
        found.direct.append(prompt.user)


def lowest(attempts: list[tuple[str, str]]) -> float:
    return min(float(score) for score, _ in attempts)


def without_experiences(prompts: list[Prompt]) -> int:
    return sum("When a request names" not in prompt.system for prompt in prompts)


def test_without_ablation_groups_of_two_are_compared_with_labels_and_feedback() -> None:
    plain = seen("tfgrpo")
    assert {len(attempts) for attempts in plain.attempts} == {2}
    assert all("expected ## ]]\n(hidden)" not in text for text in plain.lessons)
    assert all("Feedback:" in text for text in plain.lessons)
    assert plain.trials
    assert not plain.summaries


@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_group_size_is_the_number_of_attempts_in_every_prompt(size: int) -> None:
    assert {len(attempts) for attempts in seen(f"group_size={size}").attempts} == {size}


def test_the_defaults_have_groups_of_five_and_look_one_update_ahead() -> None:
    found = seen("tfgrpo-defaults").program.detailed_results.settings
    assert (found["group_size"], found["max_staleness"]) == (5, 1)


def test_single_rollouts_are_made_once_and_show_no_contrast() -> None:
    found = seen("group_size=1, no gate")
    assert all(len({score for score, _ in attempts}) == 1 for attempts in found.attempts)
    assert found.lessons and not found.trials
    assert len(found.rollouts) + len(found.lessons) + len(found.updates) == BUDGET
    assert without_experiences(found.rollouts) < 40  # on policy: with the library of their time


def test_without_labels_they_are_hidden_from_every_prompt() -> None:
    assert all("[[ ## expected ## ]]\n(hidden)" in text for text in seen("no labels").lessons)


def test_without_feedback_no_prompt_has_any_and_only_contrast_teaches() -> None:
    found = seen("no feedback")
    assert found.lessons
    assert not any("Feedback:" in text for text in found.lessons)
    assert all(len({score for score, _ in attempts}) > 1 for attempts in found.attempts)


def test_without_a_metric_attempts_are_criticised_without_scores() -> None:
    found = seen("metric=None")
    assert found.critiques and not found.lessons and not found.trials
    assert {len(ATTEMPT.findall(text)) for text in found.critiques} == {2}
    assert not any("(score" in text for text in found.critiques)


def test_without_a_gate_nothing_is_tried() -> None:
    found = seen("no gate")
    assert found.updates and not found.trials
    assert {len(attempts) for attempts in found.attempts} == {2}


def test_without_a_contrast_filter_every_group_teaches() -> None:
    plain, found = seen("tfgrpo"), seen("no contrast filter")
    assert "no contrast" not in {group.used_as for group in found.groups}
    assert not any(lowest(attempts) == 1.0 for attempts in plain.attempts)
    assert any(lowest(attempts) == 1.0 for attempts in found.attempts)
    alike = [a for a in found.attempts if lowest(a) > 0 and len({score for score, _ in a}) == 1]
    assert alike and all(len({advantage for _, advantage in a}) > 1 for a in alike)


def test_contrast_only_draws_nothing_from_groups_of_failures() -> None:
    assert any(len({score for score, _ in a}) == 1 for a in seen("tfgrpo").attempts)
    found = seen("contrast only")
    assert found.lessons
    assert all(len({score for score, _ in attempts}) > 1 for attempts in found.attempts)


def test_always_summarised_is_every_attempt() -> None:
    found = seen("always summarise")
    assert len(found.summaries) >= 2 * len(found.lessons) > 0


def test_without_rollouts_the_examples_alone_are_read() -> None:
    found = seen("no rollouts")
    assert not found.rollouts and not found.trials
    assert len(found.direct) == 8  # ten of the eighty examples at a time
    assert "When a request names" in found.program.ask.predict.signature.instructions


def test_with_staleness_more_rollouts_are_made_before_the_first_library() -> None:
    strict, *stale = [without_experiences(seen(f"max_staleness={n}").rollouts) for n in (0, 1, 2)]
    assert strict < min(stale)


def test_the_papers_schedule_summarises_all_has_no_gate_and_one_update_an_epoch() -> None:
    found = seen("paper")
    assert found.summaries and not found.trials
    assert len(found.updates) == 3
    assert {len(attempts) for attempts in found.attempts} == {5}
    n_groups = [len(u.groups) for u in seen("paper").program.detailed_results.updates]
    of_small = seen("paper, small batches").program.detailed_results.updates
    assert n_groups == [9, 9, 9]  # what the budget has room for
    assert {len(u.groups) for u in of_small[:-1]} == {5}  # the budget cuts the last
    assert len(seen("paper, as implemented").updates) > 2 * len(found.updates)


def test_the_oracle_is_told_all_there_is_to_learn_for_nothing() -> None:
    task = find("sim:easy", 0)
    instructions = ABLATIONS["oracle"](
        Setup(task, 0, 0, None, None, Observer(Account(0), task.student()), 1, 1.0)
    ).ask.predict.signature.instructions
    assert instructions.count("When a request names") == 8
