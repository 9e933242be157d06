from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from hpc.profile import Container, ProfileError, SlurmOptions, load_profile
from hpc.stage import Resources

STAGES = ("embed", "train")


def _write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "site.yaml"
    path.write_text(text)
    return path


def test_a_stage_has_the_defaults_and_its_own_values(tmp_path: Path) -> None:
    text = "defaults: {cpus: 2, qos: low}\nstages: {train: {gpus: 4, memory_gb: 1.5, qos: high}}"
    profile = load_profile(_write(tmp_path, text), STAGES)
    assert (profile.name, profile.cluster) == ("site", "local")
    assert profile.resources("train") == Resources(cpus=2, gpus=4, memory_gb=1.5)
    assert profile.resources("embed") == Resources(cpus=2)
    assert (profile.slurm("embed").qos, profile.slurm("train").qos) == ("low", "high")


def test_an_empty_profile_asks_slurm_for_nothing(tmp_path: Path) -> None:
    profile = load_profile(_write(tmp_path, ""), STAGES)
    assert profile.resources("train") == Resources()
    assert profile.slurm("train") == SlurmOptions()
    assert profile.environment("train") == {}
    asked = profile.slurm("train")
    assert not (asked.partition or asked.account or asked.qos or asked.constraint or asked.sbatch)


VALUES: dict[str, tuple[str, Any]] = {
    "nodes": ("2", 2),
    "processes": ("4", 4),
    "cpus": ("8", 8),
    "gpus": ("4", 4),
    "memory_gb": ("0.5", 0.5),
    "minutes": ("30", 30),
    "partition": ("gpu,spare", "gpu,spare"),
    "account": ("lab", "lab"),
    "qos": ("high", "high"),
    "constraint": ("a100&ib", "a100&ib"),
    "array_parallelism": ("20", 20),
    "tasks_per_job": ("3", 3),
    "max_requeues": ("0", 0),
    "signal_seconds": ("0", 0),
    "setup": ("[module load cuda, 'ulimit -n 4096']", ("module load cuda", "ulimit -n 4096")),
    "python": ("conda run -n clip python", "conda run -n clip python"),
    "container": (
        "{runtime: pyxis, image: 'nvcr.io#nvidia/pytorch', arguments: [--container-mounts=/a]}",
        Container(
            runtime="pyxis", image="nvcr.io#nvidia/pytorch", arguments=("--container-mounts=/a",)
        ),
    ),
    "sbatch": ("{--exclude: node7, nice: 100}", {"exclude": "node7", "nice": "100"}),
}


def test_the_table_above_has_every_key() -> None:
    assert list(VALUES) == [one.name for kind in (Resources, SlurmOptions) for one in fields(kind)]


@pytest.mark.parametrize("key", VALUES)
@pytest.mark.parametrize("place", ["defaults: {%s}", "stages: {train: {%s}}"])
def test_each_key_is_read(tmp_path: Path, key: str, place: str) -> None:
    text, value = VALUES[key]
    extra = "gpus: 4, " if key == "processes" else ""  # as many GPUs as processes
    text = place % f"{extra}{key}: {text}" if key != "constraint" else place % f"{key}: '{text}'"
    if key == "partition":
        text = place % f"{key}: '{VALUES[key][0]}'"
    profile = load_profile(_write(tmp_path, text), STAGES)
    asked, chosen = profile.resources("train"), profile.slurm("train")
    assert getattr(asked if hasattr(asked, key) else chosen, key) == value


def test_environments_add_up_and_the_stage_comes_first(tmp_path: Path) -> None:
    text = "environment: {A: 1, B: 2}\nstages: {train: {environment: {B: 3, C: x}}}"
    profile = load_profile(_write(tmp_path, text), STAGES)
    assert profile.environment("embed") == {"A": "1", "B": "2"}
    assert profile.environment("train") == {"A": "1", "B": "3", "C": "x"}


def test_an_environment_may_stand_in_the_defaults_too(tmp_path: Path) -> None:
    profile = load_profile(_write(tmp_path, "defaults: {environment: {A: 1}}"), STAGES)
    assert profile.environment("embed") == {"A": "1"}


