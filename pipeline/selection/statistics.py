"""What a split keeps of the images that are near to the test sets.

Letters in shapes: n rows of a file, m queries (test images) of one test set, S test sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from pipeline.artifacts import Array
from pipeline.selection.rows import Rows, Selection

_BLOCK_ROWS = 1 << 16


def split_statistics(selection: Selection, name: str, tests: Sequence[str]) -> dict[str, Any]:
    """Count in one pass over the pool.

    Args:
        selection: all splits over the pool.
        name: the split.
        tests: all test sets, whether the split has to do with them or not.

    Returns:
        JSON values: `rows` of the pool, of them `base` within which the split is taken, of them
        `kept`. Of the base's rows: `near` to each test set, near to `any`, to `all`, to both of
        each two (`overlaps`, by `"a & b"`). `kept_near`: of the kept rows, near to each test set.
    """
    kept, base = selection.rows(name), selection.base(name)

    def of_file(file: int) -> tuple[Array, int, int]:
        return _count(selection, file, tests, kept, base)

    counts = list(selection.run(of_file, range(len(selection.files))))
    size = len(tests)
    both = sum((one for one, _, _ in counts), np.zeros((size + 2, size + 2), dtype=np.int64))
    return {
        "rows": sum(file.rows for file in selection.files),
        "base": int(both[size, size]),
        "kept": int(both[size + 1, size + 1]),
        "near": {test: int(both[place, place]) for place, test in enumerate(tests)},
        "kept_near": {test: int(both[place, size + 1]) for place, test in enumerate(tests)},
        "overlaps": {
            f"{tests[i]} & {tests[j]}": int(both[i, j]) for i, j in combinations(range(size), 2)
        },
        "all": sum(all_of for _, all_of, _ in counts),
        "any": sum(any_of for _, _, any_of in counts),
    }


def _count(
    selection: Selection, file: int, tests: Sequence[str], kept: Rows, base: Rows
) -> tuple[Array, int, int]:
    """Of a file's base rows: how many are in both of each two columns, near to all, near to any.

    Columns are the test sets, the base, and what is kept of it.
    """
    columns = [*selection.files[file].near(tests), base(file), kept(file)]
    size, near_all, near_any = len(tests), 0, 0
    both = np.zeros((size + 2, size + 2))
    for start in range(0, len(columns[-1]), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        flags = np.stack([column[block] for column in columns])
        flags &= columns[size][block]
        number = flags.astype(np.float32)  # sums stay below 2^24, so they are exact
        both += number @ number.T
        sets = number[:size].sum(axis=0)
        near_all += int(np.count_nonzero(flags[size] & (sets == size)))
        near_any += int(np.count_nonzero(sets))
    return both.astype(np.int64), near_all, near_any


def per_query(near_pool_images: Mapping[str, Array]) -> dict[str, Any]:
    """How many test images have how many pool images above their threshold.

    Args:
        near_pool_images: for each test set, (m,) pool images above each test image's threshold,
            whatever the split.

    Returns:
        For each test set: `queries[i]` of its images have at least `edges[i]` and fewer than
        `edges[i + 1]` pool images. The edges are 0, 1, 2, 5, 10, 20, 50, ...
    """
    largest = max((int(counts.max(initial=0)) for counts in near_pool_images.values()), default=0)
    edges = [0]
    while edges[-1] <= largest:
        power, place = divmod(len(edges) - 1, 3)
        edges.append((1, 2, 5)[place] * 10**power)
    return {
        test: {"edges": edges, "queries": np.histogram(counts, bins=edges)[0].tolist()}
        for test, counts in near_pool_images.items()
    }
