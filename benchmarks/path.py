"""The path of the smallest compile: files entered, own frames at an LM call, forms of a score.

    python benchmarks/path.py

Four examples, 60 LM calls, an LM that answers at once. Frames are those of the traceback that leads
from `compile` to an LM call in which Ctrl-C is pressed: every third call of a run is tried. A form
of a score is the type of a field, argument or result of this name in the files from metric to gate;
several numbers are one, whatever holds them, and a float that is verified is a float.
"""

import ast
import re
import sys
import threading
import traceback
from pathlib import Path
from types import FrameType

import dspy
from dspy import lm15

import tfgrpo_dspy

ROOT = Path(tfgrpo_dspy.__file__).parent
SCORE = re.compile(r"_?(scores?|score_of|floored)$|as_score$")
WAY = re.compile(r"metric|sampling|rollout|group|scores|calls|run/|gate")
ROW = re.compile(r"Scores|(Iterable|Sequence|list|tuple)\[float(, \.\.\.)?\]( \| Matrix)?")
files: set[str] = set()


def own_frames(error: BaseException) -> list[str]:
    """The functions of the package in the traceback of an error."""
    frames = traceback.extract_tb(error.__traceback__)
    return [frame.name for frame in frames if frame.filename.startswith(str(ROOT))]


def note(frame: FrameType, event: str, _argument: object) -> None:
    """Note the file of a function of the package that is called."""
    if event == "call" and frame.f_code.co_filename.startswith(str(ROOT)):
        files.add(str(Path(frame.f_code.co_filename).relative_to(ROOT)))


class Engine:
    """Answers each prompt with its fields, every second seed right; is interrupted at one call."""

    def __init__(self, interrupted_at: int = 0) -> None:
        self.n_left = interrupted_at

    def complete(self, request: lm15.Request) -> lm15.Response:
        self.n_left -= 1
        if not self.n_left:
            raise KeyboardInterrupt
        answer = "yes" if (request.config.seed or 0) % 2 else "no"
        texts = {"answer": answer, "lessons": "Say yes.", "operations": "[]"}
        asked = sorted(set(re.findall(r"`(answer|lessons|operations)`", str(request.system))))
        text = "".join(f"[[ ## {name} ## ]]\n{texts[name]}\n\n" for name in asked)
        message, usage = lm15.Message.assistant([lm15.TextPart(text)]), lm15.Usage(1, 1)
        return lm15.Response(None, request.model, message, "stop", usage)


def form_of(node: ast.AST) -> str:
    """The type of a score; "" where it is none."""
    target, form = getattr(node, "target", node), getattr(node, "annotation", None)
    name = next((getattr(target, key) for key in ("id", "arg", "name") if hasattr(target, key)), "")
    if (form := getattr(node, "returns", form)) is None or not SCORE.match(str(name)):
        return ""
    plain = re.sub(r"Annotated\[(\w+), \w+\]", r"\1", ast.unparse(form))
    return ROW.sub("numbers", plain.replace(" | None", "").replace("FiniteF", "f"))


def compiled(engine: Engine) -> None:
    """Compile the smallest program."""
    examples = [dspy.Example(q=str(k), answer="yes").with_inputs("q") for k in range(4)]
    metric = lambda gold, pred: float(gold.answer == pred.answer)  # noqa: E731
    grpo = tfgrpo_dspy.TrainingFreeGRPO(metric, max_lm_calls=60, progress=False)
    with dspy.context(lm=dspy.LM("path", engine=engine, cache=False)):
        grpo.compile(dspy.Predict("q -> answer"), trainset=examples)


if __name__ == "__main__":
    threading.setprofile(note)
    sys.setprofile(note)
    compiled(Engine())
    sys.setprofile(None)
    threading.setprofile(None)
    ways: list[list[str]] = []
    for number in range(1, 50, 3):
        try:
            compiled(Engine(number))
        except KeyboardInterrupt as error:
            ways.append(own_frames(error))
    ways.sort(key=len)
    nodes = (n for f in files if WAY.match(f) for n in ast.walk(ast.parse((ROOT / f).read_text())))
    forms = sorted({*map(form_of, nodes)} - {""})
    numbers = f"{len(ways[0])} to {len(ways[-1])}, median {len(ways[len(ways) // 2])}"
    print(f"files entered: {len(files)}; own frames from compile to an LM call: {numbers}")
    print("such as", " > ".join(ways[len(ways) // 2]))
    print(f"forms of a score: {len(forms)}: {', '.join(forms)}")
