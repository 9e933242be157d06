"""Why a task failed, in words and as a key: tasks with the same key failed for the same reason."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc.slurm import PastJob
from hpc.stage import Resources


@dataclass(frozen=True, kw_only=True, slots=True)
class Cause:
    """Why a task failed."""

    kind: str
    """Slurm's state, the type of an exception, or one of `KINDS`."""
    title: str
    """One line."""
    advice: str = ""
    """What to do about it; empty if only reading the traceback helps."""
    key: tuple[str, ...]


_PROFILE = "in the site profile"
KINDS = {
    "OUT_OF_MEMORY": (
        "used more memory than its job asked for, and was killed",
        f"raise memory_gb of {{stage}} {_PROFILE}",
    ),
    "TIMEOUT": (
        "ran into its job's time limit",
        f"raise minutes of {{stage}} {_PROFILE}, or give each job less to do (tasks_per_job)",
    ),
    "NODE_FAIL": ("its node failed", "nothing to mend: run it again"),
    "BOOT_FAIL": ("its node did not start", "nothing to mend: run it again"),
    "CANCELLED": ("its job was cancelled", "someone ended it: run it again when you mean to"),
    "PREEMPTED": (
        "its job had to make room for others, and did not come back",
        f"run it again; raise max_requeues {_PROFILE} if it had been requeued as often as it may",
    ),
    "DEADLINE": ("its job could not end before its deadline", "ask for fewer minutes"),
    "CUDA_OUT_OF_MEMORY": (
        "the GPU's memory was not enough",
        "lower batch_size in the experiment, or ask for a larger GPU",
    ),
    "DISK_FULL": (
        "the disk is full, or your quota used up",
        "make room, then run it again: what is done stays done",
    ),
    "BUS_ERROR": (
        "bus error: shared memory was full, or a file shrank while it was read",
        "lower workers in the experiment, or have more room in /dev/shm; is the disk full?",
    ),
    "SEGMENTATION_FAULT": (
        "segmentation fault in a library",
        "look at the last lines; drivers and libraries that don't fit are the usual reason",
    ),
    "ILLEGAL_INSTRUCTION": (
        "illegal instruction: a library was built for another processor",
        f"keep to nodes of one kind (constraint, {_PROFILE}), or install for the oldest",
    ),
    "KILLED": (
        "was killed (signal 9)",
        f"too little memory is the usual reason: raise memory_gb of {{stage}} {_PROFILE}",
    ),
    "NEVER_BEGAN": (
        "its job ended before the task began",
        "the last lines tell why: look at setup, python and container " + _PROFILE,
    ),
    "GONE": (
        "its job left the queue before the task began, and nothing tells why",
        "it was probably cancelled: run it again when you mean to",
    ),
    "CUT_OFF": (
        "its job was told to stop and does not come back",
        f"raise minutes or max_requeues of {{stage}} {_PROFILE}, or run it again",
    ),
    "SILENT": (
        "its process ended without a word",
        "killed from outside, or out of memory: look at the last lines, then run it again",
    ),
}
"""What ends a task that can't tell itself: words, and what to do about it."""

# What has to do with what the stage asked for is another cause for each stage.
_ABOUT_THE_STAGE = ("OUT_OF_MEMORY", "TIMEOUT", "KILLED", "CUT_OFF")

BAD_STATES = (
    "OUT_OF_MEMORY",
    "TIMEOUT",
    "NODE_FAIL",
    "BOOT_FAIL",
    "CANCELLED",
    "PREEMPTED",
    "DEADLINE",
)
"""Slurm's states that say why a job ended; FAILED only says that it did."""

_SIGNALS = {4: "ILLEGAL_INSTRUCTION", 7: "BUS_ERROR", 9: "KILLED", 11: "SEGMENTATION_FAULT"}

# What a worker says when it was told to stop, if it knows why.
_TOLD_TO_STOP = (("TIMEOUT", "time limit is near"), ("PREEMPTED", "other jobs need"))

