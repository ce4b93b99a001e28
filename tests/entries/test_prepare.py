"""From raw files to a finished run, as the documentation says it, for datasets of sound and picture.

CREMA-D's media cannot be had here: stand-ins carry its names and formats (16 kHz mono .wav, .flv).
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from datasets.make_manifest import write_rows
from datasets.make_media import lfs_pointer, side_cars, tone, write_frames, write_video, write_wav
from datasets.real import real
from entries.command import ROOT, inside, refused, run
from PIL import Image

from mmpareto.cli import prepare as entry
from mmpareto.cli import train as training
from mmpareto.datasets import SPLITS, DatasetError, build
from mmpareto.datasets.cremad import CLASSES as EMOTIONS
from mmpareto.datasets.lists import read_rows
from mmpareto.preparation.kinetics_sounds import find_clips

SMALL = ("--epochs", "1", "--batch_size", "6", "--image_size", "32", "--num_workers", "0")
QUICK = ("--encoder", "audio=cnn")


def prepare(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return inside(entry.main, *arguments)


def accuracies(folder: Path) -> dict[str, dict[str, float]]:
    results = json.loads((folder / "results.json").read_text())
    return {"joint": results["test"]["joint"], **results["test"]["unimodal"]}


@pytest.fixture(scope="module")
def crema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of CREMA-D in small: 5 actors, 6 emotions, a clip each; lists beside it."""
    root = tmp_path_factory.mktemp("crema") / "CREMA-D"
    names = []
    for actor in range(1001, 1006):
        for number, emotion in enumerate(EMOTIONS):
            name = f"{actor}_DFA_{emotion}_XX"
            names.append(name)
            write_wav(root / "AudioWAV" / f"{name}.wav", tone(1.2, 200 + 150 * number))
            write_video(root / "VideoFlash" / f"{name}.flv", 24, 10, codec="flv", size=(48, 36))
    held = [name for name in names if name.startswith("1005")]
    (root.parent / "train.csv").write_text("".join(f"{n},{n.split('_')[2]}\n" for n in names if n not in held))
    (root.parent / "test.csv").write_text("clip,label\n" + "".join(f"{n},{n.split('_')[2]}\n" for n in held))
    return root


