"""Checkpoints: nested state in one safetensors file, written atomically, read without executing code.

Tensors go into the safetensors body under their path (``model.layers.0.weight``); everything else (numbers, strings,
lists, the shape of the nesting) goes as JSON into its header, with a digest of the whole. A file appears under its
name only when it is complete and on disk; a reader who finds it changed afterwards says so.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from hemstitch.errors import RunError

FORMAT = "hemstitch-checkpoint-1"
_TENSOR, _TUPLE, _DICT = "__tensor__", "__tuple__", "__dict__"


def pack(state: Any, path: str = "") -> tuple[Any, dict[str, Tensor]]:
    """Nested dicts, lists, tuples, tensors and plain values -> (JSON-ready structure, tensors by path)."""
    if isinstance(state, Tensor):
        return {_TENSOR: path}, {path: state.detach()}
    if isinstance(state, dict):
        packed, tensors = [], {}
        for key, value in state.items():
            if not isinstance(key, str | int):
                raise RunError(f"checkpoint: key {key!r} at {path or 'the top'} is neither a string nor an integer")
            structure, found = pack(value, f"{path}.{key}" if path else str(key))
            packed.append([key, structure])
            tensors.update(found)
        return {_DICT: packed}, tensors
    if isinstance(state, list | tuple):
        items = [pack(value, f"{path}.{index}") for index, value in enumerate(state)]
        tensors = {name: tensor for _, found in items for name, tensor in found.items()}
        structure = [item for item, _ in items]
        return ({_TUPLE: structure} if isinstance(state, tuple) else structure), tensors
    if state is None or isinstance(state, bool | int | float | str):
        return state, {}
    raise RunError(
        f"checkpoint: cannot store a {type(state).__name__} at {path}; store numbers, strings, lists or tensors"
    )


def unpack(structure: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of :func:`pack`."""
    if isinstance(structure, list):
        return [unpack(item, tensors) for item in structure]
    if isinstance(structure, dict):
        if _TENSOR in structure:
            return tensors[structure[_TENSOR]]
        if _TUPLE in structure:
            return tuple(unpack(item, tensors) for item in structure[_TUPLE])
        return {key: unpack(value, tensors) for key, value in structure[_DICT]}
    return structure


def to_bytes(state: Any) -> bytes:
    """Nested state as it travels between workers; :func:`from_bytes` restores it."""
    structure, tensors = pack(state)
    tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
    return save(tensors, metadata={"structure": json.dumps(structure)})


def from_bytes(content: bytes) -> Any:
    """The inverse of :func:`to_bytes`."""
    end = 8 + int.from_bytes(content[:8], "little")
    structure = json.loads(content[8:end])["__metadata__"]["structure"]
    return unpack(json.loads(structure), load(content))


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` so that ``path`` either holds all of it or is left as it was.

    Raises:
        RunError: the disk is full or not writable; nothing is lost, the message says what to do.
    """
    structure, tensors = pack(state)
    tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(structure)
    metadata = {"format": FORMAT, "structure": text, "digest": _digest(text, tensors)}
    write_atomically(path, save(tensors, metadata=metadata))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; no code in it can run.

    Raises:
        RunError: missing, damaged, changed since it was written, or not one of ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError, ValueError) as error:
        raise RunError(
            f"{path}: not a readable checkpoint ({error}). If the run has an older one, delete this file and "
            "resume from that."
        ) from None
    if metadata.get("format") != FORMAT:
        raise RunError(
            f"{path}: expected a checkpoint of format {FORMAT!r}, found {metadata.get('format')!r}. "
            "Was it written by another program or version?"
        )
    text = metadata.get("structure", "")
    if _digest(text, tensors) != metadata.get("digest"):
        raise RunError(
            f"{path}: the content does not match its digest: the file was changed or damaged after it was "
            "written. Delete it and resume from an older one."
        )
    return unpack(json.loads(text), tensors)


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file ``path`` by ``content`` in one step that survives a crash at any moment."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True) if _exists(temporary) else None
        raise cannot_write(path, error) from None


def cannot_write(path: Path, error: OSError) -> RunError:
    """The error for a file that cannot be written: what happened, and what to do."""
    return RunError(
        f"cannot write {path}: {error.strerror or error}. What was saved before is intact: free space or make "
        "the folder writable, then `hemstitch resume` the run."
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _sync_folder(folder: Path) -> None:
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
