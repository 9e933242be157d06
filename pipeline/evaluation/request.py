"""What a user asks of `simgap evaluate`: which model, on which images, how."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc.words import nearest
from pipeline.data.classes import BUILT_IN
from pipeline.experiment.checks import is_template
from pipeline.experiment.fields import NAME
from pipeline.experiment.sections import Evaluation, Experiment, TestSet

if TYPE_CHECKING:
    import argparse


@dataclass(frozen=True)
class Subject:
    """What is evaluated, and how.

    Attributes:
        model: the model's name, or the path of its configuration.
        checkpoint: a file, or a tag.
        options: open_clip_train's, that the model was trained with.
        evaluation: captions, precision and so on.
    """

    model: str
    checkpoint: str
    options: Mapping[str, Any]
    evaluation: Evaluation

    def digest(self, images: TestSet) -> str:
        """What decides the predictions on a test set."""
        from hpc.stage import Recipe, digest_of
        from pipeline.experiment.sources import (
            classes_in,
            file_identity,
            folder_identity,
            model_identity,
        )
        from pipeline.models import register_model
        from pipeline.training.options import model_arguments
        from pipeline.weights import find_checkpoint

        path = find_checkpoint(register_model(self.model), self.checkpoint)
        settings = {
            "model": model_identity(self.model),
            "weights": self.checkpoint if path is None else file_identity(path),
            "arguments": model_arguments(self.options),
            **self.evaluation.model_dump(include={"templates", "precision", "batch_size"}),
            **folder_identity(images, range(len(classes_in(images)))),
        }
        return digest_of("evaluate alone", 1, Recipe(settings=settings), {})

    @property
    def folder(self) -> str:
        """A name for its results: the last folders and the name of a file, or model and tag."""
        path = Path(self.checkpoint)
        if not path.is_file():
            return f"{Path(self.model).stem}-{self.checkpoint}"
        return "-".join(path.absolute().with_suffix("").parts[1:][-3:])


def subject_of(arguments: argparse.Namespace, experiment: Experiment | None) -> Subject:
    """The model, and how it is evaluated; what is not given is the experiment's.

    Raises:
        ValueError: there is no model, or captions or options make no sense.
    """
    training = experiment.training if experiment else None
    model = arguments.model or (training.model if training else None)
    if model is None:
        raise ValueError(f"{arguments.experiment} trains no model: give --model")
    if Path(arguments.checkpoint).is_dir():
        raise ValueError(f"{arguments.checkpoint} is a folder; expected a checkpoint or a tag")
    # Another model than the experiment's was not trained with the experiment's options.
    own = training.options if training and arguments.model in (None, training.model) else {}
    evaluation = experiment.evaluation if experiment else Evaluation()
    given = {
        name: value
        for name in ("precision", "batch_size", "workers", "device")
        if (value := getattr(arguments, name)) is not None
    }
    if arguments.templates:
        given["templates"] = _templates(arguments.templates)
    return Subject(
        model,
        arguments.checkpoint,
        {**own, **_options(arguments.option)},
        evaluation.model_copy(update=given),
    )


def _templates(words: list[str]) -> str | list[str]:
    if len(words) == 1 and "{}" not in words[0]:
        if words[0] not in (known := ["openai", "simple"]):
            raise ValueError(
                f"--templates: {words[0]!r} is no list of captions, and no caption with {{}} for "
                f"the class name; {nearest(words[0], known)}"
            )
        return words[0]
    for word in words:
        if not is_template(word):
            expected = "expected exactly one {} for the class name"
            raise ValueError(f"--templates: {expected}, found {word!r}")
    return words


def _options(words: Sequence[str]) -> dict[str, Any]:
    import yaml

    options = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"--option: expected NAME=VALUE, found {word!r}")
        options[name] = yaml.safe_load(value)
    return options


def tests_of(arguments: argparse.Namespace, experiment: Experiment | None) -> dict[str, TestSet]:
    """The test sets by name, as given.

    Raises:
        ValueError: one is given twice, has no folder, or is not the experiment's.
    """
    changes = {
        name: value
        for name in ("border", "max_bad_fraction")
        if (value := getattr(arguments, name)) is not None
    }
    tests: dict[str, TestSet] = {}
    for word in arguments.tests:
        for part in [word] if "=" in word else word.split(","):
            name, images = _folder_test(part) if "=" in part else _named_test(part, experiment)
            if name in tests:
                raise ValueError(f"--tests: {name!r} is given twice")
            tests[name] = images.model_copy(update=changes)
    return tests


def _named_test(name: str, experiment: Experiment | None) -> tuple[str, TestSet]:
    if experiment is None:
        raise ValueError(f"--tests: expected NAME=FOLDER[:CLASSES], found {name!r}")
    if name not in experiment.tests:
        known = nearest(name, list(experiment.tests))
        raise ValueError(f"--tests: {experiment.name} has no test set {name!r}; {known}")
    return name, experiment.tests[name]


def _folder_test(word: str) -> tuple[str, TestSet]:
    """`name=folder`, or `name=folder:classes`."""
    name, _, rest = word.partition("=")
    if not re.match(NAME, name):
        raise ValueError(f"--tests: {word!r}: {name!r} can't be the name of a file")
    folder, colon, classes = rest.rpartition(":")
    if not colon or Path(rest).is_dir():  # a folder's name may have a colon
        folder, classes = rest, ""
    if not Path(folder).is_dir():
        raise ValueError(f"--tests: {word!r}: no such folder: {folder}")
    if classes and classes not in BUILT_IN and not Path(classes).is_file():
        known = nearest(classes, BUILT_IN)
        raise ValueError(f"--tests: {word!r}: no class list {classes!r}, built in or file; {known}")
    return name, TestSet.model_validate({"images": folder, "classes": classes or None})
