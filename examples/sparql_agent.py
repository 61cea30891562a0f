"""Optimize an agent that writes SPARQL, and refines a query that fails, by the errors of rdflib.

    python examples/sparql_agent.py [--lm openai/gpt-5-mini] [--reflection-lm openai/gpt-5]

Runs on a simulated LM in 5 seconds; graph, queries and errors are real (`pip install rdflib`).
The agent has two turns for each question. A turn is a step of the rollout: reflection sees the
query and the error that came back, and the metric's feedback repeats the last error. What is
learned saves turns. Prints the turns of a question, and the mean score on a test set.
"""

import functools
import re
import threading
from statistics import fmean
from typing import Any

import dspy
from simulated import SimulatedEngine, arguments
from simulated_rules import ProgramSide, Prompt

from tfgrpo_dspy import TrainingFreeGRPO

try:
    import rdflib
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: this example needs rdflib; pip install rdflib") from error

ART = rdflib.Namespace("http://example.org/art/")
PREFIX = f"PREFIX art: <{ART}>"
PAINTERS = ("Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana", "Ivo", "Jo")
PAINTINGS = [(f"Harbour {n}", PAINTERS[n * n % 10], 1840 + n * 7 % 60) for n in range(60)]
N_TURNS = 2
NO_ROWS = "The query found no rows."
ONE_QUERY_AT_A_TIME = threading.Lock()  # rdflib's parser is not made for threads


def graph() -> rdflib.Graph:
    """Paintings with their painters and years; each name has a language."""
    found = rdflib.Graph()
    for n, name in enumerate(PAINTERS):
        found.add((ART[f"painter{n}"], rdflib.RDFS.label, rdflib.Literal(name, lang="en")))
    for n, (name, painter, year) in enumerate(PAINTINGS):
        found.add((ART[f"work{n}"], rdflib.RDFS.label, rdflib.Literal(name, lang="en")))
        found.add((ART[f"work{n}"], ART.by, ART[f"painter{PAINTERS.index(painter)}"]))
        found.add((ART[f"work{n}"], ART.year, rdflib.Literal(year)))
    return found


@functools.cache
def looked_up(query: str) -> tuple[str, str]:
    """The first value that the query finds, and what went wrong, of which one is empty."""
    try:
        with ONE_QUERY_AT_A_TIME:
            rows = list(GRAPH.query(query))
    except Exception as error:  # noqa: BLE001 - rdflib raises plain exceptions, too
        return "", " ".join(str(error).split())
    first = rows[0][0].toPython() if rows else None
    return (str(first), "") if first else ("", NO_ROWS)  # nor is a count of 0 an answer


GRAPH = graph()  # no part of the program, which is copied for each rollout


class WriteQuery(dspy.Signature):
    """Write a SPARQL query whose first row is the answer.

    art: is the namespace http://example.org/art/, and rdfs: is the usual one. A work has art:by,
    art:year and rdfs:label; a painter has rdfs:label.
    """

    question: str = dspy.InputField()
    failed: list[str] = dspy.InputField(desc="queries of earlier turns, with what went wrong")
    query: str = dspy.OutputField()


class Agent(dspy.Module):
    """Writes a query, runs it, and refines it as long as it fails and turns are left."""

    def __init__(self) -> None:
        super().__init__()
        self.write = dspy.Predict(WriteQuery)

    def forward(self, question: str) -> dspy.Prediction:
        """The answer, the number of turns, and the last error."""
        failed: list[str] = []
        answer = error = ""
        for _ in range(N_TURNS):
            query = self.write(question=question, failed=failed).query
            answer, error = looked_up(query)
            if not error:
                break
            failed.append(f"{query}\nExecution error: {error}")
        return dspy.Prediction(answer=answer, error=error, turns=len(failed) + (not error))


class Writer(ProgramSide):
    """The simulated writer knows three customs by chance, by advice, or by the error it is shown.

    An error names one custom. It is then followed as advice would be, and the others by the same
    luck as before.
    """

    CUSTOMS = (  # words of the advice, and of the error that names the custom
        ("Declare each prefix", "Unknown namespace prefix"),
        ("in brackets", "found 'COUNT'"),
        (r"STR\(", NO_ROWS),
    )

    def answer(self, prompt: Prompt, name: str) -> Any:  # noqa: ARG002
        """A query with what the writer knows."""
        question, failed = prompt.inputs["question"], prompt.inputs["failed"]
        luck = Prompt(prompt.told, question, {}, prompt.seed)
        declares, brackets, strips = (
            error in failed or self._does(luck, advice) for advice, error in self.CUSTOMS
        )
        year, subject = re.findall(
            r"(?:since (\d+) are by|year was) (.+?)(?: painted)?\?", question
        )[0]
        named = f'?named rdfs:label "{subject}" .'
        if strips:
            named = f'?named rdfs:label ?label FILTER(STR(?label) = "{subject}") .'
        head = f"{PREFIX} SELECT" if declares else "SELECT"
        if not year:
            return f"{head} ?year WHERE {{ {named} ?named art:year ?year }}"
        count = "(COUNT(?work) AS ?n)" if brackets else "COUNT(?work)"
        works = f"?work art:by ?named; art:year ?year FILTER(?year >= {year})"
        return f"{head} {count} WHERE {{ {named} {works} }}"


def metric(example: dspy.Example, pred: dspy.Prediction, trace: Any = None) -> dspy.Prediction:  # noqa: ARG001
    """1 for the right answer in the first turn, .5 in the second; feedback: the last error."""
    if pred.error:
        return dspy.Prediction(score=0.0, feedback=f"Execution error: {pred.error}")
    if pred.answer != example.answer:
        feedback = f"Expected {example.answer}, given {pred.answer}."
        return dspy.Prediction(score=0.0, feedback=feedback)
    return dspy.Prediction(score=1.0 / pred.turns, feedback="")


def load() -> list[dspy.Example]:
    """Questions about the year of a painting, and about the number of a painter's paintings."""
    found = []
    for n, (name, painter, year) in enumerate(PAINTINGS):
        question, answer = f"In which year was {name} painted?", str(year)
        if n % 3 == 0:
            question = f"How many paintings since {year} are by {painter}?"
            answer = str(sum(each[1] == painter and each[2] >= year for each in PAINTINGS))
        found.append(dspy.Example(question=question, answer=answer).with_inputs("question"))
    return found


def main() -> dict[str, float]:
    """Optimize the agent; the mean scores on the test set, and the turns of a question."""
    given = arguments(__doc__, SimulatedEngine(program=Writer))
    examples = load()
    test = examples[36:]
    optimizer = TrainingFreeGRPO(metric, reflection_lm=given.reflection_lm, max_lm_calls=800)
    agents = {"before": Agent(), "after": optimizer.compile(Agent(), trainset=examples[:36])}
    print(agents["after"].detailed_results)
    slow = (each for each in test if agents["before"](**each.inputs()).turns > 1)
    question = next(slow, test[-1]).question
    print(f"A question of the test set: {question}")
    for title, agent in agents.items():
        pred = agent(question=question)
        right = next(each.answer for each in test if each.question == question)
        told = pred.answer or pred.error
        print(f"{title}: turn {pred.turns}, answer {told} (right: {right})")
    means = {
        title: fmean(metric(each, agent(**each.inputs())).score for each in test)
        for title, agent in agents.items()
    }
    print(" ".join(f"{title} {mean:.2f}" for title, mean in means.items()), "on the test set")
    return means


if __name__ == "__main__":
    main()
