"""What a user of `simgap doctor` sees."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import h5py
import pytest

from hpc.profile import Container, SlurmOptions, load_profile
from hpc.room import Room
from hpc.stage import DistributedStage, Resources
from pipeline import doctor, installed
from pipeline.experiment.load import load_experiment
from pipeline.forecast.speeds import SPEEDS
from pipeline.layout import shipped
from pipeline.stages import NAMES, stages_of
from tests.pipeline import small
from tests.pipeline.small import SmallStudy

TEMPLATES = sorted(shipped("slurm_templates", "local").parent.glob("*.yaml"))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> SmallStudy:
    """Data and an experiment; nothing has run."""
    return small.make(tmp_path_factory.mktemp("doctor"))


@pytest.fixture(autouse=True)
def _room(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same machine everywhere: two cores, 8 GB, one GPU."""
    monkeypatch.setattr("hpc.room.this_machine", lambda: Room(2, 8.0, (0,)))


def _doctor(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str]]:
    status = doctor.main(list(words))
    return status, capsys.readouterr().out.splitlines()


def _faults(lines: list[str]) -> list[str]:
    return [line.removeprefix("FAULT").strip() for line in lines if line.startswith("FAULT")]


@pytest.fixture
def in_study(study: SmallStudy, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallStudy]:
    monkeypatch.chdir(study.folder)
    yield study


