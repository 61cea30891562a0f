"""Async code of the user that needs the event loop in which its session, task or queue lives."""

import asyncio
import re
import threading
import types
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import dspy
import pytest
from runs import (
    ADVICE,
    is_polite,
    library_texts,
    optimizer_of,
    polite_lm,
    polite_rules,
    predictor,
    questions,
)
from scripted import AsyncEngine, ScriptedEngine

from tfgrpo_dspy import NoGate, RunFailedError, SettingsError, best_so_far

SETTINGS: dict[str, Any] = {"gate": NoGate(), "group_size": 2, "epochs": 1, "num_threads": 2}
PAGE = "page 7 is blue"


class Archive:
    """Hands its pages out in a task of the loop that opened it, as the client of a server does."""

    async def __aenter__(self) -> "Archive":
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self.loop, self.n_read, self.n_open = asyncio.get_running_loop(), 0, 0
        self._task = asyncio.create_task(self._serve())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()

    async def _serve(self) -> None:
        while True:
            page, found = await self.queue.get()
            self.n_read += 1
            found.set_result(f"page {page} is blue")

    async def read(self, page: str) -> str:
        """Reads a page."""
        assert asyncio.get_running_loop() is self.loop
        found: asyncio.Future[str] = self.loop.create_future()
        self.n_open += 1
        await self.queue.put((page, found))
        try:
            return await found
        finally:
            self.n_open -= 1


class Reading(dspy.Module):
    """Reads a page with its tool before it answers."""

    def __init__(self, tool: Any) -> None:
        super().__init__()
        self.tools = {"read": dspy.Tool(tool, name="read")}
        self.ask = dspy.Predict("question, page -> answer")

    def forward(self, question: str) -> Any:
        return self.ask(question=question, page=self.tools["read"](page="7"))


class AsyncReading(dspy.Module):
    def __init__(self, archive: Archive) -> None:
        super().__init__()
        self.archive, self.ask = archive, dspy.Predict("question, page -> answer")

    async def aforward(self, question: str) -> Any:
        return await self.ask.acall(question=question, page=await self.archive.read("7"))


def closure(archive: Archive) -> Callable[..., Awaitable[str]]:
    async def read(page: str) -> str:
        return await archive.read(page)

    return read


STUDENTS: dict[str, Callable[[Archive], dspy.Module]] = {
    "a closure": lambda archive: Reading(closure(archive)),
    "a method": lambda archive: Reading(archive.read),
    "a program with aforward": AsyncReading,
    "a wrapped program": lambda archive: dspy.syncify(AsyncReading(archive), in_place=False),
}


def lm() -> Any:
    engine = ScriptedEngine(polite_rules())
    return dspy.LM("scripted", cache=False, engine=engine, async_engine=AsyncEngine(engine))


DATA = {"trainset": questions(4), "valset": questions(2, start=102)}


@pytest.mark.parametrize("student", STUDENTS.values(), ids=STUDENTS)
def test_async_code_that_needs_the_callers_loop_runs_in_it_and_is_not_compiled_in_it(
    student: Any,
) -> None:
    async def main() -> Any:
        async with Archive() as archive:
            optimizer, refusal = optimizer_of(**SETTINGS), r"^(tool 'read'|program \w+).*acompile"
            with dspy.context(lm=lm()):
                with pytest.raises(SettingsError, match=refusal):
                    optimizer.compile(student(archive), **DATA)
                program = await optimizer.acompile(student(archive), **DATA)
            return program, archive.n_read

    program, n_read = asyncio.run(main())
    results = program.detailed_results
    assert results.failures == {}
    assert n_read >= 8  # each training rollout has read a page
    assert library_texts(program) == [ADVICE]


class Client:
    """Belongs to the loop in which it is used first, as clients with a pool of connections do."""

    def __init__(self) -> None:
        self.loop: Any = None
        self.n_at_once = self.most_at_once = 0

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def get(self, page: str) -> str:
        self.loop = self.loop or asyncio.get_running_loop()
        assert self.loop is asyncio.get_running_loop()
        self.n_at_once += 1
        self.most_at_once = max(self.most_at_once, self.n_at_once)
        for _ in range(5):
            await asyncio.sleep(0.001)
        self.n_at_once -= 1
        return f"page {page} is blue"


@pytest.mark.parametrize("at", ["a script", "a thread"])
def test_calls_share_one_loop_and_so_do_their_client_and_their_lock_in_every_run(at: str) -> None:
    client: Any = None
    at_most_two = asyncio.Semaphore(2)

    async def read(page: str) -> str:
        nonlocal client
        client = client or Client()
        async with at_most_two:
            return await client.get(page)

    def compiled() -> Any:
        with dspy.context(lm=polite_lm()):
            return optimizer_of(**{**SETTINGS, "num_threads": 6}).compile(Reading(read), **DATA)

    async def main() -> list[Any]:
        made = [await asyncio.to_thread(compiled) for _ in range(2)]
        return made if client.loop is asyncio.get_running_loop() else []  # that beside compile

    programs = [compiled(), compiled()] if at == "a script" else asyncio.run(main())
    assert [program.detailed_results.failures for program in programs] == [{}, {}]
    assert client.most_at_once == 2


