"""ModelNet40: renders of both file-name styles, and rendering checked against a projection by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets.make_media import side_cars
from datasets.real import real
from entries.command import inside
from PIL import Image

from mmpareto.cli import prepare
from mmpareto.datasets import DatasetError, build
from mmpareto.datasets.base import UnusableError
from mmpareto.datasets.clips import ClipDataset
from mmpareto.datasets.meshes import read_mesh
from mmpareto.datasets.modelnet40 import CLASSES, files_of, renders
from mmpareto.datasets.reading import reader_from
from mmpareto.preparation.modelnet40 import ELEVATION, render

STYLES = {"white": "{}.obj_whiteshaded_v{:04d}.png", "shaded": "{}.obj.shaded_v{:03d}.png"}


def write_renders(root: Path, style: str = "white", objects: int = 6) -> Path:
    """Two classes; view k of an object is uniformly 10 k."""
    first = 0 if style == "white" else 1
    for label in ("night_stand", "airplane"):
        for number in range(objects + 2):
            folder = root / label / ("train" if number < objects else "test")
            folder.mkdir(parents=True, exist_ok=True)
            for view in range(12):
                name = STYLES[style].format(f"{label}_{number:04d}", view + first)
                Image.new("RGB", (8, 8), (10 * view,) * 3).save(folder / name)
    return root


def dataset(root: Path, split: str, **options: object) -> ClipDataset:
    data = build("modelnet40", root, split, image_size=8, **options)  # type: ignore[arg-type]
    assert isinstance(data, ClipDataset)
    return data


@pytest.mark.parametrize("style", ["white", "shaded"])
def test_views_of_both_file_name_styles(tmp_path: Path, style: str) -> None:
    root = write_renders(tmp_path, style)
    parts = {split: dataset(root, split) for split in ("train", "val", "test")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 10, "val": 2, "test": 4}
    assert parts["test"].classes == ["airplane", "night_stand"]
    ids = [item.id for part in parts.values() for item in part.items]
    assert len(set(ids)) == 16
    sample = parts["train"][0]
    assert {name: int(x.float().mean()) for name, x in sample["inputs"].items()} == {"view0": 0, "view6": 60}
    three = dataset(root, "val", views=(1, 5, 9))
    assert {name: int(x.float().mean()) for name, x in three[0]["inputs"].items()} == {
        "view1": 10,
        "view5": 50,
        "view9": 90,
    }


def test_raw_renders_are_predicted_as_they_were_prepared(tmp_path: Path) -> None:
    root = write_renders(tmp_path / "raw")
    random = np.random.default_rng(0)
    raw = root / "airplane" / "test" / STYLES["white"].format("airplane_0006", 0)
    Image.fromarray(random.integers(0, 256, (50, 50, 3)).astype(np.uint8)).save(raw)
    flags = ("--source", root, "--output", tmp_path / "out", "--image_size", "20", "--workers", "1")
    assert inside(prepare.main, "modelnet40", *flags).returncode == 0
    data = build("modelnet40", tmp_path / "out", "test", image_size=12)
    (index,) = [k for k in range(len(data)) if "airplane_0006" in data[k]["id"]]
    reader = reader_from(json.loads(json.dumps(data.saved_readers()))["view0"], data.modalities["view0"])
    assert torch.equal(reader.read(raw, None), data[index]["inputs"]["view0"])


def test_there_are_forty_classes() -> None:
    assert len(CLASSES) == len(set(CLASSES)) == 40
    assert sorted(CLASSES) == CLASSES


def test_bad_renders(tmp_path: Path) -> None:
    root = write_renders(tmp_path / "a")
    for views in ((0,), (0, 0), (0, 12), (-1, 3)):
        with pytest.raises(DatasetError, match="two or more different numbers from 0 to 11"):
            dataset(root, "train", views=views)
    gone = root / "airplane" / "train" / "airplane_0001.obj_whiteshaded_v0006.png"
    gone.rename(tmp_path / "kept.png")
    with pytest.raises(DatasetError, match="airplane/train/airplane_0001 has no view 6"):
        dataset(root, "train")
    whole = renders(root, (0, 6), missing_ok=True)["train"]
    assert [item.id for item in whole if not item.paths] == ["airplane_0001"]
    gone.write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"clip airplane_0001, view6: .* cannot be read as an image"):
        dataset(root, "train")
    (tmp_path / "kept.png").rename(gone)
    (gone.parent / "airplane_0001.obj.shaded_v007.png").write_bytes(gone.read_bytes())
    with pytest.raises(DatasetError, match="are the same view of an object"):
        dataset(root, "train")
    (gone.parent / "airplane_0001.obj.shaded_v007.png").unlink()
    (root / "airplane").rename(root / "aeroplane")
    with pytest.raises(DatasetError, match="aeroplane is no class of ModelNet40"):
        dataset(root, "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no files <class>/train"):
        dataset(tmp_path / "empty", "train")
    for split in ("train", "test"):
        (tmp_path / "named" / "bed" / split).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "named" / "bed" / split / "view.png")
    with pytest.raises(DatasetError, match="not named as MVCNN's renders"):
        dataset(tmp_path / "named", "train")


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_truncated_meshes_are_unusable(tmp_path: Path, part: float) -> None:
    file = off(tmp_path / "a.off", *wedge())
    text = file.read_text()
    file.write_text(text[: int(part * len(text))])
    with pytest.raises(UnusableError, match=r"announces|corners|coordinates"):
        read_mesh(file)


def test_side_cars_of_macos_are_no_objects(tmp_path: Path) -> None:
    root = write_renders(tmp_path / "renders")
    before = [list(dataset(root, split).items) for split in ("train", "val", "test")]
    (root / ".checked.json").unlink()
    side_cars(root)
    assert [list(dataset(root, split).items) for split in ("train", "val", "test")] == before
    for split in ("train", "test"):
        off(tmp_path / "meshes" / "bed" / split / f"{split}.off", *wedge())
    side_cars(tmp_path / "meshes")
    assert [path.name for _, _, path in files_of(tmp_path / "meshes", ".off")] == ["test.off", "train.off"]


def test_real_renders() -> None:
    root = real("modelnet", "mvcnn_views")
    data = build("modelnet40", root, "test", views=(0, 3, 6, 9))
    assert data.modalities.keys() == {"view0", "view3", "view6", "view9"}
    sample = data[0]
    assert all(x.shape == (3, 224, 224) and x.float().std() > 5 for x in sample["inputs"].values())


def off(path: Path, vertices: np.ndarray, faces: np.ndarray, glued: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [" ".join(f"{x:.6f}" for x in vertex) for vertex in vertices]
    lines += [" ".join(map(str, [3, *face])) for face in faces]
    counts = f"{len(vertices)} {len(faces)} 0"
    path.write_text(("OFF" if glued else "OFF\n") + counts + "\n" + "\n".join(lines) + "\n")
    return path


def wedge() -> tuple[np.ndarray, np.ndarray]:
    """A solid without any symmetry."""
    vertices = np.array([[0.0, 0, 0], [4, 0, 0], [0, 2, 0], [0, 0, 1], [3, 0.5, 0.7]])
    return vertices, np.array([[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 4], [1, 3, 4], [2, 3, 4]])


def test_meshes_are_centred_and_scaled_and_glued_headers_read(tmp_path: Path) -> None:
    vertices, faces = wedge()
    clean = read_mesh(off(tmp_path / "a.off", vertices, faces))
    glued = read_mesh(off(tmp_path / "b.off", vertices, faces, glued=True))
    for one, other in zip(clean, glued, strict=True):
        np.testing.assert_array_equal(one, other)
    centred = vertices - [2, 1, 0.5]
    np.testing.assert_allclose(clean[0], centred / np.linalg.norm(centred, axis=1).max(), atol=1e-6)


def test_a_real_glued_header_equals_its_clean_twin() -> None:
    folder = real("modelnet", "off")
    glued, clean = read_mesh(folder / "bathtub_0001.off"), read_mesh(folder / "bathtub_0001.mn10.off")
    np.testing.assert_array_equal(glued[0], clean[0])
    np.testing.assert_array_equal(glued[1], clean[1])


CORNERS = "0 0 0\n1 0 0\n0 1 0\n"


@pytest.mark.parametrize(
    "text",
    [
        f"OFF\n3 1 0\n{CORNERS}3 0 1 2\n",
        f"OFF 3 1 0\n{CORNERS}3 0 1 2",
        f"OFF3 1 0\n{CORNERS}3 0 1 2\n",
        f"OFF3 1\r\n{CORNERS}3 0 1 2\r\n\r\n",
        f"OFF # a triangle\n# of three\n\n3 1 0 # counts\n{CORNERS}# faces\n3 0 1 2 # one\n\n",
        f"OFF\n3 1 0\n{CORNERS}3 0 1 2 255 0 0\n",
        "OFF\n3 1 0\n0 0 0 9\n1e0 0 0 9\n0 1. 0 9\n 3\t0 1 2\n",
    ],
)
def test_headers_comments_and_colours_of_meshes(tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.off"
    file.write_text(text, newline="")
    vertices, faces = read_mesh(file)
    assert faces.tolist() == [[0, 1, 2]]
    np.testing.assert_allclose(
        vertices * np.sqrt(2) + [1, 1, 0], np.array([[0, 0, 0], [2, 0, 0], [0, 2, 0]]), atol=1e-12
    )


def test_polygons_become_triangles(tmp_path: Path) -> None:
    file = tmp_path / "a.off"
    file.write_text("OFF\n5 3 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n0 0 1\n4 0 1 2 3\n3 0 1 4\n2 0 1\n")
    assert read_mesh(file)[1].tolist() == [[0, 1, 2], [0, 2, 3], [0, 1, 4]]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "mesh"),
        ("PLY\n1 2 3\n", "mesh"),
        ("OFF\n3 1 0\n0 0 0\n1 0 0\n", "mesh"),
        ("OFF\n3 0 0\n0 0 0\n1 0 0\n0 1 0\n", "mesh"),
        ("OFF\n3 1 0\n0 0 0\nnan 0 0\n0 1 0\n3 0 1 2\n", "not finite|unreadable"),
        ("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n", "mesh"),
        ("OFF\n3 1 0\n1 1 1\n1 1 1\n1 1 1\n3 0 1 2\n", "without extent"),
        (f"OFF\n3 2 0\n{CORNERS}3 0 1 2\n", "announces 3 vertices and 2 faces, holds 3 vertices and 1 face"),
        (f"OFF\n4 1 0\n{CORNERS}3 0 1 2\n", "announces 4 vertices and 1 face, holds 4 vertices and 0 faces"),
        (f"OFF\n3 1 0\n{CORNERS}3 0 1 2\n3 0 1 2\n", "announces 3 vertices and 1 face, holds 3 vertices and 2 faces"),
        (f"OFF3 {10**12} 0\n{CORNERS}3 0 1 2\n", f"announces 3 vertices and {10**12} faces"),
        (f"OFF\n{10**12} {10**12} 0\n{CORNERS}", f"announces {10**12} vertices"),
        (f"OFF\n3 -1 0\n{CORNERS}3 0 1 2\n", "expected the numbers of vertices, faces and edges"),
        (f"OFF\n3 1 0\n{CORNERS}3 0 1\n", "a face announces 3 corners and has 2"),
        (f"OFF\n3 1 0\n{CORNERS}{10**30} 0 1\n", "a face announces 1000000"),
        (f"OFF\n3 1 0\n{CORNERS}3 0 1 -1\n", "a vertex that is not there"),
        (f"OFF\n3 1 0\n{CORNERS}3 0 1 {10**30}\n", "damaged mesh"),
        (f"OFF\n3 1 0\n{CORNERS}3 0 x 1\n", "damaged mesh"),
        ("OFF\n3 1 0\n0 0\n1 0 0\n0 1 0\n3 0 1 2\n", "fewer than three coordinates"),
        ("OFF\n3 1 0\n0 0 inf\n1 0 0\n0 1 0\n3 0 1 2\n", "not finite"),
        ("OFF\n3 1 0\n0 0 1e308\n1 0 -1e308\n0 1 0\n3 0 1 2\n", "not finite"),
        ("OFF BINARY\n", "expected the numbers"),
    ],
)
def test_unusable_meshes_are_named(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "broken.off"
    file.write_text(text)
    with pytest.raises(UnusableError, match=reason) as caught:
        read_mesh(file)
    assert "broken.off" in caught.value.detail


def silhouette_box(vertices: np.ndarray, view: int, size: int) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of a mesh's projection in pixels: a pinhole 2.732 away that sees 45 degrees."""
    azimuth, elevation = np.radians(30 * view), np.radians(ELEVATION)
    forward = -np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    up = np.cross(right, forward)
    from_camera = vertices + 2.732 * forward  # from the camera: vertex - position, position = -2.732 forward
    depth = from_camera @ forward
    scale = size / 2 / np.tan(np.radians(22.5))
    x, y = size / 2 + scale * (from_camera @ right) / depth, size / 2 - scale * (from_camera @ up) / depth
    return x.min(), y.min(), x.max(), y.max()


@pytest.mark.parametrize("views", [(0, 6), (1, 3, 8)])
def test_views_are_projections_from_round_the_object(tmp_path: Path, views: tuple[int, ...]) -> None:
    pytest.importorskip("pyvista")
    vertices, faces = read_mesh(off(tmp_path / "a.off", *wedge()))
    pictures = render(vertices, faces, views, 128)
    for view, picture in zip(views, pictures, strict=True):
        assert picture.shape == (128, 128, 3)
        rows, columns = np.nonzero(picture.max(axis=2) > 5)
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        np.testing.assert_allclose(box, silhouette_box(vertices, view, 128), atol=2)
    again = render(vertices, faces, views, 128)
    assert all(np.array_equal(a, b) for a, b in zip(pictures, again, strict=True))
