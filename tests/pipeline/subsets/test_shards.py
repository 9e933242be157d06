"""One selection, in every form: mask, subset file, rewritten tars and live filter agree."""

from __future__ import annotations

import io
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
import yaml

from pipeline import artifacts, export, submit
from pipeline.experiment.load import load_experiment
from pipeline.experiment.sections import Pool
from pipeline.experiment.sources import file_identity
from pipeline.layout import Layout
from pipeline.stages import stages_of
from pipeline.subsets import shards, stream
from pipeline.subsets.kept import KeptSamples
from pipeline.subsets.rewrite import TarFolder, places, share
from pipeline.training.data import StreamError, whole_samples
from pipeline.training.train import _shard_list
from tests.pipeline import small
from tests.pipeline.exports.datacomp import as_datacomp

SPLITS: dict[str, Any] = {
    "near": {"near": ["sketch"]},
    "random": {"random": {"like": "near", "seed": 3}},
    "union": {"union": ["near", "random"]},
    "plus": {"near": ["photo"], "plus_reference": "a 'drawing' of a {}"},
}
REFERENCE = 24
Samples = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Every sample that webdataset reads of each split, in both forms."""
    study = small.make(tmp_path_factory.mktemp("it's a study"))
    values = yaml.safe_load(study.experiment.read_text())
    values["splits"] = SPLITS
    values["training"] |= {"splits": None, "samples_per_shard": 10, "files_per_task": 2}
    study.experiment.write_text(yaml.safe_dump(values))
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(study.folder)
        for data in ("tars", "live"):
            words = [str(study.experiment), "--cluster", "inline", "--until", "subset"]
            with redirect_stdout(io.StringIO()) as printed:
                assert submit.main([*words, f"training.data={data}"]) == 0, printed.getvalue()
            experiment = load_experiment(study.experiment, [f"training.data={data}"])
            train = next(one for one in stages_of(experiment) if one.name == "train")
            for split in SPLITS:
                found.setdefault(split, {})[data] = list(_read(experiment, train, split))
        found["mask"] = {split: _of_mask(experiment, split) for split in SPLITS}
        found["datacomp"] = {split: _of_export(study, split) for split in SPLITS}
    return found


def _read(experiment: Any, train: Any, split: str) -> Iterator[dict[str, Any]]:
    """What webdataset itself makes of a training's shards."""
    layout = Layout(experiment.run)
    given = shards.training_shards(layout, experiment.pool, split, train._subset(split))
    urls = webdataset.shardlists.expand_urls(_shard_list([shard.url for shard in given]))
    assert len(urls) == len(given)
    for shard, url in zip(given, urls, strict=True):
        source = webdataset.SimpleShardList([url])
        samples = list(webdataset.DataPipeline(source, webdataset.tarfile_to_samples()))
        assert len(samples) == shard.samples
        yield from samples


def _of_mask(experiment: Any, split: str) -> list[dict[str, Any]]:
    layout = Layout(experiment.run)
    mask = artifacts.read(layout.mask(split), artifacts.MASK)
    keys: list[dict[str, Any]] = []
    for index in range(3):
        file = artifacts.read(layout.embeddings("pool", index), artifacts.EMBEDDINGS)
        kept = file.text("key", artifacts.keep_of(mask, index))
        keys += [{"__key__": key} for key in kept]
    assert len(keys) == mask.attributes["kept"]
    return keys


def _of_export(study: small.SmallStudy, split: str) -> list[dict[str, Any]]:
    """What DataComp takes from the pool's tars, by the file that is written for it."""
    out, words = study.folder / f"{split}.npy", ["--to", "datacomp", "--workers", "1"]
    assert export.main([str(study.experiment), split, *words, "--out", str(out)]) == 0
    tars = sorted((study.folder / "pool").iterdir())
    return [{"__key__": key} for key in as_datacomp(out, tars)]


def _by_key(samples: Sequence[dict[str, Any]]) -> Samples:
    found = {sample["__key__"]: sample for sample in samples}
    assert len(found) == len(samples)  # each once
    return found


