"""The page of what is there, while the rest of a study still runs or has failed.

python -m pipeline.report_so_far runs/mini
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.command_line import study_parser

_EPILOG = """\
examples:
  simgap report runs/mini
  simgap report mini --to page
  simgap report mini report.gallery=20 report.baselines=published.csv

The study makes its page at its end, when every model has been evaluated. This makes one from what
is there: similarities are needed, splits and models are shown as far as they have got, and what is
missing is listed. The study's own page is left alone.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = study_parser("report", "Make the page of what is there, wherever a study is.", _EPILOG)
    made.add_argument(
        "--to",
        type=Path,
        metavar="FOLDER",
        help="where to write index.html and figures/ (default: 9_report/so-far in the run)",
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    arguments = parser().parse_intermixed_args(argv)
    from hpc.stage import OutputError
    from pipeline.experiment.load import ExperimentError
    from pipeline.study import load_study

    try:
        experiment = load_study(arguments.study, arguments.overrides)
        return _make(experiment, arguments.to)
    except (ExperimentError, OutputError, OSError) as error:
        print(f"simgap report: {error}", file=sys.stderr)
        return 2


def _make(experiment: object, folder: Path | None) -> int:
    from hpc.words import count
    from pipeline.experiment.sections import Experiment
    from pipeline.layout import Layout
    from pipeline.report import build_report, program_facts, write_report

    assert isinstance(experiment, Experiment)
    run = Layout(experiment.run)
    page = build_report(experiment, run, program_facts(run))
    path = (folder.resolve() if folder else run.report.parent / "so-far") / run.report.name
    write_report(page, path)
    for name in page.missing[:5]:
        print(f"missing: {name}")
    if len(page.missing) > 5:
        print(f"and {count(len(page.missing) - 5, 'more part', 'more parts')}; the page lists them")
    print(f"report: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
