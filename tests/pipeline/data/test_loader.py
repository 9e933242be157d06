"""Images arrive in order, bad ones are counted by kind, and storage trouble is no bad image."""

import errno
import io
import os
import subprocess
import sys
import tarfile
import time
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image

from pipeline.data.loader import Batch, Source, load_images
from pipeline.data.tars import Span, index_shard

SIZE = 24


def picture(seed: int, size: tuple[int, int] = (40, 32), mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size).convert(mode)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def preprocess(image: Image.Image) -> torch.Tensor:
    tensor: torch.Tensor = image_transform(SIZE, is_train=False)(image)
    return tensor


def files(folder: Path, contents: list[bytes]) -> list[Source]:
    for i, content in enumerate(contents):
        (folder / f"{i}.jpg").write_bytes(content)
    return [Source(folder / f"{i}.jpg", None) for i in range(len(contents))]


def load(
    sources: list[Source], workers: int = 0, batch_size: int = 4, pin_memory: bool = False
) -> list[Batch]:
    batches = load_images(
        sources, preprocess, batch_size=batch_size, workers=workers, pin_memory=pin_memory
    )
    return list(batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_come_in_order(tmp_path: Path, workers: int) -> None:
    sources = files(tmp_path, [encoded(picture(i)) for i in range(11)])
    batches = load(sources, workers=workers)
    assert [batch.positions for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    expected = torch.stack([preprocess(Image.open(source.path)) for source in sources])
    assert torch.equal(torch.cat([batch.images for batch in batches]), expected)
    assert expected.dtype == torch.float32 and not any(batch.failed for batch in batches)


@pytest.mark.parametrize("mode", ["RGB", "P", "L"])
def test_a_border_is_cut_off_before_anything_else(tmp_path: Path, mode: str) -> None:
    inner = picture(3, (38, 30), mode)
    framed = Image.new(mode, (42, 34), 1)
    if mode == "P":
        framed.putpalette(inner.getpalette() or [])
    framed.paste(inner, (2, 2))
    (source,) = files(tmp_path, [encoded(framed, "PNG")])
    (batch,) = load([replace(source, border=2)])
    assert torch.equal(batch.images[0], preprocess(inner))
    assert not torch.equal(load([source])[0].images[0], batch.images[0])


def test_an_image_that_is_nothing_but_border_is_listed(tmp_path: Path) -> None:
    sizes = [(40, 4), (40, 5), (6000, 5)]
    sources = files(tmp_path, [encoded(picture(i, size)) for i, size in enumerate(sizes)])
    (batch,) = load([replace(source, border=2) for source in sources])
    assert batch.positions == [1]
    assert batch.failed == [
        (0, "image is nothing but border"),
        (2, "image does not decode: too large"),
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_images_come_from_several_tars(tmp_path: Path, workers: int) -> None:
    sources = []
    for name in "ab":
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for i in range(3):
                for suffix, data in (("jpg", encoded(picture(ord(name) + i))), ("txt", b"x")):
                    info = tarfile.TarInfo(f"{i}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        path = tmp_path / f"{name}.tar"
        sources += [Source(path, sample.image) for sample in index_shard(path).samples]
    images = torch.cat([batch.images for batch in load(sources, workers=workers)])
    wanted = [encoded(picture(ord(name) + i)) for name in "ab" for i in range(3)]
    assert torch.equal(
        images, torch.stack([preprocess(Image.open(io.BytesIO(one))) for one in wanted])
    )


def bad_images() -> dict[str, tuple[bytes, str]]:
    jpeg, png = encoded(picture(0, (200, 200))), encoded(picture(0, (200, 200)), "PNG")
    damaged = bytearray(png)
    damaged[60] ^= 0xFF
    bomb = bytearray(encoded(Image.new("L", (8, 8)), "BMP"))
    bomb[18:26] = (50_000).to_bytes(4, "little") * 2
    return {
        "empty": (b"", "image does not decode: empty file"),
        "html": (b"<html>404</html>", "image does not decode: not an image"),
        "half a JPEG": (jpeg[: len(jpeg) // 2], "image does not decode: truncated"),
        "half a PNG": (png[: len(png) // 2], "image does not decode: truncated"),
        "damaged": (bytes(damaged), "image does not decode: damaged"),
        "bomb": (bytes(bomb), "image does not decode: too large"),
        "strip": (encoded(Image.new("L", (4000, 2))), "image does not decode: too large"),
    }


@pytest.mark.parametrize("case", bad_images())
def test_a_bad_image_is_named_by_kind(tmp_path: Path, case: str) -> None:
    content, reason = bad_images()[case]
    fine = encoded(picture(1))
    (batch,) = load(files(tmp_path, [fine, content, fine]))
    assert batch.positions == [0, 2] and batch.images.shape == (2, 3, SIZE, SIZE)
    assert batch.failed == [(1, reason)]


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_do_not_stop_the_rest(tmp_path: Path, workers: int) -> None:
    contents = [b""] * 4 + [encoded(picture(i)) for i in range(3)] + [b"x"]
    batches = load(files(tmp_path, contents), workers=workers)
    assert batches[0].positions == [] and batches[0].images.shape == (0, 3, 0, 0)
    assert batches[1].positions == [4, 5, 6]
    reasons = Counter(reason for batch in batches for _, reason in batch.failed)
    assert sum(reasons.values()) == 5 and len(reasons) == 2


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_every_cut_jpeg_fails(tmp_path: Path, cut: int) -> None:
    content = encoded(picture(3, (64, 64)))
    (batch,) = load(files(tmp_path, [content[: -cut * len(content) // 64]]))
    assert batch.positions == [] and len(batch.failed) == 1


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("1", "PNG"), ("L", "JPEG"), ("LA", "PNG"), ("P", "PNG"), ("RGBA", "WEBP"), ("CMYK", "JPEG"),
     ("I;16", "PNG"), ("F", "TIFF"), ("P", "GIF")],
)  # fmt: skip
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, kind: str) -> None:
    (source,) = files(tmp_path, [encoded(picture(2).convert(mode), kind)])
    (batch,) = load([source])
    assert torch.equal(batch.images[0], preprocess(Image.open(source.path)))


def test_what_pil_warns_about_stays_quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    palette = picture(2).convert("P")
    content = encoded(palette, "PNG", transparency=bytes(range(256)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # 1280 pixels: a warning, not an error
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (batch,) = load(files(tmp_path, [content]))
    assert batch.positions == [0]


def test_a_missing_file_is_counted_and_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    sources = [*files(tmp_path, [encoded(picture(1))]), Source(tmp_path / "gone.jpg", None)]
    assert load(sources)[0].failed == [(1, "file is missing")]
    with pytest.raises(FileNotFoundError):
        load([Source(tmp_path / "gone" / "0.jpg", None)])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_tar_is_an_error(tmp_path: Path, workers: int) -> None:
    with pytest.raises(FileNotFoundError, match=r"0\.tar") as error:
        load([Source(tmp_path / "0.tar", Span(512, 10))], workers=workers)
    assert error.value.errno == errno.ENOENT
    assert loading_workers() == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_tar_that_shrank_is_an_error(tmp_path: Path, workers: int) -> None:
    (tmp_path / "0.tar").write_bytes(bytes(600))
    with pytest.raises(ValueError, match=r"0\.tar: the file ends at byte 600"):
        load([Source(tmp_path / "0.tar", Span(512, 1000))], workers=workers)


def test_an_input_output_error_is_not_a_bad_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (source,) = files(tmp_path, [encoded(picture(1))])
    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(OSError, match=r"Input/output error: '.*0\.jpg'"):
        load([Source(source.path, Span(0, 100))])


def test_a_fault_in_the_preprocessing_is_raised(tmp_path: Path) -> None:
    sources = files(tmp_path, [encoded(picture(1))])
    with pytest.raises(TypeError):
        list(load_images(sources, lambda image: len(image), batch_size=1, workers=0))


def test_no_images_no_batches() -> None:
    assert load([]) == []


def test_files_are_closed(tmp_path: Path) -> None:
    data = encoded(picture(1))
    sources = [Source(one.path, Span(0, len(data))) for one in files(tmp_path, [data] * 6)]
    before = len(os.listdir("/proc/self/fd"))
    batches = load_images(sources, preprocess, batch_size=1, workers=0)
    next(batches)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    batches.close()  # type: ignore[attr-defined]
    assert len(os.listdir("/proc/self/fd")) == before


def loading_workers() -> list[int]:
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    names = {int(pid): Path(f"/proc/{pid}/comm").read_text().strip() for pid in children}
    return [pid for pid, name in names.items() if name == "pt_data_worker"]


def test_workers_leave_the_schedulers_signals_to_the_job(tmp_path: Path) -> None:
    sources = files(tmp_path, [encoded(picture(i)) for i in range(40)])
    batches = load_images(sources, preprocess, batch_size=1, workers=2)
    positions = next(batches).positions
    workers = loading_workers()
    assert len(workers) == 2
    sender = (
        "import os, signal, sys\n"
        "for pid in map(int, sys.argv[1:]):\n"
        "    for name in ('INT', 'USR1', 'USR2', 'TERM'):\n"
        "        os.kill(pid, getattr(signal, 'SIG' + name))\n"
    )
    subprocess.run([sys.executable, "-c", sender, *map(str, workers)], check=True)
    for batch in batches:
        positions += batch.positions
    assert positions == list(range(40))


def test_workers_end_with_a_job_that_failed(tmp_path: Path) -> None:
    """An exception that is kept keeps its workers; the job's exit must not wait for them."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from pipeline.data.loader import Source, load_images\n"
        "source = Source(Path(sys.argv[1]), None)\n"
        "try:\n"
        "    list(load_images([source] * 9, len, batch_size=1, workers=2))\n"
        "except TypeError as error:\n"
        "    kept = error\n"
        "else:\n"
        "    raise AssertionError('no error')\n"
    )
    (source,) = files(tmp_path, [encoded(picture(1))])
    subprocess.run([sys.executable, "-c", code, str(source.path)], check=True, timeout=60)


def test_workers_end_when_loading_is_given_up(tmp_path: Path) -> None:
    sources = files(tmp_path, [encoded(picture(i)) for i in range(40)])
    batches = load_images(sources, preprocess, batch_size=1, workers=2)
    next(batches)
    started = time.monotonic()
    batches.close()  # type: ignore[attr-defined]
    assert time.monotonic() - started < 5
    assert loading_workers() == []


def test_a_pinned_batch_keeps_its_positions() -> None:
    class Pinnable(torch.Tensor):
        def pin_memory(self, device: object = None) -> torch.Tensor:
            return self + 1

    images = torch.zeros(1, 3, 2, 2).as_subclass(Pinnable)
    batch = Batch([3], images, [(4, "file is missing")]).pin_memory()
    assert batch.positions == [3] and batch.failed == [(4, "file is missing")]
    assert batch.images.sum() == 12
