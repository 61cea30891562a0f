"""The questions to the reflection LM: one signature for each prompt, the instruction its docstring.

Fields that seldom change come first: providers charge less for prompts that begin alike. Outputs
are plain text, which small LMs write more reliably than typed JSON. The LM explains or plans before
it commits itself; both may be absent. No prompt shows a sample answer: small LMs give it as theirs.
"""

import dspy

_PROGRAM = "what the program does: its predictors with their instructions, inputs and outputs"
_KNOWN = "advice that is in the program's prompt already: [id] text; a star: for every predictor"
_LESSONS = "one lesson a line, nothing else; the word None if there is no lesson"


class SummarizeAttempt(dspy.Signature):
    """Summarise one attempt of a program, so that it can be compared with other attempts.

    Go through the steps in order. For each step, say in one line what was done and what the result
    was. Quote exactly what decided the outcome: the mistake, the error, the missing fact, the good
    idea. Use the score (higher is better) and the feedback to find those steps. Give no advice.
    """

    program: str = dspy.InputField(desc=_PROGRAM)
    example: str = dspy.InputField(desc="the inputs that the program was given")
    expected: str = dspy.InputField(desc="the right answer (labels), where it is known")
    attempt: str = dspy.InputField(desc="score, feedback, steps and outputs of the attempt")
    summary: str = dspy.OutputField(desc="at most 200 words")


class _ForLessons(dspy.Signature):
    program: str = dspy.InputField(desc=_PROGRAM)
    objective: str = dspy.InputField(desc="what the lessons should improve")
    max_words: int = dspy.InputField(desc="the most words that one lesson may have; few need them")
    experiences: str = dspy.InputField(desc=_KNOWN)


class CompareAttempts(_ForLessons):
    """Compare the attempts of a program at the same example, and write lessons for the program.

    The program was run several times on each example. A metric gave each attempt a score; a higher
    score is better. The advantage of an attempt says how far its score is above (+) or below (-)
    the mean of the attempts at the same example, in standard deviations.

    Below stand the experiences that were on trial, and the briefs: texts in place of a predictor's
    instructions. Each attempt says which of them it was given ("with E1, brief 2"). If those with
    E1 score better, or worse, than those without, E1 may be the reason: say so.

    First write semantic_advantage: what did the better attempts do that the worse ones did not?
    Name the step that made the difference. If no attempt is good, say what all of them missed.
    Where there are several examples, do so for each.

    Then write lessons, each on a line of its own:
    - "When <condition>, <advice>.", or only the advice if it always applies.
    - Concrete: somebody who has not seen these attempts knows what to do.
    - A rule or a fact that helps on similar examples. Facts that hold in general are welcome (what
      a policy says, what a word means, which format is wanted). The answer to one example is not
      a lesson.
    - Supported by the attempts, and not yet among the experiences.
    - If it is for one predictor only, begin the line with the predictor's name in square brackets.

    Write one to three lessons for each example, the most useful first. If the attempts show nothing
    new, write None instead of guessing.
    """

    example: str = dspy.InputField(desc="the inputs that the program was given")
    expected: str = dspy.InputField(desc="the right answer (labels), where it is known")
    attempts: str = dspy.InputField(desc="the best first, with score, feedback, steps and outputs")
    semantic_advantage: str = dspy.OutputField(
        default="", desc="why the better attempts beat the worse ones, or what all of them missed"
    )
    lessons: str = dspy.OutputField(desc=_LESSONS)


class CritiqueAttempts(_ForLessons):
    """Criticise the attempts of a program at the same example, and write lessons for it.

    The program was run several times on each example. Nobody knows the right answer, and there is
    no score. The answer that most attempts give is likely, but not certain, to be right.

    Below stand the experiences that were on trial. Each attempt says which of them it was given
    ("with E1, E2").

    First write critique: check each step. What is wrong, missing or without reason? Where do the
    attempts disagree, and which of them has the better reason?

    Then write lessons, each on a line of its own:
    - "When <condition>, <advice>.", or only the advice if it always applies.
    - Concrete: somebody who has not seen these attempts knows what to do.
    - A rule or a fact that helps on similar examples. Facts that hold in general are welcome. The
      answer to one example is not a lesson.
    - It mends a fault that you can point to, and is not yet among the experiences.
    - If it is for one predictor only, begin the line with the predictor's name in square brackets.

    Write one to three lessons for each example, the most useful first. If the attempts show nothing
    new, write None instead of guessing.
    """

    example: str = dspy.InputField(desc="the inputs that the program was given")
    attempts: str = dspy.InputField(desc="steps and outputs, and the answer that most of them give")
    critique: str = dspy.OutputField(
        default="", desc="what is wrong or doubtful in the attempts, and where"
    )
    lessons: str = dspy.OutputField(desc=_LESSONS)


