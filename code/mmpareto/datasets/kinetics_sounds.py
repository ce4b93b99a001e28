"""`kinetics-sounds`: Kinetics-Sounds (Arandjelovic & Zisserman, 2017), 31 classes of Kinetics-400 that can be heard.

Reads what `prepare.py kinetics-sounds` writes.
"""

from pathlib import Path

from mmpareto.data_folders import DESCRIPTION, require_root
from mmpareto.datasets.base import DATASETS, Split
from mmpareto.datasets.clips import ClipDataset
from mmpareto.datasets.features import AudioFeatures, audio_visual_readers
from mmpareto.datasets.prepared import read_split

# in the order of the published lists' labels, 0 to 30
# fmt: off
CLASSES = [
    "blowing_nose", "blowing_out_candles", "bowling", "chopping_wood", "dribbling_basketball", "laughing",
    "mowing_lawn", "playing_accordion", "playing_bagpipes", "playing_bass_guitar", "playing_clarinet", "playing_drums",
    "playing_guitar", "playing_harmonica", "playing_keyboard", "playing_organ", "playing_piano", "playing_saxophone",
    "playing_trombone", "playing_trumpet", "playing_violin", "playing_xylophone", "ripping_paper", "shoveling_snow",
    "shuffling_cards", "singing", "stomping_grapes", "tap_dancing", "tapping_guitar", "tapping_pen", "tickling",
]
# fmt: on


@DATASETS.register("kinetics-sounds")
class KineticsSounds(ClipDataset):
    """Kinetics-Sounds, 31 classes: `audio` ([1, 1024, 128] or [1, 257, 188]) and `visual` [F, 3, size, size].

    Args:
        root: a prepared dataset.
        split: "train", "val" or "test".
        audio_features: fbank, MMPareto's, or stft, OGM-GE's
        frames: frames per clip, one of each equal part of it
        image_size: side of the square that frames are brought to, in pixels
    """

    must_hold = (DESCRIPTION,)

    def __init__(
        self,
        root: Path | None,
        split: Split,
        *,
        audio_features: AudioFeatures = "fbank",
        frames: int = 3,
        image_size: int = 224,
        seed: int = 0,
    ) -> None:
        root = require_root(root, "kinetics-sounds")
        readers = audio_visual_readers(audio_features, frames, image_size)
        items = read_split(root, "kinetics-sounds", split, {"audio_features": audio_features}, CLASSES)
        super().__init__("kinetics-sounds", split, items, readers, CLASSES, seed)
        self.check(root)
