"""Colour images in recipes: files, shapes, convolutional networks, the recipes that come along."""

import json
import lzma
from pathlib import Path

import numpy as np
import pytest
import torch

from hemstitch.errors import DataError
from hemstitch.testing import write_tiny_images
from hemstitch.train import Console, load_recipe, train
from hemstitch.train._image_files import read_part
from hemstitch.train._images import prepared

QUIET = Console(quiet=True)
RECIPES = Path(__file__).parents[2] / "recipes"


def differences(images):
    """The coding that `read_part` undoes: red and blue minus green, then each pixel minus its upper and left one."""
    coded = images.astype(np.int64)
    coded[:, 0] -= coded[:, 1]
    coded[:, 2] -= coded[:, 1]
    return np.diff(np.diff(coded, axis=3, prepend=0), axis=2, prepend=0).astype(np.uint8)


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Three classes of 8 x 8 images, another bright channel each; compressed differences."""
    folder, random = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for part, count in (("train", 60), ("test", 30)):
        labels = np.arange(count) % 3
        images = random.integers(0, 150, (count, 3, 8, 8), dtype=np.uint8)
        images[np.arange(count), labels] += 100
        with lzma.open(folder / f"{part}.images.npy.xz", "wb") as file:
            np.save(file, differences(images))
        np.save(folder / f"{part}.labels.npy", labels)
        np.save(folder / f"{part}.plain.npy", images)
    return folder


def test_compressed_differences_are_undone(colours):
    images, labels = read_part(colours, "train")
    np.testing.assert_array_equal(images, np.load(colours / "train.plain.npy"))
    assert labels.tolist() == [0, 1, 2] * 20


def test_plain_arrays_are_read_as_they_are(colours, tmp_path):
    for end in ("images", "labels"):
        stem = "plain" if end == "images" else end
        (tmp_path / f"test.{end}.npy").write_bytes((colours / f"test.{stem}.npy").read_bytes())
    np.testing.assert_array_equal(read_part(tmp_path, "test")[0], read_part(colours, "test")[0])


def test_real_colours_have_the_published_means(shared_data):
    images, labels = read_part(shared_data / "cifar10", "train")
    assert images.shape == (10000, 3, 32, 32) and np.bincount(labels).tolist() == [1000] * 10
    assert images.mean((0, 2, 3)) / 255 == pytest.approx([0.4914, 0.4822, 0.4465], abs=5e-3)


def test_small_images_are_padded_for_networks_with_places(tmp_path):
    write_tiny_images(tmp_path)
    images, _ = read_part(tmp_path, "test")
    padded, flat = prepared(images, flat=False), prepared(images, flat=True)
    assert padded.shape == (90, 1, 32, 32) and flat.shape == (90, 1, 16)
    torch.testing.assert_close(padded[:, 0, 14:18, 14:18].flatten(1), flat[:, 0])
    assert padded.sum() == pytest.approx(float(flat.sum()), rel=1e-5)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: np.save(p / "train.images.npy", np.zeros((60, 8, 8), np.uint8)), "expected unsigned bytes"),
        (lambda p: np.save(p / "train.images.npy", np.zeros((59, 1, 8, 8), np.uint8)), "59 train images, but labels"),
        (lambda p: (p / "train.images.npy.xz").write_bytes(b"no"), "cannot be read"),
        (lambda p: np.save(p / "train.images.npy", np.zeros((0, 1, 8, 8), np.uint8)), "0 train images"),
        (lambda p: (p / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08"), "not an idx file"),
        (lambda p: None, "neither train-images"),
    ],
)
def test_what_is_no_image_set_is_named(tmp_path, spoil, message):
    np.save(tmp_path / "train.labels.npy", np.zeros(60, np.int64))
    spoil(tmp_path)
    with pytest.raises(DataError, match=message):
        read_part(tmp_path, "train")


NETWORKS = {
    "resnet18": ["--model.kind", "resnet"],
    "resnet50": ["--model.kind", "resnet", "--model.depth", "50"],
    "vgg19": ["--model.kind", "vgg", "--model.width", "0.0625"],
}


@pytest.mark.parametrize("settings", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("order", [[], ["--order.kind", "backward", "--order.tail", "2"]], ids=["forward", "backward"])
def test_convolutional_networks_are_trained_in_any_order(colours, tmp_path, settings, order):
    path = tmp_path / "colours.toml"
    path.write_text(f"""
[data]
kind = "images"
source = "{colours}"
dev_share = 0.2
[model]
kind = "resnet"
width = 0.03
[update]
kind = "sgd"
lr = 0.02
[train]
epochs = 2
batch_size = 16
threads = 1
""")
    folder = train(load_recipe(path, [*settings, *order]), tmp_path / "run", QUIET)
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "finished" and 0 <= result["accuracy"]["test"] <= 1
    assert result["summary"]["backward_passes"] == pytest.approx(3 if order else 2)


@pytest.mark.parametrize("name", ["fashion-mnist-backward", "cifar10-resnet18", "cifar10-vgg19", "cifar100-resnet50"])
@pytest.mark.parametrize("size", ["", "-small"])
def test_recipes_in_the_papers_sizes_and_small_ones(name, size):
    recipe = load_recipe(RECIPES / f"{name}{size}.toml")
    assert recipe.name == name + size and recipe.kinds["order"] == "backward"
    narrow = recipe.model.hidden[0] < 500 if name.startswith("fashion") else recipe.model.width < 1
    assert narrow == bool(size)
