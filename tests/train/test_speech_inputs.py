import json

import numpy as np
import pytest
import torch

from hemstitch.errors import ConfigError
from hemstitch.speech import warp_time
from hemstitch.train import Console, Interrupted, load_recipe, resume, train
from hemstitch.train._build import build_run
from hemstitch.train._checkpoint import load_checkpoint
from hemstitch.train._run_folder import RunFolder
from tiny_speech import speech_recipe

QUIET = Console(quiet=True)
MASKS = ["--augment.time_masks", "1", "--augment.time_mask_frames", "2", "--augment.time_mask_share", "0.5"]
SEQUENCES = ["--hmm.realign", "[]", "--train.batch_size", "4"]
MMI = [*SEQUENCES, "--criterion.kind", "lattice-free-mmi", "--hmm.topology", "chain"]


@pytest.fixture
def recipe(tiny_corpus, tmp_path):
    return speech_recipe(tmp_path / "recipe.toml", tiny_corpus)


def task_of(recipe, *settings):
    return build_run(load_recipe(recipe, list(settings)), QUIET).task


def test_copies_are_training_utterances_at_another_speed(recipe):
    plain, task = task_of(recipe), task_of(recipe, "--augment.speed", "[0.8, 1.25]")
    before, after = plain.parts["train"], task.parts["train"]
    count = len(before.utterances)
    assert len(after.utterances) == 3 * count and task.corpus.folder != plain.corpus.folder
    for number in (0, count - 1):
        original = before.frames[before.cut(number)]
        np.testing.assert_array_equal(after.frames[after.cut(number)], original)
        np.testing.assert_array_equal(after.frames[after.cut(count + number)], warp_time(original, 0.8))
        assert after.utterances[2 * count + number].id == f"{before.utterances[number].id}@1.25"
    for name in ("dev", "test"):
        assert [u.id for u in task.parts[name].utterances] == [u.id for u in plain.parts[name].utterances]
        np.testing.assert_array_equal(task.parts[name].frames, plain.parts[name].frames)


def test_copies_are_made_once(recipe):
    folder = task_of(recipe, "--augment.speed", "[0.9]").corpus.folder
    stamp = (folder / "features.npy").stat().st_mtime_ns
    assert task_of(recipe, "--augment.speed", "[0.9]", "--seed", "5").corpus.folder == folder
    assert (folder / "features.npy").stat().st_mtime_ns == stamp
    assert task_of(recipe, "--augment.speed", "[1.1]").corpus.folder != folder


@pytest.mark.parametrize("settings", [[], ["--criterion.chunk", "8", "--train.batch_size", "4"],
                                      [*SEQUENCES, "--criterion.kind", "ctc"], MMI])  # fmt: skip
def test_training_batches_are_masked_and_nothing_else_is(recipe, settings):
    plain, task = task_of(recipe, *settings), task_of(recipe, *settings, *MASKS)
    size = task.recipe.train.batch_size
    sources = [t.source(size, 1) for t in (plain, task, task)]
    for _ in range(3):
        before, after, again = (source.next().inputs for source in sources)
        hidden = (after != before).any(-1)
        assert hidden.any() and not hidden.all()
        assert (after[hidden] == 0).all() and torch.equal(after, again)
    model = build_run(load_recipe(recipe, settings), QUIET).model
    assert plain.evaluate(model) == task.evaluate(model)


def test_a_stopped_run_with_masks_goes_on_to_the_same_bits(recipe, tmp_path, monkeypatch):
    from hemstitch.train import _loop

    settings = ["--augment.speed", "[1.1]", *MASKS, "--embedding.dim", "3", "--train.epochs", "2"]
    whole = train(load_recipe(recipe, settings), tmp_path / "whole", QUIET)
    original = _loop.Loop.one_step

    def one_step(loop):
        original(loop)
        loop.stop_requested = loop.progress.step == loop.source.indices.batches_per_epoch + 3

    monkeypatch.setattr(_loop.Loop, "one_step", one_step)
    with pytest.raises(Interrupted):
        train(load_recipe(recipe, settings), tmp_path / "stopped", QUIET)
    monkeypatch.setattr(_loop.Loop, "one_step", original)
    resume(tmp_path / "stopped", QUIET)
    a, b = (load_checkpoint(RunFolder.open(f).checkpoints()[-1]) for f in (whole, tmp_path / "stopped"))
    torch.testing.assert_close(a["model"], b["model"], rtol=0, atol=0)
    assert json.loads((whole / "result.json").read_text())["wer"]["test"]["words"] > 10


def test_the_speaker_s_vector_stands_behind_the_features(recipe):
    task = task_of(recipe, "--embedding.dim", "4", "--embedding.mode", "speaker", *MASKS)
    assert task.num_inputs == 3 + 4
    part, embedding = task.parts["test"], task.inputs.embedding
    for speaker in {u.speaker for u in part.utterances}:
        own = [i for i, u in enumerate(part.utterances) if u.speaker == speaker]
        frames = np.concatenate([part.frames[part.cut(i)] for i in own])
        np.testing.assert_allclose(frames[:, 3:], np.tile(embedding(frames[:, :3]), (len(frames), 1)), atol=1e-6)
    batch = task.source(16, 1).next().inputs
    assert (batch[..., :3] == 0).all(-1).any() and not (batch[..., 3:] == 0).all(-1).any()


def test_other_recordings_get_the_same_inputs(recipe):
    task = task_of(recipe, "--embedding.dim", "4", "--features.normalisation", "global")
    found = task.inputs.of(task.corpus.select("test"))
    np.testing.assert_allclose(found.frames, task.parts["test"].frames, atol=1e-6)


@pytest.mark.parametrize("settings, message", [
    (["--augment.noise", "[20]", "--augment.speed", "[1.0]"], "need audio"),
    (["--augment.volume", "3"], "set speed"),
    (["--embedding.dim", "-1"], "dim must be at least 1, or 0"),
    ([*MASKS, "--update.kind", "hessian-free"], "another loss"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused(recipe, settings, message):
    with pytest.raises(ConfigError, match=message):
        task_of(recipe, *settings)
