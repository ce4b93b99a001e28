"""Read meshes from .off files; compare what a file announces with what it holds."""

import itertools
from pathlib import Path

import numpy as np

from mmpareto.datasets.base import UnusableError
from mmpareto.datasets.files import refuse_special_file
from mmpareto.escape import counted


def read_mesh(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices float64 [V, 3], centred and scaled to the unit sphere, and triangles int64 [F, 3] of an .off file.

    Polygons are cut into triangles that share their first corner. Comments, colours behind the numbers, and headers
    with the counts glued to the magic word (`OFF3514 3546 0`), which half of ModelNet40 has, are accepted.

    Raises UnusableError: damage, no faces, vertices that are not finite, no extent.
    """
    refuse_special_file(path)
    try:
        vertices, faces = _parsed(path.read_bytes())
    except OSError as error:
        raise UnusableError("unreadable mesh", f"{path}: {error}") from error
    except (ValueError, OverflowError) as error:
        raise UnusableError("damaged mesh", f"{path}: {error}") from error
    if not len(vertices) or not len(faces):
        raise UnusableError("mesh without faces", path)
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise UnusableError("damaged mesh", f"{path}: a face names a vertex that is not there")
    with np.errstate(over="ignore", invalid="ignore"):
        vertices = vertices - (vertices.min(axis=0) / 2 + vertices.max(axis=0) / 2)
        radius = np.linalg.norm(vertices, axis=1).max()
    if radius == 0:
        raise UnusableError("mesh without extent", path)
    if not np.isfinite(radius):
        raise UnusableError("mesh with vertices that are not finite", f"{path}, or too far apart for float64")
    return vertices / radius, faces


def _parsed(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and triangles as the file holds them.

    Raises ValueError or OverflowError where they differ from what the header announces.
    """
    text = data.decode("utf-8-sig", errors="replace")
    lines = list(filter(None, (line.partition("#")[0].split() for line in text.splitlines())))
    if not lines or not lines[0][0].startswith("OFF"):
        raise ValueError("does not begin with OFF")
    header = [word for word in (lines[0][0].removeprefix("OFF"), *lines[0][1:]) if word]
    rows = lines[1:]
    if not header:
        header, rows = (rows[0] if rows else []), rows[1:]
    if len(header) not in (2, 3) or not all(word.isdecimal() for word in header):
        raise ValueError(f"expected the numbers of vertices, faces and edges, found {' '.join(header)[:50]!r}")
    vertex_count, face_count = int(header[0]), int(header[1])
    if vertex_count + face_count != len(rows):
        whole = sum(row[0].isdecimal() and len(row) > int(row[0]) for row in rows[vertex_count:])
        read = f"{min(len(rows), vertex_count)} vertices and {counted(whole, 'face')}"
        raise ValueError(f"announces {vertex_count} vertices and {counted(face_count, 'face')}, holds {read}")
    if any(len(row) < 3 for row in rows[:vertex_count]):
        raise ValueError("a vertex has fewer than three coordinates")
    vertices = np.array([list(map(float, row[:3])) for row in rows[:vertex_count]]).reshape(-1, 3)
    triangles: list[list[int]] = []
    for row in rows[vertex_count:]:
        corners = list(map(int, row[1 : 1 + int(row[0])]))
        if len(corners) != int(row[0]):
            raise ValueError(f"a face announces {row[0][:20]} corners and has {len(corners)}")
        triangles += [[corners[0], *pair] for pair in itertools.pairwise(corners[1:])]
    return vertices, np.array(triangles).reshape(-1, 3).astype(np.int64)
