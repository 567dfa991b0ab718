"""`evaluate --suite robustness` on miniatures of the real sets, beside NumPy on timm's logits."""

import json
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from e2e.commands import end_of, environment, start_together
from miniature import IDS, SIZE, encoded, logits_of, save_timm, timm_model, top
from oracles import torch

from convnext_jax import evaluate, load, save_pretrained
from convnext_jax.data.imagenet_subsets import IMAGENET_A, IMAGENET_R, SUBSETS
from convnext_jax.models.variants import Preprocessing
from convnext_jax.scoring import suite
from convnext_jax.scoring.corruptions import ALEXNET_ERRORS, C_BAR, mce
from convnext_jax.scoring.test_sets import TEST_SETS

pytestmark = pytest.mark.usefixtures("programs_are_kept")


def run(weights, data_dir, *arguments):
    evaluate.main(
        ["--checkpoint", str(weights), "--data_dir", str(data_dir), "--batch_size", "8", *arguments]
    )


@pytest.fixture(scope="module")
def results(sets, weights, tmp_path_factory):
    """The file that a first command kept its results in."""
    file = tmp_path_factory.mktemp("results") / "suite.json"
    arguments = ["--suite", "robustness", "--partial", "--results", str(file)]
    run(weights, sets.data_dir, *arguments)
    return file


