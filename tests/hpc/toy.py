"""A study about letters: `write` puts each text into a file, `join` strings some together."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc.files import write_text
from hpc.stage import Context, Counts, OutputError, Recipe, Rest, Task

GO = "go"
"""A file in the run's folder that lets tasks with the text `held` end."""


def _check(task: Task, digest: str) -> dict[str, str]:
    try:
        first, _, text = task.outputs[0].read_text().partition("\n")
    except FileNotFoundError:
        raise OutputError(f"{task.outputs[0]} is missing") from None
    if first != digest:
        raise OutputError(f"{task.outputs[0]}: made for {first}, expected {digest}")
    halves = {"left": text[: len(text) // 2], "right": text[len(text) // 2 :]}
    return {"": text, **halves}


@dataclass(frozen=True)
class Write:
    """One file a text, which may be a way to fail: see `_misbehave`."""

    run_folder: Path
    texts: Mapping[str, str]
    name: str = "write"
    version: int = 1

    def tasks(self) -> list[Task]:
        return [
            Task(
                name=f"letters/{name}",
                recipe=Recipe(settings={"text": text}),
                outputs=(self.run_folder / "1_write" / f"{name}.txt",),
                parts={
                    "left": Recipe(settings={"text": text[: len(text) // 2]}),
                    "right": Recipe(settings={"text": text[len(text) // 2 :]}),
                },
            )
            for name, text in self.texts.items()
        ]

    def run(self, task: Task, context: Context) -> Counts | Rest:
        text = task.recipe.settings["text"]
        with (self.run_folder / "runs.log").open("a") as log:
            log.write(f"{task.name}\n")
        first = (self.run_folder / "runs.log").read_text().split().count(task.name) == 1
        self._say(f"{task.name} starts, upcoming {context.upcoming and context.upcoming.name}")
        _misbehave(task.name, text, first, context, self.run_folder)

        def rest() -> dict[str, Any]:
            if text.startswith("later"):
                _take(1, context)
            if text == "later fails":
                raise ValueError(f"{task.name}: the rest of this text fails")
            write_text(task.outputs[0], f"{context.digest}\n{text}")
            self._say(f"{task.name} written")
            return {"read": len(text), "used": len(text)}

        return rest if text.startswith("later") else rest()

    def _say(self, line: str) -> None:
        with (self.run_folder / "order.log").open("a") as log:
            log.write(f"{line}\n")

    def check(self, task: Task, digest: str) -> dict[str, str]:
        return _check(task, digest)


def _misbehave(task: str, text: str, first: bool, context: Context, run_folder: Path) -> None:
    if text == "fail":
        raise ValueError(f"{task}: this text always fails")
    if text == "once" and first:
        raise ValueError(f"{task}: this text fails the first time")
    if text == "die":
        os.kill(os.getpid(), 9)
    if text == "slow":
        _take(3, context)
    if text == "held":
        _hold(run_folder, context)
    if text == "very slow once" and first:
        _take(90, context)
    if text == "deaf" and first:
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        time.sleep(600)
    if text == "hungry":
        bytes_of_memory = bytearray(400_000_000)
        bytes_of_memory[::4096] = b"x" * len(bytes_of_memory[::4096])
        _take(3, context)


def _hold(run_folder: Path, context: Context) -> None:
    for step in range(1200):
        if (run_folder / GO).exists():
            return
        context.progress(step, 1200, "letters")
        time.sleep(0.1)
    raise TimeoutError("nobody let this task go")


def _take(seconds: float, context: Context) -> None:
    for step in range(round(seconds * 10)):
        context.progress(step, round(seconds * 10), "letters")
        time.sleep(0.1)


@dataclass(frozen=True)
class Join:
    """One file a word; a word is a list of references, such as `write/letters/a#left`."""

    run_folder: Path
    words: Mapping[str, list[str]]
    name: str = "join"
    version: int = 1

    def tasks(self) -> list[Task]:
        return [
            Task(
                name=name,
                recipe=Recipe(inputs=tuple(inputs)),
                outputs=(self.run_folder / "2_join" / f"{name}.txt",),
            )
            for name, inputs in self.words.items()
        ]

    def run(self, task: Task, context: Context) -> dict[str, Any]:
        with (self.run_folder / "runs.log").open("a") as log:
            log.write(f"{task.name}\n")
        whole = ""
        for item in task.recipe.inputs:
            name, _, part = item.partition("#")
            path = self.run_folder / "1_write" / f"{name.rpartition('/')[2]}.txt"
            text = path.read_text().partition("\n")[2]
            half = len(text) // 2
            whole += {"": text, "left": text[:half], "right": text[half:]}[part]
        write_text(task.outputs[0], f"{context.digest}\n{whole}")
        return {"letters": len(whole)}

    def check(self, task: Task, digest: str) -> dict[str, str]:
        return _check(task, digest)


def build(study: Mapping[str, Any]) -> list[Any]:
    run = Path(study["run"])
    return [Write(run, study["texts"]), Join(run, study["words"])]
