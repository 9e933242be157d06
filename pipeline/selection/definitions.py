"""What a split is: as data that decides its digest, in words for people, and what it depends on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hpc.words import count
from pipeline.experiment.splits import Split

Splits = Mapping[str, Split]


def tests_of(splits: Splits, name: str) -> list[str]:
    """The test sets that a split depends on."""
    return list(
        dict.fromkeys(test for one in _family(splits, name) for test in one.named_tests.values())
    )


def needs_duplicates(splits: Splits, name: str) -> bool:
    """Whether a split depends on the pool's duplicates."""
    return any(split.deduplicated for split in _family(splits, name))


def _family(splits: Splits, name: str) -> Iterator[Split]:
    """A split, and those that it is made from."""
    yield splits[name]
    for other in dict.fromkeys(splits[name].named_splits.values()):
        yield from _family(splits, other)


def definition(splits: Splits, name: str) -> dict[str, Any]:
    """What a split is, with the splits that it names written out.

    Names of splits don't matter, nor does an order without meaning. That the reference is trained
    on, too, belongs to the split but not to those made from it, which take pool images only.
    """
    caption = splits[name].caption
    return {**pool_images(splits, name), **({"plus_reference": caption} if caption else {})}


def pool_images(splits: Splits, name: str) -> dict[str, Any]:
    """Which images of the pool a split is, with the splits that it names written out."""
    split = splits[name]
    within = {"base": pool_images(splits, split.base)} if split.base else {}
    return {**_what(splits, split), **within}


def _what(splits: Splits, split: Split) -> dict[str, Any]:
    if split.pruned_for:
        return {"near": sorted(set(split.pruned_for))}
    if split.cut:
        cut = {"tests": sorted(set(split.cut.tests)), "keep": split.cut.keep}
        return {"far" if split.far else "near": cut}
    if split.random:
        like, keep = split.random.like, split.random.keep
        size = {"keep": keep} if like is None else {"like": pool_images(splits, like)}
        return {"random": {**size, "seed": split.random.seed}}
    if split.complement:
        return {"complement": pool_images(splits, split.complement)}
    if split.difference:
        return {
            "difference": [
                pool_images(splits, split.difference[0]),
                _unordered(splits, split.difference[1:]),
            ]
        }
    if split.union:
        return {"union": _unordered(splits, split.union)}
    if split.intersection:
        return {"intersection": _unordered(splits, split.intersection)}
    return {"deduplicated": True} if split.deduplicated else {"all": True}


def _unordered(splits: Splits, names: Iterable[str]) -> list[dict[str, Any]]:
    written = {json.dumps(pool_images(splits, name), sort_keys=True) for name in names}
    return [json.loads(one) for one in sorted(written)]


def in_words(splits: Splits, name: str) -> str:
    """A split's definition for people."""
    split = splits[name]
    within = f", within {split.base}" if split.base else ""
    plus = ", plus the reference's images" if split.caption else ""
    return _words(split) + within + plus


def _words(split: Split) -> str:
    if split.pruned_for:
        return f"without images that are near to an image of {', '.join(split.pruned_for)}"
    if split.cut:
        end = "most" if split.far else "least"
        images = count(split.cut.keep, "image")
        return f"the {images} {end} similar to an image of {', '.join(split.cut.tests)}"
    if split.random:
        like, keep, seed = split.random.like, split.random.keep, split.random.seed
        if keep is not None:
            return f"{count(keep, 'random image')} (seed {seed})"
        return f"random images, as many as in {like} (seed {seed})"
    if split.complement:
        return f"images that are not in {split.complement}"
    if split.difference:
        return (
            f"images of {split.difference[0]} that are not in {' or '.join(split.difference[1:])}"
        )
    if split.union:
        return f"images that are in {' or '.join(split.union)}"
    if split.intersection:
        return f"images that are in {' and '.join(split.intersection)}"
    if split.deduplicated:
        return "images that duplicate no earlier one"
    return "every usable image of the pool"
