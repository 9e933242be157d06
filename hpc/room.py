"""What one machine has for jobs: cores, memory, GPUs."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from hpc.stage import Resources


@dataclass(frozen=True)
class Room:
    """What a machine has for jobs."""

    cpus: int
    memory_gb: float
    gpus: tuple[int, ...]

    def clamp(self, wanted: Resources) -> Resources:
        """What a job gets here: cores and memory no more than there are.

        Raises:
            ValueError: several processes are asked for, or GPUs that are not there: never a slow
                run on the CPU instead.
        """
        if wanted.gpus > len(self.gpus):
            raise ValueError(
                f"{wanted.gpus} GPUs a job are asked for and this machine shows {len(self.gpus)}"
            )
        if wanted.world > 1:
            raise ValueError(
                f"jobs of {wanted.nodes} nodes and {wanted.processes} processes on each are asked "
                "for: without Slurm a job is one process"
            )
        return replace(
            wanted,
            cpus=min(wanted.cpus, self.cpus),
            memory_gb=min(wanted.memory_gb, self.memory_gb),
        )

    def at_once(self, resources: Resources) -> int:
        """How many jobs with these resources fit side by side."""
        fits = [self.cpus // resources.cpus, int(self.memory_gb // resources.memory_gb)]
        if resources.gpus:
            fits.append(len(self.gpus) // resources.gpus)
        return max(1, min(fits))


def this_machine() -> Room:
    """The cores, memory and GPUs that this process may use."""
    return Room(len(os.sched_getaffinity(0)), _memory_gb(), visible_gpus())


def _memory_gb() -> float:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text) / 1e9)
    return total


def visible_gpus() -> tuple[int, ...]:
    """Numbers of the GPUs that this process may use."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return tuple(int(word) for word in chosen.split(",") if word.strip().isdigit())
    driver = Path("/proc/driver/nvidia/gpus")
    return tuple(range(len(list(driver.iterdir())))) if driver.is_dir() else ()
