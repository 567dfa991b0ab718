"""The two changes to weights that may be asked for: other classes, other input channels."""

import math
from collections.abc import Mapping

import numpy as np

HEAD = ("head/kernel", "head/bias")
# The standard deviation of the models' initial kernels.
_STDDEV = 0.02
# And of the last layers of models that segment or detect; None: as He's normal distribution.
_LAST = {"conv_seg": 0.01, "fc_cls": 0.01, "fc_reg": 0.001, "conv_logits": None}


def new_head(
    arrays: Mapping[str, np.ndarray], width: int, num_classes: int
) -> dict[str, np.ndarray]:
    """Replaces the head by an untrained one.

    Args:
      arrays: parameters by our names, with or without a head.
      width: length of the vector the head works on.
      num_classes: of the new head; 0: there is none.

    Returns:
      The parameters; a new kernel [width, num_classes] is normal with standard deviation 0.02 and
      the same at every call, the bias 0.
    """
    changed = {name: array for name, array in arrays.items() if name not in HEAD}
    if num_classes:
        noise = np.random.default_rng(0).standard_normal((width, num_classes), dtype=np.float32)
        changed |= {
            "head/kernel": np.float32(_STDDEV) * noise,
            "head/bias": np.zeros(num_classes, np.float32),
        }
    return changed


def is_last(name: str) -> bool:
    """Whether a parameter is of the last layers of a model that segments or detects."""
    return name.rpartition("/")[0].rpartition("/")[2] in _LAST


def new_classifiers(arrays: Mapping[str, np.ndarray], num_classes: int) -> dict[str, np.ndarray]:
    """Replaces the last layers of all heads of a UPerNet or a detector by untrained ones.

    Args:
      arrays: parameters and statistics by our names.
      num_classes: of the new ones.

    Returns:
      The arrays; new kernels [..., num_classes] (class scores of a detector have one more, for the
      background; deltas four to a class) are normal with the standard deviation that the model
      starts with, and the same at every call, biases 0.
    """
    changed, rng = dict(arrays), np.random.default_rng(0)
    for name in sorted(filter(is_last, arrays)):
        layer, _, leaf = name.rpartition("/")
        kind = layer.rpartition("/")[2]
        last = {"fc_cls": num_classes + 1, "fc_reg": 4 * num_classes}.get(kind, num_classes)
        shape = (*arrays[name].shape[:-1], last)
        stddev = _LAST[kind]
        if stddev is None:
            stddev = math.sqrt(2 / max(num_classes, 1))
        changed[name] = (
            np.zeros(shape, np.float32)
            if leaf == "bias"
            else np.float32(stddev) * rng.standard_normal(shape, dtype=np.float32)
        )
    return changed


def first_kernel(names: Mapping[str, object]) -> str:
    """The name of the kernel that meets the image."""
    usual = "downsample_layers/0/0/kernel"
    return next(name for name in ("stem/kernel", f"backbone/{usual}", usual) if name in names)


def other_channels(kernel: np.ndarray, in_channels: int) -> np.ndarray:
    """Makes a convolution work on images with another number of channels.

    Args:
      kernel: [k, k, channels, C].
      in_channels: wanted.

    Returns:
      [k, k, in_channels, C]. For one channel the kernels are summed: a grey image gives what the
      same grey in every channel gave. Otherwise they are repeated in order (red, green, blue, red,
      ...) and multiplied by channels / in_channels, which keeps that property where in_channels is
      a multiple of channels, and the size of the sum where it is not.
    """
    channels = kernel.shape[2]
    if in_channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    repeated = kernel[:, :, np.arange(in_channels) % channels]
    return np.ascontiguousarray(repeated * np.float32(channels / in_channels))
