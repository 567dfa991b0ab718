"""`reproduce` with miniatures of the test sets and stand-ins for the servers, beside timm."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from convert.server import Page, serve
from e2e.commands import end_of, start_together
from oracles import timm, torch
from quick_compilation import xla_flags
from scoring.miniature import Sets, logits_of, save_timm, timm_model, top

from convnext_jax import reproduce
from convnext_jax.data.imagenet_subsets import SUBSETS
from convnext_jax.reproducing import run
from convnext_jax.reproducing.tables import TABLES
from convnext_jax.scoring.corruptions import ALEXNET_ERRORS, C_BAR

pytestmark = pytest.mark.usefixtures("programs_are_kept")

SIZE = 224
NAME = "convnext_tiny.fb_in1k"


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Test sets whose labels the model of `NAME` knows at its real size."""
    return Sets(tmp_path_factory.mktemp("sets"), timm_model(), SIZE)


def repository(name, folder, seed=0, size=SIZE, model=None):
    """The pages of a repository of the Hub with a small model."""
    variant = name.partition(".")[0]
    model = timm_model(seed, variant) if model is None else model
    place = save_timm(model, folder / name, size, variant)
    pages = {}
    for file in place.iterdir():
        content = file.read_bytes()
        tag = hashlib.sha256(content).hexdigest()
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": "0" * 40}
        pages[f"/timm/{name}/resolve/main/{file.name}"] = Page(content, headers)
    return pages


