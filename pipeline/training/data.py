"""Samples from tars and from commands that write tars, for open_clip_train's pipeline.

open_clip_train logs whatever goes wrong with a shard, and goes on. That is right for a damaged
sample of a tar, and wrong for a command that failed: its samples would be missing from the training
without a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pipeline.subsets.stream import FAILED, REASON

PIPE = "pipe:"


class StreamError(Exception):
    """The command of a `pipe:` URL failed; data loading processes raise it, the training ends."""


def whole_samples(shards: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """open_clip_train's `tarfile_to_samples_nothrow`, but a command that fails is an error.

    Args:
        shards: `url` of each, as webdataset passes them on.

    Raises:
        StreamError: a command could not be started, failed, or wrote no whole tar.
    """
    from open_clip_train.data import log_and_continue, tarfile_to_samples_nothrow

    for shard in shards:
        if shard["url"].startswith(PIPE):
            yield from _streamed(shard)
        else:
            yield from tarfile_to_samples_nothrow([shard], handler=log_and_continue)


def _streamed(shard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    from open_clip_train.data import group_by_keys_nothrow
    from webdataset.tariterators import tar_file_expander, url_opener

    errors: list[Exception] = []

    def note(error: Exception) -> bool:
        errors.append(error)
        return True

    def opened() -> Iterator[dict[str, Any]]:
        for one in url_opener([shard], handler=note):
            # Or webdataset drops what it has just read if the command is found to have failed,
            # and the reason with it; `_close` looks at the status.
            one["stream"].ignore_errors = True
            yield one

    try:
        # webdataset puts the open stream into `shard`.
        files = tar_file_expander(opened(), handler=note)
        for sample in group_by_keys_nothrow(files, handler=note):
            if sample["__key__"] == FAILED:
                raise StreamError(sample[REASON].decode("utf-8", "replace"))
            yield sample
    finally:
        status = _close(shard)
    if status or errors:
        why = f"exit status {status}" if status else f"no whole tar: {errors[0]!r}"
        raise StreamError(f"{why}, see the job's log: {shard['url']}")


def _close(shard: dict[str, Any]) -> int:
    """Stop reading, and wait for the command to end; its status, 0 if the reader stopped it."""
    stream = shard.get("stream")
    if stream is None:
        return 0  # the error that kept it from being opened was noted
    stream.stream.close()
    status = int(stream.proc.wait())
    return 0 if status in stream.ignore_status or status == -13 else status
