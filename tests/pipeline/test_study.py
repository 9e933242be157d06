"""The whole study through its command: what runs, what runs again, bad data, kills."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from hpc.files import read_json
from pipeline import artifacts
from pipeline.data.tars import index_shard
from pipeline.layout import Layout
from tests.pipeline import small
from tests.pipeline.small import SmallStudy

INLINE = ("--cluster", "inline")
"""One process instead of one a job: quicker, where it is not the jobs that are looked at."""


@pytest.fixture(scope="module")
def finished(finished_study: SmallStudy) -> SmallStudy:
    """A study that has run whole. Not to be changed."""
    return finished_study


@pytest.fixture
def study(finished: SmallStudy, tmp_path: Path) -> Iterator[SmallStudy]:
    """A copy of the finished study, with the same times."""
    shutil.copytree(finished.folder, tmp_path / "copy", symlinks=True)
    yield SmallStudy(tmp_path / "copy")


def _to_run(study: SmallStudy, *words: str) -> dict[str, int]:
    """How many tasks of each stage a dry run says would run."""
    told, _, _ = study.submit("--dry-run", *words).partition("\n\n")  # what it takes comes after
    lines = told.splitlines()[1:]
    counts = {line.split()[0]: int(line.split()[1]) for line in lines if not line.startswith(" ")}
    return {stage: count for stage, count in counts.items() if count}


def _masks(study: SmallStudy) -> dict[str, bytes]:
    masks = {}
    for path in sorted((study.run / "5_masks").glob("*.h5")):
        masks[path.stem] = artifacts.read(path, artifacts.MASK)["keep"].tobytes()
    assert len(masks) == 4
    return masks


def test_the_folder_shows_the_flow(finished: SmallStudy) -> None:
    names = {path.name for path in finished.run.iterdir() if not path.name.startswith(".")}
    assert names == {
        "experiment.yaml", "plans", "done", "attempts", "logs", "1_embeddings", "3_reference",
        "4_similarity", "5_masks", "6_subsets", "7_training", "8_evaluation", "9_report",
    }  # fmt: skip
    assert [path for path in finished.run.rglob("*") if path.name.endswith(".tmp")] == []


def test_a_stage_uses_only_stages_before_it_and_writes_only_its_own_folder(
    finished: SmallStudy,
) -> None:
    from pipeline.experiment.load import load_experiment
    from pipeline.stages import NAMES, stages_of

    stages = stages_of(load_experiment(Layout(finished.run).experiment))
    assert tuple(stage.name for stage in stages) == NAMES
    folders = []
    for index, stage in enumerate(stages):
        tasks = stage.tasks()
        used = {name.split("/")[0] for task in tasks for name in task.recipe.inputs}
        assert used <= set(NAMES[:index])
        outputs = {output.relative_to(finished.run) for task in tasks for output in task.outputs}
        if tasks:  # a stage without work has none
            (own,) = {output.parts[0] for output in outputs}
            folders.append(own)
    assert folders == sorted(set(folders))


def test_deduplication_runs_and_follows_its_settings(study: SmallStudy) -> None:
    words = ["--until", "dedup", "dedup.clusters=4", "dedup.files=2"]
    shown = study.simgap("status", str(study.experiment)).stdout
    assert not re.search(r"^ *dedup ", shown, flags=re.M)
    assert _to_run(study, *words) == {"cluster": 1, "assign": 3, "dedup": 2}
    study.submit(*INLINE, *words, "dedup.threshold=0.99")
    assert _to_run(study, *words, "dedup.threshold=0.99") == {}
    counts = [study.markers()[f"dedup/0000{index}"]["counts"] for index in range(2)]
    assert sum(count["rows"] for count in counts) == 72
    assert sum(count["clusters"] for count in counts) == 4
    assert _to_run(study, *words, "dedup.threshold=0.9") == {"dedup": 2}
    Layout(study.run).duplicates(1).unlink()
    assert _to_run(study, *words, "dedup.threshold=0.99") == {"dedup": 1}
    Layout(study.run).assignment(2).unlink()
    assert _to_run(study, *words, "dedup.threshold=0.99")["assign"] == 1


def test_embeddings_are_those_of_the_model(finished: SmallStudy) -> None:
    import open_clip
    import torch

    model, _, preprocess = open_clip.create_model_and_transforms(
        "small-model", pretrained=str(finished.folder / "embedder.pt")
    )
    model.eval()
    found = artifacts.read(Layout(finished.run).embeddings("sketch", 0), artifacts.EMBEDDINGS)
    from PIL import Image

    images = [Image.open(finished.folder / "sketch" / key) for key in found.text("key")]
    with torch.inference_mode():
        expected = model.encode_image(torch.stack([preprocess(image) for image in images])).double()
    expected = expected / expected.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(found["embedding"], expected.numpy(), atol=2e-3)
    names = sorted(small.CLASSES)
    assert found["label"].tolist() == [names.index(key.split("/")[0]) for key in found.text("key")]


def test_thresholds_and_masks_follow_their_definition(finished: SmallStudy) -> None:
    _check_masks(finished)


def _check_masks(study: SmallStudy) -> None:
    """The masks once more, from the stored embeddings and the formulas alone."""
    run = Layout(study.run)

    def rows(name: str, files: int) -> np.ndarray:
        paths = [run.embeddings(name, index) for index in range(files)]
        parts = [artifacts.read(path, artifacts.EMBEDDINGS)["embedding"] for path in paths]
        return np.concatenate(parts).astype(np.float64)

    pool, reference = rows("pool", 3), rows("reference", 2)
    for test in small.TESTS:
        queries = rows(test, 1)
        tau = (reference @ queries.T).max(axis=0)
        stored = artifacts.read(run.reference(test), artifacts.REFERENCE)["threshold"]
        np.testing.assert_array_equal(stored, tau)
        keep = ~(pool @ queries.T > tau).any(axis=1)
        mask = artifacts.read(run.mask(f"{test}-pruned"), artifacts.MASK)
        stored_keep = np.concatenate([artifacts.keep_of(mask, index) for index in range(3)])
        np.testing.assert_array_equal(stored_keep, keep)
        assert 0 < keep.sum() < len(keep)  # or the test would show nothing
    control = artifacts.read(run.mask("sketch-control"), artifacts.MASK)
    pruned = artifacts.read(run.mask("sketch-pruned"), artifacts.MASK)
    assert control.attributes["kept"] == pruned.attributes["kept"]


def test_statistics_count_what_the_masks_and_scans_say(finished: SmallStudy) -> None:
    run = Layout(finished.run)
    scans = [artifacts.read(run.similarity(index), artifacts.SIMILARITY) for index in range(3)]
    near = np.concatenate([scan["near"] for scan in scans])
    above = sum(scan["above_threshold"] for scan in scans)
    for split in ("full", "sketch-pruned", "photo-pruned", "sketch-control"):
        mask = artifacts.read(run.mask(split), artifacts.MASK)
        keep = np.concatenate([artifacts.keep_of(mask, index) for index in range(3)])
        found = read_json(run.statistics(split))
        assert found["rows"] == found["base"] == len(near)
        assert found["kept"] == keep.sum()
        assert list(found["near"].values()) == near.sum(axis=0).tolist()
        assert list(found["kept_near"].values()) == near[keep].sum(axis=0).tolist()
        assert found["overlaps"] == {"photo & sketch": near.all(axis=1).sum()}
        assert (found["all"], found["any"]) == (near.all(axis=1).sum(), near.any(axis=1).sum())
        edges = found["per_query"]["sketch"]["edges"]
        counts = found["per_query"]["sketch"]["queries"]
        assert edges[:4] == [0, 1, 2, 5]
        sketch = above[scans[0].attributes["offsets"][1] :]
        assert counts == [((a <= sketch) & (sketch < b)).sum() for a, b in pairwise(edges)]
        assert sum(counts) == len(sketch)


def test_subsets_hold_the_kept_samples_byte_for_byte(finished: SmallStudy) -> None:
    import webdataset

    run = Layout(finished.run)
    pool = {
        s["__key__"]: s for s in _samples(webdataset, sorted((finished.folder / "pool").iterdir()))
    }
    mask = artifacts.read(run.mask("sketch-pruned"), artifacts.MASK)
    kept = []
    for index in range(3):
        embeddings = artifacts.read(run.embeddings("pool", index), artifacts.EMBEDDINGS)
        kept += embeddings.text("key", np.flatnonzero(artifacts.keep_of(mask, index)))
    sizes = read_json(run.subset("sketch-pruned") / "sizes.json")
    tars = [run.subset("sketch-pruned") / name for name in sizes]
    assert tars == sorted(run.subset("sketch-pruned").glob("*/*.tar"))
    found = list(_samples(webdataset, tars))
    assert [one["__key__"] for one in found] == kept
    for one in found:
        assert {n: one[n] for n in ("jpg", "txt", "json")} == {
            n: pool[one["__key__"]][n] for n in ("jpg", "txt", "json")
        }
    assert [len(index_shard(tar).samples) for tar in tars] == list(sizes.values())
    for number in range(3):
        sizes_of_task = [sizes[name] for name in sizes if name.startswith(f"{number:05d}/")]
        assert max(sizes_of_task) <= 20 and max(sizes_of_task) - min(sizes_of_task) <= 1


def _samples(webdataset, tars):  # type: ignore[no-untyped-def]
    return webdataset.DataPipeline(
        webdataset.SimpleShardList([str(tar) for tar in tars]), webdataset.tarfile_to_samples()
    )


def test_accuracy_is_that_of_open_clip_itself(finished: SmallStudy) -> None:
    import open_clip
    import torch
    from PIL import Image

    run = Layout(finished.run)
    model, _, preprocess = open_clip.create_model_and_transforms(
        "small-model", pretrained=str(run.checkpoint("full", 0))
    )
    model.eval()
    names = sorted(small.CLASSES)
    classifier = open_clip.build_zero_shot_classifier(
        model, open_clip.get_tokenizer("small-model"), names, [lambda name: f"a photo of a {name}"]
    )
    stored = artifacts.read(run.evaluation("full", 0, "photo"), artifacts.EVALUATION)
    images = [Image.open(finished.folder / "photo" / key) for key in stored.text("key")]
    with torch.inference_mode():
        features = model.encode_image(torch.stack(list(map(preprocess, images))), normalize=True)
        logits = (100 * features @ classifier).numpy()
    np.testing.assert_allclose(stored["logits"], logits, atol=1e-3)
    labels = np.array([names.index(key.split("/")[0]) for key in stored.text("key")])
    assert stored.attributes["accuracy"] == (logits.argmax(axis=1) == labels).mean()
    per_class = [(logits.argmax(1) == labels)[labels == c].mean() for c in range(3)]
    np.testing.assert_allclose(stored["class_accuracy"], per_class)


def _seconds_of_children() -> float:
    """Of the processor: the machine may be busy with other things."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_the_same_command_again_does_nothing_and_says_so_at_once(finished: SmallStudy) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.run.rglob("*") if path.is_file()}
    started = _seconds_of_children()
    printed = finished.submit()
    assert _seconds_of_children() - started < 2
    assert "is up to date" in printed
    after = {path: path.stat().st_mtime_ns for path in finished.run.rglob("*") if path.is_file()}
    before.pop(finished.run / ".submission")
    after.pop(finished.run / ".submission")
    assert after == before


