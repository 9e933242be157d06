"""Class lists: which folders of an image set are classes, in which order, and their names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
