"""New tars from parts of others: whole blocks are copied, nothing is decoded.

What is written is hashed on the way, so that no tar is read a second time to be hashed.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import xxhash

from pipeline.data.tars import BLOCK, END_OF_ARCHIVE, Span

# Small enough to stay in the processor's cache between reading, hashing and writing.
_BUFFER_BYTES = 1 << 20


def joined(samples: Iterable[Sequence[Span]]) -> Iterator[Span]:
    """The blocks of samples one after the other; those that continue one another are merged."""
    run: Span | None = None
    for span in chain.from_iterable(samples):
        if run is not None and run.end == span.offset:
            run = Span(run.offset, run.size + span.size)
            continue
        if run is not None:
            yield run
        run = span
    if run is not None:
        yield run


@dataclass
class Sources:
    """Reads the tars that are copied from; the last one stays open."""

    _path: Path | None = None
    _file: int = -1

    def open(self, path: Path) -> int:
        """A file descriptor, good until the next call."""
        if path != self._path:
            self.close()
            self._path, self._file = path, os.open(path, os.O_RDONLY)
        return self._file

    def close(self) -> None:
        """Close the last one."""
        if self._path is not None:
            os.close(self._file)
            self._path = None


@dataclass
class TarWriter:
    """Writes one tar and hashes it; use it as a context.

    Attributes:
        path: where; it must not exist.
        size: bytes written so far, what is still in the buffer included.
    """

    path: Path
    size: int = 0
    _file: BinaryIO = field(init=False)
    _buffer: memoryview = field(init=False)
    _filled: int = 0
    _hash: xxhash.xxh3_64 = field(init=False)

    def __post_init__(self) -> None:
        self._file = self.path.open("xb", buffering=0)
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._hash = xxhash.xxh3_64()

    def __enter__(self) -> TarWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        """End the tar, unless writing it failed."""
        if kind is None:
            self._write(END_OF_ARCHIVE)
            self._flush()
        self._file.close()

    @property
    def xxh3(self) -> str:
        """The hash of what the file holds, once the context is left."""
        return self._hash.hexdigest()

    def copy(self, source: int, span: Span) -> None:
        """Copy tar blocks from an open file as they are.

        A run that is no multiple of 512 bytes is filled up: a tear may have taken the padding of
        a tar's last member.

        Raises:
            ValueError: the file ends within the run.
        """
        offset = span.offset
        while offset < span.end:
            room = self._buffer[self._filled : self._filled + span.end - offset]
            read = os.preadv(source, [room], offset)
            if not read:
                raise ValueError(
                    f"the file ends at byte {offset}, expected {span.size} bytes at byte "
                    f"{span.offset}: it has changed since it was indexed"
                )
            offset += read
            self._took(read)
        self._write(bytes(-span.size % BLOCK))

    def add(self, name: str, data: bytes) -> None:
        """Add a file, with a header that depends on nothing but its name and size."""
        info = tarfile.TarInfo(name)
        info.size = len(data)
        self._write(info.tobuf(tarfile.USTAR_FORMAT))
        self._write(data)
        self._write(bytes(-len(data) % BLOCK))

    def _write(self, data: bytes) -> None:
        stream = io.BytesIO(data)
        while read := stream.readinto(self._buffer[self._filled :]):
            self._took(read)

    def _took(self, size: int) -> None:
        self.size += size
        self._filled += size
        if self._filled == _BUFFER_BYTES:
            self._flush()

    def _flush(self) -> None:
        self._hash.update(self._buffer[: self._filled])
        written = 0
        while written < self._filled:
            written += self._file.write(self._buffer[written : self._filled]) or 0
        self._filled = 0
