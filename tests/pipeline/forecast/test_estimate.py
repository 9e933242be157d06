"""What a study takes, said before it runs: the numbers against ones worked out by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpc.ledger import Ledger
from hpc.plan import StagePlan, assess
from hpc.profile import ProfileError, load_profile
from hpc.stage import Resources
from pipeline import submit
from pipeline.experiment.load import load_experiment
from pipeline.forecast.amounts import Amount, total, unknown
from pipeline.forecast.estimate import work_of
from pipeline.forecast.hours import forecast, measured_pace
from pipeline.forecast.model_costs import model_costs
from pipeline.forecast.sizes import Sizes
from pipeline.forecast.speeds import SPEEDS, Speeds
from pipeline.layout import PROBE_TRAINING, shipped
from pipeline.stages import NAMES, stages_of

N, M, R, D = 1000, 50, 80, 512
POOL_BYTES = 20_000


@pytest.fixture
def values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A study of 1,000 images in four tars, none of which is there."""
    monkeypatch.chdir(tmp_path)
    return {
        "name": "plan",
        "pool": {
            "shards": "pool/{0..3}.tar",
            "shards_per_file": 3,
            "size": {"shards": 4, "samples": N, "bytes": POOL_BYTES},
        },
        "reference": {
            "images": "reference",
            "files": 2,
            "size": {"images": R, "bytes": 800, "classes": 4},
        },
        "tests": {
            "sketch": {"images": "sketch", "size": {"images": M, "bytes": 500, "classes": 4}}
        },
        "embedder": {"model": "ViT-B-32", "pretrained": "laion400m_e32", "workers": 4},
        "splits": {"full": "all", "pruned": {"near": ["sketch"]}},
        "training": {"model": "ViT-B-32", "epochs": 3, "batch_size": 2},
        "evaluation": {"templates": ["a {}", "the {}"]},
    }


def _sizes(values: Any) -> Sizes:
    path = Path("plan.yaml")
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    study = load_experiment(path, without_data=True)
    return Sizes(study, assess(stages_of(study), Ledger(study.run)))


def _profile(speeds: str) -> Path:
    path = Path("site.yaml")
    path.write_text(f"cluster: slurm\nspeeds: {speeds}\n")
    return path


def test_embedding_takes_a_forward_pass_for_each_image_of_its_tars(values: dict[str, Any]) -> None:
    work = work_of("embed", "pool/00000", _sizes(values))
    assert work
    assert work.units == work.images == Amount(750)  # three of the four tars
    assert work.flops.value == pytest.approx(750 * 8.82e9, rel=1e-3)
    assert (work.read, work.written) == (Amount(15_000), Amount(750 * (2 * D + 24)))
    assert work.decoders == 4
    last = work_of("embed", "pool/00001", _sizes(values))
    assert last and last.units == Amount(250)
    part = work_of("embed", "reference/00001", _sizes(values))
    assert part and (part.units, part.read) == (Amount(40), Amount(400))


def test_comparing_takes_two_operations_for_each_number_of_each_pair(
    values: dict[str, Any],
) -> None:
    scan, thresholds = (
        work_of("scan", "00000", _sizes(values)),
        work_of("reference", "sketch", _sizes(values)),
    )
    assert scan and thresholds
    assert scan.flops == Amount(2 * 750 * M * D)
    assert scan.read == Amount((750 + M) * 2 * D)
    assert scan.written == Amount(750 * 9 + M * (8 + 160))
    assert thresholds.flops == Amount(2 * R * M * D)


def test_training_takes_three_forward_passes_of_both_towers(values: dict[str, Any]) -> None:
    work = work_of("train", "full/seed-0", _sizes(values))
    assert work
    assert work.units == Amount(3 * N)
    assert work.flops.value == pytest.approx(3 * N * 3 * 14.78e9, rel=1e-3)
    assert work.read == Amount(3 * POOL_BYTES)
    checkpoint = 12 * 151.28e6
    assert work.written.value == pytest.approx(3 * checkpoint, rel=1e-3)
    assert work.stored and work.stored.value == pytest.approx(checkpoint, rel=1e-3)


