import json

import pytest
import torch

from hemstitch.errors import ConfigError, RunError
from hemstitch.train import Console, Interrupted, _frames, _loop, load_recipe, load_trained, resume, train
from hemstitch.train._build import build_run
from hemstitch.train._checkpoint import load_checkpoint
from hemstitch.train._run_folder import RunFolder
from tiny_speech import speech_recipe

QUIET = Console(quiet=True)
TIED = ["--hmm.context", "left", "--hmm.leaves", "7", "--hmm.leaf_frames", "20"]
NATURAL = ["--gradient.kind", "natural", "--update.kind", "max-change-sgd", "--update.lr", "0.3"]
STITCHED = ["--backstitch.scale", "0.3", "--backstitch.interval", "1"]


@pytest.fixture
def speech(tiny_corpus, tmp_path):
    return speech_recipe(tmp_path / "recipe.toml", tiny_corpus)


@pytest.fixture
def former(speech, tmp_path):
    return train(load_recipe(speech, TIED), tmp_path / "former", QUIET)


def best(folder):
    return RunFolder.open(folder).load_best()


def test_a_run_goes_on_from_another_with_its_units_and_alignment(speech, former, monkeypatch):
    monkeypatch.setattr(_frames, "gaussian_rounds", None)  # no flat start
    run = build_run(load_recipe(speech, [*TIED, "--start.run", str(former), "--start.alignment", "true"]), QUIET)
    state = best(former)
    torch.testing.assert_close(run.model.state_dict(), state["model"], rtol=0, atol=0)
    assert run.task.kept() == json.loads((former / "kept.json").read_text())
    assert torch.equal(run.task.parts["train"].targets, state["task"]["train"].long())
    assert run.task.evaluate(run.model)["error"] < 0.2


def test_without_its_alignment_the_units_are_the_same(speech, former):
    run = build_run(load_recipe(speech, [*TIED, "--seed", "2", "--start.run", str(former)]), QUIET)
    assert run.task.kept() == json.loads((former / "kept.json").read_text())
    assert run.task.evaluate(run.model)["error"] < 0.3


def test_a_new_output_layer_for_other_units(speech, former, tmp_path):
    settings = ["--start.run", str(former), "--start.new_output", "true", "--start.freeze", '["^layers.0."]']
    recipe = load_recipe(speech, settings)
    assert recipe.hmm.context == "none"
    given, state = build_run(recipe, QUIET).model.state_dict(), best(former)["model"]
    assert given["layers.2.weight"].shape == (4, 16) and not given["layers.2.weight"].any()
    torch.testing.assert_close(given["layers.0.weight"], state["layers.0.weight"], rtol=0, atol=0)
    folder = train(recipe, tmp_path / "run", QUIET)
    trained = best(folder)["model"]
    assert torch.equal(trained["layers.0.weight"], state["layers.0.weight"]) and trained["layers.2.weight"].any()
    assert json.loads((folder / "result.json").read_text())["wer"]["test"]["rate"] == 0
    former.rename(tmp_path / "gone")  # only the beginning needs it
    assert not load_trained(folder, QUIET)[0].model.layers[0].weight.requires_grad


@pytest.mark.parametrize("settings", [[], NATURAL, STITCHED, [*NATURAL, *STITCHED], ["--update.kind", "sgd"]])
def test_frozen_layers_stay_under_every_optimizer(tiny_recipe, tmp_path, settings):
    frozen = ["--start.freeze", '["layers.0.weight", "bias"]', "--train.epochs", "1"]
    recipe = load_recipe(tiny_recipe, [*settings, *frozen])
    before = build_run(recipe, QUIET).model.state_dict()
    after = best(train(recipe, tmp_path / "run", QUIET))["model"]
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "weight" in name and name != "layers.0.weight"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--start.run", "RUN"], r"has hmm.context = 'left', this recipe 'none'.*new_output"),
        ([*TIED, "--start.run", "RUN", "--model.hidden", "[8]"], r"'layers.0.weight' is \(16, 15\) there, \(8, 15\)"),
        ([*TIED, "--start.run", "RUN", "--start.alignment", "true", "--data.dev_seed", "5"], "has it for other data"),
        (["--start.freeze", '["^absent"]'], "no parameter matches '\\^absent'"),
        (["--start.freeze", '["("]'], "start.freeze"),
        (["--start.freeze", '["."]'], "leaves no parameter to train"),
        (["--start.layerwise", "1", "--model.dropout", "0.1"], "without dropout"),
        (["--start.layerwise", "1", "--hmm.topology", "chain", "--criterion.kind", "lattice-free-mmi"],
         "trains with cross-entropy"),
    ],
)
def test_what_a_run_cannot_begin_with(speech, former, settings, message):
    settings = [str(former) if s == "RUN" else s for s in settings]
    with pytest.raises(ConfigError, match=message):
        build_run(load_recipe(speech, settings), QUIET)


