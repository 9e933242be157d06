"""Why a task failed: what is one cause, and what lines of a log tell."""

from __future__ import annotations

import pytest

from hpc import causes
from hpc.causes import normal, of_exception, told_by
from tests.hpc.fake_slurm import OOM, TIME_LIMIT, raised

# recorded exceptions


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("12 of 100 images of '/pool/00003.tar' are bad", "7 of 90 images of '/b/1.tar' are bad", True),
        ("/pool/00003.tar: no such file", "/scratch/a b/00004.tar: no such file", True),
        ("/pool/00003.tar: no such file", "/scratch/ab/00004.tar: no such file", True),
        ("KeyError: 'laion'", "KeyError: 'coco'", True),
        ("shape (3, 4), expected (3, 5)", "shape (7, 4), expected (30, 50)", True),
        ("digest 5fd0a1, expected 77ab21", "digest 88d0a1, expected 17ab21", True),
        ("the model is too large", "the model is too small", False),
        ("letters/a: bad", "letters/b: bad", True),
    ],
)  # fmt: skip
def test_what_differs_from_task_to_task_is_not_part_of_a_cause(
    left: str, right: str, same: bool
) -> None:
    assert (normal(left) == normal(right)) is same


def test_another_traceback_or_another_type_is_another_cause() -> None:
    def key(error: str, *frames: str) -> tuple[str, ...]:
        return of_exception(error, raised(error, *frames), "embed", "pool/00001").key

    first = key("ValueError: no", "/x/pipeline/a.py")
    assert key("ValueError: no", "/x/pipeline/a.py") == first
    assert key("ValueError: no", "/x/pipeline/b.py") != first
    assert key("KeyError: no", "/x/pipeline/a.py") != first


def test_an_exception_is_placed_in_our_code_not_in_the_library_thatraised() -> None:
    frames = (
        "/opt/lib/python3.12/site-packages/pipeline/stages/embed.py",
        "/opt/lib/python3.12/site-packages/torch/nn/modules.py",
        "/usr/lib/python3.12/threading.py",
    )
    cause = of_exception("RuntimeError: bad", raised("RuntimeError: bad", *frames), "embed", "x")
    assert cause.title == "RuntimeError in pipeline/stages/embed.py:7 run: bad"


def test_the_same_fault_on_other_ranks_is_one_cause() -> None:
    causes_ = [
        of_exception(f"rank {n} on node{n}: RuntimeError: NCCL broke", "", "train", "x/seed-0")
        for n in (1, 5)
    ]
    assert causes_[0].kind == "RuntimeError"
    assert causes_[0].key == causes_[1].key


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        ("MemoryError: ", "memory_gb of embed"),
        ("OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "batch_size"),
        ("torch.cuda.OutOfMemoryError: CUDA out of memory.", "batch_size"),
        ("RuntimeError: CUDA out of memory", "batch_size"),
        ("OSError: [Errno 28] No space left on device: '/x'", "make room"),
        ("ModuleNotFoundError: No module named 'torch'", "setup"),
        ("ValueError: its input embed/pool/00001 is not there with digest a1: submit", "again"),
    ],
)
def test_some_exceptions_come_with_advice(error: str, advice: str) -> None:
    assert advice in of_exception(error, "", "embed", "pool/00001").advice


def test_an_ordinary_exception_comes_without_advice() -> None:
    assert of_exception("ValueError: no", "", "embed", "x").advice == ""


# what logs tell


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (OOM, "OUT_OF_MEMORY"),
        ("slurmstepd: error: Detected 2 oom-kill event(s) in StepId=4.batch cgroup.", "OUT_OF_MEMORY"),
        ("slurmstepd: error: StepId=12.0 exceeded memory limit (900 > 400), being killed", "OUT_OF_MEMORY"),
        ("slurmstepd: error: Step 12.0 exceeded job memory limit, being killed", "OUT_OF_MEMORY"),
        ("srun: error: node1: task 0: Out Of Memory", "OUT_OF_MEMORY"),
        ("slurmstepd-node1: error: StepId=3.0 exceeded memory limit (5 > 4), being killed", "OUT_OF_MEMORY"),
        ("slurmstepd-node1: error: *** STEP 3.0 ON node1 CANCELLED AT 2026-11-21T09:23:21 ***", "CANCELLED"),
        (TIME_LIMIT, "TIMEOUT"),
        ("slurmstepd: error: *** STEP 12.0 ON n1 CANCELLED AT 2026-11-21T09:00:00 DUE TO TIME LIMIT ***", "TIMEOUT"),
        ("slurmstepd: error: *** JOB 12 ON n1 CANCELLED AT 2026-11-21T09:00:00 DUE TO PREEMPTION ***", "PREEMPTED"),
        ("slurmstepd: error: *** JOB 9 ON n1 CANCELLED AT 2026-11-21T09:00:00 DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS ***", "NODE_FAIL"),
        ("srun: error: Node failure on node3", "NODE_FAIL"),
        ("slurmstepd: error: *** JOB 12 ON node1 CANCELLED AT 2026-11-21T09:00:00 ***", "CANCELLED"),
        ("RuntimeError: CUDA out of memory. Tried to allocate", "CUDA_OUT_OF_MEMORY"),
        ("torch.OutOfMemoryError: CUDA", "CUDA_OUT_OF_MEMORY"),
        ("OSError: [Errno 28] No space left on device", "DISK_FULL"),
        ("OSError: [Errno 122] Disk quota exceeded", "DISK_FULL"),
        ("srun: error: node1: task 0: Killed", "KILLED"),
        ("Killed", "KILLED"),
        ("/var/spool/slurmd/job4/slurm_script: line 8:  1234 Killed   python -m x", "KILLED"),
        ("srun: error: node1: task 0: Segmentation fault (core dumped)", "SEGMENTATION_FAULT"),
        ("Fatal Python error: Segmentation fault", "SEGMENTATION_FAULT"),
        ("srun: error: node1: task 0: Bus error", "BUS_ERROR"),
        ("srun: error: node1: task 0: Illegal instruction", "ILLEGAL_INSTRUCTION"),
    ],
)  # fmt: skip
def test_a_line_of_the_log_tells_what_ended_the_job(line: str, kind: str) -> None:
    assert told_by(["2026-11-21 09:00:01 x: starts (new)", line, "srun: Terminating"]) == kind
    assert kind in causes.KINDS


@pytest.mark.parametrize(
    "line",
    [
        "2026-11-21 09:00:01 pool/Killed: starts (not yet run)",
        "2026-11-21 09:00:01 embed: 3 tasks on node1, code 1234",
        "srun: error: node1: task 0: Exited with exit code 1",
        "SIGTERM: the job is about to be ended; working on until then",
        "a caption about a bus, an error and being Killed",
    ],
)
def test_ordinary_lines_tell_nothing(line: str) -> None:
    assert told_by([line]) is None


def test_out_of_memory_explains_being_killed() -> None:
    assert told_by(["srun: error: node1: task 0: Killed", TIME_LIMIT, OOM]) == "OUT_OF_MEMORY"
