"""The sections of the page that need more than a small study: numbers against made-up files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpc.stage import OutputError
from pipeline.evaluation.baselines import read_baselines
from pipeline.experiment.splits import Split
from pipeline.report import Page, build_report
from pipeline.report.accuracy_figures import draw_robustness
from pipeline.report.comparisons import Robustness, _line, logit
from pipeline.report.recorded import training_curves
from pipeline.report.results import read_results
from pipeline.report.roles import Roles, rule_of
from pipeline.report.uncertainty import estimate
from pipeline.report.words import DASH
from pipeline.training.curve import Point
from tests.pipeline.report.conftest import Study
from tests.pipeline.report.parsed import Element, parse

Make = Callable[..., Study]
SPLITS: dict[str, Any] = {
    "full": "all",
    "sketch-pruned": {"near": ["sketch"]},
    "sketch-control": {"random": {"like": "sketch-pruned"}},
    "near-60": {"near": {"tests": ["sketch"], "keep": 60}},
    "near-30": {"near": {"tests": ["sketch"], "keep": 30}},
    "far-60": {"far": {"tests": ["sketch"], "keep": 60}},
    "far-30": {"far": {"tests": ["sketch"], "keep": 30}},
    "random-60": {"random": {"keep": 60, "seed": 3}},
    "random-30": {"random": {"keep": 30, "seed": 3}},
}
CHANCE = {
    "full": 0.85, "sketch-pruned": 0.5, "sketch-control": 0.83, "near-60": 0.5, "near-30": 0.2,
    "far-60": 0.86, "far-30": 0.8, "random-60": 0.78, "random-30": 0.6,
}  # fmt: skip
POINT = [field.name for field in fields(Point)]
FEW_SHOT = {"1": [0.3, 0.4], "4": [0.6, 0.5]}


def enrich(study: Study) -> Study:
    """Write what the later stages leave beside the artefacts."""
    run, random = study.layout, np.random.default_rng(0)
    for split in study.splits:
        for seed in study.seeds:
            _curve(run.curve(split, seed), random)
            for test in study.tests:
                probe = {"test": test, "few_shot": FEW_SHOT, "train_images": 60, "test_images": 60,
                         "linear_probe": {"top1": 0.7 + 0.01 * seed, "top5": 1.0,
                                          "mean_per_class": 0.7},
                         "knn": {"top1": 0.65, "k": 20}}  # fmt: skip
                _write(run.probe(split, seed, test), probe)
            _write(run.retrieval(split, seed, "taken-out"), {"name": "of an earlier study"})
            recalls = {"1": 0.25, "5": 0.5 + 0.1 * seed}
            _write(run.retrievals(split, seed) / "flickr.json",
                   {"name": "flickr", "images": 100, "captions": 500,
                    "image_to_text": recalls, "text_to_image": recalls})  # fmt: skip
        _write(run.statistics(split), {
            "rows": 90, "base": 90, "kept": 50, "near": {"photo": 40, "sketch": 35},
            "overlaps": {"photo & sketch": 12}, "all": 12, "any": 63, "per_query": {}})  # fmt: skip
    return study


def _curve(path: Path, random: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [",".join(POINT)]
    for step in range(1, 41):
        loss = 4 / step**0.4 + 0.05 * random.random()
        lines.append(
            f"{step // 20},{step * 800},{loss},0.001,{500 + step},0.1,2026-01-01T00:00:00Z,14"
        )
    path.write_text("\n".join(lines) + "\n")


def _write(path: Path, record: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("rich")
    table = folder / "published.csv"
    published = [("a", 0.5, 0.2), ("b", 0.6, 0.3), ("c", 0.75, 0.4), ("d", 0.8, 0.6)]
    lines = [f"{m},{t},{v}" for m, x, y in published for t, v in (("photo", x), ("sketch", y))]
    table.write_text("\n".join(["model,test,accuracy", *lines, "a,elsewhere,0.1"]) + "\n")
    asked = {"few_shot": {"tests": ["sketch"]}, "retrieval": {"flickr": {"shards": "flickr.tar"}}}
    made = Study(folder, splits=SPLITS, chance=CHANCE, gallery=0, baselines=table, evaluation=asked)
    return enrich(made.make())


@pytest.fixture(scope="module")
def made(study: Study) -> Page:
    return build_report(study.experiment, study.layout, {})


@pytest.fixture(scope="module")
def page(made: Page) -> Element:
    return parse(made.text)


def data(made: Page, name: str) -> list[dict[str, str]]:
    """A figure's or a table's CSV."""
    texts = {plot.name: plot.csv for plot in made.plots}
    texts |= {file[:-4]: content.decode() for file, content in made.tables.items()}
    return list(csv.DictReader(io.StringIO(texts[name])))


def test_pruning_curves_go_from_the_full_pool_down(made: Page) -> None:
    rows = data(made, "pruning-sketch")
    lines = {rule: [(row["split"], row["kept"]) for row in rows if row["rule"] == rule]
             for rule in dict.fromkeys(row["rule"] for row in rows)}  # fmt: skip
    assert lines["near-pruned"] == [("full", "90"), ("near-60", "60"), ("near-30", "30")]
    assert lines["far-pruned"] == [("full", "90"), ("far-60", "60"), ("far-30", "30")]
    assert lines["random"][0] == ("full", "90")
    assert {split for split, _ in lines["random"]} >= {"random-60", "random-30", "sketch-control"}
    accuracy = {(r["split"], r["test"]): r["value"] for r in data(made, "accuracy")
                if not r["compared_with"]}  # fmt: skip
    assert all(row["value"] == accuracy[row["split"], "sketch"] for row in rows)
    assert "pruning-photo" not in [plot.name for plot in made.plots]


def test_effective_robustness_is_the_distance_from_the_line(study: Study, made: Page) -> None:
    rows = {row["model"]: row for row in data(made, "robustness-sketch")}
    x, y = np.array([0.5, 0.6, 0.75, 0.8]), np.array([0.2, 0.3, 0.4, 0.6])
    slope, intercept = np.polyfit(np.log(x / (1 - x)), np.log(y / (1 - y)), 1)
    full = rows["full"]
    there = float(full["photo_value"])
    expected = 1 / (1 + np.exp(-(slope * np.log(there / (1 - there)) + intercept)))
    assert float(full["above_line"]) == pytest.approx(float(full["sketch_value"]) - expected)
    assert rows["a"]["kind"] == "baseline"
    assert study.experiment.standard_test == "photo"  # there is no val


def test_many_models_are_told_apart_by_kind() -> None:
    some = estimate(np.array([[1.0, 0, 1, 1]]))
    for models, told in ((3, False), (8, True)):
        named = {f"split-{number}": (some, some) for number in range(models)}
        found = Robustness("sketch", "val", named, {}, None)
        words = draw_robustness(found, {"split-1": "near", "split-2": "far"}).inline
        assert ("far-pruned" in words) == told
        assert ("split-2" in words) != told


def test_two_baseline_models_make_no_line() -> None:
    assert _line([(0.5, 0.4), (0.6, 0.5)]) is None
    assert _line([(0.5, 0.4), (0.5, 0.5), (0.5, 0.6)]) is None
    assert np.isfinite(logit(np.array([0.0, 1.0]))).all()


def test_few_shot_probes_and_retrieval(made: Page, page: Element) -> None:
    rows = {(row["split"], row["shots"]): row for row in data(made, "few-shot-sketch")}
    assert float(rows["near-30", "4"]["accuracy"]) == pytest.approx(0.55)
    assert (rows["full", "1"]["lowest"], rows["full", "1"]["highest"]) == ("0.3", "0.4")
    assert rows["full", "1"]["draws"] == "6"  # two draws, three seeds
    table = page.one("section", id="probes").one("table").rows()
    assert table[1] == ["full", "linear probe", DASH, f"71.0 70.0{DASH}72.0"]
    assert table[2][:2] == ["full", "k-NN"]
    found = page.one("section", id="retrieval").one("table").rows()
    assert found[1][1:3] == [f"25.0 25.0{DASH}25.0", f"60.0 50.0{DASH}70.0"]
    assert data(made, "retrieval")[1]["recall"] == "0.6"


def test_what_is_no_longer_asked_for_is_not_shown(made: Page) -> None:
    assert {row["data"] for row in data(made, "retrieval")} == {
        "flickr"
    }  # taken-out lies beside it
    assert {row["test"] for row in data(made, "probes")} == {"sketch"}
    assert "few-shot-photo" not in {plot.name for plot in made.plots}


def test_training_curves_are_those_of_the_file(study: Study, made: Page) -> None:
    rows = [row for row in data(made, "training") if (row["split"], row["seed"]) == ("full", "1")]
    source = list(csv.DictReader(study.layout.curve("full", 1).open()))
    assert [float(row["loss"]) for row in rows] == [float(row["loss"]) for row in source]
    assert float(rows[-1]["samples"]) == 32000


def test_long_curves_are_averaged_and_broken_ones_are_named(make: Make) -> None:
    study = make(gallery=0, seeds=(0,))
    path = study.layout.curve("full", 0)
    path.parent.mkdir(parents=True)
    points = [f"1,{step},{step % 2},0.1,10,1,2026-01-01T00:00:00Z,14" for step in range(6000)]
    path.write_text("\n".join([",".join(POINT), *points]))
    results = read_results(study.experiment, study.layout)
    (curve,) = training_curves(study.layout, results)
    assert len(curve.loss) == 300
    assert set(curve.loss) == {0.5}
    path.write_text("samples,loss\n1,2\n")
    with pytest.raises(OutputError, match=r"curve\.csv: can't be read: .* line 2: not a point"):
        training_curves(study.layout, results)


def test_overlaps_are_those_of_the_statistics(page: Element, made: Page) -> None:
    tables = [table.rows() for table in page.one("section", id="data").all("table")]
    (overlaps,) = [rows for rows in tables if rows[0][0] == "Near to"]
    assert overlaps[1:] == [
        ["photo", "40 100.0%", "12 30.0%"],
        ["sketch", "12 34.3%", "35 100.0%"],
    ]
    assert [row["images_near_to_both"] for row in data(made, "overlaps")] == ["40", "12", "35"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("model,tests,accuracy\n", "no column 'test'; did you mean 'tests'"),
        ("", "the file is empty"),
        ("model,test,accuracy\na,val,61.2\n", r"line 2: accuracy 61.2: .* \(61.2% is 0.612\)"),
        ("model,test,accuracy\na,val,high\n", "line 2: expected an accuracy, found 'high'"),
        ("model,test,accuracy\n,val,0.5\n", "line 2: expected a model and a test set"),
        ("model,test,accuracy\na,val,0.5\na,val,0.6\n", "line 3: a has an accuracy on val already"),
    ],
)
def test_bad_baselines_are_refused(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "published.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=told):
        read_baselines(path)


def roles_of(kept: dict[str, int], **splits: Any) -> Roles:
    rules = {name: rule_of(Split.model_validate(split)) for name, split in splits.items()}
    return Roles(rules, kept)


def test_comparisons_stay_within_a_base_and_with_the_reference_or_without() -> None:
    roles = roles_of(
        {"all": 9, "clean": 8, "clean-plus": 8, "pruned": 5, "pruned-plus": 5, "drawn": 5,
         "drawn-plus": 5, "elsewhere": 5},
        all="all",
        clean={"deduplicated": True},
        **{
            "clean-plus": {"all": True, "base": "clean", "plus_reference": True},
            "pruned": {"near": ["a"], "base": "clean"},
            "pruned-plus": {"near": ["a"], "base": "clean", "plus_reference": True},
            "elsewhere": {"random": {"keep": 5}},
            "drawn": {"random": {"keep": 5}, "base": "clean"},
            "drawn-plus": {"random": {"like": "pruned"}, "base": "clean", "plus_reference": True},
        },
    )  # fmt: skip
    assert roles.main() == "all"
    assert (roles.full("pruned"), roles.control("pruned")) == ("clean", "drawn")
    assert (roles.full("pruned-plus"), roles.control("pruned-plus")) == ("clean-plus", "drawn-plus")
    assert roles.full("clean") == "all"
    assert roles.full("clean-plus") is None


def test_an_intersection_is_pruned_for_all_that_its_parts_are() -> None:
    roles = roles_of({}, a={"near": ["x"]}, b={"near": ["y"]}, c={"far": {"tests": ["x"], "keep": 1}},
                     both={"intersection": ["a", "b"]}, other={"union": ["a", "b"]})  # fmt: skip
    assert roles.pruned_for("both") == ("x", "y")
    assert roles.pruned_for("other") == roles.pruned_for("c") == ()
