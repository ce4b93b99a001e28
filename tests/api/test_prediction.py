"""A run folder alone predicts new files as evaluate.py scores them, to the bit."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets.make_manifest import write_manifest, write_rows
from datasets.make_media import tone, write_wav
from entries.command import inside, refused
from matplotlib.figure import Figure
from PIL import Image

import mmpareto
from mmpareto.api.prediction import Prediction, load, prediction_table
from mmpareto.arguments import saved_config
from mmpareto.cli import evaluate as evaluation
from mmpareto.cli import predict as entry
from mmpareto.cli import prepare as preparation
from mmpareto.cli import train as training
from mmpareto.datasets import DatasetError
from mmpareto.errors import UsageError
from mmpareto.evaluation.collected import Collected, collect
from mmpareto.reporting import figures
from mmpareto.reporting.rendering import plt
from mmpareto.runs import RunDirectory, RunError
from mmpareto.training.restore import same_data, trained_model
from mmpareto.training.setup import make_loader

CPU = torch.device("cpu")
MEDIA = ("sound", "sight", "photo", "sensor")
SMALL = ("--encoder", "sound=cnn", "photo=cnn", "sight=resnet18", "sensor=mlp")


@pytest.fixture(autouse=True, scope="module")
def _no_figures() -> Iterator[None]:
    """Small pictures in the place of figures, which take as long as an epoch."""

    def save(figure: Figure, path: Path) -> None:
        plt.close(figure)
        Image.new("RGB", (8, 8)).save(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save", save)
        yield


def train(folder: Path, *flags: str | Path) -> Path:
    arguments = ["--epochs", "1", "--ckpt_path", str(folder), "--gpu_ids", "cpu", *map(str, flags)]
    assert training.main(arguments) == 0
    return folder


def scored(run: Path, absent: Mapping[str, np.ndarray] | None = None) -> tuple[list[str], Collected]:
    """What evaluate.py scores: ids and outputs of the test split, whose samples lack the modalities `absent`."""
    directory = RunDirectory(run)
    config = saved_config(directory)
    data = same_data(directory, config, "test")
    data.absent = absent or {}
    loader = make_loader(data, config.data, 0, CPU)
    model, _ = trained_model(directory, config, data, CPU)
    return list(data.sample_ids()), collect(model, loader.epoch(0), data.modalities, CPU)


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sounds, frames, images and arrays that a manifest lists."""
    folder = tmp_path_factory.mktemp("media")
    write_manifest(folder, 24, val=True)
    return folder


