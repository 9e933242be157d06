"""The page as a reader, a screen reader and a browser get it."""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from PIL import Image

from hpc.stage import OutputError
from pipeline import artifacts, report
from pipeline.report import Page, build_report, files_named, svg, write_report
from pipeline.report.accounts import LISTED
from pipeline.report.words import ABSENT
from tests.pipeline.report.conftest import Study
from tests.pipeline.report.parsed import Element, parse

Make = Callable[..., Study]


@pytest.fixture(scope="module")
def made(study: Study) -> Page:
    provenance = {"Versions": ["numpy 2", "torch <2>"], "Answer": 42, "Note": "two & three"}
    return build_report(study.experiment, study.layout, provenance)


@pytest.fixture(scope="module")
def html(made: Page) -> str:
    return made.text


@pytest.fixture(scope="module")
def page(html: str) -> Element:
    return parse(html)


def test_needs_no_network_and_no_script(made: Page, html: str, page: Element) -> None:
    assert not re.search(r"(src|href|action)\s*=\s*[\"']?\s*(https?:|//)", html)
    assert not re.search(r"url\((?!#)|@import|<script|<link|<iframe|<object", html)
    targets = {element.attributes.get("id") for element in page.all()}
    for element in page.all():
        if element.tag == "img":
            assert (element.attributes["src"] or "").startswith("data:image/jpeg;base64,")
        for name, value in element.attributes.items():
            assert not name.startswith("on")
            if name in ("href", "xlink:href"):
                if (value or "").startswith("figures/"):
                    assert unquote(value or "").removeprefix("figures/") in made.files
                else:
                    assert (value or "").removeprefix("#") in targets


def test_ids_are_unique(page: Element) -> None:
    ids = [element.attributes["id"] for element in page.all() if "id" in element.attributes]
    assert len(ids) == len(set(ids))


def test_web_captions_are_shown_as_text(html: str, page: Element) -> None:
    said = '"><script>alert(1)</script> \'onerror="x" & Käse gnirts'
    assert "<script" not in html and "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    gallery = page.one("section", id="gallery")
    assert said in [element.text for element in gallery.all("bdi")]
    assert f"pool: {said}" in [image.attributes["alt"] for image in gallery.all("img")]


def test_text_of_the_study_is_escaped(page: Element) -> None:
    assert page.one("h1").text == "A <small> study"
    assert page.one("title").text == "A <small> study"
    facts = {
        item.one("dt").text: item.one("dd").text
        for item in page.one("section", id="provenance").all("div")
    }
    assert facts["Versions"] == "numpy 2 torch <2>"
    assert (facts["Answer"], facts["Note"]) == ("42", "two & three")
    assert facts["Similarity computed by"] == "cpu-float32 reference"
    assert facts["Pairs re-checked exactly"] == "10"
    assert facts["Embedder"] == "ViT-B-32, weights laion2b"


