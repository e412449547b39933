"""The scripts of examples/trainers: Lightning, accelerate and Hugging Face's Trainer give what a plain loop gives."""

import importlib
import importlib.util
from pathlib import Path

import pytest
import torch

from hemstitch.errors import MisuseError
from hemstitch.optim import HessianFree

EXAMPLES = Path(__file__).parents[2] / "examples" / "trainers"
pytestmark = pytest.mark.filterwarnings("ignore")  # those of the trainers


def script(name, package=None):
    """A script of the folder, if the trainer that it is for is installed."""
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install {package}")
    return importlib.import_module(name)


@pytest.fixture(autouse=True)
def on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


def assert_same(model, bf16=False, dropout=0.1):
    expected, _ = importlib.import_module("_problem").plain_loop(bf16=bf16, dropout=dropout)
    for (name, ours), theirs in zip(expected.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_lightning_equals_a_plain_loop(manual, bf16):
    lightning = script("lightning_backstitch", "lightning")
    model, _ = lightning.train(manual=manual, precision="bf16-mixed" if bf16 else "32-true")
    assert_same(model, bf16)


def test_lightning_with_accumulation_is_refused():
    with pytest.raises(MisuseError, match="two passes"):
        script("lightning_backstitch", "lightning").train(accumulate_grad_batches=2)


def test_lightning_hessian_free_is_refused_with_a_plain_closure_and_works_with_roles():
    module = script("lightning_backstitch", "lightning")

    class WithHessianFree(module.Classifier):
        def configure_optimizers(self):
            return HessianFree(self.model.parameters(), max_cg=5)

        def training_step(self, batch, batch_index):
            if self.automatic_optimization:
                return self.loss(batch)
            inputs, targets = batch

            def closure(role):
                yield self.model(inputs), lambda out: torch.nn.functional.cross_entropy(
                    out, targets, reduction="sum"), len(inputs)

            self.optimizers().optimizer.step(closure)

        def on_save_checkpoint(self, checkpoint):
            pass

    def fit(network):
        module.lightning.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                                 enable_progress_bar=False, enable_model_summary=False).fit(network, module.loader())

    with pytest.raises(MisuseError, match="role"):
        fit(WithHessianFree())
    network = WithHessianFree(manual=True, dropout=0.0)
    before = module.mean_loss(network.model)
    fit(network)
    assert module.mean_loss(network.model) < before


@pytest.fixture
def accelerate():
    module = script("accelerate_backstitch", "accelerate")
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    yield module
    AcceleratorState._reset_state(True)


@pytest.mark.parametrize("bf16", [False, True])
def test_accelerate_equals_a_plain_loop(accelerate, bf16):
    model, _ = accelerate.train(mixed_precision="bf16" if bf16 else "no")
    assert_same(model, bf16)


def test_accelerate_accumulates_in_phases(accelerate):
    assert accelerate.train_by_phases()[1] < 1.0


@pytest.fixture
def hugging_face(accelerate):
    return script("hugging_face_backstitch", "transformers")


@pytest.mark.parametrize("bf16", [False, True])
def test_hugging_face_equals_a_plain_loop(hugging_face, bf16):
    model, _ = hugging_face.train(bf16=bf16, dropout=0.0)
    assert_same(model, bf16, dropout=0.0)


def test_hugging_face_without_the_adapter_or_with_accumulation_is_refused(hugging_face, monkeypatch):
    with pytest.raises(MisuseError, match="phases"):
        hugging_face.train(gradient_accumulation_steps=2)
    monkeypatch.setattr(hugging_face, "BackstitchTrainer", hugging_face.Trainer)
    with pytest.raises(MisuseError, match="due for two passes"):
        hugging_face.train()


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True])
def test_two_processes_end_with_the_same_network(bf16):
    first, second = script("ddp_backstitch").train(epochs=1, bf16=bf16)
    assert torch.equal(first["parameters"], second["parameters"])
