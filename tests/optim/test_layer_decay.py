"""Groups and factors of the layer-wise learning-rate decay."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from convnext_jax import tree
from convnext_jax.errors import InputError
from convnext_jax.models.registry import list_models
from convnext_jax.models.spec import ModelSpec
from convnext_jax.optim.optimizer import create_optimizer
from convnext_jax.optim.param_groups import decay_mask, layer_group, layer_scales, stage_scales

GOLDEN = Path(__file__).parents[1] / "golden"


def reference_group(name):
    """The recipe's definition for depths 3, 3, 27, 3, written as a table of its sentences."""
    part, *rest = name.split("/")
    if part == "downsample_layers":
        return {"0": 0, "1": 2, "2": 3, "3": 12}[rest[0]]
    if part == "stages":
        stage, block = rest[:2]
        return {"0": 1, "1": 2, "2": 3 + int(block) // 3, "3": 12}[stage]
    return 13


@pytest.mark.parametrize(
    "name",
    ["convnext_tiny", "convnext_base", "convnext_xlarge", "convnext_isotropic_small"],
)
def test_the_groups_are_the_golden(name):
    """To rewrite a golden: delete it and run this test twice."""
    spec = ModelSpec(name, 1000)
    params = spec.abstract_params()
    decays = tree.flatten_with_names(decay_mask(params))
    scales = tree.flatten_with_names(layer_scales(params, spec.depths, 0.8))
    lines = [
        f"{key} group {layer_group(key, spec.depths)} lr x {scales[key]:.6g}"
        f" {'decay' if decays[key] else 'no decay'}"
        for key in scales
    ]
    path = GOLDEN / f"{name}_layer_decay.txt"
    if not path.exists():
        path.write_text("\n".join(lines) + "\n")
        pytest.fail(f"{path} was missing; it is written now, review it")
    assert lines == path.read_text().splitlines()


@pytest.mark.parametrize("name", ["convnext_base", "convnext_xlarge"])
def test_depths_of_the_reference_have_its_groups(name):
    spec = ModelSpec(name, 1000)
    for key, scale in tree.flatten_with_names(
        layer_scales(spec.abstract_params(), spec.depths, 0.7)
    ).items():
        assert layer_group(key, spec.depths) == reference_group(key)
        assert scale == pytest.approx(0.7 ** (13 - reference_group(key)))


@pytest.mark.parametrize(
    "depths, groups", [((3, 3, 27, 3), 14), ((3, 3, 9, 3), 8), ((2, 2, 6, 2), 7), ((18,), 8)]
)
def test_the_head_is_in_the_last_of_so_many_groups(depths, groups):
    assert layer_group("head/kernel", depths) == layer_group("norm/bias", depths) == groups - 1


@pytest.mark.parametrize("name", list_models(task="classification"))
def test_every_parameter_of_every_model_has_a_group_and_none_is_empty(name):
    spec = ModelSpec(name, 10)
    names = tree.flatten_with_names(spec.abstract_params())
    found = {layer_group(key, spec.depths) for key in names}
    assert found == set(range(layer_group("head", spec.depths) + 1))


def test_other_names_are_errors():
    with pytest.raises(InputError, match="`tail/kernel` must be a parameter of a ConvNeXt"):
        layer_group("tail/kernel", (3, 3, 9, 3))
    with pytest.raises(InputError, match="`tail/kernel` must be a parameter of a ConvNeXt"):
        stage_scales({"tail": {"kernel": np.zeros(1)}}, (3, 3, 9, 3), 0.9)


def test_updates_are_those_of_torch_with_a_learning_rate_for_each_group():
    from oracles import torch

    depths, rng = (1, 1, 3, 1), np.random.default_rng(0)
    names = ["downsample_layers/0/0/kernel", "stages/2/1/pwconv1/kernel", "head/kernel"]
    names += [name.replace("kernel", "bias") for name in names]
    flat = {n: rng.normal(size=(4, 3) if "kernel" in n else 3).astype("f") for n in names}

    def nested(values):
        result = {}
        for name, value in values.items():
            *path, leaf = name.split("/")
            place = result
            for part in path:
                place = place.setdefault(part, {})
            place[leaf] = jnp.asarray(value)
        return result

    params = nested(flat)
    optimizer = create_optimizer(
        optax.constant_schedule(4e-3), weight_decay=0.3, layer_decay=0.7, depths=depths
    )
    state = optimizer.init(params)
    tensors = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in flat.items()}
    last = layer_group("head", depths)
    peer = torch.optim.AdamW(
        [
            {
                "params": [tensor],
                "lr": 4e-3 * 0.7 ** (last - layer_group(name, depths)),
                "weight_decay": 0.3 if "kernel" in name else 0.0,
            }
            for name, tensor in tensors.items()
        ]
    )
    for _ in range(5):
        gradients = {name: rng.normal(size=value.shape).astype("f") for name, value in flat.items()}
        updates, state = optimizer.update(nested(gradients), state, params)
        params = optax.apply_updates(params, updates)
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(gradients[name])
        peer.step()
    found = tree.flatten_with_names(params)
    for name, tensor in tensors.items():
        # As in test_optimizer: float32 roundings, and optax's of the bias correction.
        expected = tensor.detach().numpy()
        np.testing.assert_allclose(
            found[name], expected, rtol=0, atol=1e-6 * np.abs(expected).max()
        )
    assert jax.tree.structure(params) == jax.tree.structure(nested(flat))