def printed(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.fixture
def scores(sets, weights, results, capsys, monkeypatch):
    """What a second command prints, which has nothing left to measure."""
    monkeypatch.setattr(suite, "measured", None)
    arguments = ["--suite", "robustness", "--partial", "--results", str(results), "--json"]
    run(weights, sets.data_dir, *arguments)
    found = printed(capsys)
    assert not found["missing"]
    return found["scores"]


def counted(monkeypatch):
    """The keys of the parts that are measured from now on."""
    keys, measured = [], suite.measured

    def counting(scorer, part, *args, **kwargs):
        keys.append(part.key)
        return measured(scorer, part, *args, **kwargs)

    monkeypatch.setattr(suite, "measured", counting)
    return keys


@pytest.mark.parametrize(
    "name, among",
    [
        ("imagenet", range(1000)),
        ("imagenet_a", IMAGENET_A),
        ("imagenet_r", IMAGENET_R),
        ("imagenet_sketch", range(1000)),
        ("imagenet_v2", range(1000)),
        ("imagenet_real", range(1000)),
    ],
)
def test_numbers_are_those_of_timms_logits(name, among, sets, scores):
    logits, labels, found = sets.logits[name], sets.labels[name], scores[name]
    assert found["top1"] == pytest.approx(top(logits, labels, 1, among))
    assert found["top5"] == pytest.approx(top(logits, labels, 5, among))
    assert 0 < found["top1"] < found["top5"] <= 1
    assert found["num_examples"] == len([label for label in labels if np.size(label)])


def test_clean_accuracy_on_some_classes_comes_from_the_same_pass(sets, scores):
    logits, labels = sets.logits["imagenet"], sets.labels["imagenet"]
    found = scores["imagenet"]["among"]
    for name, classes in SUBSETS.items():
        counted = [label for label in labels if label in classes]
        assert 0 < found[name]["num_examples"] == len(counted) < len(labels)
        assert found[name]["top1"] == pytest.approx(top(logits, labels, 1, classes))
        assert found[name]["top5"] == pytest.approx(top(logits, labels, 5, classes))


def test_images_without_a_label_do_not_count(sets, scores):
    assert scores["imagenet_real"]["num_uncounted"] == 2
    assert "loss" not in scores["imagenet_real"]


def test_corruption_errors(sets, scores):
    def error(name, corruption, severity):
        key = (name, corruption, severity)
        return 1 - top(sets.logits[key], sets.labels[key], 1)

    ratios = [
        sum(error("imagenet_c", name, s) for s in range(1, 6)) / 5 / (alexnet / 100)
        for name, alexnet in ALEXNET_ERRORS.items()
    ]
    assert scores["imagenet_c"]["mce"] == pytest.approx(100 * np.mean(ratios))
    errors = [error("imagenet_c_bar", name, s) for name in C_BAR for s in range(1, 6)]
    assert scores["imagenet_c_bar"]["error"] == pytest.approx(100 * np.mean(errors))
    assert 0 < np.mean(errors) < 1 and scores["imagenet_c"]["num_examples"] == 15 * 5 * 3


def test_the_mean_corruption_error_of_alexnet_is_100():
    own = {name: [error / 100] * 5 for name, error in ALEXNET_ERRORS.items()}
    assert mce(own) == pytest.approx(100)
    assert mce(dict(reversed(own.items()))) == pytest.approx(100)
    with pytest.raises(KeyError, match="speckle_noise"):
        mce(own | {"speckle_noise": [0.5] * 5})
    del own["fog"]
    with pytest.raises(KeyError, match="fog"):
        mce(own)


def test_an_interrupted_suite_goes_on(sets, weights, results, tmp_path, capsys, monkeypatch):
    file = tmp_path / "suite.json"
    content = json.loads(results.read_text())
    lost = {"imagenet_a", "imagenet_c/fog/3"}
    kept = [record for record in content["records"] if record["what"]["part"] not in lost]
    assert len(kept) == len(content["records"]) - 2
    file.write_text(json.dumps(content | {"records": kept}))
    measured = counted(monkeypatch)
    run(weights, sets.data_dir, "--suite", "robustness", "--partial", "--results", str(file))
    assert set(measured) == lost
    again = json.loads(file.read_text())["records"]

    def by_part(records):
        return {record["what"]["part"]: record["results"] for record in records}

    assert by_part(again) == by_part(content["records"])


def test_what_people_read_fits_a_terminal(scores, results):
    told = {
        "model": "convnext_tiny",
        "weights": "small",
        "parameters": "file",
        "input_size": 32,
        "scores": scores,
        "missing": {"x": "ImageNet-X is not there: " + "prepare it with a command " * 9},
        "failed": {"y": "ImageNet-Y lacks 74 of its folders " * 9},
        "results": "/home/somebody/runs/a_long_name_of_a_run/checkpoints/suite.json",
    }
    lines = suite.suite_lines(told)
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    of_images = {name: found for name, found in TEST_SETS.items() if name not in ("ade20k", "coco")}
    assert all(test_set.title in text for test_set in of_images.values())


def test_some_sets_are_not_there(weights, tmp_path, sets, capsys):
    shutil.copytree(sets.data_dir / "sketch", tmp_path / "sketch")
    kept = ["--results", str(tmp_path / "kept.json")]
    run(weights, tmp_path, "--suite", "robustness", "--partial", *kept)
    out = capsys.readouterr().out
    assert "ImageNet-Sketch" in out and "not scored: ImageNet-A is not there: prepare it" in out
    with pytest.raises(SystemExit) as ended:
        run(weights, tmp_path / "nothing", "--suite", "robustness", *kept)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no test set is there; ImageNet-1K is not there: prepare")


def _all_classes(place):
    """A severity with an image of each class."""
    shutil.rmtree(place)
    (image,) = encoded(np.random.default_rng(0), 1, SIZE)
    for name in IDS:
        (place / name).mkdir(parents=True)
        (place / name / "0.JPEG").write_bytes(image)


@pytest.mark.parametrize(
    "break_it, only, partial, said",
    [
        (
            lambda root: shutil.rmtree(root / "imagenet_c" / "fog" / "3"),
            "imagenet_c",
            True,
            "must have all 75 folders of corruptions and severities, and lacks 1: fog/3",
        ),
        (
            lambda root: None,
            "imagenet_c_bar",
            False,
            "has 3 classes, but the model of",
        ),
        (
            lambda root: (root / "sketch" / IDS[0]).rename(root / "sketch" / "other"),
            "imagenet_sketch",
            True,
            "dataset `folder` has",
        ),
        (
            lambda root: _all_classes(root / "imagenet_c_bar" / "blue_noise_sample" / "1"),
            "imagenet_c_bar",
            False,
            "must have 50,000 images, and has 1,000: is its archive unpacked to the end?",
        ),
    ],
)
def test_what_is_not_as_released_is_refused(
    break_it, only, partial, said, weights, tmp_path, sets, capsys
):
    for name in ("imagenet_c", "imagenet_c_bar", "sketch"):
        shutil.copytree(sets.data_dir / name, tmp_path / name)
    (tmp_path / "sketch" / IDS[0]).mkdir(exist_ok=True)
    (tmp_path / "sketch" / IDS[0] / "x.JPEG").write_bytes(encoded(np.random.default_rng(0), 1)[0])
    break_it(tmp_path)
    kept = tmp_path / "kept.json"
    arguments = ["--suite", "robustness", "--only", only, "--results", str(kept)]
    with pytest.raises(SystemExit) as ended:
        run(weights, tmp_path, *arguments, *(["--partial"] if partial else []))
    assert ended.value.code == 2 and not kept.exists()
    printed = capsys.readouterr()
    assert said in printed.err and len(printed.err.strip().splitlines()) == 1
    assert "not scored: " in printed.out


def test_weights_for_other_classes_are_refused(tmp_path, sets, capsys):
    model = timm_model()
    model.reset_classifier(10)
    place = save_timm(model, tmp_path / "ten")
    for only in ("imagenet_a", "imagenet_v2", "imagenet_c"):
        arguments = ["--suite", "robustness", "--only", only]
        with pytest.raises(SystemExit) as ended:
            run(place, sets.data_dir, *arguments, "--results", str(tmp_path / "kept.json"))
        assert ended.value.code == 2
        error = capsys.readouterr().err
        assert "has 10" in error and len(error.strip().splitlines()) == 1
        assert "unpacked" not in error


def test_a_file_of_something_else_is_not_overwritten(weights, sets, tmp_path, capsys):
    file = tmp_path / "notes.json"
    for content in ('{"mine": 1}', "[1]", "no JSON"):
        file.write_text(content)
        with pytest.raises(SystemExit) as ended:
            run(weights, sets.data_dir, "--suite", "robustness", "--results", str(file))
        assert ended.value.code == 2 and file.read_text() == content
        assert "must be a file of results of this command" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--suite", "robustness", "--only", "imagenet_x"], "`--only` (=imagenet_x) must be some"),
        (
            ["--suite", "robustness", "--split", "test"],
            "`--split` must not be given with `--suite`",
        ),
        (["--dataset", "imagenet_a", "--partial"], "`--partial` is for `--suite` alone"),
        (["--dataset", "imagenet2012_real", "--classes", "imagenet_a"], "several labels an image"),
    ],
)
def test_flags_that_do_not_fit(arguments, said, weights, sets, capsys):
    with pytest.raises(SystemExit) as ended:
        run(weights, sets.data_dir, *arguments)
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_one_dataset_of_some_classes(weights, sets, capsys):
    """The folders as they were released, and the classes of a set that has all."""
    root = sets.data_dir.parent / "imagenet_a"
    arguments = ["--dataset", "folder", "--split", "imagenet-a", "--json"]
    with pytest.raises(SystemExit):
        run(weights, root, *arguments)
    assert "1000" in capsys.readouterr().err
    arguments = ["--dataset", "imagenet_v2/matched-frequency", "--classes", "imagenet_r", "--json"]
    run(weights, sets.data_dir, *arguments)
    found, key = printed(capsys), "imagenet_v2"
    logits, labels = sets.logits[key], sets.labels[key]
    counted = [label for label in labels if label in IMAGENET_R]
    assert found["num_examples"] == len(counted) and found["split"] == "test"
    assert found["num_uncounted"] == len(labels) - len(counted)
    assert found["top1"] == pytest.approx(top(logits, labels, 1, IMAGENET_R))
    assert found["classes"] == "imagenet_r" and not found["whole"]


