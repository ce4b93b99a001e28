"""Prepare ModelNet40: render views of the .off files, or take them from MVCNN's renders.

--source holds <class>/<train|test>/<object>.off, or MVCNN's .png files in the same folders. Rendering needs pyvista
(pip install pyvista) and no display: objects are centred, scaled to the unit sphere and seen from 30
degrees above, the camera 30 degrees further round at each view; white material on black, as MVCNN's.
"""

import argparse
import dataclasses
import functools
import os
from collections.abc import Sequence
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmpareto.datasets.base import DatasetError, UnusableError
from mmpareto.datasets.files import is_hidden, write_image
from mmpareto.datasets.images import opened_image
from mmpareto.datasets.lists import cut
from mmpareto.datasets.meshes import read_mesh
from mmpareto.datasets.modelnet40 import (
    VAL_FRACTION,
    VIEWS,
    check_views,
    class_names,
    files_of,
    renders,
)
from mmpareto.flag_values import count, count_or_zero
from mmpareto.preparation.common import PREPARATIONS, Clip, Outcome, add_cut_arguments
from mmpareto.preparation.common import prepare as prepare_clips

ELEVATION = 30.0  # degrees above the horizon
_DISTANCE, _ANGLE = 2.732, 45.0  # of the camera from the centre; its angle of view, in which the unit sphere just fits


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this preparation."""
    parser.add_argument(
        "--views",
        type=count_or_zero,
        nargs="+",
        default=[0, VIEWS // 2],
        metavar="N",
        help="views of an object, 0 to 11, each a modality (default: 0 6, front and rear)",
    )
    parser.add_argument("--image_size", type=count, default=224, metavar="N", help="side in pixels (default: 224)")
    add_cut_arguments(parser, f"of train, as validation (default: {VAL_FRACTION})", VAL_FRACTION)


@PREPARATIONS.register("modelnet40", summary="views of ModelNet40, from meshes or renders")
def prepare(args: argparse.Namespace) -> Outcome:
    """Prepare the dataset as the flags say."""
    check_views(args.views)
    meshes = any(not is_hidden(path, args.source) for path in args.source.glob("*/*/*.off"))
    if meshes:
        if util.find_spec("pyvista") is None:
            raise DatasetError("rendering .off files needs pyvista: pip install pyvista")
        files = files_of(args.source, ".off")
        clips = [Clip(path.stem, part, label, {"mesh": path}) for part, label, path in files]
    else:
        objects = renders(args.source, args.views, missing_ok=True)
        clips = [Clip(item.id, part, item.label, item.paths) for part, items in objects.items() for item in items]
    classes = class_names(args.source, [clip.label for clip in clips])
    train = [clip for clip in clips if clip.split == "train"]
    what = f"{args.source}: validation"
    _, val = cut(train, [clip.label for clip in train], args.val_fraction, args.split_seed, what)
    val_ids = {clip.id for clip in val}
    clips = [dataclasses.replace(clip, split="val") if clip.id in val_ids else clip for clip in clips]
    parameters = {
        "views": list(args.views),
        "image_size": args.image_size,
        "source": "meshes" if meshes else "renders",
        "val_fraction": args.val_fraction,
        "split_seed": args.split_seed,
    }
    return prepare_clips(
        args.output,
        name="modelnet40",
        clips=clips,
        classes=classes,
        modalities={f"view{view}": ".png" for view in args.views},
        make=functools.partial(make, views=tuple(args.views), size=args.image_size),
        parameters=parameters,
        workers=args.workers,
        tools=("numpy", "pillow", *(("pyvista", "vtk") if meshes else ())),
        sources=(args.source,),
    )


def make(clip: Clip, folder: Path, *, views: Sequence[int], size: int) -> None:
    """Write an object's views as `folder/view<k>.png`."""
    if "mesh" in clip.source:
        vertices, faces = read_mesh(clip.source["mesh"])
        for view, picture in zip(views, render(vertices, faces, views, size), strict=True):
            write_image(folder / f"view{view}.png", Image.fromarray(picture))
        return
    for name, path in clip.source.items():
        try:
            with opened_image(path) as image:
                resized = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
        except DatasetError as error:
            raise UnusableError("unreadable image", error) from error
        write_image(folder / f"{name}.png", resized)


def camera(view: int) -> np.ndarray:
    """The position of a view's camera, [3]; it looks at the origin, z upwards."""
    azimuth, elevation = np.radians(360 / VIEWS * view), np.radians(ELEVATION)
    direction = [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
    return _DISTANCE * np.array(direction)


def render(vertices: np.ndarray, faces: np.ndarray, views: Sequence[int], size: int) -> list[np.ndarray]:
    """Pictures uint8 [size, size, 3] of a mesh inside the unit sphere, one for each view; without a display."""
    if not os.environ.get("DISPLAY"):  # VTK would try a display first and complain
        os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")
    import pyvista

    surface = pyvista.PolyData.from_regular_faces(vertices, faces)
    plotter: Any = pyvista.Plotter(off_screen=True, window_size=[size, size], lighting="none")
    try:
        plotter.set_background("black")
        plotter.add_light(pyvista.Light(light_type="headlight"))
        plotter.add_mesh(surface, color="white", smooth_shading=False, ambient=0.15, diffuse=0.85, specular=0.0)
        plotter.camera.view_angle = _ANGLE
        plotter.show(auto_close=False)
        pictures = []
        for view in views:
            plotter.camera.position = tuple(camera(view))
            plotter.camera.focal_point = (0.0, 0.0, 0.0)
            plotter.camera.up = (0.0, 0.0, 1.0)
            plotter.camera.clipping_range = (_DISTANCE - 1.1, _DISTANCE + 1.1)
            plotter.render()
            pictures.append(np.asarray(plotter.screenshot(return_img=True))[..., :3].copy())
        return pictures
    finally:
        plotter.close()
