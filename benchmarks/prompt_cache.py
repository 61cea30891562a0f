"""How much of the prompts providers' prefix caches can hold, over a whole compile; simulated LM.

    python benchmarks/prompt_cache.py

Task and LM are simulated (`simulated.py`, with 24 kinds of case); so is the clock: each call takes
a drawn time (lognormal, sigma 0.8; median 4 s, reflection 12 s), 16 threads, 200 simulated
seconds to the real one. What is sent is recorded, and when. Of each prompt, the *repeated* tokens
are those of the longest prefix that a prompt to the same model, sent within the five minutes
before, begins with too; in *blocks* as providers count them: from 1,024 tokens on, in steps of 128
(else nothing). *Answered*: the same, by prompts whose answer had come before this one was sent; a
provider knows a prefix when the first of several prompts at once has been read, which lies between
the two. Tokens are up to four word characters, or another character, with a space before it: a
stated estimate, not a tokenizer.

Two programs: one line of instructions, and a handbook of about 1,000 tokens. Ours, ours without a
gate (so that every update changes the library), and GEPA at the metric calls of the first. GEPA's
simulated reflection LM keeps the handbook word for word in front of what it adds: the kindest case
for GEPA. The rows marked so are **emulations** of the reference implementation's layout: the
prompts of our own run, at their own times, with the experiences renumbered G0, G1, ... at every
change of the library (in its order, or in another order each time), or behind the case.
Writes `results/prompt_cache.json`.
"""

import contextlib
import functools
import io
import json
import logging
import math
import platform
import random
import re
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dspy
import numpy as np
from dspy import lm15
from flat_settings import grouped
from simulated import (
    CODES,
    POLICY,
    REFLECTION,
    Asked,
    SimulatedEngine,
    Triage,
    examples,
    is_right,
    lms,
    output_fields,
    with_feedback,
)

from tfgrpo_dspy import NoGate, TrainingFreeGRPO

RESULTS = Path(__file__).parent / "results" / "prompt_cache.json"
MORE_KINDS = (
    "basalt chalk denim ebony flint garnet hazel indigo jade khaki lilac maple nickel ochre pearl "
    "quartz rust saffron"
)
N_TRAIN, N_VALIDATION, THREADS = 72, 48, 16
SPEED_UP, SIGMA = 200.0, 0.8
MEDIAN_S = {POLICY: 4.0, REFLECTION: 12.0}
WINDOW_S, FEWEST_TOKENS, BLOCK = 300.0, 1024, 128
CHANCE_OF_MODIFY = 0.3
_TOKEN = re.compile(r" ?\w{1,4}|\s|[^\w\s]")
_LINE = re.compile(r"^( *)\[E\d+\*?\] (.*)$")
_BLOCK = re.compile(r"\n*^ *<experiences>\n.*^ *</experiences>$", re.MULTILINE | re.DOTALL)
HOUSE_WORDS = (
    "agent case claim clerk client copy date desk entry file form ledger letter limit note number "
    "office order page record report rule sheet stamp team term ticket title transfer value"
)


def handbook() -> str:
    """House rules that say nothing about the codes."""
    drawn, words = random.Random("handbook"), HOUSE_WORDS.split()
    rules = [
        f"Rule {n}: before the {drawn.choice(words)} is closed, check the {drawn.choice(words)} "
        f"against the {drawn.choice(words)}, and leave the {drawn.choice(words)} as it is."
        for n in range(1, 31)
    ]
    return "\n".join(["Follow the handbook.", *rules])


HANDBOOK = handbook()


@dataclass(frozen=True, slots=True)
class Sent:
    """One request: to which model, when (simulated seconds), when it was answered, what it says."""

    model: str
    at_s: float
    answered_s: float
    system: str
    user: str

    @property
    def text(self) -> str:
        return f"system\n{self.system}\nuser\n{self.user}"


