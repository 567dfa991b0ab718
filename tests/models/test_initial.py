"""Initial values: their distribution, that they are the same everywhere, and cost no compiling."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from convnext_jax import create_model, tree
from convnext_jax.models import initial
from convnext_jax.models.convnext import ConvNeXt
from convnext_jax.models.spec import ModelSpec, batch_stats_of, params_of

SMALL = {"depths": (1, 2), "dims": (48, 80), "kernel_size": 3}


def arrays_of(model: nnx.Module) -> dict[str, jax.Array]:
    return tree.flatten_with_names(params_of(model)) | tree.flatten_with_names(
        batch_stats_of(model)
    )


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_kernels_are_normal_and_the_rest_constant():
    arrays = arrays_of(create_model("convnext_atto", 30, head_init_scale=0.5, **SMALL))
    for name, array in arrays.items():
        kind = name.rpartition("/")[2]
        if kind == "kernel":
            spread = 0.01 if name.startswith("head/") else 0.02
            # Of a true sample one in a million is below; there are some 10.
            assert stats.kstest(np.ravel(array) / spread, "norm").pvalue > 1e-6, name
        else:
            expected = {"bias": 0, "scale": 1, "gamma": 1e-6}[kind]
            np.testing.assert_array_equal(array, np.full(array.shape, expected, np.float32))


def test_heads_of_upernet_as_mmsegmentation_draws_them():
    arrays = arrays_of(create_model("upernet_convnext_atto", 5))
    conv = arrays["decode_head/fpn_bottleneck/conv/kernel"]
    spread = np.sqrt(2 / (conv.shape[3] * 9))  # He's, of the outputs
    assert stats.kstest(np.ravel(conv)[:100_000] / spread, "norm").pvalue > 1e-6
    last = np.ravel(arrays["decode_head/conv_seg/kernel"]) / 0.01
    assert stats.kstest(last, "norm").pvalue > 1e-6
    means, variances = ([a for n, a in arrays.items() if n.endswith(k)] for k in ("/mean", "/var"))
    assert len(means) == len(variances) > 10
    assert not any(np.any(a) for a in means) and all(np.all(a == 1) for a in variances)


def test_each_array_and_each_seed_has_values_of_its_own():
    kernels = [
        np.ravel(array)[:1000]
        for seed in (0, 1)
        for name, array in arrays_of(create_model("convnext_atto", rngs=nnx.Rngs(seed))).items()
        if name.endswith("kernel") and array.size >= 1000
    ]
    # Of true samples of 1,000 a correlation of 0.2 is six standard deviations.
    assert len(kernels) > 80
    assert np.max(np.abs(np.corrcoef(kernels) - np.eye(len(kernels)))) < 0.2


def test_a_traced_model_has_the_same_values():
    eager = arrays_of(create_model("convnext_atto", 3, nnx.Rngs(5), **SMALL))
    drawn = jax.jit(
        lambda key: params_of(create_model("convnext_atto", 3, nnx.Rngs(key), **SMALL))
    )(jax.random.key(5))
    same(eager, tree.flatten_with_names(drawn))
    both = jax.vmap(lambda key: initial.normal(0.02)(key, (4, 5)))(
        jax.random.split(jax.random.key(0), 2)
    )
    for key, values in zip(jax.random.split(jax.random.key(0), 2), both, strict=True):
        np.testing.assert_array_equal(initial.normal(0.02)(key, (4, 5)), values)


@pytest.mark.parametrize("seed", [0, 1, 12345678, 2**32 - 1])
@pytest.mark.parametrize("number", [0, 1, 77, 2**31 + 5, 2**32 - 1])
def test_keys_are_jaxs(seed, number):
    key = jax.random.key(seed)
    expected = jax.random.key_data(jax.random.fold_in(key, np.uint32(number)))
    data = np.asarray(jax.random.key_data(key)).tolist()
    np.testing.assert_array_equal(initial.fold_in(data, number), expected)


def test_generators_go_on_where_a_model_left_them():
    # One by one, as a class draws them that `create_model` has not called.
    ours, theirs = nnx.Rngs(params=7, dropout=1), nnx.Rngs(params=7, dropout=1)
    ours.params(), theirs.params()
    same(
        arrays_of(create_model("convnext_atto", 3, ours, **SMALL)),
        arrays_of(ConvNeXt(num_classes=3, rngs=theirs, **SMALL)),
    )
    assert ours.params.count[...] == theirs.params.count[...] > 2
    assert ours.dropout.count[...] == 0
    assert ours.params() == theirs.params()


@pytest.mark.parametrize("rngs", [None, 0, 5])
def test_nothing_is_drawn_while_jax_traces(rngs, monkeypatch):
    def create(**overrides):
        own = None if rngs is None else nnx.Rngs(rngs)
        return params_of(create_model("convnext_atto", 3, own, **SMALL, **overrides))

    expected = create()
    monkeypatch.setattr(np.random, "Generator", None)  # what draws: shapes need none
    shapes = jax.eval_shape(create)
    program = jax.jit(create).lower()
    monkeypatch.undo()
    assert jax.tree.map(lambda x: x.shape, shapes) == jax.tree.map(lambda x: x.shape, expected)
    same(*(tree.flatten_with_names(x) for x in (expected, program.compile()())))


def test_keys_of_another_cipher():
    key = jax.random.key(3, impl="rbg")
    with initial.seeds(nnx.Rngs(params=key)) as seeds:
        assert isinstance(seeds, nnx.Rngs)
    assert len(arrays_of(create_model("convnext_atto", 3, nnx.Rngs(params=key), **SMALL))) > 10


def test_what_is_postponed_is_drawn_as_the_model_would():
    spec = ModelSpec("convnext_atto", 3, SMALL)
    postponed = arrays_of(spec.initial(nnx.Rngs(5)))
    assert all(isinstance(drawing, initial.Drawing) for drawing in postponed.values())
    shapes = tree.flatten_with_names(spec.abstract_params())
    assert {n: d.shape for n, d in postponed.items()} == {n: s.shape for n, s in shapes.items()}
    eager = arrays_of(create_model("convnext_atto", 3, nnx.Rngs(5), **SMALL))
    same(eager, {name: drawing.values() for name, drawing in postponed.items()})


def test_jaxs_default_device_is_where_a_model_goes():
    device = jax.devices()[2]
    with jax.default_device(device):
        model = create_model("convnext_atto", 3, **SMALL)
    assert {array.device for array in arrays_of(model).values()} == {device}


@pytest.mark.parametrize("name", ["convnext_tiny", "upernet_convnext_atto"])
def test_nothing_is_compiled(name):
    program = f"""
import jax
compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
)
from convnext_jax import create_model
create_model({name!r})
assert not compiled, compiled
jax.numpy.arange(7) * 3
print(len(compiled))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0, "what listens hears nothing"
