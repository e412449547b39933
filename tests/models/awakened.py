"""Models whose output layers, which start at zero, have some weight, so that their outputs say something."""

import torch
from torch import nn


def awake(model):
    torch.manual_seed(1)
    for name in ("output", "xent_output"):
        if getattr(model, name, None) is not None:
            nn.init.normal_(getattr(model, name).weight)
    return model.eval()
