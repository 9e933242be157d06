"""The page and what lies beside it, on disk."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from hpc.files import atomic_path, write_text
from pipeline.report.page import Page

FOLDER = "figures"
"""Beside the page."""


def write_report(page: Page, path: Path, ending: str = "") -> None:
    """Write the figures, then the page, then drop figures that are no longer in it.

    Args:
        page: what to write.
        path: of the page.
        ending: put at its end.
    """
    folder = path.parent / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in page.contents():
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes(data)
    write_text(path, page.text + ending)
    for old in folder.iterdir():
        if old.name not in page.files:
            old.unlink()


def files_named(text: str) -> list[str]:
    """The files beside it that a page links to."""
    return [unquote(name) for name in re.findall(rf'href="{FOLDER}/([^"]+)"', text)]