def test_this_machine_and_its_packages(capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = _doctor(capsys)
    assert status == 0
    assert lines[0].startswith("ok       Python: 3.")
    assert re.search(r"torch \S+ \((no CUDA|CUDA [\d.]+)\)", lines[1])
    assert "ok       this machine: 2 cores, 8.0 GB memory, 1 GPU" in lines
    assert "ok       embed: 1 job at once, each 2 cores, 4 GB" in lines
    assert "ok       train: 2 jobs at once, each 1 core, 4 GB" in lines
    assert lines[-1].startswith("0 faults, ")


def test_a_study_that_can_run(in_study: SmallStudy, capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = _doctor(capsys, "small.yaml")
    assert status == 0, lines
    text = "\n".join(lines)
    assert "experiment: small: 2 test sets, 4 splits, 3 trainings" in text
    assert re.search(r"^ok       pool: 3 shards, [\d.]+ \wB$", text, flags=re.M)
    assert re.search(r"^ok       sketch: \d+ classes in .*/sketch$", text, flags=re.M)
    assert re.search(r"^ok       embedder: .*/embedder.pt, [\d.]+ \wB$", text, flags=re.M)
    assert re.search(r"^ok       run: .*/runs/small, [\d.]+ \wB free$", text, flags=re.M)
    assert not in_study.run.exists(), "the doctor changes nothing"


def test_an_experiment_that_can_not_be_read(
    in_study: SmallStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    status, lines = _doctor(capsys, "small.yaml", "splits.full=nothing", "training.epochs=0")
    assert status == 1
    assert len(_faults(lines)) == 1
    assert any("training.epochs" in line for line in lines)
    assert any(line.startswith("ok       this machine") for line in lines), "it looks on"


def test_unknown_names_are_faults(capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = _doctor(capsys, "no-such", "--profile", "no-such-site")
    assert status == 1
    assert _faults(lines)[0].startswith("experiment: no-such: no such file, and no shipped")
    assert _faults(lines)[1].startswith("profile: no-such-site: no such file, and no shipped")
    assert lines[-1].startswith("2 faults, ")


def test_weights_that_have_to_be_downloaded_are_a_warning(
    in_study: SmallStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    status, lines = _doctor(
        capsys, "small.yaml", "embedder.model=ViT-B-32", "embedder.pretrained=openai"
    )
    assert status == 0, lines
    assert "warning  embedder: 'openai' is downloaded when it is first used" in lines


def test_a_run_that_can_not_be_written_is_a_fault(
    in_study: SmallStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    status, lines = _doctor(capsys, "small.yaml", "runs=/proc/simgap")
    assert status == 1
    assert _faults(lines)[0].startswith("run: /proc/simgap/small can't be written: ")


def test_too_little_room_for_the_tars_of_the_splits(
    in_study: SmallStudy, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=50_000))
    status, lines = _doctor(capsys, "small.yaml")
    assert status == 0
    warning = next(line for line in lines if line.startswith("warning  run: "))
    assert "50 kB free; the tars of 3 splits may take" in warning
    status, lines = _doctor(capsys, "small.yaml", "training.data=live")  # nothing is copied
    assert not any("may take" in line for line in lines)
    assert any(line.startswith("ok") and "50 kB free" in line for line in lines)


def test_verify_reads_every_output_again(
    in_study: SmallStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    in_study.submit("--until", "embed")
    status, lines = _doctor(capsys, "small.yaml", "--verify")
    assert status == 0, lines
    assert next(line for line in lines if line.startswith("ok       outputs: ")).endswith(
        "tasks' outputs are as written"
    )
    damaged = in_study.run / "1_embeddings" / "pool" / "00001.h5"
    before = damaged.stat()
    with h5py.File(damaged, "r") as file:
        offset = file["embedding"].id.get_offset()
    with damaged.open("r+b") as file:
        file.seek(offset)
        file.write(b"\0\0")
    os.utime(damaged, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert _doctor(capsys, "small.yaml")[0] == 0, "size and time are the same"
    status, lines = _doctor(capsys, "small.yaml", "--verify")
    assert status == 1
    assert [line.split(":")[0] for line in _faults(lines)] == ["embed/pool/00001"]


def test_verify_asks_for_a_study(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        doctor.main(["--verify"])
    assert error.value.code == 2
    assert "--verify needs an experiment" in capsys.readouterr().err


def test_gpus_that_are_not_there_are_a_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = tmp_path / "site.yaml"
    profile.write_text("stages: {train: {gpus: 2}, embed: {cpus: 9}}")
    status, lines = _doctor(capsys, "--profile", str(profile))
    assert status == 1
    assert _faults(lines) == ["train: 2 GPUs a job are asked for and this machine shows 1"]
    assert any(line.startswith("warning  embed: the profile asks for 9 cores") for line in lines)


@pytest.mark.parametrize("keys", ["nodes: 2", "processes: 2"])
def test_only_training_is_spread_over_processes(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    keys: str,
) -> None:
    monkeypatch.setattr("hpc.doctor.check_slurm", lambda profile, stages: ())
    profile = tmp_path / "site.yaml"
    profile.write_text(f"stages: {{train: {{{keys}}}, scan: {{{keys}}}}}")
    status, lines = _doctor(capsys, "--profile", str(profile), "--cluster", "slurm")
    assert status == 1
    assert [line.split(": ")[:3] for line in _faults(lines)] == [
        ["profile", "profile site", "scan"]
    ]


def test_stages_are_what_their_classes_seem_to_be(in_study: SmallStudy) -> None:
    for stage, kind in zip(
        stages_of(load_experiment(in_study.experiment)), doctor._stage_classes(), strict=True
    ):
        assert type(stage) is kind
        assert kind.name == stage.name
        assert isinstance(stage, DistributedStage) == isinstance(kind, DistributedStage)


def test_a_package_that_is_missing_or_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ["no-such-package>=1", "numpy>=1000", "h5py"]
    monkeypatch.setattr(installed, "requirements", lambda: needs)
    found = list(installed._packages())
    assert [one.verdict for one in found] == ["FAULT", "FAULT", "ok"]
    assert found[0].do == "pip install 'no-such-package>=1'"
    assert re.fullmatch(r"numpy [\d.]+, expected >=1000", found[1].says)


def test_local_changes_of_the_code_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    for commit, verdict in [("abc+", "warning"), ("abc", "ok"), ("", "ok")]:
        monkeypatch.setattr(installed, "code_version", lambda commit=commit: commit)
        assert installed._code().verdict == verdict


# the shipped profiles


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_every_shipped_profile_can_be_read(path: Path) -> None:
    profile = load_profile(path, NAMES, SPEEDS)
    for stage in NAMES:
        chosen = profile.slurm(stage)
        assert not (chosen.partition or chosen.account or chosen.qos or chosen.constraint), path
        assert stage == "train" or profile.resources(stage).world == 1


def test_the_generic_profile_explains_every_key() -> None:
    text = (TEMPLATES[0].parent / "generic.yaml").read_text()
    kinds = (Resources, SlurmOptions, Container)
    keys = [one.name for kind in kinds for one in fields(kind)]
    keys += ["cluster", "defaults", "stages", "environment"]
    defined = re.findall(r"^ *(?:# *)?(\w+):(?: |$)", text.partition("\nstages:")[0], flags=re.M)
    assert sorted([*defined, "stages"]) == sorted(keys), "each once, none missing"


def test_the_generic_profile_is_valid_with_every_key_on(tmp_path: Path) -> None:
    text = (TEMPLATES[0].parent / "generic.yaml").read_text()
    path = tmp_path / "all.yaml"
    path.write_text(re.sub(r"^(  )# (?=( *- )|( *\w+:(?: |$)))", r"\1", text, flags=re.M))
    profile = load_profile(path, NAMES, SPEEDS)
    asked = profile.slurm("train")
    assert asked.partition and asked.account and asked.qos and asked.constraint
    assert asked.container and asked.container.arguments
    assert len(asked.setup) == 2 and asked.python and asked.sbatch and asked.array_parallelism
    assert profile.environment("train")
