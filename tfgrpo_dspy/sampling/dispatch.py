"""Stands between a rollout's tools and their functions: for the loop of async ones, or a replay."""

import functools
import inspect
from typing import Any

import dspy

from tfgrpo_dspy.dspy_seam import BaseCallback
from tfgrpo_dspy.user_code import in_loop

REPLAY = "tfgrpo_replay"
"""Under this name DSPy's settings hold the `Replay` of the rollout that is being made."""


class _Dispatcher:
    """Stands in a tool for its function while a rollout calls the tool."""

    def __init__(self, function: Any) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.n_users = 0

    def __call__(self, *args: Any, **arguments: Any) -> Any:
        replay = dspy.settings.get(REPLAY)
        if replay is None:
            result = self.function(*args, **arguments)
        else:
            result = replay.called(self.function, arguments)
        return in_loop(result) if inspect.iscoroutine(result) else result


class _AsyncDispatcher(_Dispatcher):
    """A `_Dispatcher` for a function that DSPy is to know as async."""

    async def __call__(self, *args: Any, **arguments: Any) -> Any:
        result = super().__call__(*args, **arguments)
        return await result if inspect.iscoroutine(result) else result


class DispatchedTools(BaseCallback):
    """Changes the tools that a rollout calls, wherever it takes them from, until it has ended."""

    def __init__(self) -> None:
        self._changed: list[dspy.Tool] = []  # tools that hold a dispatcher

    def on_tool_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:  # noqa: ARG002
        """Change the tool before its function is called."""
        with dspy.settings.lock:
            if not isinstance(instance.func, _Dispatcher):
                is_async = inspect.iscoroutinefunction(instance.func)
                kind = _AsyncDispatcher if is_async else _Dispatcher
                vars(instance)["func"] = kind(instance.func)
            instance.func.n_users += 1
            self._changed.append(instance)

    def close(self) -> None:
        """Give the tools their functions back, unless another rollout needs the dispatchers."""
        with dspy.settings.lock:
            for tool in self._changed:
                tool.func.n_users -= 1
                if not tool.func.n_users:
                    vars(tool)["func"] = tool.func.function
