"""The page: everything read, drawn, and put into one HTML file, with the figures beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.experiment.sections import Experiment
from pipeline.layout import Layout
from pipeline.report import words
from pipeline.report.accounts import LISTED, read_accounts
from pipeline.report.drawn import draw_all
from pipeline.report.gallery import build_gallery
from pipeline.report.origins import read_origins
from pipeline.report.recorded import RECALLS, overlaps, probes, retrievals
from pipeline.report.results import ClassChange, Models, Results, class_changes, read_results
from pipeline.report.similarity import Searched, read_searched
from pipeline.report.statistics import ENOUGH_BINS, FEW
from pipeline.report.svg import Plot
from pipeline.report.tables import tables
from pipeline.report.uncertainty import METHOD

if TYPE_CHECKING:
    from jinja2 import Environment

SHOWN_ROWS = 150
"""Longer tables of numbers are only in the CSV."""
_HERE = Path(__file__).parent
_CLASSES = 5


@dataclass(frozen=True)
class Page:
    """The page, and what is to lie beside it in the folder `figures`."""

    text: str
    """One HTML file that needs no other file and no network."""
    plots: Sequence[Plot]
    tables: Mapping[str, bytes]
    """File name -> the data of a table of the page, as CSV."""
    missing: tuple[str, ...]
    """What the study asks for and is not there yet, in words."""

    @property
    def files(self) -> list[str]:
        """Names of the files beside it: figures as SVG and PDF, their data and tables as CSV."""
        return [*(name for plot in self.plots for name in plot.files), *self.tables]

    def contents(self) -> Iterator[tuple[str, bytes]]:
        """These files, one by one: name and content."""
        for plot in self.plots:
            yield from plot.contents.items()
        yield from self.tables.items()


@dataclass(frozen=True)
class ClassTable:
    """The classes whose accuracy changes most when a split is pruned."""

    test: str
    split: str
    baseline: str
    """What it is compared with."""
    losses: list[ClassChange]
    """Largest first."""
    gains: list[ClassChange]
    """Largest first."""


def build_report(experiment: Experiment, run: Layout, provenance: Mapping[str, object]) -> Page:
    """Make the page of a run, of as many of its models as have been evaluated.

    Args:
        experiment: the study.
        run: where its artefacts are; similarities have to be all there.
        provenance: name -> text, number, list or mapping: what else made the numbers.

    Raises:
        OutputError: an artefact can't be read, or a similarity file is missing.
    """
    results = read_results(experiment, run)
    searched = read_searched(run, list(results.tests), results.pool_files)
    accounts = read_accounts(run, results, searched.reference_files)
    models = Models(run, results, {name: one.keys for name, one in searched.queries.items()})
    probed = probes(run, results, experiment.probed_tests)
    drawn = draw_all(experiment, run, results, models, searched, probed)
    origins = read_origins(run)
    found: dict[str, Any] = {
        "results": results,
        "models": models,
        "probes": probed,
        "retrievals": retrievals(run, results, experiment.retrieval_sets),
        "overlaps": overlaps(run, results),
    }
    text = _environment().get_template("page.html.j2").render(
        title=experiment.report.title or experiment.name,
        findings=words.findings(results, models, searched.queries),
        searched=searched,
        accounts=accounts,
        drawn=drawn,
        classes=list(_class_tables(run, results)),
        gallery=build_gallery(experiment, run, searched),
        origins=origins,
        facts=_facts(experiment, searched, accounts.embedder) | dict(provenance),
        experiment=experiment,
        **found,
    )  # fmt: skip
    plots = [plot for kind in drawn.values() for plot in kind]
    # Names of files and samples need not be UTF-8; the page is.
    encoded = text.encode("utf-8", "replace").decode()
    return Page(encoded, plots, tables(**found, origins=origins), results.missing)


def _class_tables(run: Layout, results: Results) -> Iterator[ClassTable]:
    """Classes of each test set by what pruning for it costs them, where there is a comparison."""
    for test in results.tests:
        split = results.pruned_for(test)
        baseline = results.baseline(split) if split else None
        if split is None or baseline is None:
            continue
        if any(test not in results.splits[one].scores for one in (split, baseline)):
            continue
        rows = class_changes(run, results, split, baseline, test)
        losses = [row for row in rows if row.change < 0]
        gains = [row for row in reversed(rows) if row.change > 0]
        yield ClassTable(test, split, baseline, losses[:_CLASSES], gains[:_CLASSES])


def _facts(
    experiment: Experiment, searched: Searched, embedder: Mapping[str, object]
) -> dict[str, object]:
    """How the numbers were made, as far as the artefacts and the experiment say it."""
    facts: dict[str, object] = {
        "Embedder": f"{embedder['model']}, weights {embedder['pretrained']}",
        "Precision of embeddings": str(embedder["precision"]),
        "Preprocessing": str(embedder["preprocessing"]),
        "Similarity computed by": list(searched.backends),
        "Pairs re-checked exactly": words.count(searched.rechecked),
    }
    if training := experiment.training:
        facts |= {
            "Trained model": training.model,
            "Epochs": training.epochs,
            "Samples per epoch": training.samples_per_epoch or "all of the split",
            "Batch size per process": training.batch_size
            or f"its share of {training.global_batch}",
            "Training options": dict(training.options),
            "Seeds": ", ".join(map(str, training.seeds)),
            "Caption templates": experiment.evaluation.templates,
        }
    return facts


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (
        "percent",
        "points",
        "direction",
        "count",
        "cosine",
        "correlation",
        "interval",
        "cell",
        "provenance_lines",
    )
    environment.filters.update({name: getattr(words, name) for name in filters})
    environment.filters["svg"] = Markup  # our own drawing
    constants: dict[str, Any] = {
        "style": Markup((_HERE / "style.css").read_text(encoding="utf-8")),
        "about_seeds": words.about_seeds,
        "names": words.enumerate_names,
        "ABSENT": words.ABSENT,
        "FEW": FEW,
        "ENOUGH_BINS": ENOUGH_BINS,
        "LISTED": LISTED,
        "METHOD": METHOD,
        "RECALLS": RECALLS,
        "SHOWN_ROWS": SHOWN_ROWS,
    }
    environment.globals.update(constants)
    return environment
