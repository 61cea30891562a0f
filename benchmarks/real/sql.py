"""SQL for a small real sqlite database with house rules that nobody states.

The student sees the schema and a question; its query is executed, and the figure that comes out is
compared. What the schema does not say: amounts are in cents, deleted rows stay in the tables,
states and segments are codes, cancelled and returned orders are no sales.
"""

import random
import sqlite3
import threading
from collections.abc import Iterator

import dspy

SCHEMA = """\
Write one SQLite query that answers the question with a single figure. Tables:
customers(id, name, city, segment, deleted)
orders(id, customer_id, placed, state, amount)
placed is a date such as 2025-03-17."""
ADVICE = """\
Amounts are stored in cents: divide by 100.0.
Leave out deleted customers: customers.deleted = 0, also when orders are asked for.
Order states are codes: 1 open, 2 shipped, 3 cancelled, 4 returned.
Sales, revenue and turnover count shipped orders only: state = 2.
Segments are codes: 'B' business customers, 'P' private customers, 'S' schools.
Answer with the query alone, without a code fence."""
CITIES = ("Leeds", "Porto", "Turin", "Bergen", "Lyon", "Graz", "Cork", "Malmo")
SEGMENTS = {"B": "business customers", "P": "private customers", "S": "schools"}
STATES = {1: "open", 3: "cancelled", 4: "returned"}
YEARS = (2023, 2024, 2025)
JOINED = "orders JOIN customers ON customers.id = orders.customer_id WHERE customers.deleted = 0"
FORMS = (
    ("What was the revenue in {year}?",
     "SELECT SUM(amount) / 100.0 FROM {joined} AND state = 2 AND placed LIKE '{year}%'"),
    ("What turnover did we make with {segment} in {year}?",
     "SELECT SUM(amount) / 100.0 FROM {joined} AND state = 2 AND segment = '{code}' "
     "AND placed LIKE '{year}%'"),
    ("How many customers do we have in {city}?",
     "SELECT COUNT(*) FROM customers WHERE deleted = 0 AND city = '{city}'"),
    ("How many {segment} do we have in {city}?",
     "SELECT COUNT(*) FROM customers WHERE deleted = 0 AND city = '{city}' "
     "AND segment = '{code}'"),
    ("How many {state} orders are there from {city}?",
     "SELECT COUNT(*) FROM {joined} AND state = {state_code} AND city = '{city}'"),
    ("What is the total value of {state} orders of {segment}?",
     "SELECT SUM(amount) / 100.0 FROM {joined} AND state = {state_code} AND segment = '{code}'"),
    ("What is the average sale to customers in {city}?",
     "SELECT AVG(amount) / 100.0 FROM {joined} AND state = 2 AND city = '{city}'"),
    ("What was the revenue from {city} in {year}?",
     "SELECT SUM(amount) / 100.0 FROM {joined} AND state = 2 AND city = '{city}' "
     "AND placed LIKE '{year}%'"),
    ("How many orders did {segment} in {city} place in {year}?",
     "SELECT COUNT(*) FROM {joined} AND segment = '{code}' AND city = '{city}' "
     "AND placed LIKE '{year}%'"),
    ("What was the largest sale in {city} in {year}?",
     "SELECT MAX(amount) / 100.0 FROM {joined} AND state = 2 AND city = '{city}' "
     "AND placed LIKE '{year}%'"),
)  # fmt: skip
TOLERANCE = 0.006
MOST_STEPS = 100_000  # of sqlite, for one query


def database() -> sqlite3.Connection:
    """The same rows for every seed, in memory, closed to writing."""
    rng = random.Random("sql")
    made = sqlite3.connect(":memory:", check_same_thread=False)
    made.execute("CREATE TABLE customers (id, name, city, segment, deleted)")
    made.execute("CREATE TABLE orders (id, customer_id, placed, state, amount)")
    for i in range(120):
        row = (i, f"Customer {i}", rng.choice(CITIES), rng.choice("BPS"), int(rng.random() < 0.2))
        made.execute("INSERT INTO customers VALUES (?, ?, ?, ?, ?)", row)
    for i in range(900):
        placed = f"{rng.choice(YEARS)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
        state = rng.choice((1, 2, 2, 2, 3, 4))
        row = (i, rng.randrange(120), placed, state, rng.randint(500, 90_000))
        made.execute("INSERT INTO orders VALUES (?, ?, ?, ?, ?)", row)
    made.execute("PRAGMA query_only = 1")
    return made


class Sql:
    """The task's parts, as `tasks.py` puts them together."""

    fields = "question -> query"
    instruction = SCHEMA
    advice = ADVICE

    def __init__(self) -> None:
        self._rows, self._lock = database(), threading.Lock()

    def examples(self, rng: random.Random) -> Iterator[dspy.Example]:
        """Different questions, in random order, without end."""
        seen = set()
        while True:
            text, query = rng.choice(FORMS)
            code, state = rng.choice(list(SEGMENTS)), rng.choice(list(STATES))
            values = {
                "year": rng.choice(YEARS),
                "city": rng.choice(CITIES),
                "segment": SEGMENTS[code],
                "code": code,
                "state": STATES[state],
                "state_code": state,
                "joined": JOINED,
            }
            question = text.format(**values)
            if question not in seen:
                seen.add(question)
                yield dspy.Example(question=question, query=query.format(**values))

    def verdict(self, gold: dspy.Example, pred: dspy.Prediction) -> tuple[float, str]:
        """1.0 where the query gives the figure of the right one; and what was wrong."""
        query = str(pred.query or "").strip().removeprefix("```sql").removeprefix("```")
        wanted = self._figure(gold.query)
        try:
            found = self._figure(query.removesuffix("```"))
        except (sqlite3.Error, sqlite3.Warning, ValueError, TypeError) as error:
            return 0.0, f"The query failed: {error}. A right query: {gold.query}"
        if abs(found - wanted) <= TOLERANCE:
            return 1.0, "Right."
        return (
            0.0,
            f"The query gave {found:g}, but {wanted:g} is right. A right query: {gold.query}",
        )

    def _figure(self, query: str) -> float:
        """The single figure of a query. Raises where it gives none, or takes too long."""
        steps = iter(range(MOST_STEPS // 1000))
        with self._lock:  # a second thread that sets its handler would wait for ever
            self._rows.set_progress_handler(lambda: next(steps, None) is None, 1000)
            rows = self._rows.execute(query).fetchmany(2)
        if len(rows) != 1 or len(rows[0]) != 1:
            raise ValueError(f"{len(rows)} rows of {len(rows[0]) if rows else 0} columns")
        return float(rows[0][0] or 0)