def test_dropout_layers_do_not_count(speech, former):
    recipe = load_recipe(speech, [*TIED, "--start.run", str(former), "--model.dropout", "0.1"])
    given = build_run(recipe, QUIET).model.state_dict()
    assert list(given) != list(best(former)["model"])
    torch.testing.assert_close(list(given.values()), list(best(former)["model"].values()), rtol=0, atol=0)


def test_a_former_run_that_is_none(speech, tmp_path):
    with pytest.raises(RunError, match="no such run folder"):
        build_run(load_recipe(speech, ["--start.run", str(tmp_path / "nowhere")]), QUIET)
    with pytest.raises(ConfigError, match="set run to its folder"):
        load_recipe(speech, ["--start.new_output", "true"])


LAYERWISE = ["--model.hidden", "[16, 16, 16, 16]", "--model.nonlinearity", "sigmoid", "--start.layerwise", "2",
             "--start.layerwise_lr", "0.2", "--start.layerwise_batch_size", "64"]  # fmt: skip


def test_a_deep_sigmoid_network_learns_if_it_is_grown(speech, tmp_path):
    common = [*LAYERWISE, "--hmm.realign", "[]", "--update.kind", "sgd", "--update.lr", "0.1"]
    equal_cost = {"grown": ["--train.epochs", "1"], "drawn": ["--train.epochs", "7", "--start.layerwise", "0"]}
    loss = {}
    for name, settings in equal_cost.items():
        folder = train(load_recipe(speech, [*common, *settings]), tmp_path / name, QUIET)
        loss[name] = json.loads((folder / "result.json").read_text())["summary"]["best_dev_loss"]
    assert loss["grown"] < 0.8 * loss["drawn"]
    events = [json.loads(line) for line in (tmp_path / "grown" / "events.jsonl").read_text().splitlines()]
    assert [e["message"].count(",") for e in events if e["kind"] == "layerwise"] == [2]  # three depths
    passes = json.loads((tmp_path / "grown" / "result.json").read_text())["summary"]["backward_passes"]
    assert passes == pytest.approx(3 * 2 + 1)  # what it took is counted


@pytest.mark.parametrize("step", [0, 5])
def test_a_grown_network_resumes_to_the_same_bits(tiny_recipe, tmp_path, monkeypatch, step):
    recipe = load_recipe(tiny_recipe, ["--model.dropout", "0", "--model.hidden", "[16, 8]", *LAYERWISE[2:]])
    whole = train(recipe, tmp_path / "whole", QUIET)
    original = _loop.Loop.one_step

    def one_step(loop):
        if step == 0:  # killed before the first checkpoint
            raise Interrupted
        original(loop)
        loop.stop_requested = loop.progress.step == step

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(_loop.Loop, "one_step", one_step)
        train(recipe, tmp_path / "stopped", QUIET)
    resume(tmp_path / "stopped", QUIET)
    a, b = (load_checkpoint(RunFolder.open(f).checkpoints()[-1]) for f in (whole, tmp_path / "stopped"))
    torch.testing.assert_close(a["model"], b["model"], rtol=0, atol=0)
    assert a["progress"]["backward"] == b["progress"]["backward"]
