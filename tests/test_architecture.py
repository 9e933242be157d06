"""Who may import whom, and what a login node must not wait for."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.stages import NAMES

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "open_clip", "h5py", "matplotlib", "numpy", "submitit")


def imported(source: str) -> Iterator[str]:
    """Every module that a source file imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide who imports whom"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def breaches(folder: Path, forbidden: tuple[str, ...], own: bool = False) -> list[str]:
    found = []
    for path in sorted(folder.rglob("*.py")):
        for module in imported(path.read_text()):
            if module.startswith(tuple(f"{name}." for name in forbidden)) or module in forbidden:
                found.append(f"{path.relative_to(folder.parent)} imports {module}")
    return found


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("kernels", ("hpc", "pipeline", "h5py", "submitit", "yaml")),
        ("hpc", ("kernels", "pipeline", "torch", "h5py", "open_clip", "numpy")),
    ],
)
def test_packages_know_only_what_they_should(package: str, forbidden: tuple[str, ...]) -> None:
    assert breaches(ROOT / package, forbidden) == []


def test_no_stage_imports_another_stage() -> None:
    assert breaches(ROOT / "pipeline" / "stages", ("pipeline.stages",)) == [
        f"stages/__init__.py imports pipeline.stages.{stage}{name}"
        for stage in sorted(NAMES)
        for name in ("", f".{stage.title()}")
    ]


def test_only_executors_import_submitit() -> None:
    users = {line.split()[0] for line in breaches(ROOT / "hpc", ("submitit",))}
    users |= {line.split()[0] for line in breaches(ROOT / "pipeline", ("submitit",))}
    assert users == {"hpc/executors.py"}


def test_this_test_can_fail(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def f():\n    from torch import nn\n")
    assert breaches(tmp_path, ("torch",)) != []


@pytest.mark.parametrize(
    "module",
    [
        "pipeline.submit",
        "pipeline.status",
        "pipeline.logs",
        "pipeline.cancel",
        "pipeline.report_so_far",
        "pipeline.doctor",
        "pipeline.evaluate",
        "pipeline.export",
        "pipeline.data.world.__main__",
        "hpc.minislurm",
    ],
)
def test_help_is_quick_and_imports_nothing_heavy(module: str) -> None:
    code = (
        "import sys\n"
        f"import importlib; command = importlib.import_module({module!r})\n"
        "try: command.main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))\n"
    )
    times = []
    for _ in range(3):
        before = _processor_seconds()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        times.append(_processor_seconds() - before)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "[]"
        assert "examples" in done.stdout
    assert min(times) < 0.5


def _processor_seconds() -> float:
    """What ended child processes have used, however busy the machine is."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_loading_an_experiment_imports_no_torch() -> None:
    code = (
        "import sys, contextlib\n"
        "from pipeline import submit\n"
        "submit.main(['mini', '--dry-run'])\n"
        "print(sorted({'torch', 'open_clip', 'matplotlib', 'submitit'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
