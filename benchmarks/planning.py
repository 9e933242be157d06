"""How long submitting and looking take at the size of LAION-400M: 41,408 shards in 414 tasks.

python -m benchmarks.planning [--shards 41408] [--slurm]

Makes empty shards in a temporary folder, plans the study (`submit --dry-run`), marks every task as
done and looks at it (`status`). With --slurm it also submits the plan, to see that the time to
submit grows with the number of arrays and jobs, not with that of shards. The Slurm cluster may be
`python -m hpc.minislurm up FOLDER`; the jobs are held, and cancelled in the end.

Appends rows to benchmarks/results.csv. Expect under 2 s each for planning and status.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from benchmarks.results import append
from hpc.ledger import Ledger, Marker, signature
from hpc.plan import assess
from pipeline import status, submit
from pipeline.experiment.load import load_experiment
from pipeline.stages import stages_of
from tests.pipeline import small

TASKS = 414


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shards", type=int, nargs="+", default=[414, 4_140, 41_408])
    parser.add_argument("--slurm", action="store_true", help="submit too")
    arguments = parser.parse_args()
    for shards in arguments.shards:
        with tempfile.TemporaryDirectory() as folder:
            for name, seconds in _measure(Path(folder), shards, arguments.slurm).items():
                print(f"{shards:>7,} shards: {name:<8} {seconds:6.2f} s", flush=True)
                append("planning", name, {"shards": shards, "tasks": TASKS}, seconds, "s")


def _measure(folder: Path, shards: int, slurm: bool) -> dict[str, float]:
    study = small.make(folder / "study")
    for path in (study.folder / "pool").iterdir():
        path.unlink()
    for index in range(shards):
        (study.folder / "pool" / f"{index:05d}.tar").touch()
    values = yaml.safe_load(study.experiment.read_text())
    values["pool"] = {
        "shards": f"pool/{{00000..{shards - 1:05d}}}.tar",
        "shards_per_file": -(-shards // TASKS),
    }
    study.experiment.write_text(yaml.safe_dump(values))
    experiment = str(study.experiment)
    os.chdir(study.folder)
    found = {"plan": _seconds(lambda: submit.main([experiment, "--dry-run"]))}
    if slurm:
        found["submit"] = _submit(study, experiment)
    _mark_all_done(experiment)
    found["status"] = _seconds(lambda: status.main([experiment]))
    os.chdir("/")
    return found


def _submit(study: small.SmallStudy, experiment: str) -> float:
    from hpc.queued import run_queue
    from hpc.slurm import cancel

    profile = study.folder / "held.yaml"
    profile.write_text("cluster: slurm\ndefaults: {sbatch: {hold: true}}\n")
    try:
        return _seconds(lambda: submit.main([experiment, "--profile", str(profile)]))
    finally:
        cancel(sorted({job.array for job in run_queue(study.run).jobs}))


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        code = work()
    assert code == 0, code
    return time.perf_counter() - started


def _mark_all_done(experiment: str) -> None:
    study = load_experiment(Path(experiment), [])
    ledger = Ledger(study.run)
    for item in assess(stages_of(study), ledger).values():
        for output in item.task.outputs:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.touch()
        marker = Marker(
            task=item.task.name,
            digest=item.digest,
            settings=item.task.recipe.settings,
            inputs=dict(item.input_digests),
            input_fingerprints=dict.fromkeys(item.input_digests, "0"),
            parts=dict(item.parts),
            fingerprints=dict.fromkeys(["", *item.parts], "0"),
            outputs={str(o.relative_to(study.run)): signature(o) for o in item.task.outputs},
            counts={},
            started=0.0,
            seconds=1.0,
        )
        ledger.write_marker(item.stage, marker)


if __name__ == "__main__":
    main()
