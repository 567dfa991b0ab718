"""The two changes to weights that may be asked for: other classes, other input channels."""

from collections.abc import Mapping

import numpy as np

HEAD = ("head/kernel", "head/bias")
# The standard deviation of the models' initial kernels.
_STDDEV = 0.02
# And of UPerNet's last convolutions, which each of its heads has.
_OF_UPERNET = ("decode_head/conv_seg", "auxiliary_head/conv_seg")
_STDDEV_OF_UPERNET = 0.01


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


def new_classifiers(arrays: Mapping[str, np.ndarray], num_classes: int) -> dict[str, np.ndarray]:
    """Replaces the last convolution of both heads of a UPerNet by an untrained one.

    Args:
      arrays: parameters and statistics by our names.
      num_classes: of the new ones.

    Returns:
      The arrays; new kernels [1, 1, width, num_classes] are normal with standard deviation 0.01 and
      the same at every call, biases 0.
    """
    changed, rng = dict(arrays), np.random.default_rng(0)
    for name in _OF_UPERNET:
        shape = (*arrays[f"{name}/kernel"].shape[:3], num_classes)
        noise = rng.standard_normal(shape, dtype=np.float32)
        changed[f"{name}/kernel"] = np.float32(_STDDEV_OF_UPERNET) * noise
        changed[f"{name}/bias"] = np.zeros(num_classes, np.float32)
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
