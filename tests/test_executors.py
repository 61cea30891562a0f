"""Rollouts in the user's executor: threads, processes, a dask cluster whose workers may die.

Everything is real: pools of processes, and one local dask cluster for the module. What happens in
other processes is seen in files, which the LM, the program or the metric append to.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import dspy
import pytest
from chat_server import ChatServer, server
from distributed import Client, LocalCluster
from runs import (
    n_calls,
    optimizer_of,
    polite_answer,
    polite_rules,
    predictor,
    questions,
    records,
    untimed,
)
from scripted import Prompt, ScriptedEngine, chat, scripted_lm
from test_promise_deterministic import facts

from tfgrpo_dspy import Gate, NoGate, RunFailedError, SettingsError

__all__ = ["server"]  # a fixture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

KEY = "sk-9qT4-only-in-this-test"
WAIT_S = 60.0


def processes(n: int = 2) -> ProcessPoolExecutor:
    """Forked from a process that has DSPy imported, so that each begins at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tfgrpo_dspy.tasks.worker", "distributed", "hypothesis"])
    return ProcessPoolExecutor(n, mp_context=context)


@pytest.fixture(scope="module")
def pool() -> Iterator[Executor]:
    with processes() as executor:
        yield executor


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dask")


@pytest.fixture(scope="module")
def client(folder: Path, pool: Executor) -> Iterator[Client]:
    """Its workers are forked, like those of the pool, from a process that has DSPy imported."""
    workers = {"n_workers": 2, "threads_per_worker": 1, "processes": True}
    assert is_usable(pool)
    with (
        dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}),
        LocalCluster(dashboard_address=":0", local_directory=str(folder), **workers) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(params=["threads", "processes", "dask"])
def executor(request: pytest.FixtureRequest) -> Executor:
    if request.param == "dask":
        return request.getfixturevalue("client").get_executor()
    is_local = request.param == "threads"
    return ThreadPoolExecutor(2) if is_local else request.getfixturevalue("pool")


class Log:
    """A file that many processes append lines to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, line: object) -> None:
        descriptor = os.open(self.path, os.O_APPEND | os.O_CREAT | os.O_WRONLY)
        os.write(descriptor, f"{line!r}\n".encode())
        os.close(descriptor)

    @property
    def lines(self) -> list[str]:
        return self.path.read_text().splitlines() if self.path.exists() else []


class Two(dspy.Module):
    """Two predictors, the second on an LM of its own."""

    def __init__(self, own_lm: Any = None) -> None:
        super().__init__()
        self.first = dspy.Predict("question -> hint")
        self.second = dspy.Predict("question, hint -> answer")
        self.second.lm = own_lm

    def forward(self, question: str) -> Any:
        return self.second(question=question, hint=self.first(question=question).hint)


class Deadly(dspy.Module):
    """Kills its own process on one question, as often as `allowed` says."""

    def __init__(self, log: Log, question: str, allowed: int) -> None:
        super().__init__()
        self.ask = predictor()
        self.log, self.question, self.allowed = log, question, allowed

    def forward(self, question: str) -> Any:
        prediction = self.ask(question=question)
        if question == self.question and len(self.log.lines) < self.allowed:
            self.log(question)
            os.kill(os.getpid(), signal.SIGKILL)
        return prediction


def hint(prompt: Prompt) -> str:
    return chat(hint=prompt.random("hint").choice(["be kind", "be quick"]))


def logged_lm(log: Log, **kwargs: Any) -> Any:
    return scripted_lm(polite_rules(), before=log, **kwargs)


def compiled(executor: Executor | None = None, student: Any = None, **changes: Any) -> Any:
    """A compile of a second or less: 4 training and 4 validation examples."""
    chosen = {"group_size": 2, "batch_size": 2, "num_threads": None, "seed": 3, **changes}
    lm = chosen.pop("lm", None) or scripted_lm(polite_rules())
    with dspy.context(lm=lm, **chosen.pop("context", {})):
        return optimizer_of(executor=executor, **chosen).compile(
            student or predictor(), trainset=questions(4), valset=questions(4, start=100)
        )


def is_usable(executor: Executor) -> bool:
    return executor.submit(abs, -1).result(WAIT_S) == 1


def test_any_executor_gives_what_our_threads_give_down_to_the_records(
    executor: Executor, tmp_path: Path
) -> None:
    """With LMs and classes of the user's own."""
    own_lm = scripted_lm([("", polite_answer)])
    rules = [*polite_rules()[:-1], ("`hint`", hint)]

    def says_please(_example: Any, pred: Any, _trace: Any = None) -> dspy.Prediction:
        return dspy.Prediction(score=float(pred.answer == "please"), feedback="Say please.")

    lms = {"student": Two(own_lm), "lm": scripted_lm(rules)}
    chosen: dict[str, Any] = {"metric": says_please, "gate": Gate(), **lms}
    here = compiled(log_dir=tmp_path / "a", **chosen)
    there = compiled(executor, log_dir=tmp_path / "b", **chosen)
    assert facts(there) == facts(here)
    made = [records(tmp_path / name, "rollout", "lesson", "update") for name in "ab"]
    assert made[0] == made[1] != {}
    assert '"op": "ADD"' in facts(there)
    assert there.second.lm is own_lm
    assert is_usable(executor)


