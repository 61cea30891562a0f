"""Ready metrics for DSPy programs: text matches and mathematical equivalence, with feedback.

`exact_match("answer")`, `normalized_match(...)` and `math_equivalent(...)` make metrics that
return `score` and `feedback`; `is_equivalent` compares two mathematical answers without DSPy.
Nothing of the package imports this; it calls no LM and evaluates no text.

One file per question: `field_metrics` which fields, score and feedback · `answer_text` where in
a text the answer is, and its form as words · `mathematics` the order of the comparisons ·
`plain_notation`, `notation`, `expressions`, `parser` text to `trees` · `equality`, `regions`,
`identity` trees compared by kind, as sets, by value · `evaluation` a value in bounded time ·
`units` · `limits` what a comparison may cost.
"""

from tfgrpo_dspy.metrics.answer_text import normalize_text
from tfgrpo_dspy.metrics.field_metrics import exact_match, math_equivalent, normalized_match
from tfgrpo_dspy.metrics.mathematics import is_equivalent

__all__ = [
    "exact_match",
    "is_equivalent",
    "math_equivalent",
    "normalize_text",
    "normalized_match",
]
