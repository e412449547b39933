"""Backstitch over natural gradient in Lightning: ``python lightning_backstitch.py``.

Automatic optimisation passes a closure to ``optimizer.step``, so nothing has to be written for it. Use precision
"bf16-mixed": under "16-mixed" Lightning runs the closure itself, once, and backstitch refuses the step.
"""

import lightning
import torch
from _problem import backstitch, loader, mean_loss, network

from hemstitch.errors import MisuseError


class Classifier(lightning.LightningModule):
    def __init__(self, manual=False, dropout=0.1):
        super().__init__()
        self.model = network(dropout)
        self.automatic_optimization = not manual

    def configure_optimizers(self):
        if self.trainer.accumulate_grad_batches > 1:   # a second pass would not see the micro-batches before the last
            raise MisuseError("accumulate_grad_batches > 1 does not go with two passes: use larger batches, or "
                              "manual optimisation with phases()")
        return backstitch(self.model)

    def loss(self, batch):
        inputs, targets = batch
        return torch.nn.functional.cross_entropy(self.model(inputs).float(), targets)

    def training_step(self, batch, batch_index):
        if self.automatic_optimization:
            return self.loss(batch)
        optimizer = self.optimizers()

        def closure():                              # manual optimisation: the same closure as in a loop of one's own
            optimizer.zero_grad()
            loss = self.loss(batch)
            self.manual_backward(loss)
            return loss

        optimizer.step(closure)

    def on_save_checkpoint(self, checkpoint):       # Lightning saves the optimizer; the Fisher estimates are no part
        checkpoint["natural_gradient"] = self.optimizers().optimizer.natural_gradient.state_dict()

    def on_load_checkpoint(self, checkpoint):
        self.restored = checkpoint["natural_gradient"]

    def on_train_start(self):
        if hasattr(self, "restored"):
            self.optimizers().optimizer.natural_gradient.load_state_dict(self.restored)


def train(epochs=3, manual=False, precision="32-true", dropout=0.1, **options):
    module = Classifier(manual, dropout)
    trainer = lightning.Trainer(max_epochs=epochs, accelerator="cpu", precision=precision, logger=False,
                                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                                **options)
    trainer.fit(module, loader())
    return module.model, mean_loss(module.model)


if __name__ == "__main__":
    print(f"automatic {train()[1]:.4f}  manual {train(manual=True)[1]:.4f}  "
          f"bf16 {train(precision='bf16-mixed')[1]:.4f}")
