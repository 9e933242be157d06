from __future__ import annotations

import numpy as np
import pytest

from pipeline import selection
from pipeline.sections import Split
from pipeline.selection import PoolFile, definition, keep

NEAR = {
    "a": [np.array([True, False, False, True]), np.array([], bool), np.array([False, True, False])],
    "b": [
        np.array([False, False, True, True]),
        np.array([], bool),
        np.array([False, False, False]),
    ],
}
SPLITS = {
    "full": Split(all=True),
    "near-a": Split(near=["a"]),
    "near-b-a": Split(near=["b", "a"]),
    "control": Split.model_validate({"random": {"like": "near-a", "seed": 5}}),
    "control-of-control": Split.model_validate({"random": {"like": "control", "seed": 6}}),
}


def _files() -> list[PoolFile]:
    return [
        PoolFile(len(rows), lambda test, i=i: NEAR[test][i]) for i, rows in enumerate(NEAR["a"])
    ]


def _kept(name: str) -> list[list[int]]:
    return [np.flatnonzero(rows).tolist() for rows in keep(SPLITS, name, _files())]


def test_what_each_definition_keeps() -> None:
    assert _kept("full") == [[0, 1, 2, 3], [], [0, 1, 2]]
    assert _kept("near-a") == [[1, 2], [], [0, 2]]
    assert _kept("near-b-a") == [[1], [], [0, 2]]


@pytest.mark.parametrize("name", ["control", "control-of-control"])
def test_a_control_has_the_size_of_its_split_and_is_the_same_every_time(name: str) -> None:
    assert sum(map(len, _kept(name))) == 4
    assert _kept(name) == _kept(name)


def test_a_control_is_a_uniform_sample() -> None:
    counts = np.zeros(7)
    for seed in range(3000):
        splits = {**SPLITS, "c": Split.model_validate({"random": {"like": "near-a", "seed": seed}})}
        counts += np.concatenate(list(keep(splits, "c", _files())))
    # Each of 7 rows is kept with probability 4/7; five standard deviations.
    assert np.abs(counts - 3000 * 4 / 7).max() < 5 * np.sqrt(3000 * 4 / 7 * 3 / 7)


def test_different_seeds_give_different_controls() -> None:
    files = [PoolFile(1000, lambda test: np.zeros(1000, bool))]
    splits = {"full": Split(all=True), "half": Split(near=["a"])}
    half = [PoolFile(1000, lambda test: np.arange(1000) % 2 == 0)]
    chosen = []
    for seed in (0, 1):
        splits["c"] = Split.model_validate({"random": {"like": "half", "seed": seed}})
        chosen.append(next(keep(splits, "c", half)))
    assert len(files) == 1
    assert chosen[0].sum() == chosen[1].sum() == 500
    assert (chosen[0] != chosen[1]).any()


def test_a_definition_names_test_sets_but_not_splits() -> None:
    assert definition(SPLITS, "control") == {
        "random": {"like": {"near": ["a"]}, "seed": 5},
    }
    assert definition(SPLITS, "near-b-a") == {"near": ["a", "b"]}
    assert selection.tests_of(SPLITS, "control-of-control") == ["a"]
    assert selection.tests_of(SPLITS, "full") == []
