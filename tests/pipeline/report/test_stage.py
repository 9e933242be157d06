"""The stage that ends a study, and the command that does not wait for the end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import yaml

from hpc.stage import Context, OutputError, Resources
from pipeline.experiment.load import to_values
from pipeline.report_so_far import main
from pipeline.stages.report import Report
from tests.pipeline.report.conftest import Study

Make = Callable[..., Study]


def context() -> Context:
    return Context(
        digest="abc", inputs={}, resources=Resources(), progress=lambda done, total, unit: None
    )


def test_a_page_without_one_of_its_figures_is_not_done(make: Make) -> None:
    study = make(gallery=0, seeds=(0,))
    stage = Report(study.layout, study.experiment)
    (task,) = stage.tasks()
    counts = stage.run(task, context())
    assert counts["files"] == len(list(study.layout.figures.iterdir()))
    whole = stage.check(task, "abc")
    with pytest.raises(OutputError, match="not the whole page of digest other"):
        stage.check(task, "other")
    data = study.layout.figures / "accuracy.csv"
    text = data.read_text()
    data.write_text(text + " ")
    assert stage.check(task, "abc") != whole
    data.unlink()
    with pytest.raises(OutputError, match=r"figures: not all the figures that index\.html names"):
        stage.check(task, "abc")


def test_the_stage_waits_for_all_and_the_command_for_nothing(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make(gallery=0, seeds=(0,))
    for test in study.tests:
        study.layout.evaluation("sketch-control", 0, test).unlink()
    stage = Report(study.layout, study.experiment)
    with pytest.raises(OutputError, match=r"evaluation of sketch-control, .* and 1 other part"):
        stage.run(stage.tasks()[0], context())
    assert not study.layout.report.exists()

    run = study.layout.run
    study.layout.experiment.write_text(yaml.safe_dump(to_values(study.experiment)))
    assert main([str(run)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "missing: the evaluation of sketch-control, seed 0, on photo"
    assert told[-1] == f"report: {run}/9_report/so-far/index.html"
    assert (run / "9_report" / "so-far" / "figures" / "accuracy.csv").exists()
    assert not study.layout.report.exists()

    study.layout.similarity(0).unlink()
    assert main([str(run), "--to", str(run / "elsewhere")]) == 2
    assert "00000.h5 is missing" in capsys.readouterr().err
