"""RandAugment and colour jitter on PIL images: what is drawn, apart from what it does to pixels.

Source: Cubuk et al., "RandAugment" (arXiv 1909.13719), in the form in which the ConvNeXt recipe
uses it, timm's `rand_augment_transform`. It differs from the paper: an operation is left out with
some probability, the magnitude is random, and its scale ends at 10. Pixels equal timm's.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from convnext_jax.constants import IMAGENET_MEAN
from convnext_jax.data import resample
from convnext_jax.errors import InputError

# What rotating, shearing and translating puts where the image has no pixels: (124, 116, 104).
FILL: tuple[int, ...] = tuple(round(255 * mean) for mean in IMAGENET_MEAN)
# The magnitude at which arguments reach the end of their ranges.
_SCALE = 10
# A deviation above this stands for a uniform magnitude, as for timm.
_LARGEST_STD = 100


class Operation(NamedTuple):
    """What an operation does.

    Attributes:
      apply: takes an RGB image and the argument; returns an RGB image of the same size.
      argument: takes the level, magnitude / 10; returns the argument.
      signed: the level is negated with probability 0.5.
    """

    apply: Callable[[Image.Image, float], Image.Image]
    argument: Callable[[float], float] = lambda level: 0.0
    signed: bool = False


class Draw(NamedTuple):
    """A step of a policy: an operation by name, and its argument (0 where it has none)."""

    operation: str
    argument: float


def _rotate(image: Image.Image, degrees: float) -> Image.Image:
    return resample.rotate(image, degrees, FILL)


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    """Takes the pixel at (x, y) from (a x + b y + c, d x + e y + f) of `image`."""
    return resample.affine(image, matrix, FILL)


def _posterize(image: Image.Image, bits: float) -> Image.Image:
    # Pillow 13 refuses to keep no bits; earlier ones, and so the reference's runs, gave black.
    return ImageOps.posterize(image, int(bits)) if bits >= 1 else Image.new("RGB", image.size)


def _solarize(image: Image.Image, threshold: float) -> Image.Image:
    return ImageOps.solarize(image, int(threshold))


def _solarize_add(image: Image.Image, add: float) -> Image.Image:
    dark = [min(255, value + int(add)) for value in range(128)]
    return image.point([*dark, *range(128, 256)] * 3)


def _enhance(enhancer: Any, *, increasing: bool) -> Operation:
    """Goes from a degenerate image (factor 0) through the image (1) to its exaggeration."""

    def factor(level: float) -> float:
        return max(0.1, 1 + level * 0.9) if increasing else level * 1.8 + 0.1

    return Operation(
        lambda image, factor: enhancer(image).enhance(factor), factor, signed=increasing
    )


# In the plain set, Posterize and Solarize do least at the highest magnitude, and the factors of the
# four enhancements pass through 1 at magnitude 5. The increasing forms do more the higher it is.
OPERATIONS = {
    "AutoContrast": Operation(lambda image, _: ImageOps.autocontrast(image)),
    "Equalize": Operation(lambda image, _: ImageOps.equalize(image)),
    "Invert": Operation(lambda image, _: ImageOps.invert(image)),
    # Degrees, counter-clockwise.
    "Rotate": Operation(_rotate, lambda level: level * 30, signed=True),
    # Bits that are kept; none, at magnitude 10 of the increasing form, is a black image.
    "Posterize": Operation(_posterize, lambda level: int(level * 4)),
    "PosterizeIncreasing": Operation(_posterize, lambda level: 4 - int(level * 4)),
    # The value from which on values are inverted; 256 inverts none.
    "Solarize": Operation(_solarize, lambda level: min(256, int(level * 256))),
    "SolarizeIncreasing": Operation(_solarize, lambda level: 256 - min(256, int(level * 256))),
    # What is added to values below 128.
    "SolarizeAdd": Operation(_solarize_add, lambda level: min(128, int(level * 110))),
    # Factors: 1 leaves the image as it is; 0 gives one without colour, its mean grey, black, and a
    # smoothed one.
    "Color": _enhance(ImageEnhance.Color, increasing=False),
    "ColorIncreasing": _enhance(ImageEnhance.Color, increasing=True),
    "Contrast": _enhance(ImageEnhance.Contrast, increasing=False),
    "ContrastIncreasing": _enhance(ImageEnhance.Contrast, increasing=True),
    "Brightness": _enhance(ImageEnhance.Brightness, increasing=False),
    "BrightnessIncreasing": _enhance(ImageEnhance.Brightness, increasing=True),
    "Sharpness": _enhance(ImageEnhance.Sharpness, increasing=False),
    "SharpnessIncreasing": _enhance(ImageEnhance.Sharpness, increasing=True),
    # Pixels a row, or column, is moved for each pixel to the next.
    "ShearX": Operation(
        lambda image, shear: _affine(image, 1, shear, 0, 0, 1, 0), lambda level: level * 0.3, True
    ),
    "ShearY": Operation(
        lambda image, shear: _affine(image, 1, 0, 0, shear, 1, 0), lambda level: level * 0.3, True
    ),
    # Fractions of the width and the height.
    "TranslateXRel": Operation(
        lambda image, part: _affine(image, 1, 0, part * image.width, 0, 1, 0),
        lambda level: level * 0.45,
        True,
    ),
    "TranslateYRel": Operation(
        lambda image, part: _affine(image, 1, 0, 0, 0, 1, part * image.height),
        lambda level: level * 0.45,
        True,
    ),
}
INCREASING = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "PosterizeIncreasing",
    "SolarizeIncreasing",
    "SolarizeAdd",
    "ColorIncreasing",
    "ContrastIncreasing",
    "BrightnessIncreasing",
    "SharpnessIncreasing",
    "ShearX",
    "ShearY",
    "TranslateXRel",
    "TranslateYRel",
)
PLAIN = tuple(name.removesuffix("Increasing") for name in INCREASING)


def draw_for(name: str, magnitude: float, *, negated: bool = False) -> Draw:
    """The step that `magnitude` (0 or more, scaled to 10) means for the operation `name`.

    `negated` says how the coin fell that signed operations toss; it changes no other operation.
    """
    operation, level = OPERATIONS[name], magnitude / _SCALE
    return Draw(name, operation.argument(-level if operation.signed and negated else level))


def apply(image: Image.Image, draws: Iterable[Draw]) -> Image.Image:
    """Applies the steps to an RGB image, one after the other; the size stays."""
    for name, argument in draws:
        image = OPERATIONS[name].apply(image, argument)
    return image


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """A few operations on each image, drawn uniformly and with replacement.

    Attributes:
      magnitude: mean magnitude, 0..magnitude_max; 10 is the end of every operation's range.
      num_ops: operations drawn for an image.
      probability: of applying an operation that was drawn; each is decided for itself.
      magnitude_std: standard deviation of the magnitude, which is normal and clipped to
        [0, magnitude_max]; infinite: the magnitude is uniform in [0, magnitude].
      magnitude_max: largest magnitude; above 10, arguments go beyond their usual ranges.
      operations: names, each a key of `OPERATIONS`.
    """

    magnitude: float = 10
    num_ops: int = 2
    probability: float = 0.5
    magnitude_std: float = 0.0
    magnitude_max: float = 10
    operations: tuple[str, ...] = PLAIN

    def __post_init__(self) -> None:
        """Raises InputError where a field is out of range or an operation is not known."""
        if not 0 < self.magnitude_max < math.inf:
            raise InputError(f"`magnitude_max` (={self.magnitude_max}) must be positive and finite")
        if not 0 <= self.magnitude <= self.magnitude_max:
            raise InputError(
                f"`magnitude` (={self.magnitude}) must be in 0..`magnitude_max`"
                f" (={self.magnitude_max})"
            )
        if self.num_ops < 1:
            raise InputError(f"`num_ops` (={self.num_ops}) must be 1 or more")
        if not 0 <= self.probability <= 1:
            raise InputError(f"`probability` (={self.probability}) must be from 0 to 1")
        if not self.magnitude_std >= 0:
            raise InputError(f"`magnitude_std` (={self.magnitude_std}) must be 0 or more")
        if not self.operations:
            raise InputError("`operations` (=()) must name at least one operation")
        for name in self.operations:
            if name not in OPERATIONS:
                raise InputError(
                    f"`operations` (={name!r}) must be names of operations{_closest(name)}"
                )

    def draw(self, rng: np.random.Generator) -> list[Draw]:
        """Draws the steps for one image: none to `num_ops` of them.

        How often the generator is asked does not depend on what it answers.
        """
        n = self.num_ops
        names = rng.integers(len(self.operations), size=n).tolist()
        applied = (rng.random(n) < self.probability).tolist()
        if math.isinf(self.magnitude_std):
            magnitudes = rng.uniform(0, self.magnitude, n)
        else:
            magnitudes = rng.normal(self.magnitude, self.magnitude_std, n)
        magnitudes = magnitudes.clip(0, self.magnitude_max).tolist()
        negated = (rng.random(n) < 0.5).tolist()
        return [
            draw_for(self.operations[names[i]], magnitudes[i], negated=negated[i])
            for i in range(n)
            if applied[i]
        ]

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Draws steps and applies them to an RGB image; the size stays."""
        return apply(image, self.draw(rng))


