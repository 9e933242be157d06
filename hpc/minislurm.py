"""A real Slurm cluster in a folder: several nodes on this machine, no root needed.

python -m hpc.minislurm up /tmp/slurm && eval "$(python -m hpc.minislurm env /tmp/slurm)"

For trying and testing, not for production: every node is this machine, nothing confines a job to
what it asked for, and the cores, memory and GPUs of the nodes are whatever you say they are.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hpc.files import read_json, write_json
from hpc.minislurm_conf import Settings, write_configuration
from hpc.minislurm_processes import environment_of, kill_jobs
from hpc.slurm import user_name

PACKAGES = {
    "munged": "munge",
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "sbatch": "slurm-wlm",
    "slurmdbd": "slurmdbd",
    "mariadbd": "mariadb-server",
    "mariadb-install-db": "mariadb-server",
}
"""The Debian package of each program that is needed."""
_FOR_ACCOUNTING = ("slurmdbd", "mariadbd", "mariadb-install-db")
_SBIN = ("/usr/sbin", "/usr/local/sbin", "/sbin")
_EPILOG = """\
examples:
  python -m hpc.minislurm up /tmp/slurm
  eval "$(python -m hpc.minislurm env /tmp/slurm)"      # sbatch, squeue ... now mean this cluster
  simgap submit experiments/mini.yaml --profile minislurm
  python -m hpc.minislurm down /tmp/slurm               # ends its jobs too

Debian's packages bring what it needs: slurm-wlm munge, and slurmdbd mariadb-server for accounting.
"""


class MinislurmError(Exception):
    """The cluster can't be started or is not what was expected; the message says what to do."""


def missing_packages(accounting: bool = True) -> list[str]:
    """The Debian packages that have to be installed first."""
    needed = [name for name in PACKAGES if accounting or name not in _FOR_ACCOUNTING]
    return sorted({PACKAGES[name] for name in needed if _program(name) is None})


def _program(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *_SBIN]))


