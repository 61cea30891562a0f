"""Questions to a graph: the student writes a SPARQL query, and again when it fails or is empty.

It is told the schema and the question; a second predictor is told what went wrong with the query
before, for up to three queries in all. The score is the F1 of the rows against the right ones, as
is usual for questions to knowledge graphs.
"""

import random
import re
from collections import defaultdict
from pathlib import Path

import dspy

from tasks import Task, plain, split
from tasks.sparql_graph import SCHEMA, QueryError, Rows, network, run
from tasks.sparql_questions import Question, questions

N_TRAIN, N_VALIDATION, N_TEST = 36, 36, 100
MAX_QUERIES, MAX_OF_A_KIND, N_SHOWN = 3, 20, 5
FENCE = re.compile(r"```(?:sparql)?\s*(.*?)```", re.DOTALL | re.IGNORECASE)


class WriteQuery(dspy.Signature):
    """Write a SPARQL query that answers the question."""

    graph_schema: str = dspy.InputField()
    question: str = dspy.InputField()
    query: str = dspy.OutputField(desc="one SELECT with one variable")


class RefineQuery(dspy.Signature):
    """Correct the SPARQL query, so that it answers the question."""

    graph_schema: str = dspy.InputField()
    question: str = dspy.InputField()
    previous_query: str = dspy.InputField()
    problem: str = dspy.InputField()
    query: str = dspy.OutputField(desc="one SELECT with one variable")


class AskGraph(dspy.Module):
    """Writes a query, runs it, and refines it while it fails; gives query, rows and number."""

    def __init__(self) -> None:
        super().__init__()
        self.write = dspy.Predict(WriteQuery)
        self.refine = dspy.Predict(RefineQuery)

    def forward(self, question: str) -> dspy.Prediction:
        given = {"graph_schema": SCHEMA, "question": question}
        query = self.write(**given).query
        rows, problem = attempt(query)
        n_queries = 1
        while problem and n_queries < MAX_QUERIES:
            query = self.refine(**given, previous_query=query, problem=problem).query
            rows, problem = attempt(query)
            n_queries += 1
        answer = sorted(" | ".join(row) for row in rows)
        return dspy.Prediction(query=query, answer=answer, problem=problem, n_queries=n_queries)


def attempt(query: str) -> tuple[Rows, str]:
    """The rows of the query, and what is wrong with it; nothing, when it gives rows."""
    fenced = FENCE.search(query)
    try:
        rows = run(fenced[1] if fenced else query)
    except QueryError as error:
        return frozenset(), str(error)
    return rows, "" if rows else "The query runs, but it gives no rows."


def metric(
    gold: dspy.Example,
    pred: dspy.Prediction,
    trace: object = None,  # noqa: ARG001 - DSPy and GEPA pass these three
    pred_name: str | None = None,  # noqa: ARG001
    pred_trace: object = None,  # noqa: ARG001
) -> dspy.Prediction:
    """The F1 of the rows, and which are missing or wrong."""
    given, problem = attempt(str(pred.get("query") or ""))
    if problem:
        return dspy.Prediction(score=0.0, feedback=f"{problem} {_expected(gold.answer)}")
    if {len(row) for row in given} != {1}:
        feedback = f"Select one variable only, the answer. {_expected(gold.answer)}"
        return dspy.Prediction(score=0.0, feedback=feedback)
    found, wanted = {row[0] for row in given}, set(gold.answer)
    if found == wanted:
        return dspy.Prediction(score=1.0, feedback="The query gives the right rows.")
    faults = [
        f"{fault}: {_listed(names)}."
        for fault, names in (("Missing", wanted - found), ("Wrong", found - wanted))
        if names
    ]
    f1 = 2 * len(found & wanted) / (len(found) + len(wanted))
    return dspy.Prediction(score=f1, feedback=" ".join([*faults, _expected(gold.answer)]))


def _expected(answer: list[str]) -> str:
    return f"The right answer is {_listed(set(answer))}."


def _listed(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:N_SHOWN])
    return f"{shown} and {len(names) - N_SHOWN} more" if len(names) > N_SHOWN else shown


def load(seed: int, data: Path | None = None) -> Task:  # noqa: ARG001 - it reads no file
    examples = [_example(question) for question in _balanced(seed)]
    train, val, test = split(examples, (N_TRAIN, N_VALIDATION, N_TEST), seed)
    return Task(
        name="sparql",
        student=AskGraph,
        train=train,
        val=val,
        test=test,
        metric=metric,
        plain_metric=plain(metric),
        notes="The graph is the same for every seed. The schema hides two things: stations that "
        "are closed do not count unless asked for, and populations are in thousands.",
    )


def _balanced(seed: int) -> list[Question]:
    """At most `MAX_OF_A_KIND` questions of each kind."""
    by_kind: dict[str, list[Question]] = defaultdict(list)
    for question in questions(network()):
        by_kind[question.kind].append(question)
    draw = random.Random(f"sparql/{seed}")
    return [
        question
        for kind in by_kind.values()
        for question in draw.sample(kind, min(len(kind), MAX_OF_A_KIND))
    ]


def _example(question: Question) -> dspy.Example:
    example = dspy.Example(
        question=question.text, query=question.query, answer=list(question.answer)
    )
    return example.with_inputs("question")
