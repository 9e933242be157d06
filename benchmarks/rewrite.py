"""How fast a split's tars are written, against `cp` of the same bytes.

python -m benchmarks.rewrite [--tars 2] [--samples 10000] [--folder FOLDER]

Makes tars of samples of about 30 kB and rewrites them with 95% and with 50% of the samples kept:

    stage     as the stage does it: blocks copied by the spans stored with the embeddings, hashed
    headers   the same, where spans are not stored and the headers are read first
    live      the live filter: one process a tar, its output thrown away
    tarfile   the plain way: every kept member read and added by Python's tarfile
    cp        of the bytes that the stage has written

From memory (the page cache), and from disk (dropped from it first, as far as the system lets us).
Nothing is flushed to disk in any of them. All are interleaved; the best of each counts. First the
stage's tar is compared with tarfile's, member by member. Appends rows to benchmarks/results.csv.

Expect at least 0.6 of cp with 95% kept from memory.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.results import append
from pipeline.data.rewriting import TarWriter, joined
from pipeline.data.tars import Sample, index_shard
from pipeline.experiment.sources import file_identity
from pipeline.subsets import stream

MEAN_BYTES = 29_000


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tars", type=int, default=2)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        tars = [
            _make(folder / f"{seed}.tar", arguments.samples, seed) for seed in range(arguments.tars)
        ]
        for kept in (0.95, 0.5):
            chosen = [_choose(tar, kept) for tar in tars]
            _check_parity(folder, tars[0], chosen[0])
            for source in ("memory", "disk"):
                size = {"tars": len(tars), "samples": arguments.samples, "kept": kept}
                _measure(folder, tars, chosen, source, arguments.repeats, size)


def _make(path: Path, samples: int, seed: int) -> Path:
    source = random.Random(seed)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(samples):
            image = source.randbytes(source.randrange(MEAN_BYTES // 2, MEAN_BYTES * 3 // 2))
            for suffix, data in (("jpg", image), ("txt", b"a caption " * 6), ("json", b"{}" * 200)):
                info = tarfile.TarInfo(f"{seed:05d}{number:04d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def _choose(tar: Path, kept: float) -> list[Sample]:
    source = random.Random(7)
    return [sample for sample in index_shard(tar).samples if source.random() < kept]


def _stage(tar: Path, samples: Sequence[Sample], out: Path) -> int:
    source = os.open(tar, os.O_RDONLY)
    with TarWriter(out) as writer:
        for run in joined(sample.blocks for sample in samples):
            writer.copy(source, run)
    os.close(source)
    return writer.size


def _headers(tar: Path, samples: Sequence[Sample], out: Path) -> int:
    by_key = {sample.key: sample for sample in index_shard(tar).samples}
    return _stage(tar, [by_key[sample.key] for sample in samples], out)


def _live(tar: Path, samples: Sequence[Sample], out: Path) -> int:
    spans = out.with_suffix(".spans")
    runs = [(run.offset, run.size) for run in joined(sample.blocks for sample in samples)]
    stream.write_spans(str(spans), [(file_identity(tar), runs)])
    words = [sys.executable, "-I", "-S", stream.__file__, str(spans), "0", str(tar)]
    read = 0
    with subprocess.Popen(words, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        buffer = bytearray(1 << 20)
        while size := process.stdout.readinto(buffer):  # type: ignore[attr-defined]
            read += size
    assert process.returncode == 0
    return read


def _tarfile(tar: Path, samples: Sequence[Sample], out: Path) -> int:
    keys = {sample.key for sample in samples}
    with tarfile.open(tar) as source, tarfile.open(out, "w") as target:
        for info in source:
            if info.name.partition(".")[0] in keys:
                target.addfile(info, source.extractfile(info))
    return out.stat().st_size


def _check_parity(folder: Path, tar: Path, samples: Sequence[Sample]) -> None:
    ours, theirs = folder / "ours.tar", folder / "theirs.tar"
    _stage(tar, samples, ours)
    _tarfile(tar, samples, theirs)
    with tarfile.open(ours) as one, tarfile.open(theirs) as other:
        for mine, plain in zip(one, other, strict=True):
            a, b = one.extractfile(mine), other.extractfile(plain)
            assert a and b and (mine.name, a.read()) == (plain.name, b.read()), mine.name
    ours.unlink()
    theirs.unlink()


def _measure(
    folder: Path,
    tars: Sequence[Path],
    chosen: Sequence[Sequence[Sample]],
    source: str,
    repeats: int,
    size: dict[str, float],
) -> None:
    copied = [folder / f"copied-{number}.tar" for number in range(len(tars))]
    for tar, samples, out in zip(tars, chosen, copied, strict=True):
        _stage(tar, samples, out)
    total = sum(out.stat().st_size for out in copied)
    ways: dict[str, Callable[[int, Path], object]] = {
        "cp": lambda n, out: subprocess.run(["cp", copied[n], out], check=True),
        "stage": lambda n, out: _stage(tars[n], chosen[n], out),
        "live": lambda n, out: _live(tars[n], chosen[n], out),
        "headers": lambda n, out: _headers(tars[n], chosen[n], out),
        "tarfile": lambda n, out: _tarfile(tars[n], chosen[n], out),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            seconds[name].append(_seconds(way, folder, [*tars, *copied], source))
    rates = {name: total / 1e6 / min(times) for name, times in seconds.items()}
    for name, rate in rates.items():
        median = total / 1e6 / sorted(seconds[name])[len(seconds[name]) // 2]
        ratio = rate / rates["cp"]
        print(
            f"{size['kept']:.0%} kept, {source:<6} {name:<8} {rate:7,.0f} MB/s (median "
            f"{median:6,.0f}), {ratio:.2f} of cp",
            flush=True,
        )
        append("rewrite", f"{name}, from {source}", size, rate, "MB/s")
        append("rewrite", f"{name}, from {source}", size, ratio, "ratio")
    for out in copied:
        out.unlink()


def _seconds(
    way: Callable[[int, Path], object], folder: Path, files: Sequence[Path], source: str
) -> float:
    for path in files:
        _put(path, source)
    count = len(files) // 2
    outs = [folder / f"out-{number}.tar" for number in range(count)]
    started = time.perf_counter()
    for number, out in enumerate(outs):
        way(number, out)
    taken = time.perf_counter() - started
    for out in outs:
        out.unlink(missing_ok=True)
    return taken


def _put(path: Path, source: str) -> None:
    """Read a file into the page cache, or have it dropped from there."""
    with path.open("rb", buffering=0) as file:
        if source == "disk":
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        else:
            buffer = bytearray(1 << 24)
            while file.readinto(buffer):
                pass


if __name__ == "__main__":
    main()
