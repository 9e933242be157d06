"""The numbers on the page, against the artefacts, by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pipeline import artifacts
from pipeline.report import build_report
from pipeline.report.words import ABSENT, DASH, points
from tests.pipeline.report.conftest import SPLITS, Study
from tests.pipeline.report.parsed import Element, parse

Make = Callable[..., Study]


def page_of(study: Study) -> Element:
    return parse(build_report(study.experiment, study.layout, {}))


@pytest.fixture(scope="module")
def page(study: Study) -> Element:
    return page_of(study)


def accuracies(study: Study, split: str, test: str) -> list[float]:
    """From logits and labels, in %, by seed."""
    found = [
        artifacts.read(study.layout.evaluation(split, seed, test), artifacts.EVALUATION)
        for seed in study.seeds
    ]
    return [100 * float(np.mean(one["logits"].argmax(1) == one["label"])) for one in found]


def findings(page: Element) -> list[str]:
    return [p.text for p in page.all("p") if p.attributes.get("class") in ("lead", "more")]


def test_table_of_accuracies(study: Study, page: Element) -> None:
    header, *rows = page.one("section", id="accuracy").one("table").rows()
    assert header == ["Split", "Images", "photo", "sketch"]
    table = {row[0]: row[1:] for row in rows}
    assert list(table) == list(SPLITS)
    full, near, control = ({t: accuracies(study, s, t) for t in study.tests} for s in SPLITS)
    for column, test in enumerate(study.tests, start=1):
        means = [np.mean(one[test]) for one in (full, near, control)]
        spread = [
            f"{min(one[test]):.1f}{DASH}{max(one[test]):.1f}" for one in (full, near, control)
        ]
        assert table["full"][column] == f"{means[0]:.1f} {spread[0]}"
        assert table["sketch-pruned"][column] == (
            f"{means[1]:.1f} {spread[1]} full {points(means[1] - means[0])} "
            f"control {points(means[1] - means[2])}"
        )
        assert table["sketch-control"][column] == (
            f"{means[2]:.1f} {spread[2]} full {points(means[2] - means[0])}"
        )


def test_sizes_of_splits(study: Study, page: Element) -> None:
    near = [
        artifacts.read(study.layout.similarity(index), artifacts.SIMILARITY)["near"]
        for index in range(2)
    ]
    flags = np.concatenate(near)
    kept = int((~flags[:, 1]).sum())
    table = {row[0]: row[1] for row in page.one("section", id="accuracy").one("table").rows()}
    assert table["full"] == "90 100.0%"
    assert table["sketch-pruned"] == f"{kept} {100 * kept / 90:.1f}%"
    rows = next(page.one("section", id="data").all("table")).rows()
    by_name = {row[0]: row for row in rows}
    assert by_name["sketch"][-2:] == [
        f"{90 - kept} {100 - 100 * kept / 90:.1f}%",
        str(int((flags[:, 1] & ~flags[:, 0]).sum())),
    ]
    either = int(flags.any(axis=1).sum())
    total = by_name["Near to any test set, of 90 pool images"]
    assert total[1] == f"{either} {100 * either / 90:.1f}%"


def test_only_framed_cells_are_those_that_a_split_is_pruned_for(page: Element) -> None:
    cells = page.one("section", id="accuracy").all("td")
    framed = [cell for cell in cells if "target" in (cell.attributes.get("class") or "")]
    assert len(framed) == 1


@pytest.mark.parametrize(("place", "test"), [(0, "photo"), (1, "sketch")])
def test_similarities_are_those_of_the_nearest_images(
    study: Study, page: Element, place: int, test: str
) -> None:
    def rows(image_set: str, files: int) -> np.ndarray:
        paths = [study.layout.embeddings(image_set, index) for index in range(files)]
        found = [artifacts.read(path, artifacts.EMBEDDINGS)["embedding"] for path in paths]
        return np.concatenate(found).astype(np.float64)

    queries = rows(test, 1)
    pool = (queries @ rows("pool", 2).T).max(axis=1)
    reference = (queries @ rows("reference", 2).T).max(axis=1)
    figure = list(page.one("section", id="similarity").all("figure"))[place]
    label = figure.one("div", role="img").attributes["aria-label"] or ""
    assert f"median {np.median(pool):.3f} for the pool" in label
    assert f"{np.median(reference):.3f} for the reference" in label
    assert figure.one("figcaption").text.startswith(f"{100 * np.mean(pool > reference):.1f}%")

    cards = list(page.one("section", id="gallery").all("ol"))[place]
    shown = [[b.text for b in card.all("b")] for card in cards.all("li")]
    order = np.argsort(pool, kind="stable")[[0, 20, 39, 59]]
    assert shown == [[f"{reference[i]:.3f}", f"{pool[i]:.3f}"] for i in order]
    thresholds = next(page.one("section", id="data").all("table")).rows()
    shown_thresholds = next(row for row in thresholds if row[0] == test)
    assert shown_thresholds[2] == (
        f"{reference.mean():.3f} {reference.min():.3f}{DASH}{reference.max():.3f}"
    )


def test_accuracy_by_similarity_counts_every_evaluated_image(study: Study, page: Element) -> None:
    table = list(page.one("section", id="by-similarity").all("table"))[1]
    header, *bins = table.rows()
    assert header[2:] == ["full, %", "sketch-pruned, %", "sketch-control, %"]
    images = np.array([int(row[1]) for row in bins])
    assert images.sum() == 59
    column = header.index("sketch-pruned, %")
    means = np.array([float(row[column].split()[0]) for row in bins])
    expected = np.mean(accuracies(study, "sketch-pruned", "sketch"))
    assert (images * means).sum() / 59 == pytest.approx(expected, abs=0.05)


def test_classes_that_lose_and_gain(study: Study, page: Element) -> None:
    def by_class(split: str) -> np.ndarray:
        paths = [study.layout.evaluation(split, seed, "sketch") for seed in study.seeds]
        found = [artifacts.read(path, artifacts.EVALUATION)["class_accuracy"] for path in paths]
        return np.mean(found, axis=0)

    rows = page.one("section", id="classes").one("table").rows()
    change = 100 * (by_class("sketch-pruned") - by_class("sketch-control"))
    names = ("star", "Gürkchen", "fish & chips")
    shown = {row[0]: row[4] for row in rows if len(row) == 5 and row[0] in names}
    expected = dict(zip(names, map(points, change), strict=True))
    assert shown == expected


def test_finding_with_several_seeds(study: Study, page: Element) -> None:
    (finding,) = findings(page)
    full, near, control = (accuracies(study, split, "sketch") for split in SPLITS)
    fall = np.mean(full) - np.mean(near)
    assert f"accuracy on sketch falls by {fall:.1f} points, from {np.mean(full):.1f}%" in finding
    assert f"({min(near):.1f}{DASH}{max(near):.1f})" in finding
    assert f"random sample of the same size gives {np.mean(control):.1f}%" in finding
    assert finding.endswith("The seeds' ranges of the two do not overlap.")
    assert "means over 2 training runs (seeds)" in page.one("header").text


def test_one_seed_is_called_no_error_bar(make: Make) -> None:
    page = page_of(make(seeds=(3,), gallery=0))
    assert "One seed is no error bar" in page.one("header").text
    assert "range" not in findings(page)[0]
    assert "one seed" in page.one("caption", id="accuracy-caption").text
    assert not list(page.one("section", id="accuracy").one("tbody").rows()[0][2].split())[1:]


def test_without_a_control_none_is_claimed(make: Make) -> None:
    splits = {name: SPLITS[name] for name in ("full", "sketch-pruned")}
    page = page_of(make(splits=splits, gallery=0))
    assert "no model was trained on a random sample of the same size" in findings(page)[0]
    section = page.one("section", id="accuracy").one("tbody").text
    assert "control" not in section
    assert "full (baseline)" in page.one("section", id="classes").text


def test_without_a_full_split_the_control_remains(make: Make) -> None:
    trained = ["sketch-pruned", "sketch-control"]
    study = make(trained=trained, gallery=0)
    finding = findings(page_of(study))[0]
    near = np.mean(accuracies(study, "sketch-pruned", "sketch"))
    assert f"accuracy on sketch is {near:.1f}%" in finding
    assert "points more" in finding


def test_without_a_pruned_split_the_gap_is_told(make: Make) -> None:
    page = page_of(make(splits={"everything": "all"}, gallery=0))
    told = findings(page)
    assert len(told) == 2
    assert all("the pool holds a nearer image than the reference does" in one for one in told)
    assert not [e for e in page.all("section") if e.attributes.get("id") == "classes"]


def test_split_for_several_sets_and_a_fixed_threshold(make: Make) -> None:
    tests = {"photo": {}, "sketch": {"threshold": 0.9}}
    splits = {**SPLITS, "both": {"near": ["photo", "sketch"]}}
    study = make(tests=tests, splits=splits, gallery=1, trained=["full", "both"])
    page = page_of(study)
    (finding,) = findings(page)
    mean = np.mean([accuracies(study, "both", test) for test in tests])
    assert "closer to an image of photo or sketch than its threshold" in finding
    assert "mean accuracy over photo and sketch" in finding
    assert f"to {mean:.1f}%" in finding
    assert "dotted: the threshold, 0.9" in page.one("section", id="similarity").text


def test_nothing_trained_yet_still_makes_a_page(make: Make) -> None:
    page = page_of(make(trained=[], gallery=2))
    assert "seed" not in page.one("header").text
    rows = page.one("section", id="accuracy").one("table").rows()
    assert [row[2:] for row in rows[1:]] == [[ABSENT, ABSENT]] * 3
