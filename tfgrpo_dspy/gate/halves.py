"""A random half of a group's rollouts: those that are given what is on trial."""

import math
import random

from tfgrpo_dspy.experience import Experience
from tfgrpo_dspy.gate.protocol import GroupPlan


def random_half(plan: GroupPlan, experience: Experience) -> frozenset[int]:
    """The indices of the rollouts that are given the experience, the same for the same arguments.

    Of an odd number it is one more or one less than the rest, by a fair draw; the halves of two
    experiences are drawn independently.
    """
    name = f"{experience.id}/{experience.text}/{plan.example}/{plan.update}"
    draw = random.Random(f"trial/{name}")
    size = draw.choice((math.floor(plan.n_rollouts / 2), math.ceil(plan.n_rollouts / 2)))
    return frozenset(draw.sample(range(plan.n_rollouts), size))
