from __future__ import annotations

import pytest

from hpc.plan import load_plan, pack
from hpc.stage import Recipe, digest_of
from tests.hpc.conftest import Study


@pytest.mark.parametrize("count", [0, 1, 2, 7, 40])
@pytest.mark.parametrize("elements", [1, 2, 3, 11])
def test_packing_keeps_order_and_is_even(count: int, elements: int) -> None:
    tasks = [str(number) for number in range(count)]
    packed = pack(tasks, elements)
    assert [task for element in packed for task in element] == tasks
    assert len(packed) == min(count, elements)
    sizes = [len(element) for element in packed]
    assert not sizes or max(sizes) - min(sizes) <= 1


def test_a_digest_depends_on_everything_that_decides() -> None:
    recipe = Recipe(settings={"a": 1, "b": [2]}, inputs=("x/y",))
    base = digest_of("stage", 1, recipe, {"x/y": "0"})
    assert base == digest_of(
        "stage", 1, Recipe(settings={"b": [2], "a": 1}, inputs=("x/y",)), {"x/y": "0"}
    )
    others = [
        digest_of("stage", 2, recipe, {"x/y": "0"}),
        digest_of("other", 1, recipe, {"x/y": "0"}),
        digest_of("stage", 1, recipe, {"x/y": "1"}),
        digest_of("stage", 1, Recipe(settings={"a": 1}, inputs=("x/y",)), {"x/y": "0"}),
        digest_of("stage", 1, Recipe(settings={"a": 1, "b": [2]}), {"x/y": "0"}),
    ]
    assert len({base, *others}) == 6


def test_a_plan_reads_back_as_it_was(study: Study) -> None:
    plan = study.plan()
    assert load_plan(plan.path) == plan
    task, entry = plan.task("join/lefts")
    assert task.name == "lefts"
    assert list(entry["inputs"]) == ["write/letters/a#left", "write/letters/b#left"]
    assert task.outputs == (study.run / "2_join/lefts.txt",)


def test_a_plan_tells_why_each_task_runs(study: Study) -> None:
    study.submit()
    study.texts["a"] = "zz"
    plan = study.plan()
    reasons = {name: entry["reason"] for name, entry in plan.tasks.items()}
    assert reasons == {
        "write/letters/a": "text: ab -> zz",
        "join/all": "input write/letters/a changed",
        "join/lefts": "input write/letters/a#left changed",
    }
