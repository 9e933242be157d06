"""Tars are read as open_clip_train reads them, and damage costs only what it touches."""

import gzip
import io
import os
import resource
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import webdataset
from open_clip_train.data import filter_no_caption_or_no_image, tarfile_to_samples_nothrow
from PIL import Image

from pipeline.artifacts import hash_file
from pipeline.data.rewriting import TarWriter, joined
from pipeline.data.tars import (
    END_OF_ARCHIVE,
    IMAGE_SUFFIXES,
    Sample,
    ShardIndex,
    index_shard,
    read_caption,
    read_span,
)


def jpeg(colour: str = "red", size: int = 16) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(file, "JPEG")
    return file.getvalue()


Members = list[tuple[str, bytes]]


def write_tar(path: Path, members: Members, **options: object) -> Path:
    with tarfile.open(path, "w", **options) as tar:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def good(*keys: str) -> Members:
    return [
        (f"{key}.{suffix}", data)
        for key in keys
        for suffix, data in (
            ("jpg", b"image of " + key.encode()),
            ("txt", f"a {key}".encode()),
            ("json", b"{}"),
        )
    ]


def theirs(path: Path) -> list[tuple[str, bytes, bytes]]:
    """Key, image and caption of what open_clip_train would train on, a key once."""
    found: dict[str, tuple[str, bytes, bytes]] = {}
    for sample in tarfile_to_samples_nothrow([{"url": str(path)}]):
        if filter_no_caption_or_no_image(sample):
            image = next(sample[one] for one in IMAGE_SUFFIXES if one in sample)
            found.setdefault(sample["__key__"], (sample["__key__"], image, sample["txt"]))
    return list(found.values())


def ours(path: Path, index: ShardIndex | None = None) -> list[tuple[str, bytes, bytes]]:
    samples = (index or index_shard(path)).samples
    file = os.open(path, os.O_RDONLY)
    try:
        return [(s.key, read_span(file, s.image), read_span(file, s.caption)) for s in samples]
    finally:
        os.close(file)


def reasons(index: ShardIndex) -> list[tuple[str, str]]:
    return [(one.key, one.reason) for one in index.skipped]


LONG = "folder/" + "k" * 150
ODD_TARS: dict[str, tuple[Members, list[tuple[str, str]]]] = {
    "good": (good("0", "1", "2"), []),
    "dots in names": (
        [*good("a.b"), *good("c.d/e"), *good("./f"), (".g.jpg", b"x"), ("nodot", b"x")],
        [("a", "no image")],
    ),
    "upper-case suffixes": (
        [("a.JPG", b"1"), ("a.Txt", b"2"), ("B.jPeG", b"3"), ("B.TXT", b"")],
        [],
    ),
    "long names": (good(LONG, LONG + "2"), []),
    "umlauts": (good("Müller/größe", "日本"), []),
    "every image kind": (
        [(f"{one}.{suffix}", b"x") for one in IMAGE_SUFFIXES for suffix in (one, "txt")],
        [],
    ),
    "several images": ([("a.webp", b"1"), ("a.jpeg", b"2"), ("a.png", b"3"), ("a.txt", b"")], []),
    "no caption": ([("a.jpg", b"1"), ("a.json", b"2"), *good("b")], [("a", "no caption")]),
    "no image": ([("a.txt", b"1"), ("a.gif", b"2"), *good("b")], [("a", "no image")]),
    "empty image": ([("a.jpg", b""), ("a.txt", b"1")], []),
    "duplicate far away": (good("a", "b", "a"), [("a", "duplicate key")]),
    "duplicate adjacent": (good("a", "a"), [("a", "duplicate key")]),
    "duplicate, the first unusable": ([("a.jpg", b"1"), *good("a")], [("a", "no caption")]),
    "duplicate, the second unusable": ([*good("a"), ("a.txt", b"1")], [("a", "no image")]),
    "members apart": (
        [("a.jpg", b"1"), ("b.jpg", b"2"), ("a.txt", b"3"), *good("c")],
        [("a", "no caption"), ("b", "no caption"), ("a", "no image")],
    ),
    "meta files": ([("__index__", b"x"), ("__a__/b.jpg", b"x"), *good("a")], []),
}


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("case", ODD_TARS)
def test_a_tar_holds_what_open_clip_trains_on(tmp_path: Path, case: str, tar_format: int) -> None:
    members, skipped = ODD_TARS[case]
    path = write_tar(tmp_path / "0.tar", members, format=tar_format)
    index = index_shard(path)
    assert ours(path, index) == theirs(path)
    assert reasons(index) == skipped
    assert index.faults == ()
    assert index.read == len(index.samples) + len(skipped)


