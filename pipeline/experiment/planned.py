"""A study whose data is not there: what can be said of it from the sizes that it declares.

`simgap submit --dry-run` lists the tasks of such a study with made-up identities of its files. No
file that is there has an identity like them, and `pipeline.experiment.load.to_values`, which every
plan that runs goes through, refuses what is planned.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.data.classes import ClassList
    from pipeline.experiment.sections import Data, Experiment, ImageSet, SetSize


def without_missing_data(experiment: Experiment) -> Experiment:
    """The experiment with every section planned whose data is not there but whose size is known."""
    pool, reference = experiment.pool, experiment.reference
    if pool.size and not _is_there(pool):
        pool = pool.as_planned()
    if _can_be_planned(reference):
        reference = reference.as_planned()
    tests = {
        name: test.as_planned() if _can_be_planned(test) else test
        for name, test in experiment.tests.items()
    }
    return experiment.model_copy(update={"pool": pool, "reference": reference, "tests": tests})


def _can_be_planned(images: ImageSet) -> bool:
    """Whether the images are not there, and how many there are of how many classes is known."""
    if images.size is None or images.images.is_dir():
        return False
    listed = isinstance(images.classes, str) or (images.classes and images.classes.is_file())
    return bool(listed) or images.size.classes is not None


def _is_there(pool: Any) -> bool:
    if pool.embeddings is not None:
        return True  # or it is a fault: nothing of them is known before they are there
    try:
        return bool(pool.paths)
    except FileNotFoundError:
        return False


def planned_parts(experiment: Experiment) -> list[str]:
    """The YAML paths of what is only planned."""
    return [where for where, data in _data(experiment) if data.planned]


def _data(experiment: Experiment) -> Iterator[tuple[str, Data]]:
    yield "pool", experiment.pool
    yield "reference", experiment.reference
    for name, test in experiment.tests.items():
        yield f"tests.{name}", test


def identity(name: str) -> list[Any]:
    """In place of the identity of a file or folder that is not there."""
    return [name, "planned"]


def classes(size: SetSize) -> ClassList:
    """Classes without names, as many as declared."""
    from pipeline.data.classes import ClassList

    ids = tuple(f"class {label}" for label in range(size.classes or 0))
    return ClassList(ids, ids)