_PARTS = {
    "m": ("magnitude", int),
    "n": ("num_ops", int),
    "p": ("probability", float),
    "mstd": ("magnitude_std", float),
    "mmax": ("magnitude_max", int),
    "inc": ("operations", int),
}


def parse_policy(text: str | None) -> RandAugment | None:
    """Reads a policy as timm writes it, such as `rand-m9-mstd0.5-inc1`, the recipe's.

    After `rand` come, in any order, letters with a number: m, magnitude (whole; 10 where it is left
    out); n, operations an image (2); p, probability of applying each (0.5); mstd, standard
    deviation of the magnitude (0; `inf` or above 100: uniform in [0, m]); mmax, largest magnitude
    (whole; 10); inc, 1 for the operations that do more at a higher magnitude (0).

    Stricter than timm's `rand_augment_transform`, which passes over parts without a number,
    `mstdinf` among them, and clips a magnitude that is out of range. The operations are
    the two sets of 15; timm's other sets (t) are not here.

    Args:
      text: the policy; empty or None for none.

    Raises:
      InputError: a part is unknown, comes twice, or has a value that is out of range.
    """
    if not text:
        return None
    given = f"`auto_augment` (={text!r})"
    first, *parts = text.split("-")
    if first != "rand":
        raise InputError(f"{given} must begin with 'rand', as 'rand-m9-mstd0.5-inc1' does")
    fields: dict[str, Any] = {}
    for part in parts:
        match = re.fullmatch(r"([a-z]*?)(\d.*|inf)", part)
        key, value = match.groups() if match else (part, "")
        if key not in _PARTS:
            raise InputError(
                f"{given} must have parts of {', '.join(_PARTS)} and a number, not {part!r}"
                f"{_closest(key, _PARTS)}"
            )
        field, number = _PARTS[key]
        if field in fields:
            raise InputError(f"{given} must have the part {key} once")
        try:
            fields[field] = number(value)
        except ValueError:
            kind = "a whole number" if number is int else "a number"
            raise InputError(f"{given} must have {kind} in its part {part!r}") from None
    if fields.get("magnitude_std", 0) > _LARGEST_STD:
        fields["magnitude_std"] = math.inf
    if "operations" in fields:
        if fields["operations"] not in (0, 1):
            raise InputError(f"{given} must have inc0 or inc1, not inc{fields['operations']}")
        fields["operations"] = INCREASING if fields["operations"] else PLAIN
    try:
        return RandAugment(**fields)
    except InputError as error:
        raise InputError(f"{given} cannot be used: {error}") from None


def draw_color_jitter(rng: np.random.Generator, strength: float) -> list[Draw]:
    """Draws brightness, contrast and saturation, in random order.

    Source: torchvision's `ColorJitter` with three equal numbers, as timm's `create_transform` makes
    it; no hue.

    Args:
      rng: generator to draw with.
      strength: 0 or more; each factor is uniform in [max(0, 1 - strength), 1 + strength].
    """
    names = ("Brightness", "Contrast", "Color")
    factors = rng.uniform(max(0.0, 1 - strength), 1 + strength, len(names)).tolist()
    return [Draw(names[i], factors[i]) for i in rng.permutation(len(names))]


def _closest(word: str, known: Iterable[str] = OPERATIONS) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; the closest is {close[0]}" if close else ""
