from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hpc.executors import run_inline, run_local
from hpc.ledger import Ledger
from hpc.plan import DONE, Assessment, Plan, StagePlan, assess, make_plan, pack
from hpc.stage import Resources
from tests.hpc import toy


class Quiet:
    """A reporter that remembers what failed and what was blocked."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.blocked: list[str] = []
        self.polls: list[Callable[[], None]] = []

    def stage_starts(self, stage: StagePlan, tasks: Any) -> None:
        pass

    def poll(self, stage: StagePlan) -> None:
        for action in self.polls:
            action()

    def stage_ends(self, stage: StagePlan, failed: Any, blocked: Any) -> None:
        self.failed += failed
        self.blocked += blocked


@dataclass
class Study:
    """The toy study in a folder, with what a submission does to it."""

    run: Path
    texts: dict[str, str] = field(default_factory=lambda: {"a": "ab", "b": "cd", "c": "ef"})
    words: dict[str, list[str]] = field(
        default_factory=lambda: {
            "all": ["write/letters/a", "write/letters/b", "write/letters/c"],
            "lefts": ["write/letters/a#left", "write/letters/b#left"],
        }
    )

    @property
    def values(self) -> dict[str, Any]:
        return {"run": str(self.run), "texts": self.texts, "words": self.words}

    def assess(self, **options: Any) -> dict[str, Assessment]:
        return assess(toy.build(self.values), Ledger(self.run), **options)

    def states(self) -> dict[str, str]:
        return {name: item.state for name, item in self.assess().items()}

    def plan(self, at_once: int = 2) -> Plan:
        assessed = self.assess()
        stages = []
        for stage in ("write", "join"):
            items = [i for i in assessed.values() if i.stage == stage and i.state != DONE]
            elements = pack([item.task.name for item in items], at_once)
            if elements:
                stages.append(
                    StagePlan(
                        stage=stage,
                        resources=Resources(),
                        elements=elements,
                        at_once=at_once,
                    )
                )
        return make_plan(
            assessed,
            stages,
            run=self.run,
            builder="tests.hpc.toy:build",
            study=self.values,
            submitted={},
        )

    def submit(self, execute: Any = run_inline, reporter: Quiet | None = None) -> list[str]:
        """Run what is not done; returns what is undone after that."""
        undone: list[str] = execute(self.plan(), reporter or Quiet(), lambda stage: {})
        return undone

    def ran(self) -> list[str]:
        """The tasks that were run since last asked."""
        log = self.run / "runs.log"
        names = sorted(log.read_text().split()) if log.exists() else []
        log.unlink(missing_ok=True)
        return names


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    run = tmp_path / "run with spaces, 'quotes' and ümlauts"
    run.mkdir()
    yield Study(run)


@pytest.fixture(params=[run_inline, run_local], ids=["inline", "local"])
def execute(request: pytest.FixtureRequest) -> Any:
    return request.param
