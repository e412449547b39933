"""Deep sigmoid networks and how to grow them layer by layer.

Sigmoid networks of five and more layers hardly train from a random start. Discriminative pretraining (Seide, Li, Chen
and Yu, ASRU 2011) trains one hidden layer with its output layer for a short while, then puts a fresh hidden layer
below a fresh output layer, trains again, and so on, before the real training begins.
"""

from __future__ import annotations

from torch import nn

from hemstitch.errors import MisuseError
from hemstitch.models._feed_forward import FeedForward, activation, initialise
from hemstitch.models._frame_stack import output_layer


class DeepSigmoid(FeedForward):
    """Sigmoid layers over 9 spliced frames: the network of Hessian-free sequence training.

    The published one is the default: 5 hidden layers of 1024 (Sainath et al. 2013, section 5.1). To pretrain, begin
    with ``hidden=(1024,)`` and `insert_layer` four times.

    Args:
        num_inputs: features per frame.
        num_outputs: pdfs.
        hidden: width of each hidden layer.
        left_context, right_context: spliced frames beside the current one.
    """

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        hidden: tuple[int, ...] = (1024,) * 5,
        *,
        left_context: int = 4,
        right_context: int = 4,
    ) -> None:
        contexts = {"left_context": left_context, "right_context": right_context}
        super().__init__(num_inputs, num_outputs, hidden, nonlinearity="sigmoid", **contexts)


def insert_layer(model: nn.Module, width: int | None = None, *, nonlinearity: str = "sigmoid") -> nn.Linear:
    """Put a fresh hidden layer below a fresh output layer, in place; make the optimizer anew afterwards.

    Args:
        model: has ``layers``, an ``nn.Sequential`` that ends in its output layer (`DeepSigmoid`, `FeedForward`, `Mlp`).
        width: units of the new layer; as many as the layer below by default.
        nonlinearity: ``relu``, ``tanh`` or ``sigmoid``.

    Returns:
        The new hidden layer's affine map.

    Raises:
        MisuseError: the model is not such a stack.
    """
    layers = getattr(model, "layers", None)
    if not isinstance(layers, nn.Sequential) or not isinstance(layers[-1], nn.Linear):
        raise MisuseError(
            f"insert_layer needs a model whose `layers` end in its output layer (DeepSigmoid, FeedForward, Mlp), got "
            f"{type(model).__name__}")
    old = layers[-1]
    width = old.in_features if width is None else width
    hidden = initialise(nn.Linear(old.in_features, width), nonlinearity).to(old.weight)
    output = output_layer(width, old.out_features).to(old.weight)
    model.layers = nn.Sequential(*layers[:-1], hidden, activation(nonlinearity), output)
    return hidden