def test_whole_images_are_not_cropped(weights, tmp_path, capsys):
    """A folder by itself, of square images of another size than the model's."""
    images = encoded(np.random.default_rng(0), 10, 48)
    for label, name in enumerate(IDS):
        place = tmp_path / "fog" / name
        place.mkdir(parents=True)
        (place / "0.JPEG").write_bytes(images[label % 10])
    arguments = ["--dataset", "folder", "--split", "fog", "--batch_size", "200", "--json"]
    losses = []
    for flags, whole in ((["--whole"], True), ([], False)):
        run(weights, tmp_path, *arguments, *flags)
        logits = np.tile(logits_of(timm_model(), images, whole=whole), (100, 1)).astype(np.float64)
        exact = np.log(np.exp(logits).sum(1)) - logits[np.arange(1000), np.arange(1000)]
        losses.append(printed(capsys)["loss"])
        # Another program, in float32.
        assert losses[-1] == pytest.approx(exact.mean(), rel=1e-5)
    assert abs(losses[0] - losses[1]) > 1e-3


def only_a(weights, data_dir, file, *flags):
    arguments = ["--suite", "robustness", "--only", "imagenet_a", "--results", str(file), "--json"]
    run(weights, data_dir, *arguments, *flags)


def test_what_is_kept_is_not_taken_for_something_else(weights, sets, tmp_path, monkeypatch, capsys):
    """Parts of sets, other data under the same words, and what was measured before by wish."""
    file = tmp_path / "suite.json"
    measured = counted(monkeypatch)
    only_a(weights, sets.data_dir, file, "--partial")
    only_a(weights, sets.data_dir, file, "--partial")
    assert measured == ["imagenet_a"]
    with pytest.raises(SystemExit):
        only_a(weights, sets.data_dir, file)  # the whole set is wanted
    assert "must have 7,500 images, and has 10" in capsys.readouterr().err
    only_a(weights, sets.data_dir, file, "--partial", "--again")
    assert measured == ["imagenet_a"] * 3
    other = tmp_path / "other"
    shutil.copytree(sets.data_dir / "imagenet_a", other / "tfds" / "imagenet_a")
    for place in (sets.data_dir.parent, other):
        monkeypatch.chdir(place)
        only_a(weights, "tfds", file, "--partial")
    assert measured == ["imagenet_a"] * 4


