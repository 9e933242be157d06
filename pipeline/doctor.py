"""Whether a study can run here: look before the first job does.

python -m pipeline.doctor experiments/mini.yaml
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc.profile import CLUSTERS
from pipeline.command_line import study_parser
from pipeline.forecast.speeds import SPEEDS
from pipeline.stages import NAMES

if TYPE_CHECKING:
    from hpc.doctor import Finding

_EPILOG = """\
examples:
  simgap doctor
      this machine: Python, packages, cores
  simgap doctor my.yaml --profile my-site
      the experiment, its data, and whether Slurm would take the jobs of every stage
  simgap doctor my.yaml --verify
      read every output of the run again and compare it with its hash

Each line is ok, a warning, or a FAULT with what to do about it. The exit status is 1 if there is a
FAULT. Nothing is submitted and nothing is changed.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = study_parser(
        "doctor",
        "Check whether a study can run here: packages, the experiment and its data, the profile, "
        "and Slurm.",
        _EPILOG,
        nargs="?",
    )
    made.add_argument(
        "--profile",
        default="local",
        help="site profile, a YAML file or the name of a shipped one (default: local)",
    )
    made.add_argument(
        "--cluster", choices=CLUSTERS, help="where jobs would run (default: what the profile says)"
    )
    made.add_argument(
        "--verify",
        action="store_true",
        help="read every output of the run again and compare it with its hash",
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    made = parser()
    arguments = made.parse_intermixed_args(argv)
    if arguments.verify and arguments.study is None:
        made.error("--verify needs an experiment: which run is meant?")
    from hpc.doctor import FAULT, WARNING
    from hpc.words import count

    counts: Counter[str] = Counter()
    for finding in _findings(arguments):
        counts[finding.verdict] += 1
        print(f"{finding.verdict:<8} {finding.about}: {finding.says}", flush=True)
        if finding.do:
            print(f"{'':<8} -> {finding.do}", flush=True)
    print(f"{count(counts[FAULT], 'fault')}, {count(counts[WARNING], 'warning')}")
    return 1 if counts[FAULT] else 0


def _findings(arguments: argparse.Namespace) -> Iterator[Finding]:
    from pipeline.installed import check_installation

    yield from check_installation()
    experiment = None
    if arguments.study is not None:
        experiment, found = _load(arguments)
        yield found
    if experiment is not None:
        yield from _check_study(experiment, arguments.verify)
    profile, found = _profile(arguments.profile)
    yield found
    if profile is not None:
        yield from _check_profile(profile, arguments.cluster or profile.cluster, experiment)


def _load(arguments: argparse.Namespace) -> tuple[Any, Finding]:
    from hpc.doctor import FAULT, OK, Finding
    from hpc.words import count
    from pipeline.experiment.load import ExperimentError
    from pipeline.study import load_study

    try:
        experiment = load_study(arguments.study, arguments.overrides)
    except (ExperimentError, OSError) as error:
        do = "mend the file; docs/experiment.md explains every key"
        return None, Finding(verdict=FAULT, about="experiment", says=str(error), do=do)
    trainings = len(experiment.trained_splits) * len(experiment.seeds)
    says = (
        f"{experiment.name}: {len(experiment.tests)} test sets, {len(experiment.splits)} splits, "
    )
    says += count(trainings, "training")
    return experiment, Finding(verdict=OK, about="experiment", says=says)


def _profile(name: str) -> tuple[Any, Finding]:
    from hpc.doctor import FAULT, OK, Finding
    from hpc.profile import ProfileError, load_profile
    from pipeline.layout import find

    try:
        path = find("slurm_templates", name)
        profile = load_profile(path, NAMES, SPEEDS)
    except (ProfileError, OSError) as error:
        do = "mend it; slurm_templates/generic.yaml explains every key"
        return None, Finding(verdict=FAULT, about="profile", says=str(error), do=do)
    return profile, Finding(verdict=OK, about="profile", says=f"{path}: cluster {profile.cluster}")


# the study


def _check_study(experiment: Any, verify: bool) -> Iterator[Finding]:
    from pipeline.stages import stages_of

    yield from _check_data(experiment)
    yield _check_weights(experiment.embedder.pretrained)
    yield from _check_folder(experiment)
    if verify:
        yield from _verify(stages_of(experiment), experiment.run)


def _check_data(experiment: Any) -> Iterator[Finding]:
    """The paths are there, or the experiment would not have loaded; whether they hold anything."""
    from hpc.doctor import FAULT, OK, Finding
    from hpc.words import count
    from pipeline.data.folders import other_folders
    from pipeline.experiment.sources import classes_in

    yield Finding(verdict=OK, about="pool", says=_pool_in_words(experiment.pool))
    for name, images in {"reference": experiment.reference, **experiment.tests}.items():
        try:
            classes = classes_in(images)
        except (OSError, ValueError) as error:
            do = f"see what is in {images.images}"
            yield Finding(verdict=FAULT, about=name, says=str(error), do=do)
            continue
        says = f"{len(classes)} classes in {images.images}"
        if others := other_folders(images.images, classes):
            says += f"; {count(len(others), 'folder')} not in the class list ignored"
        yield Finding(verdict=OK, about=name, says=says)


def _pool_in_words(pool: Any) -> str:
    from hpc.words import count, in_bytes

    told = []
    if pool.embeddings is not None:
        files = [file.path for file in pool.embeddings.sources]
        size = in_bytes(sum(path.stat().st_size for path in files))
        told.append(f"{count(len(files), 'file')} of embeddings, {size}")
    if pool.shards is not None:
        size = in_bytes(sum(shard.stat().st_size for shard in pool.paths))
        told.append(f"{len(pool.paths)} shards, {size}")
    return "; ".join(told)


def _check_weights(pretrained: str) -> Finding:
    from hpc.doctor import OK, WARNING, Finding
    from hpc.words import in_bytes
    from pipeline.experiment.fields import looks_like_file

    if looks_like_file(pretrained):
        size = in_bytes(Path(pretrained).stat().st_size)
        return Finding(verdict=OK, about="embedder", says=f"{pretrained}, {size}")
    return Finding(
        verdict=WARNING,
        about="embedder",
        says=f"{pretrained!r} is downloaded when it is first used",
        do="if nodes have no internet, load the model once here, or give a file as pretrained",
    )


def _check_folder(experiment: Any) -> Iterator[Finding]:
    import shutil
    import tempfile

    from hpc.doctor import FAULT, OK, WARNING, Finding
    from hpc.words import in_bytes
    from pipeline.layout import Layout

    there = next(path for path in (experiment.run, *experiment.run.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            free = shutil.disk_usage(there).free
    except OSError as error:
        do = "give another folder: runs: /path (in the experiment)"
        says = f"{experiment.run} can't be written: {error}"
        yield Finding(verdict=FAULT, about="run", says=says, do=do)
        return
    layout = Layout(experiment.run)
    copied = experiment.training is not None and experiment.training.data == "tars"
    splits = experiment.trained_splits if copied else []
    missing = [name for name in splits if not layout.subset(name).exists()]
    pool = sum(shard.stat().st_size for shard in experiment.pool.paths)
    says = f"{experiment.run}, {in_bytes(free)} free"
    if pool * len(missing) > free:
        says += f"; the tars of {len(missing)} splits may take {in_bytes(pool * len(missing))}"
        do = "each split is at most as large as the pool; make room if yours are not much smaller"
        yield Finding(verdict=WARNING, about="run", says=says, do=do)
    else:
        yield Finding(verdict=OK, about="run", says=says)


def _verify(stages: Sequence[Any], run: Path) -> Iterator[Finding]:
    from hpc.doctor import FAULT, OK, Finding
    from hpc.ledger import Ledger
    from hpc.plan import DAMAGED, assess

    assessed = assess(stages, Ledger(run), thorough=True).values()
    read = [item for item in assessed if item.marker is not None]
    damaged = [item for item in read if item.state == DAMAGED]
    for item in damaged:
        do = "submit makes it again, and what depends on it"
        yield Finding(verdict=FAULT, about=item.reference, says=item.reason, do=do)
    good = len(read) - len(damaged)
    yield Finding(verdict=OK, about="outputs", says=f"{good} tasks' outputs are as written")


# where it runs


def _check_profile(profile: Any, cluster: str, experiment: Any) -> Iterator[Finding]:
    from hpc.doctor import check_machine, check_slurm
    from hpc.room import this_machine

    if experiment is not None and experiment.training is not None:
        yield from _check_training(experiment.training, profile)
    if cluster != "slurm":
        yield from check_machine(profile, NAMES, this_machine())
        return
    yield from _check_processes(profile)
    yield from check_slurm(profile, NAMES)
    yield from _shared_paths(profile, experiment)


def _check_training(training: Any, profile: Any) -> Iterator[Finding]:
    """The batch of a step, and the parts of an epoch, with as many processes as the profile has."""
    from hpc.doctor import FAULT, Finding
    from pipeline.training.global_batch import check_training

    try:
        check_training(training, profile.resources("train"), profile.name)
    except ValueError as error:
        do = "mend the section `training` of the experiment, or nodes and processes of the profile"
        yield Finding(verdict=FAULT, about="training", says=str(error), do=do)


def _check_processes(profile: Any) -> Iterator[Finding]:
    """A stage with several processes must be one that can use them."""
    from hpc.doctor import FAULT, Finding
    from hpc.submission import check_processes

    for stage in _stage_classes():
        try:
            check_processes([stage], profile)
        except ValueError as error:
            do = "only training is spread over processes; other stages run as many jobs"
            yield Finding(verdict=FAULT, about="profile", says=str(error), do=do)


def _stage_classes() -> list[Any]:
    """Known without an experiment; a class shows as well as a stage whether it can `follow`."""
    import importlib

    modules = {name: importlib.import_module(f"pipeline.stages.{name}") for name in NAMES}
    return [getattr(module, name.title()) for name, module in modules.items()]


_OF_ONE_MACHINE = ("/tmp", "/var/tmp", "/dev/shm", "/run")


def _shared_paths(profile: Any, experiment: Any) -> Iterator[Finding]:
    """What jobs on other nodes have to see."""
    from hpc.doctor import WARNING, Finding

    chosen = [profile.slurm(stage) for stage in NAMES]
    paths = {} if experiment is None else {"run": experiment.run}
    if any(one.container is None for one in chosen):  # an image brings its own
        paths["code"] = Path(__file__)
    if any(one.container is None and one.python is None for one in chosen):
        paths["Python"] = Path(sys.executable)
    for what, path in paths.items():
        if any(path.is_relative_to(place) for place in _OF_ONE_MACHINE):
            do = "put it where every node sees it, such as your home or project folder"
            says = f"{path} is on this machine only, unless the site says otherwise"
            yield Finding(verdict=WARNING, about=what, says=says, do=do)


if __name__ == "__main__":
    sys.exit(main())
