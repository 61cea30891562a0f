"""Reflection: what the reflection LM is asked, in which words, and what its answers become."""

from tfgrpo_dspy.reflection.feedback import recurring_feedback
from tfgrpo_dspy.reflection.lessons import (
    CopyGuard,
    Lesson,
    RefusedLesson,
    is_same_lesson,
    merge_lessons,
    read_lesson,
)
from tfgrpo_dspy.reflection.modules import (
    AddLessons,
    DraftLessons,
    ExtractAdvantage,
    SummarizeTrajectory,
    UpdateLibrary,
)
from tfgrpo_dspy.reflection.signatures import ProposedOperation
from tfgrpo_dspy.reflection.texts import (
    HIDDEN,
    NO_EXPERIENCES,
    UNKNOWN,
    as_input,
    attempt_text,
    attempts_text,
    clip,
    describe_program,
    encodable,
    estimate_tokens,
    feedback_text,
)

__all__ = [
    "HIDDEN",
    "NO_EXPERIENCES",
    "UNKNOWN",
    "AddLessons",
    "CopyGuard",
    "DraftLessons",
    "ExtractAdvantage",
    "Lesson",
    "ProposedOperation",
    "RefusedLesson",
    "SummarizeTrajectory",
    "UpdateLibrary",
    "as_input",
    "attempt_text",
    "attempts_text",
    "clip",
    "describe_program",
    "encodable",
    "estimate_tokens",
    "feedback_text",
    "is_same_lesson",
    "merge_lessons",
    "read_lesson",
    "recurring_feedback",
]
