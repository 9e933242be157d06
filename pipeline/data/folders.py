"""Image folders: root/<class id>/<image files>, as in ImageNet and its relatives."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from pipeline.data.classes import ClassList

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True, slots=True)
class Image:
    """An image of a classed set.

    Attributes:
        key: the path relative to the set's root, with forward slashes.
        path: where to open it.
        label: the position of its class in the class list.
    """

    key: str
    path: Path
    label: int


def list_images(root: Path, classes: ClassList, labels: range | None = None) -> list[Image]:
    """List the images of some classes (all by default), by label and then by key.

    Files below a class folder count at any depth, but links to folders are not followed within
    it; hidden files and folders, and files that are not images by their suffix, are ignored.

    Raises:
        FileNotFoundError: if a class has no folder, with the nearest folder's name.
        ValueError: if a class folder has no images.
        IndexError: if a label has no class.
    """
    images: list[Image] = []
    for label in range(len(classes)) if labels is None else labels:
        folder = _class_folder(root, classes.ids[label])
        paths = sorted((path.relative_to(root).as_posix(), path) for path in _images_below(folder))
        if not paths:
            raise ValueError(f"{folder}: no image, expected files {' '.join(IMAGE_SUFFIXES)}")
        images.extend(Image(key, path, label) for key, path in paths)
    return images


def identity(root: Path, classes: ClassList) -> tuple[tuple[str, int], ...]:
    """Tell whether an image set is still the one it was, without listing its files.

    Returns:
        For each class its folder's name and modification time in nanoseconds, which changes
        when a file is added, removed or renamed, but not when one is rewritten in place.

    Raises:
        FileNotFoundError: if a class has no folder, with the nearest folder's name.
    """
    return tuple((one, _class_folder(root, one).stat().st_mtime_ns) for one in classes.ids)


def other_folders(root: Path, classes: ClassList) -> list[str]:
    """The sub-folders that are no class of the list, sorted: their images are not looked at."""
    listed = set(classes.ids)
    with os.scandir(root) as entries:
        names = [one.name for one in entries if one.name not in listed and one.is_dir()]
    return sorted(name for name in names if not name.startswith("."))


def _class_folder(root: Path, class_id: str) -> Path:
    folder = root / class_id
    if folder.is_dir():
        return folder
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder, expected an image set")
    near = get_close_matches(class_id, os.listdir(root), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise FileNotFoundError(f"{root}: no folder for the class {class_id!r}{hint}")


def _images_below(folder: Path) -> Iterator[Path]:
    for parent, subfolders, files in os.walk(folder, onerror=_fail):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES):
                yield Path(parent, name)


def _fail(error: OSError) -> NoReturn:
    raise error  # os.walk would pass over a folder that it can't read
