"""Condensed instructions: the winner of the race once more, in one text with the instructions.

The reflection LM writes a text for each predictor that reads experiences. The result has it if it
scores no less on the same examples and is shorter, or if it scores more. The library stays what the
text was made from.
"""

import statistics
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from tfgrpo_dspy.budget.account import Amount
from tfgrpo_dspy.calls.paid import Calls
from tfgrpo_dspy.calls.reflections import ReflectionClient
from tfgrpo_dspy.errors import RunStopped
from tfgrpo_dspy.experience.programs import (
    bare_instructions,
    named_predictors,
    without_condensed,
    write_condensed,
)
from tfgrpo_dspy.experience.values import ALL, Experience
from tfgrpo_dspy.gate.race import FIRST_ROUND, LEAVE_BELOW, RETURN_ABOVE, ROUND, Race, Scores
from tfgrpo_dspy.outside import without_markers
from tfgrpo_dspy.reflection.answer_forms import encodable
from tfgrpo_dspy.reflection.texts import estimate_tokens
from tfgrpo_dspy.results.records import Condensed
from tfgrpo_dspy.run.measurements import Measurements
from tfgrpo_dspy.run.proposing import Guards
from tfgrpo_dspy.run.updates import Batch, Update
from tfgrpo_dspy.sampling.additions import Additions
from tfgrpo_dspy.settings.run_inputs import RunInputs
from tfgrpo_dspy.settings.schedule import RunData
from tfgrpo_dspy.wording import n_words

CONDENSED = "condensed"  # the name of the form among the parts of a candidate
CONDENSED_SD = 0.3  # how much the form may change the score, in standard deviations of the score
LONGEST_SHARE = 2  # of the instructions and experiences that a text takes the place of
NEARLY_0 = 1e-9

Left = Callable[[Amount], float]
"""How many rollouts the budget pays for beside an amount, and what is kept."""
Choice = tuple[Race, int, str]
"""The race, the place of its result, and why the result is or is not the condensed form."""


def n_kept(data: RunData, n_examples: int, scores: Scores) -> int:
    """How many rollouts the next round of the race leaves for measuring the condensed form."""
    n_done = sum(candidate == 0 for candidate, _ in scores)
    n = min(n_examples, n_done + (ROUND if n_done else FIRST_ROUND))
    return n * (data.n_condensed > 0)


