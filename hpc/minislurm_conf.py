"""The configuration files of a minislurm cluster: text from settings."""

from __future__ import annotations

import random
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hpc.slurm import user_name


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the cluster pretends to have."""

    nodes: int = 4
    cpus: int = 4
    """Cores of each node."""
    gpus: int = 2
    """GPUs of each node: names only, there is nothing behind them."""
    memory_mb: int = 8000
    """Memory of each node; a job that uses more than it asked for is killed."""
    accounting: bool = True
    """Whether sacct works: needs mariadb and slurmdbd."""
    max_array_size: int = 1001
    """MaxArraySize: one more than the highest index of an array."""

    @property
    def names(self) -> list[str]:
        """Names of the nodes."""
        return [f"node{number}" for number in range(1, self.nodes + 1)]


def write_configuration(settings: Settings, folder: Path, sockets: Path) -> None:
    """Write slurm.conf, slurmdbd.conf and gres.conf.

    Args:
        settings: what the cluster pretends to have.
        folder: of the cluster.
        sockets: folder of the sockets of munge and the database.
    """
    ports = _free_ports(2 + settings.nodes)
    _write_private(folder / "slurm.conf", _slurm_conf(settings, folder, sockets, ports))
    _write_private(folder / "slurmdbd.conf", _slurmdbd_conf(folder, sockets, ports[1]))
    _write_private(folder / "gres.conf", _gres_conf(settings, folder))


def _slurm_conf(made: Settings, own: Path, sockets: Path, ports: Sequence[int]) -> str:
    host, user = socket.gethostname(), user_name()
    gres = f" Gres=gpu:{made.gpus}" if made.gpus else ""
    nodes = [
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
        f"CPUs={made.cpus} RealMemory={made.memory_mb}{gres}"
        for node, port in zip(made.names, ports[2:], strict=True)
    ]
    accounting = [
        "AccountingStorageType=accounting_storage/slurmdbd",
        "AccountingStorageHost=127.0.0.1",
        f"AccountingStoragePort={ports[1]}",
        f"AccountingStoragePass={sockets}/munge",
    ]
    names = f"Nodes={','.join(made.names)}"
    return _lines(
        "ClusterName=mini",
        f"SlurmctldHost={host}(127.0.0.1)",
        f"SlurmctldPort={ports[0]}",
        f"SlurmUser={user}",
        f"SlurmdUser={user}",
        # cred_expire is also how long a requeued job waits; Slurm's own value is 2 minutes.
        f"AuthInfo=socket={sockets}/munge,cred_expire=5",
        f"StateSaveLocation={own}/state",
        f"SlurmdSpoolDir={own}/spool/%n",
        f"SlurmctldPidFile={own}/slurmctld.pid",
        f"SlurmdPidFile={own}/%n.pid",
        f"SlurmctldLogFile={own}/log/slurmctld.log",
        f"SlurmdLogFile={own}/log/%n.log",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_CPU_Memory",
        "SlurmdParameters=config_overrides",
        "JobAcctGatherType=jobacct_gather/linux",
        "JobAcctGatherFrequency=task=1",
        "JobAcctGatherParams=OverMemoryKill",
        "MpiDefault=none",
        "ReturnToService=2",
        "KillWait=2",
        "SlurmdTimeout=5",
        "SlurmctldTimeout=10",
        "MessageTimeout=10",
        "SchedulerParameters=bf_interval=1,sched_min_interval=100000,batch_sched_delay=0",
        "PreemptType=preempt/partition_prio",
        "PreemptMode=REQUEUE",
        f"MaxArraySize={made.max_array_size}",
        *(accounting if made.accounting else []),
        *(["GresTypes=gpu"] if made.gpus else []),
        *nodes,
        f"PartitionName=main {names} Default=YES PriorityTier=10 MaxTime=7-0",
        f"PartitionName=preemptible {names} PriorityTier=1 MaxTime=7-0",
        f"PartitionName=short {names} PriorityTier=10 MaxTime=30",
    )


def _slurmdbd_conf(folder: Path, sockets: Path, port: int) -> str:
    return _lines(
        "DbdHost=localhost",
        "DbdAddr=127.0.0.1",
        f"DbdPort={port}",
        f"SlurmUser={user_name()}",
        f"AuthInfo=socket={sockets}/munge",
        f"PidFile={folder}/slurmdbd.pid",
        f"LogFile={folder}/log/slurmdbd.log",
        "StorageType=accounting_storage/mysql",
        "StorageUser=root",
        "StorageLoc=slurm",
    )


def _gres_conf(settings: Settings, folder: Path) -> str:
    lines = []
    for node in settings.names:
        for index in range(settings.gpus):
            device = folder / "gpus" / f"{node}-nvidia{index}"
            if not device.is_symlink():
                device.symlink_to("/dev/null")
            lines.append(f"NodeName={node} Name=gpu File={device}")
    return _lines(*lines)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, below those that the kernel hands out for connections."""
    held, ports = [], []
    for port in random.sample(range(22_000, 32_000), 1000):
        listener = socket.socket()
        with suppress(OSError):
            listener.bind(("", port))
            ports.append(port)
        held.append(listener)
        if len(ports) == count:
            break
    for listener in held:
        listener.close()
    return ports


def _write_private(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o600)  # slurmdbd insists


def _lines(*lines: str) -> str:
    return "".join(f"{line}\n" for line in lines)
