"""Databases of MLflow. Making one takes seconds, so each is a copy of the first of its process."""

import functools
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow


@functools.cache
def _empty() -> bytes:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "mlflow.db"
        mlflow.MlflowClient(f"sqlite:///{file}").search_experiments()
        return file.read_bytes()


def database_in(folder: Path) -> str:
    """The tracking URI of a new database in the folder, without runs."""
    file = folder / "mlflow.db"
    file.write_bytes(_empty())
    return f"sqlite:///{file}"
