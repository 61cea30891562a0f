"""A user's script under `mlflow.dspy.autolog`: compiles once, with what its arguments say.

python mlflow_child.py URI [autolog-first] [twice] [gone] [fails]
"""

import sys

import mlflow

mlflow.set_tracking_uri(sys.argv[1])
mlflow.set_experiment("runs")
if "autolog-first" in sys.argv:
    mlflow.dspy.autolog(log_compiles=True, log_evals=True, log_traces=False)

import dspy  # noqa: E402
from runs import learned, library_texts, questions  # noqa: E402
from small import grpo  # noqa: E402

if "autolog-first" not in sys.argv:
    mlflow.dspy.autolog(log_compiles=True, log_evals=True, log_traces=False)


def failing(*_: object, **_named: object) -> float:
    raise NotImplementedError


if "fails" in sys.argv:
    with dspy.context(lm=dspy.utils.DummyLM([{"answer": "no"}] * 50)):
        grpo(failing, progress=False).compile(
            dspy.Predict("question -> answer"), trainset=questions(9)
        )
elif "twice" in sys.argv:
    with mlflow.start_run(run_name="mine"):
        learned(seed=7)
        learned(seed=8)
elif "gone" in sys.argv:  # the server, from the first update on
    mlflow.MlflowClient.log_batch = failing
    sys.stdout.write(f"learned {library_texts(learned())}\n")
else:
    learned()
