"""Artefacts refuse what they should not hold, and notice what has happened to them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hpc.stage import OutputError
from pipeline import artifacts

ATTRIBUTES = {
    "model": "m",
    "pretrained": "p",
    "precision": "fp32",
    "preprocessing": "{}",
    "sources": [{"path": "/a/ü.tar"}],
    "classes": None,
    "read": 5,
    "faults": [],
}


def _arrays(rows: int) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    return {
        "embedding": generator.standard_normal((rows, 16)).astype(np.float16),
        "key": artifacts.encode_text([f"ключ {row}" for row in range(rows)]),
        "shard": np.zeros(rows, np.int32),
        "skipped_key": artifacts.encode_text(["ä\udcff"]),
        "skipped_reason": artifacts.encode_text(["no caption"]),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "00000.h5"
    artifacts.write(path, artifacts.EMBEDDINGS, "d1", _arrays(700), ATTRIBUTES)
    return path


@pytest.mark.parametrize("rows", [0, 1, 700])
def test_what_is_written_is_read(tmp_path: Path, rows: int) -> None:
    path = tmp_path / "a.h5"
    arrays = _arrays(rows)
    artifacts.write(path, artifacts.EMBEDDINGS, "d1", arrays, ATTRIBUTES)
    found = artifacts.read(path, artifacts.EMBEDDINGS)
    assert found.digest == "d1"
    assert found.attributes == ATTRIBUTES
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
    assert found.text("skipped_key") == ["ä\udcff"]
    assert found.text("key") == [f"ключ {row}" for row in range(rows)]
    assert found.text("key", np.arange(rows)[:1]) == [f"ключ {row}" for row in range(rows)][:1]
    assert artifacts.verify(path, artifacts.EMBEDDINGS, "d1").keys() == arrays.keys()


def test_h5py_reads_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    artifacts.write(path, artifacts.EMBEDDINGS, "d", _arrays(3000), ATTRIBUTES)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["embedding"][:], _arrays(3000)["embedding"])
        assert file["key"].asstr()[3] == "ключ 3"
        assert file["embedding"].chunks is None
        assert file["embedding"].id.get_offset() % 4096 == 0  # it is large


def _flip(path: Path, name: str) -> None:
    with h5py.File(path) as file:
        offset = file[name].id.get_offset()
    data = bytearray(path.read_bytes())
    data[offset + 3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: _flip(path, "embedding"), "dataset embedding is damaged"),
        (lambda path: _flip(path, "skipped_reason"), "dataset skipped_reason is damaged"),
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(b""), "can't be read"),
        (lambda path: os.truncate(path, path.stat().st_size // 2), "can't be read|ends after"),
    ],
)
def test_damage_is_found(path: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(path)
    with pytest.raises(OutputError, match=message):
        artifacts.verify(path, artifacts.EMBEDDINGS, "d1")


def test_another_digest_or_kind_is_refused(path: Path) -> None:
    with pytest.raises(OutputError, match="made for digest d1, expected d2"):
        artifacts.verify(path, artifacts.EMBEDDINGS, "d2")
    with pytest.raises(OutputError, match="expected a file of mask, found 'embeddings'"):
        artifacts.read(path, artifacts.MASK)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embedding": np.zeros((700, 16), np.float32)}, "embedding: expected float16"),
        ({"shard": np.zeros(699, np.int32)}, r"shard: expected int32 .* found int32 \(699,\)"),
        ({"colour": np.zeros(700)}, "unknown .'colour'."),
    ],
)
def test_arrays_of_another_schema_are_not_written(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "a.h5"
    with pytest.raises(ValueError, match=message):
        artifacts.write(path, artifacts.EMBEDDINGS, "d", _arrays(700) | change, ATTRIBUTES)
    with pytest.raises(ValueError, match=r"lacks \['read'\]"):
        rest = {name: value for name, value in ATTRIBUTES.items() if name != "read"}
        artifacts.write(path, artifacts.EMBEDDINGS, "d", _arrays(7), rest)
    assert os.listdir(tmp_path) == []


def test_the_fingerprint_is_of_the_contents(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.h5"
    artifacts.write(other, artifacts.EMBEDDINGS, "d2", _arrays(700), {**ATTRIBUTES, "read": 9})
    first = artifacts.verify(path, artifacts.EMBEDDINGS, "d1")
    assert first == artifacts.verify(other, artifacts.EMBEDDINGS, "d2")
    assert artifacts.hash_array(_arrays(700)["embedding"]) == first["embedding"]


def test_masks_unpack_file_by_file(tmp_path: Path) -> None:
    rows = [np.array([True, False, True]), np.zeros(0, bool), np.arange(17) % 3 == 0]
    path = tmp_path / "mask.h5"
    artifacts.write(
        path,
        artifacts.MASK,
        "d",
        {
            "keep": np.concatenate([np.packbits(one) for one in rows]),
            "rows": np.array([3, 0, 17]),
        },
        {"split": "s", "definition": "", "rows_total": 20, "kept": 8, "plus_reference": None},
    )
    mask = artifacts.read(path, artifacts.MASK)
    for index, one in enumerate(rows):
        np.testing.assert_array_equal(artifacts.keep_of(mask, index), one)


def test_kill_9_while_writing_leaves_nothing_that_opens(tmp_path: Path) -> None:
    code = (
        "import sys, os, signal, h5py; from pathlib import Path\n"
        "from pipeline import artifacts; from tests.pipeline import test_artifacts as t\n"
        "hash_ = artifacts._hash\n"
        "def die(array):\n"
        "    if array.dtype.kind == 'S': os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return hash_(array)\n"
        "artifacts._hash = die\n"
        "artifacts.write(Path(sys.argv[1]), artifacts.EMBEDDINGS, 'd', t._arrays(700), t.ATTRIBUTES)\n"
    )
    path = tmp_path / "a.h5"
    process = subprocess.Popen([sys.executable, "-c", code, str(path)])
    assert process.wait() == -signal.SIGKILL
    left = list(tmp_path.iterdir())
    assert path not in left
    assert len(left) == 1  # the hidden temporary
    with pytest.raises(OSError, match="open"):
        h5py.File(left[0])
    started = time.time()
    artifacts.write(path, artifacts.EMBEDDINGS, "d", _arrays(7), ATTRIBUTES)
    assert time.time() - started < 5