class Recorder:
    """Makes each request wait for a time drawn from it, and records it."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self._lock = threading.Lock()
        self._never = threading.Event()
        self._started = time.perf_counter()

    def __call__(self, asked: Asked) -> None:
        drawn = random.Random(f"latency/{asked.key}")
        seconds = MEDIAN_S[asked.model] * math.exp(drawn.gauss(0.0, SIGMA))
        at_s = self._now()
        self._never.wait(seconds / SPEED_UP)
        with self._lock:
            self.sent.append(Sent(asked.model, at_s, self._now(), asked.system, asked.user))

    def _now(self) -> float:
        return SPEED_UP * (time.perf_counter() - self._started)


class Engine(SimulatedEngine):
    """Besides: now and then modifies an experience; keeps a handbook in new instructions."""

    def _answer(self, request: lm15.Request, system: str, user: str) -> str:
        answer = super()._answer(request, system, user)
        fields = output_fields(system) if request.model == REFLECTION else []
        if "new_instruction" in fields and HANDBOOK in user:
            return json.dumps({"new_instruction": f"{HANDBOOK}\n{json.loads(answer)[fields[0]]}"})
        if "operations" in fields:
            return self._modified(answer, user)
        return answer

    def _modified(self, answer: str, user: str) -> str:
        drawn = random.Random(f"modify/{user}")
        known = re.findall(r"^\[(E\d+)\*?\] (.*)$", user, re.MULTILINE)
        if not known or drawn.random() > CHANCE_OF_MODIFY:
            return answer
        id_, text = drawn.choice(known)
        operation = json.dumps({"op": "MODIFY", "id": id_, "text": f"{text} Be quick."})
        return answer.replace("[]", f"[{operation}]").replace("[{", f"[{operation}, {{", 1)


def student(has_handbook: bool) -> Triage:
    program = Triage()
    if has_handbook:
        own = program.ask.signature.instructions
        program.ask.signature = program.ask.signature.with_instructions(f"{HANDBOOK}\n{own}")
    return program


def metric(
    gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None
) -> Any:
    del trace, pred_name, pred_trace
    return with_feedback(gold, is_right(gold, pred))


Compile = Callable[[Any, Any], Any]


def recorded(has_handbook: bool, optimizer: Compile) -> tuple[list[Sent], Any]:
    """All requests of one compile, in the order in which they were sent; what it gave."""
    recorder = Recorder()
    policy, reflection = lms(Engine(recorder), cache=False)
    with dspy.context(lm=policy, adapter=dspy.ChatAdapter()):
        program = optimizer(student(has_handbook), reflection)
    return sorted(recorder.sent, key=lambda sent: sent.at_s), program


AS_MEASURED = {"group_size": 5, "epochs": 3, "drafts": 0, "max_demos": 0, "max_staleness": 1}


def ours(program: Any, reflection: Any, gate: Any = None) -> Any:
    optimizer = TrainingFreeGRPO(
        metric,
        reflection_lm=reflection,
        num_threads=THREADS,
        progress=False,
        gate=gate,
        **grouped(AS_MEASURED),
    )
    trainset, valset = examples(N_TRAIN), examples(N_VALIDATION, start=500)
    return optimizer.compile(program, trainset=trainset, valset=valset)


def gepa(n_metric_calls: int) -> Compile:
    def compiled(program: Any, reflection: Any) -> Any:
        optimizer = dspy.GEPA(
            metric,
            max_metric_calls=n_metric_calls,
            reflection_lm=reflection,
            num_threads=THREADS,
        )
        trainset, valset = examples(N_TRAIN), examples(N_VALIDATION, start=500)
        with contextlib.redirect_stdout(io.StringIO()):  # its progress bars
            return optimizer.compile(program, trainset=trainset, valset=valset)

    return compiled


# ---------------------------------------------------------------------- the reference's layout


def renumbered(text: str, is_shuffled: bool) -> str:
    """The text with each run of experiences as [G0], [G1], ..., in its order or another."""
    lines, run, done = text.split("\n"), [], []
    for line in [*lines, ""]:
        if _LINE.match(line):
            run.append(line)
            continue
        if is_shuffled:
            random.Random("/".join(run)).shuffle(run)
        found = [_LINE.match(kept) for kept in run]
        done += [f"{hit[1]}[G{n}]. {hit[2]}" for n, hit in enumerate(found) if hit]
        done.append(line)
        run = []
    return "\n".join(done[:-1])


def in_order(sent: Sent) -> Sent:
    return replace(sent, system=renumbered(sent.system, False), user=renumbered(sent.user, False))


def in_another_order(sent: Sent) -> Sent:
    return replace(sent, system=renumbered(sent.system, True), user=renumbered(sent.user, True))


def behind_the_case(sent: Sent) -> Sent:
    """Renumbered in order, and what is baked into the system message moved behind the user's."""
    sent = in_order(sent)
    block = _BLOCK.search(sent.system)
    if block is None or sent.model != POLICY:
        return sent
    system = sent.system[: block.start()] + sent.system[block.end() :]
    return replace(sent, system=system, user=f"{sent.user}\n\n{block[0].strip()}")


def with_limits_last(sent: Sent) -> Sent:
    """As our own reflection prompts were laid out before this was measured."""
    for name in ("max_words", "limits"):
        section = re.search(rf"\[\[ ## {name} ## \]\]\n.*\n\n", sent.user)
        if section is not None and sent.model == REFLECTION:
            head, end, tail = sent.user.rpartition("\n\nRespond with")
            user = f"{head.replace(section[0], '')}\n\n{section[0].strip()}{end}{tail}"
            sent = replace(sent, user=user)
    return sent


LAYOUTS: dict[str, Callable[[Sent], Sent]] = {
    "ours": lambda sent: sent,
    "ours, limits behind the group": with_limits_last,
    "emulated: renumbered in order": in_order,
    "emulated: renumbered, other order": in_another_order,
    "emulated: renumbered, behind the case": behind_the_case,
}


# ---------------------------------------------------------------------- what a cache could hold


