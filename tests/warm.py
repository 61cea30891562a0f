"""Python processes that start in no time: each is a fork of one process that has imported DSPy.

A child is the process that `python ARGUMENTS` would be, but for the modules that it finds
imported. `warm.py FD MODULES` is the process that forks; it ends with the process of the tests.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent
USUAL = ("tfgrpo_dspy", "tfgrpo_dspy.cli", "runs")
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{TESTS.parent}:{TESTS}"}


class Process:
    """What `subprocess.Popen` is, for `python ARGUMENTS`: `-c CODE`, `-m MODULE` or a script.

    Streams are files or descriptors; one that is None is closed, and /dev/null is the usual one.
    """

    def __init__(
        self,
        arguments: Sequence[Any],
        *,
        env: Mapping[str, str] = ENVIRONMENT,
        cwd: Any = None,
        stdin: Any = subprocess.DEVNULL,
        stdout: Any = subprocess.DEVNULL,
        stderr: Any = subprocess.DEVNULL,
        start_new_session: bool = False,
        modules: Sequence[str] = USUAL,
    ) -> None:
        asked = {
            "arguments": [*map(str, arguments)],
            "env": dict(env),
            "cwd": str(cwd or Path.cwd()),
            "session": start_new_session,
            "open": [n for n, one in enumerate((stdin, stdout, stderr)) if one is not None],
        }
        self._reply, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, Path(os.devnull).open("r+b", buffering=0) as nothing:
            streams = [
                nothing.fileno() if one == subprocess.DEVNULL else _descriptor(one)
                for one in (stdin, stdout, stderr)
                if one is not None
            ]
            with socket.socket(fileno=os.dup(_forking(tuple(modules)))) as forking:
                socket.send_fds(forking, [json.dumps(asked).encode()], [theirs.fileno(), *streams])
        self.pid = int(self._reply.recv(100))
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, below zero for a signal.

        Raises:
            TimeoutError: the process has not ended after so many seconds.
        """
        if self.returncode is None:
            self._reply.settimeout(timeout)
            self.returncode = int(self._reply.recv(100))
            self._reply.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def ran(
    arguments: Sequence[Any], check: bool = False, timeout: float = 110, **given: Any
) -> "subprocess.CompletedProcess[str]":
    """What `subprocess.run` gives, with what was said on both streams, unless they are given."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = Process(arguments, **{"stdout": out, "stderr": err, **given})
        try:
            code = process.wait(timeout)
        except TimeoutError:
            process.send_signal(signal.SIGKILL)
            process.wait()
            raise
        said = []
        for stream in (out, err):
            stream.seek(0)
            said.append(stream.read().decode())
    done = subprocess.CompletedProcess([*arguments], code, *said)
    assert not check or code == 0, done
    return done


def _descriptor(stream: Any) -> int:
    return stream if isinstance(stream, int) else int(stream.fileno())


@functools.cache
def _forking(modules: tuple[str, ...]) -> int:
    """The socket on which to ask the process that has imported these modules for forks of it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno()), *modules],
            env=ENVIRONMENT | {"OMP_NUM_THREADS": "1"},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
    atexit.register(process.wait)
    atexit.register(ours.close)  # at which it ends; this comes first
    return ours.fileno()


def _serve(asked: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Fork at each request; comes back in the child, with what it was asked and its streams."""
    while True:
        message, (*descriptors,), _, _ = socket.recv_fds(asked, 1 << 20, 4)
        if not message:
            sys.exit()
        if os.fork() == 0:  # waits for the child, while others are asked for
            asked.close()
            reply, *streams = descriptors
            if (pid := os.fork()) == 0:
                os.close(reply)
                return json.loads(message), streams
            for stream in streams:
                os.close(stream)
            with socket.socket(fileno=reply) as replying:
                replying.send(str(pid).encode())
                _, status = os.waitpid(pid, 0)
                replying.send(str(os.waitstatus_to_exitcode(status)).encode())
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)
        while _ended():
            pass


def _ended() -> int:
    """A child that has ended, if there is one."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0]
    except ChildProcessError:
        return 0


def _become(asked: dict[str, Any], streams: list[int]) -> None:
    """What Python does when it starts."""
    if asked["session"]:
        os.setsid()
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if number not in asked["open"]:
            os.close(number)
            setattr(sys, name, None)
            continue
        os.dup2(streams[0], number)
        os.close(streams.pop(0))
        setattr(sys, name, _stream(number))
    paths = os.environ.get("PYTHONPATH", "")
    sys.path[:0] = [path for path in paths.split(os.pathsep) if path]
    cache = os.environ.get("DSPY_CACHEDIR")
    sys.modules["dspy"].configure_cache(enable_disk_cache=bool(cache), disk_cache_dir=cache)


def _stream(number: int) -> Any:
    encoding = os.environ.get("PYTHONIOENCODING", "utf-8")
    errors = "backslashreplace" if number == 2 else "strict"
    mode, buffering = "w" if number else "r", 1 if number == 2 else -1
    return open(number, mode, buffering, encoding, errors, closefd=False)


def _run(how: str, *others: str) -> None:
    if how == "-c":
        code, *sys.argv[1:] = others
        sys.argv[0] = "-c"
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        sys.path.insert(0, "")
        exec(compile(code, "<string>", "exec"), vars(main))
    elif how == "-m":
        sys.argv[:] = others
        sys.path.insert(0, "")
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv[:] = [how, *others]
        sys.path.insert(0, str(Path(how).parent))
        runpy.run_path(how, run_name="__main__")


if __name__ == "__main__":
    sys.path.pop(0)
    for imported in sys.argv[2:]:
        importlib.import_module(imported)
    gc.freeze()  # else each child looks through all of it once more as it ends
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        request = _serve(requests)
    _become(*request)
    _run(*request[0]["arguments"])
