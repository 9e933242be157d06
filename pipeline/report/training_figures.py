"""The figures of training, and of what its features are good for with a few labelled images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from pipeline.report.recorded import Probe, TrainingCurve
from pipeline.report.statistics import Score
from pipeline.report.svg import SERIES, Plot, Value, drawing, finish
from pipeline.report.words import enumerate_names, percent, short_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))


def _looks(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour and dashes for each of any number of things."""
    return {
        name: {
            "color": SERIES[place % len(SERIES)],
            "linestyle": _STYLES[place // len(SERIES) % len(_STYLES)],
        }
        for place, name in enumerate(names)
    }


def draw_training(curves: Sequence[TrainingCurve]) -> Plot:
    """Loss and speed of every training against the samples it has seen."""
    splits = list(dict.fromkeys(curve.split for curve in curves))
    looks, name = _looks(splits), "training"
    lines = -(-len(splits) // 3)
    with drawing(name, 7.2, 4.4 + 0.2 * lines) as figure:
        loss, speed = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        for curve in curves:
            first = curve.seed == next(c.seed for c in curves if c.split == curve.split)
            label = curve.split if first else None
            style = {**looks[curve.split], "linewidth": 1.2, "alpha": 0.85}
            loss.plot(curve.samples, curve.loss, label=label, **style)
            speed.plot(curve.samples, curve.samples_per_second, **style)
        loss.set(ylabel="training loss")
        speed.set(xlabel="samples seen", ylabel="samples per second")
        speed.set_ylim(bottom=0)
        speed.xaxis.set_major_formatter(lambda seen, _: short_count(round(seen)))
        figure.legend(loc="outside upper left", ncols=3)
        return finish(
            figure,
            name,
            "Loss and speed",
            wide=True,
            alt="Training loss and samples per second against samples seen. Last loss: "
            + "; ".join(map(_last, curves))
            + ".",
            caption=f"{len(curves)} trainings; seeds of one split look the same. "
            f"Loss of different splits is measured on different images. Median speed: "
            f"{_speeds(curves, splits)}.",
            columns=("split", "seed", "samples", "loss", "samples_per_second"),
            rows=[
                (curve.split, curve.seed, *point)
                for curve in curves
                for point in zip(curve.samples, curve.loss, curve.samples_per_second, strict=True)
            ],
        )


def _last(curve: TrainingCurve) -> str:
    return f"{curve.split}, seed {curve.seed}: {curve.loss[-1]:.3f}"


def _speeds(curves: Sequence[TrainingCurve], splits: Sequence[str]) -> str:
    of = {
        split: median(
            v for curve in curves if curve.split == split for v in curve.samples_per_second
        )
        for split in splits
    }
    low, high = (f"{value:,.0f}" for value in (min(of.values()), max(of.values())))
    return f"{low} samples per second" if low == high else f"{low} to {high} samples per second"


def draw_few_shot(test: str, found: Sequence[Probe], zero_shot: Mapping[str, Score]) -> Plot:
    """Accuracy against images of each class that a linear model may learn from.

    Args:
        test: the test set.
        found: one for each split.
        zero_shot: split -> zero-shot accuracy, drawn at 0.
    """
    name = f"few-shot-{test}"
    looks = _looks([probe.split for probe in found])
    shots = sorted({number for probe in found for number in probe.few_shot})
    with drawing(name, 5.2, 3.3 + 0.2 * -(-len(found) // 2)) as figure:
        axes = figure.add_subplot()
        for place, probe in enumerate(found):
            shift = 0.4 / len(found) * (place - (len(found) - 1) / 2)
            _draw_shots(axes, probe, zero_shot.get(probe.split), shots, shift, looks[probe.split])
        axes.set_xticks(range(len(shots) + 1), ["0", *map(str, shots)])
        axes.set(xlabel="labelled images of each class", ylabel="accuracy, %")
        figure.legend(loc="outside upper left", ncols=2)
        return finish(
            figure,
            name,
            test,
            alt=f"Accuracy on {test} against labelled images of each class, with "
            f"{max(shots)}: " + "; ".join(_most(probe) for probe in found) + ".",
            caption="Means over draws of images and seeds, with the lowest and the highest as a "
            f"vertical line. At 0: zero-shot. {enumerate_names([_most(p) for p in found])} with "
            f"{max(shots)}.",
            columns=("split", "shots", "accuracy", "lowest", "highest", "draws"),
            rows=[row for probe in found for row in _shot_rows(probe)],
        )


def _draw_shots(
    axes: Axes,
    probe: Probe,
    zero_shot: Score | None,
    shots: Sequence[int],
    shift: float,
    look: Mapping[str, Any],
) -> None:
    points = [(shots.index(number) + 1 + shift, score) for number, score in probe.few_shot.items()]
    if zero_shot is not None:
        axes.plot([shift], [100 * zero_shot.mean], marker="D", markersize=4, color=look["color"])
    x, scores = [at for at, _ in points], [score for _, score in points]
    low, high = [100 * score.low for score in scores], [100 * score.high for score in scores]
    axes.vlines(x, low, high, color=look["color"], linewidth=1.1, alpha=0.6)
    means = [100 * score.mean for score in scores]
    axes.plot(x, means, marker="o", markersize=4, label=probe.split, **look)


def _most(probe: Probe) -> str:
    return f"{probe.split} {percent(probe.few_shot[max(probe.few_shot)].mean)}%"


def _shot_rows(probe: Probe) -> list[tuple[Value, ...]]:
    return [
        (probe.split, number, score.mean, score.low, score.high, len(score.by_seed))
        for number, score in probe.few_shot.items()
    ]
