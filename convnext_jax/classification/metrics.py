"""Sums over a batch whose last rows may only fill it up."""

import jax
import jax.numpy as jnp
import numpy as np
import optax


def class_scores(
    right: np.ndarray, of_class: np.ndarray, taken: np.ndarray
) -> dict[str, np.ndarray]:
    """Scores of each class, nan where nothing can be said of one: scikit-learn's, in fractions.

    Args:
      right: int [classes], how many examples of each class were taken for it.
      of_class: likewise, how many there are of it.
      taken: likewise, how many were taken for it.

    Returns:
      `examples` of the class, its `recall` (accuracy on them), `precision` and `f1`, each
      [classes].
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "examples": of_class,
            "recall": right / of_class,
            "precision": right / taken,
            "f1": 2 * right / (of_class + taken),
        }


def confusion_counts(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
    """Counts rows by their label and by the class with the highest logit.

    Args:
      logits: as for `masked_sums`.
      labels: likewise.
      mask: likewise.

    Returns:
      float32 [classes, classes]: of the rows that count, how many of each label (first axis) were
      taken for each class (second).
    """
    classes = logits.shape[1]
    true = jax.nn.one_hot(labels, classes) * (mask > 0).astype(jnp.float32)[:, None]
    found = jax.nn.one_hot(jnp.argmax(logits, axis=1), classes)
    return true.T @ found  # counts are whole, and exact in float32 below 2**24


def list_sums(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """`masked_sums` of rows that have several labels each: any of them is right.

    Args:
      logits: as for `masked_sums`.
      labels: bool [N, classes], of each row its labels; a row without any does not count.
      mask: as for `masked_sums`.

    Returns:
      `count`, `top1` and `top5`; of several labels there is no cross entropy. (arXiv 2006.07159)
    """
    _, predictions = jax.lax.top_k(logits.astype(jnp.float32), min(5, logits.shape[1]))
    counts = (mask > 0) & labels.any(axis=1)
    hits = jnp.take_along_axis(labels, predictions, axis=1) & counts[:, None]
    return {
        "count": jnp.sum(counts, dtype=jnp.float32),
        "top1": jnp.sum(hits[:, 0], dtype=jnp.float32),
        "top5": jnp.sum(hits.any(axis=1), dtype=jnp.float32),
    }


def masked_sums(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Sums over the rows of a batch that count.

    Args:
      logits: [N, classes]; of equal logits the lower class wins, and with fewer than five classes
        every label is among the first five.
      labels: int [N], in [0, classes).
      mask: [N], 1 for rows that count and 0 for filling.

    Returns:
      float32 scalars: `count` of rows, their `loss` (cross entropy, natural logarithm), and how
      many have their label first (`top1`) and among the first five (`top5`).
    """
    logits = logits.astype(jnp.float32)
    counts = mask > 0
    _, predictions = jax.lax.top_k(logits, min(5, logits.shape[1]))
    hits = (predictions == labels[:, None]) & counts[:, None]
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return {
        "count": jnp.sum(counts, dtype=jnp.float32),
        # `where`, not a product: the loss of a filling row may not be finite.
        "loss": jnp.sum(jnp.where(counts, loss, 0.0)),
        "top1": jnp.sum(hits[:, 0], dtype=jnp.float32),
        "top5": jnp.sum(hits, dtype=jnp.float32),
    }
