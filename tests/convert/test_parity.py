"""Converted weights give the original library's logits and feature maps; the way back is exact."""

import functools
import json

import jax
import numpy as np
import pytest
from oracles import torch
from originals import CASES, torch_images
from random_models import functional, random_images

from convnext_jax import tree
from convnext_jax.checkpointing.reading import read_description
from convnext_jax.convert import recognise
from convnext_jax.convert.__main__ import main
from convnext_jax.convert.keys import key_map
from convnext_jax.convert.write import EXPORTS, export
from convnext_jax.weights.find import find

# Relative to the tensor's largest absolute value: both sides compute in float32 and add up in
# another order. The worst seen is 5e-7; a wrong activation or layout gives 1e-3 or more.
TOLERANCE = 1e-5


@functools.cache  # Formats of one model share the compilation.
def compiled(name, overrides):
    arguments = json.loads(overrides)
    apply, _ = functional(name, **arguments)

    def both(params, images):
        return apply(params, images), apply(params, images, method="features")

    return jax.jit(both)


def worst(ours, theirs):
    theirs = theirs.detach().numpy()
    assert ours.shape == theirs.shape and np.any(theirs)
    return float(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)))


def layout(ours, theirs):
    """Maps of ours [N, H, W, C] beside theirs [N, C, H, W]."""
    return [(o, t.permute(0, 2, 3, 1)) for o, t in zip(ours, theirs, strict=True)]


def convert(original, folder):
    """Converts by the command; returns what the checkpoint then holds."""
    path = folder / "weights.pth"
    torch.save(original.content, path)
    command = [str(path), str(folder / "run"), "--model", original.model]
    for key, value in original.overrides.items():
        command += ["--override", f"{key}={json.dumps(value)}"]
    main(command)
    return find(folder / "run")


def error_of(original, spec, params, images):
    """The largest difference of logits and maps."""
    overrides = {**spec.overrides, "num_classes": spec.num_classes}
    ours = compiled(spec.name, json.dumps(overrides, sort_keys=True))
    with torch.no_grad():
        logits, maps = original.run(torch_images(images))
    our_logits, our_maps = ours(params, images)
    return max(worst(o, t) for o, t in [(our_logits, logits), *layout(our_maps, maps)])


@pytest.mark.slow  # as below, at the size that documents speak of
@pytest.mark.parametrize("case", CASES)
def test_logits_and_features_at_224(case, tmp_path, record_property):
    original = CASES[case]()
    converted = convert(original, tmp_path)
    spec, params = converted.description.spec, converted.on_host()
    error = error_of(original, spec, params, random_images(1, 224, 224, 3))
    record_property("error 224", error)
    assert error < TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_logits_features_and_the_way_back(case, tmp_path, record_property):
    original = CASES[case]()
    converted = convert(original, tmp_path)
    spec, params = converted.description.spec, converted.on_host()
    described = read_description(tmp_path / "run" / "checkpoints", 0)
    assert described["format"] == original.format
    error = error_of(original, spec, params, random_images(2, 75, 101, 3))
    record_property("error odd", error)
    assert error < TOLERANCE

    state = original.content.get("model", original.content)
    if original.format in EXPORTS and "FCMAE" not in case:
        back = tmp_path / ("folder" if original.format == "hf" else "back.safetensors")
        export(
            params,
            spec.name,
            original.format,
            back,
            overrides=spec.overrides,
        )
        from safetensors.torch import load_file

        again = load_file(back / "model.safetensors" if original.format == "hf" else back)
        assert again.keys() == state.keys()
    else:  # No such files are written, but the table is the same in both directions.
        again = written(params, state)
    for name, tensor in again.items():
        assert tensor.shape == state[name].shape, name
        assert torch.equal(tensor, state[name]), name


def written(params, state):
    dialect = recognise.recognise_format(state)
    arrays = tree.flatten_with_names(params)
    shapes = {n: a.shape for n, a in arrays.items() if n not in dialect.supplied}
    entries = key_map(dialect.rows, shapes)
    assert entries.keys() == shapes.keys()
    return {e.theirs: torch.from_numpy(e.write(arrays[n])) for n, e in entries.items()}
