"""The numbers on the page, against the artefacts, by hand."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable

import numpy as np
import pytest

from pipeline import artifacts
from pipeline.report import Page, build_report
from pipeline.report.words import ABSENT, DASH, MINUS, points
from tests.pipeline.report.conftest import SPLITS, Study
from tests.pipeline.report.parsed import Element, parse

Make = Callable[..., Study]


def page_of(study: Study) -> Element:
    return parse(build_report(study.experiment, study.layout, {}).text)


@pytest.fixture(scope="module")
def made(study: Study) -> Page:
    return build_report(study.experiment, study.layout, {})


@pytest.fixture(scope="module")
def page(made: Page) -> Element:
    return parse(made.text)


def accuracies(study: Study, split: str, test: str) -> list[float]:
    """From logits and labels, in %, by seed."""
    found = [
        artifacts.read(study.layout.evaluation(split, seed, test), artifacts.EVALUATION)
        for seed in study.seeds
    ]
    return [100 * float(np.mean(one["logits"].argmax(1) == one["label"])) for one in found]


def findings(page: Element) -> list[str]:
    return [p.text for p in page.all("p") if p.attributes.get("class") in ("lead", "more")]


def table_of(page: Element) -> list[list[str]]:
    return next(page.one("section", id="accuracy").all("table")).rows()


def csv_of(made: Page, name: str) -> list[dict[str, str]]:
    """A table's or a figure's CSV."""
    tables = {**made.tables, **{f"{plot.name}.csv": plot.csv.encode() for plot in made.plots}}
    return list(csv.DictReader(io.StringIO(tables[name].decode())))


def test_table_of_accuracies(study: Study, made: Page, page: Element) -> None:
    header, *rows = table_of(page)
    assert header == ["Split", "Images", "photo", "sketch"]
    table = {row[0]: row[1:] for row in rows}
    assert list(table) == list(SPLITS)
    numbers = {(r["split"], r["test"], r["compared_with"]): r
               for r in csv_of(made, "accuracy.csv")}  # fmt: skip

    def told(split: str, test: str, other: str) -> str:
        found = numbers[split, test, other]
        low, high = 100 * float(found["low"]), 100 * float(found["high"])
        same = "≈ " if low <= 0 <= high else ""
        change = 100 * (float(found["value"]))
        assert change == pytest.approx(
            np.mean(accuracies(study, split, test)) - np.mean(accuracies(study, other, test))
        )
        return f"{same}{points(change)} {points(low)} to {points(high)}"

    for column, test in enumerate(study.tests, start=1):
        for split in SPLITS:
            found = numbers[split, test, ""]
            assert [100 * float(one) for one in found["seeds"].split()] == pytest.approx(
                accuracies(study, split, test)
            )
            ends = [f"{100 * float(found[end]):.1f}" for end in ("low", "high")]
            expected = f"{np.mean(accuracies(study, split, test)):.1f} {ends[0]} to {ends[1]}"
            if split != "full":
                expected += f" full {told(split, test, 'full')}"
            if split == "sketch-pruned":
                expected += f" control {told(split, test, 'sketch-control')}"
            assert table[split][column] == expected


def test_intervals_are_those_of_the_formulas(study: Study, made: Page) -> None:
    """From the logits: Student's t with 2 degrees of freedom, and half widths in squares."""
    rows = csv_of(made, "accuracy.csv")
    (found,) = [r for r in rows if (r["split"], r["test"], r["compared_with"])
                == ("sketch-pruned", "sketch", "sketch-control")]  # fmt: skip
    mine, theirs = (correct_by_key(study, s, "sketch") for s in ("sketch-pruned", "sketch-control"))
    difference = mine - theirs
    by_seed = difference.mean(axis=1)
    reach = 4.302653 * by_seed.std(ddof=1) / np.sqrt(3)
    assert float(found["seeds_low"]) == pytest.approx(by_seed.mean() - reach, abs=1e-6)
    assert float(found["seeds_high"]) == pytest.approx(by_seed.mean() + reach, abs=1e-6)
    error = difference.mean(axis=0).std() / np.sqrt(difference.shape[1])
    images = (float(found["images_high"]) - float(found["images_low"])) / 2
    assert images == pytest.approx(1.96 * error, rel=0.05)
    above = float(found["images_high"]) - float(found["value"])
    assert float(found["high"]) - float(found["value"]) == pytest.approx(np.hypot(above, reach))