class ReadExamples(_ForLessons):
    """Read labelled examples of a task, and write lessons for a program that is to do it.

    The program has not been run yet. Compare the inputs with the labels, and the examples with one
    another: what leads from inputs to labels that the program's instructions do not say?

    Write lessons, each on a line of its own:
    - "When <condition>, <advice>.", or only the advice if it always applies.
    - Concrete: somebody who has not seen these examples knows what to do.
    - A rule or a fact that helps on similar examples. Facts that hold in general are welcome (what
      a policy says, what a word means, which format is wanted). The label of one example alone is
      not a lesson.
    - Supported by the examples, and not yet among the experiences.
    - If it is for one predictor only, begin the line with the predictor's name in square brackets.

    Write the most useful lesson first. If the examples show nothing new, write None instead of
    guessing.
    """

    examples: str = dspy.InputField(desc="inputs and labels, example by example")
    lessons: str = dspy.OutputField(desc=_LESSONS)


class ProposeOperations(dspy.Signature):
    """Keep a short library of experiences true and useful: bring new lessons into it.

    Experiences are lines of advice in the program's prompt. Below each stands how many examples it
    was learned from and, where it was measured, its effect: by how much the score changes when the
    program is given it, plus or minus the standard error. "On trial" means: not yet certain. Below
    each lesson stands what it comes from: examples, the scores of the attempts at them, and the
    reason. Texts that were tried and dropped stand with the reason: do not propose again, also not
    in other words, what did harm or did not help, unless the new lessons show what was wrong with
    it. Put together what belongs together: lessons and examples may each hold a part of one table,
    one procedure or one complete pattern, which may have all the words that a line may have.

    First write plan: in a few sentences, which lessons say the same, which are new, and which
    experiences they confirm, correct or contradict.

    Then write operations, a JSON list. Each operation is one of:
    - {"op": "ADD", "text": ..., "lessons": [...]}: a new experience. Lessons that say the same make
      one ADD.
    - {"op": "MODIFY", "id": ..., "text": ..., "lessons": [...]}: a better text for an experience
      that lessons make more precise, more general or more correct. Keep what was good in it.
    - {"op": "DELETE", "id": ..., "lessons": [...]}: an experience that is wrong or says the same as
      another.
    - {"op": "KEEP", "id": ..., "lessons": [...]}: an experience that lessons confirm as it is.

    "lessons" holds the numbers of the lessons that the operation rests on. "scope" may name the one
    predictor that an experience is for; "*" means every predictor; leave it out to change nothing.
    "reason" may say why in a few words.

    Every text is one line, "When <condition>, <advice>.", or only the advice if it always applies:
    general, concrete, and not the answer to one example. Leave out lessons that are vague or wrong.
    One lesson from one example is no reason to change or delete an experience that many examples
    support, or whose effect is clearly above 0.
    """

    program: str = dspy.InputField(desc=_PROGRAM)
    objective: str = dspy.InputField(desc="what the experiences should improve")
    limits: str = dspy.InputField(desc="how much the library may hold")
    experiences: str = dspy.InputField(desc="the library: [id] text; a star: for every predictor")
    dropped: str = dspy.InputField(desc="texts that were tried and are gone, with the reason")
    examples: str = dspy.InputField(desc="inputs and labels of some examples, where known")
    lessons: str = dspy.InputField(desc="the new lessons, numbered")
    plan: str = dspy.OutputField(default="", desc="what the lessons call for, in a few sentences")
    operations: str = dspy.OutputField(desc="a JSON list; [] if the library stays as it is")


class RewriteInstructions(dspy.Signature):
    """Write the instructions of one predictor of a program anew: all that it should be told.

    Your text takes the place of the present instructions. Whoever follows it is given one input at
    a time, and sees nothing of what you see here.

    - Keep each demand of the present instructions, unless attempts show that it is wrong.
    - Say what leads from inputs to the right outputs that the present instructions do not say:
      every rule, exception, fact, name, code and unit, and the exact form of the outputs. Compare
      the examples with one another: a rule must hold for each example that it applies to. Where
      they do not tell, do not guess.
    - Put together what belongs together. A table of all cases is welcome, so is a procedure in
      steps, a complete pattern to follow, and a few worked examples of unlike kinds.
    - In a worked example, each field stands by its name on a line of its own, and its value is
      bare, exactly as it must be put out: arrows, quotes and remarks beside a value are copied
      into answers.
    - Concrete values are copied into answers: in a pattern, say which parts stand for those of the
      input.
    - Advice that was tried stands with its effect on the score: take over what helps, in your own
      words, and leave out what did harm.
    - Attempts were made with the present instructions. Find out what each failure missed and say it
      so that nobody misses it again; keep what made other attempts succeed.
    - Other predictors have instructions of their own: write for this one alone.
    - Write in the language of the present instructions, at most 800 words, and keep the names of
      fields as they are.
    """

    program: str = dspy.InputField(desc=_PROGRAM)
    objective: str = dspy.InputField(desc="what the new instructions should improve")
    predictor: str = dspy.InputField(desc="the name of the predictor to write for")
    present: str = dspy.InputField(desc="its instructions as they stand")
    examples: str = dspy.InputField(desc="inputs and labels, example by example")
    experiences: str = dspy.InputField(desc="advice that was tried, with its effect on the score")
    attempts: str = dspy.InputField(desc="attempts with the present instructions, failures first")
    brief: str = dspy.OutputField(desc="the text of the new instructions, and nothing else")
