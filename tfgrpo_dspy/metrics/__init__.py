"""Ready DSPy metrics with feedback: text matches, mathematical equivalence. No LM is called."""

from tfgrpo_dspy.metrics.answer_text import normalize_text
from tfgrpo_dspy.metrics.field_metrics import exact_match, math_equivalent, normalized_match
from tfgrpo_dspy.metrics.mathematics import is_equivalent

__all__ = ["exact_match", "is_equivalent", "math_equivalent", "normalize_text", "normalized_match"]
