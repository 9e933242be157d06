"""The class lists that are built in, against what they are lists of."""

from __future__ import annotations

import pkgutil
import re

import pytest

from pipeline.data.classes import BUILT_IN, ClassList, built_in

COUNTS = {
    "imagenet-1k": 1000,
    "imagenet-v2": 1000,
    "imagenet-a": 200,
    "imagenet-r": 200,
    "objectnet": 113,
}
KNOWN = [
    ("imagenet-1k", 0, "n01440764", "tench"),
    ("imagenet-1k", 134, "n02012849", "crane bird"),
    ("imagenet-1k", 517, "n03126707", "construction crane"),
    ("imagenet-1k", 999, "n15075141", "toilet paper"),
    ("imagenet-v2", 0, "0", "tench"),
    ("imagenet-v2", 207, "207", "Golden Retriever"),
    ("imagenet-a", 0, "n01498041", "stingray"),
    ("imagenet-a", 199, "n12267677", "acorn"),
    ("imagenet-r", 0, "n01443537", "goldfish"),
    ("imagenet-r", 199, "n12267677", "acorn"),
    ("objectnet", 0, "alarm_clock", "alarm clock"),
    ("objectnet", 8, "binder_closed", "binder (closed)"),
]


@pytest.fixture(scope="module")
def lists() -> dict[str, ClassList]:
    return {name: built_in(name) for name in BUILT_IN}  # type: ignore[arg-type]


def test_each_has_as_many_classes_as_its_benchmark(lists: dict[str, ClassList]) -> None:
    assert {name: len(one) for name, one in lists.items()} == COUNTS
    assert all(len(set(one.ids)) == len(one) for one in lists.values())


def test_imagenets_names_are_open_clips(lists: dict[str, ClassList]) -> None:
    import open_clip

    assert lists["imagenet-1k"].names == tuple(open_clip.IMAGENET_CLASSNAMES)
    assert lists["imagenet-v2"].names == lists["imagenet-1k"].names


def test_imagenets_folders_are_wordnet_ids_in_the_order_of_the_labels(
    lists: dict[str, ClassList],
) -> None:
    ids = lists["imagenet-1k"].ids
    assert all(re.fullmatch(r"n\d{8}", wnid) for wnid in ids)
    assert list(ids) == sorted(ids)
    assert list(lists["imagenet-v2"].ids) == [str(label) for label in range(1000)]


@pytest.mark.parametrize("name", ["imagenet-a", "imagenet-r"])
def test_a_part_of_imagenet_keeps_its_order_and_names(
    lists: dict[str, ClassList], name: str
) -> None:
    whole = lists["imagenet-1k"]
    pairs = list(zip(lists[name].ids, lists[name].names, strict=True))
    assert pairs == [
        pair for pair in zip(whole.ids, whole.names, strict=True) if pair[0] in lists[name].ids
    ]


@pytest.mark.parametrize("name", ["imagenet-1k", "imagenet-a", "imagenet-r"])
def test_wordnet_ids_are_those_that_timm_has(lists: dict[str, ClassList], name: str) -> None:
    file = f"_info/{name.removesuffix('-1k').replace('-', '_')}_synsets.txt"
    text = pkgutil.get_data("timm.data.imagenet_info", file)
    assert text is not None
    assert sorted(lists[name].ids) == sorted(text.decode().split())


@pytest.mark.parametrize(("name", "label", "folder", "spoken"), KNOWN)
def test_known_entries(
    lists: dict[str, ClassList], name: str, label: int, folder: str, spoken: str
) -> None:
    assert (lists[name].ids[label], lists[name].names[label]) == (folder, spoken)


def test_objectnets_folders_need_not_spell_their_names(lists: dict[str, ClassList]) -> None:
    names = dict(zip(lists["objectnet"].ids, lists["objectnet"].names, strict=True))
    assert names["full_sized_towel"] == "bath towel"
    assert names["drying_rack_for_dishes"] == "drying rack for plates"
    assert "air_freshener" not in names  # one of the 200 that ImageNet does not have
