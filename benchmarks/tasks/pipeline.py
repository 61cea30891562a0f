"""Three stages turn a report into a ticket, and one of them is at fault: which one is known.

`extract` reads facts from the report, `grade` gives them a severity, `dispatch` writes the ticket.
The first and the last are told everything that they need. `grade` is told nothing of the house's
scale, so it is the stage to improve (`FAULTY_STAGE`). The metric sees the ticket only, as a user
would; `stages_right` judges each stage by what it was given, so that credit can be checked.
"""

import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import dspy

from tasks import Task, plain, split

N_TRAIN, N_VALIDATION, N_TEST = 36, 36, 100
FAULTY_STAGE = "grade"
CUSTOMER_SYSTEMS = {"payments", "login", "search", "email"}
INTERNAL_SYSTEMS = {"wiki", "payroll", "timesheets", "printing"}
SYSTEMS = (*sorted(CUSTOMER_SYSTEMS), *sorted(INTERNAL_SYSTEMS))
System = Literal[
    "email", "login", "payments", "search", "payroll", "printing", "timesheets", "wiki"
]
Symptom = Literal["down", "slow", "data lost", "wrong figures"]
Severity = Literal["S1", "S2", "S3", "S4"]
ACTIONS = {
    "S1": "page the engineer on call",
    "S2": "ring the team lead",
    "S3": "put it on today's list",
    "S4": "put it on the backlog",
}
TICKET = re.compile(r"\[(S[1-4])\]\s*([a-z]+)\s*:\s*(.+?)\.?", re.IGNORECASE)


# --------------------------------------------------------------------------------- the student


class Extract(dspy.Signature):
    """Read three facts from the incident report.

    system: the one that does not work as it should, not others that the report happens to mention.
    symptom: down (cannot be used at all), slow, data lost, or wrong figures.
    users: how many people are affected, as a number.
    """

    report: str = dspy.InputField()
    system: System = dspy.OutputField()
    symptom: Symptom = dspy.OutputField()
    users: int = dspy.OutputField()


class Grade(dspy.Signature):
    """Grade the severity of the incident."""

    system: System = dspy.InputField()
    symptom: Symptom = dspy.InputField()
    users: int = dspy.InputField()
    severity: Severity = dspy.OutputField()


class Dispatch(dspy.Signature):
    """Write the ticket in exactly this form: [severity] system: action

    The action follows from the severity alone. S1: page the engineer on call. S2: ring the team
    lead. S3: put it on today's list. S4: put it on the backlog. An example:
    [S2] search: ring the team lead
    """

    system: System = dspy.InputField()
    severity: Severity = dspy.InputField()
    ticket: str = dspy.OutputField()


class ReportToTicket(dspy.Module):
    """The three stages; gives the ticket and what every stage made."""

    def __init__(self) -> None:
        super().__init__()
        self.extract = dspy.Predict(Extract)
        self.grade = dspy.Predict(Grade)
        self.dispatch = dspy.Predict(Dispatch)

    def forward(self, report: str) -> dspy.Prediction:
        facts = self.extract(report=report)
        graded = self.grade(system=facts.system, symptom=facts.symptom, users=facts.users)
        written = self.dispatch(system=facts.system, severity=graded.severity)
        return dspy.Prediction(
            ticket=written.ticket,
            system=facts.system,
            symptom=facts.symptom,
            users=facts.users,
            severity=graded.severity,
        )


# ------------------------------------------------------------------- what is right, and scoring


def severity_of(system: str, symptom: str, users: int) -> str:
    """The house's scale, which no instruction mentions.

    By the people affected: S1 from 1,000, S2 from 100, S3 from 10, else S4. Lost data and payments
    are each one grade more severe; what is only slow is one grade less; an internal system is
    never above S2.
    """
    grade = 1 + sum(users < limit for limit in (1000, 100, 10))
    grade -= (symptom == "data lost") + (system == "payments") - (symptom == "slow")
    most_severe = 2 if system in INTERNAL_SYSTEMS else 1
    return f"S{min(4, max(most_severe, grade))}"


def ticket_of(system: str, severity: str) -> str:
    return f"[{severity}] {system}: {ACTIONS[severity]}"


def stages_right(gold: dspy.Example, pred: dspy.Prediction) -> dict[str, bool]:
    """Of every stage, whether its output is right for the input that it was given."""
    facts = facts_of(gold.report)
    right_ticket = ticket_of(pred.system, pred.severity)
    return {
        "extract": Facts(pred.system, pred.symptom, pred.users) == facts,
        "grade": pred.severity == severity_of(pred.system, pred.symptom, pred.users),
        "dispatch": _parts(pred.ticket) == _parts(right_ticket),
    }


