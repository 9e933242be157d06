"""The kept samples of one of the pool's tars, as a tar on stdout: the live filter.

    python pipeline/subsets/stream.py SPANS NUMBER TAR

SPANS is what the stage `subset` writes when `training.data` is `live`; TAR is the pool's tar with
that NUMBER in it. As a URL for any WebDataset reader: `pipe:python pipeline/subsets/stream.py SPANS
NUMBER TAR`; `pipeline.subsets.shards` makes these. One such process is started for each tar, so it
imports nothing but a little of the standard library, and runs as a file, without site-packages.

A reader must not take a stream that failed for one that ended: the status is then 1, and the tar
has no end-of-archive marker. The reason is on stderr; if nothing was streamed yet (the usual case:
the tar is missing, or is another), it is also in a sample with the key FAILED, after which the tar
ends within a member, which every reader of tars refuses.
"""

import contextlib
import json
import os
import signal
import sys
from array import array

FAILED = "simgap-stream-failed"
REASON = "reason"
"""Suffix of the reason in the sample FAILED."""
BLOCK = 512
_BUFFER_BYTES = 1 << 20
_F_SETPIPE_SZ = 1031  # fcntl's, from Python 3.10 on


def main(words: list[str]) -> int:
    """Stream one tar; returns the exit status."""
    # The scheduler signals every process of a job; this one ends when nobody reads it any more.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if len(words) != 3 or not words[1].isdigit():
        print("usage: python stream.py SPANS NUMBER TAR", file=sys.stderr)
        return 2
    out = _Out(1)
    try:
        _stream(words[0], int(words[1]), words[2], out)
        out.zeros(2 * BLOCK)
        out.flush()
    except BrokenPipeError:
        pass  # the reader has enough
    except Exception as error:
        reason = f"{words[2]}: {error}" if words[2] not in str(error) else str(error)
        print(f"simgap: {reason}", file=sys.stderr)
        out.fail(reason)
        return 1
    return 0


def write_spans(path: str, tars: list[tuple[list[object], list[tuple[int, int]]]]) -> None:
    """Write what is kept of each tar.

    Args:
        path: the file.
        tars: for each its identity (name, size in bytes, modification time in nanoseconds) and
            the runs of bytes to keep, (offset, size), in order.
    """
    header, runs, first = [], array("Q"), 0
    for identity, kept in tars:
        header.append({"identity": identity, "first": first, "runs": len(kept)})
        first += len(kept)
        for offset, size in kept:
            runs.extend((offset, size))
    if sys.byteorder == "big":
        runs.byteswap()
    with open(path, "wb") as file:
        file.write(json.dumps(header).encode() + b"\n")
        runs.tofile(file)


def read_spans(path: str, number: int) -> tuple[list[object], "array[int]"]:
    """The identity of a tar, and what is kept of it: offset, size, offset, size, ...

    Raises:
        ValueError: the file has no such tar, or ends too early.
    """
    with open(path, "rb") as file:
        tars = json.loads(file.readline())
        if number >= len(tars):
            raise ValueError(f"{path} has {len(tars)} tars, asked for number {number}")
        tar, runs = tars[number], array("Q")
        file.seek(2 * runs.itemsize * tar["first"], os.SEEK_CUR)
        try:
            runs.fromfile(file, 2 * tar["runs"])
        except EOFError:
            raise ValueError(f"{path} is cut off: expected {tar['runs']} runs") from None
    if sys.byteorder == "big":
        runs.byteswap()
    return tar["identity"], runs


def _stream(spans: str, number: int, tar: str, out: "_Out") -> None:
    identity, runs = read_spans(spans, number)
    source = os.open(tar, os.O_RDONLY)
    status = os.fstat(source)
    if [os.path.basename(tar), status.st_size, status.st_mtime_ns] != identity:
        raise ValueError(f"{tar} has changed since it was embedded, or is another; submit again")
    for at in range(0, len(runs), 2):
        out.copy(source, runs[at], runs[at + 1])
        out.zeros(-runs[at + 1] % BLOCK)  # a tear took the padding of the last member


class _Out:
    """A descriptor that is written to in large pieces."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._filled = 0
        self._begun = False
        _widen(descriptor)

    def copy(self, source: int, offset: int, size: int) -> None:
        end = offset + size
        while offset < end:
            room = self._buffer[self._filled : self._filled + end - offset]
            read = os.preadv(source, [room], offset)
            if not read:
                raise ValueError(f"the file ends at byte {offset}, expected {end} bytes")
            offset += read
            self._took(read)

    def zeros(self, size: int) -> None:
        while size:
            room = self._buffer[self._filled : self._filled + size]
            room[:] = bytes(len(room))
            size -= len(room)
            self._took(len(room))

    def _took(self, size: int) -> None:
        self._filled += size
        if self._filled == _BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        data, self._filled, self._begun = self._buffer[: self._filled], 0, True
        while data:
            data = data[os.write(self._descriptor, data) :]

    def fail(self, reason: str) -> None:
        """Give the reason as a sample, and begin a member that has no data."""
        import io
        import tarfile

        if self._begun:
            return
        members = io.BytesIO()
        text = reason.encode("utf-8", "surrogateescape")
        for name, data in ((f"{FAILED}.{REASON}", text), (f"{FAILED}.end", b"")):
            info = tarfile.TarInfo(name)
            info.size = len(data) or BLOCK
            members.write(info.tobuf(tarfile.USTAR_FORMAT))
            members.write(data + bytes(-len(data) % BLOCK))
        with contextlib.suppress(BrokenPipeError):
            os.write(self._descriptor, members.getvalue())


def _widen(descriptor: int) -> None:
    """A wider pipe: fewer changes between this process and its reader."""
    import fcntl

    # Not a pipe, or this user's pipes may not be that wide: it is only slower.
    with contextlib.suppress(OSError):
        fcntl.fcntl(descriptor, _F_SETPIPE_SZ, _BUFFER_BYTES)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
