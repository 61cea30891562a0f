"""A compile under `mlflow.dspy.autolog`, as real MLflow on SQLite shows it."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from runs import ADVICE, learned
from warm import ENVIRONMENT, USUAL, ran

mlflow = pytest.importorskip("mlflow", reason="MLflow is in the extra `dev`")
database_in = pytest.importorskip("mlflow_databases").database_in
CHILD = Path(__file__).with_name("mlflow_child.py")
pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


@dataclass(frozen=True)
class Shown:
    """What MLflow holds after the script has ended."""

    client: Any
    runs: list[Any]
    output: str

    @property
    def parent(self) -> Any:
        (run,) = [run for run in self.runs if "mlflow.parentRunId" not in run.data.tags]
        return run

    @property
    def children(self) -> dict[str, Any]:
        return {r.info.run_name: r for r in self.runs if "mlflow.parentRunId" in r.data.tags}

    def series(self, name: str) -> list[tuple[int, float]]:
        history = self.client.get_metric_history(self.parent.info.run_id, name)
        return sorted((metric.step, metric.value) for metric in history)

    def artefacts(self, run: Any, folder: str = "") -> list[str]:
        found = self.client.list_artifacts(run.info.run_id, folder or None)
        return sorted(file.path for file in found)

    def text(self, path: str) -> str:
        local = mlflow.artifacts.download_artifacts(
            run_id=self.parent.info.run_id,
            artifact_path=path,
            tracking_uri=self.client.tracking_uri,
        )
        return Path(local).read_text(encoding="utf-8")


def shown(folder: Path, *arguments: str, **environment: str) -> Shown:
    uri, given = database_in(folder), {"cwd": folder, "env": ENVIRONMENT | environment}
    is_first = "autolog-first" in arguments  # before this package is imported
    modules = ("mlflow", "dspy") if is_first else ("mlflow", *USUAL)
    done = ran([CHILD, uri, *arguments], **given, modules=modules)
    client = mlflow.MlflowClient(uri)
    ids = [each.experiment_id for each in client.search_experiments()]
    return Shown(client, list(client.search_runs(ids)), done.stdout + done.stderr)


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """The script that calls `autolog` after its imports."""
    return shown(tmp_path_factory.mktemp("usual"))


@pytest.fixture
def tracked(tmp_path: Path) -> Iterator[Any]:
    """A client of MLflow, which keeps what this process logs in a database of its own."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(database_in(tmp_path))
    yield mlflow.MlflowClient()
    mlflow.set_tracking_uri(before)


def test_a_compile_is_a_run_with_its_settings_and_the_derived_schedule(usual: Shown) -> None:
    assert usual.parent.info.status == "FINISHED"
    params = usual.parent.data.params
    assert (params["tfgrpo.group_size"], params["tfgrpo.reserve"]) == ("4", "48")
    assert "tfgrpo.max_cost" not in params


def test_each_update_is_a_step_of_the_metrics(usual: Shown) -> None:
    for name in ("training_score", "experiences"):
        assert [step for step, _ in usual.series(name)] == list(range(4)), name
    assert usual.series("lm_calls")[0][1] < usual.series("lm_calls")[-1][1]
    before, after = usual.series("validation_score")
    assert before == (0, pytest.approx(4 / 12))
    assert after == (4, pytest.approx(11 / 12))


def test_the_library_of_each_update_the_summary_and_the_report_are_artefacts(usual: Shown) -> None:
    names = [f"library/update_{n:04}.json" for n in range(4)]
    assert usual.artefacts(usual.parent, "library") == names
    library = json.loads(usual.text(names[-1]))
    assert library["experiences"][0]["text"] == ADVICE
    assert "0.917" in usual.text("summary.txt")
    page = usual.text("report.html")
    assert page.startswith("<!DOCTYPE html>")
    assert ADVICE in page


def test_student_candidates_and_result_are_child_runs_with_scores_of_one_unit(usual: Shown) -> None:
    assert set(usual.children) >= {"student", "result"}
    assert {re.sub(r" \d+$", "", name) for name in usual.children} <= {
        "student", "candidate", "result"
    }  # fmt: skip
    scores = {name: run.data.metrics["validation_score"] for name, run in usual.children.items()}
    assert (scores["student"], scores["result"]) == (pytest.approx(4 / 12), pytest.approx(11 / 12))


def test_autolog_before_the_import_of_this_package_shows_a_run_too(tmp_path: Path) -> None:
    found = shown(tmp_path, "autolog-first")
    assert found.parent.info.status == "FINISHED"
    assert len(found.series("training_score")) == 4
    assert "report.html" in found.artefacts(found.parent)


def test_a_compile_that_fails_is_a_failed_run(tmp_path: Path) -> None:
    found = shown(tmp_path, "fails")
    assert "gave no score to any of the first 3 rollouts" in found.output
    assert found.parent.info.status == "FAILED"


def test_without_autolog_nothing_is_logged(tracked: Any) -> None:
    learned(epochs=1)
    assert tracked.search_runs(["0"]) == []


def test_the_second_compile_in_the_run_that_the_user_has_opened_is_a_child_of_it(
    tmp_path: Path,
) -> None:
    found = shown(tmp_path, "twice")
    run, second = found.parent, found.children["compile 2"]
    assert (run.info.run_name, run.info.status) == ("mine", "FINISHED"), found.output
    assert (run.data.params["tfgrpo.seed"], second.data.params["tfgrpo.seed"]) == ("7", "8")
    assert second.info.status == "FINISHED"
    assert "report.html" in found.artefacts(second)
    parents = [each.data.tags.get("mlflow.parentRunId") for each in found.runs]
    assert parents.count(second.info.run_id) == parents.count(run.info.run_id) - 1 >= 2


def test_a_server_that_refuses_is_one_line_in_the_log_and_the_result_is_the_same(
    tmp_path: Path,
) -> None:
    found = shown(tmp_path, "gone")
    assert f"learned ['{ADVICE}']" in found.output
    assert found.output.count("MLflow raised NotImplementedError") == 1
