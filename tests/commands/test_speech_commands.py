import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hemstitch.cli import main
from hemstitch.commands._speech import _difference
from hemstitch.speech import in_frames, read_ctm
from hemstitch.train import Console, load_recipe, load_trained, train

RATE = 8000
LEXICON = {"ONE": "A B", "TWO": "B C", "TEN": "C A"}
TONES = {"A": 500, "B": 1200, "C": 2400}
PHONE = 0.12
RECIPE = """
name = "tones"
[data]
corpus = "{corpus}"
dev_share = 0.2
[features]
num_mel_bins = 16
normalisation = "{normalisation}"
[hmm]
states_per_phone = 1
silence_states = 1
realign = [1, 2]
[model]
hidden = [16]
left_context = 2
right_context = 2
[update]
kind = "adam"
lr = 0.02
[train]
epochs = 4
batch_size = 64
threads = 1
[decode]
acoustic_scale = [1.0]
prior_scale = [0.7, 1.0]
word_penalty = [0.0]
"""


def speak(words, rng, gap=0.15):
    """Tones for phones over faint noise, a pause around each word; samples and (word, start, end) in seconds."""
    pieces, times = [np.zeros(round(gap * RATE))], []
    for word in words:
        start = sum(map(len, pieces)) / RATE
        for phone in LEXICON[word].split():
            time = np.arange(round(PHONE * RATE * rng.uniform(0.9, 1.1))) / RATE
            pieces.append(0.2 * np.sin(2 * np.pi * TONES[phone] * time))
        times.append((word, start, sum(map(len, pieces)) / RATE))
        pieces.append(np.zeros(round(gap * RATE)))
    samples = np.concatenate(pieces)
    return samples + 1e-3 * rng.standard_normal(len(samples)), times


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Forty utterances of ten speakers, with the times of their words."""
    folder, rng = tmp_path_factory.mktemp("tones"), np.random.default_rng(0)
    lines = []
    for number in range(40):
        samples, times = speak(rng.choice(sorted(LEXICON), rng.integers(1, 4)), rng)
        soundfile.write(folder / f"{number}.wav", samples, RATE)
        lines.append({"id": f"u/{number}", "speaker": f"s{number % 10}", "text": " ".join(t[0] for t in times),
                      "split": "test" if number % 10 > 7 else "train", "audio": f"{number}.wav", "word_times": times})
    (folder / "utterances.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "lexicon.txt").write_text("".join(f"{w} {p}\n" for w, p in LEXICON.items()))
    (folder / "corpus.json").write_text(json.dumps({"name": "tones", "sampling_rate": RATE}))
    unigrams = "".join(f"-0.6021 {w}\n" for w in ("</s>", *LEXICON)) + "-99 <s>\n"
    (folder / "lm.arpa").write_text(f"\\data\\\nngram 1=5\n\n\\1-grams:\n{unigrams}\n\\end\\\n")
    return folder


def train_tones(corpus, folder, normalisation):
    """A finished run that makes no error on the test part."""
    (folder / "recipe.toml").write_text(RECIPE.format(corpus=corpus, normalisation=normalisation))
    path = train(load_recipe(folder / "recipe.toml"), folder / "run", Console(quiet=True))
    assert json.loads((path / "result.json").read_text())["wer"]["test"]["rate"] == 0
    return path


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    return train_tones(corpus, tmp_path_factory.mktemp("trained"), "utterance")


def run(capsys, *arguments):
    """Exit status, standard output, standard error."""
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def spoken(corpus):
    return {u["id"]: u["word_times"] for u in map(json.loads, (corpus / "utterances.jsonl").read_text().splitlines())}


def assert_times(found, expected, within=0.05):
    assert [w.label for w in found] == [w for w, _, _ in expected]
    for word, (_, start, end) in zip(found, expected):
        assert word.start == pytest.approx(start, abs=within) and word.end == pytest.approx(end, abs=within)


def test_alignments_find_the_words_where_they_are(capsys, trained, corpus, tmp_path):
    status, out, _ = run(capsys, "align", trained, "--part", "test", "--out", tmp_path / "ali")
    assert status == 0 and "8 utterances aligned, 0 left out" in out
    words, phones = (read_ctm(tmp_path / "ali" / f"{tier}.ctm") for tier in ("words", "phones"))
    for name, times in spoken(corpus).items():
        if name in words:
            assert_times(words[name], times)
            assert in_frames(phones[name], 0.01)[0].label == "SIL"
    assert len(words) == len(phones) == 8
    assert run(capsys, "align", trained, "--format", "textgrid")[0] == 0
    grids = list((trained / "align" / "train").glob("*.TextGrid"))
    assert len(grids) > 20 and any(p.name.startswith("u%2F") for p in grids)
    assert 'name = "phones"' in grids[0].read_text()


def test_utterances_that_cannot_be_aligned_are_named(capsys, trained, corpus, tmp_path, monkeypatch):
    from hemstitch.train import _speech

    original = _speech.recognised_part

    def with_a_foreign_word(*arguments):
        part = original(*arguments)
        object.__setattr__(part.utterances[0], "text", "ELEVEN")
        return part

    monkeypatch.setattr(_speech, "recognised_part", with_a_foreign_word)
    status, out, err = run(capsys, "align", trained, "--part", "test", "--out", tmp_path)
    assert status == 0 and "7 utterances aligned, 1 left out" in out and "'ELEVEN'" in err


def test_recordings_become_words_with_times(capsys, trained, tmp_path):
    samples, times = speak(["TWO", "ONE", "TEN"], np.random.default_rng(7))
    soundfile.write(tmp_path / "new.flac", samples, RATE)
    status, out, _ = run(capsys, "transcribe", trained, tmp_path / "new.flac")
    assert status == 0 and out == f"{tmp_path / 'new.flac'}: TWO ONE TEN\n"
    status, out, _ = run(capsys, "transcribe", trained, tmp_path / "new.flac", "--format", "json")
    entry = json.loads(out)
    assert entry["text"] == "TWO ONE TEN" and entry["seconds"] == pytest.approx(len(samples) / RATE, abs=1e-3)
    assert run(capsys, "transcribe", trained, tmp_path / "new.flac", "--format", "ctm", "--out", tmp_path / "x")[0] == 0
    assert_times(read_ctm(tmp_path / "x")["new"], times)
    run(capsys, "transcribe", trained, tmp_path / "new.flac", "--format", "textgrid", "--out", tmp_path / "grids")
    assert 'text = "TEN"' in (tmp_path / "grids" / "new.TextGrid").read_text()


def test_the_statistics_of_the_training_data_are_used(capsys, corpus, tmp_path):
    trained = train_tones(corpus, tmp_path, "global")
    samples, _ = speak(["ONE"], np.random.default_rng(7), gap=0.8)  # its own mean would be another
    soundfile.write(tmp_path / "new.wav", samples, RATE)
    assert run(capsys, "transcribe", trained, tmp_path / "new.wav")[1].endswith(": ONE\n")


def test_a_long_recording_in_pieces_is_what_it_is_in_one(capsys, trained, tmp_path):
    rng = np.random.default_rng(3)
    samples, times = speak(rng.choice(sorted(LEXICON), 30), rng)
    soundfile.write(tmp_path / "long.wav", samples, RATE)
    for longest in (2.5, 1000):
        run(capsys, "transcribe", trained, tmp_path / "long.wav", "--format", "ctm", "--longest", longest,
            "--out", tmp_path / f"{longest}.ctm")
        assert_times(read_ctm(tmp_path / f"{longest}.ctm")["long"], times)


def test_another_sampling_rate_is_refused_or_converted(capsys, trained, tmp_path):
    samples, _ = speak(["TEN", "TWO"], np.random.default_rng(5))
    soundfile.write(tmp_path / "wide.wav", np.interp(np.arange(0, len(samples), 0.5), np.arange(len(samples)), samples),
                    2 * RATE)
    status, out, err = run(capsys, "transcribe", trained, tmp_path / "wide.wav")
    assert status == 2 and "16000 Hz, the run was trained at 8000 Hz: add --resample" in err
    status, out, _ = run(capsys, "transcribe", trained, tmp_path / "wide.wav", "--resample")
    assert status == 0 and out.endswith(": TEN TWO\n")


def test_one_bad_recording_does_not_stop_the_others(capsys, trained, corpus, tmp_path):
    (tmp_path / "text.wav").write_text("no audio")
    soundfile.write(tmp_path / "short.wav", np.zeros(100), RATE)
    files = [tmp_path / "nowhere.wav", tmp_path / "text.wav", tmp_path / "short.wav", corpus / "8.wav"]
    status, out, err = run(capsys, "transcribe", trained, *files)
    assert status == 2 and out == f"{corpus / '8.wav'}: {' '.join(w for w, _, _ in spoken(corpus)['u/8'])}\n"
    for message in ("nowhere.wav is missing", "text.wav is not readable as audio", "short.wav is too short: 0.013 s"):
        assert message in err


def test_settings_and_runs_that_do_not_fit(capsys, trained, corpus, tmp_path, tiny_corpus, tiny_recipe):
    from tiny_speech import speech_recipe

    wav = corpus / "8.wav"
    assert run(capsys, "transcribe", trained, wav, "--decode.acoustic_scale", "0.5", "--decode.beam", "20")[0] == 0
    assert "takes only --decode.* settings, got --train.epochs" in run(
        capsys, "transcribe", trained, wav, "--train.epochs", "1")[2]
    assert "add --out FOLDER" in run(capsys, "transcribe", trained, wav, "--format", "textgrid")[2]
    assert "longer than 2 s, got 1" in run(capsys, "transcribe", trained, wav, "--longest", "1")[2]
    unfinished = shutil.copytree(trained, tmp_path / "unfinished")
    (unfinished / "result.json").unlink()
    assert "candidates for decode.prior_scale is best has not been found out" in run(
        capsys, "transcribe", unfinished, wav)[2]
    assert run(capsys, "transcribe", unfinished, wav, "--decode.prior_scale", "1")[0] == 0
    recipe = speech_recipe(tmp_path / "stored.toml", tiny_corpus)
    stored = train(load_recipe(recipe, ["--train.epochs", "1"]), tmp_path / "stored", Console(quiet=True))
    assert "was trained on stored features (tiny)" in run(capsys, "transcribe", stored, wav)[2]
    assert run(capsys, "align", stored, "--part", "dev")[0] == 0
    pixels = train(load_recipe(tiny_recipe, ["--train.epochs", "1"]), tmp_path / "pixels", Console(quiet=True))
    assert "is not a speech run: there is nothing to align" in run(capsys, "align", pixels)[2]


def test_log_likelihoods_as_arrays(capsys, trained, tmp_path):
    status, out, _ = run(capsys, "export", trained, "--to", "loglikelihoods", "--part", "dev", "--out",
                         tmp_path / "a.npz")
    assert status == 0 and Path(out.strip()) == tmp_path / "a.npz"
    loaded, _ = load_trained(trained, Console(quiet=True))
    part = loaded.task.parts["dev"]
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        assert arrays["ids"].tolist() == [u.id for u in part.utterances]
        np.testing.assert_array_equal(arrays["offsets"], part.offsets)
        posteriors = np.exp(arrays["loglikelihoods"] + arrays["log_priors"])
        np.testing.assert_allclose(posteriors.sum(1), 1, rtol=1e-4)
        assert float(arrays["row_shift"]) == 0.01


def test_onnx_says_what_is_missing(capsys, trained, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    status, _, err = run(capsys, "export", trained, "--to", "onnx")
    assert status == 2 and "pip install 'hemstitch[onnx]'" in err


@pytest.mark.skipif(not all(map(importlib.util.find_spec, ("onnx", "onnxscript"))), reason="needs hemstitch[onnx]")
@pytest.mark.parametrize("frames", [0, 6])
def test_the_network_as_onnx_gives_the_same_scores(capsys, trained, tmp_path, frames):
    import onnx.reference

    status, out, _ = run(capsys, "export", trained, "--to", "onnx", "--out", tmp_path / "net.onnx", "--frames", frames)
    assert status == 0 and Path(out.strip()).is_file()
    session = onnx.reference.ReferenceEvaluator(str(tmp_path / "net.onnx"))
    loaded, _ = load_trained(trained, Console(quiet=True))
    assert _difference(loaded.model.eval(), session, frames or 33) < 1e-5
    about = {entry.key: entry.value for entry in onnx.load(tmp_path / "net.onnx").metadata_props}
    assert (about["left_context"], about["right_context"], about["subsampling"]) == ("2", "2", "1")


def test_recognition_tells_how_sure_it_is_and_what_else_it_may_be(capsys, trained, corpus, tmp_path):
    status, _, err = run(capsys, "decode", trained, "--nbest", 3, "--confidences", "--lattices", tmp_path / "slf")
    assert status == 0, err
    rows = [json.loads(line) for line in (trained / "decode" / "test.jsonl").read_text().splitlines()]
    for row in rows:
        assert row["alternatives"][0]["text"] == row["hypothesis"]
        assert len(row["confidences"]) == len(row["hypothesis"].split()) and min(row["confidences"]) > 0.5
        assert [a["cost"] for a in row["alternatives"]] == sorted(a["cost"] for a in row["alternatives"])
    assert len(list((tmp_path / "slf").glob("u%2F*.slf"))) == len(rows) == 8


def test_transcripts_with_confidences_alternatives_and_lattices(capsys, trained, tmp_path):
    rng = np.random.default_rng(3)
    samples, times = speak(rng.choice(sorted(LEXICON), 12), rng)
    soundfile.write(tmp_path / "long.wav", samples, RATE)
    asked = ["transcribe", trained, tmp_path / "long.wav", "--longest", 2.5, "--confidences"]
    entry = json.loads(run(capsys, *asked, "--format", "json", "--nbest", 2, "--lattices", tmp_path / "slf",
                           "--lattice-beam", 300, "--decode.beam", 1000)[1])
    assert entry["text"].split() == [w for w, _, _ in times] == [w[0] for w in entry["words"]]
    assert all(0.5 < w[3] <= 1 for w in entry["words"])
    assert len(entry["alternatives"]) == len(list((tmp_path / "slf").glob("long-*.slf"))) > 1
    assert all(len(piece["alternatives"]) == 2 for piece in entry["alternatives"])
    ctm = [line.split() for line in run(capsys, *asked, "--format", "ctm")[1].splitlines()]
    assert [float(line[5]) for line in ctm] == [pytest.approx(w[3]) for w in entry["words"]]
    assert "take json, or ctm" in run(capsys, *asked)[2]
    assert "take json" in run(capsys, *asked, "--format", "ctm", "--nbest", 2)[2]
    assert "--nbest must be 1 or more" in run(capsys, "decode", trained, "--nbest", -1)[2]


def test_a_run_with_copies_and_the_speaker_s_vector_transcribes(capsys, corpus, tmp_path):
    extra = ["--augment.speed", "[0.95]", "--augment.noise", "[30]", "--augment.volume", "3", "--embedding.dim", "3",
             "--augment.frequency_masks", "1", "--augment.frequency_mask_bins", "2"]  # fmt: skip
    (tmp_path / "recipe.toml").write_text(RECIPE.format(corpus=corpus, normalisation="utterance"))
    path = train(load_recipe(tmp_path / "recipe.toml", extra), tmp_path / "run", Console(quiet=True))
    assert json.loads((path / "result.json").read_text())["wer"]["test"]["rate"] < 0.1
    task = load_trained(path, Console(quiet=True))[0].task
    copies = [u for u in task.parts["train"].utterances if "copy_of" in u.info]
    assert task.num_inputs == 16 + 3 and len(copies) == len(task.parts["train"].utterances) / 2
    samples, _ = speak(["TWO", "ONE", "TEN"], np.random.default_rng(7))
    soundfile.write(tmp_path / "new.wav", samples, RATE)
    assert run(capsys, "transcribe", path, tmp_path / "new.wav")[1].endswith(": TWO ONE TEN\n")
    assert run(capsys, "align", path, "--part", "test", "--out", tmp_path / "ali")[0] == 0


# -- another language model ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    """A run on text that knows two of the three words, in small letters."""
    folder = tmp_path_factory.mktemp("text")
    for part, count in (("train", 60), ("dev", 20), ("test", 20)):
        (folder / f"{part}.txt").write_text("one two\ntwo one one\n" * count)
    files = "\n".join(f'{part} = "{folder / part}.txt"' for part in ("train", "dev", "test"))
    (folder / "recipe.toml").write_text(f"""
