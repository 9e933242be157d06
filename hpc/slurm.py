"""Slurm, asked and parsed here only: squeue, sacct, scontrol, sinfo, scancel.

Works without accounting: squeue and scontrol know what is queued, running, or ended a few minutes
ago; sacct adds what ended earlier, memory, and exact times.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

SECONDS_TO_ANSWER = 60
# Of an enclosing job, and defaults for what the commands are asked to do or show.
_NOT_OURS = ("SLURM", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_")
_KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER")
# Slurm shows one word for a state and what is being done to it: a job to which it is sending a
# signal, or whose nodes change, still has its processes.
_RUNNING = ("RUNNING", "SIGNALING", "RESIZING")


class SlurmError(Exception):
    """Slurm can't be asked, or refused; the message carries its own words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A job in the queue; an array has one for each element."""

    id: str
    """`12`, or `12_3` for an element of an array."""
    state: str
    """PENDING, RUNNING, COMPLETING, SUSPENDED, ..."""
    reason: str
    """Why a pending job waits, in Slurm's word: Priority, Resources, Dependency, ..."""
    waits_for: tuple[str, ...]
    """Ids of the jobs that it still depends on."""
    nodes: str
    comment: str
    name: str

    @property
    def array(self) -> str:
        """The id without the element."""
        return self.id.partition("_")[0]

    @property
    def element(self) -> int:
        """Index in the array; 0 if it is none."""
        return int(self.id.partition("_")[2] or 0)

    @property
    def is_pending(self) -> bool:
        """Whether it waits to start."""
        return self.state == "PENDING"


@dataclass(frozen=True, kw_only=True, slots=True)
class PastJob:
    """What is known of a job that was, or is."""

    id: str
    state: str
    """COMPLETED, FAILED, OUT_OF_MEMORY, TIMEOUT, NODE_FAIL, CANCELLED, PREEMPTED, ..."""
    exit_code: str
    """`exit status:signal`, as Slurm gives it."""
    seconds: int | None = None
    max_rss_bytes: int | None = None
    nodes: str = ""


def is_here() -> bool:
    """Whether this machine has Slurm's commands."""
    return shutil.which("sbatch") is not None


def _scrubbed() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT or not name.startswith(_NOT_OURS)
    }


@contextmanager
def scrubbed_environment() -> Iterator[None]:
    """Without the variables of an enclosing job, which sbatch would take for options."""
    before, scrubbed = dict(os.environ), _scrubbed()
    os.environ.clear()
    os.environ.update(scrubbed)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def call(*words: str) -> str:
    """Run one of Slurm's commands.

    Raises:
        SlurmError: it is not there, failed, or does not answer.
    """
    try:
        done = subprocess.run(
            words,
            env=_scrubbed(),
            capture_output=True,
            text=True,
            timeout=SECONDS_TO_ANSWER,
            errors="replace",
        )
    except FileNotFoundError:
        raise SlurmError(
            f"{words[0]}: not found; is this a node of a Slurm cluster? (hpc.minislurm starts one "
            "to try things on)"
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{words[0]} did not answer within {SECONDS_TO_ANSWER} s") from None
    if done.returncode:
        told = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
        raise SlurmError(f"{words[0]}: {told.removeprefix(words[0] + ': ')}")
    return done.stdout


# the queue


def queue() -> list[Job]:
    """This user's jobs that have not ended.

    Raises:
        SlurmError: Slurm can't be asked.
    """
    # The name comes last: it is the only field that may hold the separator.
    columns = "%i|%T|%r|%E|%N|%k|%j"
    words = (f"--user={os.getuid()}", "--array", "--noheader", f"--format={columns}")
    jobs = []
    for line in call("squeue", *words).splitlines():
        job_id, state, reason, dependency, nodes, comment, name = line.split("|", 6)
        jobs.append(
            Job(
                id=job_id,
                state=state,
                reason=reason,
                waits_for=tuple(dict.fromkeys(re.findall(r"after\w*:(\d+)", dependency))),
                nodes=nodes,
                comment=comment,
                name=name,
            )
        )
    return jobs


def cancel(jobs: Sequence[str]) -> None:
    """End jobs, by id.

    Raises:
        SlurmError: Slurm can't be asked, or refused.
    """
    for start in range(0, len(jobs), 500):
        call("scancel", *jobs[start : start + 500])


def requeue(job: str) -> None:
    """Put a running job back into the queue.

    Raises:
        SlurmError: the site does not allow it, or Slurm can't be asked.
    """
    call("scontrol", "requeue", job)


# what was


def past(jobs: Sequence[str]) -> dict[str, PastJob]:
    """What became of jobs: from sacct, and for those that it does not know, from scontrol.

    A job that neither knows is left out; no answer at all (no accounting, a controller that is
    down) is an empty result, not an error.
    """
    wanted = list(dict.fromkeys(jobs))
    found = _from_sacct(wanted)
    for job in wanted:
        if job not in found and (known := _from_scontrol(job)):
            found[job] = known
    return found


def _from_sacct(jobs: Sequence[str]) -> dict[str, PastJob]:
    """Ask by array: elements that never started share one row, `6_[1-3%1]`."""
    columns = "JobID,State,ExitCode,ElapsedRaw,MaxRSS,NodeList"
    arrays = list(dict.fromkeys(job.partition("_")[0] for job in jobs))
    wanted = set(jobs)
    found: dict[str, PastJob] = {}
    memory: dict[str, int] = {}
    for start in range(0, len(arrays), 200):
        some = ",".join(arrays[start : start + 200])
        try:
            listed = call("sacct", "-nP", f"--format={columns}", f"--jobs={some}")
        except SlurmError:
            return {}
        for line in listed.splitlines():
            name, state, code, elapsed, rss, nodes = line.split("|")
            if "." in name:  # a step, which has the memory
                job = name.partition(".")[0]
                memory[job] = max(memory.get(job, 0), _bytes(rss))
                continue
            for job in wanted.intersection(_elements(name)):
                found[job] = PastJob(
                    id=job,
                    state=state.split()[0],  # `CANCELLED by 1000`
                    exit_code=code,
                    seconds=int(elapsed or 0),
                    nodes=nodes,
                )
    return {job: replace(one, max_rss_bytes=memory.get(job) or None) for job, one in found.items()}


def _elements(name: str) -> Iterator[str]:
    """`6_1`, `6_2`, `6_3` and `6_7` of `6_[1-3,7%2]`; any other name is itself."""
    array, bracket, inside = name.partition("_[")
    if not bracket:
        yield name
        return
    for part in inside.rstrip("]").partition("%")[0].split(","):
        first, _, last = part.partition("-")
        yield from (f"{array}_{index}" for index in range(int(first), int(last or first) + 1))


def _bytes(text: str) -> int:
    found = re.fullmatch(r"([\d.]+)([KMGT]?)", text)
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " ")) if found else 0