class Tokens:
    """Prompts as arrays of numbers, one for each different token."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def of(self, text: str) -> Any:
        numbers = self._numbers
        found = [numbers.setdefault(token, len(numbers)) for token in _TOKEN.findall(text)]
        return np.array(found, dtype=np.int32)


def shared_prefix(one: Any, other: Any) -> int:
    """How many tokens the two begin with alike."""
    n = min(len(one), len(other))
    differs = one[:n] != other[:n]
    return int(np.argmax(differs)) if differs.any() else n


def in_blocks(n_tokens: int) -> int:
    """How many of so many repeated tokens a provider counts as cached."""
    if n_tokens < FEWEST_TOKENS:
        return 0
    return n_tokens - (n_tokens - FEWEST_TOKENS) % BLOCK


def shares(sent: Sequence[Sent]) -> dict[str, Any]:
    """Shares of the prompt tokens of these requests (to one model), in the order of sending."""
    tokens = Tokens()
    prompts = [tokens.of(request.text) for request in sent]
    sums: dict[str, int] = defaultdict(int)
    for index, (request, prompt) in enumerate(zip(sent, prompts, strict=True)):
        longest, answered = 0, 0
        for before in range(index - 1, -1, -1):
            if request.at_s - sent[before].at_s > WINDOW_S or answered == len(prompt):
                break
            n = shared_prefix(prompts[before], prompt)
            longest = max(longest, n)
            if sent[before].answered_s <= request.at_s:
                answered = max(answered, n)
        sums["all"] += len(prompt)
        sums["repeated"] += longest
        sums["blocks"] += in_blocks(longest)
        sums["answered"] += answered
        sums["answered blocks"] += in_blocks(answered)
    names = ("repeated", "blocks", "answered", "answered blocks")
    return {
        "n_calls": len(sent),
        "mean_tokens": sums["all"] / max(1, len(sent)),
        **{name: sums[name] / max(1, sums["all"]) for name in names},
    }


def group_spread_s(sent: Sequence[Sent]) -> float:
    """The median time between the first and the last of equal prompts to the policy LM."""
    times = defaultdict(list)
    for request in sent:
        if request.model == POLICY:
            times[request.text].append(request.at_s)
    spreads = [max(at_s) - min(at_s) for at_s in times.values() if len(at_s) > 1]
    return statistics.median(spreads) if spreads else 0.0


def rows_of(program: str, optimizer: str, sent: Sequence[Sent]) -> list[dict[str, Any]]:
    rows = []
    for role, model in (("policy", POLICY), ("reflection", REFLECTION)):
        own = [request for request in sent if request.model == model]
        rows.append({"program": program, "layout": optimizer, "role": role, **shares(own)})
    return rows


def measured(has_handbook: bool) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The rows of one program, and what the runs were like."""
    program = "handbook" if has_handbook else "one line"
    sent, optimized = recorded(has_handbook, ours)
    results = optimized.detailed_results
    rows = []
    for name, layout in LAYOUTS.items():
        rows += rows_of(program, name, [layout(request) for request in sent])
    ungated, _ = recorded(has_handbook, functools.partial(ours, gate=NoGate()))
    for name, layout in LAYOUTS.items():
        laid_out = [layout(request) for request in ungated]
        rows += rows_of(program, f"{name}; no gate", laid_out)
    theirs, _ = recorded(has_handbook, gepa(results.metric_calls))
    rows += rows_of(program, "GEPA", theirs)
    return rows, {
        "metric_calls": results.metric_calls,
        "n_updates_accepted": sum(update.accepted for update in results.updates),
        "library_size": len(results.library["experiences"]),
        "minutes": max(request.answered_s for request in sent) / 60,
        "gepa_minutes": max(request.answered_s for request in theirs) / 60,
        "group_spread_s": group_spread_s(sent),
    }


COLUMNS = ("n_calls", "mean_tokens", "repeated", "blocks", "answered", "answered blocks")


def show(rows: Sequence[dict[str, Any]]) -> None:
    print(f"{'program':<10}{'layout':<50}{'role':<12}", end="")
    print("".join(f"{name:>17}" for name in COLUMNS))
    for row in rows:
        print(f"{row['program']:<10}{row['layout']:<50}{row['role']:<12}", end="")
        values = [row[name] for name in COLUMNS]
        print("".join(f"{v:>17.3f}" if v <= 1 else f"{v:>17,.0f}" for v in values))


def main() -> None:
    logging.disable(logging.CRITICAL)
    drawn = random.Random("codes")
    letters, digits = "ABCDEFGHJKLMNPRSTUWXYZ", range(10, 100)
    CODES.update({k: f"{drawn.choice(letters)}{drawn.choice(digits)}" for k in MORE_KINDS.split()})
    rows: list[dict[str, Any]] = []
    runs = {}
    for has_handbook in (False, True):
        new, run = measured(has_handbook)
        rows += new
        runs["handbook" if has_handbook else "one line"] = run
    show(rows)
    for name, run in runs.items():
        print(name, {key: round(value, 1) for key, value in run.items()})
    record = {
        "rows": rows,
        "runs": runs,
        "window_s": WINDOW_S,
        "fewest_tokens": FEWEST_TOKENS,
        "block": BLOCK,
        "threads": THREADS,
        "lm": "simulated",
        "dspy": dspy.__version__,
        "python": platform.python_version(),
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
