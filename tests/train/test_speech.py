import json
import shutil

import pytest
import torch

from hemstitch.errors import ConfigError, DataError, RunError
from hemstitch.testing import write_tiny_corpus
from hemstitch.train import Console, Interrupted, load_recipe, load_trained, resume, train
from hemstitch.train._build import build_run
from hemstitch.train._checkpoint import load_checkpoint
from hemstitch.train._run_folder import RunFolder
from tiny_speech import speech_recipe

QUIET = Console(quiet=True)
OUT_OF_VOCABULARY = {
    "id": "x-1",
    "speaker": "s0",
    "text": "ELEVEN",
    "split": "train",
    "features": ["features.npy", 0, 30],
}
TOO_SHORT = {"id": "x-2", "speaker": "s0", "text": "ONE TWO TEN", "split": "train", "features": ["features.npy", 0, 3]}
NO_TEXT = {"id": "x-3", "speaker": "s0", "text": " ", "split": "train", "features": ["features.npy", 0, 30]}


@pytest.fixture
def recipe(tiny_corpus, tmp_path):
    return speech_recipe(tmp_path / "recipe.toml", tiny_corpus)


def test_from_flat_start_to_words_without_an_error(recipe, tmp_path):
    folder = train(load_recipe(recipe), tmp_path / "run", QUIET)
    result = json.loads((folder / "result.json").read_text())
    assert result["wer"]["test"]["rate"] == 0 and result["wer"]["test"]["words"] > 10
    rows = [json.loads(line) for line in (folder / "decode" / "test.jsonl").read_text().splitlines()]
    assert len(rows) == 12 and all(row["reference"] == row["hypothesis"] for row in rows)
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [e["kind"] for e in events].count("realign") == 2


def test_a_stopped_speech_run_keeps_its_alignments(recipe, tmp_path, monkeypatch):
    from hemstitch.train import _loop

    whole = train(load_recipe(recipe), tmp_path / "whole", QUIET)
    original = _loop.Loop.one_step

    def one_step(loop):
        original(loop)
        loop.stop_requested = loop.progress.step == 2 * loop.source.indices.batches_per_epoch + 3

    monkeypatch.setattr(_loop.Loop, "one_step", one_step)
    with pytest.raises(Interrupted):
        train(load_recipe(recipe), tmp_path / "stopped", QUIET)
    monkeypatch.setattr(_loop.Loop, "one_step", original)
    resume(tmp_path / "stopped", QUIET)
    a, b = (load_checkpoint(RunFolder.open(f).checkpoints()[-1]) for f in (whole, tmp_path / "stopped"))
    for key in ("model", "task"):
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=0)


@pytest.mark.parametrize("settings", [[], ["--gradient.kind", "natural", "--update.kind", "max-change-sgd"]])
def test_after_a_restart_training_goes_as_if_the_alignment_had_been_there(recipe, tmp_path, settings):
    options = ["--hmm.restart", "2", "--train.batch_size", "100000", "--model.dropout", "0", *settings]
    folder = train(load_recipe(recipe, options), tmp_path / "run", QUIET)  # one batch an epoch: order is no matter
    found = load_checkpoint(RunFolder.open(folder).checkpoints()[-1])
    run = build_run(load_recipe(recipe, ["--hmm.realign", "[]", "--train.epochs", "2", *options[2:]]), QUIET)
    run.task.load_state_dict(found["task"])
    run.loop(RunFolder.create(tmp_path / "fresh", {})).run()
    for name, parameter in run.model.state_dict().items():
        torch.testing.assert_close(found["model"][name], parameter, rtol=0, atol=1e-5)


SEQUENCES = ["--criterion.kind", "lattice-free-mmi", "--hmm.topology", "chain", "--hmm.realign", "[]",
             "--train.batch_size", "4", "--criterion.length_step", "20", "--decode.acoustic_scale", "[1.0]",
             "--decode.beam", "30", "--train.epochs", "12"]  # fmt: skip
NATURAL = ["--gradient.kind", "natural", "--update.kind", "max-change-sgd", "--update.lr", "0.3"]
SMALL_LSTM = ["--model.num_cells", "8", "--model.num_recurrent", "8", "--model.num_nonrecurrent", "0",
              "--model.warm_up", "2"]  # fmt: skip
