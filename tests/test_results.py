"""What a run reports: values that are JSON, and that need nothing of ours when pickled."""

import io
import json
import pickle
from typing import Any

import cloudpickle
import dspy
import pytest
from test_final_choice import cases, compiled, world


@pytest.fixture(scope="module")
def results() -> Any:
    """A report with demos, a test set, finalists and tried advice."""
    with dspy.context(lm=None, adapter=None, callbacks=[]):
        return compiled(world(), max_demos=2, testset=cases(4, 700)).detailed_results


def test_the_results_of_a_run_are_json_and_a_copy(results: Any) -> None:
    values = results.to_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    for name in ("updates", "finalists", "tried", "test", "usage", "library", "schedule"):
        assert values[name], name
    values["updates"][0]["groups"].clear()
    assert results.to_dict() != values


class BuiltinsOnly(pickle.Unpickler):
    """Refuses whatever an interpreter without this package does not have."""

    def find_class(self, module: str, name: str) -> Any:
        assert module == "builtins", f"{module}.{name} is needed to read it"
        return super().find_class(module, name)


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_pickled_results_are_read_without_this_package_as_a_dict(
    pickler: Any, results: Any
) -> None:
    read = BuiltinsOnly(io.BytesIO(pickler.dumps(results))).load()
    assert type(read) is dict
    assert read == results.to_dict()
