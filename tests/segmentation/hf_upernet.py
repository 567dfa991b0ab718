"""Hugging Face's UPerNet with random weights of order 1, and those weights under our names."""

import re

import jax.numpy as jnp
import numpy as np
from oracles import torch
from transformers import ConvNextConfig, UperNetConfig, UperNetForSemanticSegmentation

DEPTHS, DIMS, CLASSES = (1, 1, 2, 1), (8, 12, 16, 20), 7
DECODER, AUXILIARY = 24, 10


def build(depths=DEPTHS, dims=DIMS, classes=CLASSES, decoder=DECODER, auxiliary=AUXILIARY):
    """Their model, in evaluation mode."""
    backbone = ConvNextConfig(
        depths=list(depths),
        hidden_sizes=list(dims),
        out_features=[f"stage{i}" for i in (1, 2, 3, 4)],
    )
    model = UperNetForSemanticSegmentation(
        UperNetConfig(
            backbone_config=backbone,
            hidden_size=decoder,
            auxiliary_channels=auxiliary,
            num_labels=classes,
        )
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if "num_batches" in name:
                continue
            drawn = torch.randn(value.shape, generator=generator)
            if "running_var" in name:
                drawn = 0.5 + drawn.abs()
            elif value.ndim == 1 and name.endswith("weight") or "layer_scale" in name:
                drawn = 1 + 0.3 * drawn
            elif value.ndim > 1:
                drawn = drawn / value[0].numel() ** 0.5
            value.copy_(drawn)
    return model.eval()


_RENAMED = (
    (r"backbone\.embeddings\.patch_embeddings\.", "backbone.downsample_layers.0.0."),
    (r"backbone\.embeddings\.layernorm\.", "backbone.downsample_layers.0.1."),
    (r"backbone\.encoder\.stages\.(\d)\.downsampling_layer\.", r"backbone.downsample_layers.\1."),
    (r"backbone\.encoder\.stages\.(\d)\.layers\.", r"backbone.stages.\1."),
    (r"layer_scale_parameter", "gamma"),
    (r"\.layernorm\.", ".norm."),
    (r"backbone\.hidden_states_norms\.stage(\d)\.", lambda m: f"backbone.norm{int(m[1]) - 1}."),
    (r"psp_modules\.(\d)\.1\.", r"psp_modules.\1."),
    (r"batch_norm\.", "bn."),
    (r"\.classifier\.", ".conv_seg."),
    (r"running_", ""),
)


def renamed(state):
    """Their tensors by our names, in our layouts: parameters, and batch statistics."""
    params, stats = {}, {}
    for name, value in state.items():
        if "num_batches" in name:
            continue
        for pattern, ours in _RENAMED:
            name = re.sub(pattern, ours, name)
        value = value.detach().numpy()
        parts = name.split(".")
        if parts[-1] in ("mean", "var"):
            stats["/".join(parts)] = jnp.asarray(value)
            continue
        if parts[-1] == "weight":
            parts[-1] = "kernel" if value.ndim > 1 else "scale"
        if value.ndim == 4:
            value = value.transpose(2, 3, 1, 0)
        elif value.ndim == 2:
            value = value.T
        params["/".join(parts)] = jnp.asarray(np.ascontiguousarray(value))
    return params, stats
