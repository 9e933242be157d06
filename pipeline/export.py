"""Write a split for other programs.

python -m pipeline.export runs/mini sketch-pruned --to datacomp
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.command_line import study_parser

if TYPE_CHECKING:
    from pipeline.experiment.sections import Experiment
    from pipeline.exports.selected import Selected

FORMS = ("datacomp", "parquet", "clip-ood", "list")
_SECONDS_BETWEEN_LINES = 10
_PAPERS_DEFAULT = 15_000_000
"""Images that clip-ood's script takes of a list unless told otherwise."""
_EPILOG = """\
examples:
  simgap export runs/mini sketch-pruned --to list
      a folder with a text file for each tar: the keys that are kept, one a line
  simgap export my.yaml sketch-pruned --to parquet --out sketch-pruned.parquet
      a table of shard and key (and uid, where it is known)
  simgap export runs/datacomp-small sketch-pruned --to datacomp
      a subset file for DataComp's resharder: 128-bit uids, sorted, numpy u8,u8
  simgap export my.yaml sketch-pruned --to datacomp --uids metadata/
      the uids are in Parquet files with columns key and uid, one for each tar
  simgap export my.yaml sketch-pruned --to clip-ood
      a list for clip-ood's subsample_dataset.py: img2dataset's keys as int64

Without --out it goes to runs/<name>/exports/. What can't be represented is refused with the first
row that is concerned; nothing is written then. docs/export.md tells more.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = study_parser(
        "export",
        "Write a split of a study for other programs. Its mask has to be up to date.",
        _EPILOG,
        also=("split", "which of its splits"),
    )
    made.add_argument("--to", required=True, choices=FORMS, metavar="FORM", help=", ".join(FORMS))
    made.add_argument("--out", type=Path, metavar="PATH", help="file, or for list folder, to write")
    made.add_argument(
        "--uids",
        type=Path,
        metavar="PATH",
        help="where DataComp's uids are, if neither in the JSON in the tars nor in the metadata of "
        "precomputed embeddings: a folder with a Parquet file for each tar (00012.parquet for "
        "00012.tar), or one Parquet file, with columns key and uid (and shard)",
    )
    made.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes that look for uids (default: %(default)s)",
    )
    made.add_argument("--replace", action="store_true", help="replace an export that is there")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    arguments = parser().parse_intermixed_args(argv)
    from hpc.stage import OutputError
    from pipeline.experiment.load import ExperimentError
    from pipeline.study import load_study

    try:
        experiment = load_study(arguments.study, arguments.overrides)
        return _export(experiment, arguments)
    except (ExperimentError, OutputError, OSError, ValueError) as error:
        print(f"simgap export: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nsimgap export: interrupted, nothing written", file=sys.stderr)
        return 130


def _export(experiment: Experiment, arguments: argparse.Namespace) -> int:
    from hpc.words import clock, count
    from pipeline.exports.forms import SUFFIXES, Export
    from pipeline.exports.selected import Selected
    from pipeline.layout import Layout

    split, form = arguments.split, arguments.to
    _check_arguments(experiment, arguments)
    layout = Layout(experiment.run)
    out = (arguments.out or layout.export(split, SUFFIXES[form])).absolute()
    _check_place(out, form, arguments.replace)
    _check_mask(experiment, split)
    selected = Selected(layout, split)
    if not selected.kept:
        raise ValueError(f"the split {split} keeps no image: nothing to export")
    pool, started = experiment.pool, time.monotonic()
    Export(
        selected, out, _Progress(), lambda index: _tars(pool, index), arguments.uids,
        arguments.workers,
    ).write(form)  # fmt: skip
    words = f"{selected.kept:,} of {count(selected.starts[-1], 'image')} of the pool"
    print(f"{split}: {words}, written in {clock(time.monotonic() - started)}: {out}")
    _tell_more(selected, form)
    return 0


def _check_arguments(experiment: Experiment, arguments: argparse.Namespace) -> None:
    from hpc.words import nearest

    split = arguments.split
    if split not in experiment.splits:
        raise ValueError(f"no split {split!r}; {nearest(split, list(experiment.splits))}")
    if arguments.uids is not None and arguments.to != "datacomp":
        raise ValueError(f"--uids is for --to datacomp; --to {arguments.to} has no use for uids")
    if arguments.uids is not None and not arguments.uids.exists():
        raise FileNotFoundError(f"--uids {arguments.uids}: no such file or folder")
    if arguments.workers < 1:
        raise ValueError(f"--workers {arguments.workers}: expected 1 or more")


def _check_place(out: Path, form: str, replace: bool) -> None:
    """Nothing is lost by a slip: only what looks like an export is replaced, and only if asked."""
    if not out.exists():
        return
    if not replace:
        raise ValueError(f"{out} is there already; give --replace, or another --out")
    is_folder = form == "list"
    if out.is_dir() != is_folder:
        raise ValueError(f"{out} is {'a folder' if out.is_dir() else 'a file'}: not replaced")
    other = (
        next((path for path in out.iterdir() if path.suffix != ".txt"), None) if is_folder else None
    )
    if other is not None:
        raise ValueError(f"{out} is no export, it holds {other.name}: not replaced")


def _check_mask(experiment: Experiment, split: str) -> None:
    """Raise a ValueError unless the mask is that of today's definition and data."""
    from hpc.ledger import Ledger
    from hpc.plan import DONE, assess
    from hpc.stage import reference
    from pipeline.stages import NAMES, stages_of

    stages = stages_of(experiment)[: NAMES.index("mask") + 1]
    found = assess(stages, Ledger(experiment.run))[reference("mask", split)]
    if found.state != DONE:
        raise ValueError(
            f"the mask of {split} is {found.state} ({found.reason}): run simgap submit "
            "... --until mask first"
        )


def _tars(pool: Any, index: int) -> list[Path]:
    """All tars that the rows of an embeddings file may be in."""
    from pipeline.experiment.sources import pool_groups

    return list(pool.paths if pool.embeddings is not None else pool_groups(pool)[index])


def _tell_more(selected: Selected, form: str) -> None:
    """What whoever uses the export has to know."""
    attributes = selected.mask.attributes
    print(f"it is: {attributes['definition']}")
    if template := attributes.get("plus_reference"):
        print(
            f"note: trainings on {selected.split} also see the reference's images, with the "
            f"caption {template!r}. They are no images of the pool and not in this export."
        )
    if form == "clip-ood" and selected.kept > _PAPERS_DEFAULT:
        print(
            f"note: subsample_dataset.py takes the first {_PAPERS_DEFAULT:,} of a list; give it "
            f"--n_imgs {selected.kept}"
        )


class _Progress:
    """Prints now and then how far the export is."""

    def __init__(self) -> None:
        self._started = self._said = time.monotonic()

    def __call__(self, done: int, total: int, unit: str) -> None:
        from hpc.words import clock

        now = time.monotonic()
        if now - self._said < _SECONDS_BETWEEN_LINES or done >= total:
            return
        self._said = now
        rate = done / (now - self._started)
        left = clock((total - done) / rate)
        print(f"{done:,} of {total:,} {unit}, {rate:,.0f} a second, {left} left", flush=True)


if __name__ == "__main__":
    sys.exit(main())
