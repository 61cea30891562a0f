"""A user's script under `mlflow.dspy.autolog`: compiles once, with what its arguments say.

python mlflow_child.py TRACKING_URI [autolog-first] [in-own-run] [fails]
"""

import sys

import mlflow

mlflow.set_tracking_uri(sys.argv[1])
mlflow.set_experiment("runs")
if "autolog-first" in sys.argv:
    mlflow.dspy.autolog(log_compiles=True, log_evals=True, log_traces=False)

import dspy  # noqa: E402
from runs import learned, questions  # noqa: E402
from small import grpo  # noqa: E402

if "off" not in sys.argv and "autolog-first" not in sys.argv:
    mlflow.dspy.autolog(log_compiles=True, log_evals=True, log_traces=False)


def failing(*_: object) -> float:
    raise NotImplementedError


if "fails" in sys.argv:
    with dspy.context(lm=dspy.utils.DummyLM([{"answer": "no"}] * 50)):
        grpo(failing, progress=False).compile(
            dspy.Predict("question -> answer"), trainset=questions(9)
        )
elif "in-own-run" in sys.argv:
    with mlflow.start_run(run_name="mine"):
        learned(seed=7)
else:
    learned()
