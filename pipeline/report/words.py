"""Numbers as text, and the findings as sentences that are true whatever the numbers are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pipeline.report.results import Results, SplitResult
from pipeline.report.similarity import Queries
from pipeline.report.statistics import Score, mean_score

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


def direction(change: float) -> str:
    """`rise`, `fall` or `same`, as `points` shows it."""
    return {"+": "rise", MINUS: "fall"}.get(points(change)[0], "same")


def count(number: int) -> str:
    """A count with its thousands apart."""
    return f"{number:,}"


def cosine(similarity: float) -> str:
    """A similarity to three places."""
    return f"{similarity:.3f}" if math.isfinite(similarity) else ABSENT


def correlation(rho: float) -> str:
    """Spearman's rho with its sign, as typeset: -0.8 -> −0.80."""
    return f"{rho:.2f}".replace("-", MINUS)


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


def findings(results: Results, queries: Mapping[str, Queries]) -> list[str]:
    """One sentence for each split that is pruned for test sets; without any, for each test set."""
    pruned = [split for split in results.splits.values() if split.near and split.scores]
    if not pruned:
        return [_gap(one) for one in queries.values()]
    return [_finding(results, queries, split) for split in pruned]


def about_seeds(seeds: int) -> str:
    """What the number of seeds allows to conclude."""
    if seeds == 1:
        return (
            "Each accuracy comes from a single training run (one seed). One seed is no error bar: "
            "the same training with another seed gives another number."
        )
    return (
        f"Accuracies are means over {seeds} training runs (seeds), with the lowest and the highest "
        "in brackets."
    )


def _gap(queries: Queries) -> str:
    return (
        f"For {percent(queries.nearer_in_pool)}% of the {count(len(queries))} images of "
        f"{queries.name}, the pool holds a nearer image than the reference does."
    )


def _finding(results: Results, queries: Mapping[str, Queries], split: SplitResult) -> str:
    control = results.controls.get(split.name)
    full, random = (
        None if name is None else _over_tests(results.splits[name], split.near)
        for name in (results.full, control)
    )
    mine = _over_tests(split, split.near)
    without = (
        f"Without the {count(split.rows - split.kept)} pool images "
        f"({_share(split.rows - split.kept, split.rows)}) {_nearness(queries, split.near)}, "
    )
    average = "accuracy on" if len(split.near) == 1 else "mean accuracy over"
    subject = f"{average} {enumerate_names(split.near)}"
    if full is None:
        return without + f"{subject} is {_said(mine)}{_against_control(mine, random)}"
    return without + subject + _change(mine, full) + _against_control(mine, random)


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


def _over_tests(split: SplitResult, tests: Sequence[str]) -> Score:
    return mean_score([split.scores[test] for test in tests])


def _change(mine: Score, full: Score) -> str:
    change = 100 * (mine.mean - full.mean)
    by = f"{points(change)[1:]} points"
    how = {"rise": f"rises by {by}", "fall": f"falls by {by}", "same": "hardly changes"}
    return f" {how[direction(change)]}, from {_said(full)} to {_said(mine)}"


def _against_control(mine: Score, random: Score | None) -> str:
    if random is None:
        return "; no model was trained on a random sample of the same size to compare it with."
    more = 100 * (random.mean - mine.mean)
    compared = {
        "rise": f"{points(more)[1:]} points more",
        "fall": f"{points(more)[1:]} points less",
        "same": "the same to a tenth of a point",
    }[direction(more)]
    sentence = f"; a random sample of the same size gives {_said(random)}, {compared}."
    if len(mine.by_seed) == 1:
        return sentence
    overlap = "overlap" if mine.overlaps(random) else "do not overlap"
    return f"{sentence} The seeds' ranges of the two {overlap}."


def _said(score: Score) -> str:
    if len(score.by_seed) == 1:
        return f"{percent(score.mean)}%"
    return f"{percent(score.mean)}% ({percent(score.low)}{DASH}{percent(score.high)})"
