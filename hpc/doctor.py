"""What a site or machine has, held against what a profile asks for: one finding for each check."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpc import slurm
from hpc.job import sbatch_options
from hpc.profile import Container, Profile, SlurmOptions
from hpc.room import Room
from hpc.stage import Resources
from hpc.words import count

OK, WARNING, FAULT = "ok", "warning", "FAULT"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What one check found."""

    verdict: str
    """ok, warning (it may work) or FAULT (it can't)."""
    about: str
    """What was looked at: a stage's name, or a word or two."""
    says: str
    do: str = ""
    """What to do about it."""


# one machine


def check_machine(profile: Profile, stages: Sequence[str], room: Room) -> Iterator[Finding]:
    """Whether each stage's jobs fit on this machine."""
    gpus = count(len(room.gpus), "GPU")
    says = f"{count(room.cpus, 'core')}, {room.memory_gb:.1f} GB memory, {gpus}"
    yield Finding(verdict=OK, about="this machine", says=says)
    for stage in stages:
        yield _fits_here(stage, profile.resources(stage), room)


def _fits_here(stage: str, asked: Resources, room: Room) -> Finding:
    try:
        gets = room.clamp(asked)
    except ValueError as error:
        do = "change the profile; of GPUs that should be here, check CUDA_VISIBLE_DEVICES"
        return Finding(verdict=FAULT, about=stage, says=str(error), do=do)
    told = f"{count(room.at_once(gets), 'job')} at once, each {_words(gets)}"
    if gets != asked:
        says = f"the profile asks for {_words(asked)}, which is not here; {told}"
        return Finding(verdict=WARNING, about=stage, says=says, do="it may run out of memory")
    return Finding(verdict=OK, about=stage, says=told)


def _words(asked: Resources) -> str:
    return (f"{asked.nodes} nodes, each " if asked.nodes > 1 else "") + _of_a_node(asked)


def _of_a_node(asked: Resources) -> str:
    parts = [count(asked.processes * asked.cpus, "core"), f"{asked.memory_gb:g} GB"]
    parts += [count(asked.gpus, "GPU")] if asked.gpus else []
    return ", ".join(parts)


# a Slurm cluster


@dataclass(frozen=True)
class _Site:
    partitions: Mapping[str, slurm.Partition]
    nodes: Sequence[slurm.Node]
    accounts: Mapping[str, Sequence[str]]
    """The user's accounts and their qos; empty if that is not known."""
    insists: bool
    """Whether an account that the user does not have is refused."""
    verdicts: dict[tuple[str, ...], str] = field(default_factory=dict)
    """What Slurm said about options that it was asked about already."""


def check_slurm(profile: Profile, stages: Sequence[str]) -> Iterator[Finding]:
    """Whether Slurm answers and would take each stage's jobs."""
    if missing := slurm.missing_commands():
        do = "run this on a login node of the cluster, or `module load slurm`"
        says = f"not found: {', '.join(missing)}"
        yield Finding(verdict=FAULT, about="Slurm", says=says, do=do)
        return
    try:
        yield Finding(verdict=OK, about="Slurm", says=f"version {slurm.version()} answers")
        yield _array_size()
        site, told = _ask()
    except slurm.SlurmError as error:
        do = "try `scontrol ping`; if it fails too, tell the site"
        yield Finding(verdict=FAULT, about="Slurm", says=str(error), do=do)
        return
    yield told
    yield from check_variables()
    for stage in stages:
        yield from _check_stage(stage, profile.resources(stage), profile.slurm(stage), site)


def _array_size() -> Finding:
    size = slurm.max_array_size()
    if size < 1:
        says, do = f"MaxArraySize is {size}: this site allows no arrays", "ask the site for arrays"
        return Finding(verdict=FAULT, about="arrays", says=says, do=do)
    return Finding(verdict=OK, about="arrays", says=f"of up to {size} jobs (MaxArraySize)")


def _ask() -> tuple[_Site, Finding]:
    """What the site has, and what is to be said about accounting."""
    partitions = {one.name: one for one in slurm.partitions()}
    insists = bool(slurm.enforced())
    accounts: dict[str, Sequence[str]] = {}
    try:
        slurm.check_accounting()
        accounts = dict(slurm.associations(slurm.user_name()))
    except slurm.SlurmError as error:
        says = f"sacct is off: status and logs work without it, but don't know memory ({error})"
    else:
        known = ", ".join(accounts) or "none"
        says = f"sacct answers; accounts of {slurm.user_name()}: {known}"
    told = Finding(verdict=OK, about="accounting", says=says)
    return _Site(partitions, slurm.nodes(), accounts, insists), told


def ignored_variables() -> list[str]:
    """Variables in this environment that would change what sbatch does, and that submit ignores."""
    before = set(os.environ)
    with slurm.scrubbed_environment():
        return sorted(before - set(os.environ))