@pytest.fixture(scope="module")
def prepared(crema: Path) -> Path:
    out = crema.parent / "prepared"
    lists = ("--train_list", crema.parent / "train.csv", "--test_list", crema.parent / "test.csv")
    done = prepare("cremad", "--source", crema, "--output", out, *lists, "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert f"prepared: {out}" in done.stdout
    return out


def test_cremad_from_its_repository_to_a_run(crema: Path, prepared: Path, tmp_path: Path) -> None:
    description = json.loads((prepared / "dataset.json").read_text())
    assert description["parameters"] == {
        "audio_features": "fbank",
        "fps": 1.0,
        "frame_size": None,
        "split": "published",
        "split_seed": 0,
        "val_fraction": 0.1,
    }
    splits = {name: [row[0] for row in read_rows(prepared / "splits" / f"{name}.csv")[1:]] for name in SPLITS}
    assert {len(splits["train"]), len(splits["val"]), len(splits["test"])} == {18, 6}
    assert all(name.startswith("1005") for name in splits["test"])
    assert not set(splits["train"]) & set(splits["val"])
    assert len(list((prepared / "visual" / splits["val"][0]).iterdir())) == 3  # at 0, 1 and 2 s of 2.4
    flags = ("--dataset", "CREMAD", "--data_root", prepared, "--ckpt_path", tmp_path / "run")
    done = inside(training.main, *flags, *SMALL, *QUICK)
    assert done.returncode == 0, done.stderr
    assert "audio [1, 1024, 128] -> cnn, visual [2, 3, 32, 32] -> resnet18" in done.stdout
    assert accuracies(tmp_path / "run").keys() == {"joint", "audio", "visual"}
    for flags, message in (
        (("--audio_features", "stft"), "prepared with audio_features fbank, the flags ask for audio_features stft"),
        (("--data_root", crema), "has no dataset.json"),
        (("--data_root", tmp_path / "nowhere"), "is missing"),
    ):
        arguments = ("--dataset", "cremad", "--data_root", prepared, *SMALL, "--ckpt_path", tmp_path / "no", *flags)
        assert message in refused(training.main, *arguments)
    again = refused(entry.main, "cremad", "--source", crema, "--output", prepared, "--split", "random")
    assert "give another --output" in again


@pytest.mark.slow
@pytest.mark.parametrize("split", ["random", "speaker"])
def test_cremads_other_splits(crema: Path, tmp_path: Path, split: str) -> None:
    out = tmp_path / "out"
    flags = ("--split", split, "--audio_features", "stft", "--frame_size", "18", "--workers", "2")
    done = prepare("cremad", "--source", crema, "--output", out, *flags)
    assert done.returncode == 0, done.stderr
    sets = {name: build("cremad", out, name, audio_features="stft", image_size=16) for name in SPLITS}
    actors = {name: {item.id[:4] for item in data.items} for name, data in sets.items()}  # type: ignore[attr-defined]
    assert sum(len(data) for data in sets.values()) == 30
    if split == "speaker":
        assert not actors["train"] & (actors["val"] | actors["test"])
        assert not actors["val"] & actors["test"]
    else:
        assert all(set(data.labels) == set(range(6)) for data in sets.values())
    sample = sets["test"][0]
    assert sample["inputs"]["audio"].shape == (1, 257, 188)
    assert sample["inputs"]["visual"].shape == (2, 3, 16, 16)


def test_layouts_that_circulate_load_without_preparation(crema: Path, prepared: Path, tmp_path: Path) -> None:
    root = tmp_path / "waves"  # .wav files, frames numbered from 0, lists with and without a header
    (root / "Image-01-FPS").mkdir(parents=True)
    shutil.copytree(crema / "AudioWAV", root / "AudioWAV")
    for name in ("train.csv", "test.csv"):
        shutil.copy(crema.parent / name, root)
    for folder in (prepared / "visual").iterdir():
        write_frames(root / "Image-01-FPS" / folder.name, ["00001.jpg", "00000.jpg"])
    waves = build("cremad", root, "test", image_size=16)
    stored = build("cremad", prepared, "test", image_size=16)
    by_id = {stored[i]["id"]: stored[i]["inputs"]["audio"].float() for i in range(len(stored))}
    for i in range(len(waves)):
        np.testing.assert_allclose(waves[i]["inputs"]["audio"], by_id[waves[i]["id"]], atol=0.01)
    for name in ("train.csv", "test.csv"):
        (root / name).unlink()
    with pytest.raises(DatasetError, match=r"has no train\.csv and test\.csv; put the published lists there"):
        build("cremad", root, "test")


def test_converted_videos_and_side_cars_in_a_clone_of_cremad(tmp_path: Path) -> None:
    names = [f"100{number}_DFA_{emotion}_XX" for number in range(1, 4) for emotion in ("ANG", "SAD")]
    for number, name in enumerate(names):
        write_wav(tmp_path / "raw" / "AudioWAV" / f"{name}.wav", tone())
        suffix = (".mp4", ".flv", ".mkv")[number % 3]
        codec = "flv" if suffix == ".flv" else "libx264"
        write_video(tmp_path / "raw" / "VideoFlash" / f"{name}{suffix}", 15, 10, codec=codec)
    lfs_pointer(tmp_path / "raw" / "VideoFlash" / f"{names[0]}.flv")  # converted, and the pointer stayed
    side_cars(tmp_path / "raw")
    flags = ("--source", tmp_path / "raw", "--output", tmp_path / "out", "--split", "speaker", "--workers", "2")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".DS_Store").write_bytes(b"of the Finder")
    done = prepare("cremad", *flags)
    assert done.returncode == 0, done.stderr
    description = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert description["left_out"] == []
    assert sorted(path.name for path in (tmp_path / "out" / "visual").iterdir()) == sorted(names)
    shutil.rmtree(tmp_path / "raw" / "VideoFlash")
    (tmp_path / "raw" / "VideoFlash").mkdir()
    (tmp_path / "raw" / "VideoFlash" / "1001_DFA_ANG_XX.3gp").write_bytes(b"another format")
    said = refused(entry.main, "cremad", *flags)
    assert "VideoFlash holds .3gp, expected .flv, .mp4," in said


