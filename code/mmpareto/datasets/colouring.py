"""Coloured-and-gray digits: colour as a shortcut that holds in training and breaks afterwards.

Follows the construction of coloured MNIST in "Learning Not to Learn" (Kim et al., CVPR 2019): every class has a mean
colour; a training digit is painted in a colour drawn around the mean of its own class, a digit of validation or test in
one drawn around the mean of a class picked at random. Used here for scikit-learn's digits and for MNIST alike.
"""

import colorsys

import numpy as np

from mmpareto.datasets.base import DatasetError

# Mean colour of each class, RGB in 0 .. 1: ten hues at equal distances round the colour wheel.
MEAN_COLOURS = np.array([colorsys.hsv_to_rgb(digit / 10, 1, 1) for digit in range(10)]).round(1)


def colours(
    labels: np.ndarray,
    variance: float,
    biased: bool,
    generator: np.random.Generator,
    means: np.ndarray = MEAN_COLOURS,
) -> np.ndarray:
    """A colour for each digit.

    labels    integers in 0 .. 9, [N].
    variance  of each colour channel around the mean colour (channels in 0 .. 1); the draw is clipped to 0 .. 1.
    biased    True: around the mean of the digit's own class (training). False: of a random class (validation, test).
    means     mean colour of each class, [10, 3] in 0 .. 1.
    Returns float64 [N, 3] in 0 .. 1.

    Raises DatasetError for a variance outside 0 .. 1.
    """
    if not 0 <= variance <= 1:
        raise DatasetError(f"the colour variance must lie between 0 and 1, found {variance}")
    classes = labels if biased else generator.integers(0, len(means), size=len(labels))
    noise = generator.normal(0.0, np.sqrt(variance), size=(len(labels), 3))
    return np.clip(means[classes] + noise, 0.0, 1.0)


def paint(gray: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Gray images in colour: black stays black, white becomes the colour.

    gray uint8 [N, H, W], colour [N, 3] in 0 .. 1; returns uint8 [N, 3, H, W].
    """
    # one channel at a time: the whole product in float64 would be 24 times the size of the images
    painted = np.empty((len(gray), 3, *gray.shape[1:]), dtype=np.uint8)
    for channel in range(3):
        scaled = gray.astype(np.float32) * colour[:, channel, None, None].astype(np.float32)
        painted[:, channel] = np.rint(scaled, out=scaled)
    return painted
