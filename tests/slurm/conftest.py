"""A real Slurm cluster for the tests of this folder, started once, and the toy study on it."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hpc import slurm
from hpc.executors import run_inline
from hpc.ledger import Ledger
from hpc.minislurm import Cluster, Settings, missing_packages
from hpc.plan import Plan, make_plan
from hpc.profile import Profile
from hpc.queued import RunQueue, run_queue
from hpc.submission import alone, decide, slurm_stages, submit_stages
from hpc.triage import triage
from tests.hpc import toy
from tests.hpc.conftest import Study


def start(settings: Settings) -> Iterator[Cluster]:
    """A cluster that this process's Slurm commands go to, while it is there."""
    if packages := missing_packages(settings.accounting):
        reason = f"needs Slurm; on Debian: apt-get install {' '.join(packages)}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="simgap-slurm-"))
    cluster = Cluster(folder, settings)
    cluster.up()
    with pytest.MonkeyPatch.context() as patched:
        for name, value in cluster.environment.items():
            patched.setenv(name, value)
        slurm.configuration.cache_clear()
        yield cluster
    slurm.configuration.cache_clear()
    cluster.down()
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Four nodes with four cores and two GPUs each, with accounting; SLURM_CONF is set."""
    yield from start(Settings())


@dataclass
class SlurmStudy(Study):
    """The toy study, submitted to Slurm as `simgap submit` does it."""

    settings: dict[str, Any] = field(default_factory=dict)
    """Of the profile, for both stages."""
    lines: list[str] = field(default_factory=list)
    """What the latest submission printed."""

    @property
    def profile(self) -> Profile:
        """Small jobs that stop 10 s before their time is up."""
        small = {"memory_gb": 0.2, "minutes": 5, "signal_seconds": 10}
        return Profile(name="test", cluster="slurm", defaults={**small, **self.settings})

    def to_slurm(self, *patterns: str) -> dict[str, str]:
        """Submit whatever is neither done nor queued; returns the id of each stage's job."""
        self.lines = []
        with alone(self.run, patience=60):
            decision = decide(self.run, self.assess, "slurm", patterns)
            if not decision.todo:
                return {}
            plan = self.plan_of(decision.todo)
            return submit_stages(plan, self.profile, decision.queue, self.lines.append)

    def plan_of(self, todo: Any) -> Plan:
        """Write the plan of some tasks."""
        return make_plan(
            todo,
            slurm_stages(todo, self.profile, slurm.max_array_size()),
            run=self.run,
            builder="tests.hpc.toy:build",
            study=self.values,
            submitted={"command": "simgap submit toy.yaml --profile test"},
        )

    def queue(self) -> RunQueue:
        """The run's jobs."""
        return run_queue(self.run)

    def attempt(self, name: str) -> dict[str, Any]:
        """The latest attempt at a task `stage/task`, or nothing."""
        stage, _, task = name.partition("/")
        return Ledger(self.run).attempt(stage, task) or {}

    def wait(self, until: Callable[[], object], seconds: float = 60) -> None:
        """Wait until something is true."""
        ends = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < ends, f"waited in vain\n{self.told()}"
            time.sleep(0.1)

    def let_go(self) -> None:
        """Let tasks with the text `held` end."""
        (self.run / toy.GO).touch()

    def wait_for_all_but_b(self) -> None:
        """Wait until the other letters are done, and their jobs gone, and `b` is at work."""
        others = {f"write/letters/{name}" for name in self.texts if name != "b"}
        self.wait(lambda: self.attempt("write/letters/b").get("progress", {}).get("done", 0) > 0)
        self.wait(lambda: {self.states()[name] for name in others} == {"done"})
        self.wait(lambda: not others & set(self.queue().tasks))

    def wait_for_end(self, seconds: float = 60) -> None:
        """Wait until no job of the run is left in the queue."""
        self.wait(lambda: not self.queue().jobs, seconds)

    def is_done(self) -> bool:
        """Whether every task is."""
        return set(self.states().values()) == {"done"}

    def times_run(self) -> Counter[str]:
        """How often each task was run since last asked."""
        return Counter(self.ran())

    def causes(self) -> dict[str, str]:
        """Kind of cause of each failed task, as `simgap logs` finds it."""
        queue = self.queue()
        found = triage(self.run, self.assess(), queue)
        return {failure.reference: failure.cause.kind for failure in found.failures}

    def told(self) -> str:
        """The queue and all logs, for a test that failed."""
        logs = sorted((self.run / "logs").rglob("*_log.out"))
        texts = [f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in logs]
        return "\n".join([*map(str, slurm.queue()), *texts])


@pytest.fixture
def slurm_study(cluster: Cluster, tmp_path: Path) -> Iterator[SlurmStudy]:
    """A new toy study; what it leaves in the queue is cancelled."""
    run = tmp_path / "run with spaces, 'quotes', \"more\" and ümlauts"
    run.mkdir()
    study = SlurmStudy(run)
    yield study
    study.let_go()
    if left := [job.id for job in study.queue().jobs]:
        slurm.cancel(left)
        study.wait_for_end()


@pytest.fixture
def expected(tmp_path: Path) -> Callable[[SlurmStudy], dict[str, str]]:
    """What the same study gives in one process, without Slurm: content by file name."""

    def run(study: SlurmStudy) -> dict[str, str]:
        inline = Study(tmp_path / "inline", study.texts, study.words)
        inline.run.mkdir()
        names = [name.partition("/")[2] for name in inline.states()]
        (inline.run / "runs.log").write_text("\n".join([*names, ""]))  # it is not their first time
        assert inline.submit(run_inline) == []
        return outputs(inline)

    return run


def outputs(study: Study) -> dict[str, str]:
    """Every output of a toy study."""
    return {path.name: path.read_text() for path in study.run.glob("[12]_*/*.txt")}
