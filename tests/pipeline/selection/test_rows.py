"""Every definition of a split, in every form, against the definition on whole arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from pipeline.experiment.splits import Split
from pipeline.selection.definitions import definition, in_words, needs_duplicates
from pipeline.selection.definitions import tests_of as sets_of
from pipeline.selection.pool_files import in_threads
from pipeline.selection.rows import PoolFile, Selection, keep

SIZES = (40, 0, 1, 63)
TOTAL = sum(SIZES)
TESTS = ("a", "b", "c")
_RNG = np.random.default_rng(11)
NEAR = {test: _RNG.random(TOTAL) < 0.3 for test in TESTS}
# Few values, so that there are ties within and across files.
BEST = {test: (_RNG.integers(-8, 9, TOTAL) / 16).astype(np.float32) for test in TESTS}
DUPLICATE = _RNG.random(TOTAL) < 0.4

SPLITS = {
    name: Split.model_validate(values)
    for name, values in {
        "full": "all",
        "near-a": {"near": ["a"]},
        "near-b-a": {"near": ["b", "a"]},
        "least-a": {"near": {"tests": ["a"], "keep": 30}},
        "least-all": {"near": {"tests": ["a", "b", "c"], "keep": 50}},
        "most-b": {"far": {"tests": ["b"], "keep": 17}},
        "core": {"far": {"tests": ["c", "a", "b"], "keep": 50}},
        "whole": {"far": {"tests": ["a"], "keep": TOTAL}},
        "control": {"random": {"like": "near-a", "seed": 5}},
        "control-of-control": {"random": {"like": "control", "seed": 6}},
        "ten": {"random": {"keep": 10, "seed": 1}},
        "either": {"union": ["near-a", "least-a", "most-b"]},
        "both": {"intersection": ["near-a", "core"]},
        "minus": {"difference": ["full", "near-a", "most-b"]},
        "not-core": {"complement": "core"},
        "dedup": {"deduplicated": True},
        "near-in": {"near": ["a"], "base": "dedup"},
        "least-in": {"near": {"tests": ["a", "c"], "keep": 20}, "base": "dedup"},
        "core-in": {"far": {"tests": ["a", "b", "c"], "keep": 20}, "base": "dedup"},
        "random-in": {"random": {"like": "core-in", "seed": 2}, "base": "dedup"},
        "ten-in": {"random": {"keep": 10}, "base": "core"},
        "either-in": {"union": ["near-a", "most-b"], "base": "dedup"},
        "both-in": {"intersection": ["near-a", "core"], "base": "dedup"},
        "minus-in": {"difference": ["full", "near-a"], "base": "dedup"},
        "not-core-in": {"complement": "core-in", "base": "dedup"},
        "dedup-in": {"deduplicated": True, "base": "core"},
        "all-in": {"all": True, "base": "core", "plus_reference": True},
        "deep": {"far": {"tests": ["c"], "keep": 5}, "base": "least-in"},
    }.items()
}


def _by_file(flat: Any) -> list[Any]:
    return np.split(flat, np.cumsum(SIZES)[:-1])


def _files() -> list[PoolFile]:
    def file(index: int) -> PoolFile:
        def columns(table: dict[str, Any]) -> Any:
            def read(tests: Sequence[str]) -> list[Any]:
                return [_by_file(table[test])[index] for test in tests]

            return read

        return PoolFile(
            SIZES[index], columns(NEAR), columns(BEST), lambda: _by_file(DUPLICATE)[index]
        )

    return [file(index) for index in range(len(SIZES))]


def _kept(name: str, splits: dict[str, Split] = SPLITS) -> Any:
    found = list(keep(splits, name, _files()))
    assert [len(rows) for rows in found] == list(SIZES)
    return np.concatenate(found)


def _defined(name: str) -> Any:
    """What a split keeps, by its definition; nothing can be said here of a random one."""
    split = SPLITS[name]
    base = np.ones(TOTAL, bool) if split.base is None else _defined(split.base)
    if split.pruned_for:
        return base & ~np.any([NEAR[test] for test in split.pruned_for], axis=0)
    if split.cut:
        best = np.max([BEST[test] for test in split.cut.tests], axis=0)
        rows = np.flatnonzero(base)
        order = np.lexsort((rows, -best[rows] if split.far else best[rows]))
        chosen = np.zeros(TOTAL, bool)
        chosen[rows[order[: split.cut.keep]]] = True
        return chosen
    if split.union:
        return base & np.any([_defined(one) for one in split.union], axis=0)
    if split.intersection:
        return base & np.all([_defined(one) for one in split.intersection], axis=0)
    if split.difference:
        first, *others = map(_defined, split.difference)
        return base & first & ~np.any(others, axis=0)
    if split.complement:
        return base & ~_defined(split.complement)
    if split.deduplicated:
        return base & ~DUPLICATE
    assert split.all
    return base


@pytest.mark.parametrize("name", [name for name, split in SPLITS.items() if not split.random])
def test_what_each_definition_keeps(name: str) -> None:
    found = _kept(name)
    np.testing.assert_array_equal(found, _defined(name))
    assert found.any()
    assert name in ("full", "whole") or not found.all()


def test_threads_keep_the_same() -> None:
    with in_threads(3) as run:
        selection = Selection(SPLITS, _files(), run)
        for name in SPLITS:
            found = np.concatenate(list(run(selection.rows(name), range(len(SIZES)))))
            np.testing.assert_array_equal(found, _kept(name))


@pytest.mark.parametrize(
    ("name", "size"),
    [("control", "near-a"), ("control-of-control", "near-a"), ("ten", 10), ("random-in", 20), ("ten-in", 10)],
)  # fmt: skip
def test_a_random_split_has_its_size_lies_in_its_base_and_is_the_same_every_time(
    name: str, size: str | int
) -> None:
    found = _kept(name)
    assert found.sum() == (_kept(size).sum() if isinstance(size, str) else size)
    base = SPLITS[name].base
    assert base is None or not (found & ~_defined(base)).any()
    np.testing.assert_array_equal(found, _kept(name))


@pytest.mark.parametrize("base", [None, "dedup"])
def test_a_random_split_is_a_uniform_sample(base: str | None) -> None:
    counts = np.zeros(TOTAL)
    draws, size = 600, 20
    for seed in range(draws):
        values = {"random": {"keep": size, "seed": seed}, "base": base}
        counts += _kept("c", {**SPLITS, "c": Split.model_validate(values)})
    candidates = np.ones(TOTAL, bool) if base is None else _defined(base)
    share = size / candidates.sum()
    assert not counts[~candidates].any()
    # Five standard deviations of each row's count.
    worst = np.abs(counts[candidates] - draws * share).max()
    assert worst < 5 * np.sqrt(draws * share * (1 - share))


def test_different_seeds_give_different_samples() -> None:
    other = {"random": {"like": "near-a", "seed": 6}}
    found = _kept("c", {**SPLITS, "c": Split.model_validate(other)})
    assert found.sum() == _kept("control").sum()
    assert (found != _kept("control")).any()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"far": {"tests": ["a"], "keep": TOTAL + 1}}, f"split big: {TOTAL + 1} rows are to be kept, but there are {TOTAL}"),
        ({"near": {"tests": ["a"], "keep": 2_000_000}, "base": "core"}, "split big, within core: 2,000,000 rows are to be kept, but there are 50"),
        ({"random": {"keep": 51}, "base": "core"}, "split big, within core: 51 rows are to be kept, but there are 50"),
        ({"random": {"like": "full"}, "base": "core"}, f"split big, within core: {TOTAL} rows are to be kept, as many as full, but there are 50"),
    ],
)  # fmt: skip
def test_more_than_there_is_is_refused_with_the_numbers(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as error:
        _kept("big", {**SPLITS, "big": Split.model_validate(values)})
    assert str(error.value) == message


def test_more_rows_than_a_sample_can_be_drawn_from_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.selection.rows._MOST_ROWS", TOTAL - 1)
    assert _kept("random-in").sum() == 20
    with pytest.raises(ValueError, match=f"at most {TOTAL - 1} rows to draw from, found {TOTAL}"):
        _kept("ten")


def test_a_definition_names_test_sets_but_not_splits() -> None:
    assert definition(SPLITS, "control") == {"random": {"like": {"near": ["a"]}, "seed": 5}}
    assert definition(SPLITS, "near-b-a") == {"near": ["a", "b"]}
    assert definition(SPLITS, "core-in") == {
        "far": {"tests": ["a", "b", "c"], "keep": 20},
        "base": {"deduplicated": True},
    }
    assert definition(SPLITS, "minus") == {
        "difference": [
            {"all": True},
            [{"far": {"tests": ["b"], "keep": 17}}, {"near": ["a"]}],
        ]
    }
    assert definition(SPLITS, "not-core-in")["complement"] == definition(SPLITS, "core-in")


def test_an_order_without_meaning_is_no_other_definition() -> None:
    splits = {
        **SPLITS,
        "one": Split(union=["near-a", "core", "near-a"]),
        "two": Split(union=["core", "near-a"]),
        "three": Split(difference=["core", "near-a"]),
        "four": Split(difference=["near-a", "core"]),
    }
    assert definition(splits, "one") == definition(splits, "two")
    assert definition(splits, "three") != definition(splits, "four")


def test_the_reference_belongs_to_a_split_but_not_to_those_made_from_it() -> None:
    splits = {
        "plus": Split(near=["a"], plus_reference=True),
        "own": Split(near=["a"], plus_reference="a {}"),
        "control": Split.model_validate({"random": {"like": "plus"}}),
    }
    assert definition(splits, "plus") == {"near": ["a"], "plus_reference": "a photo of a {}"}
    assert definition(splits, "own") == {"near": ["a"], "plus_reference": "a {}"}
    assert definition(splits, "control") == {"random": {"like": {"near": ["a"]}, "seed": 0}}
    assert in_words(splits, "plus").endswith(", plus the reference's images")


def test_a_split_depends_on_what_the_splits_that_it_names_depend_on() -> None:
    assert sets_of(SPLITS, "control-of-control") == ["a"]
    assert sets_of(SPLITS, "full") == sets_of(SPLITS, "dedup") == sets_of(SPLITS, "ten") == []
    assert sorted(sets_of(SPLITS, "deep")) == ["a", "c"]
    assert sorted(sets_of(SPLITS, "either-in")) == ["a", "b"]
    with_duplicates = [name for name in SPLITS if needs_duplicates(SPLITS, name)]
    assert with_duplicates == [n for n in SPLITS if n == "dedup" or (n.endswith("-in") and n not in ("ten-in", "all-in"))] + ["deep"]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("near-b-a", "without images that are near to an image of b, a"),
        ("core-in", "the 20 images most similar to an image of a, b, c, within dedup"),
        ("least-a", "the 30 images least similar to an image of a"),
        ("ten", "10 random images (seed 1)"),
        ("random-in", "random images, as many as in core-in (seed 2), within dedup"),
        ("minus", "images of full that are not in near-a or most-b"),
        ("both", "images that are in near-a and core"),
        ("not-core", "images that are not in core"),
        ("dedup", "images that duplicate no earlier one"),
        ("all-in", "every usable image of the pool, within core, plus the reference's images"),
    ],
)
def test_a_definition_in_words(name: str, words: str) -> None:
    assert in_words(SPLITS, name) == words