opened: Any = None


async def read_globally(page: str) -> str:
    global opened
    opened = opened or Client()
    return str(await opened.get(page))


def test_calls_in_a_worker_of_an_executor_share_a_loop_of_the_worker() -> None:
    with ProcessPoolExecutor(1) as executor, dspy.context(lm=polite_lm()):
        optimizer = optimizer_of(**SETTINGS, executor=executor)
        program = optimizer.compile(Reading(read_globally), **DATA)
    assert program.detailed_results.failures == {}


def test_compile_in_a_running_loop_goes_on_where_no_code_is_async() -> None:
    async def main() -> Any:
        backend = types.SimpleNamespace(session=asyncio.current_task(), pages={"7": PAGE})

        def looked_up(page: str) -> str:
            return str(backend.pages[page])

        with dspy.context(lm=polite_lm()):
            return optimizer_of().compile(Reading(looked_up), **DATA)

    program = asyncio.run(main())
    assert program.detailed_results.failures == {}
    assert library_texts(program) == [ADVICE]


def test_an_async_metric_runs_in_the_loop_that_it_needs() -> None:
    async def main() -> Any:
        async with Archive() as archive:

            async def metric(example: Any, pred: Any, trace: Any = None) -> Any:
                await archive.read("7")
                return is_polite(example, pred, trace)

            with dspy.context(lm=polite_lm()):
                optimizer = optimizer_of(metric=metric, **SETTINGS)
                with pytest.raises(SettingsError, match=r"^metric: may need the event loop"):
                    optimizer.compile(predictor(), **DATA)
                return await optimizer.acompile(predictor(), **DATA)

    assert asyncio.run(main()).detailed_results.failures == {}


class Desk:
    """A person who is asked, and told of events, in the event loop that opened the desk."""

    def __init__(self) -> None:
        self.loop, self.open = asyncio.get_running_loop(), asyncio.Event()
        self.asked: list[str] = []

    async def approve(self, proposal: Any) -> bool:
        assert asyncio.get_running_loop() is self.loop
        await self.open.wait()
        self.asked += [operation.text for operation in proposal.operations]
        return True


def test_approve_may_be_async_and_runs_in_the_callers_loop() -> None:
    async def main() -> Any:
        desk = Desk()
        asyncio.get_running_loop().call_later(0.05, desk.open.set)
        optimizer = optimizer_of(approve=desk.approve, **SETTINGS)
        with dspy.context(lm=lm()):
            with pytest.raises(SettingsError, match=r"^approve: may need the event loop"):
                optimizer.compile(predictor(), **DATA)
            return await optimizer.acompile(predictor(), **DATA), desk

    program, desk = asyncio.run(main())
    assert program.detailed_results.failures == {}
    assert library_texts(program) == [ADVICE] and ADVICE in desk.asked


# ------------------------------------------------------------------------------ acompile


def test_other_tasks_of_the_loop_go_on_while_acompile_is_awaited() -> None:
    async def main() -> tuple[Any, int]:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(count())
        with dspy.context(lm=polite_lm()):
            program = await optimizer_of(**SETTINGS).acompile(predictor(), seed=3, **DATA)
        task.cancel()
        return program, turns

    program, turns = asyncio.run(main())
    with dspy.context(lm=polite_lm()):
        same = optimizer_of(**SETTINGS).compile(predictor(), seed=3, **DATA)
    assert library_texts(program) == library_texts(same) == [ADVICE]
    assert program.detailed_results.updates == same.detailed_results.updates
    assert turns > 10


def test_alearn_gives_what_learn_gives() -> None:
    traces = [
        {"inputs": {"question": f"question {i}"}, "outputs": {"answer": "no"}, "score": i % 2}
        for i in range(6)
    ]
    optimizer = optimizer_of(**SETTINGS)
    with dspy.context(lm=polite_lm()):
        program = asyncio.run(optimizer.alearn(predictor(), traces=traces, valset=DATA["valset"]))
        learned = optimizer.learn(predictor(), traces=traces, valset=None)
    assert library_texts(program) == library_texts(learned) == [ADVICE]


