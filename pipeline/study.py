"""The study that a command is about: an experiment, or a run's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.experiment.load import load_experiment
from pipeline.experiment.sections import Experiment
from pipeline.layout import Layout, find


def load_study(given: str, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment that a user means.

    Args:
        given: an experiment's YAML file, the name of a shipped one, or a run's folder.
        overrides: `section.key=value`, as given to `submit`.

    Raises:
        ExperimentError: the experiment can't be used.
        FileNotFoundError: there is no such experiment, or the folder is no run.
    """
    folder = Path(given)
    if not folder.is_dir():
        return load_experiment(find("experiments", given), overrides)
    path = Layout(folder).experiment
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no run: it has no {path.name}")
    # Wherever it has been moved to.
    place = {"runs": folder.resolve().parent, "name": folder.resolve().name}
    return load_experiment(path, overrides).model_copy(update=place)
