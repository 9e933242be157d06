"""Watches over work-arounds: each test fails when its work-around is no longer needed."""

from __future__ import annotations

import configparser
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

SETUP = Path(__file__).parent.parent / "setup.cfg"


def _webdataset(requirements: list[str]) -> Requirement:
    parsed = [Requirement(text) for text in requirements]
    return next(item for item in parsed if item.name == "webdataset")


def test_webdataset_is_held_back_just_as_open_clip_does() -> None:
    """open_clip_train groups end-of-file markers of webdataset >= 0.2.96 as samples and crashes.

    When open_clip lifts its bound, so can setup.cfg.
    """
    config = configparser.ConfigParser()
    config.read(SETUP)
    ours = _webdataset(config["options"]["install_requires"].split("\n")[1:])
    theirs = _webdataset(requires("open_clip_torch") or [])
    assert ours.specifier == theirs.specifier
    assert not ours.specifier.contains("0.2.96")
