"""Weights and gradients of timm's and torchvision's ConvNeXt under this project's names."""

import re

import numpy as np

_TIMM = [
    (r"^stem\.(\d)", r"downsample_layers.0.\1"),
    (r"^stages\.(\d+)\.downsample\.(\d)", r"downsample_layers.\1.\2"),
    (r"\.blocks\.", "."),
    (r"\.conv_dw\.", ".dwconv."),
    (r"\.mlp\.fc(\d)\.", r".pwconv\1."),
    (r"\.mlp\.grn\.weight$", ".grn.gamma"),
    (r"\.mlp\.grn\.bias$", ".grn.beta"),
    (r"^head\.pre_logits\.fc\.", "pre_logits."),
    (r"^head\.norm\.", "norm."),
    (r"^head\.fc\.", "head."),
]
_TORCHVISION = [
    (r"^features\.0\.", "downsample_layers.0."),
    (r"^features\.([246])\.", lambda m: f"downsample_layers.{int(m[1]) // 2}."),
    (r"^features\.([1357])\.", lambda m: f"stages.{int(m[1]) // 2}."),
    (r"\.block\.0\.", ".dwconv."),
    (r"\.block\.2\.", ".norm."),
    (r"\.block\.3\.", ".pwconv1."),
    (r"\.block\.5\.", ".pwconv2."),
    (r"\.layer_scale$", ".gamma"),
    (r"^classifier\.0\.", "norm."),
    (r"^classifier\.2\.", "head."),
]
_RULES = {"timm": _TIMM, "torchvision": _TORCHVISION, "own names": []}


def renamed(named, kind: str) -> dict[str, np.ndarray]:
    """Maps torch names and tensors, weights or their gradients, to our names and arrays."""
    if kind == "timm":
        named = _without_gaps_in_stem(named)
    return dict(_convert(name, _array(tensor), kind) for name, tensor in named.items())


def _without_gaps_in_stem(named) -> dict:
    """Counts a stem's layers with parameters alone: `stem.{0,2,3}` become `stem.{0,1,2}`."""
    layers = sorted({name.split(".")[1] for name in named if name.startswith("stem.")})
    return {
        re.sub(r"^stem\.(\d)", lambda m: f"stem.{layers.index(m[1])}", name): tensor
        for name, tensor in named.items()
    }


def _array(tensor) -> np.ndarray:
    """A tensor's values; of one on the meta device, which has none, an array of its shape."""
    return np.broadcast_to(np.float32(0), tensor.shape) if tensor.is_meta else tensor.numpy()


def _convert(name: str, array: np.ndarray, kind: str) -> tuple[str, np.ndarray]:
    for pattern, replacement in _RULES[kind]:
        name = re.sub(pattern, replacement, name)
    parent, _, leaf = name.rpartition(".")
    if leaf in ("gamma", "beta"):
        return name.replace(".", "/"), array.reshape(-1)
    if leaf == "weight":
        leaf = "scale" if array.ndim == 1 else "kernel"
        if "pwconv" in parent:
            array = array.reshape(array.shape[:2])  # timm has 1x1 convolutions here.
        array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    return f"{parent}.{leaf}".replace(".", "/"), array


def randomise(model, seed: int) -> None:
    """Gives every parameter of a torch model a random value of a size at which it matters.

    Kernels keep the variance of their input, biases and norms move away from 0 and 1, and layer
    scale is of order 1 instead of 1e-6, which would hide every error inside a block.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "gamma" in name or "layer_scale" in name:
                parameter.copy_(0.6 + 0.2 * noise)
            elif name.endswith(("bias", "beta")):
                parameter.copy_(0.3 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(1 + 0.3 * noise)
            else:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