def correct_by_key(study: Study, split: str, test: str) -> np.ndarray:
    """(seeds, images) in the order of the keys."""
    rows = []
    for seed in study.seeds:
        found = artifacts.read(study.layout.evaluation(split, seed, test), artifacts.EVALUATION)
        order = np.argsort(found["key"])
        rows.append((found["logits"].argmax(1) == found["label"])[order].astype(float))
    return np.stack(rows)


def test_sizes_of_splits(study: Study, page: Element) -> None:
    near = [
        artifacts.read(study.layout.similarity(index), artifacts.SIMILARITY)["near"]
        for index in range(2)
    ]
    flags = np.concatenate(near)
    kept = int((~flags[:, 1]).sum())
    table = {row[0]: row[1] for row in table_of(page)}
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
    order = even_steps(pool, 4)
    assert shown == [[f"{reference[i]:.3f}", f"{pool[i]:.3f}"] for i in order]
    thresholds = next(page.one("section", id="data").all("table")).rows()
    shown_thresholds = next(row for row in thresholds if row[0] == test)
    assert shown_thresholds[2] == (
        f"{reference.mean():.3f} {reference.min():.3f}{DASH}{reference.max():.3f}"
    )


def even_steps(values: np.ndarray, count: int) -> list[int]:
    """The value nearest to each of some even steps, each taken once, highest first."""
    left, taken = list(range(len(values))), []
    for step in np.linspace(values.max(), values.min(), count):
        taken.append(min(left, key=lambda i: (abs(values[i] - step), i)))
        left.remove(taken[-1])
    return sorted(taken, key=lambda i: -values[i])


def test_accuracy_by_similarity_counts_every_evaluated_image(study: Study, made: Page) -> None:
    rows = [r for r in csv_of(made, "accuracy-by-similarity-sketch.csv")
            if r["split"] == "sketch-pruned"]  # fmt: skip
    images = np.array([int(row["images"]) for row in rows])
    assert images.sum() == 59
    means = np.array([float(row["accuracy"]) for row in rows])
    expected = np.mean(accuracies(study, "sketch-pruned", "sketch"))
    assert 100 * (images * means).sum() / 59 == pytest.approx(expected)


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
    assert f"random sample of the same size gives {np.mean(control):.1f}%" in finding
    less = np.mean(control) - np.mean(near)
    assert f"the pruned split has {less:.1f} points less (interval {MINUS}" in finding
    assert "means over 3 training runs (seeds)" in page.one("header").text


@pytest.mark.usefixtures("undrawn")
def test_one_seed_is_never_the_truth(make: Make) -> None:
    page = page_of(make(seeds=(3,), gallery=0))
    assert "a single training run (one seed)" in page.one("header").text
    assert "nothing here says how different" in page.one("header").text
    assert "one seed" in page.one("caption", id="accuracy-caption").text
    intervals = list(page.one("section", id="accuracy").all("table"))[1].rows()
    assert [row[5] for row in intervals[1:]] == ["one seed"] * 6


@pytest.mark.usefixtures("undrawn")
def test_no_difference_is_said_as_such(make: Make) -> None:
    study = make(gallery=0, chance=dict.fromkeys(SPLITS, 0.7))
    (finding,) = findings(page_of(study))
    assert "accuracy on sketch does not clearly change" in finding
    assert "no difference is shown: the interval" in finding
    assert re.search(r"a difference of more than \d+\.\d points can be excluded\.$", finding)


@pytest.mark.usefixtures("undrawn")
def test_without_a_control_none_is_claimed(make: Make) -> None:
    splits = {name: SPLITS[name] for name in ("full", "sketch-pruned")}
    page = page_of(make(splits=splits, gallery=0))
    assert "no model was trained on a random sample of the same size" in findings(page)[0]
    assert "control" not in " ".join(cell for row in table_of(page) for cell in row)
    assert "full (baseline)" in page.one("section", id="classes").text


@pytest.mark.usefixtures("undrawn")
def test_without_a_full_split_the_control_remains(make: Make) -> None:
    trained = ["sketch-pruned", "sketch-control"]
    study = make(trained=trained, gallery=0)
    finding = findings(page_of(study))[0]
    near = np.mean(accuracies(study, "sketch-pruned", "sketch"))
    assert f"accuracy on sketch is {near:.1f}%" in finding
    assert "points less" in finding


@pytest.mark.usefixtures("undrawn")
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


@pytest.mark.usefixtures("undrawn")
def test_nothing_trained_yet_still_makes_a_page(make: Make) -> None:
    page = page_of(make(trained=[], gallery=2))
    assert "seed" not in page.one("header").text
    rows = table_of(page)
    assert [row[2:] for row in rows[1:]] == [[ABSENT, ABSENT]] * 3
