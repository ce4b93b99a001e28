"""`manifest`: any dataset that one CSV file describes; a new one needs flags and no code.

    manifest.csv      id,split,label and a column for each modality, which holds a path relative to the file
                      a column group, where there is one, names the speaker, subject or scene that a clip is of

A column may hold sound files, images, folders of frames, arrays (.npy, .pt), text files (.txt) or the text itself, all
of one kind. An empty cell is a modality that the clip lacks. Videos are prepared first (`prepare.py manifest`), which
also computes sound features once and for all. Splits are train, val and test; where no clip has the split val,
validation is cut from train.
"""

import functools
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch

from mmpareto.data_folders import DESCRIPTION, require_root
from mmpareto.datasets.arrays import load_array
from mmpareto.datasets.base import DATASETS, DatasetError, Kind, Modality, Split, UnusableError, say
from mmpareto.datasets.clips import ClipDataset
from mmpareto.datasets.features import FBANK_FRAMES, FeatureReader, SoundReader, fbank_frames
from mmpareto.datasets.files import version
from mmpareto.datasets.items import Items
from mmpareto.datasets.manifest_file import MANIFEST, Source, declarations, read_manifest
from mmpareto.datasets.prepared import read_description, read_split
from mmpareto.datasets.readers import ArrayReader, FramesReader, ImageReader, Reader
from mmpareto.datasets.sequences import SequenceReader, TokensReader, array_length, sequence_modality, tokens_modality
from mmpareto.datasets.text import TOKENIZER, TextReader, text_modality
from mmpareto.startup import shell_command

Result = TypeVar("Result")

_PICTURE = 16  # pixels from which on each side bytes with 1, 3 or 4 values at the end are a picture
# the sources that options of `Manifest` are for
_KINDS = {
    "image_size": ("image", "frames"),
    "frames": ("frames",),
    "audio_frames": ("sound", "features"),
    "longest": ("text", "words", "sequence", "tokens"),
    "vocabulary": ("text", "words"),
    "tokenizer": ("text", "words"),
}


