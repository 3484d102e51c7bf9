"""How much an AP owes to the choice of the held-out images: the AP of resampled test sets.

All variants draw the same images, so that differences are paired (lecture 09 shows why).
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from torch import Tensor

from helpers.evaluation import coco_eval
from helpers.shapes import CLASSES

DRAWS = 200
RECALLS = np.linspace(0, 1, 101)


def resampled_ap(
    detections: Sequence[Mapping[str, Tensor]],
    targets: Sequence[Mapping[str, Tensor]],
    num_classes: int = len(CLASSES),
    draws: int = DRAWS,
) -> np.ndarray:
    """AP (draws,) of test sets made by drawing as many images with repetition, always the same."""
    generator = np.random.RandomState(0)
    count = len(targets)
    drawn = np.stack(
        [np.bincount(generator.randint(0, count, count), minlength=count) for _ in range(draws)]
    )
    return weighted_ap(detections, targets, drawn, num_classes)


def weighted_ap(
    detections: Sequence[Mapping[str, Tensor]],
    targets: Sequence[Mapping[str, Tensor]],
    weights: np.ndarray,
    num_classes: int = len(CLASSES),
) -> np.ndarray:
    """COCO's AP (D,) with image i counted `weights[d, i]` times; weights: (D, images)."""
    result = coco_eval(detections, targets, num_classes)
    values = [
        _precision(scores, matches, weights[:, images], weights @ objects)
        for scores, matches, images, objects in _by_class(result)
    ]
    return np.nanmean(np.concatenate(values, axis=1), axis=1)  # over classes and IoU thresholds


def _by_class(result) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Per class: scores (N,), matches (T, N), images (N,), and the number of objects per image."""
    parameters = result.params
    shape = (len(parameters.catIds), len(parameters.areaRng), len(parameters.imgIds))
    for of_class in np.array(result.evalImgs, dtype=object).reshape(shape)[:, 0]:
        objects = np.zeros(shape[2])
        scores, matches, images = [], [], []
        for i, entry in enumerate(of_class):
            if entry is None:  # neither an object nor a detection of this class
                continue
            objects[i] = (np.asarray(entry["gtIgnore"]) == 0).sum()
            kept = ~np.asarray(entry["dtIgnore"], bool).any(0)
            scores.append(np.asarray(entry["dtScores"], float)[kept])
            matches.append(np.asarray(entry["dtMatches"])[:, kept] > 0)
            images.append(np.full(kept.sum(), i))
        if objects.any():
            empty = np.zeros((len(parameters.iouThrs), 0), bool)
            yield (
                np.concatenate([[], *scores]),
                np.concatenate([empty, *matches], axis=1),
                np.concatenate([[], *images]).astype(int),
                objects,
            )


def _precision(
    scores: np.ndarray, matches: np.ndarray, weights: np.ndarray, objects: np.ndarray
) -> np.ndarray:
    """AP (D, T) of one class: the mean of the interpolated precision at 101 recalls."""
    order = np.argsort(-scores, kind="mergesort")
    weights = weights[:, order].astype(float)  # (D, N)
    found = []
    for match in matches[:, order]:
        right = np.cumsum(weights * match, axis=1)  # (D, N)
        recall = right / np.maximum(objects, 1)[:, None]
        precision = right / np.maximum(np.cumsum(weights, axis=1), 1e-9)
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        found.append([_at_recalls(r, p) for r, p in zip(recall, precision)])
    values = np.array(found).T.reshape(len(weights), -1)  # (D, T)
    return np.where(objects[:, None] > 0, values, np.nan)


def _at_recalls(recall: np.ndarray, precision: np.ndarray) -> float:
    place = np.searchsorted(recall, RECALLS, side="left")  # of the first recall that is enough
    return float(np.append(precision, 0)[place].mean())
