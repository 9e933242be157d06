"""Matplotlib figures as inline SVG that takes its colours and its font from the page."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Matplotlib draws with these; in the page each becomes a CSS variable, which light and dark
# colour schemes set differently.
INK = "#010101"
MUTED = "#020202"
GRID = "#030303"
PAPER = "#040404"
ROLES = {
    "pool": "#050505",
    "reference": "#060606",
    "full": "#070707",
    "near": "#080808",
    "control": "#090909",
}
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    PAPER: "--paper",
    **{colour: f"--{role}" for role, colour in ROLES.items()},
}
_SETTINGS: dict[Any, Any] = {
    "text.parse_math": False,
    "svg.fonttype": "none",
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


def as_svg(figure: Figure) -> str:
    """An `<svg>` element without a size of its own, to be called within `drawing`.

    It is hidden from screen readers; what it shows is told by the element around it.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r'(<g) id="[^"]*"', r"\1", text)  # axes_1 and so on, the same in every figure
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    view = re.search(r'viewBox="[^"]*"', text)
    assert view is not None, "matplotlib gives every SVG a viewBox"
    text = re.sub(r"<svg[^>]*>", f'<svg {view[0]} aria-hidden="true">', text, count=1)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text.strip()
