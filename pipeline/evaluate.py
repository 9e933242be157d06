"""Zero-shot accuracy of any open_clip checkpoint or pretrained tag, outside a study.

python -m pipeline.evaluate CHECKPOINT --model ViT-B-32 --tests val=imagenet/val:imagenet-1k
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hpc.words import clock, count

if TYPE_CHECKING:
    from pipeline.evaluation.request import Subject
    from pipeline.experiment.sections import TestSet
    from pipeline.models import Embedder

_EPILOG = """\
examples:
  simgap evaluate epoch_32.pt --model ViT-B-32 --tests val=val:imagenet-1k r=imagenet-r:imagenet-r
      a checkpoint, on folders with a sub-folder a class, with lists of classes that are built in
  simgap evaluate laion400m_e32 --model ViT-B-32 --tests objects=images:objectnet --border 1
      one of open_clip's pretrained tags; the red border of ObjectNet's images is cut off
  simgap evaluate runs/mini/7_training/full/seed-0/checkpoint.pt --experiment mini --tests sketch,r
      model, options, captions and test sets of an experiment
  simgap evaluate my.pt --model my.json --tests a=photos:classes.txt --templates "a photo of a {}"
      a model configuration, a class list and a caption of one's own

For each test set the output folder gets NAME.h5 with the logits of every image, and NAME.json as
CLIP_benchmark writes it. What is there already is not evaluated again. Checkpoints are read as
data: one that would run code is refused.
"""
_SECONDS_BETWEEN_LINES = 30.0
_SECONDS_ON_TERMINAL = 0.2


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="simgap evaluate",
        description="Zero-shot accuracy of an open_clip checkpoint or pretrained tag.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a file, or one of open_clip's pretrained tags")
    add("--model", help="open_clip's name of the model, or the path of its .json")
    add(
        "--tests",
        nargs="+",
        action="extend",
        required=True,
        metavar="TEST",
        help="NAME=FOLDER[:CLASSES], where CLASSES is a built-in list (imagenet-1k, imagenet-v2, "
        "imagenet-a, imagenet-r, objectnet) or a file; with --experiment also names of its tests",
    )
    add("--experiment", metavar="STUDY", help="take what is not given from this experiment")
    add("--templates", nargs="+", metavar="CAPTION", help="openai, simple, or captions with {}")
    add("--border", type=_whole, metavar="N", help="pixels to cut off each side of every image")
    add(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of open_clip_train that the model was trained with and that changes it, "
        "such as force-quick-gelu=true",
    )
    add("--max-bad-fraction", type=_fraction, metavar="F", help="images that may be unusable (0)")
    add("--precision", help="fp32 (default), amp, fp16, bf16, ...")
    add("--batch-size", type=_positive, metavar="N", help="images at a time (256)")
    add("--workers", type=_whole, metavar="N", help="processes that decode images (1)")
    add("--device", help="auto (default), cpu, cuda, cuda:1")
    add(
        "--output", type=Path, metavar="FOLDER", help="evaluations/<checkpoint's name> if not given"
    )
    return made


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number, 0 or more, found {text!r}")
    return int(text)


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, found {text!r}")
    return value


def _positive(text: str) -> int:
    if not _whole(text):
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {text!r}")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    made = parser()
    arguments = made.parse_args(argv)
    if arguments.model is None and arguments.experiment is None:
        made.error("--model is required, or --experiment, which names one")
    try:
        _evaluate(arguments)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"simgap evaluate: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on with the next test set", file=sys.stderr)
        return 130
    return 0


def _evaluate(arguments: argparse.Namespace) -> None:
    from pipeline.evaluation.request import subject_of, tests_of
    from pipeline.study import load_study

    experiment = load_study(arguments.experiment) if arguments.experiment else None
    subject = subject_of(arguments, experiment)
    tests = tests_of(arguments, experiment)
    folder = arguments.output or Path("evaluations", subject.folder)
    digests = {name: subject.digest(images) for name, images in tests.items()}
    left = [name for name in tests if not _is_there(folder / f"{name}.h5", digests[name])]
    _run(subject, {name: tests[name] for name in left}, digests, folder)
    print(_table([folder / f"{name}.h5" for name in tests]))
    kept = f" ({count(len(tests) - len(left), 'test set')} already there)"
    print(f"\nlogits and CLIP_benchmark's JSON: {folder}{kept if len(left) < len(tests) else ''}")


def _is_there(path: Path, digest: str) -> bool:
    """Whether this very evaluation is there already, whole.

    Raises:
        ValueError: the file is of another evaluation.
    """
    from hpc.stage import OutputError
    from pipeline import artifacts
    from pipeline.evaluation.zero_shot import check_results

    with suppress(OutputError):  # missing, damaged, or cut off before both files were there
        if artifacts.read(path, artifacts.EVALUATION).digest != digest:
            raise ValueError(
                f"{path}: there is an evaluation of another checkpoint, or with other settings or "
                "images; give another --output, or remove it"
            )
        return bool(check_results(path, digest))
    return False


def _run(
    subject: Subject, tests: Mapping[str, TestSet], digests: Mapping[str, str], folder: Path
) -> None:
    from pipeline.evaluation.zero_shot import Evaluated, classify, templates_of, write_results
    from pipeline.models import load_embedder

    if not tests:
        return
    evaluation = subject.evaluation
    model = load_embedder(
        subject.model,
        subject.checkpoint,
        precision=evaluation.precision,
        device=evaluation.device,
        options=subject.options,
    )
    captions = count(len(templates_of(evaluation)), "caption")
    print(_described(subject, model, captions), flush=True)
    for name, images in tests.items():
        found = classify(model, images, evaluation, _Progress(name))
        short = Path(subject.model).stem
        what = Evaluated(name, short, subject.checkpoint, None, None, evaluation.templates)
        write_results(folder / f"{name}.h5", digests[name], what, found)


def _described(subject: Subject, model: Embedder, captions: str) -> str:
    where = f"on {model.device}, {model.precision}"
    return f"{Path(subject.model).stem}, {subject.checkpoint}, {where}, {captions} a class"


class _Progress:
    """Tells how far a test set is: a line that changes on a terminal, lines at times elsewhere."""

    def __init__(self, name: str) -> None:
        self._name, self._started = name, time.monotonic()
        self._live = sys.stderr.isatty()
        self._said = self._started

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        pause = _SECONDS_ON_TERMINAL if self._live else _SECONDS_BETWEEN_LINES
        if done < total and now - self._said < pause:
            return
        self._said = now
        rate = done / max(now - self._started, 1e-9)
        line = f"{self._name}: {done:,} of {total:,} images, {rate:,.0f} images/s"
        line += f", {clock((total - done) / rate)} left" if 0 < done < total else ""
        start, end = ("\r\x1b[K", "\n" if done == total else "") if self._live else ("", "\n")
        print(f"{start}{line}", end=end, file=sys.stderr, flush=True)


_COLUMNS = ("test", "images", "skipped", "classes", "top-1", "top-5", "mean per class")


def _table(paths: Sequence[Path]) -> str:
    """A line a test set; accuracies in percent, top-5 of five classes or more."""
    rows = [_COLUMNS, *(_row(path) for path in paths)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


def _row(path: Path) -> tuple[str, ...]:
    from pipeline import artifacts

    found = artifacts.read(path, artifacts.EVALUATION)
    says, used = found.attributes, len(found["label"])
    classes = len(says["classes"]["ids"])
    return (
        says["test"],
        f"{used:,}",
        f"{says['read'] - used:,}",
        f"{classes:,}",
        f"{100 * says['accuracy']:.2f}",
        f"{100 * says['top5']:.2f}" if classes >= 5 else "-",
        f"{100 * says['mean_per_class']:.2f}",
    )


if __name__ == "__main__":
    sys.exit(main())
