"""Class lists: which folders of an image set are classes, in which order, and their names.

The lists of ImageNet-1k and the benchmarks made after it are built in; class_lists/ has them, with
their sources.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Literal, get_args

BuiltIn = Literal["imagenet-1k", "imagenet-v2", "imagenet-a", "imagenet-r", "objectnet"]
BUILT_IN: tuple[str, ...] = get_args(BuiltIn)
_LISTS = Path(__file__).parent / "class_lists"


@dataclass(frozen=True)
class ClassList:
    """Classes in label order.

    Attributes:
        ids: folder names, unique; the label of a class is its position.
        names: what a caption calls the class ("great white shark").
    """

    ids: tuple[str, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.names):
            raise ValueError(f"{len(self.ids)} class ids, but {len(self.names)} class names")
        if len(set(self.ids)) != len(self.ids):
            twice = next(one for one in self.ids if self.ids.count(one) > 1)
            raise ValueError(f"class {twice!r} is listed twice")

    def __len__(self) -> int:
        return len(self.ids)


def read_class_list(path: Path) -> ClassList:
    """Read a UTF-8 text file with a class a line: `folder`, or `folder<TAB>name`.

    Lines that start with `#` and blank lines are ignored. A class without a name is called
    like its folder, with spaces for underscores.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a class is listed twice, a line makes no sense, or no class is listed.
    """
    lines: dict[str, int] = {}
    names: list[str] = []
    text = path.read_text(encoding="utf-8-sig")
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        class_id, name = _parse(line, f"{path}, line {number}")
        if class_id in lines:
            raise ValueError(
                f"{path}, line {number}: class {class_id!r} is already on line {lines[class_id]}"
            )
        lines[class_id] = number
        names.append(name)
    if not lines:
        raise ValueError(f"{path}: no class listed, expected a folder name on each line")
    return ClassList(tuple(lines), tuple(names))


def _parse(line: str, place: str) -> tuple[str, str]:
    class_id, tab, name = (part.strip(" ") for part in line.rstrip("\r").partition("\t"))
    if not class_id or (tab and not name) or "\t" in name:
        raise ValueError(f"{place}: expected `folder` or `folder<TAB>name`, got {line!r}")
    if "/" in class_id or class_id in (".", ".."):
        raise ValueError(f"{place}: expected the name of a folder, got {class_id!r}")
    return class_id, name or _spoken(class_id)


@cache
def built_in(name: BuiltIn) -> ClassList:
    """One of the lists that come with simgap.

    `imagenet-1k` has WordNet ids as folders and open_clip's names; `imagenet-v2` the same classes
    in folders 0 to 999; `imagenet-a` and `imagenet-r` are the 200 of them that these have, with the
    same names; `objectnet` is ObjectNet's folders and names of the 113 classes that ImageNet has,
    too.
    """
    if name == "objectnet":
        return read_class_list(_LISTS / "objectnet.tsv")
    imagenet = read_class_list(_LISTS / "imagenet-1k.tsv")
    if name == "imagenet-1k":
        return imagenet
    if name == "imagenet-v2":
        return ClassList(tuple(map(str, range(len(imagenet)))), imagenet.names)
    names = dict(zip(imagenet.ids, imagenet.names, strict=True))
    ids = read_class_list(_LISTS / f"{name}.tsv").ids
    return ClassList(ids, tuple(names[wnid] for wnid in ids))


def classes_of(root: Path) -> ClassList:
    """Take the sub-folders of an image set as its classes, sorted; hidden ones are not classes.

    Raises:
        FileNotFoundError: if there is no folder `root`.
        ValueError: if it has no sub-folder.
    """
    folders = (one.name for one in root.iterdir() if not one.name.startswith(".") and one.is_dir())
    ids = tuple(sorted(folders))
    if not ids:
        raise ValueError(f"{root}: no sub-folder, expected one for each class")
    return ClassList(ids, tuple(map(_spoken, ids)))


def _spoken(class_id: str) -> str:
    return class_id.replace("_", " ")


def matching_labels(train: ClassList, test: ClassList) -> list[int]:
    """For each class of a test set, the label of the same class in a training set.

    Classes are the same if their ids, the folders, are. If some id is unknown, names decide for
    all; of classes of the same name the n-th of one list is the n-th of the other.

    Raises:
        ValueError: a class is not in the training set; the message has the nearest.
    """
    known = {one: label for label, one in enumerate(train.ids)}
    if all(one in known for one in test.ids):
        return [known[one] for one in test.ids]
    named = {one: label for label, one in enumerate(_numbered(train.names))}
    if all(one in named for one in _numbered(test.names)):
        return [named[one] for one in _numbered(test.names)]
    stranger = next(one for one in test.ids if one not in known)
    raise ValueError(
        f"class {stranger!r} is not among the {len(train)} classes of the training images"
        f"{_near(stranger, train)}"
    )


def _near(class_id: str, classes: ClassList) -> str:
    near = get_close_matches(class_id, classes.ids, n=1)
    return f"; did you mean {near[0]!r}?" if near else f", of which the first is {classes.ids[0]!r}"


def _numbered(names: Sequence[str]) -> list[tuple[str, int]]:
    seen: Counter[str] = Counter()
    numbered = []
    for name in names:
        numbered.append((name, seen[name]))
        seen[name] += 1
    return numbered
