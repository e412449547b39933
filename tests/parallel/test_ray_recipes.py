"""Recipes on real processes: frames of utterances whose outer gradients decoders compute; `make test-ray`."""

import json

import pytest

pytest.importorskip("ray", reason="needs the engine: pip install 'hemstitch[parallel]'")

from hemstitch.parallel.ray import connected
from hemstitch.report import write_report
from hemstitch.train import Console, load_recipe, train
from hemstitch.train._build import build_run
from tiny_speech import speech_recipe

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

QUIET = Console(quiet=True)
FRAMES = ["--criterion.kind", "mmi", "--criterion.unit", "frame", "--train.batch_size", "8", "--train.epochs", "2",
          "--criterion.acoustic_scale", "0.5", "--model.dropout", "0", "--criterion.tolerance", "0.01",
          "--update.kind", "sgd", "--update.momentum", "0", "--update.lr", "0.005", "--parallel.kind", "async",
          "--parallel.replicas", "3", "--parallel.processes", "2", "--parallel.decoders", "1"]


@pytest.fixture(scope="module", autouse=True)
def engine():
    with connected(num_cpus=16) as ray:
        yield ray


@pytest.mark.parametrize("realign", ["never", "epoch"])
def test_decoders_compute_the_outer_gradients_of_frames(tiny_corpus, tmp_path, realign):
    path = speech_recipe(tmp_path / "recipe.toml", tiny_corpus)
    frames = ["--update.lr", "0.003", "--train.epochs", "1", "--decode.acoustic_scale", "[0.2]"]
    start = train(load_recipe(path, frames), tmp_path / "start", QUIET)
    recipe = load_recipe(path, ["--start.run", str(start), "--start.alignment", "true", "--criterion.realign", realign,
                                *FRAMES])
    before = build_run(recipe, QUIET)
    loss = before.task.evaluate(before.model)["loss"]
    folder = train(recipe, tmp_path / "run", QUIET)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = {(row["split"], row["name"]): row["value"] for row in rows}
    assert last["dev", "loss"] < loss
    assert last["train", "outer_staleness"] > last["train", "staleness"] > 0.5
    assert last["train", "failures"] == last["train", "abandoned_batches"] == 0
    assert "their decoders, per frame" in write_report(folder).read_text()
