"""WebDataset tars in img2dataset's layout: which samples they hold, and where.

One pass over a tar's headers finds every sample; image bytes stay where they are and are read
later by position, so memory grows with the number of samples and never with their bytes.
Grouping follows open_clip_train's own reader (`group_by_keys_nothrow`), so that a sample counts
here exactly when training would see it.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

# open_clip_train decodes `image="jpg;png;jpeg;webp"`: the first that a sample has.
IMAGE_SUFFIXES = ("jpg", "png", "jpeg", "webp")
CAPTION_SUFFIX = "txt"
META_SUFFIX = "json"
BLOCK = 512
END_OF_ARCHIVE = bytes(2 * BLOCK)

_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # webdataset's base_plus_ext
_META = re.compile(r"__[^/]*__($|/)")  # webdataset's skip_meta
_RECORD = 20 * BLOCK  # tar pads an archive with zeros to a whole record
# Headers of neighbouring members often lie within one buffer, and a parallel file system's
# preferred buffer (megabytes) would read every image after all.
_HEADER_BUFFER = 64 * 1024
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
# What `tarfile` raises on headers that make no sense; an OSError is the file system's and passes.
_BAD_HEADER = (tarfile.TarError, ValueError, LookupError, OverflowError)


@dataclass(frozen=True, slots=True)
class Span:
    """A run of `size` bytes that starts at byte `offset` of a file."""

    offset: int
    size: int

    @property
    def end(self) -> int:
        """The first byte after the run."""
        return self.offset + self.size


@dataclass(frozen=True, slots=True)
class Sample:
    """An image with its caption, both still in the tar.

    Attributes:
        key: webdataset's key: the member's name up to the first dot after its last slash.
        image: the bytes of the image file.
        caption: the bytes of the caption, perhaps none.
        json: the bytes of the JSON file, if there is one.
        blocks: the raw tar blocks of all members of the sample (headers, data, padding),
            neighbouring runs joined. Copied one after the other they are a tar of this sample.
    """

    key: str
    image: Span
    caption: Span
    blocks: tuple[Span, ...]
    json: Span | None = None

    @property
    def span(self) -> tuple[int, int]:
        """Offset and size of the blocks; the size is 0 if they do not lie side by side."""
        return self.blocks[0].offset, self.blocks[0].size if len(self.blocks) == 1 else 0


@dataclass(frozen=True, slots=True)
class Skipped:
    """A sample that can't be used.

    `reason` is "no image", "no caption", "duplicate key" or "torn tar".
    """

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """What a tar holds. `faults` says what is wrong with the tar as a whole, if anything."""

    samples: tuple[Sample, ...]
    skipped: tuple[Skipped, ...]
    faults: tuple[str, ...]

    @property
    def read(self) -> int:
        """How many samples were met, used or not."""
        return len(self.samples) + len(self.skipped)


def index_shard(path: Path) -> ShardIndex:
    """Find the samples of a tar, reading its headers only.

    A sample needs an image and a caption file, as in open_clip_train's
    `filter_no_caption_or_no_image`; like there, an empty caption file is a caption. Of samples
    with the same key the first usable one counts. A damaged tar is no exception: it gives the
    samples before the damage and a fault.

    Raises:
        OSError: if the file is missing or can't be read.
    """
    with path.open("rb", buffering=_HEADER_BUFFER) as file:
        archive = _Archive(file)
        samples: dict[str, Sample] = {}
        skipped: list[Skipped] = []
        for group in _groups(archive):
            reason = group.unusable() or ("duplicate key" if group.key in samples else None)
            if reason is None:
                samples[group.key] = group.sample()
            else:
                skipped.append(Skipped(group.key, reason))
    if not samples and not skipped and not archive.faults:
        archive.faults.append("no samples")
    return ShardIndex(tuple(samples.values()), tuple(skipped), tuple(archive.faults))


class _Member(NamedTuple):
    """A regular file in a tar; `data` is None if the end of the tar cuts it off."""

    name: str
    data: Span | None
    blocks: Span


class _Archive:
    """The regular files of a tar and, once they are read, what ended it.

    `torn` is set when the tar stopped before its end-of-archive marker.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size = os.fstat(file.fileno()).st_size
        self.faults: list[str] = []
        self.torn = False

    def members(self) -> Iterator[_Member]:
        """Yield the regular files in order; afterwards `faults` and `torn` are final."""
        end = 0
        try:
            # The names as webdataset sees them; names that aren't UTF-8 keep their bytes.
            tar = tarfile.open(  # noqa: SIM115 - closing it is closing self.file
                fileobj=self.file, mode="r:", encoding="utf-8", errors="surrogateescape"
            )
            # Opening reads the first header; at offset 0 there was none, and Python 3.10's `next`
            # would seek to before the file.
            while tar.offset and (info := tar.next()) is not None and tar.offset > end:
                tar.members.clear()  # type: ignore[attr-defined]  # or it keeps every header
                end = tar.offset
                if info.issparse():
                    self.faults.append(f"sparse file {info.name!r} at byte {info.offset} ignored")
                elif info.isreg():
                    yield self._member(info, end)
                if end > self.size:
                    break
        except _BAD_HEADER:
            pass  # _ending says what is at that place
        fault = self._ending(end)
        self.faults.extend([] if fault is None else [fault])

    def _member(self, info: tarfile.TarInfo, end: int) -> _Member:
        data = Span(info.offset_data, info.size)
        whole = data.end <= self.size  # lost padding costs nothing: webdataset reads it too
        blocks = Span(info.offset, min(end, self.size) - info.offset)
        return _Member(info.name, data if whole else None, blocks)

    def _ending(self, end: int) -> str | None:
        """What is wrong at byte `end`, where the last whole header and its data end."""
        self.file.seek(min(end, self.size))
        block = self.file.read(BLOCK)
        if len(block) == BLOCK and not block.strip(b"\0"):
            more = self.file.read(_RECORD).strip(b"\0")
            return f"data after the end-of-archive marker at byte {end} ignored" if more else None
        self.torn = True
        if end > self.size:
            return f"torn at byte {self.size}: the last member ends at byte {end}"
        if not block.strip(b"\0"):
            return "empty file" if self.size == 0 else f"no end-of-archive marker at byte {end}"
        if end == 0:
            return _not_a_tar(block)
        if len(block) < BLOCK:
            return f"torn at byte {self.size}: the header at byte {end} is cut off"
        return f"torn or damaged at byte {end}: not a whole tar header"


