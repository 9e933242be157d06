"""What was read, what was used, and what was skipped for which reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline import artifacts
from pipeline.artifacts import Artifact
from pipeline.layout import POOL, REFERENCE, Layout
from pipeline.report.results import Results, read_evaluation

LISTED = 500
"""Skipped samples, and faults, that the page lists of each set."""


@dataclass
class Account:
    """What became of the images of one set."""

    name: str
    where: str
    """Which files have the whole list of what was skipped."""
    sources: int = 0
    """Tars or folders."""
    read: int = 0
    used: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    """By reason."""
    listed: list[tuple[str, str]] = field(default_factory=list)
    """Key and reason of the first LISTED of the skipped."""
    faulty: int = 0
    faults: list[str] = field(default_factory=list)
    """The first LISTED faults of tars."""

    @property
    def skipped_total(self) -> int:
        """How many were skipped, for whatever reason."""
        return self.skipped.total()

    @property
    def balanced(self) -> bool:
        """Whether what was read was either used or skipped."""
        return self.read == self.used + self.skipped_total

    def skip(self, found: Artifact) -> None:
        """Add the skipped samples of a file."""
        reasons, counts = np.unique(found["skipped_reason"], return_counts=True)
        for reason, count in zip(reasons.tolist(), counts.tolist(), strict=True):
            self.skipped[reason.decode()] += count
        room = LISTED - len(self.listed)
        keys, whys = (found.text(name, slice(room)) for name in ("skipped_key", "skipped_reason"))
        self.listed += zip(keys, whys, strict=True)


@dataclass(frozen=True)
class Accounts:
    """All sets of a run, and the embedder that its embeddings files name."""

    sets: tuple[Account, ...]
    embedder: dict[str, object]


def read_accounts(run: Layout, results: Results, reference_files: Iterable[Path]) -> Accounts:
    """Add up the embeddings files of every set, and the evaluations.

    Only attributes and lists of skipped samples are read, one file at a time.

    Raises:
        OutputError: a file is missing or can't be read.
    """
    pool = (run.embeddings(POOL, index) for index in range(results.pool_files))
    first = artifacts.read(run.embeddings(POOL, 0), artifacts.EMBEDDINGS).attributes
    embedder = {name: first[name] for name in ("model", "pretrained", "precision", "preprocessing")}
    sets = [_embedded(run, POOL, pool), _embedded(run, REFERENCE, reference_files)]
    for test in results.tests:
        sets.append(_embedded(run, test, [run.embeddings(test, 0)]))
        sets.extend(_evaluated(run, results, test))
    return Accounts(tuple(sets), embedder)


def _embedded(run: Layout, name: str, paths: Iterable[Path]) -> Account:
    folder = run.embeddings(name, 0).parent.relative_to(run.run)
    account = Account(name, f"{folder}/*.h5")
    for path in paths:
        found = artifacts.read(path, artifacts.EMBEDDINGS)
        account.sources += len(found.attributes["sources"])
        account.read += int(found.attributes["read"])
        account.used += len(found["key"])
        account.skip(found)
        faults = found.attributes["faults"]
        account.faulty += len(faults)
        account.faults += faults[: LISTED - len(account.faults)]
    return account


def _evaluated(run: Layout, results: Results, test: str) -> Iterator[Account]:
    """The evaluations of a test set; one account as long as they agree, as they should."""
    seen: set[tuple[int, int, tuple[str, ...]]] = set()
    for split in (one for one in results.splits.values() if one.scores):
        for seed in split.seeds.get(test, ()):
            found = read_evaluation(run, split.name, seed, test)
            read, used = int(found.attributes["read"]), len(found["key"])
            outcome = (read, used, tuple(found.text("skipped_key")))
            if outcome in seen:
                continue
            seen.add(outcome)
            where = str(found.path.relative_to(run.run))
            account = Account(f"{test}, evaluated", where, 1, read, used)
            account.skip(found)
            yield account
