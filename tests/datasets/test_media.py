"""Sound and frames out of media files: made ones, and real clips where they are at hand."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from datasets.make_media import brightness, lfs_pointer, tone, write_video, write_wav
from datasets.real import real
from PIL import Image

from mmpareto.datasets.base import UnusableError
from mmpareto.datasets.media import read_frames, read_sound, write_frames


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100])
@pytest.mark.parametrize("channels", [1, 2])
def test_sounds_keep_rate_channels_and_samples(tmp_path: Path, rate: int, channels: int) -> None:
    samples = np.stack([tone(0.3, 300 + 200 * c, rate) for c in range(channels)], axis=1)
    file = write_wav(tmp_path / "a.wav", samples, rate)
    sound = read_sound(file)
    assert sound.rate == rate
    assert sound.samples.shape == (channels, len(samples))
    np.testing.assert_allclose(sound.samples, samples.T, atol=1e-4)
    np.testing.assert_allclose(sound.mono(), samples.mean(axis=1), atol=1e-4)


def damaged(path: Path, kind: str) -> Path:
    if kind == "silent":
        return write_wav(path / "a.wav", np.zeros(8000))
    if kind == "opposite":
        return write_wav(path / "a.wav", np.stack([tone(), -tone()], axis=1))
    if kind == "constant":
        return write_wav(path / "a.wav", np.full((8000, 2), 0.3))
    if kind == "no samples":
        return write_wav(path / "a.wav", np.zeros(0))
    if kind == "pointer":
        return lfs_pointer(path / "a.wav")
    if kind == "no track":
        return write_video(path / "a.mp4")
    file = path / "a.wav"
    file.write_bytes(b"" if kind == "empty" else b"no sound at all" * 9)
    return file


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("silent", "silent sound"),
        ("opposite", "silent sound"),
        ("constant", "silent sound"),
        ("no samples", "empty sound track|unreadable file"),
        ("pointer", "git-lfs pointer"),
        ("no track", "no sound track"),
        ("empty", "empty file"),
        ("nonsense", "unreadable file"),
    ],
)
def test_unusable_sounds_say_why_and_which(tmp_path: Path, kind: str, reason: str) -> None:
    file = damaged(tmp_path, kind)
    with pytest.raises(UnusableError, match=reason) as caught:
        read_sound(file)
    assert file.name in caught.value.detail


def test_a_cut_off_sound_is_unusable(tmp_path: Path) -> None:
    file = write_wav(tmp_path / "a.wav", tone(6.0))
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 4])
    with pytest.raises(UnusableError, match="cut-off file"):
        read_sound(file)


def grays(path: Path, fps: float) -> list[tuple[Fraction, float]]:
    return [(time, float(picture.mean())) for time, picture in read_frames(path, fps)]


def nearest(gray: float, frames: int) -> int:
    return min(range(frames), key=lambda number: abs(brightness(number) - gray))


@pytest.mark.parametrize(
    ("video_fps", "frames", "fps", "expected"),
    [
        (10, 30, 1, [0, 10, 20]),
        (10, 25, 2, [0, 5, 10, 15, 20]),
        (4, 8, 8, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]),  # a slow video's frames come more than once
        (Fraction(15, 2), 15, 1, [0, 7]),  # at 1 s the last frame that is not later: 7 of 7.5 a second
        (Fraction(30000, 1001), 70, 1, [0, 29, 59]),  # 29.97 a second: frame 30 comes at 1.001 s
        (25, 30, 3, [0, 8, 16, 25]),  # a third of a second is 8.33 frames
        (10, 1, 1, [0]),
    ],
)
def test_frames_are_those_that_the_video_shows(
    tmp_path: Path, video_fps: int | Fraction, frames: int, fps: float, expected: list[int]
) -> None:
    file = write_video(tmp_path / "a.mp4", frames, video_fps)
    pictures = grays(file, fps)
    assert [nearest(gray, frames) for _, gray in pictures] == expected
    for (time, _), number in zip(pictures, expected, strict=True):
        assert float(time) == pytest.approx(number / video_fps, abs=1e-3)


def test_times_count_from_the_first_frame(tmp_path: Path) -> None:
    written = write_video(tmp_path / "a.mp4", 25, 10)
    file = tmp_path / "b.mkv"
    with av.open(str(written)) as source, av.open(str(file), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None and packet.pts is not None and packet.time_base is not None:
                later = int(5 / packet.time_base)
                packet.pts, packet.dts = packet.pts + later, packet.dts + later
                packet.stream = copy
                target.mux(packet)
    pictures = grays(file, 1)
    assert [nearest(gray, 25) for _, gray in pictures] == [0, 10, 20]
    assert [float(time) for time, _ in pictures] == pytest.approx([5, 6, 7], abs=1e-3)


def test_tags_in_other_encodings_do_no_harm(tmp_path: Path) -> None:
    written = write_video(tmp_path / "a.mp4", 20, 10, sound=tone(2.0))
    file = tmp_path / "b.mp4"
    with av.open(str(written)) as source, av.open(str(file), "w") as target:
        target.metadata["title"] = "Cafe"
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    data = file.read_bytes()
    assert data.count(b"Cafe") == 1
    file.write_bytes(data.replace(b"Cafe", "Café".encode("latin-1")))
    assert [nearest(gray, 20) for _, gray in grays(file, 1)] == [0, 10]
    np.testing.assert_array_equal(read_sound(file).samples, read_sound(written).samples)


def test_flash_video(tmp_path: Path) -> None:
    pictures = grays(write_video(tmp_path / "a.flv", 30, 10, codec="flv"), 1)
    assert [nearest(gray, 30) for _, gray in pictures] == [0, 10, 20]


@pytest.mark.parametrize("clip", range(9))
def test_frame_times_of_real_clips_against_the_containers_stamps(clip: int) -> None:
    files = sorted(real("media").rglob("*.mp4"))
    if clip >= len(files):
        pytest.skip(f"only {len(files)} real clips")
    with av.open(str(files[clip])) as container:
        stream = container.streams.video[0]
        stamps = sorted(
            packet.pts * packet.time_base
            for packet in container.demux(stream)
            if packet.pts is not None and packet.size
        )
    shown = [time for time, _ in read_frames(files[clip], 1)]
    assert len(shown) >= int(stamps[-1] - stamps[0])
    for number, time in enumerate(shown):
        due = stamps[0] + number
        assert time == max(stamp for stamp in stamps if stamp <= due)


def test_real_sounds_are_as_long_as_their_containers_say() -> None:
    for file in sorted(real("media").rglob("*.mp4")):
        sound = read_sound(file)
        with av.open(str(file)) as container:
            stream = container.streams.audio[0]
            assert sound.rate == stream.rate
            assert len(sound.samples) == stream.channels
            assert stream.duration is not None
            assert sound.samples.shape[1] / sound.rate == pytest.approx(
                float(stream.duration * stream.time_base), abs=0.1
            )


def test_videos_without_frames_are_unusable(tmp_path: Path) -> None:
    with pytest.raises(UnusableError, match="no picture"):
        list(read_frames(write_wav(tmp_path / "a.wav", tone()), 1))
    file = write_video(tmp_path / "a.mkv", 50)
    data = file.read_bytes()
    for length in (0, 100, len(data) // 3):
        file.write_bytes(data[:length])
        with pytest.raises(UnusableError) as caught:
            list(read_frames(file, 1))
        assert "a.mkv" in caught.value.detail


@pytest.mark.parametrize(("short_side", "size"), [(None, (64, 48)), (24, (32, 24)), (100, (64, 48))])
def test_written_frames(tmp_path: Path, short_side: int | None, size: tuple[int, int]) -> None:
    file = write_video(tmp_path / "a.mp4", 30, 10)
    assert write_frames(file, tmp_path / "frames", 1, short_side) == 3
    names = sorted(path.name for path in (tmp_path / "frames").iterdir())
    assert names == ["frame_00001.jpg", "frame_00002.jpg", "frame_00003.jpg"]
    with Image.open(tmp_path / "frames" / names[1]) as image:
        assert image.size == size
        assert nearest(float(np.asarray(image).mean()), 30) == 10


def test_a_part_of_a_file(tmp_path: Path) -> None:
    sound = tone(3.0)
    file = write_wav(tmp_path / "a.wav", sound)
    samples = read_sound(file, (1.0, 2.5)).samples[0]
    np.testing.assert_allclose(samples, sound[16000:40000], atol=1e-4)
    np.testing.assert_array_equal(read_sound(file, (2.0, 9.0)).samples[0], read_sound(file).samples[0, 32000:])
    video = write_video(tmp_path / "a.mp4", 60, 10)  # 6 s
    stamps = [float(time) for time, _ in read_frames(video, 2, (2.0, 4.0))]
    assert stamps == pytest.approx([2.0, 2.5, 3.0, 3.5])
    whole = [picture for _, picture in read_frames(video, 2)]
    part = [picture for _, picture in read_frames(video, 2, (2.0, 20.0))]
    np.testing.assert_array_equal(part, whole[4:])
    assert write_frames(video, tmp_path / "frames", 1, part=(2.0, 4.0)) == 2
    with pytest.raises(UnusableError, match="it ends before the part from 7 to 9 s"):
        write_frames(video, tmp_path / "none", 1, part=(7.0, 9.0))
    with pytest.raises(UnusableError, match="it ends before the part from 7 to 9 s"):
        read_sound(file, (7.0, 9.0))
