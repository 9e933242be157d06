"""The section of a split: which pool images a model is trained on, one of several definitions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from pipeline.experiment.fields import Positive, Section, Seed

CAPTION = "a photo of a {}"
"""What the reference's images are captioned with, `{}` being the name of their class."""

Tests = Annotated[list[str], Field(min_length=1)]
Operands = Annotated[list[str], Field(min_length=2)]


class RankCut(Section):
    """So many images from one end of the order by similarity to the test sets."""

    tests: Tests
    """Ranked by the largest similarity to an image of any of them."""
    keep: Positive


class Random(Section):
    """A uniform sample; its size is either that of another split or a number."""

    like: str | None = None
    keep: Positive | None = None
    seed: Seed = 0

    @model_validator(mode="after")
    def _one_size(self) -> Random:
        if (self.like is None) == (self.keep is None):
            raise ValueError("expected exactly one of: like, keep")
        return self


class Expect(Section):
    """What is known of a split before its mask is made: for `--dry-run`."""

    kept: Positive
    """Images of the pool."""


def _near_form(value: Any) -> str:
    return "cut" if isinstance(value, (dict, RankCut)) else "sets"


Near = Annotated[
    Annotated[Tests, Tag("sets")] | Annotated[RankCut, Tag("cut")], Discriminator(_near_form)
]

DEFINITIONS = (
    "all",
    "near",
    "far",
    "random",
    "union",
    "intersection",
    "difference",
    "complement",
    "deduplicated",
)


class Split(Section):
    """Which pool images a model is trained on: exactly one definition, and what may stand by it."""

    all: Literal[True] | None = None
    """Every usable image."""
    near: Near | None = None
    """Every image that is near to no image of these test sets; or the `keep` least similar."""
    far: RankCut | None = None
    """The most similar images."""
    random: Random | None = None
    union: Operands | None = None
    intersection: Operands | None = None
    difference: Operands | None = None
    """The first split without the others."""
    complement: str | None = None
    deduplicated: Literal[True] | None = None
    """Every image that duplicates no earlier one."""
    base: str | None = None
    """The split within which this one is taken; the pool if not given."""
    plus_reference: bool | str = False
    """Train on the reference's images, too; a text is the template of their captions."""
    expect: Expect | None = None

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return {"all": True} if value == "all" else value

    @model_validator(mode="after")
    def _exactly_one(self) -> Split:
        if sum(getattr(self, key) is not None for key in DEFINITIONS) != 1:
            raise ValueError(f"expected exactly one of: {', '.join(DEFINITIONS)}")
        return self

    @property
    def pruned_for(self) -> tuple[str, ...]:
        """The test sets whose near images are removed; empty for every other definition."""
        return tuple(self.near) if isinstance(self.near, list) else ()

    @property
    def cut(self) -> RankCut | None:
        """The ranking of `near` or `far` to a number of images."""
        return self.near if isinstance(self.near, RankCut) else self.far

    @property
    def caption(self) -> str | None:
        """The template of the reference's captions if the reference is trained on, too."""
        if isinstance(self.plus_reference, bool):
            return CAPTION if self.plus_reference else None
        return self.plus_reference

    @property
    def named_tests(self) -> dict[tuple[str | int, ...], str]:
        """Test sets of the definition, by their place in the section."""
        if self.cut:
            end = "far" if self.far else "near"
            return {(end, "tests", index): test for index, test in enumerate(self.cut.tests)}
        return {("near", index): test for index, test in enumerate(self.pruned_for)}

    @property
    def named_splits(self) -> dict[tuple[str | int, ...], str]:
        """Other splits that this one is made from, by their place in the section."""
        named: dict[tuple[str | int, ...], str | None] = {
            ("random", "like"): self.random.like if self.random else None,
            ("complement",): self.complement,
            ("base",): self.base,
        }
        for key in ("union", "intersection", "difference"):
            named |= {(key, place): one for place, one in enumerate(getattr(self, key) or [])}
        return {where: name for where, name in named.items() if name is not None}
