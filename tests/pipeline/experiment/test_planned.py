"""A study whose data is not there: it can be planned, and can't be run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import submit
from pipeline.experiment.load import ExperimentError, load_experiment, to_values
from pipeline.experiment.planned import planned_parts
from pipeline.stages import stages_of

SHARDS = {"shards": 4, "samples": 1000, "bytes": 10_000}
IMAGES = {"images": 50, "bytes": 1000, "classes": 5}


@pytest.fixture
def values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """An experiment without any data."""
    monkeypatch.chdir(tmp_path)
    return {
        "name": "plan",
        "get_data": "make the data",
        "pool": {"shards": "pool/{0..3}.tar", "shards_per_file": 2, "size": SHARDS},
        "reference": {"images": "reference", "files": 2, "size": IMAGES},
        "tests": {"sketch": {"images": "sketch", "size": IMAGES}},
        "embedder": {"model": "ViT-B-32", "pretrained": "laion400m_e32"},
        "splits": {"full": "all", "pruned": {"near": ["sketch"]}},
        "training": {"model": "ViT-B-32", "epochs": 1, "batch_size": 2},
    }


def _write(values: Any) -> Path:
    path = Path("plan.yaml")
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def _tasks(values: Any) -> list[str]:
    experiment = load_experiment(_write(values), without_data=True)
    return [
        f"{stage.name}/{task.name}" for stage in stages_of(experiment) for task in stage.tasks()
    ]


@pytest.mark.parametrize("shards", ["pool/{0..3}.tar", "pool/*.tar", ["a/*.tar", "b/{0..1}.tar"]])
def test_the_tasks_are_those_of_the_study_with_its_data(
    values: dict[str, Any], shards: Any
) -> None:
    planned = _tasks(values | {"pool": values["pool"] | {"shards": shards}})
    Path("pool").mkdir()
    for name in range(4):
        Path(f"pool/{name}.tar").touch()
    for name in ("reference", "sketch"):
        for label in range(5):
            (Path(name) / str(label)).mkdir(parents=True)
    assert planned == _tasks(values)
    assert load_experiment(Path("plan.yaml"), without_data=True).pool.planned is False


def test_only_what_is_missing_is_planned(values: dict[str, Any]) -> None:
    for label in range(7):
        (Path("sketch") / str(label)).mkdir(parents=True)
    experiment = load_experiment(_write(values), without_data=True)
    assert planned_parts(experiment) == ["pool", "reference"]


def test_a_submission_refuses_missing_data_whatever_its_size(
    values: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit.main([str(_write(values)), "--dry-run"]) == 0
    assert "tasks would run, 0 up to date" in capsys.readouterr().out
    assert submit.main([str(_write(values))]) == 2
    told = capsys.readouterr().err
    assert "tests.sketch.images: no such folder" in told
    assert told.endswith("to get the data: make the data\n")
    assert not Path("runs").exists()


def test_no_plan_is_made_of_a_planned_study(values: dict[str, Any]) -> None:
    experiment = load_experiment(_write(values), without_data=True)
    with pytest.raises(ExperimentError, match=r"the data of pool, reference, tests\.sketch"):
        to_values(experiment)


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("pool", {"size": None}, "line 4: pool.shards: no shard matches"),
        ("pool", {"size": None}, "to plan without the data: give the `size` of the pool"),
        (
            "pool",
            {"size": SHARDS | {"shards": 5}},
            "pool.shards: names 4 tars, but pool.size.shards is 5",
        ),
        ("pool", {"size": {"shards": 4}}, "pool.size.samples: required, but not there"),
        ("pool", {"size": SHARDS | {"byte": 1}}, "pool.size.byte: unknown key; did you mean 'bytes'?"),
        ("reference", {"size": {"images": 5, "bytes": 5}}, "reference.images: no such folder"),
        ("reference", {"size": {"images": 5, "bytes": 5}}, "with `classes` where its class list is not there"),
        ("reference", {"size": {"images": -5, "bytes": 5}}, "reference.size.images: input should be"),
    ],
)  # fmt: skip
def test_what_is_missing_for_a_plan_is_named(
    values: dict[str, Any], section: str, change: dict[str, Any], message: str
) -> None:
    values[section] |= change
    with pytest.raises(ExperimentError) as error:
        load_experiment(_write(values), without_data=True)
    assert message in str(error.value)
