"""The command `simgap world`, or `python -m pipeline.data.world`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from pipeline.data.world.build import WORLD, build, is_whole
from pipeline.data.world.plan import Parameters

_DESCRIPTION = """\
Draw a miniature world to run the whole study on, with no data and no network: a pool of captioned
images, a reference, six test sets, and a small CLIP model trained on the pool as the embedder.

Images of 16 classes are drawn in styles that stand for the benchmarks. Some pool images are earlier
ones posted again, some are leaked test images, each with its origin on record, so that
deduplication and pruning have a known answer.

The same command goes on where it was interrupted. The same parameters give the same images.
"""
_EPILOG = """\
what it writes:
  DIR/pool/00000.tar ...           WebDataset tars as by img2dataset; key.json has class, style and
                                   origin ("pool/123": key 000000123 again; "sketch/123": the file
                                   tests/sketch/<class>/00123.jpg, leaked)
  DIR/reference/<class>/*.jpg      like ImageNet-Train: photographs only; the file's number counts
  DIR/tests/<set>/<class>/*.jpg    through the whole set; sets: val v2 sketch a r objectnet
  DIR/classes.txt                  folder<TAB>name, a line for each class
  DIR/mini-effnet-48.json          the model, for open_clip
  DIR/embedder.pt                  its weights: a CLIP trained on the whole pool
  DIR/world.json                   parameters, counts and versions; written last

examples:
  simgap world data/mini                              the world of experiments/mini.yaml
  simgap world data/mini-1 --seed 1                   another one, to see the spread
  simgap world /tmp/tiny --pool 200 --reference-per-class 5 --test-per-class 2 --no-embedder
                                                      images for a test, in a second or two
  simgap world data/large --pool 100000 --per-shard 10000 --processes 32
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    arguments = parser().parse_args(argv)
    root: Path = arguments.dir
    started = time.monotonic()
    try:
        parameters = _parameters(arguments)
        if is_whole(root, parameters):
            print(f"{root}: up to date ({WORLD} and all files of these parameters are there)")
            return 0
        world = build(root, parameters, arguments.processes)
    except (ValueError, OSError) as error:
        print(f"simgap world: {error}", file=sys.stderr)
        return 1
    print(f"{root}: {_in_words(world)}; {time.monotonic() - started:.0f} s")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    default = Parameters()
    made = argparse.ArgumentParser(
        prog="simgap world",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("dir", metavar="DIR", type=Path, help="folder for the world")
    _add_number(made, "--seed", default.seed, "of all images and of the embedder's training")
    _add_number(made, "--pool", default.pool, "pool images")
    _add_number(made, "--per-shard", default.per_shard, "pool images in a tar")
    _add_number(
        made, "--reference-per-class", default.reference_per_class, "reference images a class"
    )
    _add_number(made, "--test-per-class", default.test_per_class, "images a class in each test set")
    _add_number(made, "--processes", len(os.sched_getaffinity(0)), "processes that draw")
    embedder = made.add_mutually_exclusive_group()
    embedder.add_argument("--no-embedder", action="store_true", help="images only; needs no torch")
    _add_number(
        embedder, "--embedder-samples", default.embedder_samples, "samples seen by the embedder"
    )
    return made


def _add_number(parser: Any, flag: str, default: int, words: str) -> None:
    parser.add_argument(
        flag, type=int, default=default, metavar="N", help=f"{words} (default: %(default)s)"
    )


def _parameters(arguments: argparse.Namespace) -> Parameters:
    return Parameters(
        seed=arguments.seed,
        pool=arguments.pool,
        per_shard=arguments.per_shard,
        reference_per_class=arguments.reference_per_class,
        test_per_class=arguments.test_per_class,
        embedder_samples=0 if arguments.no_embedder else arguments.embedder_samples,
    )


def _in_words(world: dict[str, Any]) -> str:
    counts, samples = world["counts"], world["parameters"]["embedder_samples"]
    words = (
        f"{counts['pool']:,} pool images in {counts['shards']} shards ({counts['reposts']} posted "
        f"again, {sum(counts['leaks'].values())} leaked), {counts['reference']:,} reference and "
        f"{sum(counts['tests'].values()):,} test images"
    )
    return words + (f", an embedder trained on {samples:,} samples" if samples else "")


if __name__ == "__main__":
    sys.exit(main())
