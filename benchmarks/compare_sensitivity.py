"""The variations of the simulated LM: one parameter, or one idea, at a time.

Chosen before any comparison was looked at, each about as far from the default as a critic could
reasonably ask for, in both directions where there are two.
"""

VARIATIONS: dict[str, dict[str, float]] = {
    "as set": {},
    "luck never redrawn": {"redrawn_luck": 0.0},
    "luck always redrawn": {"redrawn_luck": 1.0},
    "demos weak": {"demo_strength": 0.3},
    "demos as good as lessons": {"demo_strength": 1.0},
    "reflection strong": {"lesson_as_claimed": 0.8, "lesson_vague": 0.05, "lesson_wrong": 0.02},
    "reflection weak": {"lesson_as_claimed": 0.25, "lesson_vague": 0.25, "lesson_wrong": 0.2},
    "lessons often wrong": {"lesson_wrong": 0.3},
    "attention without limit": {"attention": 100.0},
    "attention for two items": {"attention": 2.0},
    "no distraction": {
        "lost_by_other_lesson": 0.0,
        "lost_by_useless_line": 0.0,
        "lost_by_1000_words": 0.0,
    },
    "strong distraction": {
        "lost_by_other_lesson": 0.01,
        "lost_by_useless_line": 0.05,
        "lost_by_1000_words": 0.15,
        "most_lost_by_lines": 0.5,
    },
    "labels alone teach nothing": {"unsaid_claim": 0.0},
    "rewriting forgets": {"lesson_kept": 0.95},
    "wording matters": {"wording": 0.1},
    "much useless text": {"useless_line": 0.6},
}


def variations(task: str) -> list[str]:
    """The names of a simulated task under all variations."""
    return [_named(task, values) for values in VARIATIONS.values()]


def label(task: str) -> str:
    """The name of a task for people: a variation by its idea."""
    plain, _, given = task.partition("@")
    names = {_named(plain, values): name for name, values in VARIATIONS.items()}
    return f"{plain}, {names[task]}" if given and task in names else task


def _named(task: str, values: dict[str, float]) -> str:
    given = ",".join(f"{name}={value}" for name, value in values.items())
    return f"{task}@{given}" if given else task
