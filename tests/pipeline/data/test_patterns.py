"""Patterns find the files that they name, in natural order, and say which match nothing."""

from pathlib import Path

import pytest

from pipeline.data.patterns import expand_shards


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for name in ("2.tar", "10.tar", "1.tar", "a{1}.tar", "b[0].tar", "b0.tar", "00007.tar"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("1.tar", ["1.tar"]),
        ("[0-9]*.tar", ["1.tar", "2.tar", "00007.tar", "10.tar"]),
        ("{1..2}.tar", ["1.tar", "2.tar"]),
        ("{00007,10}.tar", ["00007.tar", "10.tar"]),
        ("{1,b}?.tar", ["10.tar", "b0.tar"]),
        ("a{1}.tar", ["a{1}.tar"]),
        ("b[0].tar", ["b[0].tar"]),
        (["2.tar", "?.tar"], ["1.tar", "2.tar"]),
    ],
)
def test_patterns(shards: Path, pattern: str | list[str], expected: list[str]) -> None:
    if isinstance(pattern, list):
        found = expand_shards([f"{shards}/{one}" for one in pattern])
    else:
        found = expand_shards(f"{shards}/{pattern}")
    assert found == [shards / name for name in expected]


@pytest.mark.parametrize("pattern", ["3.tar", "x*.tar", "{1..3}.tar", "no/{1,2}.tar", "1.tar/2"])
def test_a_pattern_without_match_is_named(shards: Path, pattern: str) -> None:
    with pytest.raises(FileNotFoundError) as error:
        expand_shards([f"{shards}/1.tar", f"{shards}/{pattern}"])
    assert pattern in str(error.value)