def test_checkpoints_and_passes_are_those_of_the_options(values: dict[str, Any]) -> None:
    plain = work_of("train", "full/seed-0", _sizes(values))
    values["training"] |= {"checkpoint_every": 400, "options": {"grad-checkpointing": True}}
    parts = work_of("train", "full/seed-0", _sizes(values))
    assert plain and parts
    assert parts.written.value == pytest.approx(3 * plain.written.value)  # 400, 400, 200
    assert parts.flops.value == pytest.approx(plain.flops.value * 4 / 3)


def test_features_of_a_model_take_a_forward_pass_of_each_image(values: dict[str, Any]) -> None:
    values["evaluation"]["few_shot"] = {}
    sizes = _sizes(values)
    test = work_of("features", "full/seed-0/sketch", sizes)
    training = work_of("features", f"full/seed-0/{PROBE_TRAINING}", sizes)
    assert test and training
    assert (test.units, training.units) == (Amount(M), Amount(R))


def test_probes_and_retrieval_take_what_a_first_task_tells(values: dict[str, Any]) -> None:
    Path("pairs.tar").write_bytes(b"1" * 700)
    values["evaluation"] |= {"few_shot": {}, "retrieval": {"pairs": {"shards": "pairs.tar"}}}
    sizes = _sizes(values)
    probe = work_of("probe", "full/seed-0/sketch", sizes)
    pairs = work_of("retrieve", "full/seed-0/pairs", sizes)
    assert probe and probe.read == Amount((R + M) * 4 * D)
    assert pairs and pairs.read == Amount(700) + sizes.checkpoint
    plans = [
        StagePlan(stage=stage, resources=Resources(), elements=[[task]], at_once=1)
        for stage, task in (("probe", "full/seed-0/sketch"), ("retrieve", "full/seed-0/pairs"))
    ]
    for one in forecast(sizes.assessed, plans, sizes, Speeds({"files": {"read_gb": 1.0}})):
        assert f"a first task of the stage {one.stage}" in str(one.seconds.missing)


def test_a_split_that_is_not_made_yet_keeps_at_most_everything(values: dict[str, Any]) -> None:
    assert _sizes(values).kept("full") == Amount(N)
    assert _sizes(values).kept("pruned") == Amount(N, at_most=True)
    subset = work_of("subset", "pruned", _sizes(values))
    assert subset and subset.written == Amount(POOL_BYTES, at_most=True)


@pytest.mark.parametrize(
    ("definition", "kept"),
    [
        ({"near": {"tests": ["sketch"], "keep": 30}}, Amount(30)),
        ({"far": {"tests": ["sketch"], "keep": 30}, "base": "part"}, Amount(30)),
        ({"random": {"keep": 20}}, Amount(20)),
        ({"random": {"like": "part"}}, Amount(300)),
        ({"random": {"like": "pruned"}}, Amount(N, at_most=True)),
        ({"near": ["sketch"], "base": "part"}, Amount(300, at_most=True)),
        ({"near": ["sketch"], "expect": {"kept": 700}}, Amount(700)),
        ({"union": ["part", "few"]}, Amount(310, at_most=True)),
        ({"union": ["part", "few"], "base": "few"}, Amount(10, at_most=True)),
        ({"intersection": ["part", "few"]}, Amount(10, at_most=True)),
        ({"difference": ["part", "few"]}, Amount(300, at_most=True)),
        ({"complement": "part"}, Amount(N - 300, at_most=True)),
        ({"complement": "pruned"}, Amount(N, at_most=True)),
    ],
)
def test_what_a_split_keeps_is_known_as_far_as_its_definition_says(
    values: dict[str, Any], definition: Any, kept: Amount
) -> None:
    values["splits"] |= {
        "part": {"near": ["sketch"], "expect": {"kept": 300}},
        "few": {"random": {"keep": 10}},
        "this": definition,
    }
    assert _sizes(values).kept("this") == kept


def test_a_split_plus_the_reference_is_trained_on_both(values: dict[str, Any]) -> None:
    values["splits"]["plus"] = {"all": True, "plus_reference": True}
    work = work_of("train", "plus/seed-0", _sizes(values))
    assert work
    assert work.units == Amount(3 * (N + R))
    assert work.read == Amount(3 * (POOL_BYTES + 800))


