"""The Triton kernels against plain float64: interpreted on a CPU, and on a GPU where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mmpareto.integration import MMPareto, diagnostics, gramian, mmpareto


def gradients(size: float, generator: torch.Generator, device: str) -> list[Tensor]:
    """Large and small ones of several forms; half of the first is zero."""
    shapes = ((300, 301), (64, 33, 8, 8), (70_001,), (5,), (4, 3, 2, 5))
    drawn = [torch.randn(shape, generator=generator) for shape in shapes]
    drawn[0][:150] = 0
    drawn[1], drawn[4] = (drawn[t].to(memory_format=torch.channels_last) for t in (1, 4))
    return [(gradient * size).to(device) for gradient in drawn]


def check(device: str) -> None:
    """Gramians and combinations of gradients of like and of very different sizes."""
    for joint_size, unimodal_size in ((1.0, 1.0), (1e-30, 1e18), (1e-20, 1e-20)):
        generator = torch.Generator().manual_seed(0)
        joint, unimodal = (gradients(size, generator, device) for size in (joint_size, unimodal_size))
        unimodal[2] = ((-unimodal_size / joint_size) * joint[2].double()).float()  # opposed, but for rounding
        pairs = [(a.cpu().double().numpy(), b.cpu().double().numpy()) for a, b in zip(joint, unimodal, strict=True)]
        gramians = gramian.gramians(joint, unimodal, torch.device(device)).cpu().numpy()
        for actual, (a, b) in zip(gramians, pairs, strict=True):
            expected = [[np.vdot(a, a), np.vdot(a, b)], [np.vdot(a, b), np.vdot(b, b)]]
            np.testing.assert_allclose(actual, expected, rtol=1e-11)
        sizes = torch.tensor([joint_size, unimodal_size], dtype=torch.float64)
        coefficients = torch.randn(5, 2, generator=generator, dtype=torch.float64) / sizes
        combinations = [x * a + y * b for (a, b), (x, y) in zip(pairs, coefficients.tolist(), strict=True)]
        strides = [gradient.stride() for gradient in joint]
        combined = gramian.combine_all(joint, unimodal, coefficients.to(device))
        for gradient, values, stride in zip(combined, combinations, strides, strict=True):
            assert gradient is not None
            np.testing.assert_allclose(gradient.cpu().numpy(), values, rtol=2e-7, atol=1e-30)
            assert gradient.stride() == stride
        overlapping = torch.ones(1, device=device).expand(70_000)  # a gradient whose elements are one number
        assert gramian.gramians([overlapping], [overlapping], torch.device(device))[0, 0, 1] == 70_000


def check_gramians(device: str) -> None:
    """Coefficients and diagnostics of Gramians of all sizes, with zeros, equal and opposed gradients."""
    generator = torch.Generator().manual_seed(1)
    for size in (1e-200, 1e-30, 1.0, 1e30, 1e200):
        for tensors in (1, 5, 62):
            joint, unimodal, along = torch.randn(3, tensors, 4, generator=generator, dtype=torch.float64)
            for other in (unimodal, unimodal - along - joint, joint, -joint, -3 * joint + 1e-6 * along, 0 * joint):
                pair = torch.stack((joint, other), 1) * size**0.5
                gramians = pair @ pair.mT
                gramians[0] *= 0 if tensors == 5 else 1
                routine = MMPareto(gamma=1.3)
                coefficients = routine._chosen(gramians, gramians)
                actual = routine.coefficients(gramians.to(device))
                assert torch.allclose(actual.cpu(), coefficients, rtol=1e-9, atol=0)
                total, weights = gramians.sum(0), coefficients.sum(0)
                norms = total.diagonal().sqrt()
                cosine = (total[0, 1] / norms.prod()).nan_to_num().clamp(-1, 1)
                measured = diagnostics.diagnose(gramians.to(device), coefficients.to(device))
                expected = (cosine, *norms, weights[0] / weights.sum())
                for value, ours in zip(expected, measured[:4], strict=True):
                    assert torch.allclose(ours.cpu(), value, rtol=1e-9, atol=1e-12)
                assert measured.conflict.item() == (total[0, 1] < 0).item()


def test_interpreted_on_a_cpu() -> None:
    pytest.importorskip("triton")
    code = str(Path(mmpareto.__file__).parents[2])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": code}
    subprocess.run([sys.executable, __file__], env=environment, check=True, timeout=120)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; this machine has none")
def test_on_a_gpu() -> None:
    assert gramian.kernels_on(torch.device("cuda", 0)) is not None
    check("cuda:0")
    check_gramians("cuda:0")


def test_without_triton_pytorch_does_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gramian, "_values_are_read", lambda device: False)
    check("cpu")
    check_gramians("cpu")


if __name__ == "__main__":  # with Triton's interpreter
    from mmpareto.integration import kernels

    assert kernels.available(torch.device("cpu"))
    for module in (gramian, mmpareto, diagnostics):
        module.kernels_on = lambda device: kernels  # type: ignore[attr-defined]
    gramian._values_are_read = lambda device: False
    check("cpu")
    check_gramians("cpu")