class Condenser:
    """Condenses the winner of a race."""

    def __init__(
        self, inputs: RunInputs, calls: Calls, client: ReflectionClient, guards: Guards
    ) -> None:
        self._inputs, self._data = inputs, inputs.settings.data
        self._loop, self._report = calls.loop, calls.report
        self._client, self._guards = client, guards

    def choice(self, base: Update, measured: Measurements, race: Race, n_left: Left) -> Choice:
        """The winner of the race, or its condensed form, then the last of the candidates."""
        scores = measured.scores()
        winner = race.winner(scores)
        library = measured.candidates[winner].library
        if not (self._data.n_condensed and winner and list(library)):
            return race, winner, ""
        n = sum(candidate == winner for candidate, _ in scores)
        if n_left(self._data.of_condensing) < n:
            return race, winner, "not condensed: the budget does not reach for it"
        with suppress(RunStopped):
            texts = self._loop.run(self._texts(base, measured.candidates[winner]))
            if not texts:
                return race, winner, "not condensed: no text of the reflection LM can be used"
            form = replace(measured.candidates[winner], condensed=texts)
            return self._measured(measured, race, form, n_left)
        return race, winner, f"not condensed: {self._loop.ledger.stopped_because}"

    async def _texts(self, base: Update, winner: Additions) -> tuple[tuple[str, str], ...]:
        """By predictor, the text that takes the place of its instructions and experiences."""
        guard = self._guards.against(self._inputs.examples)
        batch = Batch(base.number, base)

        async def text_of(place: int, name: str, predictor: Any) -> tuple[str, str]:
            instructions = without_condensed(bare_instructions(predictor))
            experiences = _read_by(winner, name)
            advice = "\n".join(f"- {experience.text}" for experience in experiences)
            most_words = n_words(f"{instructions}\n{advice}")
            texts = {"predictor": name, "original": instructions, "experiences": advice}
            inputs = {**texts, "most_words": most_words}
            answer = await self._client.ask("condense", batch, place, inputs)
            text = without_condensed(without_markers(encodable(str(answer.output or "")))).strip()
            reason = guard.reason(text)
            if n_words(text) > LONGEST_SHARE * most_words:
                reason = f"it has {n_words(text)} words, of at most {most_words}"
            if reason:
                self._report.count_failure("condensed text refused", f"{reason}: {text}")
            return name, "" if reason or not text else write_condensed(text, experiences)

        predictors = enumerate(named_predictors(self._inputs.student))
        asked = (
            text_of(place, name, predictor)
            for place, (name, predictor) in predictors
            if _read_by(winner, name)
        )
        return tuple((name, text) for name, text in await self._client.at_once(asked) if text)

    def _measured(
        self, measured: Measurements, race: Race, form: Additions, n_left: Left
    ) -> Choice:
        """The better one of the winner and its condensed form, on the examples of the winner."""
        winner = race.winner(measured.scores())
        n = sum(candidate == winner for candidate, _ in measured.scores())
        place = len(measured.candidates)
        measured.candidates.append(form)
        parts = race.candidates[winner] | {CONDENSED}
        race = replace(
            race,
            candidates=(*race.candidates, parts),
            parts={**race.parts, CONDENSED: (0.0, CONDENSED_SD * race.score_sd)},
        )
        with suppress(RunStopped):  # what was measured by then decides
            for start in range(0, n, FIRST_ROUND):
                examples = range(start, min(n, start + FIRST_ROUND))
                is_worse = race.chance(place, winner, measured.scores()) < LEAVE_BELOW
                if is_worse or n_left(Amount()) < len(examples):
                    break
                measured.make([(place, example) for example in examples])
        both = (form, measured.candidates[winner])
        sizes = [_n_tokens(one.bake(self._inputs.student)) for one in both]
        return _chosen(race, winner, place, measured.scores(), sizes)


def _read_by(winner: Additions, predictor: str) -> list[Experience]:
    return [each for each in winner.library if each.scope in (ALL, predictor)]


def _chosen(race: Race, winner: int, place: int, scores: Scores, sizes: list[int]) -> Choice:
    gains, (after, before) = [*race.differences(place, winner, scores)], sizes
    n_scored = sum(s is not None for (c, _), s in scores.items() if c == winner)
    gain, length = statistics.fmean(gains or [0.0]), f"{after:,} tokens in place of {before:,}"
    if gain < -NEARLY_0:
        why = f"not condensed: it scores {gain:+.3f} on the same {len(gains)} examples"
        return race, winner, f"{why} ({length})"
    if len(gains) < n_scored or race.differences(place, 0, scores).sum() <= NEARLY_0:
        why = f"not condensed: it has a score on {len(gains)} of the same {n_scored} examples"
        return race, winner, why
    is_better = gain > NEARLY_0 and race.chance(place, winner, scores) >= RETURN_ABOVE
    if after >= before and not is_better:
        return race, winner, f"not condensed: it is neither shorter nor better ({length})"
    why = f"condensed: it scores {gain:+z.3f} on the same {len(gains)} examples"
    return race, place, f"{why} ({length})"


def _n_tokens(program: Any) -> int:
    return sum(estimate_tokens(p.signature.instructions) for _, p in named_predictors(program))


def records_of(student: Any, additions: Additions) -> tuple[Condensed, ...]:
    """The condensed texts of a result, as results show them."""
    whole = dict(named_predictors(replace(additions, condensed=()).bake(student)))
    return tuple(
        Condensed(
            predictor=name,
            text=text,
            ids=tuple(experience.id for experience in _read_by(additions, name)),
            n_tokens=estimate_tokens(text),
            n_tokens_before=estimate_tokens(whole[name].signature.instructions),
        )
        for name, text in additions.condensed
    )