def test_a_tar_of_webdatasets_writer(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for i in range(4):
            sample = {"__key__": f"{i:09}", "jpg": jpeg(), "txt": f"text {i}", "json": {"i": i}}
            writer.write(sample)
    index = index_shard(path)
    assert len(index.samples) == 4 and not index.faults
    assert ours(path, index) == theirs(path)
    assert [read_caption(path, one) for one in index.samples] == [f"text {i}" for i in range(4)]


def test_pax_headers_directories_and_links(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "all"}) as tar:
        for name, data in good("a", "b"):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(data), {"note": "x" * 2000}
            tar.addfile(info, io.BytesIO(data))
            for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE):
                info = tarfile.TarInfo("a.png")
                info.type, info.linkname = kind, "a.jpg"
                tar.addfile(info)
    assert ours(path) == theirs(path)
    assert [key for key, _, _ in ours(path)] == ["a", "b"]
    assert [key for key, _, _ in copy(path, index_shard(path).samples[1:])] == ["b"]


def test_names_and_captions_that_are_not_utf8(tmp_path: Path) -> None:
    members = [("\udcff.jpg", b"1"), ("\udcff.txt", b"caf\xe9")]
    path = write_tar(
        tmp_path / "0.tar", members, format=tarfile.GNU_FORMAT, errors="surrogateescape"
    )
    (sample,) = index_shard(path).samples
    assert sample.key == "\udcff" == theirs(path)[0][0]
    assert read_caption(path, sample) == "caf\ufffd"


# Damage


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_torn_at_every_byte(tmp_path: Path, tar_format: int) -> None:
    members = [*good("a", "b" * 120)[:-1], ("c.txt", b"x" * 600), ("c.jpg", b"y" * 512)]
    whole = write_tar(tmp_path / "whole.tar", members, format=tar_format)
    content = whole.read_bytes()
    expected = ours(whole)
    end = max(block.end for s in index_shard(whole).samples for block in s.blocks)
    path = tmp_path / "torn.tar"
    for size in range(end + len(END_OF_ARCHIVE) + 1):
        path.write_bytes(content[:size])
        index = index_shard(path)
        used = ours(path, index)
        assert used == expected[: len(used)] == theirs(path), size
        assert index.read == len(index.samples) + len(index.skipped)
        assert {one.reason for one in index.skipped} <= {"torn tar"}, size
        assert bool(index.faults) == (size < end + 512), size
        if index.samples and size % 29 == 0:
            assert copy(path, index.samples) == used, size


TORN_AT = [
    (0, 0, "empty file"),
    (100, 0, "not a tar"),
    (512 + 3, 1, "torn at byte 515"),
    (1024, 1, "no end-of-archive marker at byte 1024"),
    (1024 + 300, 1, "torn at byte 1324: the header at byte 1024 is cut off"),
    (6 * 512, 1, "no end-of-archive marker at byte 3072"),
    (6 * 512 + 200, 1, "torn at byte 3272"),
    (6 * 512 + 512, 2, "torn at byte 3584"),
]


@pytest.mark.parametrize(("size", "read", "fault"), TORN_AT)
def test_a_tear_is_reported_where_it_is(tmp_path: Path, size: int, read: int, fault: str) -> None:
    path = write_tar(tmp_path / "0.tar", good("a", "b"))
    path.write_bytes(path.read_bytes()[:size])
    index = index_shard(path)
    assert index.read == read
    assert len(index.faults) == 1 and index.faults[0].startswith(fault)


