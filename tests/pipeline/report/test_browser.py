"""The page in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.report import build_report
from tests.pipeline.report.conftest import Study
from tests.pipeline.report.parsed import parse

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--enable-logging=stderr",
]
LOOK = """<script>addEventListener("load", () => {
  const wide = document.documentElement;
  const seen = {shown: document.images.length,
                good: [...document.images].filter(image => image.naturalWidth > 0).length,
                overflow: wide.scrollWidth - wide.clientWidth};
  document.body.innerHTML = "";
  document.body.append(JSON.stringify(seen));
})</script>"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


def browse(page: Path, width: int) -> tuple[str, str]:
    """What the browser makes of a page, and what it says about it."""
    profile = page.with_suffix(".profile")
    done = subprocess.run(
        [
            str(CHROMIUM), *OPTIONS, f"--user-data-dir={profile}", f"--window-size={width},900",
            "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_browser_has_nothing_to_complain_of_and_shows_every_picture(
    study: Study, tmp_path: Path
) -> None:
    html = build_report(study.experiment, study.layout, {}).text
    page = tmp_path / "index.html"
    page.write_text(html, encoding="utf-8")
    _, said = browse(page, 1200)
    assert "CONSOLE" not in said

    # The page forbids scripts, so a copy that allows them has to be looked at.
    free = re.sub(r"<meta http-equiv=.Content-Security-Policy.*?>", "", html, flags=re.DOTALL)
    copy = tmp_path / "copy.html"
    copy.write_text(free.replace("</body>", f"{LOOK}</body>"), encoding="utf-8")
    dom, said = browse(copy, 500)
    seen = json.loads(parse(dom).one("body").text)
    assert seen == {"shown": 24, "good": 24, "overflow": 0}
    assert "CONSOLE" not in said
