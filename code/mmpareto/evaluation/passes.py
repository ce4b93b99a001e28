"""The evaluation loop: a model's outputs, batch by batch."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import torch

from mmpareto.datasets import Batch, DeviceBatch, Modality, Rows, batch_to_device
from mmpareto.models import MultimodalModel, Output

B = TypeVar("B", bound=Batch | Rows)


def outputs(
    model: MultimodalModel,
    batches: Iterable[B],
    modalities: Mapping[str, Modality],
    device: torch.device,
    amp: torch.dtype | None = None,
    gradients: bool = False,
) -> Iterator[tuple[B, DeviceBatch, Output]]:
    """Run a model over batches, in evaluation mode.

    Args:
        amp: type of automatic mixed precision, as in training.
        gradients: whether the outputs have gradients.

    Yields:
        Each batch as it was loaded, on the device, and the model's output. Nothing waits for the device.
    """
    model.eval()
    for batch in batches:
        yield batch, *output_of(model, batch, modalities, device, amp, gradients)


def output_of(
    model: MultimodalModel,
    batch: Batch | Rows,
    modalities: Mapping[str, Modality],
    device: torch.device,
    amp: torch.dtype | None = None,
    gradients: bool = False,
) -> tuple[DeviceBatch, Output]:
    """The batch on the device and the model's output for it, in the mode that the model is in.

    Arguments as for `outputs`.
    """
    moved = batch_to_device(batch, modalities, device)
    with torch.set_grad_enabled(gradients), torch.autocast(device.type, amp, enabled=amp is not None):
        return moved, model(moved.inputs, moved.present)
