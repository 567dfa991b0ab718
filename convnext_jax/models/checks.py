"""What models refuse, and in which words."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from convnext_jax.errors import InputError

_COMPUTE_DTYPES = ("float32", "bfloat16", "float16")


def require(holds: bool, name: str, value: object, rule: str) -> None:
    """Raises an InputError "`name` (=value) must rule" unless `holds`."""
    if not holds:
        raise InputError(f"`{name}` (={value}) must {rule}")


def check_hyperparameters(
    depths: Sequence[int],
    dims: Sequence[int],
    num_classes: int,
    in_channels: int,
    kernel_size: int | Sequence[int],
    layer_scale_init: float | None,
    drop_path: float,
    norm_eps: float,
    stages: int | None = None,
) -> None:
    """Raises an InputError if a value cannot be used; `stages` fixes the length of `depths`."""
    if stages is not None:
        require(len(depths) == stages, "depths", depths, f"have length {stages}")
    require(
        len(depths) > 0 and min(depths) >= 1, "depths", depths, "be one or more positive numbers"
    )
    require(
        len(dims) == len(depths),
        "dims",
        dims,
        f"have as many entries as `depths` (={depths})",
    )
    require(min(dims) >= 1, "dims", dims, "be positive numbers")
    require(num_classes >= 0, "num_classes", num_classes, "be 0 (no head) or positive")
    require(in_channels >= 1, "in_channels", in_channels, "be positive")
    sizes = (kernel_size,) * len(depths) if isinstance(kernel_size, int) else kernel_size
    require(
        len(sizes) == len(depths),
        "kernel_size",
        kernel_size,
        f"be a number, or have as many entries as `depths` (={depths})",
    )
    require(
        all(size >= 1 and size % 2 == 1 for size in sizes),
        "kernel_size",
        kernel_size,
        "be odd and positive",
    )
    require(
        layer_scale_init is None or layer_scale_init >= 0,
        "layer_scale_init",
        layer_scale_init,
        "be positive, or 0 or None for no layer scale",
    )
    require(0 <= drop_path < 1, "drop_path", drop_path, "be a probability of dropping in [0, 1)")
    require(norm_eps > 0, "norm_eps", norm_eps, "be positive")


def compute_dtype(dtype: DTypeLike) -> jnp.dtype:
    """Returns the NumPy dtype of a compute dtype given as a name, a type or a dtype."""
    rule = f"be one of {', '.join(_COMPUTE_DTYPES)}"
    try:
        found = jnp.dtype(dtype)
    except TypeError as error:
        raise InputError(f"`dtype` (={dtype}) must {rule}") from error
    require(found.name in _COMPUTE_DTYPES, "dtype", dtype, rule)
    return found


def check_inputs(images: Array, key: Array | None, channels: int, smallest: int) -> None:
    """Raises an InputError unless `images` is floating [N, H, W, channels] and large enough.

    Likewise unless `key` is one, or None.
    """
    require(
        key is None or isinstance(key, jax.Array),
        "key",
        key,
        "be made by `jax.random.key`, or None for inference",
    )
    require(
        isinstance(images, jax.Array | np.ndarray),
        "images",
        type(images).__name__,
        "be an array of JAX or NumPy",
    )
    require(
        images.ndim == 4 and images.shape[3] == channels,
        "images",
        f"shape {images.shape}",
        f"have shape [N, H, W, {channels}]",
    )
    require(
        min(images.shape[1:3]) >= smallest,
        "images",
        f"shape {images.shape}",
        f"be at least {smallest} pixels high and wide",
    )
    require(
        jnp.issubdtype(images.dtype, jnp.floating),
        "images",
        f"dtype {images.dtype}",
        "be floating point: normalise pixels before the model",
    )
