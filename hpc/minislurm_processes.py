"""The processes of a minislurm cluster's jobs, found by their environment and descent."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class _Process:
    parent: int
    session: int
    environment: dict[str, str]


def environment_of(pid: int) -> dict[str, str]:
    """What a process was started with; nothing if it is gone or somebody else's."""
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    pairs = (word.decode(errors="replace").partition("=") for word in words if word)
    return {name: value for name, _, value in pairs}


def job_processes(conf: str, node: str | None = None) -> set[int]:
    """Processes of jobs, and slurmstepd above them.

    A job may clear the environment of what it starts, so what descends from a process that is
    found, or shares its session, is found too.

    Args:
        conf: the cluster's SLURM_CONF.
        node: of this node only.
    """
    running = _running()

    def is_of_a_job(environment: dict[str, str]) -> bool:
        name = environment.get("SLURMD_NODENAME")
        return environment.get("SLURM_CONF") == conf and name is not None and node in (None, name)

    found: set[int] = set()
    new = {pid for pid, one in running.items() if is_of_a_job(one.environment)}
    # slurmstepd overwrites its environment; it is known by its children.
    new |= {
        parent for pid in new if (parent := running[pid].parent) in running and _is_stepd(parent)
    }
    if node is None:  # one that has outlived its children says only whose it is
        new |= {
            pid
            for pid, one in running.items()
            if one.environment.get("SLURM_CONF") == conf and _is_stepd(pid)
        }
    while new:
        found |= new
        related = {pid for pid, one in running.items() if {one.parent, one.session} & found}
        new = related - found
    return found - {os.getpid()}


def kill_jobs(conf: str, node: str | None = None) -> None:
    """Kill every process of jobs, and those that they start meanwhile.

    They are stopped first: a slurmstepd that saw its job die would report that to the controller.

    Raises:
        TimeoutError: some are still there.
    """
    for _ in range(200):
        if not (left := job_processes(conf, node)):
            return
        for how in (signal.SIGSTOP, signal.SIGKILL):
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, how)
        time.sleep(0.02)
    raise TimeoutError(f"processes of jobs that can't be killed: {sorted(left)}")


def _is_stepd(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"slurmstepd")
    except OSError:
        return False


def _running() -> dict[int, _Process]:
    """Every process that is not a zombie."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:  # state, parent, group, session; the name before them may hold anything
            after_name = (entry / "stat").read_text(errors="replace").rpartition(")")[2]
        except OSError:
            continue
        state, parent, _, session = after_name.split()[:4]
        if state != "Z":
            environment = environment_of(int(entry.name))
            found[int(entry.name)] = _Process(int(parent), int(session), environment)
    return found
