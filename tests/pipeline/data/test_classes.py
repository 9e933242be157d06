"""Class lists: files and folders."""

from pathlib import Path

import pytest

from pipeline.data.classes import ClassList, classes_of, read_class_list


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "classes.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_list_with_and_without_names(tmp_path: Path) -> None:
    text = "\ufeff# ImageNet\n\nn01440764\ttench\r\nhen_house\nc#\tC sharp\n  \nn1 \t größe\n"
    path = written(tmp_path, text)
    assert read_class_list(path) == ClassList(
        ("n01440764", "hen_house", "c#", "n1"), ("tench", "hen house", "C sharp", "größe")
    )
    assert len(read_class_list(path)) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\n# c\nb\na\tagain\n", "line 4: class 'a' is already on line 1"),
        ("# nothing\n\n", "no class listed"),
        ("a\n\tname\n", "line 2: expected `folder`"),
        ("a\t\n", "line 1: expected `folder`"),
        ("a\tb\tc\n", "line 1: expected `folder`"),
        ("x/y\n", "line 1: expected the name of a folder, got 'x/y'"),
    ],
)
def test_a_bad_list_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ValueError) as error:
        read_class_list(path)
    assert str(path) in str(error.value) and message in str(error.value)


def test_folders_are_classes(tmp_path: Path) -> None:
    for name in ("n2", "great_white_shark", ".cache", "n10"):
        (tmp_path / name).mkdir()
    (tmp_path / "README").touch()
    assert classes_of(tmp_path) == ClassList(
        ("great_white_shark", "n10", "n2"), ("great white shark", "n10", "n2")
    )


def test_a_set_without_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no sub-folder"):
        classes_of(tmp_path)
    with pytest.raises(FileNotFoundError):
        classes_of(tmp_path / "missing")


def test_lists_are_consistent() -> None:
    with pytest.raises(ValueError, match="2 class ids, but 1 class names"):
        ClassList(("a", "b"), ("a",))
    with pytest.raises(ValueError, match="'a' is listed twice"):
        ClassList(("a", "a"), ("a", "b"))
