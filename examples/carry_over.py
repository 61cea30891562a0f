"""Learn on one LM, use the advice on another: is a library worth something there, too?

    python examples/carry_over.py [--lm openai/gpt-5-nano] [--other-lm openai/gpt-5-mini]

Runs on two simulated LMs in 4 seconds; B does better than A without advice. Learns on LM A
(--lm), saves the library as a file, bakes it into a fresh program on LM B (--other-lm), and
measures both LMs with and without it on the same 80 complaints.
"""

import dspy
from scipy import stats
from simulated import SimulatedEngine, SimulatedLM, arguments
from support_replies import house_style, load, program

from tfgrpo_dspy import ExperienceLibrary, TrainingFreeGRPO


def scores(candidate: dspy.Module, lm: dspy.LM, testset: list[dspy.Example]) -> list[float]:
    """The score of the program on each example, with this LM."""
    evaluate = dspy.Evaluate(
        devset=testset, metric=house_style, num_threads=4, display_progress=False
    )
    with dspy.context(lm=lm):
        return [score.score for _, _, score in evaluate(candidate).results]


def mean_with_interval(values: list[float]) -> str:
    """Mean and 95 % interval (Student's t)."""
    mean, error = sum(values) / len(values), float(stats.sem(values))
    low, high = stats.t.interval(0.95, len(values) - 1, loc=mean, scale=error or 1e-9)
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


if __name__ == "__main__":
    given = arguments(__doc__, other_lm="LM B; default: another simulated LM")
    lm_b = SimulatedLM(SimulatedEngine(unaided=0.5, obedient=0.95), model="simulated-b")
    if given.other_lm:
        lm_b = dspy.LM(given.other_lm)
    trainset, valset, testset = load()
    optimizer = TrainingFreeGRPO(
        house_style, reflection_lm=given.reflection_lm, max_lm_calls=300, progress=False
    )
    optimized = optimizer.compile(program(), trainset=trainset[:30], valset=valset)
    ExperienceLibrary.from_program(optimized).save("library.json")

    library = ExperienceLibrary.load("library.json")
    print(library)
    carried = library.bake(program())
    print("LM  without  with the library  gain [95 % interval, paired by complaint]")
    for name, lm in (("A", given.lm), ("B", lm_b)):
        before, after = (scores(each, lm, testset) for each in (program(), carried))
        gain = mean_with_interval([b - a for a, b in zip(before, after, strict=True)])
        means = [sum(each) / len(each) for each in (before, after)]
        print(f"{name}   {means[0]:.3f}    {means[1]:.3f}             {gain}")
