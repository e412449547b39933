"""The contract suite holds for torch's own optimizers, and catches optimizers that break it."""

import pytest
import torch

from hemstitch.testing import OptimizerContract


class TestSGD(OptimizerContract):
    bad_options = ({"lr": -1.0}, {"momentum": -1.0}, {"weight_decay": -1.0})

    def make(self, params, **options):
        return torch.optim.SGD(params, **{"lr": 0.1, "momentum": 0.5} | options)


class TestAdam(OptimizerContract):
    bad_options = ({"lr": -1.0}, {"betas": (1.0, 0.9)})

    def make(self, params, **options):
        return torch.optim.Adam(params, **{"lr": 0.01} | options)


class TestAdamW(OptimizerContract):
    def make(self, params, **options):
        return torch.optim.AdamW(params, **{"lr": 0.01} | options)


class TestRMSprop(OptimizerContract):
    def make(self, params, **options):
        return torch.optim.RMSprop(params, **{"lr": 0.01} | options)


class TestAdagrad(OptimizerContract):
    def make(self, params, **options):
        return torch.optim.Adagrad(params, **{"lr": 0.05} | options)


class Broken(torch.optim.SGD):
    """SGD with one fault at a time."""

    fault = ""

    def __init__(self, params, lr=0.1, **options):
        super().__init__(params, lr=abs(lr) if self.fault == "options" else lr, momentum=0.5, **options)

    def state_dict(self):
        state = super().state_dict()
        if self.fault == "state":
            state["state"] = {}
        return state

    def step(self, closure=None):
        loss = None if closure is None else closure() if self.fault == "grad mode" else torch.enable_grad()(closure)()
        for group in self.param_groups:
            group["lr"] = 0.1 if self.fault == "learning rate" else group["lr"]
            for p in group["params"]:
                if self.fault == "no gradient" and p.grad is None:
                    p.data.add_(1.0)
        if self.fault == "random":
            torch.rand(1)
        super().step()
        return 0.0 if self.fault == "loss" else loss


@pytest.mark.parametrize("fault, test", [
    ("options", "test_refuses_bad_options"),
    ("state", "test_resumes_equal_to_the_bit"),
    ("loss", "test_closure_runs_as_often_as_declared_and_its_loss_comes_back"),
    ("no gradient", "test_leaves_parameters_without_gradient"),
    ("no gradient", "test_leaves_frozen_parameters"),
    ("learning rate", "test_groups_have_their_own_learning_rate"),
    ("learning rate", "test_follows_a_scheduler"),
    ("random", "test_leaves_global_random_numbers_alone"),
])
def test_a_fault_is_caught(fault, test):
    optimizer_class = type("Faulty", (Broken,), {"fault": fault})
    make = lambda self, params, **options: optimizer_class(params, **options)
    contract = type("Contract", (OptimizerContract,), {"make": make})
    with pytest.raises(AssertionError):
        getattr(contract(), test)()


def test_a_declaration_that_does_not_hold_is_caught():
    """torch's SGD lets NaN into the parameters: declaring otherwise fails the suite."""
    optimizer_class = type("Boasting", (torch.optim.SGD,), {"refuses_nonfinite": True})
    contract = type("Contract", (OptimizerContract,), {"make": lambda self, params: optimizer_class(params, lr=0.1)})
    with pytest.raises(AssertionError, match="times nan"):
        contract().test_refuses_gradients_that_are_not_finite()