def test_garbage_in_the_middle_keeps_what_came_before(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", good("a", "b", "c"))
    content = bytearray(path.read_bytes())
    content[8 * 512 : 9 * 512] = b"\xaa" * 512
    path.write_bytes(content)
    index = index_shard(path)
    assert [one.key for one in index.samples] == ["a"] == [key for key, _, _ in theirs(path)]
    assert reasons(index) == [("b", "torn tar")]
    assert index.faults == ("torn or damaged at byte 4096: not a whole tar header",)


def test_any_damaged_byte_is_no_exception(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", good("a", "b" * 120), format=tarfile.PAX_FORMAT)
    content = path.read_bytes()[: 18 * 512]
    for position in range(len(content)):
        path.write_bytes(content[:position] + b"\xff" + content[position + 1 :])
        index = index_shard(path)
        assert len(index.samples) <= 2


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "empty file"),
        (END_OF_ARCHIVE, "no samples"),
        (b"<html>404</html>" * 100, "not a tar"),
        (gzip.compress(b"x" * 5000, mtime=0), "compressed with gzip: store plain tars"),
    ],
)
def test_a_file_without_samples_is_a_fault(tmp_path: Path, content: bytes, fault: str) -> None:
    path = tmp_path / "0.tar"
    path.write_bytes(content)
    index = index_shard(path)
    assert index.read == 0
    assert len(index.faults) == 1 and index.faults[0].startswith(fault)


def test_concatenated_tars_are_reported(tmp_path: Path) -> None:
    one, two = (write_tar(tmp_path / f"{k}.tar", good(k)).read_bytes() for k in "ab")
    path = tmp_path / "both.tar"
    path.write_bytes(one[: 6 * 512 + 1024] + two)
    index = index_shard(path)
    assert [s.key for s in index.samples] == ["a"] == [key for key, _, _ in theirs(path)]
    assert index.faults == ("data after the end-of-archive marker at byte 3072 ignored",)


def test_a_missing_tar_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        index_shard(tmp_path / "0.tar")
    with pytest.raises(IsADirectoryError):
        index_shard(tmp_path)


def test_a_tar_that_shrank_is_an_error(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", good("a"))
    index = index_shard(path)
    os.truncate(path, 700)
    with (
        pytest.raises(ValueError, match=r"ends at byte 700.*changed since it was indexed"),
        path.open("rb") as source,
        TarWriter(tmp_path / "new.tar") as out,
    ):
        out.copy(source.fileno(), index.samples[0].blocks[0])


def test_images_are_not_read_for_the_index(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    size = 2**31 + 5
    with path.open("wb") as file:
        for name, length in [("a.jpg", size), ("a.txt", 3), ("b.jpg", 2), ("b.txt", 2)]:
            info = tarfile.TarInfo(name)
            info.size = length
            file.write(info.tobuf(tarfile.GNU_FORMAT))
            file.seek(-(-length // 512) * 512, os.SEEK_CUR)
        file.write(END_OF_ARCHIVE)
    before = resource.getrusage(resource.RUSAGE_SELF)
    index = index_shard(path)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert [one.image.size for one in index.samples] == [size, 2] and not index.faults
    assert after.ru_maxrss - before.ru_maxrss < 20_000  # kB
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


# Subsets


def copy(path: Path, samples: Sequence[Sample]) -> list[tuple[str, bytes, bytes]]:
    """Copy samples to a tar of their own and read it with open_clip_train's reader."""
    subset = path.with_name("subset.tar")
    subset.unlink(missing_ok=True)
    with path.open("rb") as source, TarWriter(subset) as out:
        for run in joined(sample.blocks for sample in samples):
            out.copy(source.fileno(), run)
    assert out.size == subset.stat().st_size and out.size % 512 == 0
    assert out.xxh3 == hash_file(subset)
    assert index_shard(subset).faults == ()
    assert ours(subset) == theirs(subset)
    return theirs(subset)


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_copied_subset_has_the_same_bytes(tmp_path: Path, tar_format: int) -> None:
    keys = ["a", LONG, "Müller", "b", LONG + "2", "c"]
    path = write_tar(tmp_path / "0.tar", good(*keys), format=tar_format)
    samples, whole = index_shard(path).samples, ours(path)
    for keep in ([0, 1, 2, 3, 4, 5], [0], [1, 4], [2, 3, 5], [5, 0]):
        assert copy(path, [samples[i] for i in keep]) == [whole[i] for i in keep]


def test_a_copied_subset_keeps_every_file_of_its_samples(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", [*good("a"), ("a.cls", b"7"), *good("b")])
    copy(path, index_shard(path).samples[:1])
    with tarfile.open(tmp_path / "subset.tar") as tar:
        assert tar.getnames() == ["a.jpg", "a.txt", "a.json", "a.cls"]


# Patterns


def test_no_torch_is_imported() -> None:
    code = (
        "import sys, pipeline.data.tars, pipeline.data.folders, pipeline.data.classes\n"
        "assert not {'torch', 'numpy', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
