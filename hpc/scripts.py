"""A submission as plain scripts for sbatch, for sites where scripts are read before they run."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from hpc.files import write_text
from hpc.job import script_of
from hpc.plan import Plan
from hpc.profile import Profile
from hpc.queued import RunQueue
from hpc.submission import waits_for

SUBMIT = "submit.sh"


def write_scripts(plan: Plan, profile: Profile, templates: Path, folder: Path) -> list[Path]:
    """Write a script for each stage, and `submit.sh`, which submits them all.

    Args:
        plan: the submission.
        profile: the site's.
        templates: folder of `stage.sbatch.j2` and `submit.sh.j2`.
        folder: where to write.

    Returns:
        The scripts; `submit.sh` is the last.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    variables = {one.stage: f"${one.stage}" for one in plan.stages}
    listed, written = [], []
    for number, stage in enumerate(plan.stages, 1):
        made = script_of(plan, stage, profile, ())
        made.logs.mkdir(parents=True, exist_ok=True)
        written.append(folder / f"{number}_{stage.stage}.sbatch")
        template = environment.get_template("stage.sbatch.j2")
        write_text(
            written[-1], template.render(stage=stage, script=made, plan=plan, here=os.getcwd())
        )
        needs = waits_for(plan, stage, variables, RunQueue())
        listed.append({"name": written[-1].name, "stage": stage.stage, "needs": needs})
    written.append(folder / SUBMIT)
    template = environment.get_template("submit.sh.j2")
    write_text(written[-1], template.render(scripts=listed, plan=plan))
    return written
