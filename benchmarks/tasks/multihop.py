"""Questions whose answer takes two to six pages of a small encyclopaedia; a ReAct agent searches.

The tool is a full-text search (SQLite FTS5, BM25) over the pages of `multihop_corpus`, which shows
the three best pages. The score is 1 or 0: the answer, compared as text; feedback names the pages
that were needed and never shown.
"""

import functools
import re
import sqlite3
import threading
from pathlib import Path

import dspy

from tasks import Task, plain, split
from tasks.multihop_corpus import Question, corpus
from tfgrpo_dspy.metrics import normalized_match

N_TRAIN, N_VALIDATION, N_TEST = 36, 36, 100
N_SHOWN, MAX_TOOL_CALLS = 3, 8
TITLE_WEIGHT = 4.0

_answer_matches = normalized_match("answer", label_field="accepted")
_lock = threading.Lock()


@functools.cache
def _index() -> sqlite3.Connection:
    """All pages, in memory; used under `_lock`."""
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    connection.execute("CREATE VIRTUAL TABLE pages USING fts5(title, text, tokenize='porter')")
    rows = [(page.title, page.text) for page in corpus().pages]
    connection.executemany("INSERT INTO pages VALUES (?, ?)", rows)
    return connection


def search(query: str) -> list[str]:
    """Search the encyclopaedia. Shows the three pages that fit the words of the query best."""
    words = re.findall(r"\w+", query)
    if not words:
        return ["The query has no words."]
    with _lock:
        found = _index().execute(
            "SELECT title, text FROM pages WHERE pages MATCH ? "
            "ORDER BY bm25(pages, ?, 1.0), rowid LIMIT ?",
            (" OR ".join(f'"{word}"' for word in words), TITLE_WEIGHT, N_SHOWN),
        )
        return [f"[{title}] {text}" for title, text in found] or ["No page fits."]


class AnswerFromEncyclopaedia(dspy.Signature):
    """Answer the question from the encyclopaedia."""

    question: str = dspy.InputField()
    answer: str = dspy.OutputField(desc="a name or a number")


def student() -> dspy.ReAct:
    return dspy.ReAct(AnswerFromEncyclopaedia, tools=[search], max_iters=MAX_TOOL_CALLS)


def metric(
    gold: dspy.Example,
    pred: dspy.Prediction,
    trace: object = None,  # noqa: ARG001 - DSPy and GEPA pass these three
    pred_name: str | None = None,  # noqa: ARG001
    pred_trace: object = None,  # noqa: ARG001
) -> dspy.Prediction:
    """1 for the right answer, else 0, with the pages that were missed."""
    judged = _answer_matches(gold, pred)
    if judged.score == 1.0:
        return dspy.Prediction(score=1.0, feedback=judged.feedback)
    observations = _observations(pred)
    missed = [title for title in gold.pages if f"[{title}]" not in observations]
    needed = f"It follows from the pages {', '.join(gold.pages)}."
    advice = f"Your searches never showed {', '.join(missed)}." if missed else "You saw them all."
    return dspy.Prediction(score=0.0, feedback=f"{judged.feedback} {needed} {advice}")


def _observations(pred: dspy.Prediction) -> str:
    """Everything that the tool has shown."""
    trajectory = pred.get("trajectory")
    steps = trajectory.items() if isinstance(trajectory, dict) else ()
    return "\n".join(str(value) for key, value in steps if key.startswith("observation"))


def load(seed: int, data: Path | None = None) -> Task:  # noqa: ARG001 - it reads no file
    examples = [_example(question) for question in corpus().questions]
    train, val, test = split(examples, (N_TRAIN, N_VALIDATION, N_TEST), seed)
    return Task(
        name="multihop",
        student=student,
        train=train,
        val=val,
        test=test,
        metric=metric,
        plain_metric=plain(metric),
        notes="The corpus is the same for every seed, so a fact learned in training may be asked.",
    )


def _example(question: Question) -> dspy.Example:
    return dspy.Example(
        question=question.text,
        answer=question.accepted[0],
        accepted=list(question.accepted),
        pages=list(question.pages),
    ).with_inputs("question")