# In order: what comes first explains what comes later (a process out of memory is "Killed").
_TOLD = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("OUT_OF_MEMORY", r"slurmstepd\S*: error: .*\boom[_-]kill"),
        ("OUT_OF_MEMORY", r"slurmstepd\S*: error: .*exceeded (job |step )?memory limit"),
        ("OUT_OF_MEMORY", r"srun: error: .*: Out Of Memory$"),
        ("NODE_FAIL", r"(slurmstepd\S*|srun): error: .* DUE TO NODE FAILURE"),
        ("NODE_FAIL", r"srun: error: Node failure on "),
        ("TIMEOUT", r"slurmstepd\S*: error: .* DUE TO TIME LIMIT"),
        ("PREEMPTED", r"slurmstepd\S*: error: .* DUE TO PREEMPTION"),
        ("CUDA_OUT_OF_MEMORY", r".*(CUDA out of memory|\bOutOfMemoryError: )"),
        ("DISK_FULL", r".*(No space left on device|Disk quota exceeded)"),
        (
            "CANCELLED",
            r"slurmstepd\S*: error: \*\*\* (JOB|STEP) \S+ ON \S+ CANCELLED AT \S+ \*\*\*",
        ),
        ("BUS_ERROR", r"(.*: )?Bus error\b"),
        ("SEGMENTATION_FAULT", r"(.*: )?Segmentation fault\b"),
        ("ILLEGAL_INSTRUCTION", r"(.*: )?Illegal instruction\b"),
        ("KILLED", r"(srun: error: .*: |.*: line \d+: +\d+ )?Killed\b"),
    )
)


def told_by(lines: Iterable[str]) -> str | None:
    """What the lines of a log say about the end of a job: one of `KINDS`."""
    listed = list(lines)
    return next(
        (kind for kind, pattern in _TOLD if any(pattern.match(line) for line in listed)), None
    )


def of_stop(error: str) -> str:
    """Why a worker was told to stop, from its own words: one of `KINDS`."""
    said = [kind for kind, words in _TOLD_TO_STOP if words in error]
    return said[0] if len(said) == 1 else "CUT_OFF"


def of_signal(job: PastJob | None) -> str | None:
    """What the signal says that ended a job: one of `KINDS`."""
    status, _, signal = (job.exit_code if job else "").partition(":")
    number = int(signal) if signal.isdigit() else 0
    if not number and status.isdigit():
        number = int(status) - 128  # as a shell tells it
    return _SIGNALS.get(number)


def of_kind(
    kind: str,
    stage: str,
    *,
    asked: Resources | None = None,
    used: PastJob | None = None,
    words: str = "",
) -> Cause:
    """The cause of what can't tell itself.

    Args:
        kind: one of `KINDS`.
        stage: the task's.
        asked: what its job asked for, if known.
        used: what Slurm knows of its job.
        words: what is known besides, for the title.
    """
    title, advice = KINDS[kind]
    about = (stage,) if kind in _ABOUT_THE_STAGE else ()
    numbers = _numbers(kind, asked, used)
    return Cause(
        kind=kind,
        title=f"{kind}: {words}"
        if kind == "CUT_OFF"
        else f"{kind}: {title}{words and ': '}{words}",
        advice=advice.format(stage=stage) + (f" ({numbers})" if numbers else ""),
        key=(kind, *about, normal(words)),
    )


def _numbers(kind: str, asked: Resources | None, used: PastJob | None) -> str:
    """What was asked for and used, as far as it is known."""
    if asked and kind in ("TIMEOUT", "CUT_OFF"):
        return f"it asked for {asked.minutes:,} minutes"
    if kind not in ("OUT_OF_MEMORY", "KILLED"):
        return ""
    words = [f"it asked for {asked.memory_gb:g} GB on each node"] if asked else []
    if used and used.max_rss_bytes:
        words.append(f"a process used {used.max_rss_bytes / 1e9:.3g} GB when last measured")
    return "; ".join(words)


# exceptions

