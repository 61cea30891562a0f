"""The ready metrics: which answers are the same, what the feedback says, hostile input, workers."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfgrpo_dspy.errors import MetricError, SettingsError
from tfgrpo_dspy.metrics import (
    exact_match,
    is_equivalent,
    math_equivalent,
    normalize_text,
    normalized_match,
)

EQUAL = r"""
7 ~ 7.0 || .5 ~ 0.5 || 1,234 ~ 1234 || 10{,}000 ~ 10000 || 10\,000 ~ 10000 || 1e3 ~ 1000
6 + 6 = 12 #### 1,234 ~ 1234 || $\boxed{1{,}234}$ ~ 1,234 || The answer is 42. ~ 42 || **42** ~ 42
So the final answer is $\frac{3}{4}$. ~ 0.75 || \boxed{\boxed{3}} ~ 3 || \boxed{12 ~ 12 || \(x\) ~ x
$1,200 ~ 1200 || -$5 ~ -5 || \$12 ~ 12 dollars || 12 apples ~ 12 || 5\text{ cm} ~ 5 || 90^\circ ~ 90
50% ~ 0.5 || 50\% ~ 1/2 || 50% ~ 50 || 1 1/2 ~ 1.5 || -1\frac12 ~ -1.5 || 2/4 ~ 1/2
\dfrac{3}{4} ~ \tfrac34 || \frac{\sqrt{3}}{3} ~ \frac{1}{\sqrt{3}}
2ab ~ 2ba || (x+1)^2 ~ x^2+2x+1 || \sin^2 x + \cos^2 x ~ 1 || x = 5 ~ 5
f(x) = 2x + 1 ~ 1 + 2x || y = 2x + 1 ~ 2x - y + 1 = 0 || x > 5 ~ 5 < x || x > 5 ~ (5, \infty)
{1,2} ~ {2,1} || 1 and 2 ~ 2, 1 || (1,2) ~ 1,2 || [0,1] \cup [1,2] ~ [0,2] || \pm 5 ~ 5, -5
\begin{pmatrix}1&2\\3&4\end{pmatrix} ~ \begin{bmatrix}1&2\\3&\frac82\end{bmatrix}
(c) ~ C || \text{(B)} ~ B. || No solution. ~ no solution || \text{east} ~ East || 3 : 2 ~ 3:2
"""
UNEQUAL = r"""
12 ~ 21 || 1.5 ~ 15 || 1,234 ~ 1.234 || 1 2 ~ 12 || -5 ~ 5 || 3.14 ~ 3.14159 || 100.0 ~ 99.96
0.33 ~ 1/3 || 0.334 ~ 1/3 || 0.13 ~ 1/8 || 333 ~ 1000/3 || 0.0000001x ~ 0.0000002x || x ~ -x
50% ~ 5000% || 50% ~ 0.05 || 5 km ~ 5 meters || 2 am ~ 2 pm
3 million ~ 3 || 2 thirds ~ 2 || 5 more than x ~ 5 || 5x ~ 5 || 2m ~ 2 || x+1 ~ x-1 || f' ~ f
x = 5 ~ y = 5 || x = 5 ~ 6 || x > 5 ~ x \ge 5 || x > 5 ~ 5 || [0,1) ~ (0,1)
(1,2) ~ (2,1) || 1, 2 ~ 1, 2, 3
(A) ~ (B) || no ~ on || a cat b ~ b cat a || no solution ~ 5 || \frac{1}{0} ~ \frac{2}{0}
Rome ~ 12 || n! ~ n || \infty ~ -\infty || \pm 5 ~ 5 || 2^{100} ~ 2^{100}+1
"""


def pairs(table: str) -> list[list[str]]:
    return [cell.split(" ~ ") for line in table.split("\n")[1:-1] for cell in line.split(" || ")]


@pytest.mark.parametrize("pair", pairs(EQUAL), ids=" ".join)
def test_answers_that_mean_the_same_are_equivalent(pair: list[str]) -> None:
    assert is_equivalent(*pair) and is_equivalent(*pair[::-1])


@pytest.mark.parametrize("pair", pairs(UNEQUAL), ids=" ".join)
def test_answers_that_mean_something_else_are_not(pair: list[str]) -> None:
    assert not is_equivalent(*pair) and not is_equivalent(*pair[::-1])


def test_normalising_drops_case_punctuation_and_articles_but_no_part_of_a_number() -> None:
    assert normalize_text("The Eiffel Tower, U.S.A.! A, B") == "eiffel tower usa a b"
    assert normalize_text("well-known Straße: don't") == "well known strasse dont"
    assert normalize_text("-5 1.5 1,234 3:30 1/2 5% $3.") == "-5 1.5 1,234 3:30 1/2 5% $3"


FEEDBACK = [
    (exact_match(), "Rome", ", given 'Rome': they are not the same text."),
    (exact_match(), "so\n" * 500, f", given '{'so ' * 66}so ...': they are not the same text."),
    (exact_match(), None, " in the field 'answer'; there is only: reasoning, answer."),
    (normalized_match(), "Rome!", ", given 'Rome!': compared as 'paris' and 'rome'."),
    (math_equivalent(), "", ", given '': the answer is empty."),
]


def test_the_feedback_says_what_was_expected_given_and_different() -> None:
    for metric, answer, why in FEEDBACK:
        pred = dspy.Prediction(reasoning="", answer=answer)
        assert metric(dspy.Example(answer="Paris"), pred).feedback == f"Expected 'Paris'{why}"


def test_field_and_label_field_may_differ_and_one_of_several_labels_is_enough() -> None:
    metric, example = normalized_match("result", "cars"), dspy.Example(cars=["car", "automobile"])
    assert metric(example, dspy.Prediction(result="An automobile.")).score == 1
    assert "'car' or 'automobile'" in metric(example, dspy.Prediction(result="bus")).feedback


def test_what_cannot_work_is_refused_with_what_is_wrong(monkeypatch: Any) -> None:
    with pytest.raises(MetricError, match=r"no label 'answer' \(it has: question\)"):
        exact_match()(dspy.Example(question="?"), dspy.Prediction(answer="12"))
    with pytest.raises(SettingsError, match="field=''"):
        exact_match("")
    with pytest.raises(SettingsError, match="timeout_s=0"):
        math_equivalent(timeout_s=0)
    monkeypatch.setitem(sys.modules, "math_verify", None)  # as if it were not installed
    with pytest.raises(ImportError, match=r'pip install "tfgrpo-dspy\[math\]"'):
        math_equivalent()


def test_a_wrong_answer_is_false_where_dspy_asks_for_yes_or_no() -> None:
    metric, example = exact_match(), dspy.Example(answer="12")
    assert metric(example, dspy.Prediction(answer="12"), trace=[])
    assert not metric(example, dspy.Prediction(answer="21"), None, None, None)  # as GEPA


LONG = "+".join(rf"\sin({n}x)^{{9}}" for n in range(40))
HOSTILE = [
    *("9**9**9**9", "10**10**10", "((((5!)!)!)!)!", "1e999999999", "1" * 1_000_000, LONG),
    *("x+" * 900 + "x", "(" * 900 + "1" + ")" * 900, r"\sqrt" * 300 + "2", r"\boxed{" * 20_000),
    *(r"1\text{" + " " * 1_900, "1" + " " * 1_900 + "2", "<" * 1_900, "a" * 1_000_000),
    *("__import__('os').system('touch FILE')", "1 + open('FILE','w')", r"\write18{touch FILE}"),
    *("().__class__.__bases__[0].__subclasses__()", "\x00", "\ud800", "#" * 90_000),
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:20]))
def test_hostile_text_is_compared_in_time_and_never_executed(text: str, tmp_path: Path) -> None:
    text = text.replace("FILE", str(tmp_path / "file"))
    assert is_equivalent("1/3", "2/6")  # the worker runs
    started_at = time.monotonic()
    assert is_equivalent(text, text + " ") and not is_equivalent(text, "7x", timeout_s=0.3)
    assert time.monotonic() - started_at < 8  # 1 second, on a loaded machine
    assert list(tmp_path.iterdir()) == []


ANSWERS = st.lists(st.sampled_from([*"0123456789.,+-*/^_()[]{}%=<x", r"\frac", r"\sqrt", r"\pi"]))


@settings(max_examples=50)
@given(ANSWERS.map("".join), ANSWERS.map("".join))
def test_the_order_of_two_answers_plays_no_role_and_each_equals_itself(a: str, b: str) -> None:
    assert is_equivalent(a, b, timeout_s=1.0) is is_equivalent(b, a, timeout_s=1.0)
    assert is_equivalent(a, f"The answer is: {a}", timeout_s=1.0)


def workers() -> set[int]:
    children = (path.read_text() for path in Path("/proc/self/task").glob("*/children"))
    pids = " ".join(children).split()
    return {int(pid) for pid in pids if "worker.py" in Path(f"/proc/{pid}/cmdline").read_text()}


def test_a_killed_worker_costs_one_comparison_and_is_replaced(caplog: Any) -> None:
    assert is_equivalent("1/3", "2/6")
    (worker,) = workers()
    with ThreadPoolExecutor(1) as executor:
        comparison = executor.submit(is_equivalent, LONG, "7x", timeout_s=60.0)
        with pytest.raises(TimeoutError):
            comparison.result(timeout=0.5)
        os.kill(worker, signal.SIGKILL)
        assert comparison.result() is False
    assert caplog.messages == ["a comparison lost its process (-9); it counts as unequal"]
    assert is_equivalent("1/3", "2/6")


POOLS = """
import multiprocessing, os
from tfgrpo_dspy.metrics import is_equivalent
pairs = [("1/3", "2/6"), ("1/3", "2/7")]
assert is_equivalent(*pairs[0])
for method, n in (("fork", 2), ("spawn", 1)):
    with multiprocessing.get_context(method).Pool(n) as pool:
        assert pool.starmap(is_equivalent, pairs * 4) == [True, False] * 4
os.kill(os.getpid(), 9)
"""


@pytest.mark.timeout(120)
def test_workers_of_pools_compare_too_and_no_process_outlives_the_one_that_asked() -> None:
    done = subprocess.run([sys.executable, "-c", POOLS], stderr=subprocess.PIPE, timeout=100)
    assert done.returncode == -9  # and every process that held its stderr has ended
    assert b"Error" not in done.stderr
