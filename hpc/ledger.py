"""Which tasks are done: plain files, one marker per finished task.

    done/<stage>/<task>.<digest>.json    the task finished with this digest
    attempts/<stage>/<task>.json         the latest attempt that has not finished: running or failed
    attempts/<stage>/<task>.lock         held (flock) while a process works on the task

Done means: a marker with today's digest, and outputs that pass their check. Outputs whose size and
time are those of the marker were checked when it was written and are not read again; any other
output is opened and compared with the fingerprint in the marker.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hpc.files import read_json, write_json
from hpc.stage import OutputError, Stage, Task


@dataclass(frozen=True, kw_only=True)
class Marker:
    """What a finished task leaves behind."""

    task: str
    digest: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    """Digest of each input as it was used."""
    input_fingerprints: Mapping[str, str]
    parts: Mapping[str, str]
    """Digest of each part."""
    fingerprints: Mapping[str, str]
    """Content of the outputs: the whole under "", each part under its name."""
    outputs: Mapping[str, Any]
    """Size and time of each output, as `signature` gives them."""
    counts: Mapping[str, Any]
    started: float
    """Seconds since the epoch."""
    seconds: float
    ran_on: Mapping[str, Any] = field(default_factory=dict)
    """Host, job, log and code version, for people."""


def signature(path: Path) -> Any:
    """Size and modification time of a file, or of every file in a folder; None if it is missing."""
    try:
        if path.is_dir():
            return {child.name: signature(child) for child in sorted(path.iterdir())}
        status = path.stat()
    except FileNotFoundError:
        return None
    return [status.st_size, status.st_mtime_ns]


class Ledger:
    """The markers and attempts in a run's folder."""

    def __init__(self, run: Path) -> None:
        self.run = run

    # markers

    def marker_path(self, stage: str, task: str, digest: str) -> Path:
        """Where the marker of a finished task lies."""
        return self.run / "done" / stage / f"{task}.{digest}.json"

    def marker(self, stage: str, task: str, digest: str) -> Marker | None:
        """The marker of a task with this digest, if it finished."""
        return _read_marker(self.marker_path(stage, task, digest))

    def markers(self, stage: str, task: str) -> list[Marker]:
        """The task's markers, whatever their digest, newest first."""
        folder, name = os.path.split(self.run / "done" / stage / task)
        if not os.path.isdir(folder):
            return []
        found = [
            _read_marker(Path(folder, entry))
            for entry in os.listdir(folder)
            if entry.endswith(".json") and entry[:-5].rpartition(".")[0] == name
        ]
        return sorted(filter(None, found), key=lambda marker: -marker.started)

    def stages(self) -> list[str]:
        """The stages of which any task ever finished, by name."""
        folder = self.run / "done"
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def all_markers(self, stage: str) -> Iterator[Marker]:
        """The newest marker of every task of a stage that ever finished, by name."""
        folder = self.run / "done" / stage
        found: dict[str, Marker] = {}
        for path in sorted(folder.rglob("*.json")):
            marker = _read_marker(path)
            if marker and marker.started >= getattr(found.get(marker.task), "started", 0):
                found[marker.task] = marker
        yield from found.values()

    def content(self, name: str, digest: str) -> str | None:
        """The fingerprint of a task's result, or of a part of it, if it was made with this digest.

        Args:
            name: `stage/task`, or `stage/task#part`.
            digest: of the task, or of the part.
        """
        producer, _, part = name.partition("#")
        stage, _, task = producer.partition("/")
        for marker in self.markers(stage, task):
            if digest == (marker.parts.get(part) if part else marker.digest):
                return marker.fingerprints[part]
        return None

    def write_marker(self, stage: str, marker: Marker) -> None:
        """Record a finished task; markers of other digests are dropped, their outputs are gone."""
        path = self.marker_path(stage, marker.task, marker.digest)
        write_json(path, asdict(marker))
        for other in self.markers(stage, marker.task):
            if other.digest != marker.digest:
                self.marker_path(stage, other.task, other.digest).unlink(missing_ok=True)
        self.attempt_path(stage, marker.task).unlink(missing_ok=True)

    def verify(self, stage: Stage, task: Task, marker: Marker, *, thorough: bool = False) -> None:
        """Make sure that a task's outputs are still those of its marker.

        Args:
            stage: the task's stage.
            task: the task.
            marker: its marker.
            thorough: read the outputs even if their size and time have not changed.

        Raises:
            OutputError: an output is missing or differs; the message says which and how.
        """
        now = self._signatures(task)
        for path, seen in now.items():
            if seen is None:
                raise OutputError(f"{path} is missing")
        if now == dict(marker.outputs) and not thorough:
            return
        if stage.check(task, marker.digest) != dict(marker.fingerprints):
            raise OutputError(f"{_changed(now, marker.outputs)} has changed since it was written")

    def _signatures(self, task: Task) -> dict[str, Any]:
        return {os.path.relpath(path, self.run): signature(path) for path in task.outputs}

    def finished(self, stage: Stage, task: Task, digest: str, **record: Any) -> Marker:
        """Check a task's fresh outputs and write its marker."""
        marker = Marker(
            task=task.name,
            digest=digest,
            settings=task.recipe.settings,
            fingerprints=stage.check(task, digest),
            outputs=self._signatures(task),
            **record,
        )
        self.write_marker(stage.name, marker)
        return marker

    # attempts

    def attempt_path(self, stage: str, task: str) -> Path:
        """Where the latest unfinished attempt is described."""
        return self.run / "attempts" / stage / f"{task}.json"

    def attempt(self, stage: str, task: str) -> dict[str, Any] | None:
        """The latest attempt that has not finished, if there is one that can be read."""
        try:
            record = read_json(self.attempt_path(stage, task))
        except (FileNotFoundError, ValueError):
            return None
        whole = isinstance(record, dict) and {"state", "digest", "started"} <= record.keys()
        return record if whole else None

    def all_attempts(self, stage: str) -> Iterator[dict[str, Any]]:
        """The latest attempt of every task of a stage that has not finished, by name."""
        folder = self.run / "attempts" / stage
        for path in sorted(folder.rglob("*.json")):
            if attempt := self.attempt(stage, str(path.relative_to(folder))[: -len(".json")]):
                yield attempt

    def write_attempt(self, stage: str, task: str, record: Mapping[str, Any]) -> None:
        """Describe an attempt: state (running or failed), digest, progress, error, log."""
        write_json(self.attempt_path(stage, task), dict(record))

    def is_locked(self, stage: str, task: str) -> bool:
        """Whether a process on this machine (or a file system with shared locks) works on it."""
        path = self._lock_path(stage, task)
        if not path.exists():
            return False
        with path.open("rb") as file:
            return not _try_lock(file.fileno(), fcntl.LOCK_SH)

    @contextmanager
    def lock(self, stage: str, task: str) -> Iterator[bool]:
        """Try to claim a task; yields whether it is ours. A kill frees it too."""
        path = self._lock_path(stage, task)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            yield _try_lock(file.fileno(), fcntl.LOCK_EX)

    def _lock_path(self, stage: str, task: str) -> Path:
        return self.run / "attempts" / stage / f"{task}.lock"


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # A file system without locks: outputs are still written atomically, only the protection
        # from doing the same work twice is gone.
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    return True


def _changed(now: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    return next((path for path, seen in now.items() if seen != before.get(path)), "an output")


def _read_marker(path: Path) -> Marker | None:
    """A marker that is missing, or that this version of the program can't read, is no marker."""
    try:
        return Marker(**read_json(path))
    except (FileNotFoundError, ValueError, TypeError):
        return None
