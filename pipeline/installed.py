"""What is installed: Python, packages, this code; nothing heavy is imported."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from hpc.doctor import FAULT, OK, WARNING, Finding
from hpc.worker import code_version
from pipeline import __version__

_ROOT = Path(__file__).parent.parent


def check_installation() -> Iterator[Finding]:
    """Python, the packages that simgap needs, and the version of its own code."""
    says = f"{platform.python_version()}, {sys.executable}"
    yield Finding(verdict=OK, about="Python", says=says)
    yield from _packages()
    yield _code()


def requirements() -> list[str]:
    """What simgap needs, as setup.cfg says; of an installed simgap, as pip noted it down."""
    setup = _ROOT / "setup.cfg"
    if not setup.is_file():
        return [text for text in metadata.requires("simgap") or [] if "extra ==" not in text]
    import configparser

    config = configparser.ConfigParser()
    config.read(setup, encoding="utf-8")
    return config["options"]["install_requires"].strip().splitlines()


def _packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    fine = []
    for needed in map(Requirement, requirements()):
        do = f"pip install '{needed}'"
        try:
            found = metadata.version(needed.name)
        except metadata.PackageNotFoundError:
            yield Finding(verdict=FAULT, about="packages", says=f"no {needed.name}", do=do)
            continue
        if needed.specifier.contains(found, prereleases=True):
            fine.append(f"{needed.name} {found}{_cuda() if needed.name == 'torch' else ''}")
        else:
            says = f"{needed.name} {found}, expected {needed.specifier}"
            yield Finding(verdict=FAULT, about="packages", says=says, do=do)
    yield Finding(verdict=OK, about="packages", says=", ".join(fine))


def _cuda() -> str:
    """What torch was built for, read from its file: importing it takes seconds."""
    path = Path(str(metadata.distribution("torch").locate_file("torch/version.py")))
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    found = re.search(r"^cuda\b[^=]*=\s*'([^']+)'", text, flags=re.M)
    return f" (CUDA {found[1]})" if found else " (no CUDA)"


def _code() -> Finding:
    commit = code_version()
    if commit.endswith("+"):
        says = f"simgap {__version__}, commit {commit[:-1]} with local changes"
        do = "commit them: results carry the commit that they were made with"
        return Finding(verdict=WARNING, about="code", says=says, do=do)
    where = f"commit {commit}" if commit else "not under version control"
    return Finding(verdict=OK, about="code", says=f"simgap {__version__}, {where}")
