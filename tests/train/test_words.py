import json

import numpy as np
import pytest

from hemstitch.cli import main
from hemstitch.errors import ConfigError, DataError
from hemstitch.speech import LanguageModel, Lexicon, estimate_ngrams, estimate_silence_probability, perplexity
from hemstitch.testing import write_tiny_corpus
from hemstitch.train import Console, load_recipe, load_trained, train
from hemstitch.train._build import build_run
from tiny_speech import speech_recipe

QUIET = Console(quiet=True)
FOREIGN = {"id": "x-1", "speaker": "s0", "text": "ONE ELEVEN", "split": "train", "features": ["features.npy", 0, 60]}


@pytest.fixture
def corpus(tmp_path):
    write_tiny_corpus(tmp_path / "corpus", [json.dumps(FOREIGN)])
    return tmp_path / "corpus"


@pytest.fixture
def recipe(corpus, tmp_path):
    return speech_recipe(tmp_path / "recipe.toml", corpus)


def task_of(recipe, *settings):
    return build_run(load_recipe(recipe, ["--data.unknown_words", "skip", *settings]), QUIET).task


def test_unknown_words_are_refused_left_out_or_learned_as_garbage(recipe):
    with pytest.raises(DataError, match="ELEVEN"):
        task_of(recipe, "--data.unknown_words", "error")
    skipped = task_of(recipe)
    assert "x-1" not in {u.id for u in skipped.parts["train"].utterances}
    assert any("1 utterances with words outside the lexicon, such as x-1" in text for _, text in skipped.notices)
    garbage = task_of(recipe, "--data.unknown_words", "garbage")
    place = [u.id for u in garbage.parts["train"].utterances].index("x-1")
    assert garbage.transcripts("train")[place] == ["ONE", "<unk>"] and "SPN" in garbage.topology.phones
    spoken = garbage.parts["train"].targets[garbage.parts["train"].cut(place)].unique().tolist()
    assert garbage.topology.pdf(garbage.topology.phones.index("SPN") + 1, 0) in spoken
    assert "<unk>" in garbage.decoding_graph().unreachable  # the corpus's language model has no such word


def test_a_run_with_garbage_is_scored_on_what_was_said(tmp_path):
    write_tiny_corpus(tmp_path / "corpus", [json.dumps(FOREIGN | {"split": "dev"})])
    recipe = speech_recipe(tmp_path / "recipe.toml", tmp_path / "corpus")
    settings = ["--data.unknown_words", "garbage", "--train.epochs", "1"]
    folder = train(load_recipe(recipe, settings), tmp_path / "run", QUIET)
    (row,) = (json.loads(line) for line in (folder / "decode" / "dev.jsonl").read_text().splitlines())
    assert row["reference"] == "ONE ELEVEN" and "ELEVEN" not in row["hypothesis"]
    assert json.loads((folder / "result.json").read_text())["wer"]["dev"]["words"] == 2


@pytest.fixture
def varied(corpus):
    """ONE may also be said as B C; it never is."""
    with open(corpus / "lexicon.txt", "a") as file:
        file.write("ONE C C\n")


TIED = ["--hmm.context", "both", "--hmm.leaves", "9", "--hmm.leaf_frames", "20"]
MMI = ["--criterion.kind", "lattice-free-mmi", "--criterion.numerator", "alignments", "--hmm.topology", "chain",
       "--hmm.realign", "[]", "--train.batch_size", "4"]  # fmt: skip


@pytest.mark.parametrize("settings", [[], TIED, MMI])
def test_probabilities_are_those_of_the_flat_start_and_are_kept(varied, recipe, tmp_path, settings, monkeypatch):
    from hemstitch.train import _frames, _sequences

    seen = []
    for module in (_frames, _sequences):
        original = module.gaussian_rounds
        monkeypatch.setattr(module, "gaussian_rounds", lambda *a, f=original: seen.append(f(*a)) or seen[-1])
    settings = ["--data.unknown_words", "skip", "--hmm.probabilities", "estimated", "--train.epochs", "1", *settings]
    folder = train(load_recipe(recipe, settings), tmp_path / "run", QUIET)
    alignments = seen[0]["train"]
    said = sum(word.label == "ONE" for a in alignments for word in a.words)
    task = load_trained(folder, QUIET)[0].task
    probabilities = [p.probability for p in task.lexicon.entries["ONE"]]
    other = sum([p.label for p in a.phones if w.start <= p.start < w.end] == ["C", "C"]
                for a in alignments for w in a.words)  # fmt: skip
    assert said > 10 and probabilities == pytest.approx([1.0, (other + 1) / (said - other + 1)])
    expected = estimate_silence_probability(alignments)
    assert task.silence_probability == expected != task.recipe.hmm.silence_probability
    np.testing.assert_allclose(task.parts["train"].graphs[0].cost, task.training_graph(
        task.transcripts("train")[0]).cost)  # fmt: skip


