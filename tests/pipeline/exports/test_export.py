"""`simgap export` on a real study; its files are read as those read them that they are for."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from pipeline import artifacts, export, submit
from pipeline.layout import POOL, Layout
from tests.pipeline import small
from tests.pipeline.exports.datacomp import as_datacomp

RUN = Path("runs/small")
TARS = [Path(f"pool/{index:05d}.tar") for index in range(3)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study until its masks. Not to be changed."""
    study = small.make(tmp_path_factory.mktemp("export"))
    values = yaml.safe_load(study.experiment.read_text())
    values["splits"]["plus"] = {"near": ["sketch"], "plus_reference": True}
    study.experiment.write_text(yaml.safe_dump(values, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(study.folder)
        assert submit.main(["small.yaml", "--until", "mask", "--cluster", "inline"]) == 0
    return study.folder


@pytest.fixture
def study(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(finished)
    return finished


@pytest.fixture
def own(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that may be spoilt."""
    shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def _kept(split: str, keep: bool = True) -> list[str]:
    """The keys of the rows that a split keeps, or of the others."""
    layout, keys = Layout(RUN), list[str]()
    mask = artifacts.read(layout.mask(split), artifacts.MASK)
    for index in range(3):
        found = artifacts.read(layout.embeddings(POOL, index), artifacts.EMBEDDINGS)
        keys += found.text("key", artifacts.keep_of(mask, index) == keep)
    return keys


def _export(*words: object) -> int:
    return export.main([*map(str, words), "--workers", "1"])


def _error(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert _export(*words) == 2
    return capsys.readouterr().err


def test_all_forms_select_the_same_samples(study: Path, tmp_path: Path) -> None:
    kept = _kept("sketch-pruned")
    assert 0 < len(kept) < 72
    for form in export.FORMS:
        assert _export("small.yaml", "sketch-pruned", "--to", form, "--out", tmp_path / form) == 0
    lists = {path.name: path.read_text().split() for path in (tmp_path / "list").iterdir()}
    assert sorted(lists) == ["00000.txt", "00001.txt", "00002.txt"]
    assert [key for name in sorted(lists) for key in lists[name]] == kept
    assert all(key.startswith(name[:5]) for name, keys in lists.items() for key in keys)
    table = pd.read_parquet(tmp_path / "parquet")
    assert table["key"].tolist() == kept
    assert (table["shard"] == table["key"].str[:5] + ".tar").all()
    assert list(as_datacomp(tmp_path / "datacomp", TARS)) == kept
    assert list(_as_clip_ood(tmp_path / "clip-ood")) == kept


def _as_clip_ood(img_file: Path) -> Iterator[str]:
    """What clip-ood keeps: `are_files_selected` and `process` of its subsample_dataset.py."""
    img_list = np.load(img_file, allow_pickle=True)
    img_set = set(img_list.ravel()[:15_000_000])
    for tar in TARS:
        with tarfile.open(tar, mode="r|*") as stream:
            roots = [".".join(member.name.split(".")[:-1]) for member in stream]
        for root in dict.fromkeys(roots):
            if int(root) in img_set:
                yield root


def test_uids_are_found_by_several_processes(study: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        words = ["small.yaml", "full", "--to", "datacomp", "--out", str(tmp_path / str(workers))]
        assert export.main([*words, "--workers", str(workers)]) == 0
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    assert len(np.load(tmp_path / "1")) == 72


def test_it_says_what_it_wrote_and_what_is_not_in_it(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _export("runs/small", "plus", "--to", "clip-ood") == 0
    printed = capsys.readouterr().out
    kept = len(_kept("plus"))
    out = own / "runs/small/exports/plus.clip-ood.npy"
    assert f"plus: {kept} of 72 images of the pool, written in " in printed
    assert str(out) in printed
    assert "also see the reference's images, with the caption 'a photo of a {}'" in printed
    assert "They are no images of the pool and not in this export" in printed
    assert len(np.load(out)) == kept


def _write_json(key: str, meta: bytes) -> None:
    """Put other bytes in the place of a sample's JSON, so that nobody notices from outside."""
    tar = Path(f"pool/{key[:5]}.tar")
    before = tar.stat()
    with tarfile.open(tar) as archive:
        member = archive.getmember(f"{key}.json")
    assert len(meta) <= member.size
    data = bytearray(tar.read_bytes())
    data[member.offset_data : member.offset_data + member.size] = meta.ljust(member.size)
    tar.write_bytes(data)
    os.utime(tar, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        (b"{}", "has no uid: neither its embeddings file nor the JSON in its tar has one"),
        (b"{", "has no uid"),
        (b"[1]", "has no uid"),
        (b'{"uid": 12}', "has the uid '12', expected 128 bits as 32 hexadecimal digits"),
        (b'{"uid": "xyz"}', "has the uid 'xyz'"),
    ],
)
def test_a_sample_without_a_good_uid(
    own: Path, capsys: pytest.CaptureFixture[str], meta: bytes, message: str
) -> None:
    key, gone = _kept("sketch-pruned")[7], _kept("sketch-pruned", keep=False)[2]
    _write_json(gone, meta)  # it is not kept, so its uid does not matter
    assert _export("small.yaml", "sketch-pruned", "--to", "datacomp") == 0
    _write_json(key, meta)
    error = _error(capsys, "small.yaml", "sketch-pruned", "--to", "datacomp", "--out", "x.npy")
    assert f"{key[:5]}.tar: {key} {message}" in error
    assert not Path("x.npy").exists()


def test_a_uid_that_a_sample_shares_with_one_that_is_not_kept(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, gone = _kept("sketch-pruned")[7], _kept("sketch-pruned", keep=False)[2]
    _write_json(gone, json.dumps({"uid": small.uid(key)}).encode())
    error = _error(capsys, "small.yaml", "sketch-pruned", "--to", "datacomp")
    first, second = sorted([key, gone])
    named = f"{first[:5]}.tar: {first} and {second[:5]}.tar: {second} have the same uid"
    assert named in error


def _mapping(keys: list[str], path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame({"key": keys, "uid": [small.uid(key) for key in keys]} | columns)
    table.to_parquet(path)
    return path


def test_uids_that_are_declared(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = _kept("full")
    words = ["small.yaml", "sketch-pruned", "--to", "datacomp"]
    assert _export(*words, "--out", tmp_path / "from-json") == 0
    one = _mapping(keys[::-1], tmp_path / "uids.parquet")
    for index in range(3):
        mine = [key for key in keys if key.startswith(f"{index:05d}")]
        _mapping(mine, tmp_path / f"folder/{index:05d}.parquet")
    for place in (one, tmp_path / "folder"):
        out = tmp_path / f"from-{place.name}"
        assert _export(*words, "--out", out, "--uids", place) == 0
        assert out.read_bytes() == (tmp_path / "from-json").read_bytes()
    kept = _kept("sketch-pruned")
    bad = _mapping([key for key in keys if key != kept[3]], tmp_path / "bad.parquet")
    assert f"{kept[3]} has no uid in {bad}" in _error(capsys, *words, "--uids", bad)
    bad = _mapping([*keys, keys[0]], bad, uid=[*map(small.uid, keys), small.uid("other")])
    expected = f"bad.parquet: row 72: another uid for the key '{keys[0]}'; a column `shard` would"
    assert expected in _error(capsys, *words, "--uids", bad)
    pd.DataFrame({"key": keys}).to_parquet(bad)
    assert "bad.parquet: no column 'uid'; found key" in _error(capsys, *words, "--uids", bad)
    bad.write_bytes(b"nothing")
    assert "bad.parquet: can't be read as Parquet" in _error(capsys, *words, "--uids", bad)
    (tmp_path / "folder/00001.parquet").unlink()
    error = _error(capsys, *words, "--uids", tmp_path / "folder")
    assert "No such file or directory" in error
    assert "00001.parquet" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["small.yaml", "fulll", "--to", "list"], "no split 'fulll'; did you mean 'full'?"),
        (["small.yml", "full", "--to", "list"], "small.yml: no such file"),
        (["pool", "full", "--to", "list"], "pool is no run"),
        (["small.yaml", "full", "--to", "list", "--uids", "x"], "--uids is for --to datacomp"),
        (["small.yaml", "full", "--to", "datacomp", "--uids", "x"], "--uids x: no such file or folder"),
        (["small.yaml", "full", "--to", "list", "--out", "pool"], "pool is there already; give --replace"),
        (["small.yaml", "full", "--to", "list", "--out", "pool", "--replace"], "pool is no export, it holds 0000"),
        (["small.yaml", "full", "--to", "parquet", "--out", "pool", "--replace"], "pool is a folder: not replaced"),
        (["small.yaml", "sketch-pruned", "tests.sketch.threshold=0.9", "--to", "list"], "the mask of sketch-pruned is stale"),
        (["small.yaml", "new", "splits.new={near: [photo, sketch]}", "--to", "list"], "the mask of new is missing (not yet run): run simgap submit"),
    ],
)  # fmt: skip
def test_typing_the_wrong_thing(
    study: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert message in _error(capsys, *words)
    assert len(list(Path("pool").iterdir())) == 3


def test_an_export_is_replaced_only_if_asked(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for form in ("list", "parquet"):
        words = ("small.yaml", "full", "--to", form, "--out", form)
        assert _export(*words) == 0
        assert "is there already" in _error(capsys, *words)
        assert _export("small.yaml", "sketch-pruned", *words[2:], "--replace") == 0
    assert len(pd.read_parquet("parquet")) == len(_kept("sketch-pruned"))
    lines = sum(len(path.read_text().split()) for path in Path("list").iterdir())
    assert lines == len(_kept("sketch-pruned"))
