"""A whole study on Slurm through its commands: four nodes, trainings of two nodes with two ranks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpc.minislurm import Cluster
from hpc.minislurm_processes import environment_of, job_processes
from hpc.queued import run_queue
from pipeline import artifacts
from tests.pipeline import small
from tests.pipeline.small import SmallStudy

PROFILE = {
    "cluster": "slurm",
    "defaults": {"cpus": 1, "memory_gb": 2, "minutes": 20, "signal_seconds": 20},
    "stages": {
        "embed": {"tasks_per_job": 2},
        "mask": {"tasks_per_job": 4},
        "scan": {"tasks_per_job": 3},
        "train": {"nodes": 2, "processes": 2, "gpus": 2, "memory_gb": 4},
        "evaluate": {"tasks_per_job": 2},
    },
    "environment": {"HF_HUB_OFFLINE": 1},
}


@pytest.fixture(scope="module")
def study(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> SmallStudy:
    made = small.make(tmp_path_factory.mktemp('a study\'s "ümlauts"'))
    values = yaml.safe_load(made.experiment.read_text())
    values["training"] |= {
        "splits": ["full", "sketch-control"],
        "samples_per_shard": 5,  # four ranks need four tars
        "batch_size": 4,
    }
    made.experiment.write_text(yaml.safe_dump(values))
    (made.folder / "site.yaml").write_text(yaml.safe_dump(PROFILE))
    return made


def _submit(study: SmallStudy, *words: str) -> str:
    return study.submit("--profile", "site.yaml", *words)


def _wait(
    study: SmallStudy, until: Callable[[], object] | None = None, seconds: float = 200
) -> None:
    ends = time.monotonic() + seconds
    while not (until() if until else not run_queue(study.run).jobs):
        logs = sorted((study.run / "logs").rglob("*_log.out"))
        told = "\n".join(f"--- {log.name}\n{log.read_text()[-2000:]}" for log in logs)
        assert time.monotonic() < ends, told
        time.sleep(0.2)


def _status(study: SmallStudy, *words: str) -> dict[str, Any]:
    done = study.simgap("status", "small.yaml", "--json", *words)
    assert done.returncode == 0, done.stderr
    return {stage["stage"]: stage for stage in json.loads(done.stdout)["stages"]}


def test_the_whole_study(study: SmallStudy, tmp_path: Path) -> None:
    printed = _submit(study)
    stages = ("embed", "reference", "scan", "mask", "subset", "train", "evaluate", "report")
    told = [line.split()[0] for line in printed.splitlines() if " job " in line]
    assert tuple(told) == stages
    assert "simgap status runs/small --watch" in printed
    assert "of them are in Slurm's queue already" in _submit(study, "--dry-run")
    status = _status(study)
    assert status["report"]["queued"] == 1
    assert status["train"]["waits"][0]["reason"] == "waits for subset"
    _wait(study)
    status = _status(study)
    assert {name for name, one in status.items() if one["total"]} == set(stages)
    assert {one["done"] - one["total"] for one in status.values()} == {0}
    assert status["train"]["gpu_hours"]["used"] > 0
    assert (study.run / "9_report" / "index.html").is_file()
    assert {marker["ran_on"]["cluster"] for marker in study.markers().values()} == {"slurm"}
    training = json.loads((study.run / "7_training/full/seed-0/training.json").read_text())
    assert (training["counts"]["processes"], training["counts"]["global_batch"]) == (4, 16)
    assert "up to date" in _submit(study)
    assert study.simgap("logs", "small.yaml").returncode == 0

    shutil.copytree(study.folder, tmp_path / "local", ignore=shutil.ignore_patterns("runs"))
    local = SmallStudy(tmp_path / "local")
    local.submit("--until", "mask", "--cluster", "inline")
    assert _masks(local) == _masks(study)


def _masks(study: SmallStudy) -> dict[str, bytes]:
    masks = sorted((study.run / "5_masks").glob("*.h5"))
    found = {path.stem: artifacts.read(path, artifacts.MASK)["keep"].tobytes() for path in masks}
    assert len(found) == 4
    return found


def test_a_training_that_loses_a_rank_goes_on_from_its_last_epoch(
    study: SmallStudy, cluster: Cluster
) -> None:
    import torch

    longer = ("training.epochs=3", "training.samples_per_epoch=640", "--split", "full")
    _submit(study, *longer)
    attempt_path = study.run / "attempts/train/full/seed-0.json"

    def samples() -> int:
        return int(_read(attempt_path).get("progress", {}).get("done", 0))

    _wait(study, lambda: samples() > 800)  # in the second epoch
    conf = cluster.environment["SLURM_CONF"]
    ranks: dict[str | None, int] = {}
    for pid in sorted(job_processes(conf)):
        ranks.setdefault(environment_of(pid).get("SLURM_PROCID"), pid)  # not its data loaders
    os.kill(ranks["3"], signal.SIGKILL)
    _wait(study)
    logs = study.simgap("logs", "small.yaml", *longer[:2])
    assert logs.returncode == 1
    assert "rank 3 on" in logs.stdout and "full/seed-0" in logs.stdout, logs.stdout
    _submit(study, *longer)
    _wait(study)
    checkpoint = torch.load(study.run / "7_training/full/seed-0/checkpoint.pt", weights_only=True)
    assert checkpoint["epoch"] == 3
    said = (study.run / "7_training/full/seed-0/out.log").read_text()
    assert [said.count(f"Start epoch {epoch}") for epoch in range(3)] == [1, 2, 1]


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.exists() else {}


def test_cancel_ends_the_jobs_and_submit_goes_on(study: SmallStudy) -> None:
    other = ("training.seeds=[5]",)
    _submit(study, *other)
    done = study.simgap("cancel", "small.yaml", *other)
    assert done.returncode == 0
    assert "train      cancelled: job" in done.stdout
    _wait(study)
    assert _status(study, *other)["train"]["queued"] == 0
    assert "nothing to cancel" in study.simgap("cancel", "small.yaml", *other).stdout
    assert "4 tasks" not in _submit(study, *other, "--dry-run")
