"""What each form refuses; on files written here, without a study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from pipeline import artifacts
from pipeline.exports.forms import Export
from pipeline.exports.selected import Selected
from pipeline.layout import POOL, Layout

Rows = Sequence[tuple[str, str, bool]]
"""Tar, key, keep."""


def _run(
    folder: Path, files: Sequence[Rows], uids: Sequence[str] = (), skipped: Sequence[str] = ()
) -> Selected:
    """Write the embeddings files and the mask of a split."""
    layout, done = Layout(folder / "run"), 0
    for index, rows in enumerate(files):
        tars = sorted({tar for tar, _, _ in rows})
        arrays = {
            "embedding": np.zeros((len(rows), 2), np.float16),
            "key": artifacts.encode_text([key for _, key, _ in rows]),
            "shard": np.array([tars.index(tar) for tar, _, _ in rows], np.int32),
            "skipped_key": artifacts.encode_text(list(skipped)),
            "skipped_reason": artifacts.encode_text(["duplicate key"] * len(skipped)),
        }
        if uids:
            arrays["uid"] = artifacts.encode_text(list(uids[done : done + len(rows)]))
        done += len(rows)
        attributes: dict[str, Any] = dict.fromkeys(artifacts.EMBEDDINGS.attributes)
        attributes["sources"] = [{"path": f"/data/{tar}"} for tar in tars]
        artifacts.write(
            layout.embeddings(POOL, index), artifacts.EMBEDDINGS, "d", arrays, attributes
        )
    keep = [np.array([kept for _, _, kept in rows], bool) for rows in files]
    artifacts.write(
        layout.mask("s"),
        artifacts.MASK,
        "d",
        {
            "keep": np.concatenate([np.packbits(one) for one in keep]),
            "rows": np.array(list(map(len, keep)), np.int64),
        },
        dict.fromkeys(artifacts.MASK.attributes) | {"kept": int(sum(map(np.sum, keep)))},
    )
    return Selected(layout, "s")


def _export(selected: Selected, form: str, out: Path) -> Path:
    Export(selected, out, lambda *_: None, lambda index: []).write(form)
    return out


def _refused(selected: Selected, form: str, tmp_path: Path) -> str:
    """The error; nothing may be left behind."""
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError) as error:
        _export(selected, form, tmp_path / "out" / "x")
    assert list((tmp_path / "out").iterdir()) == []
    return str(error.value)


TWO = [("0.tar", "07", True), ("0.tar", "08", False)], [("1.tar", "19", True), ("1.tar", "3", True)]
UID = "000000000000000000000000000000"


def test_numbers_are_sorted_over_files(tmp_path: Path) -> None:
    found = np.load(_export(_run(tmp_path, TWO), "clip-ood", tmp_path / "x.npy"))
    assert found.dtype == np.int64
    assert found.tolist() == [3, 7, 19]


def test_uids_of_a_column(tmp_path: Path) -> None:
    uids = [f"f{UID}1", "not kept, so never mind", f"f{UID}0", "0123456789abcdefFEDCBA9876543210"]
    found = np.load(_export(_run(tmp_path, TWO, uids), "datacomp", tmp_path / "x.npy"))
    assert found.dtype == np.dtype("u8,u8")
    assert found.tolist() == [
        (0x0123456789ABCDEF, 0xFEDCBA9876543210),
        (0xF << 60, 0),
        (0xF << 60, 1),
    ]
    table = pyarrow.parquet.read_table(
        _export(Selected(Layout(tmp_path / "run"), "s"), "parquet", tmp_path / "x.parquet")
    )
    assert table.to_pylist() == [
        {"shard": "0.tar", "key": "07", "uid": uids[0]},
        {"shard": "1.tar", "key": "19", "uid": uids[2]},
        {"shard": "1.tar", "key": "3", "uid": uids[3]},
    ]


@pytest.mark.parametrize(
    ("uid", "message"),
    [
        ("", "1.tar: 19 has no uid: "),
        (UID, f"1.tar: 19 has the uid '{UID}', expected 128 bits as 32 hexadecimal digits"),
        (f"0{UID}01", "1.tar: 19 has the uid "),
        (f"g{UID}0", "1.tar: 19 has the uid "),
        (f"0x{UID}", "1.tar: 19 has the uid "),
        (f"{UID} 0", "1.tar: 19 has the uid "),
    ],
)
def test_a_uid_that_is_no_128_bit_number(tmp_path: Path, uid: str, message: str) -> None:
    selected = _run(tmp_path, TWO, [f"{UID}01", "", uid, "also wrong"])
    assert _refused(selected, "datacomp", tmp_path).startswith(message)


@pytest.mark.parametrize(("first", "second"), [(0, 2), (1, 3)])
def test_a_uid_of_two_rows(tmp_path: Path, first: int, second: int) -> None:
    """Also if one of them is not kept: who reads the file would take it, too."""
    uids = [f"{UID}0{row}" for row in range(4)]
    uids[first] = uids[second]
    names = ["0.tar: 07", "0.tar: 08", "1.tar: 19", "1.tar: 3"]
    message = _refused(_run(tmp_path, TWO, uids), "datacomp", tmp_path)
    assert message.startswith(f"{names[first]} and {names[second]} have the same uid")


@pytest.mark.parametrize("key", ["a1", "", "-1", "1.5", "./000000001", "9223372036854775808", "٣"])
def test_a_key_that_is_no_number(tmp_path: Path, key: str) -> None:
    selected = _run(tmp_path, [[("0.tar", "1", True), ("0.tar", key, True)]])
    assert _refused(selected, "clip-ood", tmp_path).startswith(
        f"0.tar: {key}: the key is no number"
    )


@pytest.mark.parametrize("key", ["9223372036854775807", "0000000000000000000000000000000012"])
def test_a_key_that_is_a_long_number(tmp_path: Path, key: str) -> None:
    selected = _run(tmp_path, [[("0.tar", "1", True), ("0.tar", key, True), ("0.tar", "x", False)]])
    assert np.load(_export(selected, "clip-ood", tmp_path / "x.npy")).tolist() == [1, int(key)]


@pytest.mark.parametrize("again", ["000000001", "1"])
def test_keys_that_begin_anew_in_each_tar_are_not_mixed_up(tmp_path: Path, again: str) -> None:
    rows = [[("0.tar", "000000001", True)], [("1.tar", again, False)]]
    message = _refused(_run(tmp_path, rows), "clip-ood", tmp_path)
    assert message.startswith(f"0.tar: 000000001 and 1.tar: {again} have the same key")
    selected = Selected(Layout(tmp_path / "run"), "s")
    lists = _export(selected, "list", tmp_path / "lists")
    assert {path.name: path.read_text() for path in lists.iterdir()} == {
        "0.txt": "000000001\n",
        "1.txt": "",
    }
    table = pyarrow.parquet.read_table(_export(selected, "parquet", tmp_path / "x.parquet"))
    assert table.to_pylist() == [{"shard": "0.tar", "key": "000000001"}]


def test_a_key_of_which_a_tar_has_two_samples(tmp_path: Path) -> None:
    rows = [[("0.tar", "1", True), ("0.tar", "2", False)]]
    selected = _run(tmp_path, rows, skipped=["0.tar:1"])
    assert "0.tar: 1: two samples of the tar have this key" in _refused(
        selected, "clip-ood", tmp_path
    )
    other = _run(tmp_path / "other", rows, skipped=["0.tar:2", "1.tar:1"])
    assert np.load(_export(other, "clip-ood", tmp_path / "x.npy")).tolist() == [1]


def test_names_that_a_list_or_a_table_can_not_hold(tmp_path: Path) -> None:
    lines = _run(tmp_path / "lines", [[("0.tar", "a\nb", True)]])
    assert "can't be written, a line is a key" in _refused(lines, "list", tmp_path / "lines")
    octets = _run(tmp_path / "octets", [[("0.tar", "\udcff", True)]])
    assert "Parquet's texts are UTF-8" in _refused(octets, "parquet", tmp_path / "octets")
    assert (_export(octets, "list", tmp_path / "x") / "0.txt").read_bytes() == b"\xff\n"
    same = _run(tmp_path / "same", [[("0.a.tar", "1", True), ("0.b.tar", "2", True)]])
    assert "0.a.tar and 0.b.tar would share the list 0.txt" in _refused(
        same, "list", tmp_path / "same"
    )


def test_a_tar_whose_rows_are_in_several_files_has_one_list(tmp_path: Path) -> None:
    rows = [
        [("1.tar", "c", True), ("0.tar", "a", True), ("1.tar", "d", True)],
        [("0.tar", "b", True)],
    ]
    lists = _export(_run(tmp_path, rows), "list", tmp_path / "lists")
    assert (lists / "0.txt").read_text() == "a\nb\n"
    assert (lists / "1.txt").read_text() == "c\nd\n"


def test_embeddings_that_have_changed_since_the_mask(tmp_path: Path) -> None:
    selected = _run(tmp_path, TWO)
    path = selected.layout.embeddings(POOL, 1)
    path.write_bytes(selected.layout.embeddings(POOL, 0).read_bytes())
    _run(tmp_path / "longer", [TWO[0], [*TWO[1], ("1.tar", "x", True)]])
    longer = Layout(tmp_path / "longer" / "run").embeddings(POOL, 1)
    path.write_bytes(longer.read_bytes())
    assert "has 3 rows, but " in _refused(selected, "list", tmp_path)