@pytest.mark.parametrize("split", SPLITS)
def test_every_form_of_a_selection_has_the_same_samples(forms: Any, split: str) -> None:
    tars, live = (_by_key(forms[split][data]) for data in ("tars", "live"))
    kept = {sample["__key__"] for sample in forms["mask"][split]}
    assert set(_by_key(forms["datacomp"][split])) == kept
    added = {key for key in tars if key.startswith("simgap-reference-")}
    assert set(tars) == set(live) == kept | added
    assert 0 < len(kept) < 72 and len(added) == (REFERENCE if split == "plus" else 0)
    for key, sample in tars.items():
        for suffix in ("jpg", "txt", "json"):
            assert sample[suffix] == live[key][suffix]


def test_the_references_images_are_themselves_and_spread_over_the_tars(forms: Any) -> None:
    samples = forms["plus"]["tars"]
    captions = {sample["txt"].decode() for sample in samples if "simgap" in sample["__key__"]}
    assert captions == {f"a 'drawing' of a {name}" for name in small.CLASSES}
    images = {small.jpeg("photo", label, 50_000 + n) for label in range(3) for n in range(8)}
    assert {one["jpg"] for one in samples if "simgap" in one["__key__"]} == images
    tars: dict[str, list[bool]] = {}
    for sample in samples:
        tars.setdefault(sample["__url__"], []).append("simgap" in sample["__key__"])
    whole = REFERENCE / len(samples)
    assert all(abs(sum(tar) - whole * len(tar)) <= 1 for tar in tars.values())
    assert all(len(tar) >= 5 for tar in tars.values())  # 10 at most, none is a tiny rest


def test_added_samples_are_at_equal_distances() -> None:
    for added, total in [(0, 5), (1, 1), (3, 10), (10, 10), (7, 1000), (999, 1000)]:
        whole = list(places(added, total, range(total)))
        assert [number for number, _ in whole] == list(range(added))
        assert len({place for _, place in whole}) == added
        for step in (1, 3, 7):
            parts = [range(at, min(at + step, total)) for at in range(0, total, step)]
            assert [one for part in parts for one in places(added, total, part)] == whole


def test_tasks_share_the_reference_among_them() -> None:
    for kept in ([5, 0, 7], [0, 0, 0], [1, 2, 3]):
        before = [sum(kept[:task]) for task in range(3)]
        parts = [share(100, before[t], kept[t], sum(kept), t, 3) for t in range(3)]
        assert [one for part in parts for one in part] == list(range(100))


def test_keys_that_begin_anew_in_each_tar_stay_samples_of_their_own(tmp_path: Path) -> None:
    """A reader takes neighbours with one key for one sample: they must not be in one tar."""
    layout = Layout(tmp_path / "run")
    (tmp_path / "pool").mkdir()
    (tmp_path / "out").mkdir()
    keep = [[0, 1, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]]
    suffixes = ("jpg", "png", "png", "jpg", "jpg")
    for index, suffix in enumerate(suffixes):
        _write_file(layout, tmp_path / f"pool/{index}.tar", index, suffix)
    bits = np.concatenate([np.packbits(np.array(file, dtype=bool)) for file in keep])
    facts = dict.fromkeys(artifacts.MASK.attributes) | {"kept": sum(map(sum, keep))}
    arrays = {"keep": bits, "rows": np.full(5, 4)}
    artifacts.write(layout.mask("some"), artifacts.MASK, "d", arrays, facts)
    mask = artifacts.read(layout.mask("some"), artifacts.MASK)
    kept = KeptSamples(layout, Pool(shards=str(tmp_path / "pool/*.tar")), mask, range(5))
    folder = TarFolder(tmp_path / "out", 100, lambda done, total, unit: None)
    folder.write(kept)
    found = []
    for name, one in folder.files.items():
        source = webdataset.SimpleShardList([str(tmp_path / "out" / name)])
        samples = list(webdataset.DataPipeline(source, webdataset.tarfile_to_samples()))
        assert len(samples) == one["samples"]
        found += [(sample["__key__"], sample["txt"].decode()) for sample in samples]
    assert found == [("1", "0/1"), ("3", "0/3"), ("3", "1/3"), ("3", "3/3"), ("0", "4/0")]


