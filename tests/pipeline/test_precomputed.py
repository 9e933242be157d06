"""Embeddings that were made elsewhere give the study that the tars would have given."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import yaml

from hpc.files import read_json
from hpc.stage import Context, Resources
from pipeline import artifacts, submit
from pipeline.experiment.load import ExperimentError, load_experiment
from pipeline.layout import POOL, Layout
from pipeline.stages.embed import Embed
from tests.pipeline import small
from tests.pipeline.clip_retrieval import write_partition

SHARDS = 3
MADE_BY = {"model": "small-model.json", "pretrained": "embedder.pt"}
Array = np.ndarray[Any, np.dtype[Any]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study whose subsets are made from tars. Not to be changed."""
    study = small.make(tmp_path_factory.mktemp("world"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(study.folder)
        _submit("small.yaml", "--until", "subset")
    return study.folder


@pytest.fixture
def folder(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the world, in which commands run."""
    shutil.copytree(world, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    yield tmp_path / "copy"


def _submit(*words: str, status: int = 0) -> str:
    with redirect_stdout(io.StringIO()) as printed:
        assert submit.main([*words, "--cluster", "inline"]) == status, printed.getvalue()
    return printed.getvalue()


def _embedded(index: int) -> artifacts.Artifact:
    """An embeddings file that was made from a tar."""
    return artifacts.read(Layout(Path("runs/small")).embeddings(POOL, index), artifacts.EMBEDDINGS)


def _write_clip_retrieval(partitions: int, uids: bool = True) -> None:
    """Write the pool's embeddings as clip-retrieval does: partition i has the tars i, i + p, ...

    Its workers take turns, so that the rows of a partition's tars alternate.
    """
    for partition in range(partitions):
        files = [_embedded(index) for index in range(partition, SHARDS, partitions)]
        rows = [(f["embedding"][r], f.text("key")[r]) for r in range(24) for f in files]
        metadata = [{"uid": f"{int(key):032x}", "width": 32} for _, key in rows] if uids else None
        embeddings, keys = np.stack([row for row, _ in rows]), [key for _, key in rows]
        write_partition(Path("emb"), partition, partitions, embeddings, keys, metadata)


def _precomputed(files: Any = "emb", tars: bool = True, **keys: Any) -> str:
    """Write an experiment on precomputed embeddings; returns its name."""
    values = yaml.safe_load(Path("small.yaml").read_text()) | {"name": "pre"}
    values["pool"]["embeddings"] = {"files": files, **MADE_BY, **keys}
    if not tars:
        del values["pool"]["shards"], values["training"]
    Path("pre.yaml").write_text(yaml.safe_dump(values))
    return "pre.yaml"


def _masks(run: str) -> dict[str, bytes]:
    paths = sorted(Path(f"runs/{run}/5_masks").glob("*.h5"))
    return {path.stem: artifacts.read(path, artifacts.MASK)["keep"].tobytes() for path in paths}


def _kept(run: str, split: str, files: int) -> set[str]:
    layout = Layout(Path("runs") / run)
    mask, kept = artifacts.read(layout.mask(split), artifacts.MASK), set[str]()
    for index in range(files):
        found = artifacts.read(layout.embeddings(POOL, index), artifacts.EMBEDDINGS)
        kept |= set(found.text("key", artifacts.keep_of(mask, index)))
    return kept


def test_masks_and_tars_are_the_same_as_from_the_tars(folder: Path) -> None:
    _write_clip_retrieval(SHARDS)
    _submit(_precomputed(), "--until", "subset")
    assert _masks("pre") == _masks("small")
    tars = sorted(path.relative_to("runs/small") for path in Path("runs/small").rglob("*.tar"))
    assert len(tars) > 3
    for tar in tars:
        assert Path("runs/pre", tar).read_bytes() == Path("runs/small", tar).read_bytes()
    assert "0 tasks would run" in _submit("pre.yaml", "--until", "subset", "--dry-run")


def test_rows_of_several_tars_in_one_file(folder: Path) -> None:
    _write_clip_retrieval(2)
    assert [path.name for path in sorted(Path("emb/img_emb").iterdir())] == [
        "img_emb_0.npy",
        "img_emb_1.npy",
    ]
    _submit(_precomputed(), "--until", "subset")
    for split in ("sketch-pruned", "photo-pruned"):
        assert 0 < len(_kept("small", split, 3)) < 72
        assert _kept("pre", split, 2) == _kept("small", split, 3)
    found = artifacts.read(Layout(Path("runs/pre")).embeddings(POOL, 0), artifacts.EMBEDDINGS)
    assert [Path(one["path"]).name for one in found.attributes["sources"]] == [
        "00000.tar",
        "00002.tar",
    ]
    assert found["shard"][:4].tolist() == [0, 1, 0, 1]
    assert found.text("uid")[0] == f"{int(found.text('key')[0]):032x}"
    names = [set(tars(Path(f"runs/{run}/6_subsets/sketch-pruned"))) for run in ("pre", "small")]
    assert names[0] == names[1]


def tars(subset: Path) -> Iterator[str]:
    from pipeline.data.tars import index_shard

    for tar in sorted(subset.glob("*/*.tar")):
        yield from (sample.key for sample in index_shard(tar).samples)


def test_a_study_without_tars_ends_at_the_masks_and_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write_clip_retrieval(SHARDS)
    shutil.rmtree("pool")
    dry = _submit(_precomputed(tars=False), "--dry-run")
    assert [line.split()[0] for line in dry.splitlines() if " to run " in line] == [
        "embed",
        "reference",
        "scan",
        "mask",
    ]
    printed = _submit(_precomputed(tars=False))
    assert "this study has no training: it ends at the masks" in printed
    assert "simgap export runs/pre full --to list" in printed
    assert _masks("pre") == _masks("small")
    assert not Path("runs/pre/6_subsets").exists()
    assert submit.main(["pre.yaml", "--until", "train"]) == 2
    assert "--until train: this study has no training, it ends at mask" in capsys.readouterr().err
    assert submit.main(["pre.yaml", "--split", "full"]) == 2
    assert "this study has no training" in capsys.readouterr().err


def test_npy_files_with_and_without_metadata(folder: Path) -> None:
    _write_clip_retrieval(SHARDS)
    given = _precomputed("emb/img_emb/*.npy", metadata="emb/metadata/metadata_{0..2}.parquet")
    _submit(given, "--until", "mask")
    assert _masks("pre") == _masks("small")
    _submit(_precomputed("emb/img_emb/img_emb_{0..2}.npy", tars=False))
    assert _masks("pre") == _masks("small")
    assert "img_emb_1:7" in _kept("pre", "full", 3)


def test_hdf5_files_such_as_those_of_another_run(folder: Path) -> None:
    _submit(_precomputed("runs/small/1_embeddings/pool/*.h5"), "--until", "mask")
    assert _masks("pre") == _masks("small")


def test_keys_that_begin_anew_in_each_tar_need_a_column(folder: Path) -> None:
    keys = [f"{number:09d}" for number in range(24)]
    for index in range(SHARDS):
        members = [pair for n, key in enumerate(keys) for pair in small.sample(key, "photo", 0, n)]
        small.write_tar(Path(f"pool/{index:05d}.tar"), members)
        metadata = [{"tar": f"{index:05d}.tar"}] * 24
        write_partition(Path("emb"), index, 3, _embedded(index)["embedding"], keys, metadata)
    printed = _submit(_precomputed(), "--until", "embed", status=1)
    assert "00001.tar begins with the key '000000000'" in printed
    assert "pool.embeddings.shard" in printed
    _submit(_precomputed(shard="tar"), "--until", "subset")
    assert _masks("pre") == _masks("small")
    markers = Path("runs/pre/done/subset/full").glob("*.json")
    assert sum(read_json(marker)["counts"]["samples"] for marker in markers) == 72


def test_a_row_that_is_in_no_tar_is_found_when_the_subset_is_written(folder: Path) -> None:
    _write_clip_retrieval(SHARDS)
    path = Path("emb/metadata/metadata_1.parquet")
    table = pd.read_parquet(path)
    table.loc[3, "image_path"] = "000019999"
    table.to_parquet(path)
    printed = _submit(_precomputed(), "--until", "subset", status=1)
    assert (
        "00001.tar: 1 samples that were embedded are not in it; the first is 000019999" in printed
    )


def test_a_key_twice_in_a_tar_counts_once(folder: Path) -> None:
    _write_clip_retrieval(SHARDS)
    path = Path("emb/metadata/metadata_1.parquet")
    table = pd.read_parquet(path)
    table.loc[3, "image_path"] = table.loc[2, "image_path"]
    table.to_parquet(path)
    counts = _run()
    assert counts == {"read": 24, "used": 23, "skipped": {"duplicate key": 1}}
    found = artifacts.read(Path("out.h5"), artifacts.EMBEDDINGS)
    assert found.text("skipped_key") == ["00001.tar:000010002"]
    expected = np.delete(_embedded(1)["embedding"], 3, axis=0)
    np.testing.assert_array_equal(found["embedding"], expected)


def _run(index: int = 1, **keys: Any) -> dict[str, Any]:
    """Bring one file in, and nothing else."""
    experiment = load_experiment(Path(_precomputed(**keys)))
    stage = Embed(Layout(experiment.run), experiment.pool, experiment.reference, {}, experiment.embedder)  # fmt: skip
    task = next(task for task in stage.tasks() if task.name == f"pool/{index:05d}")
    object.__setattr__(task, "outputs", (Path("out.h5"),))
    context = Context(digest="d", inputs={}, resources=Resources(), progress=lambda *_: None)
    counts = stage.run(task, context)
    return {name: counts[name] for name in ("read", "used", "skipped")}


ROWS = Path("emb/img_emb/img_emb_1.npy")
NAMES = Path("emb/metadata/metadata_1.parquet")


def _change_rows(change: Callable[[Array], Array | None]) -> None:
    rows = np.load(ROWS)
    changed = change(rows)
    np.save(ROWS, rows if changed is None else changed)


def _set(value: float) -> Callable[[Array], None]:
    def change(rows: Array) -> None:
        rows[5] = value

    return change


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda: _change_rows(_set(np.nan)), r"img_emb_1\.npy: row 5: .* found values that are not finite"),
        (lambda: _change_rows(_set(np.inf)), "row 5: .* found values that are not finite"),
        (lambda: _change_rows(_set(0)), r"row 5: expected length 1 within 0\.0020, found only zeros"),
        (lambda: _change_rows(lambda rows: rows * np.float16(1.01)), "row 0: .* found length 1.00979"),
        (lambda: _change_rows(lambda rows: rows[:, :24]), r"img_emb_1\.npy: rows of 24 dimensions, but the embedder's have 32"),
        (lambda: _change_rows(lambda rows: rows.ravel()), r"expected rows of 32 floats, found float16 \(768,\)"),
        (lambda: _change_rows(lambda rows: rows.astype(np.int32)), r"expected rows of 32 floats, found int32"),
        (lambda: _change_rows(lambda rows: rows[:23]), r"metadata_1\.parquet has 24 rows, but .*img_emb_1\.npy has 23 embeddings"),
        (lambda: ROWS.write_bytes(ROWS.read_bytes()[:100]), r"img_emb_1\.npy: can't be read as \.npy"),
        (lambda: ROWS.write_bytes(ROWS.read_bytes()[:-100]), r"img_emb_1\.npy: can't be read as \.npy"),
        (lambda: NAMES.write_bytes(b"PAR1 no PAR1"), r"metadata_1\.parquet: can't be read as Parquet"),
        (lambda: NAMES.write_bytes(b""), r"metadata_1\.parquet: can't be read as Parquet"),
        (lambda: pd.DataFrame({"image_pth": ["a"]}).to_parquet(NAMES), "no column 'image_path'; did you mean 'image_pth'"),
        (lambda: pd.DataFrame({"image_path": ["a"] * 5 + [None] * 19}).to_parquet(NAMES), "row 5: no image_path"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_its_place(
    folder: Path, spoil: Callable[[], None], message: str
) -> None:
    _write_clip_retrieval(SHARDS)
    spoil()
    with pytest.raises(ValueError, match=message):
        _run()
    assert not Path("out.h5").exists()


def test_rows_are_normalised_as_if_they_were_embedded_here(folder: Path) -> None:
    """Whatever the precision and the rounding, as long as the length is nearly one."""
    _write_clip_retrieval(SHARDS)
    exact = _embedded(1)["embedding"]
    _change_rows(lambda rows: rows.astype(np.float32) * np.float32(1.0015))
    assert _run()["used"] == 24
    found = artifacts.read(Path("out.h5"), artifacts.EMBEDDINGS)
    rows = exact.astype(np.float32) * np.float32(1.0015)
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_array_equal(found["embedding"], (rows / lengths).astype(np.float16))


def test_hdf5_that_is_not_what_it_should_be(folder: Path) -> None:
    Path("h5").mkdir()
    for index in range(2):
        with h5py.File(f"h5/{index}.h5", "w") as file:
            file["embeddings"] = np.zeros((3, 32), np.float16)
    with pytest.raises(ValueError, match=r"1\.h5: no dataset 'embedding'; found embeddings"):
        _run(files="h5/*.h5")
    Path("h5/1.h5").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"1\.h5: can't be read as HDF5"):
        _run(files="h5/*.h5")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda: NAMES.unlink(), "img_emb_1.npy has no partner: "),
        (lambda: ROWS.unlink(), "metadata_1.parquet has no partner: "),
        (lambda: (NAMES.unlink(), ROWS.unlink()), "2 files numbered up to 2, but no img_emb_1.npy; if it was never written"),
        (lambda: shutil.copy(ROWS, ROWS.with_name("img_emb_01.npy")), "have the same number"),
        (lambda: shutil.rmtree("emb/metadata"), "no such folder: "),
        (lambda: shutil.rmtree("emb"), "pool.embeddings.files: no file matches"),
    ],
)  # fmt: skip
def test_files_without_partners_are_faults_of_the_experiment(
    folder: Path, spoil: Callable[[], object], message: str
) -> None:
    _write_clip_retrieval(SHARDS)
    spoil()
    with pytest.raises(ExperimentError) as error:
        load_experiment(Path(_precomputed()))
    assert "pool.embeddings.files: " in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pool.embeddings.model=ViT-B-32", "pool.embeddings.model: 'ViT-B-32' made them, but the test sets are embedded by "),
        ("pool.embeddings.pretrained=openai", "pool.embeddings.pretrained: 'openai' made them, but the test sets"),
        ("pool.embeddings.modl=x", "pool.embeddings.modl: unknown key; did you mean 'model'?"),
        ("pool.embeddings.metadata=emb/metadata/*.parquet", "img_emb_0.npy brings its own metadata"),
        ("pool.embeddings.files=pre.yaml", "pre.yaml: expected a folder of clip-retrieval, .npy or .h5"),
        ("pool.shards_per_file=2", "shards_per_file has no effect"),
        ("pool.shards=null", "training: needs the pool's tars, and pool.shards is not given: give it, or leave training out"),
        ("training=null", "training: required, but not there"),
    ],
)  # fmt: skip
def test_faults_of_a_section(folder: Path, override: str, message: str) -> None:
    _write_clip_retrieval(SHARDS)
    with pytest.raises(ExperimentError) as error:
        load_experiment(Path(_precomputed()), [override])
    assert message in str(error.value)


def test_numbers_of_any_padding_are_sorted_as_numbers(tmp_path: Path) -> None:
    from pipeline.data.precomputed import find_files

    for index in range(12):
        write_partition(tmp_path, index, 1, np.zeros((1, 2), np.float16), ["k"])
    (tmp_path / "img_emb/img_emb_3.npy").rename(tmp_path / "img_emb/img_emb_0003.npy")
    found = find_files(str(tmp_path), None)
    numbers = [int(file.path.stem.rpartition("_")[2]) for file in found]
    assert numbers == list(range(12))
    assert [
        int(file.metadata.stem.rpartition("_")[2]) for file in found if file.metadata
    ] == numbers


def test_more_metadata_than_embeddings(folder: Path) -> None:
    _write_clip_retrieval(SHARDS)
    given = _precomputed("emb/img_emb/*.npy", metadata="emb/metadata/metadata_{0,1}.parquet")
    with pytest.raises(ExperimentError, match="3 files of embeddings, but 2 of metadata"):
        load_experiment(Path(given))