def _not_a_tar(beginning: bytes) -> str:
    for magic, name in _COMPRESSED.items():
        if beginning.startswith(magic):
            return f"compressed with {name}: store plain tars, images are read by their position"
    return "not a tar: no tar header at byte 0"


@dataclass(slots=True)
class _Group:
    """Successive members with one key: a sample, or part of one."""

    key: str
    parts: dict[str, Span] = field(default_factory=dict)
    blocks: list[Span] = field(default_factory=list)
    torn: bool = False

    def add(self, suffix: str, member: _Member) -> None:
        if member.data is None:
            return
        self.parts[suffix] = member.data
        if self.blocks and self.blocks[-1].end == member.blocks.offset:
            first = self.blocks.pop()
            self.blocks.append(Span(first.offset, first.size + member.blocks.size))
        else:
            self.blocks.append(member.blocks)

    def unusable(self) -> str | None:
        has_image = any(suffix in self.parts for suffix in IMAGE_SUFFIXES)
        if has_image and CAPTION_SUFFIX in self.parts:
            return None
        if self.torn:
            return "torn tar"
        return "no caption" if has_image else "no image"

    def sample(self) -> Sample:
        image = next(self.parts[suffix] for suffix in IMAGE_SUFFIXES if suffix in self.parts)
        caption, meta = self.parts[CAPTION_SUFFIX], self.parts.get(META_SUFFIX)
        return Sample(self.key, image, caption, tuple(self.blocks), meta)


def _groups(archive: _Archive) -> Iterator[_Group]:
    """Group members as open_clip_train does: a new sample where the key changes or repeats."""
    group: _Group | None = None
    for member in archive.members():
        name = None if _META.match(member.name) else _NAME.match(member.name)
        if name is None:
            continue
        key, suffix = name[1], name[2].lower()
        if group is None or key != group.key or suffix in group.parts:
            if group is not None:
                yield group
            group = _Group(key)
        group.add(suffix, member)
    if group is not None:
        group.torn = archive.torn
        yield group


def read_span(file: int, span: Span) -> bytes:
    """Read a run of bytes from an open file descriptor, wherever its position is.

    Raises:
        ValueError: if the file ends within the run.
    """
    parts: list[bytes] = []
    offset = span.offset
    while offset < span.end:
        part = os.pread(file, span.end - offset, offset)
        if not part:
            raise ValueError(
                f"the file ends at byte {offset}, expected {span.size} bytes at byte "
                f"{span.offset}: it has changed since it was indexed"
            )
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def read_caption(path: Path, sample: Sample) -> str:
    """Read a sample's caption from its tar; bytes that are not UTF-8 become U+FFFD."""
    with path.open("rb", buffering=0) as file:
        return read_span(file.fileno(), sample.caption).decode("utf-8", errors="replace")


def first_key(path: Path) -> str | None:
    """The key of a tar's first sample, usable or not; None if there is none.

    Raises:
        OSError: if the file is missing or can't be read.
    """
    with path.open("rb", buffering=_HEADER_BUFFER) as file:
        return next((group.key for group in _groups(_Archive(file))), None)