def _write_file(layout: Layout, tar: Path, index: int, suffix: str) -> None:
    """A tar of samples 0 to 3, and its embeddings."""
    members = [
        (f"{row}.{name}", f"{index}/{row}".encode()) for row in range(4) for name in (suffix, "txt")
    ]
    small.write_tar(tar, members)
    arrays = {
        "embedding": np.zeros((4, 1), np.float16),
        "key": artifacts.encode_text(list("0123")),
        "shard": np.zeros(4, np.int32),
        "skipped_key": artifacts.encode_text([]),
        "skipped_reason": artifacts.encode_text([]),
    }
    origin = {"path": str(tar), "identity": file_identity(tar)}
    facts = dict.fromkeys(artifacts.EMBEDDINGS.attributes) | {"sources": [origin]}
    artifacts.write(layout.embeddings("pool", index), artifacts.EMBEDDINGS, "d", arrays, facts)


# Streams that fail


@pytest.fixture
def streamed(tmp_path: Path) -> tuple[Path, Path]:
    """A tar and the spans of all of it."""
    tar, spans = tmp_path / "it's 1 [x].tar", tmp_path / "keep.spans"
    small.write_tar(tar, small.shard(0, 6))
    end = tar.read_bytes().rstrip(b"\0")
    size = -(-len(end) // 512) * 512
    stream.write_spans(str(spans), [(file_identity(tar), [(0, size)])])
    return tar, spans


def test_a_whole_stream(streamed: tuple[Path, Path]) -> None:
    tar, spans = streamed
    url = shards.live_url(spans, 0, tar)
    assert len(list(whole_samples([{"url": url}]))) == 6
    reader = whole_samples([{"url": url}])
    next(reader)
    reader.close()  # type: ignore[attr-defined]  # an epoch may end within a tar


def test_a_tar_that_changed_is_refused_with_the_reason(streamed: tuple[Path, Path]) -> None:
    tar, spans = streamed
    os.utime(tar, (0, 0))
    with pytest.raises(StreamError, match=r"\[x\]\.tar has changed since it was embedded"):
        list(whole_samples([{"url": shards.live_url(spans, 0, tar)}]))
    pipeline = webdataset.DataPipeline(
        webdataset.SimpleShardList([shards.live_url(spans, 0, tar)]),
        webdataset.tarfile_to_samples(),
    )
    with pytest.raises(Exception, match=r"unexpected end of data|exit 1"):
        list(pipeline)


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("no-such-command", "exit status 127"),
        ("kill -9 $$", "exit status -9"),
        ("head -c 700 {tar}", "no whole tar"),
        ("cat {tar}; exit 3", "exit status 3"),
    ],
)
def test_a_command_that_fails_is_no_silence(
    streamed: tuple[Path, Path], command: str, why: str
) -> None:
    url = "pipe:" + command.replace("{tar}", shlex.quote(str(streamed[0])))
    with pytest.raises(StreamError, match=why):
        list(whole_samples([{"url": url}]))


def test_bandwidth_that_is_thrown_away_is_told() -> None:
    identity = ("0.tar", 10_000_000, 1)
    half = [shards.Shard("pipe:", 5, 6_000_000, Path("0.tar"), identity)]
    words = "uses 6 MB of 10 MB in 1 tar of the pool; 40% of the read bandwidth is thrown away"
    assert words in shards.bandwidth_in_words(half)
    less = [shards.Shard("pipe:", 5, 2_000_000, Path("0.tar"), identity)]
    assert "training.data: tars" in shards.bandwidth_in_words(less)


def test_a_stream_needs_no_more_than_the_interpreter(streamed: tuple[Path, Path]) -> None:
    import subprocess

    command = shards.live_url(streamed[1], 0, streamed[0]).removeprefix("pipe:")
    done = subprocess.run(command, shell=True, capture_output=True, env={}, cwd="/")
    assert done.returncode == 0 and done.stdout == streamed[0].read_bytes()[: len(done.stdout)]
    assert not {"numpy", "pydantic"} & set(_imports(Path(stream.__file__)))
    assert sys.executable in command


def _imports(path: Path) -> Iterator[str]:
    for line in path.read_text().splitlines():
        if line.startswith(("import ", "from ")):
            yield line.split()[1].split(".")[0]