@DATASETS.register("manifest")
class Manifest(ClipDataset):
    """A dataset that `manifest.csv` describes, or what `prepare.py manifest` made of one; two or more modalities.

    Args:
        root: the folder that holds manifest.csv or dataset.json.
        split: "train", "val" or "test".
        image_size: side of the square that images and frames are brought to, in pixels; 224 unless given
        frames: frames per clip, one of each equal part of it; 3 unless given
        audio_frames: length of sound features, 100 a second; unless given that of the longest training clip, at most
            1024
        text: columns that hold the text itself, with commas between their names (files .txt are known by their name)
        sequences: columns whose arrays are sequences [length, features] of any length
        tokens: columns whose arrays are token ids [length] of any length
        longest: steps or tokens that sequences and texts are cut to; unless given those of the longest training clip,
            at most 1024 steps or 256 tokens of text
        vocabulary: tokens of the tokenizer that is trained on the training split's text; 8000 unless given
        tokenizer: a tokenizer.json or a folder with one, in the place of one that is trained
        modalities: as the first run resolved them; None: lengths and shapes are those of the training clips

    Raises:
        DatasetError: for an option of modalities that the manifest does not have, and for data that cannot be used.
    """

    named_by_folder = True
    must_hold = ()

    def __init__(
        self,
        root: Path | None,
        split: Split,
        *,
        image_size: int | None = None,
        frames: int | None = None,
        audio_frames: int | None = None,
        text: tuple[str, ...] = (),
        sequences: tuple[str, ...] = (),
        tokens: tuple[str, ...] = (),
        longest: int | None = None,
        vocabulary: int | None = None,
        tokenizer: str | None = None,
        seed: int = 0,
        modalities: Mapping[str, Modality] | None = None,
    ) -> None:
        root = require_root(root, "manifest")
        for option, number in (("audio_frames", audio_frames), ("longest", longest), ("vocabulary", vocabulary)):
            if number is not None and number < 1:
                raise DatasetError(f"{option} must be 1 or more, found {number}")
        declared = declarations(text=text, sequences=sequences, tokens=tokens)
        if (root / DESCRIPTION).exists():
            description = read_description(root, "manifest")
            sources, classes = _prepared_sources(root, description), description["classes"]
            items, train = (read_split(root, "manifest", part, {}, classes) for part in (split, "train"))
            if declared:
                raise DatasetError(
                    f"{root} is prepared and says what its columns hold; leave --text, --sequences and --tokens out"
                )
            stored = {"sound": "features", "video": "frames"}
            sources = {name: stored.get(source, source) for name, source in sources.items()}
        else:
            listed = read_manifest(root, declared=declared)
            sources, classes = dict(listed.sources), listed.classes
            videos = [name for name, source in sources.items() if source == "video"]
            if videos:
                raise DatasetError(
                    f"{root / MANIFEST}: {', '.join(videos)} holds videos, which are prepared first: "
                    f"{shell_command('prepare')} manifest --source {root} --output PREPARED; then give --data_root "
                    "PREPARED"
                )
            items, train = listed.clips[split], listed.clips["train"]
        options: dict[str, Any] = {
            "image_size": image_size,
            "frames": frames,
            "audio_frames": audio_frames,
            "longest": longest,
            "vocabulary": vocabulary,
            "tokenizer": tokenizer,
        }
        for option, kinds in _KINDS.items():
            if options[option] is not None and not set(kinds) & set(sources.values()):
                content = ", ".join(f"{name} ({source})" for name, source in sources.items())
                raise DatasetError(f"{option} is for {' or '.join(kinds)}, and {root} holds {content}; leave it out")
        for name in sources:
            if train.absent(name).all():
                raise DatasetError(f"{root}: no training clip has the modality {name}; take its column out")
        resolved = modalities or {}
        readers = {
            name: _reader(source, functools.partial(_sources, train, name), resolved.get(name), options)
            for name, source in sources.items()
        }
        super().__init__("manifest", split, items, readers, classes, seed)
        self.check(root)
        if split == "train" and modalities is None:
            for name, reader in self.readers.items():
                if isinstance(reader, SoundReader):
                    reader.look_at(self.items.sources(name))

    def stored_form(self, modality: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """See ClipDataset; frames may be a video's, or files of the manifest, which may have been made smaller."""
        if parameters["sources"][modality] == "video":
            return super().stored_form(modality, parameters)
        suffixes = parameters.get("suffixes", {})
        return {"frame_size": parameters["frame_size"], "suffix": suffixes[modality]} if modality in suffixes else {}

    def sample_files(self) -> set[str]:
        """See MultimodalDataset."""
        return self.items.files


def _prepared_sources(root: Path, description: Mapping[str, Any]) -> dict[str, str]:
    """{modality: source} of a prepared dataset.

    Raises:
        DatasetError: where dataset.json does not name a source of each modality.
    """
    sources = description["parameters"].get("sources")
    kinds = set(get_args(Source)) - {"words"}
    if not isinstance(sources, dict) or sources.keys() != description["modalities"].keys():
        sources = {}
    if not sources or not all(isinstance(source, str) and source in kinds for source in sources.values()):
        raise DatasetError(
            f"{root / DESCRIPTION}: expected one of {', '.join(sorted(kinds))} as source of each modality; prepare the "
            "dataset again"
        )
    return sources


def _sources(items: Items, name: str) -> tuple[Path | str, ...]:
    """The files, or texts, of a modality; a hundred thousand paths take a quarter of a second."""
    return tuple(items.sources(name))


def _reader(
    source: str,
    train: Callable[[], tuple[Any, ...]],
    resolved: Modality | None,
    options: Mapping[str, Any],
) -> Reader:
    """The reader of a modality.

    Args:
        train: gives the training sources, where they are needed.
        resolved: the modality of an earlier run.
    """
    size = 224 if options["image_size"] is None else options["image_size"]
    if source == "image":
        return ImageReader(size)
    if source == "frames":
        return FramesReader(3 if options["frames"] is None else options["frames"], size)
    if source == "array":
        return ArrayReader(resolved or array_modality(train()[0]))
    if source == "sequence":
        return SequenceReader(resolved or _sequence_modality(train(), options["longest"]))
    if source == "tokens":
        return TokensReader(resolved or _tokens_modality(train(), options["longest"]))
    if source in ("text", "words"):
        words = (options[name] for name in ("longest", "vocabulary", "tokenizer"))
        return TextReader(resolved or _text_modality(train(), *words), files=source == "text")
    if resolved is not None and resolved.kind == "spectrogram":
        length = resolved.shape[1]
    else:
        length = options["audio_frames"] or _longest(train())
    return SoundReader("fbank", length) if source == "sound" else FeatureReader("fbank", length)


def _kept(function: Callable[..., Result]) -> Callable[..., Result]:
    """`function(sources, *options)`, called again only where a file that they name has changed."""

    @functools.lru_cache(maxsize=16)
    def kept(versions: int, *arguments: Any) -> Result:
        del versions  # a part of the cache's key
        return function(*arguments)

    def cached(sources: tuple[Path | str, ...], *options: Any) -> Result:
        files = [source for source in sources if isinstance(source, Path)]
        files += [path for name in options if isinstance(name, str) for path in (Path(name), Path(name, TOKENIZER))]
        return kept(hash(tuple(map(version, files))), sources, *options)

    return cached


_sequence_modality = _kept(sequence_modality)
_tokens_modality = _kept(tokens_modality)
_text_modality = _kept(text_modality)


@_kept
def _longest(paths: tuple[Path, ...]) -> int:
    """Feature frames of the longest of some sounds, or of their stored features; at most FBANK_FRAMES."""
    longest = 1
    with ThreadPoolExecutor(4) as pool:
        for frames in pool.map(_audio_frames, paths):
            longest = max(longest, frames)
            if longest >= FBANK_FRAMES:
                pool.shutdown(cancel_futures=True)
                return FBANK_FRAMES
    return longest


def _audio_frames(path: Path) -> int:
    """Feature frames of a decoded sound, because headers may only estimate its length; or of stored features.

    0 for a sound that cannot be used: the check of all clips names it.
    """
    if path.suffix == ".npy":
        return array_length(path)
    from mmpareto.datasets.media import read_sound  # PyAV takes 0.2 s to import

    try:
        sound = read_sound(path)
    except UnusableError:
        return 0
    return fbank_frames(sound.samples.shape[1], sound.rate)


def array_modality(path: Path) -> Modality:
    """The modality of arrays like this one: a vector [N], a spectrogram [L, M] or [1, L, M], an image [C, H, W], or
    frames [F, C, H, W]. Values stay as they are; bytes are scaled to 0 .. 1.

    Raises:
        DatasetError: for other shapes, and for images whose channels come last.
    """
    array = load_array(path)
    shape = tuple(array.shape)
    kinds: dict[int, Kind] = {1: "vector", 2: "spectrogram", 3: "image", 4: "frames"}
    if array.dim() not in kinds or not array.numel():
        raise DatasetError(
            f"{path}: an array of shape {list(shape)}; expected [N], [L, M], [channels, H, W] or [F, channels, H, W]"
        )
    if array.dim() >= 3 and shape[-1] in (1, 3, 4) and shape[-3] > 4:
        height, width, last = shape[-3:]
        problem = (
            f"{path}: an array of shape {list(shape)}, which is read as {height} channels of {width} x {last} values; "
            "store the channels of images before height and width (numpy.moveaxis(array, -1, -3))"
        )
        if array.dtype == torch.uint8 and min(height, width) >= _PICTURE:
            raise DatasetError(problem)
        say(f"manifest: {problem}, if these are images")
    if array.dim() == 2:
        return Modality("spectrogram", (1, *shape))
    if array.dim() == 3 and shape[0] == 1 and array.is_floating_point():
        return Modality("spectrogram", shape)
    return Modality(kinds[array.dim()], shape)
