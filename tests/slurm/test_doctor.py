"""What the doctor says about a real Slurm."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc import slurm
from hpc.doctor import FAULT, OK, WARNING, Finding, check_slurm
from hpc.minislurm import Cluster
from hpc.profile import load_profile

STAGES = ("embed", "train")
NODE = "the most that a node has is 4 cores, 8.4 GB, 2 GPUs"


def _find(folder: Path, text: str) -> list[Finding]:
    path = folder / "site.yaml"
    path.write_text(f"cluster: slurm\n{text}")
    return list(check_slurm(load_profile(path, STAGES), STAGES))


def _about(found: list[Finding], about: str) -> list[tuple[str, str]]:
    return [(one.verdict, one.says) for one in found if one.about == about]


def test_a_profile_that_fits_is_ok_line_by_line(cluster: Cluster, tmp_path: Path) -> None:
    text = "stages: {train: {nodes: 2, processes: 2, cpus: 2, gpus: 2, memory_gb: 8}}"
    found = _find(tmp_path, f"defaults: {{minutes: 30, partition: short}}\n{text}")
    assert {one.verdict for one in found} == {OK}
    assert [one.about for one in found] == ["Slurm", "arrays", "accounting", "embed", "train"]
    assert found[0].says == f"version {cluster.call('sinfo', '--version').split()[1]} answers"
    assert "up to 1001 jobs" in found[1].says
    assert "sacct answers; accounts of" in found[2].says
    assert "lab" in found[2].says
    assert found[4].says == (
        "2 nodes, each 4 cores, 8 GB, 2 GPUs, 30 minutes, told to stop 120 s before; Slurm would "
        "take it"
    )


def test_nothing_is_submitted(cluster: Cluster, tmp_path: Path) -> None:
    _find(tmp_path, "")
    assert slurm.queue() == []


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ("partition: gpu", "no partition 'gpu' here"),
        ("partition: 'main,gpu'", "no partition 'gpu' here"),
        ("partition: short, minutes: 31", "minutes: 31, but partition short ends jobs after 30"),
        ("cpus: 5", f"1 node with 5 cores, 2 GB: partition main has 0 such nodes; {NODE}"),
        ("processes: 3, cpus: 2", "1 node with 6 cores, 2 GB: partition main has 0 such nodes"),
        ("memory_gb: 8.5", "1 node with 1 core, 8.5 GB: partition main has 0 such nodes"),
        ("gpus: 3", "1 node with 1 core, 2 GB, 3 GPUs: partition main has 0 such nodes"),
        ("nodes: 5", "5 nodes with 1 core, 2 GB: partition main has 4 such nodes"),
        ("constraint: fast", "Slurm refuses: "),
        ("sbatch: {exclude: 'node[1-4]'}", "Slurm refuses: "),
        ("sbatch: {no-such-option: 1}", "Slurm refuses: "),
        ("container: {runtime: apptainer, image: /no/such.sif}", "no container image /no/such.sif"),
        ("container: {runtime: pyxis, image: a}", "the pyxis plugin is missing"),
    ],
)
def test_what_can_not_run_is_a_fault(
    cluster: Cluster, tmp_path: Path, keys: str, says: str
) -> None:
    found = _find(tmp_path, f"stages: {{train: {{{keys}}}}}")
    faults = [one for one in found if one.verdict == FAULT]
    assert [one.about for one in faults] == ["train"]
    assert faults[0].says.startswith(says) or says in faults[0].says
    assert faults[0].do
    assert [verdict for verdict, _ in _about(found, "embed")] == [OK]


def test_one_partition_of_several_is_enough(cluster: Cluster, tmp_path: Path) -> None:
    found = _find(tmp_path, "stages: {train: {partition: 'short,main', minutes: 31}}")
    assert [verdict for verdict, _ in _about(found, "train")] == [OK]


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ("account: other", "account 'other' is none of yours"),
        ("account: lab, qos: high", "qos 'high' is none of yours"),
        ("signal_seconds: 0", "signal_seconds is 0"),
        ("sbatch: {time: 10}", "sbatch: time overrides minutes"),
        ("sbatch: {signal: USR1@60}", "sbatch: signal: simgap stops and resumes jobs by its own"),
        ("python: /no/such/python", "python: '/no/such/python' is not found here"),
        ("container: {runtime: apptainer, image: 'docker://a'}", "apptainer is not found"),
    ],
)
def test_what_may_not_work_is_a_warning(
    cluster: Cluster, tmp_path: Path, keys: str, says: str
) -> None:
    found = _about(_find(tmp_path, f"stages: {{train: {{{keys}}}}}"), "train")
    assert [verdict for verdict, _ in found] == [WARNING]
    assert found[0][1].startswith(says)


def test_setup_lines_may_bring_python(cluster: Cluster, tmp_path: Path) -> None:
    found = _find(tmp_path, "stages: {train: {python: clip-python, setup: [module load clip]}}")
    assert [verdict for verdict, _ in _about(found, "train")] == [OK]


def test_variables_that_a_submission_ignores_are_named(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_TIMELIMIT", "5")
    monkeypatch.setenv("SBATCH_EXCLUSIVE", "user")
    found = [one for one in _find(tmp_path, "") if one.about == "environment"]
    assert [one.verdict for one in found] == [WARNING, WARNING]
    assert "SBATCH_EXCLUSIVE=user is ignored" in found[0].says
    assert found[0].do.endswith("sbatch: {exclusive: ...}")
    assert found[1].do.endswith("put it into the profile: minutes")


def test_inside_a_job_its_variables_are_one_line(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    found = _find(tmp_path, "")
    assert [one.verdict for one in found] == [OK] * len(found)
    assert [one.says for one in found if one.about == "environment"] == [
        "this shell is inside job 7; submissions don't take over its variables"
    ]


def test_a_partition_that_is_down_and_nodes_that_are_away(cluster: Cluster, tmp_path: Path) -> None:
    cluster.call("scontrol", "update", "PartitionName=short", "State=DOWN")
    cluster.call(
        "scontrol", "update", "NodeName=node[2-4]", "State=DRAIN", "Reason=disk full = bad"
    )
    try:
        text = "defaults: {minutes: 30, nodes: 2, partition: short}\nstages: {embed: {nodes: 1}}"
        found = _find(tmp_path, text)
    finally:
        cluster.call("scontrol", "update", "NodeName=node[2-4]", "State=RESUME")
        cluster.call("scontrol", "update", "PartitionName=short", "State=UP")
    assert _about(found, "embed") == [(FAULT, "partition short is DOWN")]
    assert _about(found, "train") == [
        (FAULT, "partition short is DOWN"),
        (WARNING, "of 4 nodes of short that fit, 1 takes jobs now"),
    ]


def test_without_slurm_there_is_one_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = _find(tmp_path, "")
    assert [(one.verdict, one.about) for one in found] == [(FAULT, "Slurm")]
    assert "sbatch" in found[0].says


def test_a_controller_that_is_away_is_one_fault(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.configuration.cache_clear()
    away = tmp_path / "slurm.conf"
    lines = (cluster.folder / "slurm.conf").read_text().splitlines()
    kept = [line for line in lines if not line.startswith(("SlurmctldPort", "MessageTimeout"))]
    away.write_text("\n".join([*kept, "SlurmctldPort=9", "MessageTimeout=2"]))
    monkeypatch.setenv("SLURM_CONF", str(away))
    found = _find(tmp_path, "")
    slurm.configuration.cache_clear()
    assert [(one.verdict, one.about) for one in found] == [(FAULT, "Slurm")]
    assert found[0].says.startswith("scontrol: ")


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("UNLIMITED", None), ("7-00:00:00", 10080), ("1-12:30:30", 2190.5), ("00:30:00", 30)],
)
def test_times_as_slurm_prints_them(text: str, minutes: float | None) -> None:
    assert slurm.minutes_of(text) == minutes


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("(null)", 0),
        ("gpu:2", 2),
        ("gpu:a100:4(S:0-1)", 4),
        ("gpu:a100:2(S:0),gpu:v100:1,nvme:5", 3),
        ("mygpu:3", 0),
    ],
)
def test_gpus_of_a_node(gres: str, gpus: int) -> None:
    assert slurm.gpus_of(gres) == gpus