def test_a_cancelled_acompile_ends_the_run_keeps_what_is_done_and_leaves_no_work(
    tmp_path: Path,
) -> None:
    older, released = set(threading.enumerate()), threading.Event()
    archives: list[Archive] = []

    async def main() -> BaseException:
        has_hung, loop = asyncio.Event(), asyncio.get_running_loop()

        def before(prompt: Any) -> None:
            if "question 103" in prompt.user:  # in the final choice
                loop.call_soon_threadsafe(has_hung.set)
                released.wait(60)

        with dspy.context(lm=polite_lm(before=before)):
            async with Archive() as archive:
                archives.append(archive)
                student = Reading(archive.read)
                run = optimizer_of(**SETTINGS, log_dir=tmp_path).acompile(student, **DATA)
                task, hung = asyncio.create_task(run), asyncio.create_task(has_hung.wait())
                await asyncio.wait({task, hung}, timeout=30, return_when="FIRST_COMPLETED")
                assert hung.done(), task
                task.cancel()
                await asyncio.wait({task}, timeout=30)
                with pytest.raises(asyncio.CancelledError) as raised:
                    task.result()
        return raised.value

    cancelled = asyncio.run(main())
    released.set()
    for thread in set(threading.enumerate()) - older:
        thread.join(10)
        assert not thread.is_alive() or thread.name == "tqdm_monitor", thread
    assert archives[0].n_open == 0
    assert cancelled.program is not None  # type: ignore[attr-defined]

    async def again() -> Any:
        async with Archive() as archive:
            student = Reading(archive.read)
            assert best_so_far(tmp_path, student) is not None
            with dspy.context(lm=polite_lm()):
                return await optimizer_of(**SETTINGS, log_dir=tmp_path).acompile(student, **DATA)

    assert asyncio.run(again()).detailed_results.replayed["rollout"] >= 8


def test_a_tool_that_nobody_waits_for_any_more_is_cancelled_in_its_loop() -> None:
    async def main() -> int:
        async with Archive() as archive:
            cancelled = 0

            async def read(page: str) -> str:
                nonlocal cancelled
                try:
                    await archive.loop.create_future()  # which nothing sets
                except asyncio.CancelledError:
                    cancelled += 1
                    raise
                return page

            optimizer = optimizer_of(**SETTINGS, rollout_timeout_s=0.3, max_errors=3)
            with dspy.context(lm=polite_lm()), suppress(Exception):
                await optimizer.acompile(Reading(read), **DATA)
            while cancelled < 4:
                await asyncio.sleep(0.01)
            return cancelled

    assert asyncio.run(main()) >= 4


# ------------------------------------------------------------------------------ MCP


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_tools_of_an_mcp_session_run_in_its_loop(mode: str) -> None:
    mcp = pytest.importorskip("mcp")
    server = pytest.importorskip("mcp.server.mcpserver").MCPServer("archive")
    n_read = 0

    @server.tool()  # type: ignore[untyped-decorator]
    def read(page: str) -> str:
        """Reads a page."""
        nonlocal n_read
        n_read += 1
        return f"page {page} is blue"

    async def main() -> Any:
        async with mcp.Client(server, mode=mode) as client:
            (tool,) = (await client.list_tools()).tools
            student = Reading(len)
            student.tools["read"] = dspy.Tool.from_mcp_tool(client, tool)
            with dspy.context(lm=polite_lm()):
                optimizer = optimizer_of(**SETTINGS)
                with pytest.raises(SettingsError, match=r"tool 'read'.*acompile"):
                    optimizer.compile(student, **DATA)
                return await optimizer.acompile(student, **DATA)

    program = asyncio.run(main())
    assert library_texts(program) == [ADVICE]
    assert program.detailed_results.failures == {}
    assert n_read >= 8


# ------------------------------------------------------------------------------ what hangs


PLACES = {"tool": "tool 'read'", "metric": "the metric", "LM": "a call of scripted"}


@pytest.mark.parametrize("place", PLACES)
def test_a_rollout_that_waits_in_vain_is_named_with_its_example_and_what_it_is_in(
    place: str, caplog: Any
) -> None:
    released = threading.Event()

    def wait_at(here: str) -> None:
        if here == place:
            released.wait(60)

    def read(page: str) -> str:
        wait_at("tool")
        return page

    def metric(example: Any, pred: Any, trace: Any = None) -> Any:
        wait_at("metric")
        return is_polite(example, pred, trace)

    optimizer = optimizer_of(metric=metric, **SETTINGS, rollout_timeout_s=0.4, max_errors=1)
    lm = polite_lm(before=lambda _: wait_at("LM"))
    with dspy.context(lm=lm), pytest.raises(RunFailedError) as raised:
        optimizer.compile(Reading(read), **DATA)
    released.set()
    pattern = rf"the rollout took over 0.4 s, .*; it was in {PLACES[place]}"
    lines = [line for line in caplog.messages if "took over" in line and "first failure" in line]
    assert len(lines) == 1
    assert re.search(rf"{pattern} on the example \d \(training\)", lines[0])
    assert re.search(pattern, str(raised.value))
