"""`mlflow.genai.optimize_prompts` with our optimizer: real MLflow on SQLite, a scripted LM."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import dspy
import pytest
from runs import ADVICE, polite_rules
from scripted import scripted_lm

mlflow = pytest.importorskip("mlflow", reason="MLflow is in the extra `dev`")

from mlflow.entities import Feedback  # noqa: E402
from mlflow.genai.scorers import scorer  # noqa: E402
from mlflow_databases import database_in  # noqa: E402

from tfgrpo_dspy import SettingsError  # noqa: E402
from tfgrpo_dspy.integrations.mlflow import TrainingFreePromptOptimizer, with_advice  # noqa: E402

pytestmark = [pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore")]
TEXT = "Answer the customer: {{question}}"
CHAT = [{"role": "system", "content": "You answer customers."},
        {"role": "user", "content": "{{question}}"}]  # fmt: skip


@scorer
def polite(outputs: str) -> Feedback:
    return Feedback(value=float("please" in outputs), rationale="Say please.")


@scorer
def short(outputs: str) -> float:
    return 1.0 if len(outputs) < 10 else 0.0


@pytest.fixture(scope="module", autouse=True)
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = mlflow.get_tracking_uri()
    folder = tmp_path_factory.mktemp("mlflow")
    mlflow.set_tracking_uri(database_in(folder))
    mlflow.create_experiment("prompts", artifact_location=(folder / "artefacts").as_uri())
    mlflow.set_experiment("prompts")
    yield
    mlflow.set_tracking_uri(before)


class Service:
    """The function whose prompts are optimized; it notices calls that share the patched prompts."""

    def __init__(self, uri: str) -> None:
        self.uri, self.seen = uri, list[str]()
        self._lm = scripted_lm(polite_rules())
        self._lock = threading.Lock()
        self.n = 0

    def __call__(self, question: str) -> str:
        prompt = mlflow.genai.load_prompt(self.uri)
        shown = prompt.format(question=question)
        text = shown if isinstance(shown, str) else "\n\n".join(m["content"] for m in shown)
        with self._lock:
            self.seen.append(text)
            self.n += 1
            number = self.n
        messages = [{"role": "system", "content": text}, {"role": "user", "content": "go"}]
        answer = str(self._lm(messages=messages, rollout_id=number)[0])
        return "please" if "please" in answer else "no"


def optimized(name: str, template: Any, data: Any = None, **settings: Any) -> Any:
    prompt = mlflow.genai.register_prompt(name=name, template=template)
    service = Service(prompt.uri)
    optimizer = TrainingFreePromptOptimizer(
        scripted_lm(polite_rules()), **{"max_metric_calls": 60, "num_threads": 2} | settings
    )
    data = data or [
        {"inputs": {"question": f"question {i}"}, "outputs": "please"} for i in range(9)
    ]

    def predict(question: str) -> str:
        return service(question)

    with mlflow.start_run() as run:
        result = mlflow.genai.optimize_prompts(
            predict_fn=predict,
            train_data=data,
            prompt_uris=[prompt.uri],
            optimizer=optimizer,
            scorers=[polite, short],
        )
    return result, optimizer.results, service, run.info.run_id


@pytest.fixture(scope="module")
def text() -> Any:
    with dspy.context(lm=None, adapter=None, callbacks=[]):
        return optimized("polite-text", TEXT)


def test_a_text_prompt_gets_the_advice_that_made_the_function_better(text: Any) -> None:
    result, results, service, _ = text
    (prompt,) = result.optimized_prompts
    assert prompt.template == f"{TEXT}\n\nAdvice learned from earlier attempts:\n- {ADVICE}"
    assert prompt.version == 2
    assert result.initial_eval_score == results.student.mean < result.final_eval_score
    assert (
        result.final_eval_score_per_scorer["polite"]
        > result.initial_eval_score_per_scorer["polite"]
    )
    assert len(service.seen) <= 60 + 1  # MLflow itself tries the function once
    tried = prompt.template.replace("{{question}}", "question 1")
    assert tried in service.seen  # what was measured is what is returned


def test_scores_rationales_and_the_table_of_rollouts_are_in_the_mlflow_run(text: Any) -> None:
    _, results, _, run_id = text
    client = mlflow.MlflowClient()
    group_rows = mlflow.load_table("rollouts.json", run_ids=[run_id])
    assert set(group_rows["objective polite"]) == {0.0, 1.0}
    assert set(group_rows.feedback) == {"polite: Say please."}
    assert set(group_rows.set) == {"training", "validation"}
    logged = client.get_run(run_id).data
    assert logged.metrics["validation_score"] == results.best.mean
    assert logged.params["tfgrpo.max_metric_calls"] == "60"


def test_a_chat_prompt_gets_the_advice_in_its_system_message() -> None:
    with dspy.context(lm=None, adapter=None, callbacks=[]):
        result, *_ = optimized("polite-chat", CHAT, max_metric_calls=40)
    (prompt,) = result.optimized_prompts
    system, user = prompt.template
    assert system["content"].endswith(f":\n- {ADVICE}")
    assert user == CHAT[1]


def test_advice_makes_no_variable_of_a_prompt() -> None:
    shown = with_advice(TEXT, ["Write {{name}} and {% if x %} as they are."])
    assert "{ {name} }" in shown and "{ % if x %}" in shown
    only_user = json.loads(with_advice(json.dumps(CHAT[1:]), ['Be "exact".']))
    assert [message["role"] for message in only_user] == ["system", "user"]
    assert only_user[0]["content"].endswith('- Be "exact".')
    assert with_advice(TEXT, []) == TEXT


def test_what_cannot_be_optimized_is_refused_before_a_call() -> None:
    with pytest.raises(SettingsError, match=r"train_data=\[\]: pass records"):
        TrainingFreePromptOptimizer().optimize(lambda *_: [], [], {"p": TEXT})
    with pytest.raises(TypeError, match="num_trials"):
        TrainingFreePromptOptimizer(num_trials=3)


def test_the_evaluation_function_runs_once_at_a_time_and_is_given_what_waits_together() -> None:
    class Record:
        def __init__(self, record: Any) -> None:
            self.outputs = record["inputs"]["question"]
            self.score, self.rationales, self.individual_scores = 1.0, {}, {}

    at_work, sizes, overlaps = threading.Lock(), list[int](), list[bool]()

    def eval_fn(_prompts: Any, records: Any) -> list[Record]:
        overlaps.append(not at_work.acquire(blocking=False))
        sizes.append(len(records))
        sum(range(100_000))  # takes a moment, in which another call would be noticed
        at_work.release()
        return [Record(record) for record in records]

    data = [{"inputs": {"question": f"question {i}"}, "outputs": "x"} for i in range(9)]
    with dspy.context(lm=scripted_lm(polite_rules()), adapter=None, callbacks=[]):
        output = TrainingFreePromptOptimizer(max_metric_calls=60, num_threads=8).optimize(
            eval_fn, [*data, data[0]], {"p": TEXT}, enable_tracking=False
        )
    assert output.optimized_prompts == {"p": TEXT}
    assert not any(overlaps)
    assert sum(sizes) <= 60
