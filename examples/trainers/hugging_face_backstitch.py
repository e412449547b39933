"""Backstitch over natural gradient in Hugging Face's Trainer. ``python hugging_face_backstitch.py``

The Trainer makes one pass and calls ``optimizer.step()`` itself. ``up_to_step`` makes what comes before that step: one
pass, or the first pass with its step and then the second.
"""

import tempfile

import torch
from _problem import backstitch, loader, mean_loss, network
from transformers import Trainer, TrainingArguments


class BackstitchTrainer(Trainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        def closure():
            loss = super(BackstitchTrainer, self).training_step(model, inputs, num_items_in_batch)
            self.accelerator.clip_grad_norm_(model.parameters(), self.args.max_grad_norm)
            return loss

        return self.optimizer.optimizer.up_to_step(closure)     # inside accelerate's wrapper


class Classifier(torch.nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.layers = network(dropout)

    def forward(self, inputs, labels):
        logits = self.layers(inputs)
        return {"loss": torch.nn.functional.cross_entropy(logits.float(), labels), "logits": logits}


def train(epochs=3, bf16=False, dropout=0.1, **options):
    model = Classifier(dropout)
    data = [{"inputs": x, "labels": y} for x, y in loader().dataset]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, num_train_epochs=epochs, per_device_train_batch_size=32, use_cpu=True,
                                      bf16=bf16, lr_scheduler_type="constant", max_grad_norm=1e9, save_strategy="no",
                                      report_to="none", disable_tqdm=True, train_sampling_strategy="sequential",
                                      **options)
        trainer = BackstitchTrainer(model, arguments, train_dataset=data, optimizers=(backstitch(model), None))
        trainer.train()
    return model.layers, mean_loss(model.layers)


if __name__ == "__main__":
    print(f"float32 {train()[1]:.4f}  bf16 {train(bf16=True)[1]:.4f}")