_FRAME = re.compile(r'^[\s|+-]*File "(.+?)", line (\d+), in (.+)$', re.MULTILINE)
_ERROR = re.compile(r"(?:rank \d+ on \S+: )?([A-Za-z_][\w.]*)(?:: |$)(.*)", re.DOTALL)
_INSTALLED = re.compile(r".*/(?:site|dist)-packages/(.+)")
_OURS = ("hpc/", "kernels/", "pipeline/")
_ABOUT_EXCEPTIONS = (
    (r"\w*Error$", r"(?s).*CUDA out of memory", KINDS["CUDA_OUT_OF_MEMORY"][1]),
    (r"OutOfMemoryError$", "", KINDS["CUDA_OUT_OF_MEMORY"][1]),
    (r"MemoryError$", "", KINDS["OUT_OF_MEMORY"][1]),
    (r"OSError$", r"(?s).*(No space left|quota exceeded)", KINDS["DISK_FULL"][1]),
    (
        r"(ModuleNotFound|Import)Error$",
        "",
        f"jobs have another environment than your shell: look at setup and python {_PROFILE}",
    ),
    (r"ValueError$", r"its input \S+ is not there", "submit again: that makes its input as well"),
)
# How a process tells that another one that worked for it was killed.
_CHILD_KILLED = re.compile(
    r"(?s).*(killed by signal|signal 9|SIGKILL|exit(ed)?( with)? (status|code) -?(9|137)\b|Killed)"
)


def of_exception(error: str, traceback: str, stage: str, task: str) -> Cause:
    """The cause of a task that raised.

    Args:
        error: `ValueError: what it says`.
        traceback: as Python prints it; may be empty.
        stage: the task's.
        task: its name, which the message may hold.
    """
    found = _ERROR.match(error)
    kind, message = (found[1].rpartition(".")[2], found[2]) if found else ("error", error)
    frames = _frames(traceback)
    place = f" in {_place(frames)}" if frames else ""
    first = message.strip().partition("\n")[0]
    return Cause(
        kind=kind,
        title=f"{kind}{place}" + (f": {first}" if first else ""),
        advice=_about(kind, message).format(stage=stage),
        key=(kind, normal(message, task), *(":".join(frame) for frame in frames)),
    )


def says_child_was_killed(error: str) -> bool:
    """Whether an exception is about a process that was killed, which has a cause of its own."""
    return bool(_CHILD_KILLED.match(error))


def normal(message: str, task: str = "") -> str:
    """A message without what differs from task to task: its name, quotes, paths and numbers."""
    text = message.replace(task, "…") if task else message
    text = re.sub(r"'[^'\n]*'|\"[^\"\n]*\"", "…", text)
    text = re.sub(r"[^\s:,;()\[\]]*[/\d][^\s:,;()\[\]]*", "…", text)
    return re.sub(r"…(?:[\s,]+…)*", "…", text)


def _about(kind: str, message: str) -> str:
    for of_kind_, of_message, advice in _ABOUT_EXCEPTIONS:
        if re.match(of_kind_, kind) and re.match(of_message, message):
            return advice
    return ""


def _frames(traceback: str) -> list[tuple[str, str, str]]:
    """File, line and function of each frame; files without the folder they are installed in."""
    return [(_short(file), line, function) for file, line, function in _FRAME.findall(traceback)]


def _short(file: str) -> str:
    root = f"{Path(__file__).parent.parent}/"
    if installed := _INSTALLED.match(file):
        own = installed[1].startswith(_OURS)
        return installed[1] if own else f"site-packages/{installed[1]}"
    return file.removeprefix(root)


def _place(frames: Sequence[tuple[str, str, str]]) -> str:
    """Where it happened: the last frame that is not in a library."""
    foreign = re.compile(r"site-packages/|<frozen|.*/lib/python3")
    own = [frame for frame in frames if not foreign.match(frame[0])]
    file, line, function = own[-1] if own else frames[-1]
    return f"{file}:{line} {function}"
