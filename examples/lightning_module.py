"""MMPareto in a LightningModule: manual optimisation, mixed precision, one or several processes.

pip install '.[lightning]'
python examples/lightning_module.py --devices 2 --precision bf16-mixed
"""

from __future__ import annotations

import argparse

import lightning
import torch
from lightning.pytorch.strategies import DDPStrategy
from small_classifier import Classifier, samples
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler

from mmpareto.integration import MMPareto


class Balanced(lightning.LightningModule):
    """The classifier, trained by MMPareto."""

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.batch_size = batch_size  # over all processes
        self.automatic_optimization = False
        self.model = Classifier()
        self.integrator = MMPareto(gamma=1.5)

    def training_step(self, batch: list[Tensor], _: int) -> None:
        """One step."""
        audio, visual, label = batch
        joint, unimodal = self.model(audio, visual)
        joint_loss = cross_entropy(joint, label)
        diagnostics = self.integrator.backward(  # in the place of self.manual_backward(loss)
            joint_loss,
            {name: cross_entropy(logits, label) for name, logits in unimodal.items()},
            encoders=self.model.encoders,
            model=self.model,
        )
        self.optimizers().step()
        self.log("loss/joint", joint_loss, prog_bar=True, sync_dist=True)
        self.log_dict({f"cosine/{name}": encoder.cosine.float() for name, encoder in diagnostics.items()})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD on all parameters."""
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Each process takes every n-th sample, in order: n processes see the batches of one."""
        count, rank = self.trainer.world_size, self.trainer.global_rank
        data = samples()
        return DataLoader(data, self.batch_size // count, sampler=DistributedSampler(data, count, rank, shuffle=False))


class Processes(DDPStrategy):
    """Several processes without DistributedDataParallel: the integrator averages the gradients itself."""

    def configure_ddp(self) -> None:
        """Leave the model unwrapped. All processes start with the same weights because they have the same seed."""


def main() -> None:
    """Train on random data."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--devices", type=int, default=1)
    flags.add_argument("--accelerator", default="cpu", help="gpu on machines that have one")
    flags.add_argument("--precision", default="32-true", help="or bf16-mixed")
    flags.add_argument("--batch_size", type=int, default=16, help="over all processes")
    flags.add_argument("--save", help="file for the weights")
    arguments = flags.parse_args()
    lightning.seed_everything(0)
    module = Balanced(arguments.batch_size)
    trainer = lightning.Trainer(
        accelerator=arguments.accelerator,
        devices=arguments.devices,
        strategy=Processes() if arguments.devices > 1 else "auto",
        precision=arguments.precision,
        use_distributed_sampler=False,
        max_epochs=3,
        log_every_n_steps=8,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(module)
    if trainer.is_global_zero:
        print({name: round(float(value), 4) for name, value in trainer.callback_metrics.items()})
        if arguments.save:
            torch.save(module.model.state_dict(), arguments.save)


if __name__ == "__main__":
    main()
