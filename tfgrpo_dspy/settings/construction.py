"""A constructor that takes the arguments of a settings class, each declared there only."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

Arguments = ParamSpec("Arguments")
SettingsT = TypeVar("SettingsT")


def taking(
    settings_class: Callable[Arguments, SettingsT],
) -> Callable[[Callable[[Any, SettingsT], None]], Callable[Concatenate[Any, Arguments], None]]:
    """Make `__init__(self, settings)` take what `settings_class` takes.

    Editors, type checkers and `inspect.signature` see the arguments of the class, with their types
    and defaults.
    """

    def decorate(
        init: Callable[[Any, SettingsT], None],
    ) -> Callable[Concatenate[Any, Arguments], None]:
        @functools.wraps(init)
        def constructor(self: Any, *args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
            init(self, settings_class(*args, **kwargs))

        own = inspect.signature(settings_class)
        this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        constructor.__signature__ = own.replace(  # type: ignore[attr-defined]
            parameters=[this, *own.parameters.values()]
        )
        takes: Any = constructor
        return cast(Callable[Concatenate[Any, Arguments], None], takes)

    return decorate
