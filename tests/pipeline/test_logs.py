"""`simgap logs`: what failed and why, one task whole, and a task followed to its end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hpc import slurm
from hpc.triage import Failure
from pipeline import follow as follow_module
from pipeline import logs
from pipeline import study as study_module
from pipeline.follow import Tail, follow
from pipeline.logs import main, rerun_command, shards_of
from pipeline.study import load_study
from tests.hpc.conftest import Study
from tests.hpc.fake_slurm import OOM, FakeCluster, heading, starts

COMMAND = "simgap submit my.yaml training.epochs=2 --profile 'a b' --until mask"


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Study]:
    """The toy study, which the command takes whatever study it is asked for."""
    run = tmp_path / "a run's ümlauts"
    run.mkdir()
    made = Study(run)
    monkeypatch.setattr(logs.View, "assess", lambda view: made.assess())
    monkeypatch.setattr(study_module, "load_study", lambda *given: SimpleNamespace(run=run))
    monkeypatch.setattr(slurm, "is_here", lambda: False)
    yield made


@pytest.fixture
def cluster(study: Study, monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    """The same study on a Slurm without accounting and with an empty queue."""
    made = FakeCluster(study)
    made.submit()
    monkeypatch.setattr(slurm, "is_here", lambda: True)
    monkeypatch.setattr(slurm, "past", lambda jobs: {})
    monkeypatch.setattr(slurm, "queue", list)
    return made


def _submitted_by(study: Study, command: str) -> None:
    """Let the latest plan be of this command."""
    path = max((study.run / "plans").glob("*.json"))
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "submitted": {"command": command}}))


def _shown(capsys: pytest.CaptureFixture[str], *words: str, status: int) -> str:
    assert main(["my.yaml", *words]) == status
    return capsys.readouterr().out


# failures by cause


def test_a_failure_is_told_with_all_that_is_needed(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    study.texts.update(a="fail", c="fail")
    study.submit()
    _submitted_by(study, COMMAND)
    shown = _shown(capsys, status=1)
    assert "2 tasks failed, for 1 reason" in shown
    assert "ValueError in tests/hpc/toy.py:" in shown
    assert "hit: 2 tasks of write: write/letters/a, write/letters/c\n" in shown
    assert "      | ValueError: letters/a: this text always fails\n" in shown
    assert "join: 2 tasks wait for write\n" in shown
    again = "simgap submit my.yaml training.epochs=2 --profile 'a b' "
    assert f"{again}--task write/letters/a --task write/letters/c\n" in shown
    assert "\x1b" not in shown


def test_on_a_cluster_the_log_is_read_and_named(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {"state": "interrupted", "job": "12_0", "restart": 0, "host": "node7", "started": 0.0,
              "ended": 60.0, "error": "told to stop", "log": ""}  # fmt: skip
    cluster.attempt("write/letters/a", "12_0", restart=1, earlier=[before])
    lines = [f"line {number}" for number in range(20)]
    log = cluster.log("12_0", heading(0), starts("letters/a"), "of the first attempt",
                      heading(1), starts("letters/a"), *lines, OOM)  # fmt: skip
    shown = _shown(capsys, "--lines", "3", status=1)
    assert "OUT_OF_MEMORY: " in shown
    assert "raise memory_gb of write in the site profile" in shown
    assert f"      | line 18\n      | line 19\n      | {OOM}\n    log: {log}\n" in shown
    assert "line 17" not in shown
    assert "of the first attempt" not in shown
    assert "1. interrupted on node7, " in shown
    assert "2. OUT_OF_MEMORY on node1, " in shown
    assert shown.index("1. interrupted") < shown.index("2. OUT_OF_MEMORY")
    assert "write/letters/b (not begun)" in shown  # their jobs are gone as well


def test_one_stage_only(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    study.texts.update(a="fail")
    study.submit()
    assert "no failures" in _shown(capsys, "--stage", "embed", status=0)


def test_nothing_failed(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no failures; 0 tasks done, 5 not submitted" in _shown(capsys, status=0)
    study.submit()
    assert "no failures; 5 tasks done\n" in _shown(capsys, status=0)


def test_slurm_that_does_not_answer_is_told(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> Any:
        raise slurm.SlurmError("squeue: Unable to contact slurm controller")

    cluster.attempt("write/letters/a", "12_0")
    monkeypatch.setattr(slurm, "queue", refuse)
    shown = _shown(capsys, status=0)
    assert "Unable to contact slurm controller" in shown
    assert "1 running" in shown


def test_many_tasks_are_folded(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    study.texts.update({f"x{number:02d}": "fail" for number in range(12)})
    study.submit()
    shown = _shown(capsys, status=1)
    assert "write/letters/x09 and 2 more\n" in shown
    assert "write/letters/x10" not in shown


# the command that runs them again


@pytest.mark.parametrize(
    ("command", "kept"),
    [
        ("simgap submit x.yaml", "simgap submit x.yaml"),
        ("simgap submit x.yaml --until=mask --verify", "simgap submit x.yaml"),
        ("simgap submit --unt mask x.yaml --task embed/* --task=a", "simgap submit x.yaml"),
        ("simgap submit x.yaml --split a --cluster local", "simgap submit x.yaml --split a --cluster local"),
        ("simgap submit x.yaml training.seeds='[0, 1]'", "simgap submit x.yaml 'training.seeds=[0, 1]'"),
    ],
)  # fmt: skip
def test_the_command_is_the_earlier_one_with_other_tasks(
    study: Study, command: str, kept: str
) -> None:
    study.plan()
    _submitted_by(study, command)
    few = [_failure("embed", f"pool/{number:05d}") for number in range(2)]
    expected = f"{kept} --task embed/pool/00000 --task embed/pool/00001"
    assert rerun_command(study.run, few) == expected


def test_for_many_tasks_the_command_runs_up_to_their_stage(study: Study) -> None:
    study.plan()
    _submitted_by(study, "simgap submit x.yaml --until report")
    many = [_failure("embed", str(number)) for number in range(12)] + [_failure("scan", "0")]
    assert rerun_command(study.run, many) == "simgap submit x.yaml --until scan"


def _failure(stage: str, task: str) -> Failure:
    cause: Any = None
    return Failure(stage=stage, task=task, cause=cause, attempt={}, log=None)


def test_shards_are_named_for_the_task_and_for_what_uses_its_result() -> None:
    def item(settings: dict[str, Any], *inputs: str) -> Any:
        return SimpleNamespace(
            task=SimpleNamespace(recipe=SimpleNamespace(settings=settings, inputs=inputs))
        )

    assessed = {
        "embed/pool/0": item({"shards": [["00000.tar", 1, 2], ["00001.tar", 1, 2]]}),
        "embed/pool/1": item({"shards": [[f"{n:05d}.tar", 1, 2] for n in range(9)]}),
        "scan/0": item({}, "embed/pool/0", "reference/photo"),
        "reference/photo": item({}),
        "mask/all": item({}, "embed/pool/0", "embed/pool/1"),
    }  # fmt: skip
    shards = {name: shards_of(name, assessed) for name in assessed}
    assert shards["embed/pool/0"] == shards["scan/0"] == ["00000.tar", "00001.tar"]
    assert shards["embed/pool/1"] == ["00000.tar to 00008.tar"]
    assert shards["reference/photo"] == shards["mask/all"] == []


# one task


def test_a_task_is_shown_whole_its_attempts_apart(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    log = cluster.log("12_0", heading(0), starts("letters/a"), "first", heading(1),
                      starts("letters/a"), "second", OOM, starts("letters/b"), "other")  # fmt: skip
    before = {"state": "interrupted", "job": "12_0", "restart": 0, "host": "node7", "started": 0.0,
              "ended": 60.0, "log": str(log)}  # fmt: skip
    cluster.attempt("write/letters/a", "12_0", restart=1, earlier=[before])
    shown = _shown(capsys, "--task", "letters/a", status=1)
    first, second = shown.index("attempt 1: interrupted on node7"), shown.index("attempt 2: ")
    assert first < shown.index("  | first\n") < second < shown.index("  | second\n")
    assert shown.count(str(log)) == 2
    assert "other" not in shown


def test_a_finished_task_shows_what_its_job_said(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.study.submit()
    shown = _shown(capsys, "--task", "write/letters/a", status=0)
    assert "write/letters/a: done\n" in shown
    assert "attempt 1: done on " in shown


@pytest.mark.parametrize(
    ("name", "words"), [("write/letters/q", "did you mean write/letters/"), ("zzz", "named like")]
)
def test_an_unknown_task_is_refused(
    study: Study, capsys: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    assert main(["my.yaml", "--task", name]) == 2
    assert words in capsys.readouterr().err


def test_a_task_name_in_two_stages_needs_its_stage(study: Study) -> None:
    study.words["letters/a"] = ["write/letters/a"]
    view = logs.View(SimpleNamespace(run=study.run))
    with pytest.raises(ValueError, match="found write/letters/a, join/letters/a"):
        logs._find("letters/a", None, view)
    assert logs._find("letters/a", "join", view) == "join/letters/a"


# follow


class Script:
    """Time for `follow`: whenever it sleeps, the next thing happens, and ten seconds pass."""

    def __init__(self, *events: Callable[[], object]) -> None:
        self.events = list(events)
        self.now = 1000.0

    def sleep(self, seconds: float) -> None:
        self.now += 10
        assert self.events, "it should have ended by now"
        self.events.pop(0)()

    def monotonic(self) -> float:
        return self.now


def _nothing() -> None:
    pass


def _follow(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, *events: Callable[[], object]
) -> int:
    script = Script(*events)
    monkeypatch.setattr(follow_module, "time", script)
    ended = follow(cluster.study.run, "write/letters/a", cluster.study.assess)
    assert not script.events
    return ended


def test_following_a_task_goes_on_across_a_requeue(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = {"state": "PENDING"}

    def queue() -> list[slurm.Job]:
        comment = f"simgap {cluster.plan.submission} write"
        return [slurm.Job(id="12_0", state=job["state"], reason="Priority", waits_for=(),
                          nodes="node1", comment=comment, name="")]  # fmt: skip

    def begins() -> None:
        job["state"] = "RUNNING"
        cluster.log("12_0", heading(0), starts("letters/0"), "of another", starts("letters/a"), "1")
        cluster.attempt("write/letters/a", "12_0")

    def requeued() -> None:
        job["state"] = "PENDING"
        cluster.log("12_0", "2")
        cluster.attempt("write/letters/a", "12_0", "interrupted")

    def again() -> None:
        job["state"] = "RUNNING"
        cluster.log("12_0", heading(1), starts("letters/a"), "3")
        cluster.attempt("write/letters/a", "12_0", restart=1)

    def ends() -> None:
        cluster.log("12_0", "4", starts("letters/b"), "of another")
        cluster.attempt("write/letters/a", "12_0", "failed", restart=1, error="ValueError: no")

    monkeypatch.setattr(slurm, "queue", queue)
    events = (_nothing, begins, requeued, again, ends)
    assert _follow(cluster, monkeypatch, *events) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "write/letters/a: waits in the queue as job 12_0: Priority",
        starts("letters/a"), "1", "2",
        "write/letters/a: waits in the queue as job 12_0: Priority",
        starts("letters/a"), "3", "4",
        "write/letters/a: failed: ValueError: no",
    ]  # fmt: skip


def test_following_ends_when_the_task_is_done(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.attempt("write/letters/a", "12_0", started=0.0)
    cluster.log("12_0", heading(0), starts("letters/a"))

    def ends() -> None:
        cluster.log("12_0", "2026-11-21 09:00:01 letters/a: done in 1.0 s")
        cluster.study.submit()

    assert _follow(cluster, monkeypatch, ends) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == starts("letters/a")
    assert lines[-2:] == ["2026-11-21 09:00:01 letters/a: done in 1.0 s", "write/letters/a: done"]


def test_following_a_task_that_nobody_will_do_ends(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _follow(cluster, monkeypatch, _nothing) == 1
    assert "not in the queue (not yet run)" in capsys.readouterr().out


def test_following_a_task_whose_job_is_gone_ends(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.attempt("write/letters/a", "12_0")
    assert _follow(cluster, monkeypatch, _nothing) == 1
    assert "its job is gone" in capsys.readouterr().out


def test_following_a_done_task_shows_its_lines(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.study.submit()
    capsys.readouterr()
    assert follow(cluster.study.run, "write/letters/a", cluster.study.assess) == 0
    assert capsys.readouterr().out == "write/letters/a: done\n"


def test_a_line_that_is_half_written_is_shown_when_it_is_whole(tmp_path: Path) -> None:
    log = tmp_path / "12_0_0_log.out"
    tail = Tail(log, "a")
    assert tail.read() == []
    log.write_bytes(f"{heading(0)}\n{starts('a')}\nhalf of a l".encode())
    assert tail.read() == [starts("a")]
    with log.open("a") as file:
        file.write("ine\n")
    assert tail.read() == ["half of a line"]


# the study


def test_a_study_is_an_experiment_or_a_runs_folder(tmp_path: Path) -> None:
    for folder in ("pool", "reference/disc", "photo/disc", "runs/moved", "runs/empty"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "pool" / "00000.tar").touch()
    values = {
        "name": "tiny",
        "runs": str(tmp_path / "runs"),
        "pool": {"shards": str(tmp_path / "pool" / "*.tar")},
        "reference": {"images": str(tmp_path / "reference")},
        "tests": {"photo": {"images": str(tmp_path / "photo")}},
        "embedder": {"model": "RN50", "pretrained": "openai"},
        "splits": {"all": "all"},
        "training": {"model": "RN50", "epochs": 1, "batch_size": 1},
    }
    for name in ("tiny.yaml", "runs/moved/experiment.yaml"):
        (tmp_path / name).write_text(json.dumps(values))
    assert load_study(str(tmp_path / "tiny.yaml")).run == tmp_path / "runs" / "tiny"
    moved = tmp_path / "runs" / "moved"
    assert load_study(str(moved)).run == moved
    assert load_study(str(moved), ["similarity.neighbours=3"]).similarity.neighbours == 3
    with pytest.raises(FileNotFoundError, match=r"is no run: it has no experiment\.yaml"):
        load_study(str(tmp_path / "runs" / "empty"))


def test_a_pipe_that_is_closed_is_no_error(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*words: object, **options: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", closed)
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(fileno=lambda: 1, isatty=lambda: False))
    monkeypatch.setattr("os.dup2", lambda *numbers: None)
    assert main(["my.yaml"]) == 1
