"""What open_clip_train says: kept in a file of the training, followed, and left without a trace."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.training.curve import LOG_TIME, STEP
from pipeline.training.options import replaced
from pipeline.training.schedule import Schedule

Progress = Callable[[int, int], None]
_EPOCH_STARTS = "Start epoch "
_RATE = re.compile(r"LR: \S+")


@contextmanager
def own_log(watcher: Watcher, log: Path, first_words: Sequence[str]) -> Iterator[None]:
    """Send what open_clip logs to `log` and to `watcher` alone, then leave no trace.

    open_clip logs to the root logger, and its own set-up changes the level of every logger there
    is and adds handlers that it never removes. It rounds the learning rate to six digits after
    the point; the log has it whole.
    """
    import open_clip_train.main

    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    own: list[logging.Handler] = [watcher]

    def set_up(log_file: str | None, level: int, include_host: bool = False) -> None:
        root.setLevel(level)
        log.parent.mkdir(parents=True, exist_ok=True)  # rank 0 may not have come to it yet
        _end_cut_off_line(log)
        own.append(logging.FileHandler(log, encoding="utf-8"))
        line = "%(asctime)s | %(levelname)s | %(message)s"
        own[-1].setFormatter(logging.Formatter(line, datefmt=LOG_TIME))
        root.addHandler(own[-1])
        for words in first_words:
            root.info(words)

    def of_caller(record: logging.LogRecord) -> bool:
        return record.name != root.name and record.levelno >= level

    root.addHandler(watcher)
    for handler in handlers:
        handler.addFilter(of_caller)
    try:
        with replaced(open_clip_train.main, "setup_logging", set_up), _whole_rates(watcher):
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(of_caller)
        for handler in own:
            root.removeHandler(handler)
            handler.close()
        root.setLevel(level)


def _end_cut_off_line(log: Path) -> None:
    """A kill may have cut off the last line; what comes next is another."""
    if log.exists() and log.stat().st_size:
        with log.open("rb+") as file:
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")


@contextmanager
def _whole_rates(watcher: Watcher) -> Iterator[None]:
    """Let the watcher know each learning rate that is set."""
    from open_clip_train import scheduler

    original = scheduler.assign_learning_rate

    def assign(optimizer: Any, new_lr: float) -> None:
        watcher.rate = new_lr
        original(optimizer, new_lr)

    with replaced(scheduler, "assign_learning_rate", assign):
        yield


class Watcher(logging.Handler):
    """Follows a training by its log records, and stops it when the loss is no longer a number."""

    def __init__(
        self,
        schedule: Schedule,
        on_progress: Progress | None,
        on_part: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__()
        self._schedule = schedule
        self._on_progress = on_progress
        self._on_part = on_part
        self.rate: float | None = None
        """The learning rate that was set last."""

    def emit(self, record: logging.LogRecord) -> None:
        """Take one record; what is raised here ends the training."""
        message = record.getMessage()
        if message.startswith(_EPOCH_STARTS) and self._on_part:
            self._on_part(int(message.removeprefix(_EPOCH_STARTS)))
        if found := STEP.match(message):
            if self.rate is not None:
                record.msg, record.args = _RATE.sub(f"LR: {self.rate:.8g}", message), ()
            self._step(int(found["part"]), int(found["seen"]), float(found["loss"]))

    def _step(self, part: int, seen: int, loss: float) -> None:
        schedule = self._schedule
        epoch, within = divmod(part, schedule.parts)
        seen += within * schedule.part_samples
        if math.isnan(loss):
            raise FloatingPointError(
                f"the loss is not a number in epoch {epoch + 1} of {schedule.epochs}, after "
                f"{seen:,} of {schedule.epoch_samples:,} samples: try a lower learning rate or a "
                "higher precision"
            )
        if self._on_progress:
            total = schedule.epochs * schedule.epoch_samples
            self._on_progress(epoch * schedule.epoch_samples + seen, total)
