"""Numbers as text, and the findings as sentences that are true whatever the numbers are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.report.uncertainty import Estimate, Interval, mean_estimate

if TYPE_CHECKING:
    from pipeline.report.results import Models, Results, SplitResult
    from pipeline.report.similarity import Queries

MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"
RHO = "\N{GREEK SMALL LETTER RHO}"
ABSENT = DASH


def percent(share: float) -> str:
    """A share in [0, 1] as a percentage without its sign: 0.355 -> 35.5."""
    return f"{100 * share:.1f}" if math.isfinite(share) else ABSENT


def points(change: float) -> str:
    """A change with its sign, as typeset: -48.5 -> −48.5; what rounds to zero has none."""
    text = f"{abs(change):.1f}"
    return text if text == "0.0" else ("+" if change > 0 else MINUS) + text


def interval(found: Interval) -> str:
    """An interval in points, as typeset: −52.2 to −14.9."""
    return f"{points(100 * found.low)} to {points(100 * found.high)}"


def direction(change: float) -> str:
    """`rise`, `fall` or `same`, as `points` shows it."""
    return {"+": "rise", MINUS: "fall"}.get(points(change)[0], "same")


def count(number: int) -> str:
    """A count with its thousands apart."""
    return f"{number:,}"


def short_count(count: int) -> str:
    """A count in at most four characters: 987, 1.2k, 45k, 3.1M."""
    for unit, size in (("M", 10**6), ("k", 10**3)):
        if count >= 0.9995 * size:
            value = count / size
            return f"{value:.1f}{unit}" if value < 9.95 else f"{value:.0f}{unit}"
    return str(count)


def cosine(similarity: float) -> str:
    """A similarity to three places."""
    return f"{similarity:.3f}" if math.isfinite(similarity) else ABSENT


def correlation(rho: float) -> str:
    """Spearman's rho with its sign, as typeset: -0.8 -> −0.80."""
    return f"{rho:.2f}".replace("-", MINUS)


def cell(value: str | int | float | None) -> str:
    """A cell of a table of numbers, to four digits."""
    if value is None or value == "":
        return ABSENT
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", MINUS) if math.isfinite(value) else ABSENT
    return count(value) if isinstance(value, int) else value


def enumerate_names(names: Sequence[str], last: str = "and") -> str:
    """`a`, `a and b`, `a, b and c`."""
    return f" {last} ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def provenance_lines(value: object) -> list[str]:
    """A text, number, list or mapping as lines."""
    if isinstance(value, Mapping):
        return [f"{name}: {item}" for name, item in value.items()]
    if isinstance(value, (list, tuple)):
        return [str(item) for item in value]
    return [str(value)]


def findings(results: Results, models: Models, queries: Mapping[str, Queries]) -> list[str]:
    """One sentence for each split that is pruned for test sets; without any, for each test set."""
    pruned = [split for split in results.splits.values() if _can_tell(split)]
    if not pruned:
        return [_gap(one) for one in queries.values()]
    return [_finding(results, models, queries, split) for split in pruned]


def _can_tell(split: SplitResult) -> bool:
    """Whether a split is pruned for test sets, and evaluated on them with the same seeds."""
    return bool(split.near) and len({split.seeds.get(test, ()) for test in split.near} - {()}) == 1


def about_seeds(seeds: int) -> str:
    """What the number of seeds allows to conclude."""
    if seeds == 1:
        return (
            "Each accuracy comes from a single training run (one seed). Intervals then tell only "
            "what other test images would change: the same training with another seed gives "
            "another number, and nothing here says how different."
        )
    return (
        f"Accuracies are means over {seeds} training runs (seeds). Intervals tell what other test "
        "images and other seeds would change."
    )


def no_difference(difference: Estimate) -> str:
    """What a difference leaves open whose interval contains 0."""
    return (
        f"no difference is shown: the interval, {interval(difference.interval)} points, contains "
        f"0; a difference of more than {percent(difference.excluded)} points can be excluded"
    )


def difference_size(difference: Estimate) -> str:
    """A difference without its sign: 3.4 points."""
    return f"{points(100 * abs(difference.value)).lstrip('+')} points"


def _gap(queries: Queries) -> str:
    return (
        f"For {percent(queries.nearer_in_pool)}% of the {count(len(queries))} images of "
        f"{queries.name}, the pool holds a nearer image than the reference does."
    )


def _finding(
    results: Results, models: Models, queries: Mapping[str, Queries], split: SplitResult
) -> str:
    without = (
        f"Without the {count(split.rows - split.kept)} pool images "
        f"({_share(split.rows - split.kept, split.rows)}) {_nearness(queries, split.near)}, "
    )
    average = "accuracy on" if len(split.near) == 1 else "mean accuracy over"
    subject = f"{average} {enumerate_names(split.near)}"
    mine = _over_tests(models.accuracy(split.name, test) for test in split.near)
    assert mine is not None, "it was evaluated on all of them"
    full, control = results.full_of(split.name), results.controls.get(split.name)
    return f"{without}{subject}{_change(models, split, full, mine)}" + _against_control(
        models, split, control, mine
    )


def _share(part: int, whole: int) -> str:
    return f"{percent(part / whole) if whole else ABSENT}%"


def _nearness(queries: Mapping[str, Queries], tests: Sequence[str]) -> str:
    name = enumerate_names(tests, "or")
    origins = {queries[test].threshold_from for test in tests}
    if origins == {"reference"}:
        return f"that are closer to an image of {name} than the reference is"
    if len(origins) == 1:
        return f"whose similarity to an image of {name} is above {origins.pop()}"
    return f"that are closer to an image of {name} than its threshold"


def _over_tests(estimates: Iterable[Estimate | None]) -> Estimate | None:
    """The mean over test sets, if all are there."""
    found = list(estimates)
    there = [one for one in found if one is not None]
    same_seeds = len({len(one.by_seed) for one in there}) == 1
    return mean_estimate(there) if len(there) == len(found) and same_seeds else None


def _between(
    models: Models, split: SplitResult, other: str | None
) -> tuple[Estimate, Estimate] | None:
    """The other split's accuracy, and how much better this one's is."""
    if other is None:
        return None
    theirs = _over_tests(models.accuracy(other, test) for test in split.near)
    more = _over_tests(models.difference(split.name, other, test) for test in split.near)
    return None if theirs is None or more is None else (theirs, more)


def _change(models: Models, split: SplitResult, full: str | None, mine: Estimate) -> str:
    found = _between(models, split, full)
    if found is None:
        return f" is {_said(mine)}"
    theirs, more = found
    how = {"rise": "rises", "fall": "falls", "same": "hardly changes"}[direction(100 * more.value)]
    by = "" if how == "hardly changes" else f" by {difference_size(more)}"
    if more.shows_nothing:
        how, by = "does not clearly change", f" (interval {interval(more.interval)} points)"
    return f" {how}{by}, from {_said(theirs)} to {_said(mine)}"


def _against_control(
    models: Models, split: SplitResult, control: str | None, mine: Estimate
) -> str:
    found = _between(models, split, control)
    if found is None:
        return "; no model was trained on a random sample of the same size to compare it with."
    theirs, more = found
    sentence = f"; a random sample of the same size gives {_said(theirs)}: "
    if more.shows_nothing:
        return f"{sentence}{no_difference(more)}."
    word = "less" if more.value < 0 else "more"
    size = difference_size(more)
    return f"{sentence}the pruned split has {size} {word} (interval {interval(more.interval)})."


def _said(found: Estimate) -> str:
    return f"{percent(found.value)}%"
