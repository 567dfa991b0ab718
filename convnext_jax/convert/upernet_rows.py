"""UPerNet in other implementations: tables of its heads, and of a backbone's place beside them."""

import dataclasses
from collections.abc import Iterable

from convnext_jax.convert.keys import ONES_AFTER, PLAIN, Row

# Only UPerNet has it, so that its files are told from those of other segmenters by it.
PRESENT = "decode_head.fpn_bottleneck."

# How many batches a BatchNorm has seen, of which nothing is computed. PyTorch keeps it beside the
# running statistics, and loaders that are strict want it.
COUNTER = "num_batches_tracked"
COUNTERS = rf"(decode_head|auxiliary_head)\.[\w.]+\.(bn|batch_norm)\.{COUNTER}"

# What heads of a classifier or its last norm are called by us.
_NOT_IN_BACKBONES = ("norm/*", "head/*")

# mmpretrain's backbone, which mmsegmentation and mmdetection take.
MMPRETRAIN_BACKBONE = (
    Row("downsample_layers/{S}/{i}/*", "downsample_layers.{S}.{i}.*"),
    Row("stages/{S}/{j}/dwconv/*", "stages.{S}.{j}.depthwise_conv.*"),
    Row("stages/{S}/{j}/norm/*", "stages.{S}.{j}.norm.*"),
    Row("stages/{S}/{j}/pwconv{n}/bias", "stages.{S}.{j}.pointwise_conv{n}.bias"),
    # 1x1 convolutions where its `linear_pw_conv` is off.
    Row("stages/{S}/{j}/pwconv{n}/*", "stages.{S}.{j}.pointwise_conv{n}.*", (PLAIN, ONES_AFTER)),
    Row("stages/{S}/{j}/gamma", "stages.{S}.{j}.gamma"),
    Row("stages/{S}/{j}/grn/gamma", "stages.{S}.{j}.grn.gamma"),
    Row("stages/{S}/{j}/grn/beta", "stages.{S}.{j}.grn.beta"),
)

# The norms of what leaves the stages.
NORMS = (Row("backbone/norm{S}/*", "backbone.norm{S}.*"),)
HF_NORMS = tuple(
    Row(f"backbone/norm{stage}/*", f"backbone.hidden_states_norms.stage{stage + 1}.*")
    for stage in range(4)
)


def backbone(rows: Iterable[Row], prefix: str = "backbone.") -> tuple[Row, ...]:
    """The table of a classifier, as it is for the backbone of a UPerNet or a detector.

    Args:
      rows: the classifier's.
      prefix: what its names in the file get put before them.
    """
    return tuple(
        dataclasses.replace(row, ours=f"backbone/{row.ours}", theirs=prefix + row.theirs)
        for row in rows
        if row.ours not in _NOT_IN_BACKBONES
    )


def heads(norm: str, classifier: str) -> tuple[Row, ...]:
    """The table of both heads.

    Args:
      norm: what BatchNorm is called in the file.
      classifier: and the last convolution.
    """
    rows = []
    for ours, theirs in (
        # Number 0 of each is its pooling.
        ("decode_head/psp_modules/{k}", "decode_head.psp_modules.{k}.1"),
        ("decode_head/{part}/{i}", "decode_head.{part}.{i}"),
        ("decode_head/{part}", "decode_head.{part}"),
        ("auxiliary_head/{part}/{i}", "auxiliary_head.{part}.{i}"),
    ):
        rows += [
            Row(f"{ours}/conv/*", f"{theirs}.conv.*"),
            Row(f"{ours}/bn/*", f"{theirs}.{norm}.*"),
            Row(f"{ours}/bn/mean", f"{theirs}.{norm}.running_mean"),
            Row(f"{ours}/bn/var", f"{theirs}.{norm}.running_var"),
        ]
    rows += [
        Row(f"{head}/conv_seg/*", f"{head}.{classifier}.*")
        for head in ("decode_head", "auxiliary_head")
    ]
    return tuple(rows)


def counters(names: Iterable[str]) -> list[str]:
    """Names of the counters that PyTorch has beside the running statistics among `names`."""
    last = "running_var"
    return [name.removesuffix(last) + COUNTER for name in names if name.endswith(f".{last}")]