def _from_scontrol(job: str) -> PastJob | None:
    try:
        shown = fields_of(call("scontrol", "--oneliner", "show", "job", job))
    except SlurmError:
        return None
    return PastJob(
        id=job,
        state=shown.get("JobState", "UNKNOWN"),
        exit_code=shown.get("ExitCode", ""),
        nodes=shown.get("NodeList", "").replace("(null)", ""),
    )


def is_running(state: str) -> bool:
    """Whether a job in this state, as scontrol and squeue say it, still counts as running."""
    return state in _RUNNING


def fields_of(line: str) -> dict[str, str]:
    """`Key=value` words of one line of scontrol."""
    return dict(word.split("=", 1) for word in line.split() if "=" in word)


# the cluster


@cache
def configuration() -> Mapping[str, str]:
    """What `scontrol show config` says.

    Raises:
        SlurmError: Slurm can't be asked.
    """
    lines = call("scontrol", "show", "config").splitlines()
    pairs = (line.split("=", 1) for line in lines if "=" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def max_array_size() -> int:
    """How many elements an array may have here.

    Raises:
        SlurmError: Slurm can't be asked.
    """
    return int(configuration()["MaxArraySize"])


@dataclass(frozen=True, kw_only=True, slots=True)
class Partition:
    """A queue of the cluster."""

    name: str
    state: str
    """UP, DOWN, DRAIN or INACTIVE."""
    is_default: bool
    max_minutes: float | None
    """None if jobs may run for ever."""
    max_nodes: int | None
    max_memory_mb: int | None
    """On each node, in MiB; None if all of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A machine of the cluster."""

    name: str
    cpus: int
    memory_mb: int
    """In MiB, as Slurm counts."""
    gpus: int
    is_available: bool
    """Whether it takes jobs, now or when those that it has are done."""
    partitions: tuple[str, ...]


_NO_LIMIT = ("UNLIMITED", "INFINITE", "N/A", "NONE", "(null)", "")


def version() -> str:
    """Slurm's version, from the controller: it is there and answers.

    Raises:
        SlurmError: Slurm can't be asked.
    """
    return configuration()["SLURM_VERSION"]


def missing_commands() -> list[str]:
    """Those of Slurm's commands that this machine does not have."""
    words = ("sbatch", "squeue", "scontrol", "scancel", "srun")
    return [word for word in words if shutil.which(word) is None]


def check_accounting() -> None:
    """Find out whether sacct answers.

    Raises:
        SlurmError: it does not; the message says why.
    """
    if configuration().get("AccountingStorageType") in (None, "(null)", "accounting_storage/none"):
        raise SlurmError("accounting is off in this cluster's configuration")
    call("sacct", "--noheader", "--parsable2", "--format=JobID", "--starttime=now")


def partitions() -> list[Partition]:
    """The queues.

    Raises:
        SlurmError: Slurm can't be asked.
    """
    found = []
    for line in call("scontrol", "--oneliner", "show", "partition").splitlines():
        if not (shown := fields_of(line)):
            continue
        memory = _limit(shown.get("MaxMemPerNode", ""))
        nodes = _limit(shown.get("MaxNodes", ""))
        found.append(
            Partition(
                name=shown["PartitionName"],
                state=shown.get("State", ""),
                is_default=shown.get("Default") == "YES",
                max_minutes=minutes_of(shown.get("MaxTime", "")),
                max_nodes=nodes,
                max_memory_mb=memory,
            )
        )
    return found


def _limit(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def minutes_of(text: str) -> float | None:
    """Minutes of a time as Slurm prints it, `[days-]hours:minutes:seconds`; None if no limit."""
    if text in _NO_LIMIT:
        return None
    days, _, clock = text.rpartition("-")
    hours, minutes, seconds = (int(part) for part in f"0:0:{clock}".split(":")[-3:])
    return int(days or 0) * 24 * 60 + hours * 60 + minutes + seconds / 60


def nodes() -> list[Node]:
    """The machines.

    Raises:
        SlurmError: Slurm can't be asked.
    """
    lines = call("scontrol", "--oneliner", "show", "node").splitlines()
    return [_node(shown) for line in lines if "NodeName" in (shown := fields_of(line))]


def _node(shown: Mapping[str, str]) -> Node:
    base, *flags = re.split(r"\+", shown.get("State", "UNKNOWN"))
    gone = base.rstrip("*~#!%$@^-") in ("DOWN", "ERROR", "FAIL", "FUTURE", "UNKNOWN")
    away = {flag.rstrip("*~#!%$@^-") for flag in flags} & {"DRAIN", "FAIL", "NOT_RESPONDING"}
    partitions = shown.get("Partitions", "")
    return Node(
        name=shown["NodeName"],
        cpus=int(shown.get("CPUEfctv", shown.get("CPUTot", "0"))),
        memory_mb=int(shown.get("RealMemory", "0")) - int(shown.get("MemSpecLimit", "0")),
        gpus=gpus_of(shown.get("Gres", "")),
        is_available=not gone and not away,
        partitions=tuple(partitions.split(",")) if partitions else (),
    )


def gpus_of(gres: str) -> int:
    """How many GPUs a node's Gres names: `gpu:a100:4(S:0-1),nvme:1` has 4."""
    return sum(int(count) for count in re.findall(r"(?:^|,)gpu(?::[^:,()]+)?:(\d+)", gres))


def associations(user: str) -> list[tuple[str, tuple[str, ...]]]:
    """The accounts of a user and the qos that each may use; empty if the site keeps none.

    Raises:
        SlurmError: there is no accounting, or it can't be asked.
    """
    columns = "format=account,qos"
    lines = call("sacctmgr", "-nP", "show", "associations", f"user={user}", columns).splitlines()
    pairs = (line.split("|", 1) for line in lines if "|" in line)
    return [(account, tuple(qos.split(",")) if qos else ()) for account, qos in pairs]


def enforced() -> tuple[str, ...]:
    """What of accounts and limits this cluster insists on: associations, limits, qos, ...

    Raises:
        SlurmError: Slurm can't be asked.
    """
    told = configuration().get("AccountingStorageEnforce", "none")
    return () if told in _NO_LIMIT or told == "none" else tuple(told.split(","))


def has_pyxis() -> bool:
    """Whether srun starts containers by itself (NVIDIA's plugin).

    Raises:
        SlurmError: Slurm can't be asked.
    """
    return "--container-image" in call("srun", "--help")


def check_submission(options: Sequence[str]) -> None:
    """Ask Slurm whether it would take a job, without submitting one.

    Args:
        options: long options of sbatch.

    Raises:
        SlurmError: it would not; the message has Slurm's words.
    """
    call("sbatch", "--test-only", *options, "--wrap=true")


def user_name() -> str:
    """Who runs this process, whatever the environment says; the number if it has no name."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
