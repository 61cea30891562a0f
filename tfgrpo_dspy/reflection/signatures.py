"""What the reflection LM is asked: one signature for each prompt, the instruction its docstring.

Fields stand in the order of how seldom they change (what a run is about, the library, the group),
so that two prompts begin alike as far as they can: providers charge less for such a beginning.
"""

import dspy
import pydantic


class SummarizeAttempt(dspy.Signature):
    """Summarise one attempt of a program, so that it can be compared with other attempts.

    Go through the steps in their order. For each, say in a line what was done and what came of
    it; keep what decided the outcome word for word (the wrong turn, the error, the missing fact,
    the good idea). Use the score and the feedback to see which steps those are. Leave out what
    every attempt does. Add no advice.
    """

    program: str = dspy.InputField(desc="what the program does, predictor by predictor")
    example: str = dspy.InputField(desc="the inputs that the program was given")
    expected: str = dspy.InputField(desc="the labels of the example, where they are known")
    attempt: str = dspy.InputField(desc="score, feedback and steps of the attempt")
    summary: str = dspy.OutputField(desc="at most 200 words")


class CompareAttempts(dspy.Signature):
    """Learn from several attempts of one program at the same example.

    Compare the attempts: what did the better ones do that the worse ones did not? Go by scores
    and feedback, and name the step that made the difference. Where no attempt is good, find out
    what all of them missed. Then write lessons: what the program should do next time.

    A lesson
    - is one line, "When <condition>, <advice>.", or the advice alone where it always applies;
    - is concrete: who reads it knows what to do, without having seen these attempts;
    - holds for other examples of the task too: no answer, no name, number or phrase that occurs
      in this example only;
    - is supported by the attempts, and is not among the known experiences yet.

    Write the most useful lesson first. One to three are enough; none is better than a guess.
    Where the program has several predictors and a lesson is for one of them, begin the lesson
    with that predictor's name in square brackets.
    """

    program: str = dspy.InputField(desc="what the program does, predictor by predictor")
    objective: str = dspy.InputField(desc="what the lessons are to be about")
    max_words: int = dspy.InputField(desc="how many words a lesson may have")
    experiences: str = dspy.InputField(desc="what is known already")
    example: str = dspy.InputField(desc="the inputs that the program was given")
    expected: str = dspy.InputField(desc="the labels of the example, where they are known")
    attempts: str = dspy.InputField(desc="the best first, with score, feedback and steps")
    semantic_advantage: str = dspy.OutputField(
        desc="why the better attempts beat the worse ones, or what all of them missed"
    )
    lessons: list[str] = dspy.OutputField(desc="one line each")


class CritiqueAttempts(dspy.Signature):
    """Learn from several attempts of one program at the same example, whose answer nobody knows.

    There is no score. Criticise the attempts yourself: check each step for what is wrong, missing
    or without ground; see where the attempts disagree, and who has the better reason. The answer
    that most attempts give is likelier to be right, but not sure. Then write lessons: what the
    program should do next time.

    A lesson
    - is one line, "When <condition>, <advice>.", or the advice alone where it always applies;
    - is concrete: who reads it knows what to do, without having seen these attempts;
    - holds for other examples of the task too: no answer, no name, number or phrase that occurs
      in this example only;
    - rests on a fault that you can point to, and is not among the known experiences yet.

    Write the most useful lesson first. One to three are enough; none is better than a guess.
    Where the program has several predictors and a lesson is for one of them, begin the lesson
    with that predictor's name in square brackets.
    """

    program: str = dspy.InputField(desc="what the program does, predictor by predictor")
    objective: str = dspy.InputField(desc="what the lessons are to be about")
    max_words: int = dspy.InputField(desc="how many words a lesson may have")
    experiences: str = dspy.InputField(desc="what is known already")
    example: str = dspy.InputField(desc="the inputs that the program was given")
    attempts: str = dspy.InputField(desc="with their steps, and the answer that most of them give")
    critique: str = dspy.OutputField(desc="what is wrong or doubtful in the attempts, and where")
    lessons: list[str] = dspy.OutputField(desc="one line each")


class ReadExamples(dspy.Signature):
    """Learn from labelled examples what a program has to know, before it has made any attempt.

    Compare the inputs with the labels, and the examples with one another: what leads from one to
    the other that the program's instructions do not say? Then write lessons: what the program
    should do.

    A lesson
    - is one line, "When <condition>, <advice>.", or the advice alone where it always applies;
    - is concrete: who reads it knows what to do, without having seen these examples;
    - holds for other examples of the task too, and not for a single one of these only;
    - is borne out by the examples, and is not among the known experiences yet.

    Write the most useful lesson first; none is better than a guess. Where the program has several
    predictors and a lesson is for one of them, begin the lesson with that predictor's name in
    square brackets.
    """

    program: str = dspy.InputField(desc="what the program does, predictor by predictor")
    objective: str = dspy.InputField(desc="what the lessons are to be about")
    max_words: int = dspy.InputField(desc="how many words a lesson may have")
    experiences: str = dspy.InputField(desc="what is known already")
    examples: str = dspy.InputField(desc="inputs and labels, example by example")
    lessons: list[str] = dspy.OutputField(desc="one line each")


class ProposedOperation(pydantic.BaseModel):
    """One operation on the library."""

    op: str = pydantic.Field(description="ADD, MODIFY, DELETE or KEEP")
    id: str = pydantic.Field(default="", description="of the experience; empty for ADD")
    text: str = pydantic.Field(default="", description="the new text, for ADD and MODIFY")
    scope: str = pydantic.Field(default="*", description="a predictor's name, or * for all")
    reason: str = pydantic.Field(default="", description="in a few words")
    lessons: list[int] = pydantic.Field(
        default_factory=list, description="the numbers of the lessons that it rests on"
    )


class ProposeOperations(dspy.Signature):
    """Keep a small library of experiences true and useful: bring new lessons into it.

    The experiences are advice that the program is given on every example. Decide, for the
    library as a whole, which operations the new lessons call for:
    - ADD a lesson that says something new. Several lessons that say the same make one ADD.
    - MODIFY an experience that a lesson makes more precise, more general or more correct, or
      into which it can be merged; keep what was good in the old text.
    - DELETE an experience that the lessons contradict, or that another one makes superfluous.
    - KEEP an experience that lessons support as it stands.

    Every text is one line, "When <condition>, <advice>.", or the advice alone where it always
    applies; it is general, concrete, and about no single example. A lesson that is vague, wrong
    or about one example only is left out: name it in no operation. Fewer and better experiences
    beat many.
    """

    program: str = dspy.InputField(desc="what the program does, predictor by predictor")
    objective: str = dspy.InputField(desc="what the experiences are to be about")
    limits: str = dspy.InputField(desc="what the library may hold")
    experiences: str = dspy.InputField(desc="the library: [id] text; a star marks scope *")
    lessons: str = dspy.InputField(desc="the new lessons, numbered")
    operations: list[ProposedOperation] = dspy.OutputField()
