"""`modelnet40`: ModelNet40 (Wu et al., 2015), 40 classes of CAD objects; views of an object are its modalities.

Reads what `prepare.py modelnet40` writes, or a folder of renders as MVCNN (Su et al., 2015) made them, 12 views of each
object, 30 degrees apart:

    <class>/<train|test>/<object>.obj_whiteshaded_v0000.png ... v0011.png
    <class>/<train|test>/<object>.obj.shaded_v001.png ... v012.png
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mmpareto.data_folders import DESCRIPTION, require_root
from mmpareto.datasets.base import DATASETS, DatasetError, Split
from mmpareto.datasets.clips import ClipDataset
from mmpareto.datasets.files import is_hidden
from mmpareto.datasets.items import Item, Items
from mmpareto.datasets.lists import check_ids, cut
from mmpareto.datasets.prepared import read_description, read_split
from mmpareto.datasets.readers import ImageReader

# fmt: off
CLASSES = [
    "airplane", "bathtub", "bed", "bench", "bookshelf", "bottle", "bowl", "car", "chair", "cone", "cup", "curtain",
    "desk", "door", "dresser", "flower_pot", "glass_box", "guitar", "keyboard", "lamp", "laptop", "mantel", "monitor",
    "night_stand", "person", "piano", "plant", "radio", "range_hood", "sink", "sofa", "stairs", "stool", "table",
    "tent", "toilet", "tv_stand", "vase", "wardrobe", "xbox",
]
# fmt: on
Part = Literal["train", "test"]
PARTS: tuple[Part, ...] = ("train", "test")
VIEWS = 12  # of MVCNN's renders
VAL_FRACTION, SPLIT_SEED = 0.2, 0
# the file names of MVCNN's two renders, and the number of their first view
_STYLES = ((re.compile(r"(.+)\.obj_whiteshaded_v(\d{4})\.png"), 0), (re.compile(r"(.+)\.obj\.shaded_v(\d{3})\.png"), 1))


@DATASETS.register("modelnet40")
class ModelNet40(ClipDataset):
    """ModelNet40, a modality `view<k>` [3, size, size] for each of two or more views, up to 40 classes.

    Args:
        root: a prepared dataset, or a folder of MVCNN's renders. Transparency is ignored: theirs is opaque.
        split: "train", "val" (20 % of train, stratified) or "test".
        views: numbers of views, 30 degrees apart; the first and the opposite one are front and rear
        image_size: side of the square that views are brought to, in pixels
    """

    recipe = {"augment": "none"}
    augmenting = False
    must_hold = ()

    def __init__(
        self,
        root: Path | None,
        split: Split,
        *,
        views: tuple[int, ...] = (0, 6),
        image_size: int = 224,
        seed: int = 0,
    ) -> None:
        root = require_root(root, "modelnet40")
        check_views(views)
        names = {f"view{view}" for view in views}
        if (root / DESCRIPTION).exists():
            description = read_description(root, "modelnet40")
            missing = sorted(names - set(description["modalities"]))
            if missing:
                numbers = " ".join(map(str, views))
                raise DatasetError(
                    f"{root} was prepared with {', '.join(description['modalities'])}, the flags ask for "
                    f"{', '.join(missing)}; prepare it again with --views {numbers} into another folder"
                )
            side = description["parameters"]["image_size"]
            if image_size > side:
                raise DatasetError(
                    f"{root} was prepared with image_size {side}, the flags ask for image_size {image_size}; change "
                    f"the flag, or prepare it again with --image_size {image_size} into another folder"
                )
            classes = description["classes"]
            items: Items | list[Item] = read_split(root, "modelnet40", split, {}, classes)
        else:
            objects = renders(root, views)
            classes = class_names(root, [item.label for part in objects.values() for item in part])
            items = objects["test"]
            if split != "test":
                labels = [item.label for item in objects["train"]]
                train, val = cut(objects["train"], labels, VAL_FRACTION, SPLIT_SEED, f"{root}: validation")
                items = train if split == "train" else val
        readers = {f"view{view}": ImageReader(image_size) for view in views}
        super().__init__("modelnet40", split, items, readers, classes, seed)
        self.check(root)

    def stored_form(self, modality: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """See ClipDataset: renders are square, and larger ones were made smaller."""
        return (
            {"frame_size": parameters["image_size"], "suffix": ".png"} if parameters.get("source") == "renders" else {}
        )


def check_views(views: Sequence[int]) -> None:
    """Raise DatasetError unless these are two or more different views of the twelve."""
    if len(views) < 2 or len(set(views)) < len(views) or not set(views) <= set(range(VIEWS)):
        raise DatasetError(
            f"views must be two or more different numbers from 0 to {VIEWS - 1}, found {','.join(map(str, views))}"
        )


def class_names(root: Path, labels: Iterable[str]) -> list[str]:
    """The classes of some objects in ModelNet40's order, the alphabetical one.

    Raises:
        DatasetError: for folders that are none of the 40 classes.
    """
    labels = set(labels)
    unknown = sorted(labels - set(CLASSES))
    if unknown:
        raise DatasetError(f"{root}: {', '.join(unknown[:5])} is no class of ModelNet40; known: {', '.join(CLASSES)}")
    return [label for label in CLASSES if label in labels]


def files_of(root: Path, suffix: str) -> list[tuple[Part, str, Path]]:
    """(part, class, file) of all files <class>/<train|test>/*suffix below a folder, in alphabetical order.

    Raises:
        DatasetError: where there are none in train or in test.
    """
    files: list[tuple[Part, str, Path]] = [
        (part, path.parent.parent.name, path)
        for path in sorted(root.glob(f"*/*/*{suffix}"))
        for part in PARTS
        if path.parent.name == part and not is_hidden(path, root)
    ]
    for part in PARTS:
        if not any(entry[0] == part for entry in files):
            raise DatasetError(
                f"{root}: no files <class>/{part}/*{suffix}; expected ModelNet40's folders, such as airplane/train"
            )
    return files


def renders(root: Path, views: Sequence[int], missing_ok: bool = False) -> dict[Part, list[Item]]:
    """The objects of a folder of MVCNN's renders, with the wanted views of each.

    Args:
        missing_ok: objects that lack a wanted view come without paths.

    Raises:
        DatasetError: no renders, objects that lack a wanted view, object names that come twice.
    """
    objects: dict[tuple[Part, str, str], dict[int, Path]] = {}
    for part, label, path in files_of(root, ".png"):
        for style, first in _STYLES:
            if match := style.fullmatch(path.name):
                files = objects.setdefault((part, label, match[1]), {})
                other = files.setdefault(int(match[2]) - first, path)
                if other is not path:
                    raise DatasetError(f"{path.parent}: {other.name} and {path.name} are the same view of an object")
    if not objects:
        raise DatasetError(
            f"{root}: the .png files are not named as MVCNN's renders are, <object>.obj_whiteshaded_v0000.png or "
            "<object>.obj.shaded_v001.png"
        )
    items: dict[Part, list[Item]] = {part: [] for part in PARTS}
    for (part, label, name), files in objects.items():
        missing = [view for view in views if view not in files]
        if missing and not missing_ok:
            raise DatasetError(
                f"{root}: {label}/{part}/{name} has no view {missing[0]} (views there: {', '.join(map(str, files))}); "
                "add it, take the object out, or let prepare.py modelnet40 leave such objects out"
            )
        items[part].append(Item(name, label, {} if missing else {f"view{view}": files[view] for view in views}))
    check_ids([item.id for part in PARTS for item in items[part]], root)
    return items
