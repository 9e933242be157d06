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
    "--hide-scrollbars",
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
  const wide = document.documentElement, ink = document.querySelector("figure svg text");
  parent.postMessage(JSON.stringify({
    shown: document.images.length,
    good: [...document.images].filter(image => image.naturalWidth > 0).length,
    overflow: wide.scrollWidth - wide.clientWidth, width: wide.clientWidth,
    paper: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(ink).fill,
  }), "*");
})</script>"""
PHONE = """<!doctype html><body><iframe src="copy.html" style="border: 0" width="360" height="800"></iframe>
<script>addEventListener("message", event => { document.body.textContent = event.data; })</script>"""
PAPER = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}
INK = {"light": "rgb(28, 32, 36)", "dark": "rgb(228, 231, 234)"}

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


def browse(page: Path, scheme: str = "light") -> tuple[str, str]:
    """What the browser makes of a page, and what it says about it."""
    profile = page.with_suffix(f".{scheme}")
    prefers = f"--blink-settings=preferredColorScheme={['dark', 'light'].index(scheme)}"
    done = subprocess.run(
        [
            str(CHROMIUM), *OPTIONS, f"--user-data-dir={profile}", "--window-size=1200,900",
            prefers, "--virtual-time-budget=10000", "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def page(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("browser") / "index.html"
    path.write_text(build_report(study.experiment, study.layout, {}).text, encoding="utf-8")
    return path


def test_browser_has_nothing_to_complain_of(page: Path) -> None:
    _, said = browse(page)
    assert "CONSOLE" not in said


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_every_picture_and_scrolls_only_down(page: Path, scheme: str) -> None:
    # The page forbids scripts, so a copy that allows them has to be looked at.
    html = page.read_text(encoding="utf-8")
    free = re.sub(r"<meta http-equiv=.Content-Security-Policy.*?>", "", html, flags=re.DOTALL)
    copy = page.with_name("copy.html")
    copy.write_text(free.replace("</body>", f"{LOOK}</body>"), encoding="utf-8")
    phone = page.with_name("phone.html")
    phone.write_text(PHONE)
    dom, said = browse(phone, scheme)
    assert json.loads(parse(dom).one("body").text) == {
        "shown": 24, "good": 24, "overflow": 0, "width": 360, "paper": PAPER[scheme],
        "ink": INK[scheme],
    }  # fmt: skip
    assert "CONSOLE" not in said