def test_evaluating_takes_the_images_and_the_captions(values: dict[str, Any]) -> None:
    work = work_of("evaluate", "full/seed-0/sketch", _sizes(values))
    assert work
    assert work.flops.value == pytest.approx(M * 8.82e9 + 4 * 2 * 5.96e9, rel=1e-3)


@pytest.mark.parametrize(
    ("model", "image", "text", "millions"),
    [  # as open_clip has profiled them
        ("ViT-B-32", 8.82, 5.96, 151.28),
        ("ViT-B-16-plus-240", 54.76, 9.27, 208.38),
        ("ViT-L-14", 162.03, 13.3, 427.62),
        ("ViT-g-14", 534.06, 47.09, 1366.68),
        ("ViT-L-14-CLIPA-336", 381.92, 5.47, 414.54),
        ("RN50", 12.22, 5.96, 102.01),
    ],
)
def test_the_costs_of_models_are_those_that_open_clip_found(
    model: str, image: float, text: float, millions: float
) -> None:
    costs = model_costs(model)
    assert costs.image_flops == pytest.approx(image * 1e9, rel=2e-3)
    assert costs.text_flops == pytest.approx(text * 1e9, rel=2e-3)
    assert costs.parameters == pytest.approx(millions * 1e6, rel=1e-4)


@pytest.mark.parametrize("model", ["coca_ViT-B-32", "ViT-B-16-SigLIP2", "roberta-ViT-B-32"])
def test_what_a_config_does_not_tell_is_unknown(model: str) -> None:
    costs = model_costs(model)
    assert costs.dimensions > 0
    assert costs.parameters is None


# forecasts


def _embed(values: Any, speeds: Any, at_once: int = 1, **resources: Any) -> Any:
    plan = StagePlan(
        stage="embed",
        resources=Resources(**resources),
        elements=[["pool/00000"], ["pool/00001"]],
        at_once=at_once,
    )
    sizes = _sizes(values)
    (found,) = forecast(sizes.assessed, [plan], sizes, Speeds(speeds))
    return found


def test_the_slowest_step_is_what_limits(values: dict[str, Any]) -> None:
    gpu = {"embed": {"tflops": 8.82}, "files": {"read_gb": 1.0, "write_gb": 1.0}}
    found = _embed(values, {**gpu, "decode": {"images_per_second": 500}}, gpus=1, cpus=8)
    assert found.limit == "GPU"  # 1,000 images a second; four decoders do 2,000
    assert found.seconds.value == found.wall.value == pytest.approx(1.0, rel=1e-3)
    assert found.gpu_hours.value == pytest.approx(1 / 3600, rel=1e-3)
    assert found.core_hours.value == pytest.approx(8 / 3600, rel=1e-3)
    slow = _embed(values, {**gpu, "decode": {"images_per_second": 50}}, gpus=1, cpus=8)
    assert (slow.limit, slow.seconds.value) == ("decoding", pytest.approx(5.0))
    narrow = _embed(values, {**gpu, "decode": {"images_per_second": 50}}, gpus=1, cpus=2)
    assert narrow.seconds.value == pytest.approx(10.0)


def test_jobs_at_once_shorten_the_time_until_the_file_system_is_busy(
    values: dict[str, Any],
) -> None:
    speeds = {
        "embed": {"images_per_second": 100, "tflops": 1},
        "decode": {"images_per_second": 1e9},
        "files": {"read_gb": 1.0, "write_gb": 1.0, "read_gb_in_all": 1.0, "write_gb_in_all": 1.0},
    }
    found = _embed(values, speeds, at_once=2, gpus=1)
    assert (found.seconds.value, found.wall.value, found.limit) == (10.0, 7.5, "GPU")
    speeds["files"] |= {"read_gb_in_all": 2e-6}
    found = _embed(values, speeds, at_once=2, gpus=1)
    assert (found.wall.value, found.limit) == (10.0, "reading in all")