class Locked:
    """A metric with a lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, example: Any, pred: Any, trace: Any = None) -> float:  # noqa: ARG002
        return 1.0


class LockedProgram(Two):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class LockedEngine(ScriptedEngine):
    def __getstate__(self) -> dict[str, Any]:
        return dict(vars(self))


CANNOT_BE_SENT = {
    "the metric cannot be sent": {"metric": Locked()},
    "the program cannot be sent": {"student": LockedProgram()},
    "settings of dspy.context": {"lm": dspy.LM("x", engine=LockedEngine(polite_rules()))},
}


@pytest.mark.parametrize(("named", "changes"), CANNOT_BE_SENT.items(), ids=CANNOT_BE_SENT)
def test_what_cannot_be_sent_is_named_before_the_first_call_with_what_to_do(
    named: str, changes: dict[str, Any], pool: Executor, tmp_path: Path
) -> None:
    rules = [*polite_rules()[:-1], (r"1\. `hint`", hint), polite_rules()[-1]]
    changes = {"lm": scripted_lm(rules), **changes}
    with pytest.raises(SettingsError, match=named) as told:
        compiled(pool, log_dir=tmp_path / "runs", **changes)
    assert "num_threads" in str(told.value)
    assert not changes["lm"].engine.prompts
    compiled(None, log_dir=tmp_path / "runs", **changes)


@pytest.mark.parametrize("limits", [{}, {"max_lm_calls": 300}], ids=["no limit", "limit"])
def test_what_a_killed_worker_had_begun_is_done_again_elsewhere_and_recorded_once(
    limits: dict[str, int], client: Client, tmp_path: Path
) -> None:
    killed, calls = Log(tmp_path / "killed"), Log(tmp_path / "calls")
    student = Deadly(killed, "question 2", allowed=1)
    chosen: dict[str, Any] = {"version": "1", "lm": logged_lm(calls), **limits}
    run = compiled(client.get_executor(), student, log_dir=tmp_path / "a", **chosen)
    assert len(killed.lines) == 1
    n_made = len(calls.lines)
    spared = compiled(None, student, log_dir=tmp_path / "b", **chosen)
    assert len(records(tmp_path / "a", "rollout")) == len(records(tmp_path / "b", "rollout"))
    ends = [untimed(each.detailed_results) for each in (run, spared)]
    for name in ("library", "updates", "ended_because", "failures"):
        assert ends[0][name] == ends[1][name]
    assert 1 <= n_made - (len(calls.lines) - n_made) <= 3  # what was lost was paid
    if limits:  # which counts: the whole reservation, as nobody knows what it took
        assert n_made <= n_calls(run) <= 300
        assert run.detailed_results.usage["unfinished"].n_lm_calls >= 1


def test_a_broken_pool_ends_the_run_which_goes_on_in_another(
    pool: Executor, tmp_path: Path
) -> None:
    killed, calls = Log(tmp_path / "killed"), Log(tmp_path / "calls")
    student = Deadly(killed, "question 2", allowed=1)
    chosen: dict[str, Any] = {"log_dir": tmp_path / "runs", "lm": logged_lm(calls)}
    with processes() as broken, pytest.raises(RunFailedError, match="BrokenProcessPool") as told:
        compiled(broken, student, **chosen)
    assert isinstance(told.value.program, Deadly)
    run = compiled(pool, student, **chosen)
    alone = compiled(None, student, lm=scripted_lm(polite_rules()))
    assert run.detailed_results.library == alone.detailed_results.library
    n_needed = n_calls(alone)
    assert len(calls.lines) <= n_needed + 4  # what was in flight: two for each worker


class Several(dspy.Module):
    """Asks for three completions, then as often again as a digest of the question says."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict("question -> answer", n=3, temperature=0.9)

    def forward(self, question: str) -> Any:
        for _ in range(1 + sum(question.encode()) % 3):
            prediction = self.ask(question=question)
        return prediction