def test_a_moved_run_is_still_up_to_date(study: SmallStudy) -> None:
    assert "0 tasks would run" in study.submit("--dry-run")


@pytest.mark.parametrize("damage", ["delete", "flip"])
def test_one_damaged_embeddings_file(study: SmallStudy, damage: str) -> None:
    path = Layout(study.run).embeddings("pool", 1)
    masks, markers = _masks(study), study.markers()
    if damage == "delete":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[data.index(artifacts.read(path, artifacts.EMBEDDINGS)["embedding"].tobytes())] ^= 1
        path.write_bytes(data)
    assert _to_run(study) == {
        "embed": 1, "scan": 1, "mask": 8, "subset": 9, "train": 3, "evaluate": 6, "report": 1,
    }  # fmt: skip
    study.submit(*INLINE)
    ran = {name for name, marker in study.markers().items() if marker != markers[name]}
    # It came out bit for bit the same, so nobody has to train again.
    assert ran == {"embed/pool/00001"}
    assert _masks(study) == masks
    assert _to_run(study) == {}


@pytest.mark.parametrize(
    ("override", "to_run"),
    [
        ("tests.sketch.threshold=0.99", {"reference": 1, "scan": 3, "mask": 2 + 4, "subset": 6, "train": 2, "evaluate": 4, "report": 1}),
        ("splits.photo-pruned.near=[photo,sketch]", {"mask": 1 + 1, "report": 1}),
        ("splits.sketch-control.random.seed=2", {"mask": 1 + 1, "subset": 3, "train": 1, "evaluate": 2, "report": 1}),
        ("training.seeds=[0,1]", {"train": 3, "evaluate": 6, "report": 1}),
        ("training.epochs=3", {"train": 3, "evaluate": 6, "report": 1}),
        ("similarity.neighbours=2", {"reference": 2, "scan": 3, "report": 1}),
        ("evaluation.templates=['a {}']", {"evaluate": 6, "report": 1}),
        ("embedder.workers=0", {}),
        ("report.title=New", {"report": 1}),
    ],
)  # fmt: skip
def test_a_change_runs_only_what_depends_on_it(
    finished: SmallStudy, override: str, to_run: dict[str, int]
) -> None:
    assert _to_run(finished, override) == to_run


