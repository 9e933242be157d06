"""A cluster in a folder: up, in use, down again, and what happens when parts of it are lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpc import minislurm
from hpc.minislurm import Cluster, MinislurmError, Settings
from hpc.minislurm_processes import environment_of, job_processes

ROOT = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.skipif(
    bool(minislurm.missing_packages()) and os.environ.get("CI") != "true",
    reason=f"needs Slurm; on Debian: apt-get install {' '.join(minislurm.missing_packages())}",
)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough for a socket's path, and ended whatever happens."""
    with tempfile.TemporaryDirectory(prefix="minislurm-test-") as name:
        yield Path(name)
        if (Path(name) / "minislurm.json").exists():
            Cluster.at(Path(name)).down()


def _small(folder: Path) -> Cluster:
    made = Cluster(folder, Settings(nodes=2, cpus=2, gpus=0, memory_mb=2000, accounting=False))
    made.up()
    return made


def _wait(until: Callable[[], object], seconds: float = 20) -> None:
    ends = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.1)


def _submit(cluster: Cluster, command: str, *words: str) -> str:
    options = ("--parsable", "--time=5", "--mem=100", "--output=/dev/null", f"--wrap={command}")
    return cluster.call("sbatch", *words, *options).strip()


def _states(cluster: Cluster) -> dict[str, str]:
    lines = cluster.call("squeue", "--noheader", "--format=%i %T").splitlines()
    return dict(line.split() for line in lines)


