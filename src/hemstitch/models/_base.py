"""What every acoustic model promises: logits for each output frame from a window of input frames."""

from __future__ import annotations

from torch import Tensor, nn

from hemstitch.errors import MisuseError


class FrameModel(nn.Module):
    """A network from feature frames to unnormalised log-probabilities of the pdfs.

    The map over time is a "valid" convolution: ``forward`` takes ``left + time + right`` input frames and returns
    ``time`` output frames (``ceil(time / subsampling)`` of them with subsampling), so a batch of single frames with
    their context and a whole padded utterance go through the same code.

    Attributes:
        num_inputs: features per frame.
        num_outputs: pdfs.
        left_context, right_context: frames seen beside the current one.
        subsampling: input frames per output frame.
    """

    def __init__(
        self, num_inputs: int, num_outputs: int, *, left_context: int = 0, right_context: int = 0, subsampling: int = 1
    ) -> None:
        super().__init__()
        if num_inputs < 1 or num_outputs < 1:
            raise MisuseError(f"a model needs at least one input and output, got {num_inputs} and {num_outputs}")
        if left_context < 0 or right_context < 0 or subsampling < 1:
            raise MisuseError(
                f"contexts must be >= 0 and subsampling >= 1, got {left_context}, {right_context}, {subsampling}")
        self.num_inputs, self.num_outputs = num_inputs, num_outputs
        self.left_context, self.right_context, self.subsampling = left_context, right_context, subsampling

    @property
    def context(self) -> int:
        """Input frames beyond the current one: left + right."""
        return self.left_context + self.right_context

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, left + time + right, feature) -> (batch, time, pdf)."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward")
