"""Missing modalities and varying lengths, from the dataset to the losses: against plain loops over samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from training.test_training_processes import CPU, Points, model

from mmpareto.datasets import Batches, DatasetError, Modality, MultimodalDataset, batch_to_device, collate, to_device
from mmpareto.evaluation.scores import Scores
from mmpareto.inputs import Padded
from mmpareto.methods import build_method
from mmpareto.models import cross_entropies
from mmpareto.training.data import Loader, SharedBatches
from mmpareto.training.step import TrainingStep

LENGTHS = (3, 1, 7, 2, 5, 4, 1, 6, 2, 3)


class Sequences(MultimodalDataset):
    """Sequences [l, 2], tokens [l] and vectors."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.classes = ["a", "b"]
        self.modalities = {
            "sensor": Modality("sequence", (7, 2), (1.0, 2.0), (2.0, 4.0)),
            "text": Modality("tokens", (7, 11)),
            "plain": Modality("vector", (3,)),
        }
        self.labels = np.arange(len(LENGTHS)) % 2
        self.lengths = np.array(LENGTHS)
        self.samples = [
            {
                "sensor": torch.randn(length, 2, generator=generator),
                "text": torch.randint(1, 11, (length,), generator=generator),
                "plain": torch.randn(3, generator=generator),
            }
            for length in LENGTHS
        ]

    def __getitem__(self, index: int) -> Any:
        return {"inputs": self.samples[index], "label": int(self.labels[index]), "id": str(index)}


def loader(data: MultimodalDataset, batch_size: int = 4, **arguments: Any) -> Loader:
    settings = {"shuffle": False, "seed": 0, "workers": 0, "pin": False} | arguments
    return Loader(data, batch_size, **settings)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_padded_by_kind(workers: int) -> None:
    data = Sequences()
    batches = loader(data, workers=workers)
    start = 0
    for batch in batches.epoch(0):
        sensor, text = batch["inputs"]["sensor"], batch["inputs"]["text"]
        assert isinstance(sensor, Padded)
        assert isinstance(text, Padded)
        assert isinstance(batch["inputs"]["plain"], Tensor)
        assert text.values.dtype == torch.int64
        for row in range(len(batch["label"])):
            sample, length = data.samples[start + row], LENGTHS[start + row]
            assert sensor.mask[row].tolist() == [place < length for place in range(sensor.mask.shape[1])]
            assert torch.equal(sensor.values[row, :length], sample["sensor"])
            assert torch.equal(text.values[row, :length], sample["text"])
            assert not sensor.values[row, length:].any()
        start += len(batch["label"])
    batches.close()


