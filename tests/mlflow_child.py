"""A user's script under `mlflow.dspy.autolog`: compiles once, with what its arguments say.

python mlflow_child.py URI [autolog-first] [twice] [gone] [down] [silent] [hangs] [fails]
"""

import socket
import sys
import threading
import time

import mlflow

mlflow.set_tracking_uri(sys.argv[1])
mlflow.set_experiment("runs")
if "autolog-first" in sys.argv:
    mlflow.dspy.autolog(log_compiles=True, log_evals=True, log_traces=False)

import dspy  # noqa: E402
from runs import learned, library_texts, questions  # noqa: E402
from small import grpo  # noqa: E402

if "autolog-first" not in sys.argv:
    compiles = "silent" not in sys.argv  # else MLflow itself asks before and after a compile
    mlflow.dspy.autolog(log_compiles=compiles, log_evals=True, log_traces=False)


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
elif "hangs" in sys.argv:  # the server, from the first question on
    mlflow.MlflowClient.search_experiments = lambda *_, **_named: threading.Event().wait(100)
    begun = time.monotonic()
    texts = library_texts(learned())
    sys.stdout.write(f"learned {texts} in time: {time.monotonic() - begun < 60}\n")
elif "down" in sys.argv:  # what MLflow itself asks, from the first update on
    program = learned(on_event=lambda _: mlflow.set_tracking_uri("http://127.0.0.1:9"))
    score = program.detailed_results.best.mean
    sys.stdout.write(f"learned {library_texts(program)} {score:.3f}\n")
elif "silent" in sys.argv:  # a server that takes requests, and answers none
    server = socket.create_server(("127.0.0.1", 0))
    mlflow.set_tracking_uri(f"http://127.0.0.1:{server.getsockname()[1]}")
    begun = time.monotonic()
    texts = library_texts(learned())
    sys.stdout.write(f"learned {texts} in time: {time.monotonic() - begun < 60}\n")
elif "gone" in sys.argv:  # the server, from the first update on
    mlflow.MlflowClient.log_batch = failing
    sys.stdout.write(f"learned {library_texts(learned())}\n")
else:
    learned()
