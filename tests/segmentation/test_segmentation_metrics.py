"""Mean IoU against scikit-learn's confusion matrix."""

import jax
import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from convnext_jax.errors import InputError
from convnext_jax.segmentation.metrics import class_areas, class_scores, scores

CLASSES = 6


def draw(seed, absent):
    rng = np.random.default_rng(seed)
    labels = rng.choice([c for c in range(CLASSES) if c != absent], (5, 13, 17))
    predictions = np.where(rng.random(labels.shape) < 0.6, labels, rng.integers(0, 4, labels.shape))
    labels = np.where(rng.random(labels.shape) < 0.2, 255, labels)
    return predictions.astype(np.uint8), labels.astype(np.uint8)


@pytest.mark.parametrize("absent", [None, 5])
def test_scores_are_those_of_the_confusion_matrix(absent):
    predictions, labels = draw(0, absent)
    found = jax.jit(class_areas, static_argnums=2)(predictions, labels, CLASSES)
    areas = {name: np.asarray(value).sum(0, dtype=np.int64) for name, value in found.items()}
    valid = labels != 255
    matrix = confusion_matrix(labels[valid], predictions[valid], labels=range(CLASSES))
    right = np.diag(matrix)
    union = matrix.sum(0) + matrix.sum(1) - right
    present = union > 0
    assert present.sum() == (CLASSES if absent is None else CLASSES - 1)
    iou = right[present] / union[present]
    np.testing.assert_array_equal(class_scores(areas)["iou"][present], iou)
    assert np.isnan(class_scores(areas)["iou"][~present]).all()
    labelled = matrix.sum(1) > 0
    assert scores(areas) == {
        "miou": pytest.approx(iou.mean(), rel=1e-12),
        "macc": pytest.approx((right[labelled] / matrix.sum(1)[labelled]).mean(), rel=1e-12),
        "aacc": pytest.approx(right.sum() / matrix.sum(), rel=1e-12),
    }


def test_each_image_is_counted_alone():
    predictions, labels = draw(1, None)
    whole = class_areas(predictions, labels, CLASSES)
    for i in range(len(labels)):
        alone = class_areas(predictions[i : i + 1], labels[i : i + 1], CLASSES)
        for name, value in alone.items():
            np.testing.assert_array_equal(value[0], whole[name][i])


def test_a_set_without_a_class_has_no_scores():
    nothing = dict.fromkeys(("intersection", "predicted", "labelled"), np.zeros(3, np.int64))
    with pytest.raises(InputError, match="no pixel of the annotations has a class"):
        scores(nothing)
