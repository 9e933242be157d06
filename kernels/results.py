"""What a scan says, and what it took.

Shapes: N pool rows, M queries, D dimensions, S test sets, K neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from kernels.exact import Floats, Ints


@dataclass(frozen=True)
class PoolScan:
    """What is said of each pool row."""

    near_NS: npt.NDArray[np.bool_]
    """Some query j of set s has similarity(x_i, q_j) > threshold_j, strictly."""
    best_similarity_NS: Floats
    """The largest similarity to a query of set s."""
    best_query_NS: Ints
    """The query that has it, counted over all M queries; of equal ones the lowest."""


@dataclass(frozen=True)
class QueryScan:
    """What is said of each query."""

    above_threshold_M: Ints
    """How many pool rows are above the query's threshold."""
    neighbour_similarity_MK: Floats
    """Similarity of the K nearest pool rows, falling; -inf where there are fewer than K."""
    neighbour_row_MK: Ints
    """Their rows, counted over the whole pool; of equal ones the lowest; -1 where there is none."""


@dataclass(frozen=True)
class Duplicates:
    """Which rows are above a threshold to a row before them."""

    earlier_N: Ints
    """The lowest row before it whose similarity to it is above, strictly; -1 if there is none."""
    similarity_N: Floats
    """Their similarity; -inf if there is none."""


@dataclass(frozen=True)
class Effort:
    """What a scan took. The four shares are summed over the threads that worked beside each other.

    It depends on the machine and on chance; no result does.
    """

    rows: int = 0
    """N."""
    flop: int = 0
    """2 N M D: what the similarities alone cost."""
    seconds: float = 0.0
    """Wall time."""
    reading: float = 0.0
    """Seconds until pool rows were in memory."""
    copying: float = 0.0
    """Seconds to and from the device."""
    multiplying: float = 0.0
    """Seconds in the product of pool rows and queries, with its group maxima."""
    deciding: float = 0.0
    """Seconds in everything after it: which pairs matter, and their exact similarity."""
    opened: int = 0
    """Pairs of a row and a group of queries that were looked into."""
    rechecked: int = 0
    """Pairs of a row and a query that were compared again in float64."""
    epsilon: float = 0.0
    """The proven bound on the error of the similarities that were not compared again."""

    def __add__(self, other: Effort) -> Effort:
        summed = {
            field.name: getattr(self, field.name) + getattr(other, field.name)
            for field in fields(self)
        }
        return replace(Effort(**summed), epsilon=max(self.epsilon, other.epsilon))

    @property
    def rows_per_second(self) -> float:
        """Pool rows in a second of wall time."""
        return self.rows / max(self.seconds, 1e-9)

    @property
    def tflops(self) -> float:
        """10^12 useful floating-point operations in a second of wall time."""
        return self.flop / max(self.seconds, 1e-9) / 1e12

    @property
    def bound_by(self) -> str:
        """The largest share: "reading", "copying", "multiplying" or "deciding"."""
        shares = ("reading", "copying", "multiplying", "deciding")
        return max(shares, key=lambda share: float(getattr(self, share)))

    def __str__(self) -> str:
        total = max(self.reading + self.copying + self.multiplying + self.deciding, 1e-9)
        return (
            f"{self.rows_per_second:,.0f} rows/s, {self.tflops:.3g} TFLOP/s, bound by "
            f"{self.bound_by} (reading {self.reading / total:.0%}, copying "
            f"{self.copying / total:.0%}, multiplying {self.multiplying / total:.0%}, "
            f"deciding {self.deciding / total:.0%})"
        )


@dataclass(frozen=True)
class Scan(PoolScan, QueryScan):
    """What one pass over a pool says of its rows and of the queries."""

    backend: str
    """What computed it: a name of `kernels.BACKENDS`."""
    effort: Effort
