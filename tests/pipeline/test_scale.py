"""What planning a study of tens of thousands of shards asks of the file system."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
import yaml

from pipeline import status, submit
from tests.pipeline import small

SHARDS = 3_000


def test_the_shards_are_listed_once_and_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = small.make(tmp_path / "study")
    pool = study.folder / "pool"
    for index in range(SHARDS):
        (pool / f"{index:05d}.tar").touch()
    values = yaml.safe_load(study.experiment.read_text())
    values["pool"] |= {"shards": f"pool/{{00000..{SHARDS - 1:05d}}}.tar", "shards_per_file": 100}
    study.experiment.write_text(yaml.safe_dump(values))
    monkeypatch.chdir(study.folder)
    listings: Counter[str] = Counter()
    looked_at: Counter[str] = Counter()
    listdir, stat = os.listdir, os.stat

    def counted_listdir(path: object = ".") -> list[str]:
        listings[str(path)] += 1
        return listdir(path)  # type: ignore[call-overload,no-any-return]

    def counted_stat(path: object, **rest: object) -> os.stat_result:
        looked_at[str(path)] += str(path).endswith(".tar")
        return stat(path, **rest)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(os, "listdir", counted_listdir)
    monkeypatch.setattr(os, "stat", counted_stat)
    for command in (lambda: submit.main(["small.yaml", "--dry-run"]), _status):
        listings.clear()
        looked_at.clear()
        assert command() == 0
        assert listings[str(pool)] == 1
        assert max(looked_at.values()) <= 2
        assert sum(looked_at.values()) >= SHARDS
    assert f"{SHARDS // 100} " in capsys.readouterr().out


def _status() -> int:
    return status.main(["small.yaml"])
