"""What is wrong in an experiment whose keys and types are right."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path

from hpc.words import nearest
from pipeline.data.classes import BUILT_IN, matching_labels
from pipeline.experiment.fields import looks_like_file
from pipeline.experiment.sections import Experiment, ImageSet, Training
from pipeline.experiment.sources import classes_in
from pipeline.experiment.splits import Split
from pipeline.layout import POOL, REFERENCE

YamlPath = tuple[str | int, ...]
Fault = tuple[YamlPath, str]
"""Where, and what."""


def faults_of(experiment: Experiment, *, without_data: bool = False) -> Iterator[Fault]:
    """What is wrong in an experiment whose keys and types are right.

    Args:
        experiment: it.
        without_data: whether it is only planned, for which the sizes of missing data are enough.
    """
    yield from _name_faults(experiment)
    for name in experiment.splits:
        yield from _split_faults(experiment, name)
    yield from _training_faults(experiment)
    yield from _template_faults(experiment)
    yield from _choice_faults(experiment)
    yield from _pool_faults(experiment)
    yield from _dedup_faults(experiment)
    yield from _report_faults(experiment)
    yield from _few_shot_faults(experiment)
    missing = list(_path_faults(experiment))
    yield from missing
    yield from _model_faults(experiment)
    if missing and experiment.get_data:
        yield (), f"to get the data: {experiment.get_data}"
    if missing and without_data:
        yield (
            (),
            (
                "to plan without the data: give the `size` of the pool and of each image set, with "
                "`classes` where its class list is not there"
            ),
        )


def _name_faults(experiment: Experiment) -> Iterator[Fault]:
    for name in experiment.tests:
        if name in (POOL, REFERENCE):
            yield ("tests", name), f"{name!r} can't be the name of a test set"
    for section in ("tests", "splits"):
        names = [name.lower() for name in getattr(experiment, section)]
        for name in {name for name in names if names.count(name) > 1}:
            yield (section, name), "two names differ only in upper and lower case"


def _split_faults(experiment: Experiment, name: str) -> Iterator[Fault]:
    split = experiment.splits[name]
    for place, test in split.named_tests.items():
        if test not in experiment.tests:
            what = f"unknown test set {test!r}; {nearest(test, list(experiment.tests))}"
            yield ("splits", name, *place), what
    for place, other in split.named_splits.items():
        if other not in experiment.splits:
            what = f"unknown split {other!r}; {nearest(other, list(experiment.splits))}"
            yield ("splits", name, *place), what
        elif cycle := _path(experiment.splits, other, name):
            what = f"splits depend on each other: {' -> '.join([name, *cycle])}"
            yield ("splits", name, *place), what
    if split.deduplicated and experiment.dedup is None:
        what = "needs deduplication, but the experiment has no section `dedup`"
        yield ("splits", name, "deduplicated"), what
    yield from _base_faults(experiment, name)
    if split.caption is not None and not is_template(split.caption):
        where: YamlPath = ("splits", name, "plus_reference")
        yield where, f"expected exactly one {{}} for the class name, found {split.caption!r}"
    if split.caption is not None and experiment.reference.border:
        what = (
            "adds the reference's images as they are, byte for byte, but reference.border says "
            f"that {experiment.reference.border} pixels are to be cut off: cut them off the files"
        )
        yield ("splits", name, "plus_reference"), what


def _path(splits: Mapping[str, Split], start: str, goal: str) -> list[str]:
    """The shortest chain of splits, each made from the next, or nothing."""
    chains, seen = [[start]], {start}
    while chains:
        chain = chains.pop(0)
        if chain[-1] == goal:
            return chain
        for other in splits[chain[-1]].named_splits.values():
            if other in splits and other not in seen:
                seen.add(other)
                chains.append([*chain, other])
    return []


def _base_faults(experiment: Experiment, name: str) -> Iterator[Fault]:
    split = experiment.splits[name]
    if not split.random or split.random.like is None or split.base is not None:
        return
    like = experiment.splits.get(split.random.like)
    if like and like.base is not None:
        what = (
            f"{split.random.like} is taken within {like.base}, but this sample from the whole "
            f"pool; add `base: {like.base}`, or as base the name of a split that is `all`"
        )
        yield ("splits", name), what


def _pool_faults(experiment: Experiment) -> Iterator[Fault]:
    """What does not fit together: precomputed embeddings, their maker, and what needs tars."""
    pool, training = experiment.pool, experiment.training
    if pool.shards is None and training is not None:
        yield (
            ("training",),
            "needs the pool's tars, and pool.shards is not given: give it, or leave training out; "
            "the study then ends at the masks, which `simgap export` writes for other programs",
        )
    if pool.shards is not None and training is None:
        yield ("training",), "required, but not there"
    if pool.embeddings is None:
        return
    for key in ("model", "pretrained"):
        made_by, embedder = getattr(pool.embeddings, key), getattr(experiment.embedder, key)
        if made_by != embedder:
            yield (
                ("pool", "embeddings", key),
                f"{made_by!r} made them, but the test sets are embedded by {embedder!r}: "
                "similarity is only defined within one model",
            )


def _training_faults(experiment: Experiment) -> Iterator[Fault]:
    from pipeline.training.options import check_options

    if experiment.training is None:
        return
    for index, name in enumerate(experiment.training.splits or []):
        if name not in experiment.splits:
            where: YamlPath = ("training", "splits", index)
            yield where, f"unknown split {name!r}; {nearest(name, list(experiment.splits))}"
    if len(set(experiment.training.seeds)) < len(experiment.training.seeds):
        yield ("training", "seeds"), f"a seed appears twice: {experiment.training.seeds}"
    for option in experiment.training.options:
        key = str(option).replace("-", "_")
        key = "samples_per_epoch" if key == "train_num_samples" else key
        if key in Training.model_fields or key == "seed":
            where = ("training", "options", option)
            yield where, f"give training.{'seeds' if key == 'seed' else key} instead"
    try:
        check_options(experiment.training.options)
    except ValueError as error:
        yield ("training", "options"), str(error)


def _template_faults(experiment: Experiment) -> Iterator[Fault]:
    templates = experiment.evaluation.templates
    for index, template in enumerate(templates if isinstance(templates, list) else []):
        if not is_template(template):
            where = ("evaluation", "templates", index)
            yield where, f"expected exactly one {{}} for the class name, found {template!r}"


def is_template(caption: str) -> bool:
    """Whether it is a text with one {} for the class name."""
    try:
        caption.format("name")
    except (ValueError, LookupError):
        return False
    return caption.count("{}") == 1


def _choice_faults(experiment: Experiment) -> Iterator[Fault]:
    import kernels
    from pipeline.models import PRECISIONS

    backends = ["auto", *kernels.BACKENDS]
    for section, key, known in (
        ("embedder", "precision", PRECISIONS),
        ("evaluation", "precision", PRECISIONS),
        ("similarity", "backend", backends),
    ):
        value = getattr(getattr(experiment, section), key)
        if value not in known:
            yield (section, key), f"unknown {key} {value!r}; {nearest(value, list(known))}"


def _dedup_faults(experiment: Experiment) -> Iterator[Fault]:
    if experiment.dedup and importlib.util.find_spec("faiss") is None:
        yield ("dedup",), "needs FAISS: pip install 'simgap[gpu]' or, without GPUs, 'simgap[cpu]'"


def _report_faults(experiment: Experiment) -> Iterator[Fault]:
    from pipeline.evaluation.baselines import read_baselines

    standard, path = experiment.report.standard_test, experiment.report.baselines
    if standard is not None and standard not in experiment.tests:
        told = nearest(standard, list(experiment.tests))
        yield ("report", "standard_test"), f"unknown test set {standard!r}; {told}"
    if path is None:
        return
    try:
        read_baselines(path)
    except FileNotFoundError:
        yield ("report", "baselines"), f"no such file: {path}"
    except (OSError, ValueError) as error:
        yield ("report", "baselines"), str(error)


def _few_shot_faults(experiment: Experiment) -> Iterator[Fault]:
    section = experiment.evaluation.few_shot
    if section is None:
        return
    where: YamlPath = ("evaluation", "few_shot")
    for index, name in enumerate(section.tests or []):
        if name not in experiment.tests:
            what = f"unknown test set {name!r}; {nearest(name, list(experiment.tests))}"
            yield (*where, "tests", index), what
    if not (section.shots or section.linear_probe or section.knn):
        yield where, "asks for nothing: expected shots, linear_probe or knn"
    train = section.train or experiment.reference
    for name in experiment.probed_tests:
        test = experiment.tests.get(name)
        if test is None or test.planned or train.planned:
            continue
        try:
            matching_labels(classes_in(train), classes_in(test))
        except OSError:
            continue  # a folder is missing, which is said where it is named
        except ValueError as error:
            what = f"{error}; name the test sets that fit in evaluation.few_shot.tests"
            yield (*where, "tests"), f"{name}: {what}"


def _path_faults(experiment: Experiment) -> Iterator[Fault]:
    try:
        _ = experiment.pool.paths
    except (FileNotFoundError, ValueError) as error:
        yield ("pool", "shards"), str(error)
    try:
        _ = experiment.pool.embeddings and experiment.pool.embeddings.sources
    except (OSError, ValueError) as error:
        yield ("pool", "embeddings", "files"), str(error)
    for name, retrieval in experiment.evaluation.retrieval.items():
        try:
            _ = retrieval.paths
        except (FileNotFoundError, ValueError) as error:
            yield ("evaluation", "retrieval", name, "shards"), str(error)
    sets: dict[YamlPath, ImageSet] = {("reference",): experiment.reference}
    sets |= {("tests", name): test for name, test in experiment.tests.items()}
    if experiment.evaluation.few_shot and experiment.evaluation.few_shot.train:
        sets[("evaluation", "few_shot", "train")] = experiment.evaluation.few_shot.train
    for where, images in sets.items():
        if images.planned:
            continue
        if not images.images.is_dir():
            yield (*where, "images"), f"no such folder: {images.images}"
        if isinstance(images.classes, Path) and not images.classes.is_file():
            meant = f"and no built-in list; {nearest(images.classes.name, BUILT_IN)}"
            yield (*where, "classes"), f"no such file: {images.classes}, {meant}"
    pretrained = experiment.embedder.pretrained
    if looks_like_file(pretrained) and not Path(pretrained).is_file():
        yield ("embedder", "pretrained"), f"no such file: {pretrained}"


def _model_faults(experiment: Experiment) -> Iterator[Fault]:
    from pipeline.models import check_model

    sections = {"embedder": experiment.embedder, "training": experiment.training}
    for name, section in sections.items():
        try:
            if section is not None:
                check_model(section.model)
        except (ValueError, OSError) as error:
            yield (name, "model"), str(error)
