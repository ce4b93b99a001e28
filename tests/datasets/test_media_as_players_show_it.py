"""The decoder gives what players show and play; what is not whole, or no media, is refused by name."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition
from datasets.make_manifest import write_rows
from datasets.make_media import tone, write_sound, write_tracks, write_video, write_wav
from PIL import Image

from mmpareto.datasets import build
from mmpareto.datasets.base import UnusableError
from mmpareto.datasets.features import fbank, fbank_frames
from mmpareto.datasets.media import Sound, read_frames, read_sound

# each turn with a picture's rows and columns as they are shown: 90 and 270 are clockwise
TURNS: dict[str, tuple[tuple[int, int, int, int], Any]] = {
    "as it is": ((1, 0, 0, 1), lambda p: p),
    "90": ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
    "180": ((-1, 0, 0, -1), lambda p: np.rot90(p, 2)),
    "270": ((0, -1, 1, 0), lambda p: np.rot90(p)),
    "left and right": ((-1, 0, 0, 1), np.fliplr),
    "upside down": ((1, 0, 0, -1), np.flipud),
    "along the diagonal": ((0, 1, 1, 0), lambda p: p.swapaxes(0, 1)),
    "along the other": ((0, -1, -1, 0), lambda p: np.rot90(p, 2).swapaxes(0, 1)),
}


def quarters() -> np.ndarray:
    """uint8 [48, 64, 3], another colour in each quarter."""
    picture = np.zeros((48, 64, 3), np.uint8)
    for row, column, colour in ((0, 0, (240, 0, 0)), (0, 1, (0, 240, 0)), (1, 0, (0, 0, 240)), (1, 1, (240,) * 3)):
        picture[24 * row :, 32 * column :] = colour
    return picture


def pitch(sound: Sound) -> float:
    """The frequency of a sound with most energy."""
    mono = sound.mono()
    return float(np.abs(np.fft.rfft(mono)).argmax() * sound.rate / len(mono))


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_frames_stand_upright(tmp_path: Path, turn: str, suffix: str) -> None:
    matrix, expected = TURNS[turn]
    file = write_video(tmp_path / f"a{suffix}", 3, matrix=matrix, picture=quarters())
    (_, frame), *_ = read_frames(file, 1)
    shown = expected(quarters())
    assert frame.shape == shown.shape
    assert np.abs(frame.astype(int) - shown).mean() < 10


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
@pytest.mark.parametrize(
    ("sounds", "default", "expected"),
    [
        ([300, 2000], 1, 2000),
        ([300, 2000], 0, 300),
        ([300, 2000, 700], 2, 700),
        ([300, 2000], None, 300),
    ],
)
def test_the_default_track_is_heard(
    tmp_path: Path, suffix: str, sounds: list[int], default: int | None, expected: int
) -> None:
    file = write_tracks(tmp_path / f"a{suffix}", [tone(1.0, frequency) for frequency in sounds], default)
    assert pitch(read_sound(file)) == pytest.approx(expected, abs=3)


def test_the_default_picture_is_shown_and_cover_art_never(tmp_path: Path) -> None:
    def write(path: Path, covers: list[bool], default: int | None) -> Path:
        with av.open(str(path), "w") as container:
            streams = []
            for number, cover in enumerate(covers):
                stream = container.add_stream("mjpeg" if cover else "libx264", rate=10)
                stream.width, stream.height = 64 + 32 * number, 48
                stream.pix_fmt = "yuvj420p" if cover else "yuv420p"
                if cover:
                    stream.disposition = Disposition.attached_pic
                elif default is not None:
                    stream.disposition = Disposition.default if number == default else 0
                streams.append(stream)
            track = container.add_stream("aac", rate=16000)
            track.layout = "mono"
            for stream, cover in zip(streams, covers, strict=True):
                for _ in range(1 if cover else 10):
                    picture = Image.new("RGB", (stream.width, stream.height), (0, 200, 0))
                    container.mux(stream.encode(av.VideoFrame.from_image(picture)))
                container.mux(stream.encode())
        return path

    def width(path: Path) -> int:
        (_, frame), *_ = read_frames(path, 1)
        return frame.shape[1]

    assert width(write(tmp_path / "second.mkv", [False, False], 1)) == 96
    assert width(write(tmp_path / "first.mkv", [False, False], 0)) == 64
    assert width(write(tmp_path / "cover_first.mp4", [True, False], None)) == 96
    assert width(write(tmp_path / "cover_last.mp4", [False, True], None)) == 64
    with pytest.raises(UnusableError, match="no picture"):
        width(write(tmp_path / "cover.mp4", [True], None))


@pytest.mark.parametrize("channels", [3, 6, 7, 8, 9, 16, 64])
def test_sounds_of_many_channels(tmp_path: Path, channels: int) -> None:
    samples = np.stack([tone(0.2, 200 + 50 * channel) for channel in range(channels)], axis=1)
    sound = read_sound(write_wav(tmp_path / "a.wav", samples))
    np.testing.assert_allclose(sound.samples, samples.T, atol=1e-4)


@pytest.mark.parametrize("rate", [1, 10, 999, 800_000, 2**31 - 1])
def test_impossible_sample_rates_are_refused(tmp_path: Path, rate: int) -> None:
    file = write_wav(tmp_path / "a.wav", tone(1.0))
    data = bytearray(file.read_bytes())
    data[24:28] = rate.to_bytes(4, "little")
    file.write_bytes(data)
    with pytest.raises(UnusableError, match="impossible sample rate") as caught:
        read_sound(file)
    assert f"{rate} Hz" in caught.value.detail


@pytest.mark.parametrize(("suffix", "codec"), [(".mp3", "libmp3lame"), (".aac", "aac")])
@pytest.mark.parametrize("change", ["mono to stereo", "stereo to mono", "rate"])
def test_sounds_that_change_within_the_file_are_read_whole(
    tmp_path: Path, suffix: str, codec: str, change: str
) -> None:
    first, second = tone(1.0, 440, 44100), tone(1.0, 440, 22050 if change == "rate" else 44100)
    if change == "mono to stereo":
        second = np.stack([second, np.zeros_like(second)], axis=1)
    if change == "stereo to mono":
        first = np.stack([first, np.zeros_like(first)], axis=1)
    parts = [
        write_sound(tmp_path / f"{name}{suffix}", samples, codec, rate)
        for name, samples, rate in (("a", first, 44100), ("b", second, 22050 if change == "rate" else 44100))
    ]
    joined = tmp_path / f"joined{suffix}"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    sound = read_sound(joined)
    assert sound.rate in (44100, 22050)  # FFmpeg may give the first frame the rate of the second part
    assert len(sound.samples) == (2 if change == "stereo to mono" else 1)
    assert sound.samples.shape[1] / sound.rate == pytest.approx(2.0, abs=0.15)
    early, late = (sound.mono()[int(start * sound.rate) :][: sound.rate // 2] for start in (0.3, 1.5))
    for half, stereo in ((early, change == "stereo to mono"), (late, change == "mono to stereo")):
        assert pitch(Sound(half[None], sound.rate)) == pytest.approx(440, abs=3)
        assert half.std() == pytest.approx(tone(1.0).std() / (2 if stereo else 1), rel=0.1)  # the mean of the channels


def test_pictures_that_change_their_size_within_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.mkv"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for number in range(20):
            size = (64, 48) if number < 10 else (48, 64)
            encoder = av.CodecContext.create("mjpeg", "w")
            encoder.width, encoder.height = size
            encoder.pix_fmt, encoder.time_base = "yuvj420p", Fraction(1, 10)
            frame = av.VideoFrame.from_image(Image.new("RGB", size, (0, 200, 0)))
            for packet in [*encoder.encode(frame), *encoder.encode(None)]:
                packet.stream, packet.time_base = stream, Fraction(1, 10)
                packet.pts = packet.dts = number
                container.mux(packet)
    assert [frame.shape[:2] for _, frame in read_frames(file, 2)] == [(48, 64)] * 2 + [(64, 48)] * 2


@pytest.mark.parametrize("case", ["loud start", "quiet start"])
@pytest.mark.parametrize(("suffix", "codec"), [(".mp3", "libmp3lame"), (".aac", "aac")])
def test_training_and_preparation_find_the_same_length(tmp_path: Path, suffix: str, codec: str, case: str) -> None:
    """Without a header that tells the length, FFmpeg estimates it by the bit rate of the first frames."""
    noise = 0.5 * np.random.default_rng(0).normal(size=44100).clip(-1, 1)
    parts = [noise, 1e-4 * tone(5.0, 440, 44100)]
    samples = np.concatenate(parts if case == "loud start" else parts[::-1])
    options = {"write_xing": "0"} if codec == "libmp3lame" else {}
    rows = []
    for number in range(8):
        name = f"{number}{suffix}"
        write_sound(tmp_path / name, samples if number == 0 else samples[:22050], codec, 44100, options)
        np.save(tmp_path / f"{number}.npy", np.zeros(3, np.float32))
        split = "train" if number < 4 else "val" if number < 6 else "test"
        rows.append({"id": f"c{number}", "split": split, "label": str(number % 2), "a": name, "b": f"{number}.npy"})
    write_rows(tmp_path, rows, ["id", "split", "label", "a", "b"])
    prepared = fbank(read_sound(tmp_path / f"0{suffix}"), None)
    assert len(prepared) == pytest.approx(600, abs=15)
    dataset = build("manifest", tmp_path, "train")
    assert dataset.modalities["a"].shape == (1, len(prepared), 128)


@pytest.mark.parametrize("rate", [1000, 8000, 11025, 16000, 22050, 22255, 44100, 48000, 192000])
def test_the_length_of_features_is_known_from_that_of_the_sound(rate: int) -> None:
    for samples in (rate // 40 + 1, rate // 3, rate + 7):
        sound = Sound(np.random.default_rng(0).normal(size=(1, samples)).astype(np.float32), rate)
        assert fbank_frames(samples, rate) == len(fbank(sound, None))
    assert fbank_frames(rate // 50, rate) == 0


CONTAINERS = {
    ".mp4": ("libx264", "aac"),
    ".mov": ("mpeg4", "aac"),
    ".mkv": ("libx264", "aac"),
    ".webm": ("libvpx", "libopus"),
    ".flv": ("flv", "aac"),
    ".avi": ("mpeg4", "libmp3lame"),
}
SOUNDS = {
    ".wav": "pcm_s16le",
    ".mp3": "libmp3lame",
    ".flac": "flac",
    ".opus": "libopus",
    ".ogg": "libopus",
    ".m4a": "aac",
    ".aac": "aac",
}


@pytest.mark.parametrize("suffix", CONTAINERS)
@pytest.mark.parametrize(("picture", "sound"), [(1.0, 4.0), (4.0, 1.0), (3.0, 3.0)])
def test_whole_videos_are_read_and_truncated_ones_refused(
    tmp_path: Path, suffix: str, picture: float, sound: float
) -> None:
    codec, sound_codec = CONTAINERS[suffix]
    rate = 44100 if suffix == ".flv" else 48000
    file = write_video(
        tmp_path / f"a{suffix}",
        int(10 * picture),
        codec=codec,
        sound=tone(sound, 440, rate),
        sound_codec=sound_codec,
        rate=rate,
    )
    assert len(list(read_frames(file, 1))) == pytest.approx(picture, abs=1)
    heard = read_sound(file)
    assert heard.samples.shape[1] / heard.rate == pytest.approx(sound, abs=0.15)
    data = file.read_bytes()
    for part in (0.3, 0.6, 0.9):
        file.write_bytes(data[: int(part * len(data))])
        for read in (read_sound, lambda path: list(read_frames(path, 1))):
            with pytest.raises(UnusableError, match=r"cut-off file|unreadable file") as caught:
                read(file)
            assert file.name in caught.value.detail


@pytest.mark.parametrize("suffix", SOUNDS)
def test_truncated_sounds_are_refused(tmp_path: Path, suffix: str) -> None:
    file = write_sound(tmp_path / f"a{suffix}", tone(3.0, 440, 48000), SOUNDS[suffix], 48000)
    assert read_sound(file).samples.shape[1] / 48000 == pytest.approx(3.0, abs=0.1)
    data = file.read_bytes()
    for part in (0.3, 0.6, 0.9):
        file.write_bytes(data[: int(part * len(data))])
        with pytest.raises(UnusableError, match=r"cut-off file|unreadable file"):
            read_sound(file)


def test_tags_before_and_behind_do_no_harm(tmp_path: Path) -> None:
    file = write_sound(tmp_path / "a.mp3", tone(1.0, 440, 44100), "libmp3lame")
    length = read_sound(file).samples.shape[1]
    data = file.read_bytes()
    for tag in (b"TAG" + bytes(125), b"APETAGEX" + bytes(300), b"ID3\x04\x00\x00\x00\x00\x00\x10" + bytes(16)):
        file.write_bytes(data + tag)
        assert read_sound(file).samples.shape[1] == pytest.approx(length, abs=2000)


NAMES = ["10:30:c0", "-x", "a%03d", "concat:a|b", "http:a", "pipe:0", "a?b#c", "été", 'q\'q "w"', "new\nline"]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    os.rename(write_wav(tmp_path / "a.wav", tone()), f"{name}.wav")
    os.rename(write_video(tmp_path / "a.mp4", 3), f"{name}.mp4")
    for path in (Path(name), tmp_path / name):
        assert read_sound(path.with_name(f"{name}.wav")).rate == 16000
        assert len(list(read_frames(path.with_name(f"{name}.mp4"), 1))) == 1


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.wav"))
    try:
        os.rename(write_wav(tmp_path / "a.wav", tone()), path)
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    assert read_sound(path).rate == 16000


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.wav")
    (tmp_path / "b.wav").mkdir()
    (tmp_path / "c.wav").symlink_to("/dev/zero")
    (tmp_path / "d.wav").symlink_to(tmp_path / "a.wav")
    for name, kind in (("a", "a named pipe"), ("b", "a folder"), ("c", "a device"), ("d", "a named pipe")):
        with pytest.raises(UnusableError, match="no regular file") as caught:
            read_sound(tmp_path / f"{name}.wav")
        assert caught.value.detail.endswith(f"{name}.wav: is {kind}; expected a regular file")


def test_lists_of_other_files_are_no_media(tmp_path: Path) -> None:
    secret = write_wav(tmp_path / "secret.wav", tone())
    lists = (
        "ffconcat version 1.0\nfile secret.wav\n",
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n",
    )
    for text in lists:
        (tmp_path / "a.wav").write_text(text)
        with pytest.raises(UnusableError, match="unreadable file"):
            read_sound(tmp_path / "a.wav")


def test_time_stamps_that_jump_do_not_fill_the_disk(tmp_path: Path) -> None:
    written = write_video(tmp_path / "a.mkv", 20, 10, codec="mpeg4")
    file = tmp_path / "b.mkv"
    with av.open(str(written)) as source, av.open(str(file), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for number, packet in enumerate(source.demux(stream)):
            if packet.dts is not None and packet.pts is not None and packet.time_base is not None:
                if number >= 10:
                    later = int(10**6 / packet.time_base)
                    packet.pts, packet.dts = packet.pts + later, packet.dts + later
                packet.stream = copy
                target.mux(packet)
    with pytest.raises(UnusableError, match="time stamps that jump"):
        list(read_frames(file, 1))


def test_sounds_and_pictures_beyond_all_bounds_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmpareto.datasets.media._MOST_SAMPLES", 20_000)
    with pytest.raises(UnusableError, match="sound too long"):
        read_sound(write_wav(tmp_path / "a.wav", tone(2.0)))
    file = write_video(tmp_path / "a.mp4", 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UnusableError, match="unreadable file"):
        list(read_frames(file, 1))
