"""The formats: where other implementations keep the parameters, and what else their files hold."""

import dataclasses
from collections.abc import Mapping

from convnext_jax.convert import detector_rows, upernet_rows
from convnext_jax.convert.heads import TITLES
from convnext_jax.convert.keys import ONES_AFTER, ONES_BEFORE, PLAIN, Row


@dataclasses.dataclass(frozen=True)
class Dialect:
    """One way in which a format names its tensors.

    Attributes:
      format: the name users know: several dialects share one.
      name: the format with what sets the dialect apart.
      present: it is recognised by names of tensors that begin so: there are some of each.
      absent: and by names of tensors that are not there.
      rows: its table.
      supplied: our parameters that such files never hold, and the constant that takes their place.
      droppable: patterns of tensors that are no part of the image model.
      duplicates: tensors that repeat others.
      heads: what stands over the backbone, a key of `heads.TITLES`.
    """

    format: str
    name: str
    present: tuple[str, ...]
    rows: tuple[Row, ...]
    absent: tuple[str, ...] = ()
    supplied: Mapping[str, float] = dataclasses.field(default_factory=dict)
    droppable: tuple[str, ...] = ()
    duplicates: Mapping[str, str] = dataclasses.field(default_factory=dict)
    heads: str = ""


# Our names are those of the reference implementation: V1, V2 (which has GRN and no `gamma`).
_FACEBOOK = (
    Row("downsample_layers/{S}/{i}/*", "downsample_layers.{S}.{i}.*"),
    Row("stages/{S}/{j}/gamma", "stages.{S}.{j}.gamma"),
    Row("stages/{S}/{j}/grn/gamma", "stages.{S}.{j}.grn.gamma", (ONES_BEFORE,)),
    Row("stages/{S}/{j}/grn/beta", "stages.{S}.{j}.grn.beta", (ONES_BEFORE,)),
    Row("stages/{S}/{j}/{part}/*", "stages.{S}.{j}.{part}.*"),
    Row("norm/*", "norm.*"),
    Row("head/*", "head.*"),
)

_ISOTROPIC = (
    Row("stem/*", "stem.*"),
    Row("blocks/{j}/gamma", "blocks.{j}.gamma"),
    Row("blocks/{j}/{part}/*", "blocks.{j}.{part}.*"),
    Row("norm/*", "norm.*"),
    Row("head/*", "head.*"),
)


def _timm(prefix: str = "", *, stem: tuple[Row, ...], head: tuple[Row, ...]) -> tuple[Row, ...]:
    blocks = prefix + "stages.{S}.blocks.{j}."
    return (
        *stem,
        Row("downsample_layers/{S}/{i}/*", prefix + "stages.{S}.downsample.{i}.*"),
        Row("stages/{S}/{j}/dwconv/*", blocks + "conv_dw.*"),
        Row("stages/{S}/{j}/norm/*", blocks + "norm.*"),
        # The biases of the perceptron; its weights are 1x1 convolutions in some models.
        Row("stages/{S}/{j}/pwconv{n}/bias", blocks + "mlp.fc{n}.bias"),
        Row("stages/{S}/{j}/pwconv{n}/*", blocks + "mlp.fc{n}.*", (PLAIN, ONES_AFTER)),
        Row("stages/{S}/{j}/gamma", blocks + "gamma"),
        Row("stages/{S}/{j}/grn/gamma", blocks + "mlp.grn.weight"),
        Row("stages/{S}/{j}/grn/beta", blocks + "mlp.grn.bias"),
        Row("norm_pre/*", prefix + "norm_pre.*"),
        Row("norm/*", prefix + "head.norm.*"),
        *head,
    )


_TIMM_STEM = (Row("downsample_layers/0/{i}/*", "stem.{i}.*"),)
# An activation sits at `stem.1`.
_TIMM_ACTIVATED_STEM = (
    Row("downsample_layers/0/0/*", "stem.0.*"),
    Row("downsample_layers/0/1/*", "stem.2.*"),
    Row("downsample_layers/0/2/*", "stem.3.*"),
)
_TIMM_HEAD = (
    Row("pre_logits/*", "head.pre_logits.fc.*"),
    Row("head/*", "head.fc.*"),
)

_CLIP_TRUNK = "visual.trunk."
_CLIP_STEM = (Row("downsample_layers/0/{i}/*", _CLIP_TRUNK + "stem.{i}.*"),)
# The text tower and the temperature.
_CLIP_TEXT = (
    r"text\..*",
    r"transformer\..*",
    r"token_embedding\.weight",
    r"positional_embedding",
    r"ln_final\.(weight|bias)",
    r"text_projection(\.weight|\.bias)?",
    r"attn_mask",
    r"logit_scale",
    r"logit_bias",
)


