"""Every figure of the page that there are data for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.evaluation.baselines import read_baselines
from pipeline.experiment.sections import Experiment
from pipeline.layout import Layout
from pipeline.report.accuracy_figures import (
    Curve,
    draw_by_similarity,
    draw_matrix,
    draw_pruning,
    draw_robustness,
)
from pipeline.report.comparisons import matrix, pruning_curves, robustness
from pipeline.report.recorded import Probe, by_test, training_curves
from pipeline.report.results import Models, Results
from pipeline.report.similarity import Searched
from pipeline.report.similarity_figures import (
    draw_against,
    draw_density,
    draw_similarities,
    similarity_range,
)
from pipeline.report.statistics import bin_scores, bin_width
from pipeline.report.svg import Plot
from pipeline.report.training_figures import draw_few_shot, draw_training

Drawn = Mapping[str, list[Plot]]
"""The figures of each kind; none where there are no data."""


def draw_all(
    experiment: Experiment,
    run: Layout,
    results: Results,
    models: Models,
    searched: Searched,
    probed: Sequence[Probe],
) -> Drawn:
    """Draw what there is.

    Raises:
        OutputError: something can't be read.
        OSError: the file of baseline models can't be read.
        ValueError: it is not as it should be.
    """
    limits = similarity_range(searched.queries)
    rows = matrix(results, models)
    curves = training_curves(run, results)
    queries = searched.queries.values()
    return {
        "pruning": [draw_pruning(one) for one in pruning_curves(results, models)],
        "matrix": [draw_matrix(rows, results.tests)] if rows else [],
        "robustness": _robustness(experiment, results, models),
        "by_similarity": _by_similarity(results, models, searched),
        "similarity": [draw_similarities(one, limits) for one in queries],
        "against": [draw_against(one) for one in queries],
        "density": [draw_density(one) for one in queries],
        "few_shot": _few_shot(results, probed),
        "training": [draw_training(curves)] if curves else [],
    }


def _by_similarity(results: Results, models: Models, searched: Searched) -> list[Plot]:
    """Accuracy by similarity of the models of interest, for each test set."""
    plots = []
    for name, queries in searched.queries.items():
        nearest = queries.pool.similarity
        width = bin_width(nearest)
        curves = [
            Curve(role, split, tuple(bin_scores(nearest, models.correct(split, name), width)))
            for role, split in results.of_interest(name).items()
        ]
        if any(curve.bins for curve in curves):
            plots.append(draw_by_similarity(name, curves))
    return plots


def _robustness(experiment: Experiment, results: Results, models: Models) -> list[Plot]:
    path = experiment.report.baselines
    given = read_baselines(path) if path else {}
    found = robustness(results, models, experiment.standard_test, given)
    return [draw_robustness(one, _roles(results)) for one in found]


def _roles(results: Results) -> dict[str, str]:
    """What each split's mark looks like."""
    roles = {}
    for name in results.splits:
        kind = results.roles.rules[name].kind
        is_pruned = bool(results.splits[name].near) or kind in ("near", "far")
        roles[name] = "control" if kind == "random" else "full"
        if is_pruned:
            roles[name] = "far" if kind == "far" else "near"
    return roles


def _few_shot(results: Results, probed: Sequence[Probe]) -> list[Plot]:
    return [
        draw_few_shot(
            test,
            found,
            {name: split.scores[test] for name, split in results.splits.items()
             if test in split.scores},
        )
        for test, found in by_test(probed)
    ]  # fmt: skip