_KEY_OF = {
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "constraint": "constraint",
    "time": "minutes",
    "timelimit": "minutes",
    "nodes": "nodes",
    "ntasks-per-node": "processes",
    "cpus-per-task": "cpus",
    "gpus-per-node": "gpus",
    "mem": "memory_gb",
    "mem-per-node": "memory_gb",
    "signal": "signal_seconds",
}
"""sbatch's options that have a key of their own in a profile."""


def check_variables() -> Iterator[Finding]:
    """Which SBATCH_ and SLURM_ variables of this shell a submission ignores."""
    names = ignored_variables()
    inside = os.environ.get("SLURM_JOB_ID")
    if inside:
        says = f"this shell is inside job {inside}; submissions don't take over its variables"
        yield Finding(verdict=OK, about="environment", says=says)
        names = [name for name in names if name.startswith("SBATCH_")]
    for name in names:
        option = name.partition("_")[2].lower().replace("_", "-")
        key = _KEY_OF.get(option, f"sbatch: {{{option}: ...}}")
        says = f"{name}={os.environ[name]} is ignored, so that a run does not depend on the shell"
        do = f"if you need it, put it into the profile: {key}"
        yield Finding(verdict=WARNING, about="environment", says=says, do=do)


def _check_stage(
    stage: str, asked: Resources, chosen: SlurmOptions, site: _Site
) -> Iterator[Finding]:
    found = [
        *_overridden(stage, chosen),
        *_where(stage, asked, chosen, site),
        *_who(stage, chosen, site),
        *_how(stage, chosen),
    ]
    if not any(one.verdict == FAULT for one in found):
        found += _slurm_says(stage, asked, chosen, site)
    yield from found or [
        Finding(
            verdict=OK,
            about=stage,
            says=f"{_words(asked)}, {asked.minutes} minutes, told to stop "
            f"{chosen.signal_seconds} s before; Slurm would take it",
        )
    ]


def _overridden(stage: str, chosen: SlurmOptions) -> Iterator[Finding]:
    for option in chosen.sbatch:
        if option in ("requeue", "no-requeue", "open-mode", "signal"):
            says = f"sbatch: {option}: simgap stops and resumes jobs by its own"
            yield Finding(verdict=WARNING, about=stage, says=says, do=f"drop {option}")
        elif key := _KEY_OF.get(option):
            says = f"sbatch: {option} overrides {key}, which jobs go by"
            yield Finding(verdict=WARNING, about=stage, says=says, do=f"give {key} instead")
    if chosen.signal_seconds == 0:
        says = "signal_seconds is 0: a job is not told before its time ends, and does not go on"
        yield Finding(verdict=WARNING, about=stage, says=says, do="leave it out: 120")


def _where(stage: str, asked: Resources, chosen: SlurmOptions, site: _Site) -> Iterator[Finding]:
    """Whether some partition has room; where sbatch's own words are used, only Slurm knows."""
    if set(chosen.sbatch) & set(_KEY_OF):
        return
    default = [one.name for one in site.partitions.values() if one.is_default]
    names = chosen.partition.split(",") if chosen.partition else default
    known = ", ".join(site.partitions)
    if not names:
        says, do = "no partition is asked for, and the site has no default", f"one of {known}"
        yield Finding(verdict=FAULT, about=stage, says=says, do=f"give partition: {do}")
        return
    unknown = [name for name in names if name not in site.partitions]
    for name in unknown:
        do = f"this site has: {known}"
        yield Finding(verdict=FAULT, about=stage, says=f"no partition {name!r} here", do=do)
    if unknown:
        return
    found = [_in_partition(stage, asked, site.partitions[name], site.nodes) for name in names]
    if all(found):  # no partition of the list takes it
        yield from (one for some in found for one in some)


def _in_partition(
    stage: str, asked: Resources, queue: slurm.Partition, nodes: Sequence[slurm.Node]
) -> list[Finding]:
    """What is in the way of a job in one partition."""
    found = []

    def fault(says: str, do: str) -> None:
        found.append(Finding(verdict=FAULT, about=stage, says=says, do=do))

    if queue.state != "UP":
        fault(f"partition {queue.name} is {queue.state}", "wait until it is up, or take another")
    if queue.max_minutes is not None and asked.minutes > queue.max_minutes:
        limit = f"{queue.max_minutes:g}"
        fault(
            f"minutes: {asked.minutes}, but partition {queue.name} ends jobs after {limit}",
            f"give minutes: {limit}; longer work is requeued and goes on where it was",
        )
    if queue.max_nodes is not None and asked.nodes > queue.max_nodes:
        fault(
            f"nodes: {asked.nodes}, but partition {queue.name} gives a job at most "
            f"{queue.max_nodes}",
            f"give nodes: {queue.max_nodes}, or another partition",
        )
    there = [node for node in nodes if queue.name in node.partitions]
    fitting = [node for node in there if _fits(asked, node, queue)]
    if len(fitting) < asked.nodes:
        fault(
            f"{count(asked.nodes, 'node')} with {_of_a_node(asked)}: partition {queue.name} has "
            f"{count(len(fitting), 'such node')}; {_largest(there, queue)}",
            "lower the numbers, or give another partition",
        )
    elif (ready := sum(node.is_available for node in fitting)) < asked.nodes:
        says = f"of {count(len(fitting), 'node')} of {queue.name} that fit, {ready} "
        says += "takes jobs now" if ready == 1 else "take jobs now"
        do = "jobs wait until they are back; `sinfo -R` says why they are away"
        found.append(Finding(verdict=WARNING, about=stage, says=says, do=do))
    return found


