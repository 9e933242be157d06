"""Writes a world: parts in parallel processes, each file by rename, only what is missing."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from importlib.resources import files
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from hpc.files import atomic_path, read_json, write_json, write_text
from pipeline import __version__
from pipeline.data.world.plan import (
    CLASSES,
    EMBEDDER,
    EMBEDDER_TRAINING,
    MODEL,
    POOL,
    REFERENCE,
    TEST_STYLES,
    Parameters,
    Part,
    parts,
)

WORLD = "world.json"
_PARAMETERS = "parameters.json"
_UNFINISHED = ".unfinished"
_PACKAGES = ("numpy", "pillow", "torch", "open_clip_torch")
_SECONDS_BETWEEN_LINES = 5

Advance = Callable[[int, int], None]


def is_whole(root: Path, parameters: Parameters) -> bool:
    """Tell whether a world of these parameters is there, with all its files.

    Raises:
        ValueError: if the folder holds something else.
    """
    _check_parameters(root, parameters)
    return (root / WORLD).is_file() and not _missing(root, parameters)


def build(root: Path, parameters: Parameters, processes: int) -> dict[str, Any]:
    """Write whatever is missing of a world.

    Args:
        root: its folder; made if absent.
        parameters: what to draw.
        processes: how many to draw in.

    Returns:
        The content of world.json.

    Raises:
        ValueError: if the folder holds something else.
    """
    _check_parameters(root, parameters)
    root.mkdir(parents=True, exist_ok=True)
    write_json(root / _PARAMETERS, asdict(parameters))
    _drop_leftovers(root)
    _render(root, parameters, _missing_parts(root, parameters), processes)
    _write_lists(root, parameters)
    if parameters.embedder_samples and not (root / EMBEDDER).is_file():
        from pipeline.data.world.embedder import train_embedder

        with _shown("training the embedder", "samples") as advance:
            train_embedder(root, parameters, advance)
    world = {
        "parameters": asdict(parameters),
        "counts": _counts(root, parameters),
        "versions": {"simgap": __version__, **{name: version(name) for name in _PACKAGES}},
    }
    write_json(root / WORLD, world)
    return world


def _drop_leftovers(root: Path) -> None:
    """Remove what a killed build had begun to write; pathlib's `*.tar` would match it."""
    shutil.rmtree(root / _UNFINISHED, ignore_errors=True)
    for folder in (root, root / POOL):
        for path in folder.glob(".*.tmp*"):
            path.unlink(missing_ok=True)
    if (root / EMBEDDER).is_file():
        shutil.rmtree(root / EMBEDDER_TRAINING, ignore_errors=True)


def _check_parameters(root: Path, parameters: Parameters) -> None:
    """Refuse a folder with another world, or with anything else."""
    if not root.exists():
        return
    if not root.is_dir():
        raise ValueError(f"{root}: a file, expected a folder")
    if not (root / _PARAMETERS).is_file():
        found = [path.name for path in root.iterdir() if not path.name.startswith(".")]
        if found:
            raise ValueError(f"{root}: not a world, but not empty: it holds {min(found)!r}")
        return
    there, wanted = read_json(root / _PARAMETERS), asdict(parameters)
    differ = [
        f"{name} is {there.get(name)}, not {value}"
        for name, value in wanted.items()
        if there.get(name) != value
    ]
    if differ:
        raise ValueError(
            f"{root}: a world of other parameters ({'; '.join(differ)}): choose another folder, "
            "or delete this one"
        )


def _missing_parts(root: Path, parameters: Parameters) -> list[Part]:
    return [part for part in parts(parameters) if not part.is_whole(root)]


def _missing(root: Path, parameters: Parameters) -> bool:
    single = [root / "classes.txt", root / MODEL, root / POOL / "sizes.json"]
    if parameters.embedder_samples:
        single.append(root / EMBEDDER)
    return any(not path.is_file() for path in single) or bool(_missing_parts(root, parameters))


def _render(root: Path, parameters: Parameters, todo: Sequence[Part], processes: int) -> None:
    draw = partial(_draw_part, root, parameters)
    total = sum(len(part.indices) for part in todo)
    with _shown("drawing", "images") as advance:
        for done in _finished(draw, todo, processes):
            advance(done, total)