def test_weights_that_are_replaced_are_measured_again(sets, tmp_path, monkeypatch):
    """A file by its hash; a checkpoint, whose name and step stay, by when it was written."""
    measured = counted(monkeypatch)
    for seed in (0, 1):
        place = save_timm(timm_model(seed), tmp_path / "w")
        only_a(place, sets.data_dir, tmp_path / "of_files.json", "--partial")
        if (tmp_path / "run").exists():
            shutil.rmtree(tmp_path / "run" / "checkpoints")
        model = load(place).model
        feeding = Preprocessing(input_size=SIZE)
        small = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
        save_pretrained(model, tmp_path / "run", "convnext_tiny", preprocessing=feeding, **small)
        only_a(tmp_path / "run", sets.data_dir, tmp_path / "run" / "suite.json", "--partial")
        only_a(tmp_path / "run", sets.data_dir, tmp_path / "run" / "suite.json", "--partial")
    assert len(measured) == 4


def test_a_models_own_order_of_classes(sets, tmp_path, capsys):
    """Names in another order, and numbers sorted as text, as folders of them are."""
    model, order = timm_model(), np.random.default_rng(0).permutation(1000)
    by_text = sorted(range(1000), key=str)
    for names, places in (
        ([IDS[i] for i in order], order),
        ([str(i) for i in by_text], by_text),
    ):
        moved = timm_model()
        with torch.no_grad():
            moved.head.fc.weight.copy_(model.head.fc.weight[list(places)])
            moved.head.fc.bias.copy_(model.head.fc.bias[list(places)])
        place = save_timm(moved, tmp_path / names[1])
        config = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps(config | {"label_names": names}))
        arguments = ["--suite", "robustness", "--only", "imagenet,imagenet_a,imagenet_sketch"]
        arguments += ["--partial", "--results", str(tmp_path / "kept.json"), "--json"]
        run(place, sets.data_dir, *arguments)
        found = printed(capsys)["scores"]
        of = {"imagenet": range(1000), "imagenet_a": IMAGENET_A, "imagenet_sketch": range(1000)}
        for name, among in of.items():
            wanted = top(sets.logits[name], sets.labels[name], 1, among)
            assert found[name]["top1"] == pytest.approx(wanted)
        logits, labels = sets.logits["imagenet"], sets.labels["imagenet"]
        for name, among in SUBSETS.items():
            part = found["imagenet"]["among"][name]
            assert part["top1"] == pytest.approx(top(logits, labels, 1, among))
            assert part["num_examples"] == sum(label in among for label in labels)