def test_an_unknown_speed_names_the_key_and_is_not_made_up(values: dict[str, Any]) -> None:
    found = _embed(values, {"files": {"read_gb": 1.0}}, gpus=1)
    keys = {"embed.tflops", "decode.images_per_second", "files.write_gb"}
    assert found.seconds.missing == {f"speeds.{key}" for key in keys}
    assert found.seconds.value == pytest.approx(POOL_BYTES / 1e9)  # at least


def test_an_amount_says_how_well_it_is_known() -> None:
    assert total([Amount(1), Amount(2, at_most=True)]).told("3") == "up to 3"
    assert total([Amount(1), unknown("size")]).told("1") == "over 1"
    assert (unknown("size") * 5).told("0") == "unknown"
    assert (Amount(2) * unknown("size")).missing == {"size"}


def test_finished_tasks_come_before_the_profile_and_the_declared_size(
    values: dict[str, Any],
) -> None:
    path = Path("plan.yaml")
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    study = load_experiment(path, without_data=True)
    embed, *_ = stages_of(study)
    ledger, task = Ledger(study.run), embed.tasks()[0]
    digest = assess([embed], ledger)["embed/pool/00000"].digest
    marker = {
        "task": task.name,
        "digest": digest,
        "settings": {},
        "inputs": {},
        "input_fingerprints": {},
        "parts": {},
        "fingerprints": {"": ""},
        "outputs": {},
        "counts": {"used": 600},
        "started": 0.0,
        "seconds": 10.0,
        "ran_on": {"cpus": 2, "gpus": 1, "earlier": [{"started": 5.0, "ended": 7.0}]},
    }
    place = ledger.marker_path("embed", task.name, digest)
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps(marker))
    sizes = Sizes(study, assess(stages_of(study), ledger))
    assert sizes.rows == Amount(800)  # 600 in three of four tars
    plan = StagePlan(
        stage="embed", resources=Resources(cpus=2, gpus=1), elements=[["pool/00001"]], at_once=1
    )
    (found,) = forecast(sizes.assessed, [plan], sizes, Speeds({"embed": {"tflops": 1e9}}))
    assert (found.limit, found.seconds) == ("measured", Amount(200 * 12 / 600))
    other = Resources(cpus=2)  # without the GPU, it would not be as fast
    assert measured_pace("embed", sizes.assessed, other, sizes) is None


# the command


