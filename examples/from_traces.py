"""Learn from production traces: replies of the past, with the scores and comments of reviewers.

    python examples/from_traces.py [--lm openai/gpt-5-mini] [--reflection-lm openai/gpt-5]

Runs on a simulated LM in 3 seconds. First it writes `traces.jsonl` into the working folder, as a
service would: two replies to each of 30 complaints, each with what a reviewer said. `learn` reads
the file and does not make these replies again; it runs the program on the validation set only. It
also writes `report.html`.
"""

import json
from pathlib import Path

import dspy
from simulated import arguments
from support_replies import house_style, load, program

from tfgrpo_dspy import TrainingFreeGRPO
from tfgrpo_dspy.report import write_html

TRACES = Path("traces.jsonl")


def write_traces(complaints: list[dspy.Example]) -> None:
    """What a service would have logged: a line for each reply."""
    with TRACES.open("w", encoding="utf-8") as file:
        for complaint in complaints:
            for number in (1, 2):
                lm = dspy.settings.lm.copy(rollout_id=number, temperature=1.0)
                with dspy.context(lm=lm):
                    reply = program()(**complaint.inputs())
                review = house_style(complaint, reply)
                trace = {
                    "inputs": {"complaint": complaint.complaint},
                    "outputs": {"reply": reply.reply},
                    "score": review.score,
                    "feedback": review.feedback,
                }
                file.write(json.dumps(trace) + "\n")


if __name__ == "__main__":
    given = arguments(__doc__)
    trainset, valset, testset = load()
    write_traces(trainset[:30])
    print(f"A line of {TRACES}:\n  {TRACES.read_text(encoding='utf-8').splitlines()[0][:150]}...")
    optimizer = TrainingFreeGRPO(
        house_style, reflection_lm=given.reflection_lm, max_lm_calls=400, progress=False
    )
    taught = optimizer.learn(program(), traces=TRACES, valset=valset)
    print(taught.detailed_results)
    print(f"The whole run: {write_html(taught, 'report.html')}")

    evaluate = dspy.Evaluate(devset=testset, metric=house_style, num_threads=4)
    for name, each in (("before", program()), ("after", taught)):
        print(f"On {len(testset)} other complaints, {name}: {evaluate(each).score / 100:.3f}")
