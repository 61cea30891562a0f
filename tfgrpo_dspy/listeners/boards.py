"""A listener for Weights & Biases and for trackio, which have the same functions.

    wandb.init(project="support")  # or trackio.init
    TrainingFreeGRPO(metric, max_lm_calls=300, on_event=BoardListener(wandb))

The run of the board stays open: end it as usual, by `wandb.finish()`.
"""

from typing import Any

from tfgrpo_dspy.checked import shown
from tfgrpo_dspy.errors import SettingsError
from tfgrpo_dspy.events import Event, RunEnded, UpdateDecided
from tfgrpo_dspy.results.rows import RolloutRow, as_columns, objective_means


def update_figures(event: UpdateDecided) -> dict[str, float]:
    """What boards show of an update, by name: scores, costs, objectives."""
    record = event.record
    means = objective_means(row.objectives for row in event.rollouts)
    figures = {
        "training_score": record.mean_score,
        "experiences": record.library_size,
        "lm_calls": record.n_lm_calls,
        "cost_usd": record.cost_usd,
        "groups_without_contrast": record.share_without_contrast,
        **{f"training_objective.{name}": mean for name, mean in means.items()},
    }
    return {name: value for name, value in figures.items() if value is not None}


def end_figures(event: RunEnded) -> tuple[dict[str, float], dict[str, float]]:
    """What boards show of the student and of the result: their scores and objectives."""
    results = event.results
    both: tuple[dict[str, float], dict[str, float]] = {}, {}
    pairs = {"validation_score": (results.student, results.best)}
    pairs |= {"test_score": (results.test.student, results.test.best)} if results.test else {}
    for name, pair in pairs.items():
        for figures, score in zip(both, pair, strict=True):
            figures |= {name: score.mean} if score and score.mean is not None else {}
    for place, finalist in enumerate(results.finalists):
        objectives = {f"validation_objective.{n}": v for n, v in finalist.objectives.items()}
        both[0].update({} if place else objectives)
        both[1].update(objectives if finalist.is_best else {})
    return both


class BoardListener:
    """Logs each update, the scores of student and result, and a table of all rollouts."""

    def __init__(self, board: Any) -> None:
        """`board` is the module `wandb` or `trackio`, whose `init` was called.

        Raises SettingsError: it has not what they have.
        """
        if missing := [name for name in ("log", "Table") if not hasattr(board, name)]:
            raise SettingsError(
                f"board={shown(board)} has no {missing[0]!r}: pass the module, as wandb or trackio."
            )
        self._board, self._rollouts = board, list[RolloutRow]()

    def __call__(self, event: Event) -> None:
        """Log what the event tells."""
        if isinstance(event, UpdateDecided):
            self._rollouts += event.rollouts
            self._board.log(update_figures(event), step=event.record.update)
        elif isinstance(event, RunEnded):
            student, result = end_figures(event)
            figures: dict[str, Any] = {f"student_{name}": v for name, v in student.items()} | result
            if rows := as_columns([*self._rollouts, *event.rollouts]):
                data = [list(row.values()) for row in rows]
                figures["rollouts"] = self._board.Table(columns=list(rows[0]), data=data)
            self._board.log(figures, step=len(event.results.updates))
