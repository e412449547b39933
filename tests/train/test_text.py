"""Text recipes: vocabulary, streams, the state that goes on, perplexity, resuming."""

import gzip
import json
import lzma
import math

import pytest
import torch

from hemstitch.errors import ConfigError, DataError
from hemstitch.testing import write_tiny_text
from hemstitch.train import Console, Interrupted, load_recipe, resume, train
from hemstitch.train._build import build_run
from hemstitch.train._checkpoint import load_checkpoint
from hemstitch.train._run_folder import RunFolder
from hemstitch.train._vocabulary import END, UNKNOWN, Vocabulary, read_sentences, read_words

QUIET = Console(quiet=True)


@pytest.fixture
def recipe_file(tmp_path):
    write_tiny_text(tmp_path)
    path = tmp_path / "tiny.toml"
    files = "\n".join(f'{part} = "{tmp_path / part}.txt"' for part in ("train", "dev", "test"))
    path.write_text(f"""
[data]
kind = "text"
chunk = 8
{files}
[model]
embedding = 12
num_cells = 16
num_recurrent = 12
dropout = 0.1
[update]
kind = "adam"
lr = 0.02
[train]
epochs = 4
batch_size = 4
""")
    return path


def test_vocabulary_keeps_the_most_frequent_words():
    vocabulary = Vocabulary.of("b b a c c c a d".split(), largest=4)
    assert vocabulary.words == (END, UNKNOWN, "c", "a")
    assert vocabulary.encode(["a", "b", END]) == [3, 1, 0]


@pytest.mark.parametrize("name", ["text.txt", "text.txt.xz", "text.txt.gz", "text.jsonl"])
def test_texts_of_every_form(tmp_path, name):
    path = tmp_path / name
    lines = ['{"text": "a b"}', '{"text": "c"}'] if name.endswith("jsonl") else ["a b", "", "c"]
    opened = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)
    with opened(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(lines))
    assert list(read_sentences(path)) == ["a b", "c"]
    assert read_words(path, "word") == ["a", "b", END, "c", END]
    assert read_words(path, "character", most=4) == ["a", " ", "b", END]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", None])
def test_texts_that_cannot_be_read(tmp_path, content):
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"text\.txt"):
        read_words(tmp_path / "text.txt", "word")


def test_the_state_goes_on_from_batch_to_batch_and_both_passes_start_from_it(recipe_file):
    run = build_run(load_recipe(recipe_file, ["--model.dropout", "0"]), QUIET)
    model, batches = run.model.train(), []
    for _ in range(3):
        batches.append(run.source.next())
        first = model(batches[-1].inputs)
        assert torch.equal(model(batches[-1].inputs), first)
    whole, _ = model.model(torch.cat([batch.inputs for batch in batches], 1))
    torch.testing.assert_close(first, whole[:, -first.shape[1] :])
    assert torch.equal(batches[0].targets[:, :-1], batches[0].inputs[:, 1:])
    assert torch.equal(batches[0].targets[:, -1], batches[1].inputs[:, 0])


def test_a_state_that_is_not_finite_is_dropped(recipe_file):
    run = build_run(load_recipe(recipe_file), QUIET)
    run.source.next()
    run.model.reached = [(torch.full((4, 12), math.nan), torch.zeros(4, 16))]
    run.source.next()
    assert run.model.history is None


METHODS = {
    "adam": [],
    "natural gradient and backstitch": [
        "--gradient.kind", "natural", "--update.kind", "max-change-sgd", "--update.lr", "1.0",
        "--backstitch.scale", "0.8", "--backstitch.interval", "2"],
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_a_run_learns_to_count_and_continues_to_the_same_bits(recipe_file, tmp_path, monkeypatch, method):
    from hemstitch.train import _loop

    recipe = load_recipe(recipe_file, METHODS[method])
    whole = train(recipe, tmp_path / "whole", QUIET)
    result = json.loads((whole / "result.json").read_text())
    assert result["perplexity"]["test"] < 3.5  # of 8 words; what cannot be known is the start and the end

    original = _loop.Loop.one_step

    def one_step(loop):
        original(loop)
        loop.stop_requested = loop.progress.step == 23

    monkeypatch.setattr(_loop.Loop, "one_step", one_step)
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "stopped", QUIET)
    monkeypatch.setattr(_loop.Loop, "one_step", original)
    again = resume(tmp_path / "stopped", QUIET)
    states = [load_checkpoint(RunFolder.open(run).checkpoints()[-1]) for run in (whole, again)]
    for part in ("model", "task"):
        torch.testing.assert_close(states[0][part], states[1][part], rtol=0, atol=0)
    assert json.loads((again / "result.json").read_text())["perplexity"] == result["perplexity"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (["--criterion.kind", "lattice-free-mmi"], "does not go with data.kind = 'text'"),
        (["--model.kind", "tdnn"], "lstm-lm"),
        (["--model.tied", "true", "--model.embedding", "10"], "tied"),
    ],
)
def test_what_does_not_fit_running_text_is_refused(recipe_file, setting, message):
    with pytest.raises(ConfigError, match=message):
        build_run(load_recipe(recipe_file, setting), QUIET)


def test_more_streams_than_text_are_refused(recipe_file):
    with pytest.raises(DataError, match=r"train\.batch_size"):
        build_run(load_recipe(recipe_file, ["--train.batch_size", "5000"]), QUIET)