@pytest.mark.parametrize("most", [25, 40, 90])
def test_max_lm_calls_holds_over_all_processes_also_where_a_first_reservation_is_too_small(
    most: int, pool: Executor, tmp_path: Path
) -> None:
    calls = Log(tmp_path / "calls")
    run = compiled(pool, Several(), lm=logged_lm(calls), max_lm_calls=most, epochs=3, seed=1)
    assert most / 4 < len(calls.lines) <= n_calls(run) <= most
    assert run.detailed_results.ended_because.startswith(f"max_lm_calls={most} ")


class Dollars(Log):
    """Logs what each call costs at a dollar a prompt token."""

    def __call__(self, prompt: Any) -> None:
        super().__call__(len(prompt.text.split()))


@pytest.mark.parametrize("most", [2_000, 6_000])
def test_max_cost_holds_over_all_processes(most: float, pool: Executor, tmp_path: Path) -> None:
    log, prices = Dollars(tmp_path / "dollars"), {"scripted": (1e6, 0.0)}
    lm = logged_lm(log, max_tokens=100)
    run = compiled(pool, lm=lm, max_cost=most, prices=prices, gate=NoGate(), epochs=20)
    spent = sum(map(int, log.lines))
    assert 0 < spent <= most
    results = run.detailed_results
    assert sum(usage.cost_usd for usage in results.usage.values()) == pytest.approx(spent)
    assert results.ended_because.startswith(f"max_cost={most}")


class Hanging(dspy.Module):
    """Bare, it waits for a pipe's writer the first time that it gets that question."""

    def __init__(self, pipe: Path, question: str) -> None:
        super().__init__()
        self.ask = predictor()
        self.pipe, self.question = pipe, question

    def forward(self, question: str) -> Any:
        is_bare = self.ask.signature.instructions == predictor().signature.instructions
        with contextlib.suppress(FileExistsError):
            if question == self.question and is_bare and not self.ask.demos:
                self.pipe.with_name("hung").touch(exist_ok=False)
                self.pipe.read_text()
        return self.ask(question=question)


def release(path: Path) -> None:
    """Whoever waits for the pipe goes on."""
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.close(os.open(path, os.O_WRONLY))
    os.close(reader)


def test_a_rollout_that_takes_too_long_is_left_and_those_behind_it_are_not_on_its_clock(
    tmp_path: Path,
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    limits = {"num_threads": 16, "rollout_timeout_s": 2.0, "max_lm_calls": 60}
    with processes(2) as executor:
        assert compiled(executor).detailed_results.updates  # its workers have what they need
        run = compiled(executor, Hanging(pipe, "question 100"), **limits).detailed_results
        release(pipe)
    assert run.failures == {"timeout": 1}
    assert sum(finalist.score.n_failed for finalist in run.candidates) == 1


@pytest.mark.parametrize("is_dasks", [False, True])
def test_an_executor_that_is_shut_down_is_an_error_that_says_so(
    is_dasks: bool, client: Client
) -> None:
    executor = client.get_executor() if is_dasks else processes()
    executor.shutdown()
    with pytest.raises(RunFailedError, match="cannot schedule new futures after shutdown"):
        compiled(executor)


def leaky(_example: Any, pred: Any, _trace: Any = None) -> dspy.Prediction:
    return dspy.Prediction(
        score=float(pred.answer == "please"), feedback=f"{os.environ.get('OPENAI_API_KEY')}, {KEY}"
    )


class LeakyProgram(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ask = predictor()

    def forward(self, question: str) -> Any:
        prediction = self.ask(question=question)
        key = dspy.settings.lm.kwargs["api_key"]
        if question == "question 1":
            raise ValueError(key)
        return prediction


def test_keys_travel_and_reach_no_file_no_record_and_no_report(
    server: ChatServer, client: Client, folder: Path, tmp_path: Path
) -> None:
    server.rules = [*polite_rules()[:2], ("", chat(answer="please"))]
    lm = server.lm(api_key=KEY, temperature=1.0)
    chosen = {"lm": lm, "metric": leaky, "gate": NoGate(), "log_dir": tmp_path / "runs"}
    run = compiled(client.get_executor(), LeakyProgram(), **chosen)
    lm.close()
    assert server.keys == {KEY}
    assert KEY not in facts(run)
    assert b"(secret)" in (tmp_path / "runs" / "tfgrpo_store.db").read_bytes()
    for path in [*tmp_path.rglob("*"), *folder.rglob("*")]:
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
