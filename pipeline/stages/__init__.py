"""The steps of a study, one file each, in order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hpc.stage import Stage

if TYPE_CHECKING:
    from pipeline.experiment.sections import Experiment

NAMES = (
    "embed",
    "cluster",
    "assign",
    "dedup",
    "reference",
    "scan",
    "mask",
    "subset",
    "train",
    "evaluate",
    "features",
    "probe",
    "retrieve",
    "report",
)


def build_stages(study: Mapping[str, Any]) -> list[Stage]:
    """Make the stages of a resolved experiment, as a plan carries it."""
    from pipeline.experiment.load import from_values

    return stages_of(from_values(study))


def stages_of(experiment: Experiment) -> list[Stage]:
    """Make the stages of an experiment, in the order in which they run.

    A study without training ends at the masks.
    """
    from pipeline.layout import Layout
    from pipeline.stages.assign import Assign
    from pipeline.stages.cluster import Cluster
    from pipeline.stages.dedup import Dedup
    from pipeline.stages.embed import Embed
    from pipeline.stages.evaluate import Evaluate
    from pipeline.stages.features import Features
    from pipeline.stages.mask import Mask
    from pipeline.stages.probe import Probe
    from pipeline.stages.reference import Reference
    from pipeline.stages.report import Report
    from pipeline.stages.retrieve import Retrieve
    from pipeline.stages.scan import Scan
    from pipeline.stages.subset import Subset
    from pipeline.stages.train import Train

    run = Layout(experiment.run)
    trained = experiment.trained_splits
    pool, dedup, similarity = experiment.pool, experiment.dedup, experiment.similarity
    duplicates = experiment.dedup.files if experiment.dedup else 0
    captions = {name: experiment.splits[name].caption for name in trained}
    stages: list[Stage] = [
        Embed(run, experiment.pool, experiment.reference, experiment.tests, experiment.embedder),
        *(stage(run, pool, dedup, similarity) for stage in (Cluster, Assign, Dedup)),
        Reference(run, experiment.reference, experiment.tests, experiment.similarity),
        Scan(run, experiment.pool, list(experiment.tests), experiment.similarity),
        Mask(run, experiment.pool, experiment.splits, list(experiment.tests), duplicates),
    ]
    if (training := experiment.training) is None:
        return stages
    tests, evaluation = experiment.tests, experiment.evaluation
    return [
        *stages,
        Subset(run, experiment.pool, experiment.reference, captions, training),
        Train(run, experiment.pool, experiment.reference, captions, training),
        Evaluate(run, tests, trained, training, evaluation),
        Features(run, experiment.reference, tests, trained, training, evaluation),
        Probe(run, tests, trained, training, evaluation),
        Retrieve(run, trained, training, evaluation),
        Report(run, experiment),
    ]
