"""Trainings: cut off and gone on with, the same again, and no silent failure."""

import logging
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip_train import data, main

from pipeline.data.world.__main__ import main as draw_world
from pipeline.data.world.build import MODEL
from pipeline.training.options import check_options
from pipeline.training.train import train

STEPS: dict[str, Any] = {
    "train-num-samples": 64,
    "epochs": 2,
    "batch-size": 16,
    "lr": "4e-3",
    "warmup": 2,
    "precision": "fp32",
    "device": "cpu",
    "workers": 1,
    "seed": 0,
    "log-every-n-steps": 1,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_shards(tmp_path_factory.mktemp("training") / "world", 2)


def draw_shards(root: Path, shards: int) -> Path:
    """A world with as many shards of 40 samples, and hardly anything else."""
    sizes = ["--pool", f"{40 * shards}", "--per-shard", "40", "--reference-per-class", "1"]
    assert draw_world([str(root), *sizes, "--test-per-class", "1", "--no-embedder"]) == 0
    return root


@pytest.fixture(autouse=True)
def no_look_ups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def run(world: Path, folder: Path, shards: list[Path] | None = None, **options: Any) -> Path:
    named = {
        name: options.pop(name, None) for name in ("on_progress", "on_start", "checkpoint_every")
    }
    return train(
        model=str(world / MODEL),
        shards=shards or sorted((world / "pool").glob("*.tar")),
        folder=folder,
        options={**STEPS, **options},
        threads=1,
        **named,
    )


def load(checkpoint: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    return content


def assert_same_weights(one: Path, other: Path) -> None:
    weights = load(other)["state_dict"]
    assert all(torch.equal(value, weights[key]) for key, value in load(one)["state_dict"].items())


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HF_HUB_OFFLINE", "1")
        return run(world, tmp_path_factory.mktemp("runs") / "finished")


def test_a_training_ends_with_one_whole_checkpoint(finished: Path) -> None:
    assert load(finished)["epoch"] == 2
    assert [path.name for path in finished.parent.iterdir()] == ["epoch_latest.pt"]
    assert (finished.parents[1] / "out.log").is_file()


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(
    world: Path, finished: Path, tmp_path: Path
) -> None:
    assert_same_weights(finished, run(world, tmp_path / "again"))
    with pytest.raises(AssertionError):
        assert_same_weights(finished, run(world, tmp_path / "other", seed=1))


def test_a_finished_training_returns_at_once(world: Path, finished: Path) -> None:
    written = finished.stat().st_mtime_ns
    calls: list[int] = []
    again = run(world, finished.parents[1], on_progress=lambda done, _: calls.append(done))
    assert again == finished and not calls and finished.stat().st_mtime_ns == written


def test_an_interrupted_training_goes_on_from_its_last_whole_epoch(
    world: Path, tmp_path: Path
) -> None:
    def interrupt(done: int, total: int) -> None:
        assert total == 3 * 64
        if done > 64 + 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(world, tmp_path / "cut", epochs=3, on_progress=interrupt)
    checkpoints = tmp_path / "cut" / "checkpoints"
    assert load(checkpoints / "epoch_latest.pt")["epoch"] == 1
    (checkpoints / "tmp.pt").write_bytes(b"cut off")
    (checkpoints / "epoch_3.pt").write_bytes(b"cut off")
    seen: list[int] = []
    checkpoint = run(world, tmp_path / "cut", epochs=3, on_progress=lambda n, _: seen.append(n))
    assert load(checkpoint)["epoch"] == 3
    assert seen == list(range(64 + 16, 3 * 64 + 1, 16))
    assert [path.name for path in checkpoints.iterdir()] == ["epoch_latest.pt"]


def test_odd_paths_are_taken_literally(world: Path, finished: Path, tmp_path: Path) -> None:
    odd = tmp_path / 'it\'s {a,b} "ü" ${HOME} [x]* a\\b::c, 50%'
    odd.mkdir()
    shards = [odd / f"{{0..1}} {shard.name}" for shard in (world / "pool").glob("*.tar")]
    for shard in sorted(shards):
        shard.symlink_to(world / "pool" / shard.name.split()[-1])
    folder = tmp_path / 'it\'s {a,b} "ü" ${HOME} [x]* 50%' / "seed-0"
    run(world, folder, sorted(shards), epochs=1)
    assert "webdataset error" not in (folder / "out.log").read_text(encoding="utf-8")
    checkpoint = run(world, folder, sorted(shards))  # resumes
    assert load(checkpoint)["epoch"] == 2
    with pytest.raises(ValueError, match="'::'"):
        run(world, odd / "seed-0")


def test_logging_is_left_as_it_was(
    world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    heard: list[str] = []

    class Caller(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    root, caller = logging.getLogger(), Caller()
    root.addHandler(caller)
    logging.getLogger("caller").setLevel(logging.ERROR)
    before = (root.level, list(root.handlers), data.get_wds_dataset, main.setup_logging)

    def speak(done: int, total: int) -> None:
        logging.getLogger("another").warning("%d samples", done)
        logging.getLogger("another").info("not asked for")

    try:
        run(world, tmp_path / "first", epochs=1, on_progress=speak)
        run(world, tmp_path / "second", epochs=1)
    finally:
        root.removeHandler(caller)
    assert before[0] == root.level and before[1][:-1] == root.handlers
    assert (data.get_wds_dataset, main.setup_logging) == before[2:]
    assert logging.getLogger("caller").level == logging.ERROR
    assert heard == [f"{done} samples" for done in (16, 32, 48, 64)]
    assert capfd.readouterr() == ("", "")
    first, second = ((tmp_path / name / "out.log").read_text() for name in ("first", "second"))
    assert first.count("Start epoch") == second.count("Start epoch") == 1
    assert "second" not in first and "first" not in second


def test_threads_are_given_back(world: Path, finished: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    used: list[int] = []
    run(
        world,
        tmp_path / "one",
        epochs=1,
        on_progress=lambda *_: used.append(torch.get_num_threads()),
    )
    assert set(used) == {1} and torch.get_num_threads() == before


def test_a_loss_that_is_no_number_ends_the_training(world: Path, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"epoch 1 of 2, after \d+ of 64 samples"):
        run(world, tmp_path / "nan", lr=1e30, warmup=0)
    assert not list(tmp_path.rglob("*.pt"))


@pytest.mark.parametrize("workers", [0, 1])
def test_shards_without_a_batch_are_an_error_and_no_endless_search(
    world: Path, tmp_path: Path, workers: int
) -> None:
    with tarfile.open(tmp_path / "00000.tar", "w"):
        pass
    with pytest.raises(ValueError, match="fewer usable samples than one batch"):
        run(world, tmp_path / "run", [tmp_path / "00000.tar"], workers=workers)


def test_missing_and_too_few_shards_are_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.tar: no such shard"):
        run(world, tmp_path / "run", [tmp_path / "nowhere.tar"])
    with pytest.raises(ValueError, match="2 shards for 3 workers"):
        run(world, tmp_path / "run", workers=3)
    with pytest.raises(ValueError, match="train-num-samples"):
        run(world, tmp_path / "run", **{"train-num-samples": None})
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_absent_gpu_is_an_error(world: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="cuda"):
        run(world, tmp_path / "run", device="cuda")


def test_a_foreign_or_truncated_checkpoint_is_named(
    world: Path, finished: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "epoch_latest.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(finished.read_bytes()[:100_000])
    with pytest.raises(ValueError, match=r"no whole checkpoint.*epoch_latest\.pt: cut off"):
        run(world, tmp_path / "run")
    checkpoint.write_bytes(finished.read_bytes())
    with pytest.raises(ValueError, match="of epoch 2, but this training has 1"):
        run(world, tmp_path / "run", epochs=1)


@pytest.mark.parametrize("given_up", [-1, SystemExit(1)])
def test_open_clip_giving_up_is_an_error(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given_up: Any
) -> None:
    def give_up(arguments: list[str]) -> int:
        if isinstance(given_up, SystemExit):
            raise given_up
        return int(given_up)

    monkeypatch.setattr(main, "main", give_up)
    with pytest.raises((RuntimeError, ValueError), match=r"open_clip_train (gave up|exited)"):
        run(world, tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"batch_size": 8}, "did you mean 'batch-size'"),
        ({"--lr": 8}, "did you mean 'lr'"),
        ({"save-frequency": 8}, "save-frequency: not to be set here: simgap keeps"),
        ({"train-data": "x"}, "simgap passes the shards"),
        ({"epochs": 1.5}, "epochs: invalid int value: '1.5'"),
        ({"epochs": 0}, "epochs: 0 is too small"),
        ({"lr": float("nan")}, "lr: nan"),
        ({"lr": True}, "lr: expected one value, got True"),
        ({"batch-size": [8]}, r"batch-size: expected one value, got \[8\]"),
        ({"local-loss": 1}, "local-loss: a flag, expected true or false"),
        ({"precision": "fp33"}, "precision: invalid choice: 'fp33'"),
        ({"image-mean": []}, "image-mean: expected at least one"),
        ({"aug-cfg": "scale=1"}, "aug-cfg: expected a mapping"),
        ({"lr-scheduler": "linear"}, "lr-scheduler: unknown 'linear'"),
        ({"lr-scheduler": "const-cooldown"}, "epochs-cooldown"),
        ({7: 8}, "7 is no option"),
    ],
)
def test_wrong_options_are_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        check_options(options)


def test_right_options_pass() -> None:
    check_options({})
    check_options(STEPS)
    check_options({"image-mean": [0.5, 0.5, 0.5], "force-image-size": [48], "lr": "1e-3"})
    check_options({"aug-cfg": {"scale": [0.9, 1.0], "use_timm": True}, "local-loss": False})
    check_options({"grad-clip-norm": None, "siglip": True})


def test_options_are_checked_without_torch() -> None:
    code = (
        "import sys; from pipeline.training.options import check_options; check_options({'lr': 1})\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