@dataclass
class Cluster:
    """A cluster in a folder; its state is in the folder, so any process may use it."""

    folder: Path
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        self.folder = self.folder.absolute()
        if any(char.isspace() or char in "#,=%" for char in str(self.folder)):
            raise MinislurmError(
                f"{self.folder}: Slurm's configuration can't hold a path with spaces or #,=%"
            )

    # what is there

    @property
    def _state_path(self) -> Path:
        return self.folder / "minislurm.json"

    def _state(self) -> dict[str, Any]:
        return dict(read_json(self._state_path))

    @classmethod
    def at(cls, folder: Path) -> Cluster:
        """The cluster that was started in a folder.

        Raises:
            MinislurmError: there is none.
        """
        cluster = cls(folder)
        try:
            cluster.settings = Settings(**cluster._state()["settings"])
        except FileNotFoundError:
            raise MinislurmError(f"{folder}: no cluster was started there") from None
        return cluster

    @property
    def nodes(self) -> list[str]:
        """Names of the nodes."""
        return self.settings.names

    @property
    def environment(self) -> dict[str, str]:
        """What makes sbatch, squeue and all others use this cluster."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def running(self) -> dict[str, bool]:
        """Which of the cluster's daemons are alive."""
        return {name: _is_alive(pid, self.folder) for name, pid in self._state()["pids"].items()}

    def call(self, *words: str, timeout: float = 60) -> str:
        """Run one of Slurm's commands on this cluster; returns what it printed."""
        done = subprocess.run(
            words,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if done.returncode:
            raise MinislurmError(f"{shlex.join(words)}: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    # up and down

    def up(self) -> None:
        """Start the cluster, its queue empty, and wait until every node takes jobs.

        Of a cluster that runs already, daemons that died are started again, and the queue is kept.

        Raises:
            MinislurmError: a program is missing, a whole cluster is there already, or a daemon
                failed; the message carries the last lines of its log.
        """
        if packages := missing_packages(self.settings.accounting):
            raise MinislurmError(f"missing programs; on Debian: apt-get install {_words(packages)}")
        if self._state_path.exists():
            alive = self.running()
            if alive and all(alive.values()):
                raise MinislurmError(f"{self.folder}: a cluster runs there; end it by `down` first")
            if any(alive.values()):
                self.start(*(name for name, is_up in alive.items() if not is_up))
                self._wait_for("slurmctld", lambda: self._works("squeue"))
                return
            self.down()  # what a cluster left that was not ended, but killed
        self._prepare_folder()
        try:
            self.start("munged")
            if self.settings.accounting:
                self._start_accounting()
            # Jobs of the cluster that was here before would start again.
            self.start("slurmctld", *self.nodes, forget_queue=True)
            self._wait_for("slurmctld", self._all_idle)
        except BaseException:
            self.down()
            raise

    def _start_accounting(self) -> None:
        data, unfinished = self.folder / "db", self.folder / "db.unfinished"
        if not data.exists():
            shutil.rmtree(unfinished, ignore_errors=True)
            words = [_program("mariadb-install-db"), "--no-defaults", f"--datadir={unfinished}"]
            words += ["--auth-root-authentication-method=normal", "--skip-test-db"]
            log = self.folder / "log" / "mariadb-install-db.log"
            with log.open("wb") as file:
                user = f"--user={user_name()}"
                done = subprocess.run([*map(str, words), user], stdout=file, stderr=file)
            if done.returncode:
                raise MinislurmError(f"mariadb-install-db failed:\n{_tail(log)}")
            unfinished.rename(data)
        self.start("mariadbd")
        self._wait_for("mariadbd", (self._sockets / "mysql").exists)
        self.start("slurmdbd")
        self._wait_for("slurmdbd", lambda: self._works("sacctmgr", "list", "cluster"))
        if not self.call("sacctmgr", "--noheader", "list", "cluster").strip():
            add = ("sacctmgr", "--immediate", "add")
            self.call(*add, "cluster", "mini")
            self.call(*add, "account", "lab", "cluster=mini")
            self.call(*add, "user", user_name(), "account=lab", "cluster=mini")

    def down(self) -> None:
        """End every job and daemon of the cluster, and remove what it keeps outside its folder."""
        if not self._state_path.exists():
            raise MinislurmError(f"{self.folder}: no cluster was started there")
        if self.running().get("slurmctld"):
            with suppress(MinislurmError, subprocess.TimeoutExpired):
                self.call("scancel", "--signal=KILL", "--full", f"--user={os.getuid()}", timeout=10)
                self.call("scancel", f"--user={os.getuid()}", timeout=10)
        pids = self._state()["pids"]
        for name in reversed(pids):  # the database after those who write to it
            self.stop(name, signal.SIGKILL if name in self.nodes else signal.SIGTERM)
        kill_jobs(self.environment["SLURM_CONF"])
        shutil.rmtree(self._sockets, ignore_errors=True)
        self._state_path.unlink()

    # single daemons, for tests of what happens when one is gone

    def start(self, *names: str, forget_queue: bool = False) -> None:
        """Start daemons: munged, mariadbd, slurmdbd, slurmctld, or a node by its name.

        Args:
            names: the daemons.
            forget_queue: let slurmctld drop the jobs that it had.
        """
        state = self._state()
        for name in names:
            log = (self.folder / "log" / f"{name}.out").open("ab")
            with log:
                process = subprocess.Popen(
                    self._command(name, forget_queue),
                    env=self._daemon_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    cwd=self.folder,
                )
            state["pids"][name] = process.pid
            _reap(process)
        write_json(self._state_path, state)

    def stop(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        """End one daemon and wait until it is gone."""
        pid = self._state()["pids"].get(name)
        if pid is None or not _is_alive(pid, self.folder):
            return
        os.kill(pid, how)
        if not _wait(lambda: not _is_alive(pid, self.folder), 15):
            os.kill(pid, signal.SIGKILL)

    def lose(self, node: str) -> None:
        """End a node's slurmd and every job process on it at once, as a power cut does."""
        self.stop(node, signal.SIGKILL)
        kill_jobs(self.environment["SLURM_CONF"], node)

    # how

    def _command(self, name: str, forget_queue: bool) -> list[str]:
        own, sockets = self.folder, self._sockets
        munge = ["--foreground", f"--key-file={own}/munge.key", f"--socket={sockets}/munge"]
        munge += [f"--pid-file={own}/munged.pid", f"--seed-file={own}/munge.seed", "--force"]
        maria = ["--no-defaults", f"--user={user_name()}", f"--datadir={own}/db"]
        maria += [f"--socket={sockets}/mysql", f"--pid-file={own}/mariadb.pid"]
        maria += ["--skip-networking", "--innodb-flush-log-at-trx-commit=0"]
        arguments = {
            "munged": [*munge, f"--log-file={own}/log/munged.log"],
            "mariadbd": maria,
            "slurmdbd": ["-D"],
            "slurmctld": ["-D", "-c"] if forget_queue else ["-D"],
        }
        program = name if name in arguments else "slurmd"
        return [_program(program) or program, *arguments.get(name, ["-D", "-N", name])]

    def _daemon_environment(self) -> dict[str, str]:
        outer = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH"))}
        return {**outer, **self.environment, "MYSQL_UNIX_PORT": str(self._sockets / "mysql")}

    @property
    def _sockets(self) -> Path:
        return Path(self._state()["sockets"])

    def _prepare_folder(self) -> None:
        for name in ("log", "state", "spool", "gpus"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        key = self.folder / "munge.key"
        if not key.exists():
            key.touch(mode=0o600)
            key.write_bytes(secrets.token_bytes(128))
        # A socket's path may have 107 bytes only, and munge wants a folder of its own.
        sockets = Path(tempfile.mkdtemp(prefix="minislurm-"))
        sockets.chmod(0o711)
        write_json(
            self._state_path,
            {"settings": asdict(self.settings), "sockets": str(sockets), "pids": {}},
        )
        write_configuration(self.settings, self.folder, sockets)

    def _works(self, *words: str) -> bool:
        with suppress(MinislurmError, subprocess.TimeoutExpired):
            self.call(*words, timeout=10)
            return True
        return False

    def _all_idle(self) -> bool:
        with suppress(MinislurmError, subprocess.TimeoutExpired):
            states = self.call("sinfo", "--Node", "--noheader", "-p", "main", "-o", "%T").split()
            return len(states) == self.settings.nodes and set(states) == {"idle"}
        return False

    def _wait_for(self, daemon: str, ready: Callable[[], bool], seconds: float = 60) -> None:
        ends = time.monotonic() + seconds
        while self.running()[daemon] and time.monotonic() < ends:
            if ready():
                return
            time.sleep(0.05)
        log = self.folder / "log" / f"{daemon}.log"
        log = log if log.exists() else log.with_suffix(".out")
        raise MinislurmError(f"{daemon} does not get ready; the end of {log}:\n{_tail(log)}")


def _words(items: Sequence[str]) -> str:
    return " ".join(items)


def _wait(ready: Callable[[], bool], seconds: float) -> bool:
    ends = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > ends:
            return False
        time.sleep(0.05)
    return True


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


_children: list[subprocess.Popen[bytes]] = []


def _reap(process: subprocess.Popen[bytes]) -> None:
    """Keep a daemon that this process started, so that its end does not leave a zombie."""
    _children.append(process)


def _is_alive(pid: int, folder: Path) -> bool:
    """Whether a daemon of this cluster has this process id (and no stranger has it since)."""
    for child in _children:
        child.poll()
    return environment_of(pid).get("SLURM_CONF") == str(folder / "slurm.conf")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m hpc.minislurm",
        description="A real Slurm cluster in a folder, for trying and testing; no root needed.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("action", choices=("up", "down", "status", "env"))
    made.add_argument("folder", type=Path, help="where the cluster keeps everything")
    default = Settings()
    made.add_argument("--nodes", type=_positive, default=default.nodes)
    made.add_argument("--cpus", type=_positive, default=default.cpus, help="cores of each node")
    made.add_argument(
        "--gpus", type=_count, default=default.gpus, help="GPUs of each node, in name"
    )
    made.add_argument("--memory-mb", type=_positive, default=default.memory_mb, help="of each node")
    made.add_argument(
        "--max-array-size",
        type=_positive,
        default=default.max_array_size,
        help="one more than the highest index of an array",
    )
    made.add_argument(
        "--accounting",
        action=argparse.BooleanOptionalAction,
        default=default.accounting,
        help="with sacct, which needs mariadb and slurmdbd",
    )
    return made


def _count(text: str) -> int:
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {number}")
    return number


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {number}")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    arguments = parser().parse_args(argv)
    try:
        if arguments.action == "up":
            chosen = {item.name: getattr(arguments, item.name) for item in fields(Settings)}
            _up(Cluster(arguments.folder, Settings(**chosen)))
        elif arguments.action == "down":
            Cluster.at(arguments.folder).down()
        elif arguments.action == "status":
            return _status(Cluster.at(arguments.folder))
        else:
            print(_exports(Cluster.at(arguments.folder)))
    except (MinislurmError, OSError, subprocess.TimeoutExpired) as error:
        print(f"minislurm: {error}", file=sys.stderr)
        return 1
    return 0


def _up(cluster: Cluster) -> None:
    started = time.monotonic()
    cluster.up()
    made = cluster.settings
    print(
        f"{made.nodes} nodes with {made.cpus} cores and {made.gpus} GPUs each, up in "
        f"{time.monotonic() - started:.1f} s. To use them in this shell:\n{_exports(cluster)}"
    )


def _status(cluster: Cluster) -> int:
    alive = cluster.running()
    for name, is_up in alive.items():
        print(f"{name:<10} {'up' if is_up else 'DOWN'}")
    if alive.get("slurmctld"):
        print(cluster.call("sinfo", "--Node", "--long", "--partition=main"), end="")
    return 0 if alive and all(alive.values()) else 1


def _exports(cluster: Cluster) -> str:
    return "\n".join(f"export {k}={shlex.quote(v)}" for k, v in cluster.environment.items())


if __name__ == "__main__":
    sys.exit(main())