def test_where_the_results_of_a_run_are_kept(tmp_path):
    def file_of(source, step=3):
        scorer = types.SimpleNamespace(weights=types.SimpleNamespace(source=source, step=step))
        return str(suite._records_file(scorer, None))

    assert file_of("/runs/sweep/3") == "/runs/sweep/3/suite.json"
    assert file_of("/runs/a/checkpoints") == file_of("/runs/a/checkpoints/90") == file_of("/runs/a")
    assert (
        file_of("hf-hub:a/b", None) == file_of("gs://b/run") == str(Path("suite.json").absolute())
    )


def test_two_commands_may_keep_results_in_one_file(tmp_path):
    program = """
import sys
from pathlib import Path
from convnext_jax.scoring.records import Records
records = Records(Path(sys.argv[1]))
for number in range(25):
    records.add({"part": f"{sys.argv[2]} {number}"}, {})
"""
    file = tmp_path / "suite.json"
    both = [
        subprocess.Popen([sys.executable, "-c", program, str(file), name]) for name in ("a", "b")
    ]
    assert [process.wait() for process in both] == [0, 0]
    records = json.loads(file.read_text())["records"]
    assert len({record["what"]["part"] for record in records}) == len(records) == 50


def test_processes_with_their_data_in_other_places(sets, weights, tmp_path):
    """The first one says what is left to measure; nothing of two parts is added up."""
    only = ["--suite", "robustness", "--only", "imagenet_a,imagenet_r,imagenet_v2", "--partial"]
    command = [sys.executable, "-m", "convnext_jax.evaluate", "--checkpoint", str(weights), *only]
    env = environment(tmp_path, tmp_path / "cache")
    command += ["--batch_size", "8", "--json"]
    for index in (0, 1):
        for name in ("imagenet_a", "imagenet_r", "imagenet_v2"):
            shutil.copytree(sets.data_dir / name, tmp_path / f"data{index}" / name)
    command += ["--results", str(tmp_path / "suite.json"), "--data_dir"]
    first = [*command, str(tmp_path / "data0")]
    first[first.index(only[3])] = "imagenet_r"
    done = subprocess.run(first, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    # Each process has its own directory.
    shell = ["sh", "-c", f'exec "$@" {tmp_path}/data$JAX_PROCESS_ID', "sh", *command]
    (status, out, error), other = end_of(start_together(shell, env, 2))
    assert status == other[0] == 0, error
    found = json.loads(out.splitlines()[-1])["scores"]
    for name, among in (("imagenet_a", IMAGENET_A), ("imagenet_r", IMAGENET_R)):
        wanted = top(sets.logits[name], sets.labels[name], 1, among)
        assert found[name]["top1"] == pytest.approx(wanted)
    key = "imagenet_v2"
    assert found[key]["top1"] == pytest.approx(top(sets.logits[key], sets.labels[key], 1))
