"""In which tar of the pool the row of a precomputed embedding is.

Three ways, in this order; each refuses what it can't be sure of, because keys may begin anew in
each tar, and a row that is taken for one of another tar would go unnoticed:

column      the metadata name each row's tar
prefix      keys begin with their tar's number, as img2dataset writes them (000120007 in 00012.tar).
            The first keys of tars show whether it is so, also of tars without rows here.
first keys  keys rise from tar to tar, so that a row is in the last tar that begins before it
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from hpc.words import nearest
from pipeline.data.patterns import natural_order
from pipeline.data.tars import first_key

_DIGITS = re.compile(r"[0-9]+")


@dataclass(frozen=True)
class Match:
    """The tar of each row."""

    tars: list[int]
    """For each row: position in the pool's tars."""
    by: str
    """`column`, `key prefix` or `first keys`."""


class NoMatchError(ValueError):
    """Keys don't tell the tars; the message says why."""


def match_rows(
    keys: Sequence[str], named: Sequence[Any] | None, tars: Sequence[Path], witnesses: range
) -> Match:
    """Find the tar of each row.

    Args:
        keys: of the rows.
        named: each row's tar by name or number, if the metadata have it.
        tars: all of the pool, in natural order.
        witnesses: tars whose first key is looked at, to see what keys are like, besides those
            that rows fall into. If files of one pool share out the tars, each is seen once.

    Raises:
        NoMatchError: a row has no tar, or keys don't tell the tars.
    """
    if named is not None:
        return Match(_by_column(named, tars), "column")
    try:
        return Match(_by_prefix(keys, tars, witnesses), "key prefix")
    except NoMatchError as error:
        no_prefix = error
    try:
        return Match(_by_first_keys(keys, tars), "first keys")
    except NoMatchError as error:
        raise NoMatchError(
            f"rows can't be matched to tars by the prefix of their keys ({no_prefix}), nor by the "
            f"tars' first keys ({error}); give the column that names each row's tar: "
            "pool.embeddings.shard"
        ) from error


def _by_column(named: Sequence[Any], tars: Sequence[Path]) -> list[int]:
    places: dict[str | int, int] = {}
    for place, tar in enumerate(tars):
        names: list[str | int] = [tar.name, _stem(tar)]
        names += [int(_stem(tar))] if _DIGITS.fullmatch(_stem(tar)) else []
        for name in names:
            if places.setdefault(name, place) != place:
                other = tars[places[name]]
                raise NoMatchError(f"{tar} and {other} have the same name: rows can't tell them")
    found = []
    for row, value in enumerate(named):
        name = value if isinstance(value, int) else Path(str(value)).name
        if name not in places:
            known = [place for place in places if isinstance(place, str)]
            raise NoMatchError(
                f"row {row}: no tar {value!r} in the pool; {_near(str(name), known)}"
            )
        found.append(places[name])
    return found


def _near(name: str, known: list[str]) -> str:
    """The nearest name, or some of them: there may be tens of thousands."""
    told = nearest(name, known)
    return told if told.startswith("did") else f"known: {', '.join(known[:3])}, ..."


def _stem(tar: Path) -> str:
    return tar.name.partition(".")[0]


def _by_prefix(keys: Sequence[str], tars: Sequence[Path], witnesses: range) -> list[int]:
    places = {_stem(tar): place for place, tar in enumerate(tars)}
    if len(places) < len(tars):
        raise NoMatchError("two tars have the same name")
    lengths = {len(stem) for stem in places if _DIGITS.fullmatch(stem)}
    if len(lengths) != 1 or not all(map(_DIGITS.fullmatch, places)):
        raise NoMatchError(f"{tars[0].name} to {tars[-1].name} are not numbers of one length")
    (length,) = lengths
    found = [places.get(_prefix(key, length), -1) for key in keys]
    if -1 in found:
        row = found.index(-1)
        raise NoMatchError(f"the key {keys[row]!r} of row {row} begins with no tar's number")
    for place in sorted({*found, *witnesses}):
        key = first_key(tars[place])
        if key is not None and places.get(_prefix(key, length)) != place:
            raise NoMatchError(f"{tars[place].name} begins with the key {key!r}")
    return found


def _prefix(key: str, length: int) -> str:
    """The number that a key begins with, if it goes on with digits; else nothing."""
    name = key.rpartition("/")[2]
    return name[:length] if len(name) > length and _DIGITS.fullmatch(name) else ""


def _by_first_keys(keys: Sequence[str], tars: Sequence[Path]) -> list[int]:
    firsts = [(place, key) for place, tar in enumerate(tars) if (key := first_key(tar)) is not None]
    if not firsts:
        raise NoMatchError("no tar has a sample")
    order = [natural_order(key) for _, key in firsts]
    for index, (before, after) in enumerate(pairwise(order)):
        if not _rises(before, after):
            (a, first), (b, second) = firsts[index], firsts[index + 1]
            raise NoMatchError(
                f"{tars[a].name} begins with {first!r} and {tars[b].name} with {second!r}: they "
                "don't rise"
            )
    found = []
    for row, key in enumerate(keys):
        index = bisect.bisect_right(order, natural_order(key)) - 1
        if index < 0:
            raise NoMatchError(
                f"the key {key!r} of row {row} is before the first, {firsts[0][1]!r}"
            )
        found.append(firsts[index][0])
    return found


def _rises(before: Any, after: Any) -> bool:
    return bool(before[0] < after[0])