def environment(folder, hub):
    return os.environ | {
        "HF_ENDPOINT": hub,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(1),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def command(sets, workdir, *arguments):
    return [
        *(sys.executable, "-m", "convnext_jax.reproduce", *arguments, "--workdir", str(workdir)),
        *(f"--data_dir={sets.data_dir}", "--partial", "--batch_size=8"),
    ]


def rows_of(workdir, table):
    return {row["name"]: row for row in json.loads((workdir / f"{table}.json").read_text())["rows"]}


def expected(sets, model, test_set, size=SIZE):
    """What timm's logits give, in the units of the tables."""

    def top1(key, among=range(1000), whole=False):
        logits = logits_of(model, sets.images[key], size=size, whole=whole)
        return top(logits, sets.labels[key], 1, among)

    if test_set == "imagenet_c":
        errors = {
            name: np.mean([1 - top1((test_set, name, s), whole=True) for s in range(1, 6)])
            for name in ALEXNET_ERRORS
        }
        return 100 * np.mean([errors[n] / (ALEXNET_ERRORS[n] / 100) for n in ALEXNET_ERRORS])
    if test_set == "imagenet_c_bar":
        keys = [(test_set, name, s) for name in C_BAR for s in range(1, 6)]
        return 100 * np.mean([1 - top1(key, whole=True) for key in keys])
    return 100 * top1(test_set, SUBSETS.get(test_set, range(1000)))


@pytest.mark.slow  # scoring/test_suite.py has a suite that goes on where it was
def test_killed_and_started_again_it_repeats_nothing(sets, tmp_path):
    workdir = tmp_path / "tables"
    with serve(repository(NAME, tmp_path / "hub")) as (hub, _):
        environ = environment(tmp_path, hub)
        # ImageNet-C, which is seen elsewhere, is left out.
        test_sets = ("", "_c_bar", "_a", "_r", "_sketch", "_v2", "_real")
        only = ",".join(f"{NAME}/imagenet{end}" for end in test_sets)
        arguments = command(sets, workdir, "imagenet1k", "robustness", f"--only={only}")
        first = subprocess.Popen(arguments, env=environ, stdout=subprocess.PIPE, text=True)
        file = workdir / run.RECORDS
        deadline = time.monotonic() + 200
        while not file.exists() or len(json.loads(file.read_text())["records"]) < 3:
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        first.kill()
        first.wait()
        before = json.loads(file.read_text())["records"]
        done = subprocess.run(arguments, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        records = json.loads(file.read_text())["records"]
        assert records[: len(before)] == before
        parts = [record["what"]["part"] for record in records]
        assert len(set(parts)) == len(parts) == 6 + 50
    # With everything measured the weights are not asked for.
    reproduce.main(arguments[3:])
    assert json.loads(file.read_text())["records"] == records
    found = rows_of(workdir, "robustness")
    model = timm_model()
    mine = [row for row in found.values() if row["value"] is not None]
    assert len(mine) == 7
    for row in mine:
        assert row["value"] == pytest.approx(expected(sets, model, row["test_set"]))
        assert row["value"] > 0 and row["missing"] == ""
    clean = rows_of(workdir, "imagenet1k")[f"{NAME}/imagenet"]
    assert clean["value"] == found[f"{NAME}/imagenet"]["value"]
    page = (workdir / "robustness.md").read_text()
    assert "7 of 110 rows were measured" in page and "7,500 were released" in page
    assert (workdir / "robustness.svg").read_text().startswith("<?xml")


@pytest.mark.slow  # scoring/test_suite.py has a suite on two processes
def test_two_processes_give_the_numbers_of_one(sets, tmp_path):
    found = []
    with serve(repository(NAME, tmp_path / "hub", seed=3)) as (hub, _):
        environ = environment(tmp_path, hub)
        only = ",".join(f"{NAME}/imagenet{end}" for end in ("", "_a", "_real"))
        for count in (1, 2):
            workdir = tmp_path / str(count)
            arguments = command(sets, workdir, "robustness", f"--only={only}")
            for status, _, error in end_of(start_together(arguments, environ, count)):
                assert status == 0, error
            found.append(rows_of(workdir, "robustness"))
    assert found[0] == found[1]
    assert sum(row["value"] is not None for row in found[0].values()) == 3


def in_this_process(sets, workdir, *arguments):
    reproduce.main(command(sets, workdir, *arguments)[3:])


def test_weights_from_the_authors_server(tmp_path, capsys, monkeypatch):
    """A real size, in the authors' format; timm reads it, too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    torch.manual_seed(0)
    model = timm.create_model("convnextv2_atto")
    file = "/convnextv2/im1k/convnextv2_atto_1k_224_ema.pt"
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if ".grn." in name:
                value.normal_(0, 0.3)
    state = _as_authors(model)
    model.load_state_dict(timm.models.convnext.checkpoint_filter_fn(dict(state), model))
    content = io.BytesIO()
    torch.save({"model": state}, content)
    sets = Sets(tmp_path, model.eval(), clean=True, size=SIZE)
    with serve({file: Page(content.getvalue())}) as (server, _):
        arguments = ["v2", "--only", "convnextv2_atto,convnextv2_femto", "--weights", server]
        with pytest.raises(SystemExit) as ended:
            in_this_process(sets, tmp_path / "tables", *arguments)
    assert ended.value.code == 1  # femto's are not there
    rows = rows_of(tmp_path / "tables", "v2")
    row = rows["convnextv2_atto.fcmae_ft_in1k/imagenet"]
    assert not row["missing"] and 0 < row["value"] < 100
    assert row["value"] == pytest.approx(expected(sets, model, "imagenet"))
    missing = rows["convnextv2_femto.fcmae_ft_in1k/imagenet"]["missing"]
    assert "convnextv2_femto_1k_224_ema.pt did not arrive: HTTP Error 404" in missing
    out = capsys.readouterr().out
    assert "convnextv2_atto.fcmae_ft_in1k/imagenet: " in out and "v2.md" in out


def _as_authors(model):
    """timm's parameters under the names of V2's authors."""
    renamed = {}
    for name, value in model.state_dict().items():
        for theirs, ours in (
            ("stem.", "downsample_layers.0."),
            (".downsample.", "."),
            (".blocks.", "."),
            ("conv_dw", "dwconv"),
            ("mlp.fc1", "pwconv1"),
            ("mlp.fc2", "pwconv2"),
            ("mlp.grn.weight", "grn.gamma"),
            ("mlp.grn.bias", "grn.beta"),
            ("head.norm.", "norm."),
            ("head.fc.", "head."),
        ):
            if theirs == ".downsample." and theirs in name:
                name = name.replace("stages", "downsample_layers").replace(theirs, ours)
            elif theirs in name:
                name = name.replace(theirs, ours)
        if "grn" in name:
            value = value.reshape(1, 1, 1, -1)
        if "pwconv" in name and value.ndim == 4:
            value = value[:, :, 0, 0]  # of a linear layer
        renamed[name] = value
    return renamed


def test_what_does_not_fit_says_so_and_the_others_go_on(sets, tmp_path, capsys):
    """Weights of another size and for other classes, in a folder; and what nobody has."""
    folder = tmp_path / "weights"
    folder.mkdir()
    arguments = ["imagenet1k", "isotropic", "coco", "ade20k", "--weights", str(folder)]
    with pytest.raises(SystemExit) as ended:
        in_this_process(sets, tmp_path / "tables", *arguments)
    assert ended.value.code == 1
    missing = rows_of(tmp_path / "tables", "isotropic").values()
    assert all("put convnext_iso_" in row["missing"].lower() for row in missing)
    (row, *_) = rows_of(tmp_path / "tables", "coco").values()
    assert "COCO is not there: prepare it with" in row["missing"]
    (row, *_) = rows_of(tmp_path / "tables", "ade20k").values()
    assert "ADE20K is not there: prepare it with" in row["missing"]
    page = (tmp_path / "tables" / "imagenet1k.md").read_text()
    assert "0 of 6 rows were measured" in page
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        in_this_process(sets, tmp_path / "tables", "isotropic")
    (row, *_) = rows_of(tmp_path / "tables", "isotropic").values()
    assert "`--weights=authors` takes" in row["missing"] and ended.value.code == 1


def test_weights_that_are_not_those_of_a_row(sets, tmp_path):
    """Of another size, for other classes, of another model, or not there; each asked for once."""
    ten = timm_model(name="convnext_small")
    ten.reset_classifier(10)
    large = "convnext_large.fb_in1k"
    pages = repository(NAME, tmp_path / "hub", size=288)
    pages |= repository("convnext_small.fb_in1k", tmp_path / "hub", model=ten)
    other = repository(NAME, tmp_path / "other")
    pages |= {path.replace(NAME, large): page for path, page in other.items()}
    workdir = tmp_path / "tables"
    with serve(pages) as (hub, requests):
        only = ",".join(["convnext_base.fb_in1k", NAME, "convnext_small.fb_in1k", large])
        arguments = command(sets, workdir, "imagenet1k", "robustness", f"--only={only}")
        done = subprocess.run(
            arguments, env=environment(tmp_path, hub), capture_output=True, text=True
        )
    assert done.returncode == 1, done.stderr
    rows = rows_of(workdir, "imagenet1k")
    assert "are for 288" in rows[f"{NAME}/imagenet"]["missing"]
    assert "are for 10" in rows["convnext_small.fb_in1k/imagenet"]["missing"]
    assert "are of convnext_tiny" in rows[f"{large}/imagenet"]["missing"]
    assert "has none of the files" in rows["convnext_base.fb_in1k/imagenet"]["missing"]
    asked = [path for _, path, _ in requests if "base" in path and "config" in path]
    assert len(asked) <= 1, asked


def test_a_page_has_what_earlier_commands_measured(sets, tmp_path, capsys):
    """Rows of other weights, other flags and killed commands stay; a part of a set is no match."""
    folder = tmp_path / "weights"
    folder.mkdir()
    workdir = tmp_path / "tables"
    file = {
        "format": 1,
        "records": [
            {
                "what": {"row": f"{NAME}/imagenet", "weights": "hub", "part": "imagenet"},
                "results": {"top1": 0.82, "num_images": 50000, "num_examples": 50000}
                | {"num_skipped": 0, "remarks": []},
            }
        ],
    }
    workdir.mkdir()
    (workdir / run.RECORDS).write_text(json.dumps(file))
    arguments = ["imagenet1k", "--only", "convnext_small", "--weights", str(folder)]
    with pytest.raises(SystemExit):
        in_this_process(sets, workdir, *arguments)
    row = rows_of(workdir, "imagenet1k")[f"{NAME}/imagenet"]
    assert row["value"] == 82.0 and row["within_tolerance"]
    assert row["remarks"] == ["measured earlier, with hub"]
    file["records"][0]["results"]["num_images"] = 49999
    (workdir / run.RECORDS).write_text(json.dumps(file))
    with pytest.raises(SystemExit):
        in_this_process(sets, workdir, *arguments)
    row = rows_of(workdir, "imagenet1k")[f"{NAME}/imagenet"]
    assert row["value"] == 82.0 and row["within_tolerance"] is None
    assert "a part of the set" in (workdir / "imagenet1k.md").read_text()


def test_a_set_that_is_not_as_released_leaves_the_others(sets, tmp_path, capsys):
    """And so does a page that cannot be written, in a sentence."""
    data = tmp_path / "data"
    shutil.copytree(sets.data_dir / "imagenet_a", data / "imagenet_a")
    shutil.copytree(sets.data_dir / "sketch", data / "sketch")
    (data / "imagenet_c" / "fog" / "1").mkdir(parents=True)
    broken = next((data / "sketch").rglob("*.JPEG"))
    broken.write_bytes(b"no image")
    only = ",".join(f"{NAME}/imagenet{end}" for end in ("_a", "_sketch", "_c"))
    workdir = tmp_path / "tables"
    with serve(repository(NAME, tmp_path / "hub")) as (hub, _):
        arguments = command(sets, workdir, "robustness", f"--only={only}")
        arguments[arguments.index(f"--data_dir={sets.data_dir}")] = f"--data_dir={data}"
        environ = environment(tmp_path, hub)
        done = subprocess.run(arguments, env=environ, capture_output=True, text=True)
        assert done.returncode == 1, done.stderr
        rows = rows_of(workdir, "robustness")
        assert rows[f"{NAME}/imagenet_a"]["value"] is not None
        assert broken.name in rows[f"{NAME}/imagenet_sketch"]["missing"]
        assert "lacks 74" in rows[f"{NAME}/imagenet_c"]["missing"]
    page = workdir / "robustness.md"
    page.unlink()
    page.mkdir()
    monkey = [*arguments[3:], "--only", f"{NAME}/imagenet_a"]
    with pytest.raises(SystemExit) as ended:
        reproduce.main(monkey)
    assert ended.value.code == 2 and "can be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["imagenet1"], "table `imagenet1` must be one of imagenet1k, "),
        ([], "a table must be given: imagenet1k, "),
        (["imagenet1k"], "`--workdir` must be given"),
        (["imagenet1k", "--only", "resnet", "--workdir", "x"], "`--only` (=resnet) must name rows"),
        (["v2", "--only", "convnextv2_atto,convnxt", "--workdir", "x"], "`--only` (=convnxt) must"),
        (["v2", "--workdir", "gs://bucket/x"], "`--workdir` (=gs://bucket/x) must be a directory"),
    ],
)
def test_bad_input(arguments, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        reproduce.main(arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and said in error and len(error.splitlines()) == 1


def test_the_list_fits_a_terminal(capsys):
    reproduce.main(["--list"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert all(any(line.startswith(f"{name}: ") for line in lines) for name in TABLES)


@pytest.mark.slow  # the tests above have some rows of each kind
def test_every_row_of_the_classification_tables(sets, tmp_path):
    names = ["imagenet1k", "imagenet22k", "v2", "robustness"]
    rows = [row for name in names for row in TABLES[name].rows if row.hub is not None]
    # The corrupted images are 125 parts, and seen above.
    rows = [row for row in rows if row.test_set not in ("imagenet_c", "imagenet_c_bar")]
    models, pages = {}, {}
    for seed, hub in enumerate(dict.fromkeys(row.hub for row in rows)):
        size = next(row.size for row in rows if row.hub == hub)
        pages |= repository(hub, tmp_path / "hub", seed=seed, size=size)
        models[hub] = timm_model(seed, hub.partition(".")[0])
    workdir = tmp_path / "tables"
    with serve(pages) as (url, _):
        only = ",".join(row.name for row in rows)
        arguments = command(sets, workdir, *names, f"--only={only}")
        done = subprocess.run(
            arguments, env=environment(tmp_path, url), capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    found = {name: row for table in names for name, row in rows_of(workdir, table).items()}
    for row in rows:
        wanted = expected(sets, models[row.hub], row.test_set, row.size)
        assert found[row.name]["value"] == pytest.approx(wanted), row.name
