import json

import numpy as np
import pytest
import torch

from hemstitch.commands import align
from hemstitch.criteria import IGNORED
from hemstitch.errors import ConfigError
from hemstitch.train import Console, Interrupted, _loop, load_recipe, load_trained, resume, train
from hemstitch.train._build import build_run
from hemstitch.train._chunks import counted_rows
from hemstitch.train._pieces import chunks
from hemstitch.train._speech_data import Part
from tiny_speech import speech_recipe

QUIET = Console(quiet=True)
LSTM = ["--model.num_cells", "12", "--model.num_recurrent", "8", "--model.num_nonrecurrent", "0",
        "--model.warm_up", "2"]  # fmt: skip
CHUNKS = ["--criterion.chunk", "25", "--train.batch_size", "4", "--train.epochs", "3"]
NETWORKS = {
    "lstm": ["--model.kind", "lstm", "--model.num_layers", "1", "--model.offsets", "[0, 1, 2]", *LSTM],
    "blstm": ["--model.kind", "blstm", "--model.num_layers", "1", "--model.cool_down", "4", *LSTM],
    "tdnn-lstm": ["--model.kind", "tdnn-lstm", "--model.width", "16", *LSTM],
    "tdnn": ["--model.kind", "tdnn", "--model.width", "16", "--model.offsets", "[[-1,0,1],[-1,0,1]]"],
    "feed-forward": [],
}
CTC = ["--criterion.kind", "ctc", "--model.kind", "tdnn", "--model.width", "24", "--model.offsets",
       "[[-2,-1,0,1,2],[-3,0,3]]", "--train.batch_size", "4", "--train.epochs", "16",
       "--decode.acoustic_scale", "[1.0]", "--decode.beam", "30", "--update.lr", "0.01", "--hmm.realign",
       "[]"]  # fmt: skip


@pytest.fixture
def recipe(tiny_corpus, tmp_path):
    return speech_recipe(tmp_path / "recipe.toml", tiny_corpus)


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def test_every_frame_counts_once():
    lengths = np.array([7, 30, 10, 23])
    part = Part([], np.zeros((70, 1)), np.concatenate([[0], lengths.cumsum()]), [], torch.arange(70))
    pieces = chunks(torch.from_numpy(lengths), 10, 1)
    rows = counted_rows(part, pieces)
    assert sorted(rows[rows >= 0].tolist()) == list(range(70))
    assert len(rows) == 1 + 3 + 1 + 3 and (rows[0] >= 0).sum() == 7


def test_a_chunk_holds_its_frames_context_and_targets(recipe):
    run = build_run(load_recipe(recipe, CHUNKS), QUIET)
    part, batch = run.task.parts["train"], run.source.select(torch.tensor([0, 1]))
    utterance = part.frames[part.cut(0)]
    assert batch.inputs.shape == (2, 25 + 4, 3)
    np.testing.assert_array_equal(batch.inputs[0, 2:27], utterance[:25])
    np.testing.assert_array_equal(batch.inputs[0, :2], utterance[[0, 0]])
    assert torch.equal(batch.targets[0], part.targets[:25])
    counted = batch.targets != IGNORED
    assert torch.equal(batch.targets[1][counted[1]], part.targets[25 : 25 + int(counted[1].sum())])


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_networks_learn_frames_in_chunks(recipe, tmp_path, network):
    folder = train(load_recipe(recipe, [*CHUNKS, *network]), tmp_path / "run", QUIET)
    if "tdnn-lstm" not in network:  # that one needs longer
        assert result_of(folder)["wer"]["test"]["rate"] < 0.1
    losses = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [row["value"] for row in losses if (row["split"], row["name"]) == ("dev", "loss")]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("settings", [[*CHUNKS, *NETWORKS["blstm"]], CTC], ids=["chunks", "ctc"])
def test_a_stopped_run_goes_on_to_the_same_bits(recipe, tmp_path, monkeypatch, settings):
    chosen = load_recipe(recipe, settings)
    whole = train(chosen, tmp_path / "whole", QUIET)
    original = _loop.Loop.one_step

    def one_step(loop):
        original(loop)
        loop.stop_requested = loop.progress.step == 13

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(_loop.Loop, "one_step", one_step)
        train(chosen, tmp_path / "stopped", QUIET)
    resume(tmp_path / "stopped", QUIET)
    a, b = (load_trained(folder, QUIET)[0].model.state_dict() for folder in (whole, tmp_path / "stopped"))
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("subsampling", ["1", "3"])
def test_ctc_needs_no_alignment(recipe, tmp_path, subsampling):
    folder = train(load_recipe(recipe, [*CTC, "--model.subsampling", subsampling]), tmp_path / "run", QUIET)
    assert result_of(folder)["wer"]["test"]["rate"] < 0.1
    assert align(folder, "test", "ctm", None) == 0


def test_p_norm_units(recipe, tmp_path):
    settings = ["--model.kind", "p-norm", "--model.hidden", "[8, 8]", "--model.group_size", "3"]
    folder = train(load_recipe(recipe, settings), tmp_path / "run", QUIET)
    assert result_of(folder)["wer"]["test"]["rate"] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (NETWORKS["blstm"], "'blstm' with cross-entropy: set criterion.chunk"),
        ([*NETWORKS["tdnn"], "--model.subsampling", "3"], "set model.subsampling = 1"),
        (["--criterion.kind", "ctc", "--hmm.context", "left"], "no alignment to grow trees on"),
    ],
)
def test_what_does_not_go_together(recipe, settings, message):
    with pytest.raises(ConfigError, match=message):
        build_run(load_recipe(recipe, settings), QUIET)
