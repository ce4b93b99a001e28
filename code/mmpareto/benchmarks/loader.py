"""The loader: samples a second, against one that does everything sample by sample."""

import copy
import functools
import io
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from mmpareto.benchmarks.quartiles import in_turns, quartiles, ratio_text
from mmpareto.datasets import to_device
from mmpareto.datasets.clips import ClipDataset
from mmpareto.datasets.cremad import CLASSES as CREMAD_CLASSES
from mmpareto.datasets.cremad import CREMAD
from mmpareto.datasets.features import FBANK_FRAMES, FBANK_MEAN, FBANK_STD, MEL_BINS, audio_visual_readers
from mmpareto.datasets.images import JPEG_QUALITY, PACKED, write_packed
from mmpareto.datasets.items import Item
from mmpareto.datasets.readers import IMAGENET_MEAN, IMAGENET_STD, frame_files
from mmpareto.reporting.tables import text_table
from mmpareto.training.data import Loader


class PlainClips(Dataset[tuple[Tensor, Tensor, int]]):
    """Clips as the published loader reads them: each sample decoded, cropped, scaled and normalised on its own.

    Written from its description: Pillow, RandomResizedCrop, flip, ToTensor, Normalize; features padded and normalised
    in float32.
    """

    def __init__(self, root: Path, clips: Sequence[str]) -> None:
        self.root, self.clips = root, clips
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(224),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        features = torch.from_numpy(np.load(self.root / "audio" / f"{self.clips[index]}.npy")).float()
        features = torch.nn.functional.pad(features, (0, 0, 0, FBANK_FRAMES - len(features)))
        features = (features - FBANK_MEAN) / FBANK_STD
        folder = self.root / "visual" / self.clips[index]
        frames = [self.transform(Image.open(folder / name).convert("RGB")) for name in sorted(os.listdir(folder))[:2]]
        return features[None], torch.stack(frames), 0


def write_clips(root: Path, count: int) -> list[str]:
    """A dataset of CREMA-D's shapes: 2.5 s of features, two frames of 480 x 360; the names of its training clips."""
    random = np.random.default_rng(0)
    names = [f"{1001 + i // 6}_DFA_{CREMAD_CLASSES[i % 6]}_XX" for i in range(count + 2)]
    pictures = []
    for _ in range(32):
        # smooth shapes with grain: 25 kB as a JPEG
        coarse = Image.fromarray(random.integers(0, 255, (6, 8, 3)).astype(np.uint8))
        picture = np.asarray(coarse.resize((480, 360), Image.Resampling.BICUBIC), dtype=np.int16)
        picture = (picture + random.normal(0, 1.5, picture.shape)).clip(0, 255).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "JPEG", quality=JPEG_QUALITY)
        pictures.append(stream.getvalue())
    (root / "audio").mkdir()
    for i, name in enumerate(names):
        np.save(root / "audio" / f"{name}.npy", random.normal(-4, 4, (248, MEL_BINS)).astype(np.float16))
        (root / "visual" / name).mkdir(parents=True)
        for frame in (1, 2):
            (root / "visual" / name / f"frame_{frame:05d}.jpg").write_bytes(pictures[(2 * i + frame) % len(pictures)])
    for split, part in (("train", names[:count]), ("val", names[count:-1]), ("test", names[-1:])):
        (root / f"{split}.csv").write_text("".join(f"{name},{name.split('_')[2]}\n" for name in part))
    return names[:count]


def packed(root: Path, names: Sequence[str]) -> ClipDataset:
    """The training clips, their frames decoded as `prepare.py --pack` stores them."""
    (root / "packed").mkdir()
    items = []
    for name in names:
        place = root / "packed" / f"{name}{PACKED}"
        write_packed(frame_files(root / "visual" / name), place)
        paths = {"audio": root / "audio" / f"{name}.npy", "visual": place}
        items.append(Item(name, name.split("_")[2], paths))
    return ClipDataset("cremad", "train", items, audio_visual_readers("fbank", 2, 224), CREMAD_CLASSES, 0)


def measure(clips: int, workers: int, repetitions: int, device: torch.device) -> list[dict[str, Any]]:
    """Samples a second of our loader and of `PlainClips`, up to the batch on the device that the model sees.

    On a CPU that includes what takes place in the training process: the normalisation, and the resizing of crops where
    they are augmented on the device. The rows "handed over" end with the batch of bytes before that.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        names = write_clips(root, clips)
        small = root / "small"  # the same frames as `prepare.py --frame_size 256` stores them
        shutil.copytree(root, small, ignore=shutil.ignore_patterns("small"))
        for frame in small.glob("visual/*/*.jpg"):
            Image.open(frame).resize((341, 256), Image.Resampling.BICUBIC).save(frame, quality=JPEG_QUALITY)
        datasets: dict[str, ClipDataset] = {
            "ours": CREMAD(root, "train"),
            "ours, frames stored at 256": CREMAD(small, "train"),
            "ours, packed at 256": packed(small, names),
        }
        on_device = copy.copy(datasets["ours, packed at 256"])
        on_device.augment_on_device()
        datasets["ours, packed at 256, augmented on the device"] = on_device
        loaders = {
            name: Loader(dataset, 64, shuffle=True, seed=0, workers=workers, pin=device.type == "cuda")
            for name, dataset in datasets.items()
        }
        plain: DataLoader[Any] = DataLoader(
            PlainClips(root, names), 64, shuffle=True, num_workers=workers, persistent_workers=workers > 0
        )

        def ours_epoch(loader: Loader, epoch: int) -> None:
            for batch in loader.epoch(epoch):
                to_device(batch["inputs"], loader.dataset.modalities, device)

        def plain_epoch(epoch: int) -> None:
            del epoch
            for features, frames, _ in plain:
                features.to(device), frames.to(device)

        def bytes_epoch(loader: Loader, epoch: int) -> None:
            for _ in loader.epoch(epoch):
                pass

        ways: dict[str, Callable[[int], None]] = {"plain": plain_epoch}
        ways |= {name: functools.partial(ours_epoch, loader) for name, loader in loaders.items()}
        ways |= {f"{name}, handed over": functools.partial(bytes_epoch, loader) for name, loader in loaders.items()}
        seconds = in_turns(ways, repetitions, device)  # without the first epoch, which starts the workers
    return [
        {
            "way": way,
            "workers": workers,
            "samples_per_second": clips / statistics.median(values),
            "over_plain": quartiles([plain / value for plain, value in zip(seconds["plain"], values, strict=True)]),
        }
        for way, values in seconds.items()
    ]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of `measure` for a person."""
    lines = [
        [row["way"], str(row["workers"]), f"{row['samples_per_second']:.0f}", ratio_text(row["over_plain"])]
        for row in rows
    ]
    return text_table(["loader", "workers", "samples / s", "over plain"], lines)