def test_one_more_test_set_leaves_the_other_splits_alone(study: SmallStudy) -> None:
    shutil.copytree(study.folder / "photo", study.folder / "more")
    markers = study.markers()
    assert _to_run(study, "tests.more={images: more}") == {
        "embed": 1, "reference": 1, "scan": 3, "mask": 4, "evaluate": 3, "report": 1,
    }  # fmt: skip
    study.submit(*INLINE, "tests.more={images: more}", "--until", "mask")
    ran = {name for name, marker in study.markers().items() if marker != markers.get(name)}
    masks = {name for name in ran if name.startswith("mask/")}
    assert masks == {f"mask/statistics/{split}" for split in _masks(study)}
    assert all("more" in study.markers()[name]["counts"]["near"] for name in masks)


def test_a_dry_run_says_why(study: SmallStudy) -> None:
    printed = study.submit("--dry-run", "tests.sketch.threshold=0.99")
    assert "stale: sketch: threshold: reference -> 0.99" in printed
    assert "stale: sketch-pruned and 5 more: input scan/00000#sketch and 2 more changed" in printed


def test_status_counts_what_is_done(finished: SmallStudy) -> None:
    done = finished.simgap("status", str(finished.experiment))
    assert done.returncode == 0
    assert [line.split()[:2] for line in done.stdout.splitlines() if "/" in line and "runs" not in line] == [
        ["embed", "7/7"], ["reference", "2/2"], ["scan", "3/3"], ["mask", "8/8"],
        ["subset", "9/9"], ["train", "3/3"], ["evaluate", "6/6"], ["report", "1/1"],
    ]  # fmt: skip
    assert finished.simgap("status", str(finished.run)).stdout == done.stdout


