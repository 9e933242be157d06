from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpc.files import atomic_folder, atomic_path, read_json, write_json, write_text


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError, match="half way"), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("half way")
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["a.txt"]


def test_the_temporary_keeps_the_suffix(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a.h5") as temporary:
        assert temporary.suffix == ".h5"
        temporary.touch()


def test_kill_9_while_writing_leaves_the_old_file_and_does_not_block(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    code = (
        "import sys, time; from pathlib import Path; from hpc.files import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half'); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)])
    while len(os.listdir(tmp_path)) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new"


def test_a_folder_replaces_the_older_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "sub"
    for files in (["a", "b"], ["c"]):
        with atomic_folder(path) as folder:
            for name in files:
                (folder / name).touch()
    assert os.listdir(path) == ["c"]
    assert os.listdir(tmp_path) == ["sub"]


def test_a_folder_that_fails_half_way_leaves_the_older_one(tmp_path: Path) -> None:
    path = tmp_path / "sub"
    with atomic_folder(path) as folder:
        (folder / "a").touch()
    (tmp_path / ".sub.0123456789ab.tmp").mkdir()  # from a kill
    with pytest.raises(RuntimeError), atomic_folder(path) as folder:
        raise RuntimeError
    assert os.listdir(path) == ["a"]
    assert os.listdir(tmp_path) == ["sub"]


def test_broken_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"ä": 1})
    assert read_json(path) == {"ä": 1}
    path.write_text("{")
    with pytest.raises(ValueError, match=r"a\.json: not valid JSON"):
        read_json(path)
