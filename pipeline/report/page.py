"""The page: everything read, drawn, and put into one HTML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.layout import Layout
from pipeline.report import words
from pipeline.report.accounts import LISTED, read_accounts
from pipeline.report.figures import (
    Curve,
    draw_accuracy,
    draw_similarities,
    similarity_range,
)
from pipeline.report.gallery import build_gallery
from pipeline.report.results import (
    ClassChange,
    Results,
    class_changes,
    correctness,
    read_results,
)
from pipeline.report.similarity import Searched, read_searched
from pipeline.report.statistics import ENOUGH_BINS, FEW, bin_scores, bin_width
from pipeline.sections import Experiment

if TYPE_CHECKING:
    from jinja2 import Environment

_HERE = Path(__file__).parent
_CLASSES = 5


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


def build_report(experiment: Experiment, run: Layout, provenance: Mapping[str, object]) -> str:
    """Make the page of a finished run.

    Args:
        experiment: the study.
        run: where its artefacts are.
        provenance: name -> text, number, list or mapping: what else made the numbers.

    Returns:
        One HTML page that needs no other file and no network.

    Raises:
        OutputError: an artefact is missing or can't be read.
    """
    results = read_results(experiment, run)
    searched = read_searched(run, list(results.tests), results.pool_files)
    accounts = read_accounts(run, results, searched.reference_files)
    limits = similarity_range(searched.queries)
    curves = _curves(run, results, searched)
    page = _environment().get_template("page.html.j2")
    text = page.render(
        title=experiment.report.title or experiment.name,
        findings=words.findings(results, searched.queries),
        results=results,
        searched=searched,
        accounts=accounts,
        histograms={
            name: draw_similarities(queries, limits) for name, queries in searched.queries.items()
        },
        curves=curves,
        accuracy={name: draw_accuracy(name, found) for name, found in curves.items()},
        classes=[table for test in results.tests if (table := _classes(run, results, test))],
        gallery=build_gallery(experiment, run, searched),
        origins=_origins(experiment, searched, accounts.embedder) | dict(provenance),
    )
    # Names of files and samples need not be UTF-8; the page is.
    return text.encode("utf-8", "replace").decode()


def _curves(run: Layout, results: Results, searched: Searched) -> dict[str, list[Curve]]:
    """Accuracy by similarity of the models of interest, for each test set."""
    return {
        name: [
            Curve(role, split, tuple(bin_scores(nearest, correct, bin_width(nearest))))
            for role, split in results.of_interest(name).items()
            for nearest in [queries.pool.similarity]
            for correct in [correctness(run, split, results.seeds, name, queries.keys)]
        ]
        for name, queries in searched.queries.items()
        if results.evaluated
    }


def _classes(run: Layout, results: Results, test: str) -> ClassTable | None:
    """Classes of a test set by what pruning for it costs them, if there is what to compare."""
    split = results.pruned_for(test)
    baseline = None if split is None else results.baseline(split)
    if split is None or baseline is None or not results.evaluated:
        return None
    rows = class_changes(run, split, baseline, results.seeds, test)
    losses = [row for row in rows if row.change < 0]
    gains = [row for row in reversed(rows) if row.change > 0]
    return ClassTable(test, split, baseline, losses[:_CLASSES], gains[:_CLASSES])


def _origins(
    experiment: Experiment, searched: Searched, embedder: Mapping[str, object]
) -> dict[str, object]:
    """How the numbers were made, as far as the artefacts and the experiment say it."""
    training = experiment.training
    assert training is not None  # a study without it ends at the masks
    return {
        "Embedder": f"{embedder['model']}, weights {embedder['pretrained']}",
        "Precision of embeddings": str(embedder["precision"]),
        "Preprocessing": str(embedder["preprocessing"]),
        "Similarity computed by": list(searched.backends),
        "Pairs re-checked exactly": words.count(searched.rechecked),
        "Trained model": training.model,
        "Epochs": training.epochs,
        "Samples per epoch": training.samples_per_epoch or "all of the split",
        "Batch size per process": training.batch_size,
        "Training options": dict(training.options),
        "Seeds": ", ".join(map(str, training.seeds)),
        "Caption templates": experiment.evaluation.templates,
    }


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
    }
    environment.globals.update(constants)
    return environment
