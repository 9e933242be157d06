"""Amounts that may be known only in part: they say which keys would tell the rest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Amount:
    """A number of images, bytes, seconds, ... as far as it is known.

    What depends on something unknown counts as 0 and names it, so that a sum says at least how much
    it is.
    """

    value: float
    missing: frozenset[str] = frozenset()
    """Keys of the experiment or of the profile that would tell what is unknown."""
    at_most: bool = False
    """Whether it may be less: a split keeps at most what it is taken from."""

    def __add__(self, other: Amount) -> Amount:
        return self._with(self.value + other.value, other)

    def __mul__(self, other: Amount | float) -> Amount:
        if isinstance(other, Amount):
            return self._with(self.value * other.value, other)
        return Amount(self.value * other, self.missing, self.at_most)

    def __truediv__(self, other: float) -> Amount:
        return Amount(self.value / other, self.missing, self.at_most)

    def _with(self, value: float, other: Amount) -> Amount:
        return Amount(value, self.missing | other.missing, self.at_most or other.at_most)

    def told(self, words: str) -> str:
        """What to say of it: `words`, the value written out, or that it is no more than a bound."""
        if not self.missing:
            return f"up to {words}" if self.at_most and self.value else words
        if not self.value:
            return "unknown"
        return f"about {words}" if self.at_most else f"over {words}"


NOTHING = Amount(0)


def unknown(key: str) -> Amount:
    """What would be known if a key were set."""
    return Amount(0, frozenset({key}))


def known(value: float | None, key: str) -> Amount:
    """A value, or what would be known if a key were set."""
    return unknown(key) if value is None else Amount(value)


def total(amounts: Iterable[Amount]) -> Amount:
    """The sum."""
    value, missing, at_most = 0.0, set[str](), False
    for one in amounts:
        value += one.value
        missing |= one.missing
        at_most |= one.at_most
    return Amount(value, frozenset(missing), at_most)


def largest(amounts: Iterable[Amount]) -> Amount:
    """The largest value; unknown ones may be larger still."""
    listed = list(amounts)
    most = max(listed, key=lambda one: (one.value, one.at_most), default=NOTHING)
    return Amount(most.value, total(listed).missing, most.at_most)
