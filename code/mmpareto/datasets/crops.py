"""Parts of images, cut out at random where a sample is read and resized on the device that trains: `--augment device`.

Shapes: N images, h x w pixels of a part, S side of the square that parts are resized to, H x W the largest h and w.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Crop(NamedTuple):
    """A part of an image that is still to be resized and flipped.

    Attributes:
        pixels: uint8 [h, w, 3].
        flipped: whether it is.
    """

    pixels: Tensor
    flipped: bool


class Crops(NamedTuple):
    """The parts of all images of a batch, of any sizes, in the order of samples and frames.

    Attributes:
        pixels: uint8 [bytes], one part after the other, each [h, w, 3].
        forms: int64 [N, 3]: h, w, and 1 where the part is flipped.
    """

    pixels: Tensor
    forms: Tensor


def joined(crops: Iterable[Crop]) -> Crops:
    """The parts of a batch's images in one tensor."""
    parts = list(crops)
    forms = [(*part.pixels.shape[:2], part.flipped) for part in parts]
    return Crops(torch.cat([part.pixels.flatten() for part in parts]), torch.tensor(forms))


def black(shape: tuple[int, ...]) -> list[Crop]:
    """A black pixel for each image of an input [3, S, S] or [F, 3, S, S]."""
    return [Crop(torch.zeros(1, 1, 3, dtype=torch.uint8), False)] * math.prod(shape[:-3])


def fit(image: Tensor, size: int) -> Tensor:
    """An image uint8 [3, h, w] as [3, S, S], antialiased; in memory of its own: a mapped one keeps its file open."""
    from torchvision.transforms.v2.functional import resize  # takes two seconds to load, which arrays need not spend

    fitted = resize(image, [size, size], antialias=True)
    return fitted.clone() if fitted is image else fitted


def resized(crops: Crops, size: int, device: torch.device) -> Tensor:
    """The parts, resized and flipped: uint8 [N, 3, S, S] on the device.

    On a CPU torchvision resizes one part after the other, so that the pixels are those of the loader's processes, bit
    for bit. Elsewhere all parts are resized at once, by two products with the weights of antialiased interpolation,
    which differ from torchvision's pixels by one of 255 at most: torchvision rounds between rows and columns. On a CPU
    the products take ten times as long (5.2 ms against 0.5 for a crop of 256 x 341, one core of an AMD EPYC); on a
    GPU a loop would start thousands of small kernels a batch.
    """
    if device.type != "cpu":
        return _resized_at_once(crops, size, device)
    flipped = crops.forms[:, 2].bool()
    parts = crops.pixels.split(crops.forms[:, :2].prod(1).mul(3).tolist())
    shapes = crops.forms[:, :2].tolist()
    images = torch.stack(
        [fit(part.view(*shape, 3).permute(2, 0, 1), size) for part, shape in zip(parts, shapes, strict=True)]
    )
    images[flipped] = images[flipped].flip(-1)
    return images


def _resized_at_once(crops: Crops, size: int, device: torch.device) -> Tensor:
    """See `resized`; on any device, without waiting for it."""
    high, wide = crops.forms[:, :2].amax(0).tolist()  # still on the host
    pixels = crops.pixels.to(device, non_blocking=True).view(-1, 3)
    heights, widths, flipped = crops.forms.to(device, non_blocking=True).unbind(1)
    areas = heights * widths
    rows, columns = torch.arange(high, device=device), torch.arange(wide, device=device)
    places = (areas.cumsum(0) - areas)[:, None, None] + rows[:, None] * widths[:, None, None] + columns
    images = pixels[places.clamp_(max=len(pixels) - 1)].float()  # [N, H, W, 3]; what lies beyond a part has no weight
    across = _weights(widths, size, wide)
    across = torch.where(flipped[:, None, None] == 1, across.flip(1), across)
    lines = (_weights(heights, size, high) @ images.flatten(2)).unflatten(2, (wide, 3))
    return torch.einsum("nswc,ntw->ncst", lines, across).round_().to(torch.uint8)


def _weights(lengths: Tensor, size: int, longest: int) -> Tensor:
    """What each of `longest` pixels counts in each of S pixels: [N, S, longest], rows of sum 1.

    Antialiased linear interpolation: a triangle around the centre of the new pixel, as wide as a pixel on each side,
    of the old pixels or of the new ones, whichever are larger.
    """
    scale = (lengths / size)[:, None, None]
    centres = scale * (torch.arange(size, device=lengths.device)[:, None] + 0.5)
    pixels = torch.arange(longest, device=lengths.device) + 0.5
    weights = (1 - (pixels - centres).abs() / scale.clamp(min=1)).clamp(min=0)
    weights = weights * (pixels < lengths[:, None, None])
    return weights / weights.sum(-1, keepdim=True)
