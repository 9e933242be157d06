"""A real Slurm cluster for the tests of this folder, started once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpc.minislurm import Cluster, Settings, missing_packages


def _start(settings: Settings) -> Iterator[Cluster]:
    if packages := missing_packages(settings.accounting):
        reason = f"needs Slurm; on Debian: apt-get install {' '.join(packages)}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="simgap-slurm-") as folder:
        cluster = Cluster(Path(folder), settings)
        cluster.up()
        with pytest.MonkeyPatch.context() as patched:
            for name, value in cluster.environment.items():
                patched.setenv(name, value)
            yield cluster
        cluster.down()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Four nodes with four cores and two GPUs each, with accounting; SLURM_CONF is set."""
    yield from _start(Settings())
