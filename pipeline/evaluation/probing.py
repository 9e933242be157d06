"""Classifiers on frozen features: k-shot, linear probe and nearest neighbours, by scikit-learn.

Letters in shapes: T training images, M test images, D dimensions, C classes of the test set.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.data.classes import ClassList
from pipeline.evaluation.zero_shot import class_accuracy, true_ranks
from pipeline.experiment.probes import FewShot

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Features:
    """Image features of length one, and labels that count the test set's classes.

    Attributes:
        train: (T, D) float32.
        train_label: (T,) int; every class has an image.
        test: (M, D) float32.
        test_label: (M,) int.
        classes: of the test set.
    """

    train: Array
    train_label: Array
    test: Array
    test_label: Array
    classes: ClassList


def draw_shots(labels: Array, classes: ClassList, shots: int, seed: Sequence[int]) -> Array:
    """Choose `shots` images of each class, uniformly and without replacement.

    Returns:
        Rows, class by class.

    Raises:
        ValueError: a class has fewer images.
    """
    generator = np.random.default_rng(list(seed))
    rows = []
    for label, class_id in enumerate(classes.ids):
        of_class = np.flatnonzero(labels == label)
        if len(of_class) < shots:
            raise ValueError(
                f"few_shot.shots: {shots} images of each class asked for, class {class_id!r} has "
                f"{len(of_class)} training images"
            )
        rows.append(generator.choice(of_class, shots, replace=False))
    return np.concatenate(rows)


def few_shot(features: Features, section: FewShot, shots: int) -> list[float]:
    """Top-1 accuracy of a logistic regression on `shots` images a class, for each draw.

    Raises:
        ValueError: a class has fewer training images.
    """
    accuracies = []
    for draw in range(section.draws):
        labels = features.train_label
        rows = draw_shots(labels, features.classes, shots, (section.seed, shots, draw))
        scores = _scores(features.train[rows], labels[rows], features.test, section)
        accuracies.append(_top(scores, features.test_label, 1))
    return accuracies


def linear_probe(features: Features, section: FewShot) -> dict[str, float]:
    """Accuracies of a logistic regression on all training images."""
    labels = features.test_label
    scores = _scores(features.train, features.train_label, features.test, section)
    per_class = class_accuracy(true_ranks(scores, labels) < 1, labels, len(features.classes))
    return {
        "top1": _top(scores, labels, 1),
        "top5": _top(scores, labels, 5),
        "mean_per_class": float(np.nanmean(per_class)),
    }


def neighbours(features: Features, k: int) -> float:
    """Top-1 accuracy of a vote of the k nearest by cosine; of equal votes the first class wins.

    Raises:
        ValueError: there are fewer than k training images.
    """
    from sklearn.neighbors import KNeighborsClassifier

    if k > len(features.train):
        raise ValueError(
            f"few_shot.knn: {k} neighbours asked for, there are {len(features.train)} training "
            "images"
        )
    model = KNeighborsClassifier(n_neighbors=k, metric="cosine", algorithm="brute")
    model.fit(features.train, features.train_label)
    return float((model.predict(features.test) == features.test_label).mean())


def _scores(train: Array, labels: Array, test: Array, section: FewShot) -> Array:
    """(M, C): a logistic regression's scores of the test images; a warning is printed."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=section.c, max_iter=section.iterations)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(train, labels)
    if caught:
        print(f"{section.iterations} iterations did not do: {caught[0].message}", flush=True)
    scores: Array = model.decision_function(test)
    return np.stack([-scores, scores], axis=1) if scores.ndim == 1 else scores


def _top(scores: Array, labels: Array, k: int) -> float:
    return float((true_ranks(scores, labels) < k).mean())
