"""Labelled images on disk: idx files (MNIST, Fashion-MNIST), and numpy arrays (CIFAR-10, CIFAR-100).

The arrays ``<part>.images.npy`` are unsigned bytes (image, channel, row, column), beside ``<part>.labels.npy``. With
``.xz`` at the end they are compressed and hold differences, to be undone modulo 256: each row minus the one above, each
pixel minus the one to its left, red and blue minus green.
"""

from __future__ import annotations

import gzip
import lzma
import zlib
from pathlib import Path

import numpy as np

from hemstitch.errors import DataError

PARTS = {"train": "train", "test": "t10k"}
"""The part of a data set -> its name in idx files."""


def read_part(source: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """(image, channel, row, column) unsigned bytes, and (image,) int64 labels, of the part "train" or "test".

    Raises:
        DataError: missing, damaged, or images and labels that do not fit together.
    """
    arrays = [source / f"{part}.images.npy{suffix}" for suffix in (".xz", "")]
    if found := next(filter(Path.is_file, arrays), None):
        images, labels = read_arrays(found), read_array(source / f"{part}.labels.npy")
    else:
        images = read_idx(_find(source, f"{PARTS[part]}-images-idx3-ubyte"), 3)[:, None]
        labels = read_idx(_find(source, f"{PARTS[part]}-labels-idx1-ubyte"), 1)
    if labels.shape != images.shape[:1] or not images.size:
        raise DataError(f"{source}: {len(images)} {part} images, but labels of shape {labels.shape}.")
    if labels.dtype.kind not in "iu" or labels.min() < 0:
        raise DataError(f"{source}: labels of the {part} images must be whole numbers from 0 on, found {labels.dtype}"
                        + (f" from {labels.min()} on." if labels.dtype.kind in "iu" else "."))
    return images, labels.astype(np.int64)


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An idx file (gzip or not) of unsigned bytes with the given number of dimensions.

    Raises:
        DataError: missing, damaged or of another shape.
    """
    try:
        raw = path.read_bytes()
        content = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}). Expected an idx file of the MNIST family.") from None
    size = 4 + 4 * dimensions
    header = np.frombuffer(content[:size].ljust(size, b"\0"), ">i4")
    if len(content) < size or header[0] != 0x800 + dimensions:
        raise DataError(f"{path}: not an idx file of unsigned bytes with {dimensions} dimensions.")
    shape, body = tuple(int(n) for n in header[1:]), np.frombuffer(content[size:], np.uint8)
    if body.size != np.prod(shape):
        raise DataError(f"{path}: the header promises {shape}, the file holds {body.size} bytes: it is cut short.")
    return body.reshape(shape)


def read_arrays(path: Path) -> np.ndarray:
    """Images from a numpy array; the differences of a compressed one are undone.

    Raises:
        DataError: damaged, or not images of one or three channels.
    """
    images = read_array(path)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise DataError(f"{path}: expected unsigned bytes (image, 1 or 3 channels, row, column), found {images.dtype} "
                        f"{images.shape}.")  # fmt: skip
    if path.suffix == ".xz":
        images = np.cumsum(np.cumsum(images, 2, dtype=np.uint8), 3, dtype=np.uint8)
        if images.shape[1] == 3:
            images[:, 0] += images[:, 1]
            images[:, 2] += images[:, 1]
    return images


def read_array(path: Path) -> np.ndarray:
    """A numpy file, xz-compressed or not; no code in it can run.

    Raises:
        DataError: missing or damaged.
    """
    try:
        if path.suffix != ".xz":
            return np.load(path, allow_pickle=False)
        with lzma.open(path) as file:
            return np.load(file, allow_pickle=False)
    except (OSError, EOFError, ValueError, lzma.LZMAError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Expected a numpy array.") from None


def _find(source: Path, stem: str) -> Path:
    for suffix in (".gz", ""):
        if (source / (stem + suffix)).is_file():
            return source / (stem + suffix)
    raise DataError(f"{source}: neither {stem}.gz nor train.images.npy.xz there. Set data.source to the folder with "
                    "the four idx files, or with images and labels as numpy arrays.")  # fmt: skip
