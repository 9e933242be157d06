"""One training in several processes: one model, and no process waits for one that is gone."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip_train import main
from open_clip_train.scheduler import cosine_lr

from hpc.distributed import Leader, Place, follow, slurm_place, torch_environment
from hpc.files import read_json, write_text
from hpc.stage import Context, DistributedStage, Resources
from pipeline.experiment.sections import Pool, ReferenceSet, Training
from pipeline.layout import Layout
from pipeline.stages.train import Train
from pipeline.subsets.shards import Shard
from pipeline.training.options import replaced
from tests.pipeline.training.test_train import draw_shards, load, run

STEPS: dict[str, Any] = {
    "batch-size": 4,  # four steps an epoch
    "local-loss": True,
    "gather-with-grad": True,
}
PATIENCE = 240
"""Seconds in which processes end on a busy machine; torch's own would wait for half an hour."""


@pytest.fixture(scope="module")
def four_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world with a shard for each of four processes."""
    return draw_shards(tmp_path_factory.mktemp("training") / "four", 4)


def work_together(world: Path, folder: Path, trainings: dict[str, dict[str, Any]]) -> None:
    """What each process of a job does here: the trainings, and a note of the weights it ends with.

    With `die` a training's rank 3 is killed at that step.
    """
    place = slurm_place(os.environ)
    os.environ.update(torch_environment(place))
    one_epoch = main.train_one_epoch

    def noted_epoch(model: torch.nn.Module, *rest: Any, **named: Any) -> None:
        one_epoch(model, *rest, **named)
        # Not the buffers: batch normalisation's are each rank's own until the next step.
        weights = b"".join(one.detach().numpy().tobytes() for one in model.parameters())
        with (folder / f"weights-{place.rank}").open("a") as notes:
            notes.write(hashlib.sha256(weights).hexdigest() + "\n")

    def act(order: dict[str, Any], on_start: Callable[[], None] | None = None) -> None:
        options = dict(order["options"])
        die = options.pop("die", None)

        def scheduler(*settings: Any) -> Callable[[int], None]:
            def step(number: int) -> None:
                if number == die and place.rank == 3:
                    os.kill(os.getpid(), signal.SIGKILL)
                schedule(number)

            schedule = cosine_lr(*settings)
            return step

        with replaced(main, "cosine_lr", scheduler):
            run(world, folder / order["name"], on_start=on_start, **options)

    with replaced(main, "train_one_epoch", noted_epoch):
        if place.rank:
            follow(place, act)
            return
        with Leader(place, lambda fault: print("fault:", fault["error"], flush=True)) as leader:
            for name, options in trainings.items():
                order = {"name": name, "options": options}
                act(order, on_start=partial(leader.call, order))


@dataclass
class Job:
    """Four processes on two nodes, as Slurm would start them."""

    processes: list[subprocess.Popen[str]]

    @classmethod
    def start(cls, world: Path, folder: Path, trainings: dict[str, dict[str, Any]]) -> Job:
        code = (
            "import json, sys; from pathlib import Path\n"
            "from tests.pipeline.training.test_processes import work_together\n"
            "work_together(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))"
        )
        words = [sys.executable, "-c", code, str(world), str(folder), json.dumps(trainings)]
        slurm = {
            "SLURM_NTASKS": "4",
            "SLURM_NTASKS_PER_NODE": "2",
            "SLURM_JOB_ID": str(64 * os.getpid()),
            "SLURM_JOB_NODELIST": "no-such-host[01-02]",
            "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
        }
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        ranks = [{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank % 2)} for rank in range(4)]
        return cls(
            [subprocess.Popen(words, env={**os.environ, **slurm, **one}, **pipes) for one in ranks]
        )

    def wait(self) -> list[tuple[int, str]]:
        """Exit code and output of each process."""
        try:
            outputs = [process.communicate(timeout=PATIENCE)[0] for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return [(one.returncode, said) for one, said in zip(self.processes, outputs, strict=True)]


@pytest.mark.timeout(4 * PATIENCE)
def test_four_processes_train_one_model_and_go_on_when_one_was_killed(
    four_shards: Path, tmp_path: Path
) -> None:
    job = Job.start(four_shards, tmp_path, {"first": {**STEPS, "die": 5}})
    job.processes[3].wait(timeout=PATIENCE)
    killed = time.monotonic()
    ends = job.wait()
    assert time.monotonic() - killed < PATIENCE
    assert [code for code, _ in ends] == [1, 1, 1, -signal.SIGKILL], ends
    assert "rank 3 on" in ends[0][1] and "ended without a word" in ends[0][1]
    assert epoch(tmp_path, "first") == 1

    second = {**STEPS, "epochs": 1, "seed": 1}
    no_number = {**STEPS, "lr": 1e30, "warmup": 0}
    run(four_shards, tmp_path / "alone", **second)  # and three more join later
    trainings = {"first": STEPS, "second": second, "alone": STEPS, "no number": no_number}
    ends = Job.start(four_shards, tmp_path, trainings).wait()
    assert [code for code, _ in ends] == [1, 1, 1, 1], ends
    assert "FloatingPointError: the loss is not a number in epoch 1 of 2" in ends[0][1]
    assert epoch(tmp_path, "first") == 2 and epoch(tmp_path, "second") == 1
    log = (tmp_path / "first" / "out.log").read_text()
    assert [log.count(f"Start epoch {one}") for one in (0, 1)] == [1, 2]
    logs = {path.name for path in (tmp_path / "second").glob("*.log")}
    assert logs == {"out.log", "out-1.log", "out-2.log", "out-3.log"}
    noted = {(tmp_path / f"weights-{rank}").read_text() for rank in range(4)}
    assert len(noted) == 1 and len(set(noted.pop().split())) == 4  # epochs: 1; 2, 1, 2
    assert load(run(four_shards, tmp_path / "second", **STEPS))["epoch"] == 2  # and one alone again


def test_a_stage_follows_the_same_training_and_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(tmp_path)
    (tmp_path / "pool.tar").touch()
    settings = Training(model="RN50", epochs=2, batch_size=8, options={"accum-freq": 2})
    sections = Pool(shards=str(tmp_path / "pool.tar")), ReferenceSet(images=tmp_path)
    stage = Train(layout, *sections, {"all": None}, settings)
    data = [Shard(tmp_path / name, samples) for name, samples in (("0.tar", 30), ("1.tar", 34))]
    monkeypatch.setattr("pipeline.subsets.shards.training_shards", lambda *_: data)
    calls: list[dict[str, Any]] = []

    def train(**named: Any) -> Path:
        calls.append(named)
        checkpoint: Path = named["folder"] / "checkpoints" / "epoch_latest.pt"
        beside = [named["folder"] / name for name in ("out.log", "out-1.log", "curve.csv")]
        for name in (checkpoint, *beside):
            write_text(name, name.name)
        return checkpoint

    monkeypatch.setattr("pipeline.stages.train.train", train)
    for name, value in torch_environment(Place(world=4, local_world=4)).items():
        monkeypatch.setenv(name, value)
    started: list[str] = []
    context = Context(
        digest="d",
        inputs={"subset/all/00000": "s"},
        resources=Resources(processes=4),
        progress=lambda done, total, unit: None,
        start_followers=lambda: started.append("followers"),
    )
    (task,) = stage.tasks()
    assert isinstance(stage, DistributedStage)
    stage.follow(task, context)
    assert not task.outputs[0].exists()
    counts = stage.run(task, context)
    assert counts["processes"] == 4 and counts["global_batch"] == 64 and counts["samples"] == 64
    assert read_json(task.outputs[0].with_name("training.json"))["counts"] == counts
    assert (task.outputs[0].with_name("out-1.log")).read_text() == "out-1.log"
    calls[1]["on_start"]()
    assert started == ["followers"]
    assert all(calls[0][name] == calls[1][name] for name in calls[0] if name != "on_progress")


def epoch(folder: Path, name: str) -> int:
    return int(load(folder / name / "checkpoints" / "epoch_latest.pt")["epoch"])