def test_every_picture_has_a_text_and_every_figure_a_caption(page: Element) -> None:
    assert all(image.attributes["alt"] for image in page.all("img"))
    figures = list(page.all("figure"))
    assert figures
    assert all(any(child.text for child in figure.all("figcaption")) for figure in figures)
    drawings = [element for element in page.all("div") if element.attributes.get("role") == "img"]
    assert len(drawings) == 1 + 1 + 2 * 4  # matrix, robustness, and four for each test set
    assert all(drawing.attributes["aria-label"] for drawing in drawings)
    levels = [int(element.tag[1]) for element in page.all("h1", "h2", "h3")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_tables_scroll_and_can_be_reached_by_keyboard(page: Element) -> None:
    regions = [e for e in page.all("div") if e.attributes.get("class") == "scroll"]
    tables = {id(table) for region in regions for table in region.all("table")}
    assert len(tables) == len(list(page.all("table")))
    for region in regions:
        assert region.attributes["tabindex"] == "0"
        assert {"aria-label", "aria-labelledby"} & set(region.attributes)


def test_drawings_take_their_colours_from_the_page(page: Element) -> None:
    for drawn in page.all("svg"):
        styles = " ".join(element.attributes.get("style") or "" for element in drawn.all())
        assert "var(--" in styles
        assert not re.search(r"#[0-9a-f]{6}", styles)


def test_thumbnails_are_small_and_encoded_anew(page: Element) -> None:
    images = list(page.one("section", id="gallery").all("img"))
    assert len(images) == 2 * 4 * 3
    for image in images:
        data = base64.b64decode((image.attributes["src"] or "").partition(",")[2])
        with Image.open(io.BytesIO(data)) as opened:
            assert opened.size == (160, 96)
            assert "comment" not in opened.info


def test_same_run_gives_the_same_page(study: Study, html: str) -> None:
    provenance = {"Versions": ["numpy 2", "torch <2>"], "Answer": 42, "Note": "two & three"}
    assert build_report(study.experiment, study.layout, provenance).text == html


def test_skipped_samples_and_faults_are_listed(page: Element) -> None:
    data = page.one("section", id="data")
    read = {row[0]: row[1:] for row in list(data.all("table"))[1].rows()}
    assert read["pool"] == ["92", "90", "2", "2 no caption", "2"]
    assert read["sketch"] == ["60", "60", "0", ABSENT, "0"]
    assert read["sketch, evaluated"] == ["60", "59", "1", "1 file is missing", "0"]
    assert read["reference"] == ["120", "120", "0", ABSENT, "0"]
    listed = [details.text for details in data.all("details")]
    assert "00002.tar:<b>lonely</b> no caption" in listed[0]
    assert "00000.tar: torn at byte 123" in listed[-1]


@pytest.mark.usefixtures("undrawn")
def test_long_lists_are_cut_and_say_where_the_rest_is(make: Make) -> None:
    study = make(gallery=0)
    path = study.layout.embeddings("pool", 1)
    found = artifacts.read(path, artifacts.EMBEDDINGS)
    count = LISTED + 7
    more = {
        "skipped_key": artifacts.encode_text([f"00002.tar:{index:04d}" for index in range(count)]),
        "skipped_reason": artifacts.encode_text(["no image"] * count),
    }
    arrays = {name: array.copy() for name, array in found.arrays.items()} | more
    attributes = dict(found.attributes) | {"read": count + 30}
    artifacts.write(path, artifacts.EMBEDDINGS, "d", arrays, attributes)
    page = parse(build_report(study.experiment, study.layout, {}).text)
    details = next(page.one("section", id="data").all("details"))
    assert len(details.one("table").rows()) == LISTED + 1
    assert "and 8 more; all of them are in 1_embeddings/pool/*.h5" in details.text


@pytest.mark.usefixtures("undrawn")
def test_pictures_that_are_gone_leave_a_note(make: Make) -> None:
    study = make()
    for tar in (study.folder / "pool").iterdir():
        tar.unlink()
    for image in (study.folder / "sketch").rglob("*.jpg"):
        image.write_bytes(b"no image")
    page = parse(build_report(study.experiment, study.layout, {}).text)
    notes = [e.text for e in page.all("div") if e.attributes.get("class") == "missing"]
    assert len(notes) == 2 * 4 + 4
    assert sum("can't be read" in note for note in notes) == len(notes)


@pytest.mark.usefixtures("undrawn")
def test_names_that_are_not_utf8_do_no_harm(make: Make) -> None:
    study = make(gallery=0)
    path = study.layout.embeddings("sketch", 0)
    found = artifacts.read(path, artifacts.EMBEDDINGS)
    odd = {
        "skipped_key": artifacts.encode_text(["n01/\udcff.jpg"]),
        "skipped_reason": artifacts.encode_text(["file is missing"]),
    }
    arrays = {name: array.copy() for name, array in found.arrays.items()} | odd
    artifacts.write(path, artifacts.EMBEDDINGS, "d", arrays, dict(found.attributes) | {"read": 61})
    assert "n01/?.jpg" in build_report(study.experiment, study.layout, {}).text


@pytest.mark.usefixtures("undrawn")
def test_what_is_missing_is_listed_and_the_rest_is_shown(make: Make) -> None:
    study = make(gallery=0)
    study.layout.evaluation("full", 1, "photo").unlink()
    for test in study.tests:
        for seed in study.seeds:
            study.layout.evaluation("sketch-pruned", seed, test).unlink()
    study.layout.mask("sketch-control").unlink()
    made = build_report(study.experiment, study.layout, {})
    assert made.missing[0] == "the mask of sketch-control"
    assert "the evaluation of full, seed 1, on photo" in made.missing
    assert len(made.missing) == 1 + 1 + 6
    page = parse(made.text)
    assert "Not all is there yet: 8 missing" in page.one("header").text
    rows = next(page.one("section", id="accuracy").all("table")).rows()
    assert [row[0] for row in rows] == ["Split", "full", "sketch-pruned"]
    assert rows[2][2:] == [ABSENT, ABSENT] and ABSENT not in rows[1]


def test_without_similarities_there_is_no_page(make: Make) -> None:
    study = make(gallery=0)
    path = study.layout.similarity(1)
    path.unlink()
    with pytest.raises(OutputError, match=re.escape(f"{path} is missing")):
        build_report(study.experiment, study.layout, {})


def test_figures_and_their_data_lie_beside_the_page(made: Page, tmp_path: Path) -> None:
    folder = tmp_path / "figures"
    folder.mkdir()
    (folder / "of-yesterday.svg").touch()
    write_report(made, tmp_path / "index.html", "the end")
    assert sorted(path.name for path in folder.iterdir()) == sorted(made.files)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert text.endswith("the end")
    assert set(files_named(text)) == set(made.files)
    for plot in made.plots:
        assert (folder / f"{plot.name}.pdf").read_bytes().startswith(b"%PDF")
        svg = ElementTree.parse(folder / f"{plot.name}.svg").getroot()
        assert svg.tag.endswith("svg") and "var(" not in (folder / f"{plot.name}.svg").read_text()
        rows = list(csv.reader((folder / f"{plot.name}.csv").open(encoding="utf-8")))
        assert rows[0] == list(plot.columns) and len(rows) == 1 + len(plot.rows)


def test_colours_of_files_are_those_of_the_page_in_light() -> None:
    style = (Path(report.__file__).parent / "style.css").read_text()
    light, _, dark = style.partition("@media screen and (prefers-color-scheme: dark)")
    for colour, variable in svg.VARIABLES.items():
        assert f"{variable}: {colour};" in light
        assert f"{variable}:" in dark
    assert len(set(svg.VARIABLES)) == 5 - 1 + len(svg.ROLES) + len(svg.SERIES)