def test_probabilities_come_with_an_alignment(varied, recipe, tmp_path):
    runs = {}
    for kind in ("estimated", "given"):
        settings = ["--data.unknown_words", "skip", "--train.epochs", "1", "--hmm.probabilities", kind]
        runs[kind] = train(load_recipe(recipe, settings), tmp_path / kind, QUIET)
    from_estimated, from_given = (["--start.run", str(runs[kind]), "--start.alignment", "true"] for kind in runs)
    task, former = task_of(recipe, *from_estimated), load_trained(runs["estimated"], QUIET)[0].task
    assert task.silence_probability == former.silence_probability != task.recipe.hmm.silence_probability
    assert task.kept() == former.kept() and task.lexicon.entries == former.lexicon.entries
    with pytest.raises(ConfigError, match="has estimated none"):
        task_of(recipe, *from_given, "--hmm.probabilities", "estimated")


@pytest.mark.parametrize("settings, message", [
    (["--criterion.kind", "ctc"], "no alignment to count in"),
    (["--criterion.kind", "lattice-free-mmi", "--hmm.topology", "chain"], "no alignment to count in"),
    (["--hmm.flat_start", "0"], "flat_start must be at least 1"),
])  # fmt: skip
def test_without_an_alignment_nothing_can_be_estimated(recipe, settings, message):
    with pytest.raises(ConfigError, match=message):
        task_of(recipe, "--hmm.probabilities", "estimated", *settings)


def test_training_and_test_have_language_models_of_their_own(recipe, corpus, tmp_path):
    weak = LanguageModel.unigram([["ONE"]], ["TWO", "TEN"], 1.0)
    weak.write(corpus / "weak.arpa")
    start = train(load_recipe(recipe, ["--data.unknown_words", "skip", "--train.epochs", "1"]), tmp_path / "ce", QUIET)
    settings = ["--criterion.kind", "mmi", "--start.run", str(start), "--start.alignment", "true", "--train.batch_size",
                "4", "--decode.language_model", "2-gram"]  # fmt: skip
    found = {}
    for name in ("weak.arpa", ""):
        task = task_of(recipe, *settings, "--criterion.language_model", name)
        found[name] = task.weak_graph.graph
    expected = task.graph_of(weak).graph
    assert found["weak.arpa"].num_arcs == expected.num_arcs and found["weak.arpa"].cost.equal(expected.cost)
    assert not found[""].cost.equal(expected.cost)
    strong = estimate_ngrams(task.transcripts("train"), 2, method="witten-bell", words=task.lexicon.words)
    assert task.decoding_graph().graph.cost.equal(task.graph_of(strong).graph.cost)


def test_the_command_writes_what_the_library_estimates(corpus, capsys, tmp_path):
    assert main(["lm", str(corpus), "--order", "2", "--method", "witten-bell"]) == 0
    out = capsys.readouterr().out
    sentences = [json.loads(line) for line in (corpus / "utterances.jsonl").read_text().splitlines()]
    train_part = [u["text"].split() for u in sentences if u["split"] == "train"]
    words = Lexicon.read(corpus / "lexicon.txt").words
    expected = estimate_ngrams(train_part, 2, method="witten-bell", words=words)
    model = LanguageModel.read(corpus / "2-gram.arpa")
    assert model.order == 2 and set(model.vocabulary) == {*words, "ELEVEN"}
    for sentence in train_part:
        ours, theirs = (m.sentence_log_probability(sentence) for m in (model, expected))
        assert ours == pytest.approx(theirs, abs=1e-4)
    rest = perplexity(expected, [u["text"].split() for u in sentences if u["split"] == "test"])
    assert f"test: perplexity {rest.value:.2f} over {rest.words} words, 0 unknown" in out
    assert "1 words are not in the lexicon" in out and "--decode.language_model 2-gram.arpa" in out
    (tmp_path / "text.txt").write_text("TEN TEN\nTEN\n")
    assert main(["lm", str(corpus), "--text", str(tmp_path / "text.txt"), "--out", "own.arpa", "--order", "1"]) == 0
    assert LanguageModel.read(corpus / "own.arpa").log_probability("TEN") == pytest.approx(np.log(0.5), abs=0.3)
    assert main(["lm", str(corpus), "--order", "0"]) == 2
    assert main(["lm", str(corpus), "--text", str(tmp_path / "nowhere")]) == 2
