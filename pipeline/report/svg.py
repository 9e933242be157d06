"""Matplotlib figures: inside the page, where light and dark schemes colour them, and as files."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILES = ("svg", "pdf", "csv")
"""What each figure is saved as."""

# The colours of style.css in a light scheme. Each differs from every other, if only by a bit: in
# the page each becomes the CSS variable that it is the value of.
INK = "#1c2024"
MUTED = "#626b75"
GRID = "#e3e6ea"
PAPER = "#ffffff"
ROLES = {
    "pool": "#0072b2",
    "reference": "#c25100",
    "full": "#4d5661",
    "near": "#c25101",
    "control": "#0072b3",
    "far": "#007a5e",
}
SERIES = (
    "#0072b4",
    "#c25102",
    "#007a5f",
    "#9c4a86",
    "#806000",
    "#4d5662",
    "#b0303c",
    "#1f7f99",
)
"""For any number of things of one kind, in turn."""
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    PAPER: "--paper",
    **{colour: f"--{role}" for role, colour in ROLES.items()},
    **{colour: f"--series-{place}" for place, colour in enumerate(SERIES)},
}
_SETTINGS: dict[Any, Any] = {
    "text.parse_math": False,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.7,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.borderpad": 0,
    "legend.handlelength": 1.8,
    "lines.linewidth": 1.8,
    "hatch.linewidth": 0.6,
}

Value = str | int | float | None
"""A cell of a figure's data."""


@dataclass(frozen=True)
class Plot:
    """A figure of the page: the drawing, what it shows in words, and its data."""

    name: str
    """Unique in the page; also the name of its files."""
    title: str
    alt: str
    """What it shows, for those who can't see it."""
    caption: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[Value, ...]]
    """Its data: a value for each column."""
    inline: str
    """An `<svg>` element that takes its colours and its font from the page."""
    svg: str
    figure: Figure
    wide: bool = False
    """Whether it has to keep its size on a narrow screen, and scrolls there."""

    @property
    def width(self) -> float:
        """In inches."""
        return float(self.figure.get_figwidth())

    @property
    def pdf(self) -> bytes:
        """The same drawing; made when it is asked for, because it takes as long as all else."""
        import matplotlib as mpl

        with mpl.rc_context(_SETTINGS):
            return _saved(self.figure, "pdf")

    @property
    def csv(self) -> str:
        """Its data; numbers in full precision."""
        return as_csv(self.columns, self.rows)

    @property
    def contents(self) -> Mapping[str, bytes]:
        """Its files: name -> bytes."""
        contents = (self.svg.encode(), self.pdf, self.csv.encode())
        return dict(zip(self.files, contents, strict=True))

    @property
    def files(self) -> list[str]:
        """Their names."""
        return [f"{self.name}.{end}" for end in FILES]


def as_csv(columns: Sequence[str], rows: Sequence[Sequence[Value]]) -> str:
    """A table as CSV; names that are no UTF-8 have question marks."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return buffer.getvalue().encode("utf-8", "replace").decode()


@contextmanager
def drawing(name: str, width: float, height: float) -> Iterator[Figure]:
    """Yield an empty figure in the page's style.

    Args:
        name: unique in the page; the SVG's ids are derived from it.
        width: inches.
        height: inches.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({**_SETTINGS, "svg.hashsalt": name}):
        yield Figure(figsize=(width, height), layout="constrained")


def finish(
    figure: Figure,
    name: str,
    title: str,
    *,
    alt: str,
    caption: str,
    columns: Sequence[str],
    rows: Sequence[tuple[Value, ...]],
    wide: bool = False,
) -> Plot:
    """A drawn figure with its words and data; to be called within `drawing`."""
    svg = _saved(figure, "svg").decode()
    figure.set_layout_engine("none")  # everything has its place now
    inside, alone = inline(svg), _alone(svg)
    return Plot(name, title, alt, caption, tuple(columns), rows, inside, alone, figure, wide)


def _saved(figure: Figure, kind: str) -> bytes:
    """Without anything that differs from one time to the next."""
    names = {"svg": ("Creator", "Date", "Format", "Type"), "pdf": ("Creator", "CreationDate")}
    buffer = io.BytesIO()
    metadata = dict.fromkeys(names[kind])
    figure.savefig(buffer, format=kind, transparent=True, metadata=metadata)
    return buffer.getvalue()


def _alone(svg: str) -> str:
    """A file for programs that show what is transparent as black."""
    return svg.replace("<svg ", f'<svg style="background: {PAPER}" ', 1)


def inline(svg: str) -> str:
    """An `<svg>` element without a size of its own, in the page's colours.

    It is hidden from screen readers; what it shows is told by the element around it.
    """
    text = svg[svg.index("<svg") :]
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r'(<g) id="[^"]*"', r"\1", text)  # axes_1 and so on, the same in every figure
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    view = re.search(r'viewBox="[^"]*"', text)
    assert view is not None, "matplotlib gives every SVG a viewBox"
    text = re.sub(r"<svg[^>]*>", f'<svg {view[0]} aria-hidden="true">', text, count=1)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text.strip()