[data]
kind = "text"
chunk = 4
{files}
[model]
embedding = 4
num_cells = 4
num_recurrent = 4
[update]
kind = "adam"
[train]
epochs = 1
batch_size = 4
""")
    return train(load_recipe(folder / "recipe.toml"), folder / "run", Console(quiet=True))


def test_rescoring_tells_before_and_after(trained, language_model, capsys):
    status, out, _ = run(capsys, "rescore", trained, language_model, "--best", 5, "--weights", "0,0.1")
    assert status == 0 and out.count("test WER") == 3 and "(chosen)" in out
    assert "1 words are unknown" in out and "TEN" in out
    rows = [json.loads(line) for line in (trained / "rescore" / "test.jsonl").read_text().splitlines()]
    assert len(rows) == 8 and all(row["hypothesis"] == row["reference"] for row in rows)


@pytest.mark.parametrize(("arguments", "message"), [
    (["--weights", "2"], "from 0"), (["--weights", "x"], "numbers"), (["--best", "0"], "at least one sentence"),
    (["--model.hidden", "[3]"], "--decode"),
])  # fmt: skip
def test_rescoring_that_cannot_be(trained, language_model, capsys, arguments, message):
    status, _, error = run(capsys, "rescore", trained, language_model, *arguments)
    assert status == 2 and message in error


def test_rescoring_needs_a_run_on_text(trained, capsys):
    status, _, error = run(capsys, "rescore", trained, trained)
    assert status == 2 and "not a language model" in error
