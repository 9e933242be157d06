"""Which tar a row is in; above all, when to refuse."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.matching import NoMatchError, match_rows
from tests.pipeline.small import write_tar


def _tars(folder: Path, contents: dict[str, Sequence[str]]) -> list[Path]:
    for name, keys in contents.items():
        members = [(f"{key}.{suffix}", b"x") for key in keys for suffix in ("jpg", "txt")]
        write_tar(folder / name, members)
    return [folder / name for name in contents]


def _match(
    tars: list[Path], keys: Sequence[str], named: Sequence[Any] | None = None
) -> tuple[list[int], str]:
    match = match_rows(keys, named, tars, range(len(tars)))
    return match.tars, match.by


def test_keys_of_img2dataset_begin_with_their_tars_number(tmp_path: Path) -> None:
    tars = _tars(tmp_path, {"00003.tar": ["000030000", "000030007"], "00012.tar": ["000120001"]})
    keys = ["000120001", "000030007", "000120009", "000030000"]
    assert _match(tars, keys) == ([1, 0, 1, 0], "key prefix")
    assert _match(tars, [f"./{key}" for key in keys]) == ([1, 0, 1, 0], "key prefix")


@pytest.mark.parametrize("file", [0, 1])
def test_keys_that_begin_anew_in_each_tar_are_not_mixed_up(tmp_path: Path, file: int) -> None:
    """Each of two files has the rows of one tar; all keys begin with the first tar's number."""
    keys = [f"{number:09d}" for number in range(5)]
    tars = _tars(tmp_path, {"00000.tar": keys, "00001.tar": keys})
    witnesses = range(file, 2, 2)
    if file == 0:  # the other file's task sees that prefixes mean nothing, and the study stops
        assert match_rows(keys, None, tars, witnesses).tars == [0] * 5
        return
    with pytest.raises(NoMatchError) as error:
        match_rows(keys, None, tars, witnesses)
    assert "00001.tar begins with the key '000000000'" in str(error.value)
    assert "00000.tar begins with '000000000' and 00001.tar with '000000000'" in str(error.value)
    assert "pool.embeddings.shard" in str(error.value)
    assert match_rows(keys, ["00001.tar"] * 5, tars, witnesses).tars == [1] * 5


def test_keys_that_rise_from_tar_to_tar_tell_their_tar(tmp_path: Path) -> None:
    contents = {"a.tar": ["k2", "k3"], "b.tar": [], "c.tar": ["k9", "k10"], "d.tar": ["k11"]}
    tars = _tars(tmp_path, contents)
    keys = ["k10", "k2", "k3", "k11", "k9", "k12"]
    assert _match(tars, keys) == ([2, 0, 0, 3, 2, 3], "first keys")
    with pytest.raises(NoMatchError, match="the key 'k1' of row 1 is before the first, 'k2'"):
        _match(tars, ["k9", "k1"])


def test_keys_that_do_not_rise_are_refused(tmp_path: Path) -> None:
    tars = _tars(tmp_path, {"a.tar": ["zz"], "b.tar": ["aa"]})
    with pytest.raises(NoMatchError, match=r"a\.tar begins with 'zz' and b\.tar with 'aa'"):
        _match(tars, ["aa", "zz"])


@pytest.mark.parametrize(
    "named",
    [
        ["00001.tar", "00000.tar"],
        ["00001", "00000"],
        [1, 0],
        ["/data/pool/00001.tar", "/data/pool/00000.tar"],
    ],
)
def test_a_column_names_the_tar(tmp_path: Path, named: list[Any]) -> None:
    tars = _tars(tmp_path, {"00000.tar": ["a"], "00001.tar": ["a"]})
    assert _match(tars, ["a", "a"], named) == ([1, 0], "column")


def test_a_column_that_names_no_tar_is_refused(tmp_path: Path) -> None:
    tars = _tars(tmp_path, {"00000.tar": ["a"], "00001.tar": ["a"]})
    with pytest.raises(NoMatchError, match=r"row 1: no tar '0001\.tar' in the pool; did you mean"):
        _match(tars, ["a", "a"], ["00000.tar", "0001.tar"])
    (tmp_path / "more").mkdir()
    twice = tars + _tars(tmp_path / "more", {"00001.tar": ["a"]})
    with pytest.raises(NoMatchError, match="have the same name"):
        _match(twice, ["a", "a"], ["00000.tar", "00001.tar"])
