"""The miniature world: the same parameters, the same bytes, whatever interrupts the drawing."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hpc.files import read_json
from pipeline.data.classes import classes_of, read_class_list
from pipeline.data.folders import list_images
from pipeline.data.tars import index_shard
from pipeline.data.world.__main__ import main
from pipeline.data.world.items import PoolImage, classed_image, pool_image
from pipeline.data.world.plan import CLASSES, POOL_MIX, TEST_STYLES, Parameters
from pipeline.data.world.render import render
from pipeline.models import load_embedder

TINY = ["--pool", "40", "--per-shard", "16", "--reference-per-class", "2", "--test-per-class", "1"]
IMAGES = [*TINY, "--no-embedder", "--processes", "1"]


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def pixels(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg)), dtype=np.float32)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world") / "mini"
    assert main([str(root), *IMAGES]) == 0
    return root


@pytest.fixture(scope="module")
def pool() -> list[PoolImage]:
    return [pool_image(0, index, 25) for index in range(1200)]


def test_the_layout_is_that_of_real_data(world: Path) -> None:
    shards = sorted((world / "pool").glob("*.tar"))
    assert [shard.name for shard in shards] == ["00000.tar", "00001.tar", "00002.tar"]
    assert read_json(world / "pool" / "sizes.json") == dict(
        zip(("00000.tar", "00001.tar", "00002.tar"), (16, 16, 8), strict=True)
    )
    assert read_json(world / "pool" / "00002_stats.json")["successes"] == 8
    assert [len(index_shard(shard).samples) for shard in shards] == [16, 16, 8]
    classes = read_class_list(world / "classes.txt")
    assert classes.ids == classes.names == CLASSES
    assert set(classes_of(world / "reference").ids) == set(CLASSES)
    assert len(list_images(world / "reference", classes)) == 32
    for name in TEST_STYLES:
        assert [image.label for image in list_images(world / "tests" / name, classes)] == [
            *range(16)
        ]


def test_a_shard_is_as_img2dataset_writes_it(world: Path) -> None:
    with tarfile.open(world / "pool" / "00001.tar") as tar:
        entries = tar.getmembers()
        assert [entry.name for entry in entries[:3]] == [
            "000000016.jpg",
            "000000016.txt",
            "000000016.json",
        ]
        assert {(entry.mtime, entry.uid, entry.uname) for entry in entries} == {(0, 0, "")}
        read: list[Any] = [tar.extractfile(entry) for entry in entries[:3]]
        image, caption, facts = (one.read() for one in read)
    assert Image.open(io.BytesIO(image)).size == (48, 48)
    facts = json.loads(facts)
    assert facts["key"] == "000000016" and facts["caption"] == caption.decode()
    assert set(facts) == {"key", "caption", "style", "class", "origin"}


def test_the_numbers_of_the_files_count_through_a_set(world: Path) -> None:
    folder = world / "reference" / "ring"
    assert sorted(path.name for path in folder.iterdir()) == ["00002.jpg", "00018.jpg"]
    assert (folder / "00018.jpg").read_bytes() == classed_image(0, "reference", 18)


def test_parallel_drawing_gives_the_same_bytes(world: Path, tmp_path: Path) -> None:
    assert main([str(tmp_path / "two"), *IMAGES[:-1], "2"]) == 0
    assert contents(tmp_path / "two") == contents(world)


def test_another_seed_gives_another_world() -> None:
    assert classed_image(0, "sketch", 3) != classed_image(1, "sketch", 3)
    assert classed_image(0, "sketch", 3) != classed_image(0, "val", 3)
    assert pool_image(0, 5, 25).jpeg != pool_image(1, 5, 25).jpeg


def test_planted_images_resemble_their_origin(pool: list[PoolImage]) -> None:
    planted = [image for image in pool if image.origin]
    for image in planted:
        assert image.origin is not None
        name, _, number = image.origin.partition("/")
        if name == "pool":
            source = pool[int(number)]
            assert source.origin is None and source.style == image.style
            original = source.jpeg
        else:
            original = classed_image(0, name, int(number))
            assert image.style == TEST_STYLES[name] and image.label == int(number) % 16
        assert np.corrcoef(pixels(image.jpeg).ravel(), pixels(original).ravel())[0, 1] > 0.4
    kinds = Counter(str(image.origin).partition("/")[0] == "pool" for image in planted)
    assert 20 <= kinds[True] <= 55 and 3 <= kinds[False] <= 25


def test_styles_come_as_often_as_announced(pool: list[PoolImage]) -> None:
    styles = Counter(image.style for image in pool if image.origin is None)
    for style, share in POOL_MIX.items():
        assert styles[style] / styles.total() == pytest.approx(share, abs=0.04)
    assert all((image.class_name is None) == (image.style == "unrelated") for image in pool)


@pytest.mark.parametrize("style", [*POOL_MIX, "v2"])
def test_every_class_can_be_drawn_in_every_style(style: str) -> None:
    for label in range(len(CLASSES)):
        image, _ = render(style, np.random.default_rng(label), label)
        assert image.shape == (48, 48, 3) and image.dtype == np.uint8 and image.std() > 3


def test_a_rerun_says_that_all_is_there(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (world / "world.json").stat().st_mtime_ns
    assert main([str(world), *IMAGES]) == 0
    assert "up to date" in capsys.readouterr().out
    assert (world / "world.json").stat().st_mtime_ns == before


def test_a_rerun_draws_what_is_missing_and_nothing_else(world: Path, tmp_path: Path) -> None:
    root = tmp_path / "mini"
    shutil.copytree(world, root)
    (root / "world.json").unlink()
    (root / "pool" / "00001.tar").unlink()
    (root / "pool" / "00002_stats.json").unlink()  # cut off between the tar and its statistics
    shutil.rmtree(root / "tests" / "a" / "fish")
    (root / ".unfinished" / "x").mkdir(parents=True)
    untouched = (root / "pool" / "00000.tar").stat().st_mtime_ns
    assert main([str(root), *IMAGES]) == 0
    assert contents(root) == contents(world)
    assert (root / "pool" / "00000.tar").stat().st_mtime_ns == untouched


def test_a_killed_build_goes_on(tmp_path: Path) -> None:
    sizes = ["--pool", "600", "--per-shard", "50", *TINY[4:], "--no-embedder", "--processes", "2"]
    root, fresh = tmp_path / "mini", tmp_path / "fresh"
    command = [sys.executable, "-m", "pipeline.data.world", str(root), *sizes]
    process = subprocess.Popen(command)
    while not (root / "pool" / "00000.tar").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (root / "world.json").exists()
    time.sleep(0.2)  # its drawing processes notice that it is gone
    (root / "pool" / ".00011.0123456789ab.tmp.tar").write_bytes(b"cut off")
    assert main([str(root), *sizes]) == 0
    assert main([str(fresh), *sizes]) == 0
    assert contents(root) == contents(fresh)


def test_other_parameters_are_refused(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(world), *IMAGES, "--seed", "7"]) == 1
    told = capsys.readouterr().err
    assert "seed is 0, not 7" in told and "another folder" in told and "pool is" not in told


def test_a_folder_with_other_things_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("")
    assert main([str(tmp_path), *IMAGES]) == 1
    assert "thesis.tex" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"pool": 0}, "pool: got 0"),
        ({"seed": -1}, "seed: got -1"),
        ({"embedder_samples": 100}, "embedder_samples: got 100"),
        ({"pool": 10}, "the embedder needs 64"),
    ],
)
def test_senseless_parameters_are_refused(given: dict[str, int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Parameters(**given)


def test_help_and_a_rerun_need_neither_numpy_nor_torch(world: Path) -> None:
    code = (
        "import sys\nfrom pipeline.data.world.__main__ import main\n"
        f"assert main({[str(world), *IMAGES]!r}) == 0\n"
        "assert not {'numpy', 'torch', 'PIL', 'rich'} & set(sys.modules)\n"
        "main(['--help'])"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "up to date" in told.stdout and "examples:" in told.stdout


def test_the_embedder_loads_and_is_the_same_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    root, written = tmp_path / "mini", []
    command = [str(root), "--pool", "64", "--embedder-samples", "256", *TINY[4:]]
    for _ in range(2):
        assert main(command) == 0
        written.append((root / "embedder.pt").read_bytes())
        (root / "embedder.pt").unlink()
    assert written[0] == written[1]
    (root / "embedder.pt").write_bytes(written[0])
    content = torch.load(root / "embedder.pt", weights_only=True)
    assert set(content) == {"epoch", "name", "state_dict"} and content["epoch"] == 4
    assert not (root / "embedder-training").exists()
    model, checkpoint = str(root / "mini-effnet-48.json"), str(root / "embedder.pt")
    assert load_embedder(model, checkpoint, precision="fp32", device="cpu").dimensions == 64