def test_side_cars_are_no_kinetics_clips(tmp_path: Path) -> None:
    clip = write_video(tmp_path / "laughing" / "abcdefghijk_000001_000011.mp4", 3)
    side_cars(tmp_path)
    assert set(find_clips(tmp_path).values()) == {clip}


def test_cremads_bad_input(crema: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pointers = tmp_path / "pointers"
    for name in ("1001_DFA_ANG_XX", "1002_DFA_ANG_XX", "1003_DFA_ANG_XX"):
        lfs_pointer(pointers / "AudioWAV" / f"{name}.wav")
        lfs_pointer(pointers / "VideoFlash" / f"{name}.flv")
    unknown = tmp_path / "unknown.csv"
    unknown.write_text("1001_DFA_JOY_XX,JOY\n")
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("1001_DFA_ANG_XX,SAD\n")
    twice = tmp_path / "twice.csv"
    twice.write_text("1001_DFA_ANG_XX,ANG\n1001_DFA_ANG_XX,ANG\n")
    path = tmp_path / "path.csv"  # the first line is no header
    path.write_text("AudioWAV/1001_DFA_ANG_XX,ANG\n1001_DFA_SAD_XX,SAD\n")
    latin = tmp_path / "latin.csv"
    latin.write_bytes("clip,émotion\n".encode("latin-1"))
    (tmp_path / "empty").mkdir()
    test_list = crema.parent / "test.csv"
    cases = [
        (("--source", pointers, "--split", "speaker"), "git-lfs pointers of 130 bytes"),
        (("--source", tmp_path / "empty", "--split", "random"), "has no folder AudioWAV"),
        (("--source", tmp_path / "none", "--split", "random"), "there is no such folder"),
        (("--source", crema), "needs --train_list and --test_list"),
        (
            ("--source", crema, "--train_list", unknown, "--test_list", test_list),
            "'1001_DFA_JOY_XX' is no",
        ),
        (("--source", crema, "--train_list", wrong, "--test_list", test_list), "is labelled SAD, its name says ANG"),
        (("--source", crema, "--train_list", twice, "--test_list", test_list), "more than once: 1001_DFA_ANG_XX"),
        (("--source", crema, "--train_list", latin, "--test_list", test_list), "is not UTF-8"),
        (("--source", crema, "--train_list", test_list, "--test_list", test_list), "more than once"),
        (("--source", crema, "--train_list", path, "--test_list", test_list), "is no CREMA-D clip"),
        (("--source", crema, "--fps", "0"), "expected a number from 0.001 to 1000"),
        (("--source", crema, "--split", "speaker", "--val_fraction", "0.2"), "belongs to --split published"),
    ]
    for flags, message in cases:
        assert message in refused(entry.main, "cremad", "--output", out, *flags)
        assert not out.exists()


def test_unusable_clips_do_not_stop_the_rest_but_are_said(crema: Path, tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    shutil.copytree(crema, raw)
    (raw / "AudioWAV" / "1001_DFA_ANG_XX.wav").write_bytes(b"")
    (raw / "VideoFlash" / "1002_DFA_DIS_XX.flv").write_bytes(
        (raw / "VideoFlash" / "1002_DFA_DIS_XX.flv").read_bytes()[:300]
    )
    write_wav(raw / "AudioWAV" / "1003_DFA_FEA_XX.wav", np.zeros(16000))
    (raw / "VideoFlash" / "1004_DFA_HAP_XX.flv").unlink()
    write_video(raw / "VideoFlash" / "1001_DFA_SAD_XX.flv", 1, 10, codec="flv")  # a single frame is enough
    write_wav(raw / "AudioWAV" / "1001_DFA_DIS_XX.wav", np.stack([tone(), tone()], 1), 44100)  # and so is stereo
    flags = ("--source", raw, "--output", out, "--split", "random", "--workers", "2")
    done = prepare("cremad", *flags)
    assert done.returncode == 1
    assert "10.3 % of the clips are unusable, more than --max_unusable 5" in done.stderr
    left_out = {
        row["id"]: (row["state"], row["reason"]) for row in json.loads((out / "dataset.json").read_text())["left_out"]
    }
    assert left_out["1001_DFA_ANG_XX"] == ("unusable", "empty file")
    assert left_out["1002_DFA_DIS_XX"][0] == "unusable"
    assert left_out["1003_DFA_FEA_XX"] == ("unusable", "silent sound")
    assert left_out["1004_DFA_HAP_XX"] == ("missing", "missing")
    assert len(left_out) == 4
    done = prepare("cremad", *flags, "--max_unusable", "15")
    assert done.returncode == 0
    assert "silent sound: 1, such as 1003_DFA_FEA_XX" in done.stdout


@pytest.mark.slow
def test_an_interrupted_preparation_says_so_and_goes_on(crema: Path, prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    lists = ("--train_list", crema.parent / "train.csv", "--test_list", crema.parent / "test.csv")
    flags = ("cremad", "--source", crema, "--output", out, *lists, "--workers", "1")
    command = [sys.executable, ROOT / "code" / "prepare.py", *flags]
    process = subprocess.Popen(
        [str(part) for part in command], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0
    )
    deadline = time.monotonic() + 120
    while not list((out / "visual").glob("*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: to the workers too
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command continues from here" in said
    assert "Traceback" not in said
    assert not (out / "dataset.json").exists()
    # a clip's picture comes last
    done = {
        path: path.stat().st_mtime_ns for path in (out / "audio").iterdir() if (out / "visual" / path.stem).exists()
    }
    again = prepare(*flags)
    assert again.returncode == 0, again.stderr
    assert 1 <= len(done) < 30
    assert {path: path.stat().st_mtime_ns for path in done} == done
    files = {path.relative_to(out) for path in out.rglob("*") if path.is_file()}
    assert files - {Path(".checked.json")} == {
        path.relative_to(prepared) for path in prepared.rglob("*") if path.is_file() and path.name != ".checked.json"
    }
    assert all((out / file).read_bytes() == (prepared / file).read_bytes() for file in files)


def kinetics(root: Path) -> tuple[Path, Path]:
    """Kinetics-400 clips in class folders and flat, one without sound, one missing; the published lists' form."""
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for number in range(14):
        name = f"-ab_{number:07d}"
        file = root / "raw" / ("playing_drums" if number % 2 else ".") / f"{name}_000010_000020.mp4"
        if number != 5:
            write_video(file, 22, 10, sound=None if number == 6 else tone(2.2, 200 + 40 * number), size=(48, 36))
        lines["test" if number >= 10 else "train"].append(f"{name}_000010_000020,10,{11 if number % 2 else 30}")
    for split, content in lines.items():
        (root / f"{split}.txt").write_text("\n".join(content))
    return root / "train.txt", root / "test.txt"


@pytest.mark.slow
def test_kinetics_sounds_from_clips_to_a_run(tmp_path: Path) -> None:
    train_list, test_list = kinetics(tmp_path)
    raw, out = tmp_path / "raw", tmp_path / "out"
    lists = ("--train_list", train_list, "--test_list", test_list, "--val_fraction", "0.3")
    done = prepare("kinetics-sounds", "--source", raw, "--output", out, *lists, "--max_unusable", "10")
    assert done.returncode == 0, done.stderr
    assert "no sound track: 1" in done.stdout
    description = json.loads((out / "dataset.json").read_text())
    assert {(row["id"][:11], row["state"]) for row in description["left_out"]} == {
        ("-ab_0000005", "missing"),
        ("-ab_0000006", "unusable"),
    }
    assert len(description["classes"]) == 31
    flags = ("--dataset", "KineticSound", "--data_root", out, "--ckpt_path", tmp_path / "run")
    done = inside(training.main, *flags, *SMALL, *QUICK)
    assert done.returncode == 0, done.stderr
    assert "visual [3, 3, 32, 32]" in done.stdout
    assert accuracies(tmp_path / "run").keys() == {"joint", "audio", "visual"}

    annotations = tmp_path / "kinetics.csv"
    rows = [["label", "youtube_id", "time_start", "time_end", "split", "is_cc"]]
    for number in range(14):
        label = "playing drums" if number % 2 else "tickling"
        rows.append([label, f"-ab_{number:07d}", "10", "20", "validate" if number >= 10 else "train", "0"])
    rows.append(["abseiling", "zzzzzzzzzzz", "0", "10", "train", "0"])  # none of the 31
    with open(annotations, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    flags = ("--annotations", annotations, "--val_fraction", "0.3", "--max_unusable", "10")
    done = prepare("kinetics-sounds", "--source", raw, "--output", tmp_path / "annotated", *flags)
    assert done.returncode == 0, done.stderr
    for split in ("train", "val", "test"):
        assert (out / "splits" / f"{split}.csv").read_text() == (
            tmp_path / "annotated" / "splits" / f"{split}.csv"
        ).read_text()

    (tmp_path / "bad.txt").write_text("-ab_0000000_000010_000020,10,31\n")
    (tmp_path / "short.csv").write_text("split,label,youtube_id,time_start,time_end\ntrain\n")
    with_val = tmp_path / "val.csv"
    with_val.write_text(annotations.read_text().replace("validate", "test") + "tickling,-ab_0000000,50,60,validate,0\n")
    (tmp_path / "bad.csv").write_text("label,youtube_id,time_start,time_end,split\ntickling,-ab_0000000,,0:20,train\n")
    for bad, message in (
        (("--train_list", tmp_path / "bad.txt", "--test_list", test_list), "has the unknown class '31'"),
        (("--train_list", test_list, "--test_list", test_list), "more than once"),
        (("--annotations", tmp_path / "short.csv"), "line 2 has 1 value, the header 5"),
        (("--annotations", with_val, "--val_fraction", "0.2"), "the annotations have a validation split"),
        (("--annotations", tmp_path / "bad.csv"), "time_start and time_end must be seconds"),
        ((), "give either --train_list and --test_list, or --annotations"),
    ):
        assert message in refused(entry.main, "kinetics-sounds", "--source", raw, "--output", tmp_path / "no", *bad)
        assert not (tmp_path / "no").exists()


def test_a_clip_is_the_file_of_its_name_else_of_its_id(tmp_path: Path) -> None:
    names = ["-ab_0000000_000010_000020", "-ab_0000000_000070_000080", "-ab_0000001.f137", "-ab_0000001"]
    for name in names:
        (tmp_path / f"{name}.mp4").touch()
    clips = find_clips(tmp_path)
    assert clips["-ab_0000000_000070_000080"].stem == "-ab_0000000_000070_000080"
    assert clips["-ab_0000000"].stem == "-ab_0000000_000010_000020"
    assert clips["-ab_0000001"].stem == "-ab_0000001"


def test_the_published_lists() -> None:
    from mmpareto.datasets.cremad import read_list
    from mmpareto.preparation.kinetics_sounds import published_list

    assert len(read_list(real("lists", "cremad_train.csv"))) == 6698
    assert len(read_list(real("lists", "cremad_test.csv"))) == 744
    assert len(published_list(real("lists", "kinetics_sounds_train.txt"))) == 14799
    assert len(published_list(real("lists", "kinetics_sounds_test.txt"))) == 2597


def test_nine_real_clips(tmp_path: Path) -> None:
    files = sorted(real("media").rglob("*.mp4"))
    (tmp_path / "raw").mkdir()
    for number, file in enumerate(files):
        shutil.copy(file, tmp_path / "raw" / f"clip{number:07d}.mp4")
    lines = [f"clip{number:07d}_000000_000010,10,{number % 2}\n" for number in range(len(files))]
    (tmp_path / "train.txt").write_text("".join(lines[:7]))
    (tmp_path / "test.txt").write_text("".join(lines[7:]))
    lists = ("--train_list", tmp_path / "train.txt", "--test_list", tmp_path / "test.txt", "--val_fraction", "0.3")
    started = time.perf_counter()
    done = prepare("kinetics-sounds", "--source", tmp_path / "raw", "--output", tmp_path / "out", *lists)
    print(f"prepared {len(files)} real clips in {time.perf_counter() - started:.1f} s")
    assert done.returncode == 0, done.stderr
    data = build("kinetics-sounds", tmp_path / "out", "train")
    for index in range(len(data)):
        sample = data[index]
        assert sample["inputs"]["visual"].shape == (3, 3, 224, 224)
        assert sample["inputs"]["audio"].float().std() > 0.5
    for number, file in enumerate(files):
        with av.open(str(file)) as container:
            stream = container.streams.video[0]
            assert stream.duration is not None
            seconds = float(stream.duration * stream.time_base)
        folder = tmp_path / "out" / "visual" / f"clip{number:07d}_000000_000010"
        assert abs(len(list(folder.iterdir())) - np.ceil(seconds)) <= 1


def test_the_entry_itself(tmp_path: Path) -> None:
    done = prepare("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("cremad", "kinetics-sounds", "cgmnist", "modelnet40", "manifest"))
    assert "--fps" in prepare("cremad", "--help").stdout
    for arguments, message in (
        (("digits",), "needs no preparation"),
        (("imagenet",), "unknown dataset 'imagenet'"),
        (("cremad", "--source", tmp_path), "--output"),
    ):
        assert message in refused(entry.main, *arguments)


@pytest.mark.faults
@pytest.mark.timeout(1500)
def test_kills_at_any_moment_leave_nothing_half_written(tmp_path: Path) -> None:
    """The same command, killed again and again in different ways, ends with the folder of the uninterrupted one."""
    rows = []
    for number in range(16):
        write_video(tmp_path / "raw" / f"{number}.mp4", 40, 10, size=(320, 240), sound=tone(4.0, 300 + 20 * number))
        split = "train" if number < 8 else "val" if number < 12 else "test"
        names = {"voice": f"{number}.mp4", "face": f"{number}.mp4"}
        rows.append({"id": f"c{number}", "split": split, "label": str(number % 2), **names})
    write_rows(tmp_path / "raw", rows, ["id", "split", "label", "voice", "face"])
    out = tmp_path / "out"
    command = [
        sys.executable,
        ROOT / "code" / "prepare.py",
        "manifest",
        "--source",
        tmp_path / "raw",
        "--sound",
        "voice",
    ]
    command += ["--workers", "2", "--fps", "10", "--output"]
    done = run(*command, tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    random = np.random.default_rng(0)
    finished = -1
    for _ in range(3):
        process = subprocess.Popen(
            [*map(str, command), str(out)],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            process_group=0,
        )
        deadline = time.monotonic() + 120  # until this run has made something, then a moment of chance
        before = len(list(out.glob("face/*")))
        while process.poll() is None and time.monotonic() < deadline and len(list(out.glob("face/*"))) == before:
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.4))
        order = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT][int(random.integers(3))]
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if random.integers(2) else os.kill)(process.pid, order)
        said = process.communicate(timeout=120)[1]
        assert "Traceback" not in said, said
        for file in out.glob("face/*/*.jpg"):  # whole at any time
            with Image.open(file) as image:
                image.load()
        for file in out.glob("voice/*.npy"):
            assert np.load(file).shape[1] == 128
        if process.returncode == 0:
            break
        assert len(list(out.glob("face/*"))) >= finished
        finished = len(list(out.glob("face/*")))
    done = run(*command, out)
    assert done.returncode == 0, done.stderr

    def contents(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    assert contents(out) == contents(tmp_path / "whole")
