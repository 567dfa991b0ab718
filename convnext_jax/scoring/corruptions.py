"""Corruptions of ImageNet's validation images, and what is made of the errors on them."""

from collections.abc import Mapping, Sequence

SEVERITIES = (1, 2, 3, 4, 5)

# ImageNet-C (arXiv 1903.12261): the mean error of AlexNet over the five severities, percent, by
# which that of a model is divided. Looked up by name, as lists of them have had two orders.
ALEXNET_ERRORS = {
    "gaussian_noise": 88.6428,
    "shot_noise": 89.4468,
    "impulse_noise": 92.2640,
    "defocus_blur": 81.9880,
    "glass_blur": 82.6268,
    "motion_blur": 78.5948,
    "zoom_blur": 79.8360,
    "snow": 86.6816,
    "frost": 82.6572,
    "fog": 81.9324,
    "brightness": 56.4592,
    "contrast": 85.3204,
    "elastic_transform": 64.6056,
    "pixelate": 71.7840,
    "jpeg_compression": 60.6500,
}
# ImageNet-C-bar (arXiv 2102.11273), as its folders are called.
C_BAR = (
    "blue_noise_sample",
    "brownish_noise",
    "caustic_refraction",
    "checkerboard_cutout",
    "cocentric_sine_waves",
    "inverse_sparkles",
    "perlin_noise",
    "plasma_noise",
    "single_frequency_greyscale",
    "sparkles",
)


def corruption_errors(errors: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The corruption error of each of ImageNet-C's corruptions, AlexNet's being 100.

    Args:
      errors: top-1 errors of the five severities, fractions, by corruption.

    Raises:
      KeyError: a corruption is not one of the 15; there are four more that no mean has.
    """
    return {
        name: 100 * (100 * sum(found) / len(found)) / ALEXNET_ERRORS[name]
        for name, found in errors.items()
    }


def mce(errors: Mapping[str, Sequence[float]]) -> float:
    """The mean corruption error of all 15 corruptions.

    Args:
      errors: as for `corruption_errors`.

    Raises:
      KeyError: one is missing, or is not one of the 15.
    """
    found = corruption_errors({name: errors[name] for name in {**ALEXNET_ERRORS, **errors}})
    return sum(found.values()) / len(found)


def mean_error(errors: Mapping[str, Sequence[float]]) -> float:
    """The plain mean of C-bar's errors, percent.

    Args:
      errors: top-1 errors of the five severities, fractions, by corruption.
    """
    found = [error for name in C_BAR for error in errors[name]]
    return 100 * sum(found) / len(found)