def _torchvision() -> tuple[Row, ...]:
    rows = []
    for stage in range(4):
        block = f"features.{2 * stage + 1}.{{j}}."
        ours = f"stages/{stage}/{{j}}/"
        rows += [
            Row(f"downsample_layers/{stage}/{{i}}/*", f"features.{2 * stage}.{{i}}.*"),
            Row(ours + "dwconv/*", block + "block.0.*"),
            Row(ours + "norm/*", block + "block.2.*"),
            Row(ours + "pwconv1/*", block + "block.3.*"),
            Row(ours + "pwconv2/*", block + "block.5.*"),
            Row(ours + "gamma", block + "layer_scale", (ONES_AFTER,)),
        ]
    return (*rows, Row("norm/*", "classifier.0.*"), Row("head/*", "classifier.2.*"))


def _resnet() -> tuple[Row, ...]:
    rows = [Row("stem/*", "conv1.*"), *_norm("stem_norm", "bn1"), Row("head/*", "fc.*")]
    for stage in range(4):
        ours, theirs = f"stages/{stage}/{{j}}/", f"layer{stage + 1}.{{j}}."
        rows += [
            Row(ours + "conv{n}/*", theirs + "conv{n}.*"),
            *_norm(ours + "norm{n}", theirs + "bn{n}"),
            Row(ours + "shortcut/*", theirs + "downsample.0.*"),
            *_norm(ours + "shortcut_norm", theirs + "downsample.1"),
        ]
    return tuple(rows)


def _norm(ours: str, theirs: str) -> tuple[Row, ...]:
    """A BatchNorm, the more particular rows first."""
    return (
        Row(f"{ours}/mean", f"{theirs}.running_mean"),
        Row(f"{ours}/var", f"{theirs}.running_var"),
        Row(f"{ours}/*", f"{theirs}.*"),
    )


def _hf(prefix: str) -> tuple[Row, ...]:
    stage = prefix + "encoder.stages.{S}."
    layer = stage + "layers.{j}."
    return (
        Row("downsample_layers/0/0/*", prefix + "embeddings.patch_embeddings.*"),
        Row("downsample_layers/0/1/*", prefix + "embeddings.layernorm.*"),
        Row("downsample_layers/{S}/{i}/*", stage + "downsampling_layer.{i}.*"),
        Row("stages/{S}/{j}/norm/*", layer + "layernorm.*"),
        Row("stages/{S}/{j}/gamma", layer + "layer_scale_parameter"),
        Row("stages/{S}/{j}/grn/gamma", layer + "grn.weight", (ONES_BEFORE,)),
        Row("stages/{S}/{j}/grn/beta", layer + "grn.bias", (ONES_BEFORE,)),
        Row("stages/{S}/{j}/{part}/*", layer + "{part}.*"),
        Row("norm/*", prefix + "layernorm.*"),
        Row("head/*", "classifier.*"),
    )


def _hf_dinov3(prefix: str) -> tuple[Row, ...]:
    stage = prefix + "stages.{S}."
    layer = stage + "layers.{j}."
    return (
        Row("downsample_layers/{S}/{i}/*", stage + "downsample_layers.{i}.*"),
        Row("stages/{S}/{j}/dwconv/*", layer + "depthwise_conv.*"),
        Row("stages/{S}/{j}/norm/*", layer + "layer_norm.*"),
        Row("stages/{S}/{j}/pwconv{n}/*", layer + "pointwise_conv{n}.*"),
        Row("stages/{S}/{j}/gamma", layer + "gamma"),
        Row("norm/*", "layer_norm.*"),
    )


def _upernet(format: str, first: str, *tables: tuple[Row, ...]) -> Dialect:
    """UPerNet in a format, which is recognised by the beginning of a name in its backbone."""
    return Dialect(
        format,
        f"{format}, UPerNet",
        (first, upernet_rows.PRESENT),
        tuple(row for table in tables for row in table),
        droppable=(upernet_rows.COUNTERS,),
        heads="upernet",
    )


def _detectors(format: str, first: str, rows: tuple[Row, ...]) -> tuple[Dialect, ...]:
    """Both detectors in a format, whose backbone has a name that begins with `first`."""
    return tuple(
        Dialect(
            format,
            f"{format}, {TITLES[heads]}",
            (first, detector_rows.PRESENT[heads]),
            (*upernet_rows.backbone(rows), *upernet_rows.NORMS, *detector_rows.heads(heads)),
            droppable=(detector_rows.COUNTERS,),
            heads=heads,
        )
        for heads in detector_rows.PRESENT
    )


_FACEBOOK_STEM = "downsample_layers.0.0.weight"
_FINAL_NORM_AGAIN = {"norms.3.weight": "norm.weight", "norms.3.bias": "norm.bias"}

