"""End what works on a study.

python -m pipeline.cancel experiments/mini.yaml
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.command_line import study_parser
from pipeline.stages import NAMES

_EPILOG = """\
examples:
  simgap cancel my.yaml
  simgap cancel my.yaml --stage train --stage evaluate

Nothing that is done is lost: the same submit command goes on from there. Jobs that wait for
cancelled ones are cancelled by Slurm as well.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = study_parser(
        "cancel",
        "End the jobs of a study: those in Slurm's queue, and a submission that works on this "
        "machine.",
        _EPILOG,
    )
    made.add_argument(
        "--stage",
        action="append",
        choices=NAMES,
        metavar="STAGE",
        help=f"only jobs of this stage (may be repeated): {', '.join(NAMES)}",
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    arguments = parser().parse_intermixed_args(argv)
    from hpc.slurm import SlurmError
    from pipeline.experiment.load import ExperimentError
    from pipeline.study import load_study

    try:
        experiment = load_study(arguments.study, arguments.overrides)
        return _cancel(experiment.run, arguments.stage or NAMES)
    except (ExperimentError, SlurmError, OSError) as error:
        print(f"simgap cancel: {error}", file=sys.stderr)
        return 2


def _cancel(run: Path, stages: Sequence[str]) -> int:
    from hpc import slurm
    from hpc.queued import recorded_jobs, run_queue, stage_of
    from hpc.submission import end_local

    if stages is NAMES and (ended := end_local(run)):
        print(f"{ended}: told to end its jobs and itself")
        return 0
    found: dict[str, dict[str, None]] = {stage: {} for stage in stages}
    if recorded_jobs(run) or slurm.is_here():
        for job in run_queue(run).jobs:
            if stage_of(job) in found:
                found[stage_of(job)][job.array] = None
    if not any(found.values()):
        print(f"{run}: nothing to cancel")
        return 0
    slurm.cancel([job for jobs in found.values() for job in jobs])
    for stage, jobs in found.items():
        if jobs:
            print(f"{stage:<10} cancelled: job {', '.join(jobs)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
