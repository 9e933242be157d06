"""Typing the wrong thing into an experiment, and what it answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.experiment.load import ExperimentError, from_values, load_experiment, to_values

MODEL = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 8},
    "text_cfg": {"context_length": 4, "vocab_size": 49408},
}


@pytest.fixture
def values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A valid experiment whose data exists."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool/00000.tar").touch()
    for name in ("reference", "sketch", "val"):
        (tmp_path / name / "cat").mkdir(parents=True)
    (tmp_path / "model.json").write_text(yaml.safe_dump(MODEL, default_flow_style=True))
    (tmp_path / "weights.pt").touch()
    return {
        "name": "small",
        "get_data": "make the data",
        "pool": {"shards": "pool/*.tar"},
        "reference": {"images": "reference"},
        "tests": {"sketch": {"images": "sketch"}, "val": {"images": "val"}},
        "embedder": {"model": "ViT-B-32", "pretrained": "weights.pt"},
        "splits": {
            "full": "all",
            "pruned": {"near": ["sketch"]},
            "control": {"random": {"like": "pruned", "seed": 1}},
        },
        "training": {"model": "ViT-B-32", "epochs": 1, "batch_size": 2},
    }


def _load(values: Any, *overrides: str) -> Any:
    path = Path("study.yaml")
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return load_experiment(path, overrides)


def test_a_good_experiment_loads_with_absolute_paths(values: dict[str, Any]) -> None:
    experiment = _load(values)
    assert experiment.run == Path.cwd() / "runs" / "small"
    assert experiment.pool.shards == str(Path.cwd() / "pool/*.tar")
    assert experiment.embedder.pretrained == str(Path.cwd() / "weights.pt")
    assert experiment.trained_splits == ["full", "pruned", "control"]
    assert from_values(to_values(experiment)) == experiment


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pool.shard=x", "pool.shard: unknown key; did you mean 'shards'?"),
        ("pol={}", "pol: unknown key; did you mean 'pool'?"),
        ("tests.sketch.imagse=x", "tests.sketch.imagse: unknown key; did you mean 'images'?"),
        ("splits.control.random.sed=1", "splits.control.random.sed: unknown key; did you mean 'seed'"),
        ("training.epochs=many", "training.epochs: input should be a valid integer"),
        ("training.epochs=0", "training.epochs: input should be greater than 0, found 0"),
        ("tests.sketch.threshold=2", "tests.sketch.threshold"),
        ("name=a/b", "name: string should match pattern"),
        ("pool.shards=none/*.tar", "pool.shards: "),
        ("tests.val.images=nowhere", "tests.val.images: no such folder: "),
        ("tests.val.classes=nowhere.txt", "tests.val.classes: no such file: "),
        ("tests.val.classes=imagenet-1", "imagenet-1, and no built-in list; did you mean 'imagenet-1k'?"),
        ("tests.val.border=-1", "tests.val.border: input should be greater than or equal to 0, found -1"),
        ("embedder.pretrained=nowhere.pt", "embedder.pretrained: no such file: "),
        ("embedder.model=ViT-B-23", "embedder.model: open_clip has no model 'ViT-B-23'; did you mean"),
        ("training.model=nowhere.json", "training.model: "),
        ("splits.pruned.near=[skecth]", "splits.pruned.near.0: unknown test set 'skecth'; did you mean 'sketch'?"),
        ("splits.pruned.near=[]", "splits.pruned.near"),
        ("splits.pruned.all=true", "splits.pruned: expected exactly one of: all, near, far, random, union"),
        ("splits.control.random.like=prund", "splits.control.random.like: unknown split 'prund'; did you mean 'pruned'?"),
        ("splits.control.random.like=control", "splits depend on each other: control -> control"),
        ("splits.pruned.near=skecth", "splits.pruned.near: input should be a valid list, found 'skecth'"),
        ("splits.pruned.near={tests: [skecth], keep: 2}", "splits.pruned.near.tests.0: unknown test set 'skecth'; did you mean 'sketch'?"),
        ("splits.pruned.near={tests: [sketch]}", "splits.pruned.near.keep: required, but not there"),
        ("splits.pruned.near={tests: [], keep: 2}", "splits.pruned.near.tests: list should have at least 1 item"),
        ("splits.pruned.near={tests: [sketch], keep: 0}", "splits.pruned.near.keep: input should be greater than 0, found 0"),
        ("splits.pruned.near={tests: [sketch], kep: 1}", "splits.pruned.near.kep: unknown key; did you mean 'keep'?"),
        ("splits.far.far=[sketch]", "splits.far.far: expected a mapping of keys to values, found ['sketch']"),
        ("splits.far.far={tests: [vall], keep: 2}", "splits.far.far.tests.0: unknown test set 'vall'; did you mean 'val'?"),
        ("splits.control.random={seed: 1}", "splits.control.random: expected exactly one of: like, keep"),
        ("splits.control.random.keep=3", "splits.control.random: expected exactly one of: like, keep"),
        ("splits.control.bace=full", "splits.control.bace: unknown key; did you mean 'base'?"),
        ("splits.control.base=ful", "splits.control.base: unknown split 'ful'; did you mean 'full'?"),
        ("splits.either.union=[]", "splits.either.union: list should have at least 2 items"),
        ("splits.either.union=[full]", "splits.either.union: list should have at least 2 items"),
        ("splits.either.union=[full, prund]", "splits.either.union.1: unknown split 'prund'; did you mean 'pruned'?"),
        ("splits.both.intersection=[ful, pruned]", "splits.both.intersection.0: unknown split 'ful'"),
        ("splits.minus.difference=[full, ful]", "splits.minus.difference.1: unknown split 'ful'"),
        ("splits.rest.complement=prund", "splits.rest.complement: unknown split 'prund'; did you mean 'pruned'?"),
        ("splits.rest.complement=rest", "splits.rest.complement: splits depend on each other: rest -> rest"),
        ("splits.dedup={deduplicated: true}", "splits.dedup.deduplicated: needs deduplication, but the experiment has no section `dedup`"),
        ("splits.dedup={deduplicated: false}", "splits.dedup.deduplicated: input should be True, found False"),
        ("splits.pruned.base=full", "splits.control: pruned is taken within full, but this sample from the whole pool; add `base: full`"),
        ("splits.pruned.plus_reference=a photo", "splits.pruned.plus_reference: expected exactly one {} for the class name, found 'a photo'"),
        ("splits.pruned.plus_reference=''", "splits.pruned.plus_reference: expected exactly one {} for the class name, found ''"),
        ("training.splits=[fulll]", "training.splits.0: unknown split 'fulll'; did you mean 'full'?"),
        ("training.seeds=[0, 0]", "training.seeds: a seed appears twice"),
        ("training.options={learning-rate: 1}", "training.options: "),
        ("training.options={report-to: tensorbord}", "training.options: report-to: unknown 'tensorbord'; did you mean 'tensorboard'?"),
        ("training.options={report-to: 'wandb,none'}", "training.options: report-to: unknown 'none'; known: tensorboard, wandb, all"),
        ("tests.sketch.threshold=true", "tests.sketch.threshold: input should be a valid number, found True; or input should be 'reference'"),
        ("tests.sketch=3", "tests.sketch: expected a mapping of keys to values, found 3"),
        ("splits.pruned={near: null}", "splits.pruned: expected exactly one of: all, near, far, random, union"),
        ("splits.control.random.seed=-1", "splits.control.random.seed: input should be greater than or equal to 0, found -1"),
        ("training.epochs=true", "training.epochs: input should be a valid integer, found True"),
        ("embedder.device=tpu", "embedder.device: string should match pattern"),
        ("embedder.precision=fp3", "embedder.precision: unknown precision 'fp3'; did you mean 'fp32'?"),
        ("similarity.backend=torch", "similarity.backend: unknown backend 'torch'"),
        ("evaluation.templates=['{}{']", "evaluation.templates.0: expected exactly one {}"),
        ("training.options={batch-size: 1}", "training.options.batch-size: give training.batch_size instead"),
        ("evaluation.templates=[a photo]", "evaluation.templates.0: expected exactly one {}"),
        ("tests.pool={images: val}", "tests.pool: 'pool' can't be the name of a test set"),
        ("tests.SKETCH={images: val}", "differ only in upper and lower case"),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_its_yaml_path(
    values: dict[str, Any], override: str, message: str
) -> None:
    with pytest.raises(ExperimentError) as error:
        _load(values, override)
    assert message in str(error.value)


def test_images_that_are_added_as_they_are_have_no_border_to_cut_off(
    values: dict[str, Any],
) -> None:
    assert _load(values, "splits.pruned.plus_reference=true").splits["pruned"].caption
    fault = "splits.pruned.plus_reference: adds the reference's images as they are.* 2 pixels"
    with pytest.raises(ExperimentError, match=fault):
        _load(values, "splits.pruned.plus_reference=true", "reference.border=2")


def test_all_faults_are_listed_at_once_with_their_lines(values: dict[str, Any]) -> None:
    values["pool"]["shard"] = "x"
    values["training"]["epochs"] = "many"
    with pytest.raises(ExperimentError) as error:
        _load(values)
    lines = str(error.value).split("\n")
    assert lines[0] == "study.yaml can't be used:"
    assert lines[1] == "  line 5: pool.shard: unknown key; did you mean 'shards'?"
    assert lines[2].startswith("  line 27: training.epochs: ")


def test_class_lists_that_are_built_in_are_named_beside_paths(values: dict[str, Any]) -> None:
    experiment = _load(values, "tests.val.classes=objectnet", "tests.val.border=1")
    assert experiment.tests["val"].classes == "objectnet"
    assert from_values(to_values(experiment)) == experiment
    Path("objectnet").write_text("cat\n")
    experiment = _load(values, "tests.val.classes=./objectnet")
    assert experiment.tests["val"].classes == Path.cwd() / "objectnet"


def test_a_cycle_of_splits_is_spelled_out(values: dict[str, Any]) -> None:
    values["splits"]["a"] = {"random": {"like": "b"}}
    values["splits"]["b"] = {"random": {"like": "a"}}
    with pytest.raises(ExperimentError, match="splits depend on each other: a -> b -> a"):
        _load(values)


def test_a_cycle_is_found_through_any_definition(values: dict[str, Any]) -> None:
    values["splits"]["a"] = {"union": ["full", "b"]}
    values["splits"]["b"] = {"near": ["val"], "base": "c"}
    values["splits"]["c"] = {"difference": ["full", "a"]}
    values["splits"]["d"] = {"complement": "a"}  # leads to the cycle, but is not on it
    with pytest.raises(ExperimentError) as error:
        _load(values)
    assert "splits.a.union.1: splits depend on each other: a -> b -> c -> a" in str(error.value)
    assert "splits.c.difference.1: splits depend on each other: c -> a -> b -> c" in str(
        error.value
    )
    assert "splits.d" not in str(error.value)


def test_every_definition_of_a_split_loads_and_comes_back(values: dict[str, Any]) -> None:
    values["dedup"] = {"clusters": 4}
    values["splits"] |= {
        "dedup": {"deduplicated": True},
        "core": {"far": {"tests": ["sketch", "val"], "keep": 100}, "base": "dedup"},
        "least": {"near": {"tests": ["sketch"], "keep": 100}, "plus_reference": True},
        "ten": {"random": {"keep": 10, "seed": 3}, "base": "core", "plus_reference": "a {}"},
        "all": {"union": ["core", "least"]},
        "common": {"intersection": ["core", "least"]},
        "minus": {"difference": ["core", "least", "ten"]},
        "rest": {"complement": "core", "base": "dedup"},
    }
    experiment = _load(values)
    assert from_values(to_values(experiment)) == experiment
    captions = {name: split.caption for name, split in experiment.splits.items()}
    assert captions == dict.fromkeys(values["splits"]) | {"least": "a photo of a {}", "ten": "a {}"}
    assert experiment.splits["pruned"].pruned_for == ("sketch",)
    assert experiment.splits["least"].pruned_for == ()


def test_missing_data_says_how_to_get_it(values: dict[str, Any]) -> None:
    with pytest.raises(ExperimentError, match=r"\n  to get the data: make the data$"):
        _load(values, "tests.val.images=nowhere")


def test_a_missing_section_is_named(values: dict[str, Any]) -> None:
    del values["embedder"]
    with pytest.raises(ExperimentError, match="embedder: required, but not there"):
        _load(values)


@pytest.mark.parametrize("override", ["epochs", "=3", "training..epochs=1"])
def test_a_malformed_override_is_refused(values: dict[str, Any], override: str) -> None:
    with pytest.raises(ExperimentError, match=r"expected section\.key=value"):
        _load(values, override)


def test_an_override_into_a_value_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ExperimentError, match="name is 'small', not a section"):
        _load(values, "name.x=1")


def test_overrides_are_yaml(values: dict[str, Any]) -> None:
    experiment = _load(values, "training.seeds=[3, 4]", "training.options={lr: 4e-3}")
    assert experiment.training.seeds == [3, 4]
    assert experiment.training.options == {"lr": 0.004}


def test_duplicate_keys_and_broken_yaml_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("name: a\nname: b\n")
    with pytest.raises(ExperimentError, match="key 'name' appears twice"):
        load_experiment(path)
    path.write_text("name: [a\n")
    with pytest.raises(ExperimentError, match="not valid YAML"):
        load_experiment(path)
    path.write_text("- a\n")
    with pytest.raises(ExperimentError, match="expected a mapping"):
        load_experiment(path)


def test_brackets_and_braces_of_the_current_folder_mean_themselves(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.data.patterns import expand_shards

    odd = tmp_path / "a [x] {b,c} *"
    odd.mkdir()
    for name in ("pool", "reference", "sketch", "val", "weights.pt"):
        (tmp_path / name).rename(odd / name)
    monkeypatch.chdir(odd)
    for pattern in ("pool/*.tar", "pool/{00000..00000}.tar"):
        values["pool"]["shards"] = pattern
        assert expand_shards(_load(values).pool.shards) == [odd / "pool/00000.tar"]