def _processes_of(folder: Path) -> list[int]:
    """Every process that was started with this cluster in its environment or as an argument."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            conf = environment_of(int(entry.name)).get("SLURM_CONF", "")
            if conf == str(folder / "slurm.conf"):
                found.append(int(entry.name))
    return found


def _sleepers(seconds: int) -> list[int]:
    """Processes that run `sleep SECONDS`, whatever their environment."""
    words = f"sleep\0{seconds}\0".encode()  # srun makes it a whole path
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and _command_of(entry).endswith(words):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def _command_of(entry: Path) -> bytes:
    command = (entry / "cmdline").read_bytes()
    return b"" if command.startswith(b"srun") else command


STUBBORN = """
trap '' TERM INT HUP USR1 USR2
env -i sleep 86501 &
env -i setsid sleep 86502 &
(setsid sleep 86503 &)
srun sleep 86504 &
sleep 86505
"""


def test_down_ends_every_job_and_leaves_nothing_outside_the_folder(folder: Path) -> None:
    cluster = _small(folder)
    sockets = cluster._sockets
    job = _submit(cluster, STUBBORN)
    waits = _submit(cluster, "true", "--hold")
    _wait(lambda: all(_sleepers(86500 + number) for number in range(1, 6)))
    assert _states(cluster) == {job: "RUNNING", waits: "PENDING"}
    cluster.down()
    assert [_sleepers(86500 + number) for number in range(1, 6)] == [[]] * 5
    assert _processes_of(folder) == []
    assert not sockets.exists()
    with pytest.raises(MinislurmError, match="no cluster was started there"):
        cluster.down()
    cluster.up()
    assert _states(cluster) == {}, "the queue is empty"
    assert int(_submit(cluster, "true")) > int(waits), "no job gets the id of an old one"


def test_killed_daemons_and_what_they_left_are_cleared_away(folder: Path) -> None:
    """As after a crash; after a reboot there is even less: only the state file."""
    cluster = _small(folder)
    sockets = cluster._sockets
    _submit(cluster, "env -i sleep 86506")
    _wait(lambda: _sleepers(86506))
    for pid in cluster._state()["pids"].values():
        os.kill(pid, signal.SIGKILL)
    _wait(lambda: not any(cluster.running().values()))
    assert minislurm.main(["status", str(folder)]) == 1
    cluster.up()
    assert not _sleepers(86506)
    assert not sockets.exists()
    assert _states(cluster) == {}
    assert all(cluster.running().values())


def test_it_can_not_be_started_twice(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = _small(folder)
    assert minislurm.main(["up", str(folder), "--no-accounting"]) == 1
    assert "a cluster runs there; end it by `down` first" in capsys.readouterr().err
    assert all(cluster.running().values())


def test_two_clusters_at_once_are_two(folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="minislurm-test-") as other:
        first, second = _small(folder), _small(Path(other))
        try:
            job = _submit(first, "sleep 60")
            assert list(_states(first)) == [job]
            assert _states(second) == {}
        finally:
            second.down()
        assert list(_states(first)) == [job]
        assert all(first.running().values())


def test_the_queue_outlives_the_controller(folder: Path) -> None:
    cluster = _small(folder)
    running, waits = _submit(cluster, "sleep 60"), _submit(cluster, "true", "--hold")
    _wait(lambda: _states(cluster).get(running) == "RUNNING")
    cluster.stop("slurmctld")
    assert not cluster.running()["slurmctld"]
    cluster.up()
    assert _states(cluster) == {running: "RUNNING", waits: "PENDING"}


def test_a_lost_node_takes_its_jobs_with_it(folder: Path) -> None:
    cluster = _small(folder)
    lost = _submit(cluster, "sleep 86507", "--nodelist=node1", "--requeue")
    stays = _submit(cluster, "sleep 86508", "--nodelist=node2")
    _wait(lambda: _sleepers(86507) and _sleepers(86508))
    cluster.lose("node1")
    assert not _sleepers(86507)
    assert _sleepers(86508)
    conf = cluster.environment["SLURM_CONF"]
    assert not job_processes(conf, "node1")
    assert job_processes(conf, "node2")
    # Slurm notices by itself after half a minute.
    cluster.call("scontrol", "update", "NodeName=node1", "State=DOWN", "Reason=lost")
    assert _states(cluster) == {lost: "PENDING", stays: "RUNNING"}
    cluster.start("node1")
    _wait(lambda: _states(cluster).get(lost) == "RUNNING" and _sleepers(86507))
    assert _states(cluster)[stays] == "RUNNING"


def test_a_job_that_takes_more_memory_than_it_asked_for_is_killed(folder: Path) -> None:
    cluster = _small(folder)
    python = f"{sys.executable} -c 'x = bytearray(500 * 2**20); import time; time.sleep(60)'"
    job = _submit(cluster, python)
    _wait(lambda: job not in _states(cluster))
    shown = cluster.call("scontrol", "show", "job", job)
    assert "JobState=OUT_OF_MEMORY" in shown or "JobState=FAILED" in shown, shown


def test_gpus_are_names_and_a_cluster_may_have_none(folder: Path, cluster: Cluster) -> None:
    assert "gpu:2" in cluster.call("sinfo", "--noheader", "--format=%G")
    assert "gpu" not in _small(folder).call("sinfo", "--noheader", "--format=%G")


def test_it_is_the_users_own_whoever_that_is(tmp_path: Path) -> None:
    """Without root; `env` is what a shell evaluates, and SLURM_CONF is enough for Slurm."""
    if os.getuid():
        pytest.skip("the other tests run as an ordinary user already")
    own_python = shutil.which("python3", path="/usr/local/bin:/usr/bin")
    if own_python is None:
        pytest.skip("no Python that everybody may start")
    name = tempfile.mkdtemp(prefix="minislurm-test-")
    os.chown(name, 65534, 65534)
    code = Path(tempfile.mkdtemp(prefix="minislurm-code-"))  # one that this user may read
    code.chmod(0o755)
    shutil.copytree(ROOT / "hpc", code / "hpc")
    python = f"{own_python} -B -m hpc.minislurm"
    script = f"""
    set -e
    {python} up {name} --nodes 1
    eval "$({python} env {name})"
    sbatch --wait --wrap 'id --user > {name}/who; exit 3' --output=/dev/null || echo "exit $?"
    sacctmgr --noheader --parsable2 show associations user=nobody format=account
    {python} status {name}
    {python} down {name}
    """
    try:
        done = subprocess.run(
            ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "bash", "-c", script],
            cwd=code,
            env={"PATH": os.environ["PATH"], "USER": "root", "HOME": "/nonexistent"},
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "exit 3" in done.stdout
        assert "lab" in done.stdout
        assert (Path(name) / "who").read_text() == "65534\n"
        assert _processes_of(Path(name)) == []
    finally:
        if (Path(name) / "minislurm.json").exists():
            Cluster.at(Path(name)).down()
        shutil.rmtree(name)
        shutil.rmtree(code)


# what it refuses


@pytest.mark.parametrize("name", ["a b", "a#b", "a,b", "a=b", "a%b"])
def test_a_path_that_slurm_can_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert minislurm.main(["up", str(tmp_path / name)]) == 1
    assert "can't hold a path with spaces or #,=%" in capsys.readouterr().err
    assert not (tmp_path / name).exists()


def test_missing_programs_are_named_by_package(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(minislurm, "_SBIN", ())
    assert minislurm.main(["up", str(folder)]) == 1
    error = capsys.readouterr().err
    assert "apt-get install mariadb-server munge slurm-wlm slurmdbd" in error
    assert minislurm.missing_packages(accounting=False) == ["munge", "slurm-wlm"]


def test_a_daemon_that_fails_shows_its_log_and_nothing_is_left(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minislurm, "write_configuration", _broken(minislurm.write_configuration))
    with pytest.raises(MinislurmError, match=r"(?s)slurmctld does not get ready.*NoSuchOption"):
        _small(folder)
    assert _processes_of(folder) == []
    assert not (folder / "minislurm.json").exists()


def _broken(write: Callable[[Settings, Path, Path], None]) -> Callable[..., None]:
    def broken(settings: Settings, folder: Path, sockets: Path) -> None:
        write(settings, folder, sockets)
        with (folder / "slurm.conf").open("a") as file:
            file.write("NoSuchOption=1\n")

    return broken


@pytest.mark.parametrize("action", ["down", "status", "env"])
def test_a_folder_without_a_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    assert minislurm.main([action, str(tmp_path)]) == 1
    assert f"{tmp_path}: no cluster was started there" in capsys.readouterr().err


def test_a_folder_that_can_not_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert minislurm.main(["up", "/proc/minislurm"]) == 1
    assert "/proc/minislurm" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--gpus", "-1"], ["--nodes", "0"], ["--memory-mb", "0"]])
def test_numbers_that_make_no_sense(words: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        minislurm.main(["up", str(tmp_path), *words])
