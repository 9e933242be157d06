"""The files that patterns of an experiment name: paths, globs, brace expressions."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

_DIGITS = re.compile("([0-9]+)")


def natural_order(name: str) -> tuple[list[str | int], str]:
    """Sorts numbers within names as numbers: 2.tar before 10.tar."""
    parts: list[str | int] = list(_DIGITS.split(name))
    parts[1::2] = map(int, parts[1::2])
    return parts, name


def expand_shards(patterns: str | list[str]) -> list[Path]:
    """Find the tars that patterns name; as `expand_files`, which has the errors."""
    return expand_files(patterns, "shard")


def expand_files(patterns: str | list[str], noun: str) -> list[Path]:
    """Find the files that patterns name.

    A pattern is a path, a glob (`*`, `?`, `[..]`), a brace expression (`{00000..00011}`,
    `{a,b}`), or both. A path that exists is taken as it is, whatever characters it has. `noun`
    is what errors call them.

    Returns:
        Each path once, in natural order: 2.tar before 10.tar.

    Raises:
        FileNotFoundError: if a pattern, or one of the paths in its braces, matches nothing.
        ValueError: if the braces of a pattern are not balanced.
    """
    listings: dict[str, frozenset[str]] = {}  # strings here: a Path costs as much as a stat
    names = [
        name
        for pattern in ([patterns] if isinstance(patterns, str) else patterns)
        for name in _matches(pattern, listings, noun)
    ]
    return list(dict.fromkeys(map(Path, sorted(names, key=natural_order))))


def _matches(pattern: str, listings: dict[str, frozenset[str]], noun: str) -> Iterator[str]:
    from glob import glob

    from braceexpand import braceexpand

    if _exists(pattern, listings):
        yield pattern
        return
    for name in braceexpand(pattern):
        matches = [name] if _exists(name, listings) else glob(name)
        if not matches:
            part = "" if name == pattern else f" (part of {pattern!r})"
            raise FileNotFoundError(f"no {noun} matches {name!r}{part}")
        yield from matches


def _exists(path: str, listings: dict[str, frozenset[str]]) -> bool:
    """Like os.path.exists, but one listing per folder: metadata servers hate 41,408 stats."""
    folder, name = os.path.split(path)
    if folder not in listings:
        try:
            listings[folder] = frozenset(os.listdir(folder or "."))
        except (FileNotFoundError, NotADirectoryError):
            listings[folder] = frozenset()
    return name in listings[folder]


def declared_shards(patterns: str | list[str], shards: int) -> list[Path]:
    """The tars of a pool that is not there.

    Args:
        patterns: as in the experiment.
        shards: how many there are declared to be.

    Returns:
        What the patterns spell out, or made-up names where they have `*` and the like.

    Raises:
        ValueError: the patterns spell out another number, or their braces are not balanced.
    """
    from glob import has_magic

    from braceexpand import braceexpand

    listed = [patterns] if isinstance(patterns, str) else patterns
    names = dict.fromkeys(name for pattern in listed for name in braceexpand(pattern))
    if len(names) == shards:
        return [Path(name) for name in names]
    if not any(map(has_magic, names)):
        raise ValueError(f"names {len(names):,} tars, but pool.size.shards is {shards:,}")
    return [Path(f"planned/{number:05d}.tar") for number in range(shards)]
