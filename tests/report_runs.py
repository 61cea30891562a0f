"""Results of runs that are hard to show: with hostile text everywhere, or of 10,000 rollouts."""

from typing import Any

from tfgrpo_dspy import ExperienceLibrary
from tfgrpo_dspy.results import RunResults

HOSTILE = (
    "</script><script>window.pwned = 1</script> \"><img src=x onerror='window.pwned = 2'> "
    "</details></main></style><style>*{display:none}</style> <svg onload=alert(3)> <!-- ]]> "
    "{{ 7*7 }} {% raw %} <a href='javascript:alert(4)'>x</a> &lt;b&gt; \u202eesrever\x00\x1b end"
)
SHOWN = HOSTILE.replace("\u202e", r"\u202e").replace("\x00", r"\x00").replace("\x1b", r"\x1b")


def poisoned(value: Any, key: str = "") -> Any:
    """The values of a run with the hostile text at the end of every text that may hold one."""
    if isinstance(value, dict):
        free = {"failures", "settings", "schedule", "instructions", "replayed"}
        ending = f" {HOSTILE}" if key in free else ""
        return {f"{name}{ending}": poisoned(one, name) for name, one in value.items()}
    if isinstance(value, list):
        return [poisoned(one, key) for one in value]
    return f"{value} {HOSTILE}" if isinstance(value, str) and key not in FORMS else value


FORMS = {"kind", "id", "ids", "format"}
"""The texts of a run of which the form is fixed."""


def a_large_run() -> RunResults:
    """2,000 groups of 5 rollouts in 500 updates, each with three new experiences."""
    attempt = {"outputs": "o" * 600, "score": 0.5, "feedback": "f" * 240}
    comparison = {"example": 1, "inputs": "i" * 240, "good": attempt | {"score": 1.0},
                  "bad": attempt, "advantage": "a" * 400}  # fmt: skip
    updates = []
    for n in range(500):
        changes = [
            {"kind": "born", "id": f"E{3 * n + k}", "text": f"When {n}, do {k}. " + "w " * 35,
             "scope": "*", "comparisons": [comparison] * 2}
            for k in (1, 2, 3)
        ]  # fmt: skip
        group = {"example": 1, "scores": [0.0, 0.2, 0.4, 1.0, None], "failures": ["timeout"],
                 "used_as": "contrast"}  # fmt: skip
        refused = [{"op": "ADD", "id": "", "text": "t" * 200, "scope": "*", "reason": "r",
                    "refused": "the library is full"}] * 5  # fmt: skip
        updates.append(
            {"update": n, "epoch": n // 20, "groups": [group] * 4, "lessons": ["l" * 200] * 4,
             "refused_lessons": [], "operations": refused, "reason": "", "library_size": 30,
             "changes": changes, "n_lm_calls": 22 * (n + 1)}
        )  # fmt: skip
    texts = [f"When {n}, do 1. " + "w " * 35 for n in range(30)]
    effect = {"estimate": 0.1, "standard_error": 0.02, "n_rollouts": 300}
    tried = [{"text": "t" * 200, "scope": "*", "effect": effect, "chance": 0.9}] * 1500
    return RunResults.from_dict(
        {"student": None, "best": None, "updates": updates, "tried": tried, "failures": {},
         "usage": {"rollout": {"n_lm_calls": 11_000}}, "ended_because": "all epochs are done",
         "nothing_learned": "", "wall_time_s": 1.0,
         "library": ExperienceLibrary.from_texts(texts).to_dict()}
    )  # fmt: skip
