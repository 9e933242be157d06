"""What `pip install .` brings."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
SHIPPED = ("hpc", "kernels", "pipeline", "experiments", "slurm_templates")


def test_a_wheel_holds_every_module_template_and_experiment(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in SHIPPED:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        found = {name for name in wheel.namelist() if ".dist-info" not in name}
        metadata = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
        assert "simgap = pipeline.__main__:main" in wheel.read(metadata).decode()
    expected = set()
    for name in SHIPPED:
        for path in (source / name).rglob("*"):
            inside = path.relative_to(source).as_posix()
            moved = name in ("experiments", "slurm_templates")
            if path.is_file() and path.suffix != ".md" and "egg-info" not in inside:
                expected.add(f"pipeline/{inside}" if moved else inside)
    assert found == expected


def test_an_installed_copy_finds_what_it_ships(tmp_path: Path) -> None:
    package = tmp_path / "site" / "pipeline"
    shutil.copytree(ROOT / "pipeline", package)
    for name in ("experiments", "slurm_templates"):
        shutil.copytree(ROOT / name, package / name)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pipeline import layout\n"
        "print(layout.find('experiments', 'mini'))\n"
        "print(layout.find('experiments', 'experiments/mini.yaml'))\n"
        "print(layout.find('slurm_templates', 'local'))\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "site")]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    mini = str(package / "experiments" / "mini.yaml")
    assert done.stdout.split("\n")[:3] == [mini, mini, str(package / "slurm_templates/local.yaml")]
