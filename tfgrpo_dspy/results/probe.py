"""What a probe found, as a frozen value of text and numbers; `prober` makes it."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tfgrpo_dspy.results.records import Gain, ScoreSummary
from tfgrpo_dspy.wording import counted

WORTH = 0.05  # a gain that is worth a run
LIKELY, UNLIKELY = 0.7, 0.4
FEWEST = 6  # attempts from which anything is foretold
NOISY = 0.5  # from this share of noise on, that scores differ says nothing of the program
CHANCE = (-0.33, 2.74, 0.3, 4.06, 1.63)
GAIN = (0.06, 0.46, 0.11, 0.6, 0.19)
"""The logit of a gain above `WORTH`, and the gain: the weights of `features`, which
`benchmarks/probe.py --fit` fitted on simulated tasks."""


@dataclass(frozen=True, slots=True, repr=False)
class Probe:
    """Attempts on a few examples, and what they promise; `str` is a page.

    `n_lm_calls` were made or replayed. `student` is the score of `n_attempts` without demos and
    advice on `n_examples` examples, of each the mean of its attempts; `differing` the share of
    examples with two attempts whose scores differ (without a metric: answers); `best_of_two` the
    mean of the better attempt; `noise` the share of the scores' variance that scoring one output
    twice explains; `with_words` the share of the attempts below the best score about which metric
    or program say why. `demos` and `advice` are what labelled demos, and a first draft of advice,
    changed. `chance` is the probability that a run gains more than .05, `gain` what it is expected
    to gain, by a formula that was fitted on simulated tasks. What the probe cannot know is None,
    and `unknown` says why. `run_calls` and `run_cost` are what a run is likely to take (None: no
    price is known).
    """

    n_lm_calls: int
    n_examples: int
    n_attempts: int
    student: ScoreSummary | None
    differing: float | None
    best_of_two: float | None
    noise: float | None
    with_words: float | None
    demos: Gain | None
    advice: Gain | None
    chance: float | None
    gain: float | None
    run_calls: int
    run_cost: float | None
    unknown: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """Whether a run is likely to gain, how much, and at what cost."""
        dollars = "" if self.run_cost is None else f" (${self.run_cost:.2f})"
        cost = f"about {counted(self.run_calls, 'LM call')}{dollars}"
        if self.chance is None or self.gain is None:
            return f"This probe cannot say whether a run would gain; it would take {cost}."
        is_likely = self.chance >= LIKELY
        word = "likely" if is_likely else "unlikely" if self.chance < UNLIKELY else "uncertain"
        return (
            f"It is {word} that a run gains more than {WORTH:.2f} (chance {self.chance:.2f}); "
            f"expected are {self.gain:+.2f}, for {cost}."
        )

    def __repr__(self) -> str:
        return "\n".join([self.sentence, "", *self._lines()])

    def _lines(self) -> Iterator[str]:
        examples = counted(self.n_examples, "example")
        attempts = counted(self.n_attempts, "attempt")
        yield f"probed: {attempts} on {examples}; {self.n_lm_calls} LM calls"
        rows = {
            "student": self.student,
            "two attempts differ on": _share(self.differing, "of the examples"),
            "better of two": None if self.best_of_two is None else f"{self.best_of_two:.3f}",
            "noise of the metric": _share(self.noise, "of the score's variance"),
            "failures with words": _share(self.with_words, "of the failures"),
            "labelled demos change": self.demos,
            "drafted advice changes": self.advice,
        }
        for name, value in rows.items():
            yield f"  {name:<24}{'not known' if value is None else value}"
        yield from (f"  {why}" for why in self.unknown)
        if self.chance is not None:
            yield "  foretold from simulated runs of 400 LM calls"
            yield "  not seen: whether there is anything to learn"


def features(room: float, demos: Gain | None, advice: Gain | None) -> tuple[float, ...]:
    """1; what the student leaves (at most .4); what demos, advice changed; the 2nd if no advice."""

    def shrunk(gain: Gain | None) -> float:
        return gain.mean * gain.n / (gain.n + 4) if gain else 0.0

    left = min(room, 0.4)
    return 1.0, left, shrunk(demos), shrunk(advice), left * (advice is None)


def predicted(
    scores: Sequence[float], noise: float | None, demos: Gain | None, advice: Gain | None
) -> tuple[float | None, float | None]:
    """The chance of a gain above `WORTH`, and the expected gain; None: nobody can say.

    So it is with too few scores, on a scale that is not 0 to 1, or where nothing changed a score:
    if most of the variance is noise of the metric, only demos or advice that surely raise it do.
    """
    is_known = len(scores) >= FEWEST and 0 <= min(scores) <= max(scores) <= 1
    is_noisy = noise is not None and noise >= NOISY
    tried = [each for each in (demos, advice) if each]
    is_changed = any((each.low or 0.0) > 0 if is_noisy else each.mean for each in tried)
    if not is_known or ((is_noisy or max(scores) == min(scores) < 1) and not is_changed):
        return None, None
    room = 1 - statistics.fmean(scores)
    if room <= 0:  # the rule of succession: the chance that the next attempt is worse
        return 1 / (len(scores) + 2), 0.0
    values = features(room, demos, advice)
    logit, gain = (sum(map(float.__mul__, weights, values)) for weights in (CHANCE, GAIN))
    return 1 / (1 + math.exp(-logit)), min(room, max(0.0, gain))


def _share(share: float | None, of: str) -> str | None:
    return None if share is None else f"{share:.0%} {of}"
