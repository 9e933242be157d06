"""Plain scripts for sbatch do the same as a submission."""

from __future__ import annotations

import subprocess
from pathlib import Path

from hpc import slurm
from hpc.queued import recorded_jobs
from hpc.scripts import write_scripts
from hpc.submission import queue_for, to_run
from tests.slurm.conftest import SlurmStudy

TEMPLATES = Path(__file__).parents[2] / "slurm_templates"


def test_scripts_are_submitted_and_recognised(slurm_study: SlurmStudy) -> None:
    slurm_study.texts["b"] = "held"
    slurm_study.settings = {
        "sbatch": {"nice": "3"},
        "environment": {"COLOUR": "it's blue"},
        "setup": ("echo set up",),
        "tasks_per_job": 2,
    }
    todo = to_run(slurm_study.run, slurm_study.assess(), queue_for(slurm_study.run, "slurm"))
    folder = slurm_study.run.parent / "scripts to read"
    plan = slurm_study.plan_of(todo)
    scripts = write_scripts(plan, slurm_study.profile, TEMPLATES, folder)
    assert [path.name for path in scripts] == ["1_write.sbatch", "2_join.sbatch", "submit.sh"]
    done = subprocess.run(["bash", str(scripts[-1])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    jobs = recorded_jobs(slurm_study.run)[plan.submission]
    assert done.stdout == f"write: job {jobs['write']}\njoin: job {jobs['join']}\n"
    assert slurm_study.to_slurm() == {}  # they are queued already
    again = subprocess.run(["bash", str(scripts[-1])], capture_output=True, text=True)
    assert (again.returncode, again.stdout) == (1, "")
    assert "these scripts were submitted before" in again.stderr
    slurm_study.wait(lambda: slurm_study.attempt("write/letters/b"))
    shown = slurm.fields_of(slurm.call("scontrol", "-o", "show", "job", f"{jobs['write']}_1"))
    assert shown["Nice"] == "3"
    slurm_study.let_go()
    slurm_study.wait_for_end()
    assert slurm_study.is_done()
    assert set(slurm_study.times_run().values()) == {1}
    log = next((slurm_study.run / "logs/write").rglob(f"{jobs['write']}_0_0_log.out")).read_text()
    assert "set up" in log and "attempt 1 (restart 0)" in log


def test_a_script_has_no_option_that_a_submission_has_not(slurm_study: SlurmStudy) -> None:
    jobs = slurm_study.to_slurm()
    todo = slurm_study.assess()
    plan = slurm_study.plan_of(todo)
    folder = slurm_study.run.parent / "scripts"
    scripts = write_scripts(plan, slurm_study.profile, TEMPLATES, folder)
    ours = next((slurm_study.run / "logs/write").rglob(f"{jobs['write']}_submission.sh"))

    def options(path: Path) -> set[str]:
        lines = [line for line in path.read_text().splitlines() if line.startswith("#SBATCH")]
        return {line for line in lines if "comment" not in line and "output" not in line}

    assert options(scripts[0]) == options(ours)
    slurm_study.wait_for_end()
