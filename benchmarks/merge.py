"""What masks and their statistics take at the size of LAION-400M: seconds and memory.

python -m benchmarks.merge [--rows 4000000 40000000 400000000] [--scratch FOLDER] [--threads 2]

Writes scans of a million rows by six test sets, and duplicates, as the stages write them (65 bytes
a row: 26 GB for 400 million) into a scratch folder that is deleted in the end, and runs the tasks
of the stage `mask` on them. Says the seconds, those of the processors, and the peak of the
process's own (anonymous) memory, without the files that it maps; in brackets, how many times as
much each is as at the size before. First the masks and statistics of the smallest size are
compared with plain numpy on whole arrays; a difference ends the benchmark. At the second size the
rank cut is compared with numpy's argpartition of everything in memory.

Appends rows to benchmarks/results.csv. Expect the seconds of the processors to grow as the rows do,
and memory to stay far below 2 GB.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.results import append
from hpc.files import read_json
from hpc.stage import Context, Resources
from pipeline import artifacts
from pipeline.experiment.sections import Pool
from pipeline.experiment.splits import Split
from pipeline.layout import Layout
from pipeline.stages.mask import Mask

TESTS = ["val", "v2", "sketch", "a", "r", "objectnet"]
_FILE_ROWS = 1_000_000
_RANGES = 8
_OUT_OF = 27  # eight in 27 rows are duplicates
_BASE = {
    "full": {"all": True},
    "near": {"near": ["sketch"]},
    "combined": {"near": TESTS},
    "random": {"random": {"like": "combined", "seed": 0}},
    "union": {"union": ["near", "far"]},
    "dedup": {"deduplicated": True},
}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    sizes = [4_000_000, 40_000_000, 400_000_000]
    parser.add_argument("--rows", type=int, nargs="+", default=sizes)
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.scratch, prefix="merge-"))
    try:
        _run(folder, sorted(arguments.rows), arguments.threads)
    finally:
        shutil.rmtree(folder)


def _run(folder: Path, sizes: list[int], threads: int) -> None:
    before: dict[str, Cost] = {}
    files = 0
    for place, rows in enumerate(sizes):
        started = time.perf_counter()
        wanted = math.ceil(rows / _FILE_ROWS)
        _write(folder, range(files, wanted), min(rows, _FILE_ROWS))
        files = wanted
        print(f"{rows:,} rows: written in {time.perf_counter() - started:.0f} s", flush=True)
        stage = _stage(folder, rows)
        if place == 0:
            _check_parity(stage, threads)
        before = _measure(stage, rows, threads, before)
        if place == min(1, len(sizes) - 1):
            _compare(stage, rows, threads)


def _stage(folder: Path, rows: int) -> Mask:
    core = {"tests": TESTS, "keep": rows // 4}
    values = _BASE | {"far": {"far": core}, "core": {"far": core, "base": "dedup"}}
    splits = {name: Split.model_validate(value) for name, value in values.items()}
    pool = Pool(shards=str(folder / "pool" / "*.tar"))
    return Mask(Layout(folder / "run"), pool, splits, TESTS, _RANGES)


def _write(folder: Path, files: range, rows: int) -> None:
    """Scans of six sets, and the duplicates of all files so far."""
    run = Layout(folder / "run")
    (folder / "pool").mkdir(exist_ok=True)
    for file in files:
        (folder / "pool" / f"{file:05d}.tar").touch()
        rng = np.random.default_rng([7, file])
        best = rng.standard_normal((rows, len(TESTS)), dtype=np.float32)
        best *= np.float32(0.1)
        best += np.float32(0.4)
        arrays = {
            "near": best > np.float32(0.6),
            "best_similarity": best,
            "best_query": np.zeros(best.shape, dtype=np.int32),
            "above_threshold": rng.integers(0, 9, 100 * len(TESTS)),
            "neighbour_similarity": np.zeros((100 * len(TESTS), 1)),
            "neighbour_row": np.zeros((100 * len(TESTS), 1), dtype=np.int64),
        }
        facts = {
            "tests": TESTS,
            "offsets": [100 * place for place in range(len(TESTS) + 1)],
            "backend": "synthetic",
            "rechecked": 0,
            "epsilon": 0.0,
        }
        artifacts.write(run.similarity(file), artifacts.SIMILARITY, "synthetic", arrays, facts)
    for index in range(_RANGES):
        _write_duplicates(run, index, files.stop, rows)


def _write_duplicates(run: Layout, index: int, files: int, rows: int) -> None:
    """The same rows of every file."""
    found = np.flatnonzero(_pattern(rows) == index)
    file = np.repeat(np.arange(files, dtype=np.int32), len(found))
    row = np.tile(found, files)
    facts = {
        "threshold": 0.876,
        "clusters": _RANGES,
        "first_cluster": index,
        "last_cluster": index + 1,
        "rows": files * rows if index == 0 else 0,
        "backend": "synthetic",
    }
    arrays = {
        "file": file,
        "row": row,
        "kept_file": np.zeros(len(row), dtype=np.int32),
        "kept_row": np.zeros(len(row), dtype=np.int64),
        "similarity": np.zeros(len(row)),
    }
    artifacts.write(run.duplicates(index), artifacts.DUPLICATES, "synthetic", arrays, facts)


def _pattern(rows: int) -> Any:
    return np.random.default_rng(3).integers(0, _OUT_OF, rows)


def _task(stage: Mask, name: str, threads: int) -> Callable[[], Any]:
    task = next(task for task in stage.tasks() if task.name == name)
    context = Context(
        digest="synthetic",
        inputs={},
        resources=Resources(cpus=threads),
        progress=lambda done, total, unit: None,
    )
    return lambda: stage.run(task, context)


def _measure(stage: Mask, rows: int, threads: int, before: dict[str, Cost]) -> dict[str, Cost]:
    found: dict[str, Cost] = {}
    shape = {"rows": rows, "sets": len(TESTS), "threads": threads}
    for name in ("combined", "far", "random", "union", "core", "statistics/core"):
        found[name] = cost = _cost(_task(stage, name, threads))
        grown = ""
        if name in before:
            more = [new / old for new, old in zip(cost, before[name], strict=True)]
            grown = f"  (x {more[0]:.1f}, x {more[1]:.1f}, x {more[2]:.1f})"
        print(
            f"{rows:>11,} rows: {name:<16} {cost.seconds:8.2f} s, {cost.processor:8.2f} s of "
            f"processors, {cost.megabytes:5.0f} MB{grown}",
            flush=True,
        )
        append("merge", name, shape, cost.seconds, "s")
        append("merge", name, shape, cost.processor, "processor s")
        append("merge", name, shape, cost.megabytes, "MB")
    return found


class Cost(NamedTuple):
    """What a piece of work takes."""

    seconds: float
    processor: float
    """Seconds of all threads: what is left of the time when files come at once and nobody else
    computes."""
    megabytes: float
    """The peak of anonymous memory."""


def _cost(work: Callable[[], Any]) -> Cost:
    with _peak_memory() as peak:
        started, computed = time.perf_counter(), time.process_time()
        work()
        seconds, processor = time.perf_counter() - started, time.process_time() - computed
    return Cost(seconds, processor, peak[0] / 1e6)


@contextmanager
def _peak_memory() -> Iterator[list[float]]:
    """The most bytes in anonymous pages while the block runs, looked at 50 times a second."""
    peak, over = [0.0], threading.Event()

    def watch() -> None:
        while True:
            peak[0] = max(peak[0], _anonymous_bytes())
            if over.wait(0.02):
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def _anonymous_bytes() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return float(line.split()[1]) * 1024
    raise OSError("/proc/self/status: no line RssAnon")


def _columns(stage: Mask, name: str) -> Any:
    files = range(len(stage.pool.paths))
    scans = (artifacts.read(stage.run_layout.similarity(i), artifacts.SIMILARITY) for i in files)
    return np.concatenate([scan[name] for scan in scans])


def _plainly(stage: Mask) -> tuple[dict[str, Any], Any]:
    """Each split on whole arrays; and what is no duplicate."""
    near, best = _columns(stage, "near"), _columns(stage, "best_similarity").max(axis=1)
    files = len(stage.pool.paths)
    dedup = np.tile(_pattern(len(best) // files) >= _RANGES, files)

    def far(base: Any) -> Any:
        rows = np.flatnonzero(base)
        kept = np.zeros(len(best), dtype=bool)
        kept[rows[np.lexsort((rows, -best[rows]))[: stage.splits["far"].cut.keep]]] = True
        return kept

    top = far(np.ones(len(best), dtype=bool))
    return {
        "combined": ~near.any(axis=1),
        "far": top,
        "union": ~near[:, TESTS.index("sketch")] | top,
        "core": far(dedup),
    }, dedup


def _check_parity(stage: Mask, threads: int) -> None:
    plain, dedup = _plainly(stage)
    for name, expected in plain.items():
        _task(stage, name, threads)()
        mask = artifacts.read(stage.run_layout.mask(name), artifacts.MASK)
        found = np.concatenate([artifacts.keep_of(mask, i) for i in range(len(mask["rows"]))])
        np.testing.assert_array_equal(found, expected, err_msg=name)
    near = _columns(stage, "near")
    _task(stage, "statistics/core", threads)()
    found = read_json(stage.run_layout.statistics("core"))
    both = {
        f"{TESTS[i]} & {TESTS[j]}": int((near[:, i] & near[:, j] & dedup).sum())
        for i, j in combinations(range(len(TESTS)), 2)
    }
    kept_near = dict(zip(TESTS, near[plain["core"]].sum(axis=0).tolist(), strict=True))
    assert (found["kept"], found["base"]) == (plain["core"].sum(), dedup.sum())
    assert (found["overlaps"], found["kept_near"]) == (both, kept_near)
    print(f"parity with plain numpy at {len(near):,} rows: the same masks and statistics")


def _compare(stage: Mask, rows: int, threads: int) -> None:
    """The rank cut against argpartition of everything in memory, which takes any of equal rows."""

    def partition() -> Any:
        best = _columns(stage, "best_similarity").max(axis=1)
        keep = stage.splits["far"].cut.keep
        kept = np.zeros(len(best), dtype=bool)
        kept[np.argpartition(-best, keep - 1)[:keep]] = True
        return np.packbits(kept)

    ours, theirs = _cost(_task(stage, "far", threads)), _cost(partition)
    shape = {"rows": rows, "sets": len(TESTS), "threads": threads}
    for what in Cost._fields:
        ratio = getattr(theirs, what) / getattr(ours, what)
        print(f"{rows:>11,} rows: argpartition / far: {what} {ratio:.1f}", flush=True)
        append("merge", f"argpartition / far: {what}", shape, ratio, "ratio")


if __name__ == "__main__":
    main()
