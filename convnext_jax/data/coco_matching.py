"""COCO's matching of detections with objects, compiled."""

import numpy as np

from convnext_jax.data.compiled import compiled


@compiled
def match(overlaps, thresholds, crowd, ignored):
    """Matches the detections of a class in an image with its objects, each detection with one.

    Detections choose in turn: the object with the largest overlap that is left, of equal ones the
    last; one that counts before one that is ignored. A crowd may be chosen again and again.
    (pycocotools, `COCOeval.evaluateImg`.)

    Args:
      overlaps: float64 [D, G]; detections in descending order of their scores.
      thresholds: float64 [T], that an overlap must reach.
      crowd: bool [G].
      ignored: bool [A, G], whether an object is ignored in each range of areas.

    Returns:
      bool [A, T, D] each: whether a detection has an object; whether that is an ignored one.
    """
    ranges, objects = ignored.shape
    shape = (ranges, len(thresholds), len(overlaps))
    matched, of_ignored = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    order = np.empty(objects, np.int64)
    for a in range(ranges):
        count = 0
        for wanted in (False, True):
            for g in range(objects):
                if ignored[a, g] == wanted:
                    order[count] = g
                    count += 1
        for t in range(len(thresholds)):
            taken = np.zeros(objects, np.bool_)
            for d in range(len(overlaps)):
                least, best = min(thresholds[t], 1 - 1e-10), -1
                for g in order:
                    if taken[g] and not crowd[g]:
                        continue
                    if best >= 0 and not ignored[a, best] and ignored[a, g]:
                        break
                    if overlaps[d, g] >= least:
                        least, best = overlaps[d, g], g
                if best >= 0:
                    taken[best] = True
                    matched[a, t, d] = True
                    of_ignored[a, t, d] = ignored[a, best]
    return matched, of_ignored
