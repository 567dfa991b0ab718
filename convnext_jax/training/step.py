"""One optimiser step as a pure function of state and batch."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from convnext_jax.data.erasing import RandomErasing
from convnext_jax.data.mixup import Mixup
from convnext_jax.data.normalize import normalize
from convnext_jax.training.state import TrainState

Batch = dict[str, jax.Array]
Apply = Callable[..., jax.Array]  # (params, images, key=None) -> logits

# The order of the numbers that a step reports.
METRICS = ("loss", "learning_rate", "gradient_norm", "parameter_norm", "update_norm")
# Follows them where the run asks for it.
BATCH_HASH = "batch_hash"


def make_train_step(
    apply: Apply,
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    *,
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int,
    label_smoothing: float = 0.0,
    ema_decay: float | None = None,
    accumulation_steps: int = 1,
    erasing: RandomErasing | None = None,
    mixup: Mixup | None = None,
    batch_hashes: bool = False,
) -> Callable[[TrainState, Batch], tuple[TrainState, jax.Array]]:
    """Builds the training step; the caller jits it with its shardings.

    Args:
      apply: the model as a function of its parameters.
      optimizer: the update rule, which already contains the learning rate.
      learning_rate: the same schedule again, for the report.
      num_classes: labels lie in [0, num_classes).
      mean: channel means for pixels in [0, 1].
      std: channel standard deviations.
      seed: step k draws its randomness from (seed, k) alone.
      label_smoothing: share of the target that is spread evenly over all classes.
      ema_decay: decay of the moving average after each step; None where the state has none.
      accumulation_steps: micro-batches that one step averages the gradient of. Each is mixed by
        itself, as in the reference.
      erasing: random erasing of the normalised images; None for none.
      mixup: mixing of images and targets after that; None for none.
      batch_hashes: also report a hash of the batch as it was read.

    Returns:
      A function (state, batch) -> (state, metrics). The batch has `image` uint8 [N, H, W, 3] and
      `label` int [N], N a multiple of `accumulation_steps`; metrics is float32 [len(METRICS)], or
      one longer with `BATCH_HASH`, where the loss and the gradient norm are those before the update
      and the parameter norm that after it.
    """

    def loss_fn(params: Any, batch: Batch, key: jax.Array) -> jax.Array:
        model_key, erasing_key, mixup_key = jax.random.split(key, 3)
        images = normalize(batch["image"], mean, std)
        targets = jax.nn.one_hot(batch["label"], num_classes)
        targets = optax.smooth_labels(targets, label_smoothing)
        if erasing is not None:
            images = erasing.erase(images, erasing_key)
        if mixup is not None:
            images, targets = mixup.mix(images, targets, mixup_key)
        return optax.softmax_cross_entropy(apply(params, images, key=model_key), targets).mean()

    def gradient(params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
        if accumulation_steps == 1:
            return jax.value_and_grad(loss_fn)(params, batch, key)

        def add_micro_batch(total: Any, micro: tuple[jax.Array, Batch]) -> tuple[Any, None]:
            index, micro_batch = micro
            found = jax.value_and_grad(loss_fn)(params, micro_batch, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, total, found), None

        zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        indices = jnp.arange(accumulation_steps)
        micro_batches = jax.tree.map(lambda x: _split(x, accumulation_steps), batch)
        total, _ = jax.lax.scan(add_micro_batch, zeros, (indices, micro_batches))
        return jax.tree.map(lambda x: x / accumulation_steps, total)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, jax.Array]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        loss, gradients = gradient(state.params, batch, key)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay is not None:
            ema = optax.incremental_update(params, state.ema, step_size=1 - ema_decay)
        metrics = {
            "loss": loss,
            "learning_rate": learning_rate(state.step),
            "gradient_norm": optax.tree.norm(gradients),
            "parameter_norm": optax.tree.norm(params),
            "update_norm": optax.tree.norm(updates),
        }
        values = [metrics[name] for name in METRICS]
        if batch_hashes:
            values.append(batch_hash(batch))
        new_state = TrainState(step=state.step + 1, params=params, ema=ema, opt_state=opt_state)
        return new_state, jnp.stack([jnp.float32(value) for value in values])

    return train_step


def batch_hash(batch: Batch) -> jax.Array:
    """A number that tells batches apart, in whole numbers, so the same on any number of devices.

    Args:
      batch: `image` uint8 [N, H, W, 3], `label` int [N].

    Returns:
      float32 scalar, a whole number below 2**24, which float32 holds exactly.
    """
    image = batch["image"].astype(jnp.uint32)
    # Odd factors, so that no bit of a pixel is lost, and other ones at each place and row.
    places = jnp.arange(image[0].size, dtype=jnp.uint32).reshape(1, *image.shape[1:])
    rows = jnp.arange(len(image), dtype=jnp.uint32)
    of_image = (image * (places * jnp.uint32(2654435761) | 1)).sum((1, 2, 3), dtype=jnp.uint32)
    of_row = of_image + batch["label"].astype(jnp.uint32) * jnp.uint32(2246822519)
    of_row = (of_row ^ (of_row >> 15)) * (rows * jnp.uint32(3266489917) | 1)
    return (of_row.sum(dtype=jnp.uint32) >> 8).astype(jnp.float32)


def _split(rows: jax.Array, parts: int) -> jax.Array:
    """[N, ...] -> [parts, N / parts, ...], part p with rows p, p + parts, p + 2 parts, ...

    Strided, so that each device's contiguous rows give every part its share and nothing moves
    between devices.
    """
    return jnp.moveaxis(rows.reshape(-1, parts, *rows.shape[1:]), 1, 0)
