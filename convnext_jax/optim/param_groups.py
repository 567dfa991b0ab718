"""Which parameters the optimiser treats how."""

from typing import Any

from convnext_jax import tree


def decay_mask(params: Any) -> Any:
    """Marks the parameters that weight decay applies to.

    As in the reference (`get_parameter_groups` of its `optim_factory.py`), parameters with one
    dimension and biases are left out: LayerNorms, biases, layer scale.

    Args:
      params: the parameter tree, or its shapes.

    Returns:
      A tree of bool of the same structure, True where weights decay.
    """
    return tree.map_with_names(
        lambda name, leaf: len(leaf.shape) > 1 and not name.endswith("bias"), params
    )
