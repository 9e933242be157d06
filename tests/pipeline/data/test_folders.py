"""Image folders: order, labels, and what is wrong with them."""

import os
from pathlib import Path

import pytest

from pipeline.data.classes import ClassList, classes_of
from pipeline.data.folders import identity, list_images, other_folders

FILES = (
    "n2/b.JPG",
    "n2/a.jpeg",
    "n2/.hidden.jpg",
    "n2/notes.txt",
    "n10/x.png",
    "n10/sub/y.webp",
    "n10/.thumbs/z.jpg",
    "n1/Ü.bmp",
    ".git/c.jpg",
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_images_come_by_label_then_key(root: Path) -> None:
    images = list_images(root, classes_of(root))
    assert [(one.key, one.label) for one in images] == [
        ("n1/Ü.bmp", 0),
        ("n10/sub/y.webp", 1),
        ("n10/x.png", 1),
        ("n2/a.jpeg", 2),
        ("n2/b.JPG", 2),
    ]
    assert all(one.path == root / one.key for one in images)


def test_the_class_list_sets_the_order(root: Path) -> None:
    classes = ClassList(("n2", "n1"), ("two", "one"))
    assert [one.label for one in list_images(root, classes)] == [0, 0, 1]


def test_folders_that_the_list_lacks_are_told(root: Path) -> None:
    (root / "file").touch()
    assert other_folders(root, ClassList(("n2",), ("two",))) == ["n1", "n10"]
    assert other_folders(root, classes_of(root)) == []


def test_some_labels_are_a_part_of_all(root: Path) -> None:
    classes = classes_of(root)
    parts = [list_images(root, classes, range(a, b)) for a, b in ((0, 1), (1, 3), (3, 3))]
    assert [one for part in parts for one in part] == list_images(root, classes)


def test_a_class_without_folder_is_named_with_the_nearest(root: Path) -> None:
    classes = ClassList(("n1", "n22"), ("a", "b"))
    for call in (list_images, identity):
        with pytest.raises(FileNotFoundError, match=r"the class 'n22'; did you mean 'n2'\?"):
            call(root, classes)
    with pytest.raises(FileNotFoundError, match="no such folder, expected an image set"):
        list_images(root / "missing", classes)


def test_a_class_without_images_is_refused(root: Path) -> None:
    (root / "n3").mkdir()
    (root / "n3" / "list.csv").touch()
    with pytest.raises(ValueError, match=r"n3: no image"):
        list_images(root, classes_of(root))


def test_links_to_classes_and_images_count(root: Path) -> None:
    linked = root / ".linked"
    linked.mkdir()
    (linked / "n2").symlink_to(root / "n2")
    (linked / "n1").mkdir()
    (linked / "n1" / "a.jpg").symlink_to(root / "n2" / "b.JPG")
    keys = [one.key for one in list_images(linked, classes_of(linked))]
    assert keys == ["n1/a.jpg", "n2/a.jpeg", "n2/b.JPG"]


def test_a_folder_that_can_not_be_read_is_an_error(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes, scandir = classes_of(root), os.scandir

    def refuse(path: str) -> object:
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="sub"):
        list_images(root, classes)


def test_the_identity_changes_with_the_files(root: Path) -> None:
    classes = classes_of(root)
    before = identity(root, classes)
    assert before == identity(root, classes)
    assert [name for name, _ in before] == ["n1", "n10", "n2"]
    (root / "n2" / "b.JPG").unlink()
    after = identity(root, classes)
    assert after[:2] == before[:2] and after[2] != before[2]
