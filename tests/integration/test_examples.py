"""The examples for other libraries' loops: equal to a plain loop, and two processes equal to one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mmpareto.integration import MMPareto

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
COMMANDS = {
    "lightning": {
        1: [sys.executable, "examples/lightning_module.py"],
        2: [sys.executable, "examples/lightning_module.py", "--devices", "2"],
    },
    "accelerate": {
        1: [sys.executable, "examples/accelerate_loop.py"],
        2: [*TORCHRUN, "examples/accelerate_loop.py"],
    },
}
BF16 = {"lightning": ["--precision", "bf16-mixed"], "accelerate": ["--mixed_precision", "bf16"]}

pytestmark = pytest.mark.slow


def trained(command: list[str], file: Path) -> Tensor:
    """All weights that a command saves, as one vector."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "code"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--save", str(file)], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return torch.nn.utils.parameters_to_vector(torch.load(file).values())


def plain_loop(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The examples' training without any library."""
    monkeypatch.syspath_prepend(EXAMPLES)
    from small_classifier import Classifier, samples

    torch.manual_seed(0)
    model, integrator = Classifier(), MMPareto(gamma=1.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(3):
        for audio, visual, label in torch.utils.data.DataLoader(samples(), 16):
            joint, unimodal = model(audio, visual)
            integrator.backward(
                cross_entropy(joint, label),
                {name: cross_entropy(logits, label) for name, logits in unimodal.items()},
                encoders=model.encoders,
                model=model,
            )
            optimizer.step()
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.mark.parametrize("library", COMMANDS)
def test_an_example_trains_as_a_plain_loop_does(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(library, reason=f"pip install '.[{library}]'")
    expected = plain_loop(monkeypatch)
    for processes, command in COMMANDS[library].items():
        weights = trained(command, tmp_path / f"{processes}.pt")
        torch.testing.assert_close(weights, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("library", COMMANDS)
def test_an_example_trains_in_bf16(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes are as near to float32 as bf16's rounding allows, and not equal to it."""
    pytest.importorskip(library, reason=f"pip install '.[{library}]'")
    expected = plain_loop(monkeypatch)
    weights = trained([*COMMANDS[library][2], *BF16[library]], tmp_path / "bf16.pt")
    assert 1e-5 < (weights - expected).abs().max() < 0.02
