"""Which parameters the optimiser treats how."""

import math
from collections.abc import Sequence
from typing import Any

from convnext_jax import tree
from convnext_jax.errors import InputError

# What is over a backbone, and the backbone's norms of what goes out to it.
_OVER_THE_BACKBONE = ("decode_head", "auxiliary_head", "neck", "rpn_head", "roi_head")
_BESIDE_THE_BACKBONE = ("norm0", "norm1", "norm2", "norm3", *_OVER_THE_BACKBONE)
# What is a head, and not the backbone, of a classifier and of a model with heads over maps.
_HEADS = ("head", "pre_logits", *_OVER_THE_BACKBONE)
# Of networks on the road from ResNet to ConvNeXt.
_STEMS = ("stem", "stem_norm")
# Blocks of the third stage that share a group of the layer-wise learning-rate decay.
_BLOCKS_A_GROUP = 3


def decay_mask(params: Any) -> Any:
    """Marks the parameters that weight decay applies to.

    As in the reference (`get_parameter_groups` of its `optim_factory.py`), parameters with one
    dimension and biases are left out: norms, biases, layer scale, GRN.

    Args:
      params: the parameter tree, or its shapes.

    Returns:
      A tree of bool of the same structure, True where weights decay.
    """
    return tree.map_with_names(
        lambda name, leaf: len(leaf.shape) > 1 and not name.endswith("bias"), params
    )


def frozen_parts(freeze: str) -> list[str]:
    """The beginnings of names in a value of `optim.freeze`, sorted."""
    return sorted({part.strip().strip("/") for part in freeze.split(",") if part.strip(" /")})


def trained(params: Any, freeze: str) -> Any:
    """Marks the parameters that are trained.

    Args:
      params: the parameter tree, or its shapes.
      freeze: what is not: `backbone`, which is all but the heads, so that a classifier becomes a
        linear probe; or beginnings of names as `convnext_jax.tree` has them, such as
        `downsample_layers/0`, with commas between them; empty: all are trained.

    Returns:
      A tree of bool of the same structure, False where parameters keep their values. Statistics of
      batch normalisation are no parameters, and go on.

    Raises:
      InputError: a beginning is that of no parameter, or nothing would be trained.
    """
    names = list(tree.flatten_with_names(params))
    parts = frozen_parts(freeze)
    if freeze and not parts:
        raise InputError(f"`optim.freeze` (={freeze}) must name what is frozen, or be empty")
    if parts == ["backbone"]:
        frozen = {name for name in names if name.split("/")[0] not in _HEADS}
    else:
        frozen = set()
        for part in parts:
            found = {name for name in names if name == part or name.startswith(part + "/")}
            if not found:
                tops = sorted({name.split("/")[0] for name in names})
                raise InputError(
                    f"`optim.freeze` (={freeze}) must be `backbone`, or beginnings of parameters'"
                    f" names: none begins with {part}; they begin with {', '.join(tops)}"
                )
            frozen |= found
    if len(frozen) == len(names):
        raise InputError(f"`optim.freeze` (={freeze}) must leave something to train")
    return tree.map_with_names(lambda name, _: name not in frozen, params)


def layer_group(name: str, depths: Sequence[int]) -> int:
    """The group of a parameter in the layer-wise learning-rate decay, from 0 at the stem.

    The reference's groups (`get_num_layer_for_convnext` of its `optim_factory.py`): 0 the stem; 1
    and 2 the first two stages; from 3 on three blocks each of the third stage, whose downsampling
    is in the first of these; then the last stage; last the final norm and the head. A stage has its
    downsampling with it. The reference has depths 3, 3, 27, 3 (14 groups); its detection code
    follows the same rule for 3, 3, 9, 3 (8 groups), and here all depths do. Of an isotropic model,
    which the reference does not treat, three blocks each are a group behind the stem. A ResNet's
    stage has its projections with it.

    Args:
      name: of the parameter, as `convnext_jax.tree` has it.
      depths: of the model: four numbers, or one for an isotropic model.

    Raises:
      InputError: the name is of no part of such a model.
    """
    part, *rest = name.removeprefix("backbone/").split("/")
    if len(depths) == 1:
        last = 1 + math.ceil(depths[0] / _BLOCKS_A_GROUP)
        if part == "stem":
            return 0
        if part == "blocks":
            return 1 + int(rest[0]) // _BLOCKS_A_GROUP
    else:
        of_last_stage = 3 + math.ceil(depths[2] / _BLOCKS_A_GROUP)
        last = of_last_stage + 1
        if part in _STEMS:
            return 0
        if part == "downsample_layers":
            return (0, 2, 3, of_last_stage)[int(rest[0])]
        if part == "stages":
            third = 3 + int(rest[1]) // _BLOCKS_A_GROUP
            return (1, 2, third, of_last_stage)[int(rest[0])]
    if part in ("norm", "norm_pre", "pre_logits", "head", *_BESIDE_THE_BACKBONE):
        return last
    raise InputError(f"`{name}` must be a parameter of a ConvNeXt to have a layer-decay group")


def layer_scales(params: Any, depths: Sequence[int], decay: float) -> Any:
    """What each parameter's learning rate is multiplied by: `decay ** (groups behind its own)`.

    Args:
      params: the parameter tree, or its shapes.
      depths: of the model.
      decay: in (0, 1]; 1 leaves all learning rates as they are.

    Returns:
      A tree of float of the same structure; 1 for the head.
    """
    last = layer_group("head", depths)
    return tree.map_with_names(lambda name, _: decay ** (last - layer_group(name, depths)), params)


def stage_scales(params: Any, depths: Sequence[int], decay: float) -> Any:
    """What each parameter's learning rate is multiplied by, by its stage alone.

    The rule of the paper's segmentation configs (`stage_wise`), which is not that of `layer_group`:
    all downsampling layers are at the bottom, stage k follows at k + 1, and everything beside the
    backbone's layers, its outgoing norms too, is where `layer_group` has the head (`num_layers` + 1
    of the configs: 7 for ConvNeXt-T, 13 for the others): between the last stage and that there is a
    gap.

    Args:
      params: the parameter tree, or its shapes.
      depths: of the model.
      decay: in (0, 1]; 1 leaves all learning rates as they are.

    Returns:
      A tree of float of the same structure; 1 for the heads.

    Raises:
      InputError: a name is of no part of such a model.
    """
    last = layer_group("head", depths)

    def scale(name: str, _: Any) -> float:
        layer_group(name, depths)  # what is no part of a model must not train at the full rate
        part, *rest = name.removeprefix("backbone/").split("/")
        if part in ("downsample_layers", *_STEMS):
            return decay**last
        return decay ** (last - int(rest[0]) - 1) if part == "stages" else 1.0

    return tree.map_with_names(scale, params)