class Mixed(MultimodalDataset):
    """Arrays of several types in one modality, as a column of .npy files may have them."""

    samples = (
        torch.tensor([0, 51, 255], dtype=torch.uint8),
        torch.tensor([0.0, 0.2, 1.0]),
        torch.tensor([0.0, 0.5, 1.0], dtype=torch.float16),
        torch.tensor([0.0, 1e5, 1.0], dtype=torch.float64),
    )

    def __init__(self) -> None:
        super().__init__()
        self.modalities = {"flat": Modality("vector", (3,)), "long": Modality("sequence", (9, 3))}
        self.classes = ["a", "b"]
        self.labels = np.array([0, 1, 0, 1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        value = self.samples[index]
        return {"inputs": {"flat": value, "long": value.repeat(index + 1, 1)}, "label": 0, "id": str(index)}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("first", range(4))
def test_samples_of_several_types_are_the_same_in_every_batch(workers: int, first: int) -> None:
    data = Mixed()
    data.samples = (*data.samples[first:], *data.samples[:first])
    batches = loader(data, workers=workers)
    (batch,) = batches.epoch(0)
    batches.close()
    moved = to_device(batch["inputs"], data.modalities, CPU)
    for row, value in enumerate(data.samples):
        alone = collate([data[row]], ["long"])
        expected = to_device(alone["inputs"], data.modalities, CPU)
        assert torch.equal(moved["flat"][row], expected["flat"][0])
        assert torch.equal(moved["long"].values[row, : row + 1], expected["long"].values[0])
        assert torch.equal(expected["flat"][0], value.float() / (255 if value.dtype == torch.uint8 else 1))


def test_whole_numbers_of_several_types_stay_whole() -> None:
    samples = [
        {"inputs": {"ids": torch.tensor([1, 2], dtype=kind)}, "label": 0, "id": "0"}
        for kind in (torch.int32, torch.int64)
    ]
    ids = collate(samples)["inputs"]["ids"]
    assert ids.dtype == torch.int64
    assert ids.tolist() == [[1, 2], [1, 2]]


def test_sequences_are_normalised_by_feature_and_padding_stays_zero() -> None:
    data = Sequences()
    batch = collate([data[0], data[1]], ["sensor", "text"])
    before = batch["inputs"]["sensor"].values.clone()
    moved = to_device(batch["inputs"], data.modalities, CPU)
    assert torch.allclose(moved["sensor"].values[0], (before[0] - torch.tensor([1.0, 2.0])) / torch.tensor([2.0, 4.0]))
    assert not moved["sensor"].values[1, 1:].any()
    assert torch.equal(batch["inputs"]["sensor"].values, before)
    assert moved["text"].values.dtype == torch.int64


def test_shuffled_batches_hold_samples_of_similar_length() -> None:
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 500, 1003)
    kept: dict[str, Any] = {"shuffle": True, "seed": 1, "rank": 0, "size": 1, "training": True}
    sampler = SharedBatches(1003, 10, **kept, lengths=lengths)
    batches = list(sampler)
    assert sorted(index for batch in batches for index in batch) == list(range(1003))
    assert [len(batch) for batch in batches] == [10] * 100 + [3]
    spread = np.mean([np.ptp(lengths[batch]) for batch in batches[:-1]])
    plain = np.mean([np.ptp(lengths[batch]) for batch in list(SharedBatches(1003, 10, **kept))[:-1]])
    assert spread < plain / 10
    means = [lengths[batch].mean() for batch in batches[:-1]]
    assert abs(np.corrcoef(means, np.arange(100))[0, 1]) < 0.3  # long batches do not come last
    again, other = SharedBatches(1003, 10, **kept, lengths=lengths), SharedBatches(1003, 10, **kept, lengths=lengths)
    other.epoch = 1
    assert list(again) == batches
    assert list(other) != batches
    shares = [SharedBatches(1003, 10, **kept | {"rank": rank, "size": 2}, lengths=lengths) for rank in range(2)]
    for whole, *parts in zip(batches, *shares, strict=True):
        assert sorted(whole) == sorted(index for part in parts for index in part)


def test_dropped_modalities_follow_rate_and_seed_and_leave_each_sample_one() -> None:
    data = Points(4000)
    data.drop_modalities({"x": 0.3, "y": 0.9}, 0, "train")
    absent = np.stack([data.absent["x"], data.absent["y"]])
    assert not absent.all(0).any()
    assert absent[1].mean() == pytest.approx(0.9 - 0.27 / 2, abs=0.02)  # half of those that would lose both keep it
    again, other, val = Points(4000), Points(4000), Points(4000)
    again.drop_modalities({"x": 0.3, "y": 0.9}, 0, "train")
    other.drop_modalities({"x": 0.3, "y": 0.9}, 1, "train")
    val.drop_modalities({"x": 0.3, "y": 0.9}, 0, "val")
    assert np.array_equal(again.absent["x"], data.absent["x"])
    assert not np.array_equal(other.absent["x"], data.absent["x"])
    assert not np.array_equal(val.absent["x"], data.absent["x"])
    with pytest.raises(DatasetError, match="--missing z: the modalities are x, y"):
        data.drop_modalities({"z": 0.1}, 0, "train")


def test_what_a_sample_lacks_by_itself_stays_absent() -> None:
    data = Points(1000)
    data.absent = {"x": np.arange(1000) % 2 == 0}
    data.drop_modalities({"y": 0.5}, 0, "train")
    assert data.absent["x"].tolist() == [index % 2 == 0 for index in range(1000)]
    assert not data.absent["y"][::2].any()
    assert data.absent["y"][1::2].mean() == pytest.approx(0.5, abs=0.06)


def test_unimodal_losses_and_scores_count_present_samples() -> None:
    data = Points(12)
    data.absent = {"x": np.arange(12) % 3 == 0}
    net = model(0)
    inputs, label, present = batch_to_device(Batches(data).__getitems__(list(range(12))), data.modalities, CPU)
    assert present is not None
    output = net(inputs, present)
    losses = cross_entropies(output, label)
    having = ~torch.from_numpy(data.absent["x"])
    assert torch.allclose(losses.unimodal["x"], F.cross_entropy(output.unimodal["x"][having], label[having]))
    assert torch.allclose(losses.unimodal["y"], F.cross_entropy(output.unimodal["y"], label))
    scores = Scores(["x", "y"], CPU)
    for part in (slice(0, 5), slice(5, 12)):
        cut = {name: mask[part] for name, mask in present.items()}
        piece = net({name: value[part] for name, value in inputs.items()}, cut)
        values = cross_entropies(piece, label[part])
        scores.update(values.joint, values.unimodal, piece.joint, piece.unimodal, label[part], cut)
    result = scores.compute()
    right = (output.unimodal["x"].argmax(1) == label)[having]
    assert result["x"]["accuracy"] == pytest.approx(100 * right.double().mean().item())
    assert result["x"]["loss"] == pytest.approx(losses.unimodal["x"].item())
    assert result["joint"]["loss"] == pytest.approx(losses.joint.item())
    assert result["x"]["present"] == pytest.approx(100 * 8 / 12)
    assert [name for name, score in result.items() if "present" in score] == ["x"]


@pytest.mark.parametrize("method", ["mmpareto", "uniform", "mmcosine", "ensemble"])
@pytest.mark.parametrize("parts", [2, 5])
def test_micro_batches_give_the_gradient_of_the_whole_batch(method: str, parts: int) -> None:
    data = Points(12)
    data.drop_modalities({"x": 0.5, "y": 0.2}, 0, "train")
    inputs, label, present = batch_to_device(Batches(data).__getitems__(list(range(12))), data.modalities, CPU)
    results = []
    for accumulate in (1, parts):
        chosen = build_method(method)
        net = model(0, chosen.fusion)
        chosen.setup(net, 0, 2)
        step = TrainingStep(net, chosen, torch.optim.SGD(net.parameters(), lr=0.0), accumulate=accumulate)
        done = step(inputs, label, present=present)
        gradients = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
        results.append((gradients, done.losses))
    (whole, losses), (pieces, others) = results
    assert whole.keys() == pieces.keys()
    assert all(torch.allclose(value, pieces[name], atol=1e-7) for name, value in whole.items())
    assert torch.allclose(losses.joint, others.joint)
    assert all(torch.allclose(value, others.unimodal[name]) for name, value in losses.unimodal.items())
