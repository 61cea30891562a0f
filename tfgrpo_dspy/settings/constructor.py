"""The constructor of the optimizer: takes all settings; says what to pass in place of others."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from tfgrpo_dspy.settings import Execution, Reflection

P = ParamSpec("P")
S = TypeVar("S")
OTHERS = {
    "add_format_failure_as_feedback": "nothing: the reflection LM sees answers that do not parse",
    "bsize": "batch_size=",
    "candidate_selection_strategy": "gate=, or nothing: the race chooses among several candidates",
    "code_proposer": "nothing: only instructions and demos are changed",
    "component_selector": "nothing: each experience says which predictor it is for",
    "demo_input_field_maxlen": "max_demos=",
    "failure_score": "nothing: a failure counts as the lowest score of the run",
    "gepa_kwargs": "nothing: it goes to GEPA",
    "init_temperature": "temperature=",
    "instruction_proposer": "reflection=Reflection(extract=..., update=...)",
    "max_bootstrapped_demos": "max_demos=",
    "max_full_evals": "max_lm_calls= or max_metric_calls=",
    "max_labeled_demos": "max_demos=",
    "max_merge_invocations": "nothing: the race compares libraries and parts of them",
    "max_steps": "epochs=",
    "metric_threshold": "nothing: demos are labelled examples, or rollouts of high scores",
    "minibatch_size": "batch_size=",
    "num_candidates": "group_size=",
    "num_trials": "max_lm_calls= or auto=",
    "perfect_score": "nothing: the best score is that which the run has seen",
    "prompt_model": "reflection_lm=",
    "reflection_minibatch_size": "batch_size=",
    "skip_perfect_score": "nothing: groups that leave nothing to gain are not reflected on",
    "task_model": "nothing: the program keeps its LMs; set them by program.set_lm(...)",
    "teacher_settings": "strategies=(TeacherRollouts(lm),), of tfgrpo_dspy.strategies",
    "temperature_for_candidates": "temperature=, or one on reflection_lm",
    "temperature_for_sampling": "temperature=",
    "track_best_outputs": "nothing: detailed_results.examples has the outputs of the result",
    "track_stats": "nothing: the result always has detailed_results",
    "use_merge": "nothing: the race compares libraries and parts of them",
    "use_mlflow": "nothing: a run within an MLflow run is tracked; see docs/dspy.md",
    "use_wandb": "on_event=, a function that logs; see docs/events.md",
    "verbose": "progress=",
    "wandb_api_key": "on_event=, a function that logs; see docs/events.md",
    "wandb_init_kwargs": "on_event=, a function that logs; see docs/events.md",
    "warn_on_score_mismatch": "nothing: the score of the whole counts",
}
"""By the name of an argument of GEPA, MIPROv2 or SIMBA, what to pass here in its place."""


def taking(
    settings_class: Callable[P, S],
) -> Callable[[Callable[[Any, S], None]], Callable[Concatenate[Any, P], None]]:
    """Make `__init__(self, settings)` take the arguments of this class, with their signature."""

    signature = inspect.signature(settings_class)

    def decorate(init: Callable[[Any, S], None]) -> Callable[Concatenate[Any, P], None]:
        def constructor(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> None:
            name = type(self).__name__
            for unknown in [each for each in kwargs if each not in signature.parameters]:
                instead = _instead_of(unknown, [*signature.parameters])
                raise TypeError(f"{name} has no argument {unknown!r}; {instead}.")
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(
                    f"{name}: {error}; pass, for example, {name}(metric, max_lm_calls=300)."
                ) from None
            init(self, settings_class(*args, **kwargs))

        self_parameter = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = [self_parameter, *signature.parameters.values()]
        vars(constructor)["__signature__"] = inspect.Signature(parameters)
        constructor.__name__, constructor.__qualname__ = init.__name__, init.__qualname__
        return constructor

    return decorate


def _instead_of(name: str, names: list[str]) -> str:
    """What to pass instead of an argument that the optimizer, which has `names`, does not have."""
    kinds = (kind for kind in (Reflection, Execution) if name in kind.__annotations__)
    if kind := next((kind.__name__ for kind in kinds), ""):
        return f"pass {kind.lower()}={kind}({name}=...)"
    if name in OTHERS:
        return f"pass {OTHERS[name]}"
    nearest = difflib.get_close_matches(name, names, 1)
    return f"the nearest one is {nearest[0]}=" if nearest else "docs/settings.md lists all"