def test_a_stage_may_drop_the_container_of_the_defaults(tmp_path: Path) -> None:
    text = "defaults: {container: {runtime: apptainer, image: a.sif}}\n"
    text += "stages: {train: {container: null}}"
    profile = load_profile(_write(tmp_path, text), STAGES)
    assert profile.slurm("embed").container == Container(runtime="apptainer", image="a.sif")
    assert profile.slurm("train").container is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stage: {}", "stage: unknown key; did you mean 'stages'?"),
        ("cluster: slrum", "cluster: expected one of ('slurm', 'local', 'inline'), found 'slrum'"),
        ("stages: {trian: {}}", "stages.trian: unknown key; did you mean 'train'?"),
        ("stages: {train: {gpu: 1}}", "stages.train.gpu: unknown key; did you mean 'gpus'?"),
        ("defaults: {time: 1}", "defaults.time: unknown key; "),
        ("defaults: {cpus: 0}", "defaults.cpus: expected a whole number of at least 1, found 0"),
        (
            "defaults: {cpus: 1.5}",
            "defaults.cpus: expected a whole number of at least 1, found 1.5",
        ),
        (
            "defaults: {cpus: two}",
            "defaults.cpus: expected a whole number of at least 1, found 'two'",
        ),
        (
            "defaults: {nodes: true}",
            "defaults.nodes: expected a whole number of at least 1, found True",
        ),
        ("defaults: {gpus: -1}", "defaults.gpus: expected a whole number of at least 0, found -1"),
        ("defaults: {memory_gb: true}", "defaults.memory_gb: expected a number of at least 0.001"),
        (
            "defaults: {memory_gb: 0}",
            "defaults.memory_gb: expected a number of at least 0.001, found 0",
        ),
        ("defaults: {minutes: '4:00'}", "defaults.minutes: expected a whole number of at least 1"),
        (
            "defaults: {tasks_per_job: 0}",
            "defaults.tasks_per_job: expected a whole number of at least 1",
        ),
        (
            "defaults: {max_requeues: -1}",
            "defaults.max_requeues: expected a whole number of at least 0",
        ),
        ("defaults: {partition: 3}", "defaults.partition: expected one line of text, found 3"),
        ("defaults: {account: ' '}", "defaults.account: expected one line of text, found ' '"),
        ("defaults: {setup: module load cuda}", "defaults.setup: expected a list of lines"),
        ("defaults: {setup: [a, 1]}", "defaults.setup[1]: expected one line of text, found 1"),
        ("defaults: {sbatch: [nice]}", "defaults.sbatch: expected a mapping, found ['nice']"),
        ("defaults: {container: a.sif}", "defaults.container: expected a mapping, found 'a.sif'"),
        (
            "defaults: {container: {runtime: docker, image: a}}",
            "defaults.container.runtime: expected one of ('apptainer', 'singularity', 'pyxis'), "
            "found 'docker'",
        ),
        (
            "defaults: {container: {runtime: apptainer}}",
            "defaults.container.image: expected one line of text, found None",
        ),
        (
            "defaults: {container: {runtime: apptainer, image: a, mounts: []}}",
            "defaults.container.mounts: unknown key; ",
        ),
        ("environment: [A]", "environment: expected a mapping, found ['A']"),
        ("stages: {train: {environment: A}}", "stages.train.environment: expected a mapping"),
        ("stages: {train: 3}", "stages.train: expected a mapping, found 3"),
        ("stages: [train]", "stages: expected a mapping, found ['train']"),
        ("- a", "expected a mapping, found ['a']"),
        ("a: b: c", "not valid YAML"),
        (
            "stages: {train: {minutes: 2}}",
            "train: signal_seconds is 120, but the time limit is 2 minutes: expected less than 120",
        ),
        (
            "defaults: {processes: 2}\nstages: {train: {gpus: 3}}",
            "train: 3 GPUs can't be shared by 2 processes on each node",
        ),
    ],
)
def test_a_bad_profile_says_where(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ProfileError) as error:
        load_profile(_write(tmp_path, text), STAGES)
    assert message in str(error.value)
    assert "site.yaml" in str(error.value)


def test_a_short_time_limit_needs_a_short_notice(tmp_path: Path) -> None:
    text = "stages: {train: {minutes: 2, signal_seconds: 119}}"
    assert load_profile(_write(tmp_path, text), STAGES).slurm("train").signal_seconds == 119


def test_processes_may_share_no_gpu_or_have_equally_many(tmp_path: Path) -> None:
    text = "stages: {embed: {processes: 3}, train: {processes: 2, gpus: 4}}"
    profile = load_profile(_write(tmp_path, text), STAGES)
    assert profile.resources("embed").world == 3
    assert profile.resources("train").gpus == 4


# A profile cannot be changed from outside: jobs are planned from it more than once.
def test_what_a_profile_gives_is_a_copy(tmp_path: Path) -> None:
    profile = load_profile(_write(tmp_path, "environment: {A: 1}"), STAGES)
    profile.environment("train")["A"] = "2"
    assert profile.environment("train") == {"A": "1"}