def _memory_mb(asked: Resources) -> int:
    return int(asked.memory_gb * 1e9 / 2**20)


def _fits(asked: Resources, node: slurm.Node, queue: slurm.Partition) -> bool:
    memory = min(node.memory_mb, queue.max_memory_mb or node.memory_mb)
    return (
        asked.processes * asked.cpus <= node.cpus
        and _memory_mb(asked) <= memory
        and asked.gpus <= node.gpus
    )


def _largest(nodes: Sequence[slurm.Node], queue: slurm.Partition) -> str:
    if not nodes:
        return "it has no nodes at all"
    memory = max(min(one.memory_mb, queue.max_memory_mb or one.memory_mb) for one in nodes)
    return (
        f"the most that a node has is {max(one.cpus for one in nodes)} cores, "
        f"{memory * 2**20 / 1e9:.1f} GB, {max(one.gpus for one in nodes)} GPUs"
    )


def _who(stage: str, chosen: SlurmOptions, site: _Site) -> Iterator[Finding]:
    """Whether the account and the qos are this user's."""
    if not site.accounts:
        return
    verdict = FAULT if site.insists else WARNING
    if chosen.account and chosen.account not in site.accounts:
        says = f"account {chosen.account!r} is none of yours"
        do = f"yours: {', '.join(site.accounts)}"
        yield Finding(verdict=verdict, about=stage, says=says, do=do)
        return
    some = [chosen.account] if chosen.account else list(site.accounts)
    allowed = list(dict.fromkeys(qos for account in some for qos in site.accounts[account]))
    if chosen.qos and chosen.qos not in allowed:
        says = f"qos {chosen.qos!r} is none of yours"
        do = f"yours: {', '.join(allowed) or 'none'}"
        yield Finding(verdict=verdict, about=stage, says=says, do=do)


def _how(stage: str, chosen: SlurmOptions) -> Iterator[Finding]:
    """Whether what starts the program is there."""
    if chosen.container:
        yield from _container(stage, chosen.container)
    elif chosen.python and not chosen.setup:  # setup lines may bring it
        first = chosen.python.split()[0]
        if shutil.which(os.path.expandvars(first)) is None:
            do = "give a path that nodes see, or a setup line that brings it"
            says = f"python: {first!r} is not found here"
            yield Finding(verdict=WARNING, about=stage, says=says, do=do)


def _container(stage: str, container: Container) -> Iterator[Finding]:
    if container.runtime == "pyxis" and not slurm.has_pyxis():
        says = "srun has no --container-image here: the pyxis plugin is missing"
        yield Finding(verdict=FAULT, about=stage, says=says, do="give runtime: apptainer")
    elif container.runtime != "pyxis" and shutil.which(container.runtime) is None:
        says = f"{container.runtime} is not found on this machine; nodes may have it"
        do = "if it comes by a module, add a setup line: module load ..."
        yield Finding(verdict=WARNING, about=stage, says=says, do=do)
    if _is_file(container) and not Path(container.image).exists():
        says = f"no container image {container.image}"
        do = "give the path of an image that nodes see, or docker://..."
        yield Finding(verdict=FAULT, about=stage, says=says, do=do)


def _is_file(container: Container) -> bool:
    """Whether the image is a path; pyxis takes other words for names in a registry."""
    if container.runtime == "pyxis":
        return container.image.startswith(("/", "./", "../"))
    return "://" not in container.image


def _slurm_says(stage: str, asked: Resources, chosen: SlurmOptions, site: _Site) -> list[Finding]:
    """Slurm's own verdict; the same options are asked about once."""
    options = sbatch_options(asked, chosen)
    words = tuple(
        f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()
    )
    if words not in site.verdicts:
        try:
            slurm.check_submission(words)
            site.verdicts[words] = ""
        except slurm.SlurmError as error:
            site.verdicts[words] = "; ".join(str(error).splitlines())
    if not (refusal := site.verdicts[words]):
        return []
    do = f"what was asked: sbatch --test-only {' '.join(words)}"
    return [Finding(verdict=FAULT, about=stage, says=f"Slurm refuses: {refusal}", do=do)]
