"""Parameters that give the same function with less to compute at inference."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from convnext_jax import tree
from convnext_jax.models.variants import Preprocessing


def fold(params: Any, feeding: Preprocessing | None = None) -> tuple[Any, bool]:
    """Moves what is linear into the neighbouring kernels, where that is exact.

    Layer scale goes into the second linear layer of a block, scale and bias of its norm into the
    first one, GRN's beta into the second one's bias; scale and bias of the norms before
    downsampling into its convolution, and those of the last norm into what follows it. What was
    moved becomes 1 or 0, so the tree stays as it is, and compilers drop it. Not moved: GRN's gamma,
    which is multiplied by what depends on the data, and the affine part of the stem's norm, whose
    result is the residual stream. Sums are float64.

    Args:
      params: tree of float32 arrays, of any model of the family.
      feeding: images will be pixels in 0..255 instead of normalised: their normalisation is moved
        into the stem too, if it is a patch stem for RGB. (A padded one sees zeros around images
        that are 0 when normalised, and not before.)

    Returns:
      The tree of float32 NumPy arrays, and whether images are pixels now.
    """
    arrays = {
        name: np.asarray(array, np.float64)
        for name, array in tree.flatten_with_names(params).items()
    }
    for name in list(arrays):
        if name.endswith("/pwconv2/kernel"):
            _fold_block(arrays, name.removesuffix("pwconv2/kernel"))
        elif match := re.fullmatch(r"(.*downsample_layers/[1-9]\d*)/1/kernel", name):
            _fold_norm(arrays, f"{match[1]}/0/", f"{match[1]}/1/")
    for norm in ("norm/", "norm_pre/"):
        layers = [layer for layer in ("pre_logits/", "head/") if f"{layer}kernel" in arrays]
        if layers and f"{norm}scale" in arrays:
            _fold_norm(arrays, norm, layers[0])
    pixels = feeding is not None and _fold_normalisation(arrays, feeding)
    folded = tree.map_with_names(lambda name, _: arrays[name].astype(np.float32), params)
    return folded, pixels


def _fold_block(arrays: dict[str, np.ndarray], block: str) -> None:
    _fold_norm(arrays, f"{block}norm/", f"{block}pwconv1/")
    kernel, bias = (arrays[f"{block}pwconv2/{part}"] for part in ("kernel", "bias"))
    beta, gamma = (arrays.get(f"{block}{name}") for name in ("grn/beta", "gamma"))
    if beta is not None:
        bias = bias + beta @ kernel
        arrays[f"{block}grn/beta"] = np.zeros_like(beta)
    if gamma is not None:
        kernel, bias = kernel * gamma, bias * gamma
        arrays[f"{block}gamma"] = np.ones_like(gamma)
    arrays[f"{block}pwconv2/kernel"], arrays[f"{block}pwconv2/bias"] = kernel, bias


def _fold_norm(arrays: dict[str, np.ndarray], norm: str, layer: str) -> None:
    """Moves a norm's scale [C] and bias [C], if any, into a kernel [..., C, D] that it feeds."""
    kernel, scale = arrays[f"{layer}kernel"], arrays[f"{norm}scale"]
    bias = arrays.get(f"{norm}bias")
    if bias is not None:
        taps = kernel.reshape(-1, *kernel.shape[-2:]).sum(0)
        arrays[f"{layer}bias"] = arrays[f"{layer}bias"] + bias @ taps
        arrays[f"{norm}bias"] = np.zeros_like(bias)
    arrays[f"{layer}kernel"] = kernel * scale[:, None]
    arrays[f"{norm}scale"] = np.ones_like(scale)


def _fold_normalisation(arrays: dict[str, np.ndarray], feeding: Preprocessing) -> bool:
    """Has the stem take pixels in 0..255; returns whether it can."""
    stem = _patch_stem(arrays)
    if stem is None or arrays[f"{stem}kernel"].shape[2] != len(feeding.mean):
        return False
    mean, std = np.array(feeding.mean), np.array(feeding.std)
    kernel = arrays[f"{stem}kernel"]
    taps = kernel.sum((0, 1))
    arrays[f"{stem}bias"] = arrays[f"{stem}bias"] - (mean / std) @ taps
    arrays[f"{stem}kernel"] = kernel / (255 * std)[:, None]
    return True


def _patch_stem(arrays: Mapping[str, np.ndarray]) -> str | None:
    """Where the patch stem's parameters are; None: the stem has padding."""
    for stem in ("stem/", "downsample_layers/0/0/", "backbone/downsample_layers/0/0/"):
        kernel = arrays.get(f"{stem}kernel")
        if kernel is not None:
            return None if kernel.shape[0] == 3 else stem
    return None