@pytest.fixture
def spoilt(tmp_path: Path) -> SmallStudy:
    """A study whose pool has every fault at once."""
    study = small.make(tmp_path)
    good = small.shard(0)
    by_key = [good[start : start + 3] for start in range(0, len(good), 3)]
    by_key[1] = [(name, data) for name, data in by_key[1] if not name.endswith(".txt")]
    by_key[2] = [(by_key[2][0][0], by_key[2][0][1][:-200]), *by_key[2][1:]]
    by_key[3] = by_key[4]  # a key twice
    key = by_key[5][0][0].removesuffix(".jpg")
    by_key[5] = small.sample(key, "photo", 0, 5, "<script>alert('pool')</script> & \"quotes\"")
    by_key[6] = by_key[6][1:]  # no image
    small.write_tar(tmp_path / "pool/00000.tar", [one for group in by_key for one in group])
    torn = tmp_path / "pool/00001.tar"
    os.truncate(torn, torn.stat().st_size * 6 // 10)
    small.write_tar(tmp_path / "pool/00003.tar", [])
    (tmp_path / "pool/00004.tar").touch()
    return study


def test_bad_samples_are_skipped_counted_and_listed(spoilt: SmallStudy) -> None:
    spoilt.submit(*INLINE)
    run = Layout(spoilt.run)
    files = [artifacts.read(run.embeddings("pool", i), artifacts.EMBEDDINGS) for i in range(5)]
    listed = dict(
        pair
        for file in files
        for pair in zip(file.text("skipped_key"), file.text("skipped_reason"), strict=True)
    )
    assert {key: reason for key, reason in listed.items() if key.startswith("00000")} == {
        "00000.tar:000000001": "no caption",
        "00000.tar:000000002": "image does not decode: truncated",
        "00000.tar:000000004": "duplicate key",
        "00000.tar:000000006": "no image",
    }
    assert Counter(listed.values())["torn tar"] == 1
    faults = [file.attributes["faults"] for file in files]
    assert [len(each) for each in faults] == [0, 1, 0, 1, 1]
    for file in files:
        assert file.attributes["read"] == len(file["key"]) + len(file["skipped_key"])
    assert [len(file["key"]) for file in files][2:] == [24, 0, 0]
    page = run.report.read_text()
    for key in listed:
        assert key in page
    assert "00001.tar: " in page
    assert "00003.tar: " in page
    assert "<script>" not in page
    markers = spoilt.markers()
    assert markers["embed/pool/00000"]["counts"]["skipped"]["no caption"] == 1
    counts = [markers[f"subset/full/{index:05d}"]["counts"] for index in range(5)]
    assert [one["samples"] for one in counts] == [len(file["key"]) for file in files]
    assert [one["tars"] for one in counts] == [1, 1, 2, 0, 0]


def test_too_many_bad_samples_fail_their_task_and_nothing_else(spoilt: SmallStudy) -> None:
    done = spoilt.simgap("submit", str(spoilt.experiment), *INLINE, "pool.max_bad_fraction=0.05")
    assert done.returncode == 1
    assert "embed pool/00000: ValueError: pool/00000: 4 of 24 images can't be used" in done.stdout
    assert "more than max_bad_fraction = 0.05 allows" in done.stdout
    markers = spoilt.markers()
    assert "embed/pool/00002" in markers
    assert "scan/00002" in markers
    assert "scan/00000" not in markers
    assert "mask/full" not in markers
    status = spoilt.simgap("status", str(spoilt.experiment), "pool.max_bad_fraction=0.05").stdout
    assert "embed pool/00000: ValueError" in status
    spoilt.submit(*INLINE, "--until", "mask")  # as the experiment says: half of them may be bad


@pytest.mark.parametrize("victim", ["command", "jobs"])
def test_kill_9_at_any_moment_gives_the_same_masks(
    finished: SmallStudy, tmp_path: Path, victim: str
) -> None:
    """Killed again and again, a little later each time, until it gets through."""
    study = small.make(tmp_path / "killed")
    command = [sys.executable, "-m", "pipeline.submit", str(study.experiment), "--until", "mask"]
    for delay in np.arange(1.0, 30.0, 2.5):
        process = subprocess.Popen(command, cwd=study.folder, stdout=subprocess.DEVNULL)
        time.sleep(delay)
        if process.poll() is not None:
            break
        for pid in [process.pid] if victim == "command" else _offspring(process.pid):
            with suppress(ProcessLookupError):  # it may end by itself
                os.kill(pid, signal.SIGKILL)
        process.wait()
    study.submit("--until", "mask")
    assert _masks(study) == _masks(finished)


def _offspring(pid: int) -> list[int]:
    """The processes that a process started, and those that they started."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    found = [int(word) for word in children.read_text().split()] if children.exists() else []
    return found + [one for child in found for one in _offspring(child)]


def test_inline_gives_the_same_masks(finished: SmallStudy, tmp_path: Path) -> None:
    study = small.make(tmp_path)
    study.submit(*INLINE, "--until", "mask")
    assert _masks(study) == _masks(finished)


def test_only_one_split(tmp_path: Path, finished: SmallStudy) -> None:
    study = SmallStudy(tmp_path / "copy")
    shutil.copytree(finished.folder, study.folder)
    counts = _to_run(study, "--split", "full", "training.epochs=3")
    assert counts == {"train": 1, "evaluate": 2}


def test_two_submissions_at_once_are_refused(study: SmallStudy) -> None:
    import fcntl

    with (study.run / ".submission").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = study.simgap("submit", str(study.experiment))
    assert done.returncode == 2
    assert "another submission works on" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("submit", "none.yaml"),
            "none.yaml: no such file, and no shipped experiments: datacomp-small",
        ),
        (("submit", "small.yaml", "--profile", "no"), "no: no such file, and no shipped"),
        (("submit", "small.yaml", "--split", "no"), "--split no: not among the trained splits"),
        (("submit", "small.yaml", "--until", "no"), "invalid choice: 'no'"),
        (("submit", "small.yaml", "--cluster", "moon"), "invalid choice: 'moon'"),
        (("submit", "small.yaml", "--task", "scan/9"), "--task scan/9: no such task; they are"),
        (("submit", "small.yaml", "x=1"), "x: unknown key"),
        (("status", "pool"), "is no run"),
        (("sumbit",), "unknown command 'sumbit'"),
    ],
)
def test_typing_the_wrong_thing(finished: SmallStudy, words: tuple[str, ...], message: str) -> None:
    done = finished.simgap(*words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_training_killed_after_its_end_is_not_done_again(study: SmallStudy) -> None:
    """A kill after the checkpoint is published and before the marker is written."""
    name = "train/full/seed-0"
    marker = study.markers()[name]
    (study.run / f"done/{name}.{marker['digest']}.json").unlink()
    checkpoint = Layout(study.run).checkpoint("full", 0)
    leftover = checkpoint.parent / "work-of-a-killed-clean-up"
    leftover.mkdir()
    before = checkpoint.stat().st_mtime_ns
    study.submit("--until", "train")
    assert checkpoint.stat().st_mtime_ns == before
    assert not leftover.exists()
    assert study.markers()[name]["fingerprints"] == marker["fingerprints"]


def test_a_damaged_checkpoint_is_trained_again_to_the_same_weights(study: SmallStudy) -> None:
    import torch

    checkpoint = Layout(study.run).checkpoint("full", 0)
    good = torch.load(checkpoint, weights_only=True)["state_dict"]
    os.truncate(checkpoint, checkpoint.stat().st_size - 100)
    assert _to_run(study) == {"train": 1, "evaluate": 2, "report": 1}
    study.submit()
    again = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(again[name], weights) for name, weights in good.items())


def test_one_submission_repairs_everything_after_an_input_came_out_different(
    study: SmallStudy,
) -> None:
    """Reference images rewritten in place are not seen, until their embeddings are made again."""
    for image in (study.folder / "reference" / "cross").iterdir():
        image.write_bytes(small.jpeg("sketch", 2, 1))
    masks = _masks(study)
    Layout(study.run).embeddings("reference", 0).unlink()
    study.submit(*INLINE, "--until", "embed")
    printed = study.submit("--dry-run")
    assert "was made again and came out different" in printed
    assert _to_run(study)["train"] == 2  # all but full
    study.submit(*INLINE, "--until", "mask")
    assert _masks(study) != masks
    assert _to_run(study, "--until", "mask") == {}
    _check_masks(study)


def test_a_damaged_tar_of_a_subset_is_noticed(study: SmallStudy) -> None:
    tar = Layout(study.run).subset_task("full", 1) / "00000.tar"
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")
    assert _to_run(study) == {"subset": 1, "train": 1, "evaluate": 2, "report": 1}


@pytest.mark.parametrize("text", ["{}", "[]", "nonsense"])
def test_damaged_records_are_no_crash(study: SmallStudy, text: str) -> None:
    run = Layout(study.run)
    run.checkpoint("full", 0).with_name("training.json").write_text(text)
    os.utime(run.checkpoint("full", 0))
    (run.subset_task("sketch-pruned", 0) / "subset.json").write_text(text)
    for path in (study.run / "attempts").rglob("*.lock"):
        path.with_suffix(".json").write_text(text)
    assert _to_run(study) == {"subset": 1, "train": 2, "evaluate": 4, "report": 1}
    assert study.simgap("status", str(study.experiment)).returncode == 0


def test_the_pool_may_move(study: SmallStudy) -> None:
    (study.folder / "pool").rename(study.folder / "elsewhere")
    moved = "pool.shards=elsewhere/*.tar"
    assert _to_run(study, moved) == {}
    shutil.rmtree(Layout(study.run).subset("full"))
    study.submit(moved, "--until", "train", "--split", "full")
    assert _to_run(study, moved) == {}


def test_a_shard_that_changes_after_it_was_embedded_is_not_copied(study: SmallStudy) -> None:
    from hpc.stage import Context, Resources
    from pipeline.experiment.load import load_experiment
    from pipeline.stages.subset import Subset

    experiment = load_experiment(Layout(study.run).experiment, [f"runs={study.folder / 'runs'}"])
    pool = experiment.pool.model_copy(update={"shards": str(study.folder / "pool/*.tar")})
    sections = pool, experiment.reference, {"full": None}, experiment.training
    stage = Subset(Layout(study.run), *sections)
    context = Context(digest="d", inputs={}, resources=Resources(), progress=lambda *_: None)
    small.write_tar(study.folder / "pool/00001.tar", small.shard(7))
    with pytest.raises(ValueError, match=r"00001\.tar has changed since it was embedded"):
        stage.run(stage.tasks()[1], context)


def test_a_split_that_keeps_nothing_says_so(study: SmallStudy) -> None:
    done = study.simgap("submit", str(study.experiment), *INLINE, "tests.sketch.threshold=-1")
    assert done.returncode == 1
    assert "the split sketch-pruned keeps no image" in done.stdout