def metric(
    gold: dspy.Example,
    pred: dspy.Prediction,
    trace: object = None,  # noqa: ARG001 - DSPy and GEPA pass these three
    pred_name: str | None = None,  # noqa: ARG001
    pred_trace: object = None,  # noqa: ARG001
) -> dspy.Prediction:
    """The share of the ticket's three parts that are right, and the right ones of the others."""
    given, wanted = _parts(str(pred.get("ticket") or "")), _parts(gold.ticket)
    if not given:
        form = "The ticket is not in the form '[severity] system: action'."
        return dspy.Prediction(score=0.0, feedback=f"{form} It should be: {gold.ticket}")
    faults = [
        f"The {name} should be {wanted[name]}, not {given[name]}."
        for name in wanted
        if given[name] != wanted[name]
    ]
    facts = facts_of(gold.report)
    said = f"The report says: {facts.system}, {facts.symptom}, people affected: {facts.users}."
    feedback = " ".join([*faults, said]) if faults else "The ticket is right."
    return dspy.Prediction(score=1 - len(faults) / len(wanted), feedback=feedback)


def _parts(ticket: str) -> dict[str, str]:
    """Severity, system and action; nothing when it does not have the form of a ticket."""
    match = TICKET.fullmatch(ticket.strip())
    if not match:
        return {}
    severity, system, action = match.groups()
    return {"severity": severity.upper(), "system": system.lower(), "action": action.lower()}


# ---------------------------------------------------------------------------------- the reports

SYMPTOMS = {
    "down": (
        "nobody gets into {system} any more",
        "{system} answers every request with an error page",
        "{system} has stopped responding altogether",
    ),
    "slow": (
        "{system} takes minutes for what used to take seconds",
        "everything in {system} crawls",
        "{system} works, but with long waits on every page",
    ),
    "data lost": (
        "entries made in {system} yesterday are gone",
        "{system} has dropped part of what was saved there",
        "records have vanished from {system}",
    ),
    "wrong figures": (
        "{system} shows totals that cannot be right",
        "the numbers that {system} gives do not add up",
        "{system} reports figures that contradict our own lists",
    ),
}
OPENINGS = ("Hello,", "Good morning,", "To the service desk:", "Please look into this:")
CIRCUMSTANCES = (
    "We noticed it after the update on Sunday.",
    "A colleague thought of the {other} first, but that one is fine.",
    "It began at 9:40.",
    "Somebody mentioned that {other} had a problem last month.",
    "Restarting the computer did not help.",
    "We have a visit from the board at 15:00.",
)
PEOPLE_AFFECTED = ("{n} people are affected.", "It hits {n} users.", "This concerns {n} of us.")
WORDS = {1: "one", 4: "four", 6: "six", 9: "nine", 12: "a dozen", 24: "two dozen"}
USERS = (1, 4, 6, 9, 12, 24, 45, 70, 95, 110, 180, 250, 600, 900, 1_100, 1_500, 4_000)


@dataclass(frozen=True)
class Facts:
    """What a report says."""

    system: str
    symptom: str
    users: int


def make(draw: random.Random) -> dspy.Example:
    """A report and its ticket."""
    system, other = draw.sample(SYSTEMS, 2)
    symptom, users = draw.choice(list(SYMPTOMS)), draw.choice(USERS)
    report = " ".join(
        (
            draw.choice(OPENINGS),
            f"{draw.choice(SYMPTOMS[symptom]).format(system=system)}.",
            draw.choice(CIRCUMSTANCES).format(other=other),
            _people(draw.choice(PEOPLE_AFFECTED), users),
        )
    )
    ticket = ticket_of(system, severity_of(system, symptom, users))
    return dspy.Example(report=report, ticket=ticket).with_inputs("report")


def _people(template: str, users: int) -> str:
    sentence = template.format(n=WORDS.get(users, f"{users:,}"))
    return sentence[0].upper() + sentence[1:]


def facts_of(report: str) -> Facts:
    """The facts of a report that `make` has made."""
    (fact,) = [
        (system, symptom)
        for symptom, templates in SYMPTOMS.items()
        for template in templates
        for system in SYSTEMS
        if f"{template.format(system=system)}." in report
    ]
    (users,) = [
        users
        for users in USERS
        if any(report.endswith(_people(template, users)) for template in PEOPLE_AFFECTED)
    ]
    return Facts(*fact, users)


def load(seed: int, data: Path | None = None) -> Task:  # noqa: ARG001 - it reads no file
    draw = random.Random(f"pipeline/{seed}")
    by_report: dict[str, dspy.Example] = {}
    while len(by_report) < N_TRAIN + N_VALIDATION + N_TEST:
        example = make(draw)
        by_report.setdefault(example.report, example)
    train, val, test = split(list(by_report.values()), (N_TRAIN, N_VALIDATION, N_TEST), seed)
    return Task(
        name="pipeline",
        student=ReportToTicket,
        train=train,
        val=val,
        test=test,
        metric=metric,
        plain_metric=plain(metric),
        notes=f"The fault lies in the predictor {FAULTY_STAGE!r}: advice belongs there.",
    )
