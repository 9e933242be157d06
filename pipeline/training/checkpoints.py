"""The checkpoints of a training in progress: the newest whole one wins; one before it is kept."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hpc.files import atomic_path
from pipeline.checkpoints import CheckpointError, check_finite, read_checkpoint

LATEST = "epoch_latest.pt"
"""open_clip_train's name for the last; appears by rename."""
_BEING_WRITTEN = re.compile(r"tmp|epoch_\d+")
"""open_clip_train's names for what it writes in place: cut off by a kill, as a matter of course."""


@dataclass(frozen=True)
class _Candidate:
    """A checkpoint that opens."""

    epoch: int
    path: Path


def take_newest_whole(folder: Path, epochs: int, say: Callable[[str], None]) -> int:
    """Make the newest whole checkpoint the one from which open_clip_train goes on.

    A newer one that is cut off or not finite is set aside, as `<name>.damaged`, and told.

    Args:
        folder: of the checkpoints; it may be absent.
        epochs: how many this training has, counted as the checkpoints count.
        say: is told what was set aside.

    Returns:
        Finished epochs: 0 if the training has not come to its first checkpoint.

    Raises:
        ValueError: there were checkpoints and none is whole, or the newest is of another training.
    """
    candidates, damaged = _look(folder)
    for candidate in candidates:
        if candidate.epoch > epochs:
            raise ValueError(
                f"{candidate.path}: of epoch {candidate.epoch}, but this training has {epochs}; is "
                "it another's?"
            )
        try:
            check_finite(candidate.path, read_checkpoint(candidate.path)["state_dict"])
        except CheckpointError as error:
            damaged[candidate.path] = str(error)
            continue
        _set_aside(damaged, f"going on from {candidate.path.name}, the one before", say)
        if candidate.path.name != LATEST:
            link_or_copy(candidate.path, folder / LATEST)
        return candidate.epoch
    lost = {path: why for path, why in damaged.items() if not _BEING_WRITTEN.fullmatch(path.stem)}
    if lost:
        raise ValueError(
            f"{folder}: no whole checkpoint, and nothing trains from scratch unasked: "
            f"{'; '.join(lost.values())}. To begin anew, remove {folder.parent}"
        )
    return 0


def _look(folder: Path) -> tuple[list[_Candidate], dict[Path, str]]:
    """Those that open, the newest first, and why the others don't."""
    found, damaged = [], {}
    for path in sorted(folder.glob("*.pt"), key=lambda path: path.name != LATEST):
        if path.name == "tmp.pt":
            continue
        try:
            content = read_checkpoint(path)
            found.append(_Candidate(int(content["epoch"]), path))
            _ = content["state_dict"].items()
        except (CheckpointError, LookupError, TypeError, AttributeError) as error:
            told = error if isinstance(error, CheckpointError) else f"{path}: not of a training"
            damaged[path] = str(told)
    found = [one for one in found if one.path not in damaged]
    return sorted(found, key=lambda one: -one.epoch), damaged


def _set_aside(damaged: dict[Path, str], instead: str, say: Callable[[str], None]) -> None:
    for path, why in damaged.items():
        if _BEING_WRITTEN.fullmatch(path.stem):
            path.unlink()
            continue
        path.replace(path.with_suffix(".damaged"))
        say(f"warning: {why}; set aside as {path.stem}.damaged, {instead}")


def keep_one_before(folder: Path, epoch: int) -> None:
    """Keep the last checkpoint beside the next, and drop those before it.

    Args:
        folder: of the checkpoints.
        epoch: which the last one ends.
    """
    if epoch == 0 or not (folder / LATEST).exists():
        return
    if not (kept := _kept(folder, epoch)).exists():
        link_or_copy(folder / LATEST, kept)
    for path in folder.glob(_kept(folder, "*").name):
        if path not in (kept, _kept(folder, epoch - 1)):
            path.unlink()


def _kept(folder: Path, epoch: int | str) -> Path:
    return folder / f"kept_{epoch}.pt"


def drop_redundant(checkpoint: Path) -> None:
    """Remove all but the last: copies of it, the one before, and a cut-off write."""
    for path in checkpoint.parent.iterdir():
        if path != checkpoint:
            path.unlink()


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file another name, atomically; where the file system has no links, a copy."""
    with atomic_path(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
