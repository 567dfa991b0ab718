"""Every command understands the same names of weights, because one function resolves them."""

import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from classification.small import FEEDING, save
from etils import epath
from etils.epath import register
from random_models import random_params

from convnext_jax import evaluate, predict
from convnext_jax.convert import __main__ as convert
from convnext_jax.convert import download
from convnext_jax.convert.write import export
from convnext_jax.errors import InputError
from convnext_jax.models.pretrained import PRETRAINED
from convnext_jax.models.spec import ModelSpec
from convnext_jax.weights.find import find, resolve

# Small, and of sizes that a file is recognised by.
SPEC = ModelSpec("test_convnext2", 10)
TAG = "test_convnext2.r160_in1k"


@pytest.fixture(scope="module")
def params():
    return random_params(SPEC.abstract_params(), 5)


@pytest.fixture(scope="module")
def places(params, tmp_path_factory):
    """One set of parameters, in everything that has a name."""
    root = tmp_path_factory.mktemp("bucket")
    (root / "run").mkdir()
    save(root / "run", {3: ({"params": params}, None)}, SPEC, FEEDING, tuple("0123456789"))
    export(params, SPEC.name, "timm", root / "weights.pth")
    export(params, SPEC.name, "timm", root / "weights.safetensors")
    # Not what `--to hf` writes, as transformers has no such model; but as its folders are.
    (root / "folder").mkdir()
    shutil.copy(root / "weights.safetensors", root / "folder" / "model.safetensors")
    (root / "folder" / "config.json").write_text("{}")
    (root / "2024").mkdir()  # is no step of a run
    return root


KINDS = ["run", "run/checkpoints", "run/checkpoints/3", "weights.pth", "weights.safetensors"]
KINDS += ["folder"]


@pytest.fixture
def bucket(places, monkeypatch):
    """A bucket whose objects are the files of `places`."""

    def path(name):
        return epath.Path(str(name).replace("bucket:/", str(places)))

    monkeypatch.setitem(register._URI_PREFIXES_TO_CLS, "bucket://", path)
    return "bucket:/"


@pytest.fixture
def hub(places, monkeypatch):
    """A Hub that has one repository, and a web that has one file."""

    class Repository:
        unreachable = ""

        def __init__(self, repository, revision):
            assert (repository, revision) == (f"timm/{TAG}", None)

        def find(self, file):
            found = places / "folder" / file
            return found if found.exists() else None

    monkeypatch.setattr(download, "HubRepository", Repository)
    monkeypatch.setattr(download, "from_url", lambda url: places / url.rpartition("/")[2])
    return [TAG, f"hf-hub:timm/{TAG}", "https://host/weights.pth"]


def same(found, params):
    jax.tree.map(np.testing.assert_array_equal, found, params)


@pytest.mark.parametrize("kind", KINDS)
def test_on_a_disk_and_in_a_bucket(kind, places, bucket, params):
    for source in (places / kind, str(places / kind), f"{bucket}/{kind}"):
        found = find(source)
        assert found.description.spec.name == SPEC.name
        assert found.parameters == ("params" if "run" in kind else "file")
        same(found.on_host(), params)
        same(found.read(), params)


def test_on_the_hub_and_in_the_web(hub, params):
    for source in hub:
        same(find(source).on_host(), params)


@pytest.mark.slow  # the others look for every name, and each command's own tests give it one
def test_every_command_takes_every_name(places, bucket, hub, tmp_path, capsys, params):
    picture = str(tmp_path / "x.png")
    from PIL import Image

    Image.new("RGB", (8, 8), (200, 30, 90)).save(picture)
    sources = [*(str(places / kind) for kind in KINDS), f"{bucket}/run", f"{bucket}/weights.pth"]
    digits = ["--data_dir", str(tmp_path), "--dataset", "digits", "--split", "test[:8]"]
    digits += ["--batch_size", "8"]
    top1, likeliest = set(), set()
    for number, source in enumerate([*sources, *hub]):
        convert.main([source, str(tmp_path / str(number))])
        same(find(tmp_path / str(number)).on_host(), params)
        assert "test_convnext2, 10 classes" in capsys.readouterr().out
        if number in (3, 8):  # a file and a name; each compiles for seconds
            evaluate.main(["--checkpoint", source, *digits, "--json"])
            top1.add(json.loads(capsys.readouterr().out)["num_examples"])
            with pytest.raises(SystemExit) as stopped:
                predict.main(["--checkpoint", source, picture, "--json", "--top", "1"])
            assert stopped.value.code == 0
            likeliest.add(json.loads(capsys.readouterr().out)["classes"][0]["label"])
    assert top1 == {8} and len(likeliest) == 1


@pytest.mark.parametrize(
    "source, words",
    [
        ("convnext_tiny", "whose published weights are called convnext_tiny.fb_in1k or "),
        ("timm/convnext_tiny.fb_in1k", "write hf-hub:timm/convnext_tiny.fb_in1k"),
        ("convnext_tiny.fb_in1", "did you mean convnext_tiny.fb_in1k"),
        ("nowhere/weights.pth", "there is no file or folder nowhere/weights.pth"),
        ("htp://host/x.pth", "must be in a bucket"),
    ],
)
def test_what_is_not_there_is_one_sentence_of_every_command(source, words, tmp_path, capsys):
    with pytest.raises(InputError) as refused:
        resolve(source)
    assert words in str(refused.value)
    for command, arguments in [
        (evaluate, ["--checkpoint", source, "--dataset", "digits"]),
        (predict, ["--checkpoint", source, str(Path(__file__))]),
        (convert, [source, str(tmp_path / "out")]),
    ]:
        with pytest.raises(SystemExit) as stopped:
            command.main(arguments)
        assert stopped.value.code == 2
        assert words in capsys.readouterr().err


def test_every_published_name_is_looked_for_on_the_hub():
    for name in PRETRAINED:
        assert resolve(name) == f"hf-hub:timm/{name}"


def test_a_checkpoint_without_its_library_names_the_extra(places, monkeypatch):
    monkeypatch.setitem(sys.modules, "convnext_jax.checkpointing.reading", None)
    with pytest.raises(
        InputError, match=r"not installed \(`pip install 'convnext_jax\[predict\]'`"
    ):
        find(places / "run")
    find(places / "weights.safetensors")


def test_exported_weights_in_a_workdir_do_not_hide_the_run(places, params, tmp_path):
    shutil.copytree(places / "run", tmp_path / "run")
    export(params, SPEC.name, "timm", tmp_path / "run" / "model.safetensors")
    assert find(tmp_path / "run").step == 3