def _finished(draw: Callable[[Part], None], todo: Sequence[Part], processes: int) -> Iterator[int]:
    """Draw parts; yields how many images are done so far."""
    done = 0
    if min(processes, len(todo)) < 2:
        for part in todo:
            draw(part)
            done += len(part.indices)
            yield done
        return
    # Forked copies of a process that has loaded torch may hang; spawned ones do not.
    with ProcessPoolExecutor(
        min(processes, len(todo)), get_context("spawn"), initializer=_end_with_parent
    ) as pool:
        futures = {pool.submit(draw, part): part for part in todo}
        try:
            for future in as_completed(futures):
                future.result()
                done += len(futures[future].indices)
                yield done
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """Let this process end when its parent does, even by a kill: it would wait for ever."""
    parent = parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _draw_part(root: Path, parameters: Parameters, part: Part) -> None:
    if part.set == POOL:
        _write_shard(root, parameters, part)
    else:
        _write_class_folder(root, parameters, part)


def _write_shard(root: Path, parameters: Parameters, part: Part) -> None:
    """Write a tar as img2dataset does, then its statistics, which say that it is whole."""
    from pipeline.data.world.items import pool_image

    with (
        atomic_path(part.path(root)) as temporary,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for index in part.indices:
            image = pool_image(parameters.seed, index, parameters.test_per_class)
            key = f"{index:09d}"
            facts = {
                "key": key,
                "caption": image.caption,
                "style": image.style,
                "class": image.class_name,
                "origin": image.origin,
            }
            _add(tar, f"{key}.jpg", image.jpeg)
            _add(tar, f"{key}.txt", image.caption.encode())
            _add(tar, f"{key}.json", json.dumps(facts).encode())
    count = len(part.indices)
    statistics = {"count": count, "successes": count, "status_dict": {"success": count}}
    write_json(part.statistics(root), statistics)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)  # of time 0 and no owner
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def _write_class_folder(root: Path, parameters: Parameters, part: Part) -> None:
    """Fill a folder elsewhere, then give it its name."""
    from pipeline.data.world.items import classed_image

    final = part.path(root)
    final.parent.mkdir(parents=True, exist_ok=True)
    (root / _UNFINISHED).mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root / _UNFINISHED) as temporary:
        folder = Path(temporary) / final.name
        folder.mkdir()
        for index in part.indices:
            image = classed_image(parameters.seed, part.set, index)
            (folder / f"{index:05d}.jpg").write_bytes(image)
        folder.rename(final)


def _write_lists(root: Path, parameters: Parameters) -> None:
    shutil.rmtree(root / _UNFINISHED, ignore_errors=True)
    shards = (part for part in parts(parameters) if part.set == POOL)
    sizes = {part.path(root).name: len(part.indices) for part in shards}
    write_json(root / POOL / "sizes.json", sizes)
    write_text(root / "classes.txt", "".join(f"{name}\t{name}\n" for name in CLASSES))
    write_text(root / MODEL, (files("pipeline.data.world") / MODEL).read_text(encoding="utf-8"))


def _counts(root: Path, parameters: Parameters) -> dict[str, Any]:
    """Count what was drawn, from the tars themselves."""
    styles: Counter[str] = Counter()
    origins: Counter[str] = Counter()
    for part in parts(parameters):
        if part.set == POOL:
            for facts in _facts(part.path(root)):
                styles[facts["style"]] += 1
                origins[(facts["origin"] or "/").partition("/")[0]] += 1
    tests = parameters.test_per_class * len(CLASSES)
    return {
        POOL: styles.total(),
        "shards": parameters.shards,
        "styles": dict(sorted(styles.items())),
        "reposts": origins[POOL],
        "leaks": {name: origins[name] for name in TEST_STYLES},
        REFERENCE: parameters.reference_per_class * len(CLASSES),
        "tests": dict.fromkeys(TEST_STYLES, tests),
    }


def _facts(shard: Path) -> Iterator[dict[str, Any]]:
    with tarfile.open(shard) as tar:
        for entry in tar:
            if entry.name.endswith(".json"):
                content = tar.extractfile(entry)
                assert content is not None
                yield json.load(content)


@contextmanager
def _shown(words: str, unit: str) -> Iterator[Advance]:
    """Show progress: a bar on a terminal, else a line every few seconds."""
    if not sys.stdout.isatty():
        yield _lines(words, unit)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeElapsedColumn())
    with Progress(TextColumn("{task.description:<22}"), *columns) as bar:
        task = bar.add_task(words, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(words: str, unit: str) -> Advance:
    said = time.monotonic()

    def advance(done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= _SECONDS_BETWEEN_LINES or done == total:
            said = now
            print(f"{words}: {done:,} of {total:,} {unit}", flush=True)

    return advance
