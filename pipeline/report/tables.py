"""The data of the page's tables as CSV; the figures bring their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.report.accuracy_figures import ESTIMATE, estimate_cells
from pipeline.report.origins import COLUMNS, Origins
from pipeline.report.recorded import Overlaps, Probe, Retrieval
from pipeline.report.results import Models, Results
from pipeline.report.svg import Value, as_csv

ACCURACY = ("split", "test", "compared_with", *ESTIMATE)
_OVERLAPS = ("within", "rows", "test", "other_test", "images_near_to_both")
_PROBES = ("split", "test", "method", "accuracy", "lowest_seed", "highest_seed")
_RETRIEVAL = ("split", "data", "direction", "rank", "recall", "lowest_seed", "highest_seed")

Rows = Iterator[tuple[Value, ...]]


def accuracy_rows(results: Results, models: Models) -> Rows:
    """Every accuracy, and every difference to the full split and to the control."""
    for name, split in results.splits.items():
        for test in split.scores:
            others = dict.fromkeys((results.full_of(name), results.controls.get(name)))
            if accuracy := models.accuracy(name, test):
                yield (name, test, None, *estimate_cells(accuracy))
            for other in others:
                if difference := models.difference(name, other, test):
                    yield (name, test, other, *estimate_cells(difference))


def tables(
    *,
    results: Results,
    models: Models,
    probes: Sequence[Probe],
    retrievals: Sequence[Retrieval],
    overlaps: Sequence[Overlaps],
    origins: Origins,
) -> dict[str, bytes]:
    """File name -> CSV; none for a table that the page does not have."""
    rows = {
        "accuracy.csv": (ACCURACY, list(accuracy_rows(results, models))),
        "overlaps.csv": (_OVERLAPS, list(_overlap_rows(overlaps, results.tests))),
        "probes.csv": (_PROBES, list(_probe_rows(probes))),
        "retrieval.csv": (_RETRIEVAL, list(_retrieval_rows(retrievals))),
        "tasks.csv": (COLUMNS, list(origins.tasks)),
    }
    return {name: as_csv(*table).encode() for name, table in rows.items() if table[1]}


def _overlap_rows(found: Sequence[Overlaps], tests: Sequence[str]) -> Rows:
    for one in found:
        for place, test in enumerate(tests):
            for other in tests[place:]:
                yield (one.within, one.rows, test, other, one.of(test, other))


def _probe_rows(found: Sequence[Probe]) -> Rows:
    for one in found:
        for method, score in (("linear probe", one.linear), (f"{one.k}-NN", one.neighbours)):
            if score is not None:
                yield (one.split, one.test, method, score.mean, score.low, score.high)


def _retrieval_rows(found: Sequence[Retrieval]) -> Rows:
    for one in found:
        for (direction, rank), score in one.recalls.items():
            yield (one.split, one.name, direction, rank, score.mean, score.low, score.high)
