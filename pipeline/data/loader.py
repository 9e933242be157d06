"""Images from files and tars, decoded and preprocessed in worker processes while a model runs."""

from __future__ import annotations

import io
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset

from pipeline.data.tars import Span, read_span

Preprocess = Callable[[Any], torch.Tensor]
"""A PIL image of any mode -> a float32 tensor (3, H, W), as open_clip's transforms."""

# Preprocessing scales the short side to a fixed length: a strip of one pixel by a million would
# become a bomb there, after passing PIL's own test.
_MAX_ASPECT_RATIO = 1000
_LEAVE_TO_PARENT = (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True, slots=True)
class Source:
    """Where an image is: a whole file, or a part of a tar.

    `border` pixels are cut off each of its sides before anything else.
    """

    path: Path
    span: Span | None
    border: int = 0


@dataclass(frozen=True)
class Batch:
    """Successive images.

    Attributes:
        positions: for each row of `images`, its position in the sources.
        images: (b, 3, H, W) float32; (0, 3, 0, 0) if none of them could be used.
        failed: position and reason of those that can't be used.
    """

    positions: list[int]
    images: torch.Tensor
    failed: list[tuple[int, str]]

    def pin_memory(self) -> Batch:
        """Copy the images to page-locked memory; DataLoader calls this."""
        return replace(self, images=self.images.pin_memory())


def load_images(
    sources: Sequence[Source],
    preprocess: Preprocess,
    *,
    batch_size: int,
    workers: int,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Yield the images of `sources` in order, `batch_size` sources at a time.

    An image that can't be used (it does not decode, or its file is missing) is listed in its
    batch's `failed` with a short reason of a fixed set, so that reasons can be counted. Trouble
    with the storage says nothing about an image and is raised.

    Args:
        sources: where the images are.
        preprocess: what makes a tensor of a PIL image, with conversion to RGB.
        batch_size: images a batch; failed ones leave their batch smaller.
        workers: processes that decode, each with one thread; 0 decodes in this process. Each
            keeps two batches ready, in shared memory.
        pin_memory: whether to put the batches into page-locked memory, for a GPU.

    Raises:
        OSError: if a file can't be read, or a tar is missing.
        ValueError: if a tar is shorter than when it was indexed.
    """
    if not sources:
        return
    images = _Images(sources, preprocess)
    workers = min(workers, -(-len(sources) // batch_size))
    loader = DataLoader(
        images,
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker if workers else None,
    )
    try:
        for batch in loader:
            if isinstance(batch, Exception):
                raise batch
            yield batch
    finally:
        images.close()


_Item = tuple[int, "torch.Tensor | str | Exception"]


class _Images(Dataset[_Item]):
    """Map-style dataset: position -> (position, tensor or the reason why there is none).

    Storage trouble is passed on as a value. Raised in a worker, it would lose its errno, and its
    traceback would keep DataLoader's iterator and so the workers alive.
    """

    def __init__(self, sources: Sequence[Source], preprocess: Preprocess) -> None:
        self.sources = sources
        self.preprocess = preprocess
        self._tar: tuple[Path, int] | None = None  # the last one opened, by this process

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, position: int) -> _Item:
        source = self.sources[position]
        try:
            data = self._read_file(source.path) if source.span is None else self._read_tar(source)
        except (OSError, ValueError) as error:
            return position, error
        if data is None:
            return position, "file is missing"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on palettes, EXIF, size: once an image is too often
            return position, _decode(data, self.preprocess, source.border)

    def _read_file(self, path: Path) -> bytes | None:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            if path.parent.is_dir():  # a dangling link, say; without its folder, more is amiss
                return None
            raise

    def _read_tar(self, source: Source) -> bytes:
        assert source.span is not None
        try:
            return read_span(self._open(source.path), source.span)
        except ValueError as error:
            raise ValueError(f"{source.path}: {error}") from error
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(source.path)) from error

    def _open(self, path: Path) -> int:
        if self._tar is None or self._tar[0] != path:
            self.close()
            self._tar = path, os.open(path, os.O_RDONLY)
        return self._tar[1]

    def close(self) -> None:
        if self._tar is not None:
            os.close(self._tar[1])
            self._tar = None


def _decode(data: bytes, preprocess: Preprocess, border: int = 0) -> torch.Tensor | str:
    """Make a tensor of an image file's bytes, or say why that can't be."""
    try:
        image: Image.Image = Image.open(io.BytesIO(data))
        short, long = (side - 2 * border for side in sorted(image.size))
        if short <= 0:
            return "image is nothing but border"
        if long > _MAX_ASPECT_RATIO * short:
            return "image does not decode: too large"
        image.load()
        image = ImageOps.crop(image, border) if border else image
    except MemoryError:
        raise
    except Exception as error:  # PIL's decoders raise whatever a damaged file makes them stumble on
        return f"image does not decode: {_kind(error, data)}"
    try:
        return preprocess(image)
    except ValueError:  # a mode or a shape that PIL can't convert or resize
        return "image can not be preprocessed"


def _kind(error: Exception, data: bytes) -> str:
    if not data:
        return "empty file"
    if isinstance(error, Image.DecompressionBombError):
        return "too large"
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return "truncated" if "truncated" in str(error).lower() else "damaged"


def _collate(items: list[_Item]) -> Batch | Exception:
    """Stack a batch into one tensor, which travels through shared memory as one piece."""
    for _, trouble in items:
        if isinstance(trouble, Exception):
            return trouble
    good = [(position, one) for position, one in items if isinstance(one, torch.Tensor)]
    failed = [(position, one) for position, one in items if isinstance(one, str)]
    images = torch.stack([one for _, one in good]) if good else torch.empty((0, 3, 0, 0))
    return Batch([position for position, _ in good], images, failed)


def _start_worker(worker: int) -> None:
    """Leave signals to the parent: the scheduler sends them to every process of a job.

    Without this a worker would run the job's checkpoint handler, or die and take the job with it
    before it has written its checkpoint. A worker ends with its parent; DataLoader sees to that,
    and to one torch thread a worker.
    """
    for number in _LEAVE_TO_PARENT:
        signal.signal(number, signal.SIG_IGN)
    # The parent ends workers by SIGTERM, so that one can't be ignored whoever sends it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
