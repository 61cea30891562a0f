"""Optimize an agent (dspy.ReAct) whose tools query an SQLite database.

    python examples/sqlite_agent.py [--lm openai/gpt-5-mini] [--reflection-lm openai/gpt-5]

Runs on a simulated LM in 5 seconds; database and tools are real. The agent does not know two
customs of the database: amounts are in cents, and only paid orders count. It learns them from
queries that gave wrong answers. Prints the steps of a question before and after.
"""

import sqlite3
from typing import Any

import dspy
from simulated import arguments

from tfgrpo_dspy import TrainingFreeGRPO

CUSTOMERS = (
    *("Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana", "Ivo", "Jo", "Kim", "Lea", "Max"),
    *("Nora", "Otto", "Pia", "Quin", "Rosa", "Sam", "Tess", "Uma", "Vera", "Will", "Xenia", "Zoe"),
)
ORDERS = [  # number, customer, amount in cents, status
    (n, CUSTOMERS[n % 25], 100 * (13 + n * 37 % 90), "cancelled" if n % 7 in (1, 2) else "paid")
    for n in range(1, 126)
]


def database() -> sqlite3.Connection:
    """The orders, in memory; each thread opens its own, as rollouts run at the same time."""
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE orders (id INT, customer TEXT, amount INT, status TEXT)")
    connection.executemany("INSERT INTO orders VALUES (?, ?, ?, ?)", ORDERS)
    return connection


def schema() -> str:
    """Shows the tables with their columns."""
    return str(database().execute("SELECT sql FROM sqlite_master").fetchall())


def query(sql: str) -> str:
    """Runs an SQL query and shows the rows."""
    return str(database().execute(sql).fetchall())


def metric(example: dspy.Example, pred: dspy.Prediction, trace: Any = None) -> dspy.Prediction:  # noqa: ARG001
    """1 for the right number, else 0 and what was expected."""
    if pred.answer == example.answer:
        return dspy.Prediction(score=1.0, feedback="")
    feedback = f"Expected '{example.answer}', given '{pred.answer}'."
    if "How many orders" in example.question:
        feedback += " Count only orders with status 'paid'."
    return dspy.Prediction(score=0.0, feedback=feedback)


def load() -> list[dspy.Example]:
    """Questions about the amount of an order, and about the number of a customer's orders."""
    found = []
    for (number, _, amount, _), customer in zip(ORDERS, CUSTOMERS, strict=False):
        question = f"How many euros is order {number}?"
        found.append(dspy.Example(question=question, answer=amount // 100))
        question = f"How many orders are there from {customer}?"
        paid = sum(order[1] == customer and order[3] == "paid" for order in ORDERS)
        found.append(dspy.Example(question=question, answer=paid))
    return [example.with_inputs("question") for example in found]


def show_steps(title: str, agent: Any, question: str) -> None:
    answer = agent(question=question)
    print(f"{title}: {answer.trajectory['tool_args_0']} -> {answer.answer}")


if __name__ == "__main__":
    given = arguments(__doc__)
    examples = load()
    agent = dspy.ReAct("question -> answer: int", tools=[schema, query], max_iters=4)
    optimizer = TrainingFreeGRPO(metric, reflection_lm=given.reflection_lm, max_lm_calls=500)
    optimized = optimizer.compile(agent, trainset=examples[:34], testset=examples[34:])
    print(optimized.detailed_results)
    wrong = (e for e in examples[34:] if agent(**e.inputs()).answer != e.answer)
    question = next(wrong, examples[-1]).question
    print(f"A question of the test set: {question}")
    for title, each in (("before", agent), ("after", optimized)):
        show_steps(title, each, question)