@pytest.fixture(scope="module")
def run_on_media(media: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on them, moved away from where it was trained."""
    folder = tmp_path_factory.mktemp("made")
    flags = ["--dataset", "manifest", "--data_root", media, "--image_size", "16", "--frames", "2", "--batch_size", "4"]
    train(folder / "run", *flags, *SMALL, "--num_workers", "0")
    return Path(shutil.move(folder / "run", tmp_path_factory.mktemp("elsewhere") / "run"))


@pytest.fixture(scope="module")
def run_on_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("digits") / "run", "--dataset", "digits")


def rows_of_test(media: Path) -> list[dict[str, str]]:
    with open(media / "manifest.csv", newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["split"] == "test"]


def test_a_manifest_of_new_files_is_predicted_as_evaluate_scores_it(
    run_on_media: Path, media: Path, tmp_path: Path
) -> None:
    ids, expected = scored(run_on_media)
    new = tmp_path / "new"
    shutil.copytree(media, new)
    rows = rows_of_test(media)
    write_rows(new, rows, ["id", *MEDIA])  # neither split nor label
    (new / "manifest.csv").rename(new / "new.csv")
    model = load(run_on_media, device="cpu")
    predictions = model.predict_named(model.read_manifest(new / "new.csv"))
    assert [prediction.id for prediction in predictions] == ids
    for row, prediction in enumerate(predictions):
        for head, logits in expected.logits().items():
            assert torch.equal(prediction.logits[head], logits[row])

    output = tmp_path / "predictions.csv"
    done = inside(entry.main, run_on_media, "--manifest", new / "new.csv", "--output", output, "--gpu_ids", "cpu")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(output)
    classes = model.classes
    assert table["prediction"].tolist() == [classes[i] for i in expected.joint.argmax(1)]
    np.testing.assert_allclose(table[[f"joint_{c}" for c in classes]], expected.joint.double().softmax(1), rtol=1e-12)
    np.testing.assert_allclose(
        table[[f"photo_{c}" for c in classes]], expected.unimodal["photo"].double().softmax(1), rtol=1e-12
    )

    assert inside(evaluation.main, run_on_media, "--no-probe", "--gpu_ids", "cpu").returncode == 0
    accuracy = json.loads((run_on_media / "evaluation_test.json").read_text())["joint"]["accuracy"]
    right = [row["label"] == prediction.label for row, prediction in zip(rows, predictions, strict=True)]
    assert 100 * np.mean(right) == pytest.approx(accuracy)


def test_one_sample_needs_the_run_folder_alone(run_on_media: Path, media: Path) -> None:
    _, expected = scored(run_on_media)
    row = rows_of_test(media)[0]
    hidden = media.rename(media.with_name("away"))
    try:
        files = {name: hidden / row[name] for name in MEDIA}
        one = mmpareto.load(run_on_media, device="cpu").predict(**files)
        printed = inside(
            entry.main, run_on_media, "--input", *(f"{k}={v}" for k, v in files.items()), "--gpu_ids", "cpu"
        )
    finally:
        hidden.rename(media)
    for head, logits in expected.logits().items():
        torch.testing.assert_close(one.logits[head], logits[0])  # another batch size rounds differently
    assert sum(one.probabilities["joint"].values()) == pytest.approx(1)
    assert one.probability == max(one.probabilities["joint"].values())
    assert one.table.shape == (3, 5)
    assert f"prediction: {one.label}" in printed.stdout
    assert "sight alone" in printed.stdout


def test_missing_modalities_are_predicted_as_evaluate_scores_them(run_on_media: Path, media: Path) -> None:
    rows = rows_of_test(media)
    absent = {"sound": np.arange(len(rows)) % 2 == 0, "photo": np.arange(len(rows)) == 1}
    _, expected = scored(run_on_media, absent)
    samples = [
        {name: media / row[name] for name in MEDIA if name not in absent or not absent[name][number]}
        for number, row in enumerate(rows)
    ]
    model = load(run_on_media, device="cpu")
    predictions = model.predict(samples)
    for row, prediction in enumerate(predictions):
        assert list(prediction.logits) == ["joint", *(name for name in MEDIA if name in samples[row])]
        for head, logits in prediction.logits.items():
            assert torch.equal(logits, expected.logits()[head][row])
    table = prediction_table(predictions, model.modalities, model.classes)
    assert table[f"sound_{model.classes[0]}"].isna().tolist() == absent["sound"].tolist()
    assert table[f"joint_{model.classes[0]}"].notna().all()
    alone = model.predict(photo=samples[0]["photo"], sound=None)
    assert list(alone.logits) == ["joint", "photo"]


def test_arrays_and_tensors_are_taken_as_files_are(run_on_media: Path, media: Path) -> None:
    model = load(run_on_media, device="cpu")
    row = rows_of_test(media)[0]
    sensor = np.load(media / row["sensor"])
    swapped = sensor.astype(sensor.dtype.newbyteorder(">"))
    given = [sensor, torch.from_numpy(sensor), sensor.tolist(), sensor[::-1].copy()[::-1], swapped]
    samples = [{"sensor": value} for value in (media / row["sensor"], *given, torch.from_numpy(sensor).to_sparse())]
    logits = [model.predict([sample, samples[0]])[0].logits["joint"] for sample in samples]
    for other in logits[1:]:
        assert torch.equal(logits[0], other)
    picture = torch.from_numpy(np.array(Image.open(media / row["photo"]).resize((16, 16)))).permute(2, 0, 1)
    mixed = model.predict([{"photo": picture}, {"photo": picture.float() / 255}])
    torch.testing.assert_close(mixed[0].logits["photo"], mixed[1].logits["photo"])
    torch.testing.assert_close(mixed[0].logits["photo"], model.predict(photo=picture).logits["photo"])


@pytest.mark.slow
def test_sounds_are_read_for_a_run_on_prepared_features(media: Path, tmp_path: Path) -> None:
    prepared = tmp_path / "prepared"
    assert inside(preparation.main, "manifest", "--source", media, "--output", prepared).returncode == 0
    flags = ["--dataset", "manifest", "--data_root", prepared, "--image_size", "16", "--frames", "2"]
    run = train(tmp_path / "run", *flags, *SMALL, "--batch_size", "8", "--num_workers", "0")
    model = load(run, device="cpu")
    row = rows_of_test(media)[0]
    raw, stored = model.predict([{"sound": media / row["sound"]}, {"sound": prepared / "sound" / f"{row['id']}.npy"}])
    assert torch.equal(raw.logits["joint"], stored.logits["joint"])


def test_samples_in_memory_are_pictures_arrays_or_tensors(run_on_digits: Path, tmp_path: Path) -> None:
    data = same_data(RunDirectory(run_on_digits), saved_config(RunDirectory(run_on_digits)), "test")
    ids, expected = scored(run_on_digits)
    samples = []
    for index in range(64):
        inputs = data[index]["inputs"]
        folder = tmp_path / str(index)
        folder.mkdir()
        Image.fromarray(inputs["gray"][0].numpy()).save(folder / "gray.png")
        np.save(folder / "colour.npy", inputs["colour"].numpy())
        samples.append({"gray": folder / "gray.png", "colour": folder / "colour.npy"})
    model = load(run_on_digits, device="cpu")
    size = model.config.data.batch_size
    for row, prediction in enumerate(model.predict(samples[:size])):
        assert torch.equal(prediction.logits["joint"], expected.joint[row])
    tensors = [data[index]["inputs"] for index in range(size)]
    for row, prediction in enumerate(model.predict(tensors)):
        assert torch.equal(prediction.logits["gray"], expected.unimodal["gray"][row])
    assert len(ids) == len(expected.joint)
    wrong = tmp_path / "wrong.png"
    Image.new("L", (30, 28)).save(wrong)
    with pytest.raises(DatasetError, match="expected a picture of 28 x 28 pixels, found 30 x 28"):
        model.predict(gray=wrong)
    with pytest.raises(DatasetError, match=r"a.wav: expected a file with one of \.npy, \.pt, \.jpg"):
        model.predict(gray="a.wav")


def test_what_cannot_be_predicted_is_named(run_on_media: Path, media: Path, tmp_path: Path) -> None:
    model = load(run_on_media, device="cpu")
    with pytest.raises(DatasetError, match="has no modality 'smell'; its modalities: sound, sight, photo, sensor"):
        model.predict(smell="a.wav")
    with pytest.raises(DatasetError, match="has no input; give one or more of sound"):
        model.predict()
    with pytest.raises(DatasetError, match=r"sample 1, sensor: the array: expected an array of shape \[5\]"):
        model.predict([{"sensor": np.zeros(5)}, {"sensor": np.zeros(4)}])
    with pytest.raises(DatasetError, match="sensor: expected an array of real numbers, found complex ones"):
        model.predict(sensor=np.zeros(5, dtype=np.complex64))
    with pytest.raises(DatasetError, match=r"sample 0, sound: .*absent.wav"):
        model.predict(sound=tmp_path / "absent.wav")
    for samples in ({"sound": "a.wav"}, "a.wav", ["a.wav"], Path("a.wav")):
        with pytest.raises(
            TypeError, match=r"give a list of samples, \[\{modality: input\}, ...\], or the inputs of one"
        ):
            model.predict(samples)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="or the inputs of one sample by name"):
        model.predict([], sound="a.wav")  # type: ignore[call-overload]
    assert model.predict([]) == []
    assert len(model.predict(iter([{"sensor": np.zeros(5)}]))) == 1  # type: ignore[call-overload]
    with pytest.raises(RunError, match="no folder; give a run directory"):
        load(tmp_path / "none")
    for size in (0, -3, 2.5):
        with pytest.raises(UsageError, match=f"batch_size must be a whole number, 1 or more, found {size}"):
            load(run_on_media, batch_size=size)  # type: ignore[arg-type]
    (media / "other.csv").write_text("id,smell\na,b\n")
    try:
        message = refused(entry.main, run_on_media, "--manifest", media / "other.csv")
        assert "expected a column for one or more of the modalities sound" in message
    finally:
        (media / "other.csv").unlink()
    for twice in (["photo=a.png", "photo=b.png"], ["photo=a.png", "--input", "photo=b.png"]):
        assert "a modality is given twice" in refused(entry.main, run_on_media, "--input", *twice)
    named = ["--manifest", media / "manifest.csv", "--output", media / "manifest.csv"]
    assert "manifest.csv is the manifest; name another file" in refused(entry.main, run_on_media, *named)
    assert "there is no folder" in refused(
        entry.main, run_on_media, "--input", "photo=a.png", "--output", tmp_path / "absent" / "out.csv"
    )


def test_all_inputs_that_cannot_be_read_are_named_at_once(run_on_media: Path, media: Path, tmp_path: Path) -> None:
    model = load(run_on_media, device="cpu", batch_size=2)
    good = media / rows_of_test(media)[0]["photo"]
    samples: dict[str, Mapping[str, object]] = {str(number): {"photo": good} for number in range(8)}
    samples["1"] = {"photo": tmp_path / "a.png", "sensor": tmp_path / "a.npy", "sound": None}
    samples["6"] = {"photo": tmp_path / "b.png"}
    with pytest.raises(DatasetError) as caught:
        model.predict_named(samples)
    assert [line.split(f": {tmp_path}/")[0] for line in str(caught.value).splitlines()] == [
        "1, photo", "1, sensor", "6, photo",
    ]  # fmt: skip
    with pytest.raises(DatasetError) as caught:
        model.predict_named({str(number): {} for number in range(60)} | {"x": {"smell": "a"}})
    lines = str(caught.value).splitlines()
    assert len(lines) == 51
    assert lines[0].startswith("0: has no input")
    assert lines[-1] == "and 11 more"


def test_a_sound_of_another_rate_than_those_of_training_is_said_once(
    run_on_media: Path, media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        write_wav(tmp_path / f"{number}.wav", tone(0.4, 300, 8000), 8000)
    model = load(run_on_media, device="cpu")
    row = rows_of_test(media)[0]
    model.predict(sound=media / row["sound"])
    assert capsys.readouterr().err == ""
    model.predict([{"sound": tmp_path / f"{number}.wav"} for number in range(3)])
    (said,) = capsys.readouterr().err.splitlines()
    assert ".wav: a sound of 8000 Hz, and the run was trained on sounds of 16000 Hz, whose features differ" in said
    assert "ffmpeg -i SOUND -ar 16000" in said
    copy = Path(shutil.copytree(run_on_media, tmp_path / "copy"))
    resolved = json.loads((copy / "resolved.json").read_text())
    del resolved["readers"]["sound"]["rates"]
    (copy / "resolved.json").write_text(json.dumps(resolved))
    load(copy, device="cpu").predict(sound=tmp_path / "0.wav")
    assert capsys.readouterr().err == ""  # a run from before, which does not know


def test_a_column_that_is_not_there_is_said(
    run_on_media: Path, media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load(run_on_media, device="cpu")
    row = rows_of_test(media)[0]
    shutil.copy(media / row["photo"], tmp_path / "a.png")
    (tmp_path / "new.csv").write_text("id,label,photo,sense\n1,x,a.png,a.npy\n")
    samples = model.read_manifest(tmp_path / "new.csv")
    assert samples == {"1": {"photo": tmp_path / "a.png"}}
    assert capsys.readouterr().err.splitlines() == [
        f"{tmp_path}/new.csv: there is no column {name}: the modality is missing in all samples; columns that are not "
        "read: sense"
        for name in ("sound", "sight", "sensor")
    ]


def test_an_output_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    for output, message in (
        (tmp_path, "is a folder; give the name of a file in it"),
        (tmp_path / ("x" * 250), "cannot be written (File name too long); name another file"),
        (tmp_path / "a" / "b.csv", f"there is no folder {tmp_path}/a; make it"),
    ):
        assert message in refused(entry.main, tmp_path / "no run", "--input", "photo=a.png", "--output", output)
    assert not list(tmp_path.iterdir())


def test_an_older_run_and_a_damaged_one(run_on_media: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run_on_media, tmp_path / "copy"))
    resolved = json.loads((copy / "resolved.json").read_text())
    readers = resolved.pop("readers")
    known = {"reader": "sound", "features": "fbank", "stored": False}
    assert readers["sound"] == known | {"rates": {"16000": 12}}
    (copy / "resolved.json").write_text(json.dumps(resolved))
    assert load(copy, device="cpu").predict(sensor=np.zeros(5)).label in resolved["classes"]
    for damage in (
        {"sound": {"reader": "scent"}},
        {"sound": {}},
        ["sound"],
        {"sound": 3},
        {"sound": known | {"rates": {"a": 1}}},
        {"sound": known | {"rates": [16000]}},
    ):
        (copy / "resolved.json").write_text(json.dumps(resolved | {"readers": damage}))
        with pytest.raises(RunError, match=r"readers that train\.py does not write"):
            load(copy)


def test_the_columns_of_predictions_do_not_depend_on_the_samples() -> None:
    """And none takes the place of another one, whatever modalities and classes are called."""
    classes, logits = ["x", "b_x"], torch.tensor([0.0, 1.0])
    lacking = Prediction("1", classes, {"joint": logits, "a_b": logits})
    whole = Prediction("2", classes, {"joint": logits, "a": -logits, "a_b": logits})
    table = prediction_table([lacking, whole], ["a", "a_b"], classes)
    names = ["joint:x", "joint:b_x", "a:x", "a:b_x", "a_b:x", "a_b:b_x"]
    assert list(table.columns) == ["id", "prediction", "probability", *names]
    assert table.loc[0, ["a:x", "a:b_x"]].isna().all()
    assert table.loc[1, "a:b_x"] < 0.5 < table.loc[1, "a_b:b_x"]
    assert list(prediction_table([], ["s"], ["x", "y"]).columns)[3:] == ["joint_x", "joint_y", "s_x", "s_y"]


def test_text_in_the_cells_of_a_list_may_look_like_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ["id,split,label,words,sensor"]
    for number in range(24):
        split, label = ("train", "val", "test")[number % 3], "ab"[number % 2]
        np.save(tmp_path / f"{number}.npy", np.full(3, number % 2, dtype=np.float32))
        rows.append(f"{number},{split},{label},see {label}.txt,{number}.npy")
    (tmp_path / "manifest.csv").write_text("\n".join(rows) + "\n")
    flags = ["--dataset", "manifest", "--data_root", tmp_path, "--text", "words", "--batch_size", "4"]
    model = load(train(tmp_path / "run", *flags, "--epochs", "1", "--num_workers", "0", "--no-figures"), device="cpu")
    named = model.read_manifest(tmp_path / "manifest.csv")
    assert named["0"]["words"] == "see a.txt"
    assert len(model.predict_named(named)) == 24
    assert isinstance(model.predict(words="see a.txt"), Prediction)
    assert isinstance(model.predict(words="see a" + 300 * " " + ".txt"), Prediction)
    expected = model.predict(words="see a.txt").logits["words"]
    (tmp_path / "wrong.csv").write_text("id,words\n1,sea.txt\n")
    for samples in ([{"words": "sea.txt"}], model.read_manifest(tmp_path / "wrong.csv").values()):
        with pytest.raises(
            DatasetError, match=r"words: .*sea\.txt: there is no such file; a word that ends in .txt is"
        ):
            model.predict(list(samples))
    list_folder, elsewhere = tmp_path / "list", tmp_path / "elsewhere"
    for folder, content in ((list_folder, "see b.txt"), (elsewhere, "a file of another folder")):
        folder.mkdir()
        (folder / "c.txt").write_text(content)
    (list_folder / "list.csv").write_text("id,words\n1,c.txt\n2,see a.txt\n")
    (elsewhere / "see a.txt").write_text("b b b")
    monkeypatch.chdir(elsewhere)  # paths are relative to the list
    named = model.read_manifest(list_folder / "list.csv")
    assert named == {"1": {"words": list_folder / "c.txt"}, "2": {"words": "see a.txt"}}
    first, second = (prediction.logits["words"] for prediction in model.predict_named(named))
    torch.testing.assert_close(first, model.predict(words="see b.txt").logits["words"])
    torch.testing.assert_close(second, expected)