TDNN = ["--model.kind", "tdnn", "--model.width", "16", "--model.offsets", "[[-1,0,1],[-1,0,1]]"]
NETWORKS = {
    "tdnn": TDNN,
    "one output for two frames": [*TDNN, "--model.subsampling", "2"],
    "natural gradient and backstitch": [*NATURAL, "--backstitch.scale", "0.3", "--backstitch.interval", "1"],
    "blstm": [*NATURAL, "--model.kind", "blstm", "--model.num_layers", "1", "--model.cool_down", "2", *SMALL_LSTM],
    "tdnn-lstm": [*NATURAL, "--model.kind", "tdnn-lstm", "--model.width", "16", *SMALL_LSTM],
}


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_lattice_free_training_from_a_flat_start_learns_and_resumes(recipe, tmp_path, monkeypatch, network):
    from hemstitch.train import _loop

    chosen = load_recipe(recipe, [*SEQUENCES, *network])
    whole = train(chosen, tmp_path / "whole", QUIET)
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    losses = [row["value"] for row in rows if (row["split"], row["name"]) == ("dev", "loss")]
    assert losses[-1] < 0.9 * losses[0]
    if "lstm" not in chosen.kinds["model"]:  # those need longer
        assert json.loads((whole / "result.json").read_text())["wer"]["test"]["rate"] < 0.1
    original = _loop.Loop.one_step

    def one_step(loop):
        original(loop)
        loop.stop_requested = loop.progress.step == 13

    monkeypatch.setattr(_loop.Loop, "one_step", one_step)
    with pytest.raises(Interrupted):
        train(chosen, tmp_path / "stopped", QUIET)
    monkeypatch.setattr(_loop.Loop, "one_step", original)
    resume(tmp_path / "stopped", QUIET)
    a, b = (load_checkpoint(RunFolder.open(f).checkpoints()[-1]) for f in (whole, tmp_path / "stopped"))
    torch.testing.assert_close(a["model"], b["model"], rtol=0, atol=0)


def test_lattice_free_training_asks_for_its_topology(recipe):
    with pytest.raises(ConfigError, match="needs hmm.topology = 'chain'"):
        build_run(load_recipe(recipe, ["--criterion.kind", "lattice-free-mmi"]), QUIET)


def test_a_trained_run_recognises_again_with_other_settings(recipe, tmp_path):
    folder = train(load_recipe(recipe), tmp_path / "run", QUIET)
    run, opened = load_trained(folder, QUIET, {"decode.beam": 3.0, "decode.word_penalty": [30.0]})
    outcome = run.task.decode(run.model, opened, ("test",), QUIET)
    assert outcome["wer"]["test"]["deletions"] > 0  # words have become too dear


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (OUT_OF_VOCABULARY, r"utterances.jsonl:49: utterance 'x-1': .*ELEVEN"),
        (TOO_SHORT, r"utterances.jsonl:49: utterance 'x-2': too few frames"),
        (NO_TEXT, r"utterances.jsonl:49: .*text"),
    ],
)
def test_a_broken_utterance_stops_the_run_or_is_left_out_and_reported(tmp_path, line, message):
    write_tiny_corpus(tmp_path / "corpus", [json.dumps(line)])
    path = speech_recipe(tmp_path / "recipe.toml", tmp_path / "corpus")
    with pytest.raises(DataError, match=message):
        build_run(load_recipe(path), QUIET)
    folder = train(load_recipe(path, ["--data.tolerance", "0.05"]), tmp_path / "run", QUIET)
    events = [json.loads(row) for row in (folder / "events.jsonl").read_text().splitlines()]
    assert [e["level"] for e in events if e["kind"] == "skipped" and line["id"] in e["message"]] == ["warning"]
    assert json.loads((folder / "result.json").read_text())["wer"]["test"]["rate"] == 0


def test_a_corpus_that_changed_under_a_run_is_noticed(tiny_corpus, tmp_path):
    corpus = tmp_path / "corpus"
    shutil.copytree(tiny_corpus, corpus)
    recipe = speech_recipe(tmp_path / "recipe.toml", corpus)
    folder = train(load_recipe(recipe), tmp_path / "run", QUIET)
    lines = (corpus / "utterances.jsonl").read_text().splitlines()
    (corpus / "utterances.jsonl").write_text("\n".join(lines[1:]) + "\n")
    with pytest.raises(RunError, match=r"does not fit.*num_items = 1822, this run has 1746"):
        load_trained(folder, QUIET)


def test_a_missing_corpus_names_what_to_set(tmp_path):
    path = speech_recipe(tmp_path / "recipe.toml", tmp_path / "nowhere")
    with pytest.raises(DataError, match="no such corpus folder. Set data.importer"):
        build_run(load_recipe(path), QUIET)
