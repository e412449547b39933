import json

import pytest
import torch

from hemstitch.commands import align
from hemstitch.errors import ConfigError, MisuseError, RunError
from hemstitch.speech import TiedTopology
from hemstitch.train import Console, Interrupted, _flat_start, _frames, _loop, load_recipe, load_trained, resume, train
from hemstitch.train._build import build_run
from hemstitch.train._checkpoint import load_checkpoint
from hemstitch.train._run_folder import RunFolder
from tiny_speech import speech_recipe

QUIET = Console(quiet=True)
TIED = ["--hmm.context", "both", "--hmm.leaves", "9", "--hmm.leaf_frames", "20"]


@pytest.fixture
def recipe(tiny_corpus, tmp_path):
    return speech_recipe(tmp_path / "recipe.toml", tiny_corpus)


@pytest.fixture
def folder(recipe, tmp_path):
    return train(load_recipe(recipe, TIED), tmp_path / "run", QUIET)


def stop_at(monkeypatch, step):
    original = _loop.Loop.one_step

    def one_step(loop):
        original(loop)
        loop.stop_requested = loop.progress.step == step

    monkeypatch.setattr(_loop.Loop, "one_step", one_step)


def test_tied_states_are_trained_recognised_and_aligned(folder, monkeypatch, capsys):
    assert json.loads((folder / "result.json").read_text())["wer"]["test"]["rate"] == 0
    kept = TiedTopology.from_dict(json.loads((folder / "kept.json").read_text())["topology"])
    assert kept.num_pdfs == 9 and kept.context == "both"
    monkeypatch.setattr(_frames, "gaussian_rounds", None)  # what is kept is not prepared again
    run, _ = load_trained(folder, QUIET)
    assert run.task.topology == kept and run.model.num_outputs == 9
    assert align(folder, "dev", "ctm", None) == 0
    assert "0 left out" in capsys.readouterr().out


@pytest.mark.parametrize("context", ["left", "both"])
def test_conversion_keeps_the_alignment(recipe, context):
    task = build_run(load_recipe(recipe, [*TIED, "--hmm.context", context, "--hmm.tied_rounds", "0"]), QUIET).task
    untied = build_run(load_recipe(recipe), QUIET).task
    for name in ("train", "dev"):
        pairs = torch.stack([untied.parts[name].targets, task.parts[name].targets]).unique(dim=1)
        assert len(pairs[1].unique()) == pairs.shape[1]  # every leaf lies within one state
    assert task.num_outputs == 9 > untied.num_outputs


def test_a_stopped_run_goes_on_to_the_same_bits(folder, recipe, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 70)
        with pytest.raises(Interrupted):
            train(load_recipe(recipe, TIED), tmp_path / "stopped", QUIET)
    resume(tmp_path / "stopped", QUIET)
    whole, stopped = (load_checkpoint(RunFolder.open(f).checkpoints()[-1]) for f in (folder, tmp_path / "stopped"))
    for key in ("model", "task"):
        torch.testing.assert_close(whole[key], stopped[key], rtol=0, atol=0)


def test_a_run_killed_before_its_first_checkpoint_prepares_again(folder, recipe, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(_loop.Loop, "run", lambda loop: (_ for _ in ()).throw(Interrupted))
        with pytest.raises(Interrupted):
            train(load_recipe(recipe, TIED), tmp_path / "killed", QUIET)
    resume(tmp_path / "killed", QUIET)
    assert (tmp_path / "killed" / "kept.json").read_text() == (folder / "kept.json").read_text()


def test_damaged_trees_are_named(folder):
    (folder / "kept.json").write_text("{")
    with pytest.raises(RunError, match=r"kept\.json"):
        load_trained(folder, QUIET)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (["--hmm.flat_start", "0"], ConfigError, "grows its trees on the alignment of the flat start"),
        (["--hmm.leaves", "3"], MisuseError, "4 trees .* cannot have only 3 leaves"),
        (["--criterion.kind", "lattice-free-mmi", "--hmm.topology", "chain"], ConfigError, "'left' or 'none'"),
    ],
)
def test_what_cannot_be_tied(recipe, settings, error, message):
    with pytest.raises(error, match=message):
        build_run(load_recipe(recipe, [*TIED, *settings]), QUIET)


def test_gaussian_scores_are_those_of_the_whole_part(recipe):
    part = build_run(load_recipe(recipe), QUIET).task.parts["dev"]
    gaussians = _flat_start.Gaussians.estimate(part.frames, part.targets.numpy(), 4)
    scores = _flat_start.gaussian_scores(gaussians, part)
    torch.testing.assert_close(scores(part.cut(3)), gaussians.loglikelihoods(part.frames)[part.cut(3)])