# In the order in which they are tried: the more particular ones first.
DIALECTS: tuple[Dialect, ...] = (
    Dialect(
        "dinov3",
        "dinov3, EUPE",
        (_FACEBOOK_STEM, "projectors."),
        _FACEBOOK,
        droppable=(r"projectors\..*",),  # Towards the teachers that it was distilled from.
        duplicates=_FINAL_NORM_AGAIN,
    ),
    Dialect(
        "dinov3",
        "dinov3",
        (_FACEBOOK_STEM, "norms.3.weight"),
        _FACEBOOK,
        duplicates=_FINAL_NORM_AGAIN,
    ),
    Dialect(
        "facebook",
        "facebook, FCMAE encoder",
        (_FACEBOOK_STEM, "stages.0.0.grn.gamma"),
        _FACEBOOK,
        absent=("norm.weight", "norm.bias", "head.weight", "head.bias"),
        # A LayerNorm as it is before training: pre-training has none after the last stage.
        supplied={"norm/scale": 1.0, "norm/bias": 0.0},
    ),
    Dialect("facebook", "facebook", (_FACEBOOK_STEM,), _FACEBOOK),
    Dialect(
        "facebook", "facebook, isotropic", ("stem.weight", "blocks.0.dwconv.weight"), _ISOTROPIC
    ),
    Dialect(
        "timm",
        "timm, activation in the stem",
        ("stem.0.weight", "stem.3.weight"),
        _timm(stem=_TIMM_ACTIVATED_STEM, head=_TIMM_HEAD),
    ),
    Dialect(
        "timm",
        "timm",
        ("stem.0.weight", "stages.0.blocks.0.conv_dw.weight"),
        _timm(stem=_TIMM_STEM, head=_TIMM_HEAD),
    ),
    Dialect(
        "torchvision", "torchvision", ("features.0.0.weight", "classifier.0.weight"), _torchvision()
    ),
    # timm's have the same names.
    Dialect(
        "torchvision",
        "torchvision, ResNet",
        ("conv1.weight", "layer1.0.conv3.weight", "fc.weight"),
        _resnet(),
        droppable=(rf"[\w.]+\.{upernet_rows.COUNTER}",),
    ),
    *(
        Dialect(
            "hf",
            f"hf, {prefix}",
            (f"{prefix}embeddings.patch_embeddings.weight",),
            _hf(prefix),
        )
        for prefix in ("convnext.", "convnextv2.", "")
    ),
    *(
        Dialect(
            "hf_dinov3",
            f"hf_dinov3, {prefix}",
            (f"{prefix}stages.0.downsample_layers.0.weight",),
            _hf_dinov3(prefix),
        )
        for prefix in ("", "model.")
    ),
    Dialect(
        "openclip",
        "openclip, linear projection",
        (_CLIP_TRUNK + "stem.0.weight", "visual.head.proj.weight"),
        _timm(_CLIP_TRUNK, stem=_CLIP_STEM, head=(Row("head/*", "visual.head.proj.*"),)),
        supplied={"head/bias": 0.0},
        droppable=_CLIP_TEXT,
    ),
    Dialect(
        "openclip",
        "openclip, projection by a perceptron",
        (_CLIP_TRUNK + "stem.0.weight", "visual.head.mlp.fc1.weight"),
        _timm(
            _CLIP_TRUNK,
            stem=_CLIP_STEM,
            head=(
                Row("pre_logits/*", "visual.head.mlp.fc1.*"),
                Row("head/*", "visual.head.mlp.fc2.*"),
            ),
        ),
        supplied={"head/bias": 0.0},
        droppable=_CLIP_TEXT,
    ),
    # These two differ inside blocks alone.
    _upernet(
        "facebook",
        "backbone.stages.0.0.dwconv.",
        upernet_rows.backbone(_FACEBOOK),
        upernet_rows.NORMS,
        upernet_rows.heads("bn", "conv_seg"),
    ),
    _upernet(
        "mmseg",
        "backbone.stages.0.0.depthwise_conv.",
        upernet_rows.backbone(upernet_rows.MMPRETRAIN_BACKBONE),
        upernet_rows.NORMS,
        upernet_rows.heads("bn", "conv_seg"),
    ),
    _upernet(
        "hf",
        "backbone.embeddings.patch_embeddings.",
        upernet_rows.backbone(_hf("backbone."), prefix=""),
        upernet_rows.HF_NORMS,
        upernet_rows.heads("batch_norm", "classifier"),
    ),
    # mmdetection 2 with Facebook's backbone, and with mmpretrain's, as mmdetection 3 has it.
    *_detectors("facebook", "backbone.stages.0.0.dwconv.", _FACEBOOK),
    *_detectors("mmdet", "backbone.stages.0.0.depthwise_conv.", upernet_rows.MMPRETRAIN_BACKBONE),
)

FORMATS = tuple(dict.fromkeys(dialect.format for dialect in DIALECTS))
