"""The tasks of the comparison: their examples and names."""

import hashlib
import json

import pytest
from tasks.simulated import load

DIGESTS = {"sim:easy": "9314f41eb08336e9", "sim:many+wrong-labels": "7204f17f0a837947"}


@pytest.mark.parametrize("name", DIGESTS)
def test_examples_are_those_that_published_results_were_made_with(name):
    task = load(name, seed=100)
    examples = [[e.toDict() for e in part] for part in (task.train, task.val, task.test)]
    assert hashlib.sha256(json.dumps(examples).encode()).hexdigest()[:16] == DIGESTS[name]


@pytest.mark.parametrize("name", ["sudoku", "easy", "sim:easy+no-such-thing"])
def test_an_unknown_name_is_refused_with_the_names_there_are(name):
    with pytest.raises(ValueError, match=r"there is none; pass one of sim:easy, sim:sparse"):
        load(name, seed=0)
