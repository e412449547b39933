"""Which frames of a competing path count as right: the raw accuracy of minimum-Bayes-risk criteria, and of boosting."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from hemstitch.errors import MisuseError


class FrameAccuracy:
    """Compares the pdf of a frame with that of the reference, by classes.

    sMBR: each pdf is a class (:meth:`states`). MPE, counted by frames: all pdfs of a phone are one (:meth:`phones`).

    Silence: with ``one_silence_class`` any silence pdf is right where the reference has any. Without it, silence is
    never right: then a path gains by putting a word where the reference has silence, and insertions grow. As errors,
    for boosting, frames that a path gives to silence never count.

    Args:
        classes: (pdf,) class of each pdf.
        silence_pdfs: the pdfs of silence.
        one_silence_class: see above.

    Raises:
        MisuseError: a silence pdf is out of range.

    Reference: K. Vesely, A. Ghoshal, L. Burget, D. Povey, "Sequence-discriminative training of deep neural networks",
    Interspeech 2013, sections 3.2 and 3.3.
    """

    def __init__(self, classes: Iterable[int], silence_pdfs: Iterable[int] = (), one_silence_class: bool = True):
        self.classes = np.asarray(list(classes), np.int64)
        self.is_silence = np.zeros(len(self.classes), bool)
        silence = np.asarray(list(silence_pdfs), np.int64)
        if len(silence) and not 0 <= silence.min() <= silence.max() < len(self.classes):
            raise MisuseError(f"accuracy: silence pdfs {silence.tolist()} are not within the {len(self.classes)} pdfs")
        self.is_silence[silence] = True
        self.one_silence_class = one_silence_class

    @classmethod
    def states(cls, num_pdfs: int, silence_pdfs: Iterable[int] = (), one_silence_class: bool = True) -> FrameAccuracy:
        """A frame is right if its pdf is that of the reference."""
        return cls(range(num_pdfs), silence_pdfs, one_silence_class)

    @classmethod
    def phones(
        cls, pdf_phones: Iterable[int], silence_phones: Iterable[int] = (), one_silence_class: bool = True
    ) -> FrameAccuracy:
        """A frame is right if the phone of its pdf, ``pdf_phones[pdf]``, is that of the reference."""
        phones = np.asarray(list(pdf_phones), np.int64)
        return cls(phones, np.flatnonzero(np.isin(phones, list(silence_phones))), one_silence_class)

    def correct(self, pdfs: np.ndarray, references: np.ndarray) -> np.ndarray:
        """1.0 where a pdf is right."""
        same, silent = self.classes[pdfs] == self.classes[references], self.is_silence[pdfs]
        if self.one_silence_class:
            return (same | (silent & self.is_silence[references])).astype(np.float64)
        return (same & ~silent).astype(np.float64)

    def expected(self, occupancy: np.ndarray) -> np.ndarray:
        """(frame, pdf) how likely each pdf is right, given how likely each is as reference."""
        order = np.argsort(self.classes, kind="stable")
        _, first, place = np.unique(self.classes[order], return_index=True, return_inverse=True)
        right = np.empty(occupancy.shape)
        right[:, order] = np.add.reduceat(occupancy[:, order], first, axis=1)[:, place]
        silent = occupancy[:, self.is_silence].sum(1, keepdims=True) if self.one_silence_class else 0.0
        right[:, self.is_silence] = silent
        return right

    def errors(self, pdfs: np.ndarray, references: np.ndarray) -> np.ndarray:
        """1.0 where a pdf is wrong and not silence."""
        return ((self.classes[pdfs] != self.classes[references]) & ~self.is_silence[pdfs]).astype(np.float64)
