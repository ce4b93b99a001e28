"""MMPareto with Hugging Face Accelerate: mixed precision, one or several processes.

pip install '.[accelerate]'
python examples/accelerate_loop.py
torchrun --nproc_per_node 2 examples/accelerate_loop.py --mixed_precision bf16
"""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from small_classifier import Classifier, samples
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from mmpareto.integration import MMPareto


def main() -> None:
    """Train on random data."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--gpu", action="store_true", help="train on GPUs")
    flags.add_argument("--mixed_precision", default="no", help="or bf16")
    flags.add_argument("--batch_size", type=int, default=16, help="over all processes")
    flags.add_argument("--save", help="file for the weights")
    arguments = flags.parse_args()
    accelerator = Accelerator(cpu=not arguments.gpu, mixed_precision=arguments.mixed_precision)
    set_seed(0)  # the same weights on all processes
    model = Classifier().to(accelerator.device)
    integrator = MMPareto(gamma=1.5)
    # the model is not prepared: Accelerate would wrap it, and the integrator averages the gradients itself
    optimizer, loader = accelerator.prepare(
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        DataLoader(samples(), arguments.batch_size // accelerator.num_processes),
    )
    for epoch in range(3):
        for audio, visual, label in loader:
            with accelerator.autocast():
                joint, unimodal = model(audio, visual)
                joint_loss = cross_entropy(joint, label)
                losses = {name: cross_entropy(logits, label) for name, logits in unimodal.items()}
            integrator.backward(joint_loss, losses, encoders=model.encoders, model=model)
            optimizer.step()
        accelerator.print(f"epoch {epoch + 1}: joint loss {accelerator.reduce(joint_loss.detach(), 'mean').item():.4f}")
    if arguments.save:
        accelerator.wait_for_everyone()
        accelerator.save(model.state_dict(), arguments.save)
    accelerator.end_training()


if __name__ == "__main__":
    main()
