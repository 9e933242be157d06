"""Which split is pruned for what, and which split it is to be compared with.

A comparison is fair only between splits that are taken within the same base and that both have the
reference's images beside the pool's, or both have not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.experiment.splits import DEFINITIONS, Split


@dataclass(frozen=True)
class Rule:
    """A split's definition, as far as the report looks at it."""

    kind: str
    """Its key: `near`, `random`, ..."""
    tests: tuple[str, ...] = ()
    """Test sets that it names itself."""
    keep: int | None = None
    """Images to keep, where the definition says so."""
    members: tuple[str, ...] = ()
    """Splits that it is a set operation of."""
    like: str | None = None
    """The split that a random one is as large as."""
    base: str | None = None
    """The split that it is taken within."""
    caption: str | None = None
    """Caption template with which the reference's images are added, if they are."""


def rule_of(split: Split) -> Rule:
    """A split's definition; all forms of a key look the same."""
    cut, random = split.cut, split.random
    members = split.union or split.intersection or split.difference or []
    return Rule(
        next(key for key in DEFINITIONS if getattr(split, key) is not None),
        tuple(cut.tests) if cut else split.pruned_for,
        cut.keep if cut else random.keep if random else None,
        tuple(members),
        random.like if random else None,
        split.base,
        split.caption,
    )


@dataclass(frozen=True)
class Roles:
    """The splits of an experiment, and those that models are trained on."""

    rules: Mapping[str, Rule]
    """Of every split."""
    kept: Mapping[str, int]
    """Pool images of each split that models are trained on, in order."""

    def whole(self, name: str) -> str:
        """What a split is all of: the pool (""), what deduplication leaves, or itself."""
        rule = self.rules[name]
        if rule.kind == "all":
            return self.domain(name)
        # an experiment has one deduplication: all splits that are its result are the same
        return "deduplicated" if rule.kind == "deduplicated" and not rule.base else name

    def domain(self, name: str) -> str:
        """What a split is taken within, as `whole` names it."""
        base = self.rules[name].base
        return self.whole(base) if base else ""

    def full(self, name: str) -> str | None:
        """The trained split that holds all that this one is taken within."""
        domain, caption = self.domain(name), self.rules[name].caption
        fitting = (
            other
            for other in self.kept
            if self.whole(other) == domain
            and self.rules[other].caption == caption
            and other != name
        )
        return next(fitting, None)

    def control(self, name: str) -> str | None:
        """A trained uniform sample of the same size: one that is `like` this one comes first."""
        mine = self.rules[name]
        if mine.kind in ("random", "all", "deduplicated"):
            return None
        random = [
            other
            for other in self.kept
            if self.rules[other].kind == "random"
            and self.kept[other] == self.kept[name]
            and self.rules[other].caption == mine.caption
            and self.domain(other) == self.domain(name)
        ]
        like = (other for other in random if self.rules[other].like == name)
        return next(like, next(iter(random), None))

    def pruned_for(self, name: str) -> tuple[str, ...]:
        """Test sets whose near images (nearer than the threshold) this split is made without."""
        rule = self.rules[name]
        if rule.kind == "near" and rule.keep is None:
            return rule.tests
        if rule.kind == "intersection":
            return tuple(dict.fromkeys(t for one in rule.members for t in self.pruned_for(one)))
        return ()

    def main(self) -> str | None:
        """The split that the others are parts of: the pool, or what deduplication leaves of it."""
        whole = {name: self.whole(name) for name in self.kept if not self.rules[name].caption}
        pools = [name for name, what in whole.items() if what == ""]
        return next(iter(pools or [n for n, what in whole.items() if what == "deduplicated"]), None)