def test_the_dry_run_tells_hours_bytes_and_what_is_unknown(
    values: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("plan.yaml").write_text(yaml.safe_dump(values))
    profile = _profile(
        "{train: {samples_per_second: 1, source: a guess}, decode: {images_per_second: 9}, "
        "files: {read_gb: 1, write_gb: 1}}"
    )
    assert submit.main(["plan.yaml", "--profile", str(profile), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "It would take, with the profile site (without" in told
    row = [line for line in told.splitlines() if line.startswith("train ")][-1]
    assert row.split()[:4] == ["train", "2", "2", "2"]
    assert "up to 50 min" in row  # 3,000 samples in each of two jobs
    assert "speeds.train: samples_per_second 1 (a guess)" in told
    assert "  speeds.embed.tflops in the profile site" in told
    assert not Path("runs").exists()


def test_the_dry_run_tells_programs_the_same(
    values: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("plan.yaml").write_text(yaml.safe_dump(values))
    profile = _profile("{files: {read_gb: 1, write_gb: 1}}")
    command = ["plan.yaml", "--profile", str(profile), "--json"]
    assert submit.main([*command, "--dry-run"]) == 0
    told = {one["stage"]: one for one in json.loads(capsys.readouterr().out)["stages"]}
    assert told["embed"]["bytes_read"] == {
        "value": POOL_BYTES + 800 + 500,
        "at_most": False,
        "unknown_without": [],
    }
    assert told["scan"]["seconds"]["unknown_without"] == ["speeds.scan.tflops"]
    assert submit.main(command) == 2
    assert "expected --dry-run with it" in capsys.readouterr().err


def test_a_stage_without_an_estimate_is_unknown_and_not_free(values: dict[str, Any]) -> None:
    sizes = _sizes(values)
    plan = StagePlan(stage="other", resources=Resources(), elements=[["x"]], at_once=1)
    (found,) = forecast(sizes.assessed, [plan], sizes, Speeds({}))
    assert found.seconds.missing == {"an estimate of the stage other"}


def test_nothing_to_forecast_is_not_forecast(
    values: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    del values["pool"]["size"]
    Path("plan.yaml").write_text(yaml.safe_dump(values))
    assert submit.main(["plan.yaml", "--dry-run"]) == 2
    assert "pool.shards: no shard matches" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("speeds", "message"),
    [
        ("{embd: {tflops: 1}}", "speeds.embd: unknown key; did you mean 'embed'?"),
        ("{embed: {tflop: 1}}", "speeds.embed.tflop: unknown key; did you mean 'tflops'?"),
        ("{embed: {tflops: 0}}", "speeds.embed.tflops: expected a number of at least 1e-09, found 0"),
        ("{embed: 3}", "speeds.embed: expected a mapping, found 3"),
        ("{embed: {tflops: 1, source: 3}}", "speeds.embed.source: expected one line of text, found 3"),
        ("[]", None),
        ("3", "speeds: expected a mapping, found 3"),
    ],
)  # fmt: skip
def test_a_wrong_speed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speeds: str, message: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    if message is None:
        assert load_profile(_profile(speeds), NAMES, SPEEDS).speeds == {}
        return
    with pytest.raises(ProfileError, match=re.escape(message)):
        load_profile(_profile(speeds), NAMES, SPEEDS)


# the studies and profiles that are shipped


@pytest.mark.parametrize(
    ("study", "profile", "trainings"),
    [("laion400m", "a100", 36), ("datacomp-small", "a100", 30), ("datacomp-small", "h100", 30)],
)
def test_a_shipped_study_is_planned_from_an_empty_folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    study: str,
    profile: str,
    trainings: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert submit.main([study, "--profile", profile, "--dry-run"]) == 0
    table = capsys.readouterr().out.partition("It would take")[2]
    assert re.search(rf"^train +{trainings} +{trainings} ", table, flags=re.M)
    assert not re.search("unknown|up to|over ", table)
    assert list(tmp_path.iterdir()) == []
    if profile == "a100":
        assert _hours_said(study) == pytest.approx(_hours_in_all(table), rel=0.03)


def _hours_said(study: str) -> float:
    """The GPU-hours in the comment that a study opens with."""
    comment = shipped("experiments", study).read_text().partition("\nname:")[0]
    said = re.search(r"([\d,]+)[ #\n]+GPU-hours", comment)
    assert said, comment
    return float(said[1].replace(",", ""))


def _hours_in_all(table: str) -> float:
    row = next(line for line in table.splitlines() if line.startswith("in all"))
    return float(re.findall(r"[\d,.]+", row)[2].replace(",", ""))


@pytest.mark.parametrize("study", ["laion400m", "datacomp-small"])
def test_a_shipped_study_without_its_data_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], study: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert submit.main([study, "--profile", "a100"]) == 2
    told = capsys.readouterr().err
    assert "tests.objectnet.images: no such folder" in told
    assert "to get the data: " in told
    assert list(tmp_path.iterdir()) == []


def test_every_shipped_profile_says_where_its_speeds_are_from() -> None:
    for path in sorted(shipped("slurm_templates", "local").parent.glob("*.yaml")):
        speeds = load_profile(path, NAMES, SPEEDS).speeds
        assert [name for name, values in speeds.items() if not values.get("source")] == []


def test_the_generic_profile_shows_every_speed() -> None:
    text = shipped("slurm_templates", "generic").read_text()
    shown = yaml.safe_load(re.sub(r"^# ", "", text[text.index("# speeds:") :], flags=re.M))
    assert list(shown["speeds"]) == sorted(SPEEDS, key=list(shown["speeds"]).index)
    assert set(shown["speeds"]["files"]) == {*SPEEDS["files"], "source"}


def test_jobs_that_cannot_run_here_are_told_after_what_would_run(
    values: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("plan.yaml").write_text(yaml.safe_dump(values))
    Path("wide.yaml").write_text("defaults: {gpus: 999}")
    assert submit.main(["plan.yaml", "--profile", "wide.yaml", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "tasks would run" in told
    assert "Nothing can be said of what it would take: 999 GPUs a job are asked for" in told
