import json
import os
import pickle
import struct

import pytest
import torch

from hemstitch.errors import RunError
from hemstitch.train._checkpoint import load_checkpoint, save_checkpoint

STATE = {
    "model": {"weight": torch.randn(3, 4), "half": torch.randn(2).to(torch.bfloat16), "empty": torch.empty(0, 3)},
    "optimizer": {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(3)}},
        "groups": [{"lr": 0.1, "betas": (0.9, 0.99)}],
    },
    "step": 7,
    "note": "ä",
    "nothing": None,
    "flag": True,
    "infinite": float("inf"),
}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b and type(a) is type(b)


def test_nested_state_comes_back_as_it_was(tmp_path):
    save_checkpoint(tmp_path / "a.safetensors", STATE)
    assert same(load_checkpoint(tmp_path / "a.safetensors"), STATE)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_every_optimizer_state_of_torch_can_be_stored(tmp_path):
    for make in (torch.optim.AdamW, torch.optim.Adagrad, torch.optim.Rprop):
        parameter = torch.nn.Parameter(torch.randn(3))
        optimizer = make([parameter], lr=0.1)
        parameter.grad = torch.randn(3)
        optimizer.step()
        save_checkpoint(tmp_path / "o.safetensors", optimizer.state_dict())
        assert same(load_checkpoint(tmp_path / "o.safetensors"), optimizer.state_dict())


@pytest.mark.parametrize("position", [60, -1])
def test_a_changed_byte_is_noticed(tmp_path, position):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, STATE)
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match="a.safetensors"):
        load_checkpoint(path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_half_written_file_is_refused(tmp_path, share):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, STATE)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(RunError, match="not a readable checkpoint"):
        load_checkpoint(path)


def test_a_pickle_in_place_of_a_checkpoint_is_not_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    (tmp_path / "a.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(RunError):
        load_checkpoint(tmp_path / "a.safetensors")
    assert not (tmp_path / "exploded").exists()


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    header = json.dumps({"__metadata__": {"format": "pt"}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(RunError, match="expected a checkpoint of format"):
        load_checkpoint(tmp_path / "a.safetensors")


def test_an_object_that_would_need_code_to_load_is_refused_when_saving(tmp_path):
    with pytest.raises(RunError, match=r"cannot store a Linear at model\.layer"):
        save_checkpoint(tmp_path / "a.safetensors", {"model": {"layer": torch.nn.Linear(1, 1)}})


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, {"step": 1})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left on device.*free space"):
        save_checkpoint(path, {"step": 2})
    assert load_checkpoint(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
