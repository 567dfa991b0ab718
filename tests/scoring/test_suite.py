"""`evaluate --suite robustness` on miniatures of the real sets, beside NumPy on timm's logits."""

import json
import shutil

import numpy as np
import pytest
from miniature import IDS, SIZE, encoded, logits_of, save_timm, timm_model, top

from convnext_jax import evaluate
from convnext_jax.data.imagenet_subsets import IMAGENET_A, IMAGENET_R, SUBSETS
from convnext_jax.scoring import suite
from convnext_jax.scoring.corruptions import ALEXNET_ERRORS, C_BAR, mce
from convnext_jax.scoring.test_sets import TEST_SETS


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
    monkeypatch.setattr(suite, "measure", None)
    arguments = ["--suite", "robustness", "--partial", "--results", str(results), "--json"]
    run(weights, sets.data_dir, *arguments)
    found = printed(capsys)
    assert not found["missing"]
    return found["scores"]


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
    measured = []
    measure = suite.measure

    def counting(scorer, part, *args, **kwargs):
        measured.append(part.key)
        return measure(scorer, part, *args, **kwargs)

    monkeypatch.setattr(suite, "measure", counting)
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
        "missing": {},
        "results": "suite.json",
    }
    lines = suite.suite_lines(told)
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert all(test_set.title in text for name, test_set in TEST_SETS.items() if name != "ade20k")


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
    error = capsys.readouterr().err
    assert said in error and len(error.strip().splitlines()) == 1


def test_weights_for_other_classes_are_refused(tmp_path, sets, capsys):
    model = timm_model()
    model.reset_classifier(10)
    place = save_timm(model, tmp_path / "ten")
    for only in ("imagenet_a", "imagenet_v2", "imagenet_c"):
        arguments = ["--suite", "robustness", "--only", only, "--partial"]
        with pytest.raises(SystemExit) as ended:
            run(place, sets.data_dir, *arguments, "--results", str(tmp_path / "kept.json"))
        assert ended.value.code == 2
        error = capsys.readouterr().err
        assert "has 10" in error and len(error.strip().splitlines()) == 1


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
        (["--dataset", "imagenet_a", "--partial"], "are for `--suite` alone"),
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
