import numpy as np
import pytest
from recordings import RATE, digest, pcm, write_dictionary, write_tone

from hemstitch.errors import ConfigError, DataError
from hemstitch.speech import LanguageModel, Lexicon, import_corpus, import_kaldi


def write_data(folder, **files):
    """A data directory; each file is given by its lines."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_scp", ".scp")).write_text(text)
    return folder


@pytest.fixture
def data(tmp_path):
    """data/train with two whole files and data/eval with two parts of a long one, and a dictionary."""
    for name in ("ann-1", "bob-1", "long"):
        write_tone(tmp_path / "audio" / f"{name}.wav")
    write_data(tmp_path / "data" / "train", wav_scp="ann-1 ../audio/ann-1.wav\nbob-1 ../audio/bob-1.wav\n",
               text="ann-1 ONE TWO\nbob-1 THREE\n", utt2spk="ann-1 ann\nbob-1 bob\n")
    write_data(tmp_path / "data" / "eval", wav_scp=f"long {tmp_path}/audio/long.wav\n",
               segments="cid-1 long 0.1 0.225\ncid-2 long 0.3 -1\n", text="cid-1 TWO\ncid-2 ONE\n",
               utt2spk="cid-1 cid\ncid-2 cid\n")
    return tmp_path / "data"


def test_data_directories_become_splits_and_segments_are_cut_to_the_bit(data, tmp_path):
    corpus = import_kaldi(data, tmp_path / "corpus", lexicon=write_dictionary(tmp_path), root=str(data))
    assert corpus.splits == ("test", "train") and corpus.sampling_rate == RATE
    assert [(u.id, u.speaker, u.text, u.split) for u in corpus] == [
        ("cid-1", "cid", "TWO", "test"), ("cid-2", "cid", "ONE", "test"),
        ("ann-1", "ann", "ONE TWO", "train"), ("bob-1", "bob", "THREE", "train")]
    long = pcm(tmp_path / "audio" / "long.wav")
    np.testing.assert_array_equal(pcm(corpus.folder / "audio" / "cid-1.wav"), long[800:1800])
    np.testing.assert_array_equal(pcm(corpus.folder / "audio" / "cid-2.wav"), long[2400:])
    assert (corpus.folder / "audio" / "ann-1.wav").read_bytes() == (tmp_path / "audio" / "ann-1.wav").read_bytes()


def test_words_get_pronunciations_and_only_training_words_can_be_recognised(data, tmp_path):
    write_data(data / "train", wav_scp="ann-1 ../audio/ann-1.wav\n", text="ann-1 ONE ONE\n", utt2spk="ann-1 ann\n")
    options = {"lexicon": write_dictionary(tmp_path), "root": str(data)}
    corpus = import_kaldi(data, tmp_path / "corpus", **options)
    lexicon = Lexicon.read(corpus.lexicon)
    assert [p.phones for p in lexicon.entries["ONE"]] == [("W", "AH", "N"), ("HH", "W", "AH", "N")]
    assert lexicon.words == ("ONE", "TWO")  # the unseen test word can be aligned ...
    assert LanguageModel.read(corpus.language_model()).vocabulary == ("ONE",)  # ... and not be recognised
    stressed = import_kaldi(data, tmp_path / "stressed", stress=True, **options)
    assert Lexicon.read(stressed.lexicon).entries["TWO"][0].phones == ("T", "UW1")
    spelled = import_kaldi(data, tmp_path / "spelled", lexicon="letters", root=str(data))
    assert Lexicon.read(spelled.lexicon).entries["ONE"][0].phones == ("o", "n", "e")


def test_a_language_model_that_is_given_brings_its_words(data, tmp_path):
    model = tmp_path / "given.arpa"
    LanguageModel.unigram([["ONE", "THREE", "TWO", "ELEVEN"]]).write(model)
    corpus = import_kaldi(data, tmp_path / "corpus", lexicon=write_dictionary(tmp_path), lm=str(model), parts="eval")
    assert corpus.splits == ("test",)
    assert corpus.language_model().read_bytes() == model.read_bytes()
    assert set(Lexicon.read(corpus.lexicon).words) == {"ONE", "TWO", "THREE"}


def test_a_dict_folder_names_the_silence_phone_and_gives_probabilities(data, tmp_path):
    write_data(tmp_path / "dict", **{"lexiconp.txt": "!SIL 1.0 SPN\nONE 0.25 W AH1 N\nTWO 1.0 T UW1\nTHREE 1.0 TH R\n",
                                     "optional_silence.txt": "SPN\n"})
    corpus = import_corpus("kaldi", tmp_path / "corpus", source=data, settings=[f"lexicon={tmp_path / 'dict'}",
                                                                               f"root={data}"])
    assert corpus.silence == "SPN"
    assert Lexicon.read(corpus.lexicon).entries["ONE"][0].probability == 0.25


def test_importing_twice_gives_the_same_bytes_and_links_point_at_the_source(data, tmp_path):
    options = {"lexicon": write_dictionary(tmp_path), "root": str(data), "parts": "train=test"}
    first = import_kaldi(data, tmp_path / "first", **options)
    second = import_kaldi(data, tmp_path / "second", **options)
    assert digest(first.folder) == digest(second.folder) and first.splits == ("test",)
    linked = import_kaldi(data, tmp_path / "linked", media="link", **options)
    assert (linked.folder / "audio" / "ann-1.wav").resolve() == (tmp_path / "audio" / "ann-1.wav").resolve()


def test_another_sampling_rate_is_refused_or_converted(data, tmp_path):
    write_tone(tmp_path / "audio" / "bob-1.wav", rate=16000)
    options = {"lexicon": write_dictionary(tmp_path), "root": str(data), "parts": "train"}
    with pytest.raises(DataError, match=r"text:2: utterance 'bob-1': .* 16000 Hz, expected 8000 .*sampling_rate="):
        import_kaldi(data, tmp_path / "refused", **options)
    corpus = import_kaldi(data, tmp_path / "converted", sampling_rate=RATE, **options)
    assert len(pcm(corpus.folder / "audio" / "bob-1.wav")) == RATE // 2


@pytest.mark.parametrize(("file", "content", "message"), [
    ("wav.scp", "ann-1 sph2pipe -f wav a.sph |\n", r"wav\.scp:1: 'sph2pipe .*\|' is a command, .*Run it once into"),
    ("wav.scp", "ann-1 raw.ark:17\n", r"wav\.scp:1: 'raw\.ark:17' is a place in an archive.*wav-copy"),
    ("wav.scp", "ann-1\n", r"wav\.scp:1: nothing after ann-1"),
    ("text", "ann-1 ONE\nann-1 TWO\n", r"text:2: ann-1 is already in line 1"),
    ("text", "ann-1 ONE\n\n", r"text:2: empty line"),
    ("text", "ann-1 ONE FOUR FIVE\n", r"text:1: .*no pronunciation of FOUR, FIVE[\s\S]*2 words .*FIVE \(1x\)"),
    ("text", "ann-1\n", r"text:1: utterance 'ann-1': has no words"),
    ("utt2spk", "bob-1 bob\n", r"text:1: utterance 'ann-1': is not in utt2spk"),
    ("segments", "ann-1 ann-1 0 9\n", r"text:1: .*from 0 s to 9 s is no part of the 0\.5 s"),
    ("segments", "ann-1 ann-1 0 0.2 1\n", r"segments:1: expected UTTERANCE RECORDING BEGIN END .*got 4 fields"),
    ("segments", "ann-1 bob-9 0 0.2\n", r"text:1: utterance 'ann-1': needs the recording bob-9"),
    ("segments", "ann-1 ann-1 0 0.2\nx ann-1 0 1\n", r"segments:2: utterance 'x': has no transcript"),
])
def test_what_is_wrong_is_named_with_its_line_and_nothing_is_left_behind(data, tmp_path, file, content, message):
    write_data(data / "one", wav_scp="ann-1 ../audio/ann-1.wav\n", text="ann-1 ONE\n", utt2spk="ann-1 ann\n")
    (data / "one" / file).write_text(content)
    with pytest.raises(DataError, match=message):
        import_kaldi(data / "one", tmp_path / "out" / "corpus", lexicon=write_dictionary(tmp_path), root=str(data))
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_what_the_tolerance_leaves_out_is_listed(data, tmp_path):
    (data / "train" / "text").write_text("ann-1 ONE TWO\nbob-1 FOUR FOUR\n")
    (data / "eval" / "text").write_text("cid-1 TWO FOUR\ncid-2 ONE\n")
    corpus = import_kaldi(data, tmp_path / "corpus", lexicon=write_dictionary(tmp_path), root=str(data), tolerance=0.25)
    assert [u.id for u in corpus] == ["cid-1", "cid-2", "ann-1"]  # a test word without pronunciation costs an error
    assert "train/text:2: utterance 'bob-1': no pronunciation of FOUR" in (corpus.folder / "left-out.txt").read_text()
    assert (corpus.folder / "out-of-vocabulary.txt").read_text() == "FOUR 3\n"


def test_settings_that_cannot_be_used(data, tmp_path):
    with pytest.raises(ConfigError, match=r"no pronunciations: set lexicon to a file .* or to letters"):
        import_kaldi(data, tmp_path / "corpus")
    with pytest.raises(ConfigError, match=r"parts = 'evil': unknown part 'evil': did you mean 'eval'\? in"):
        import_kaldi(data, tmp_path / "corpus", lexicon="letters", parts="evil")
    (data / "eval" / "text").write_bytes(b"cid-1 \xff\n")
    with pytest.raises(DataError, match=r"eval/text: not UTF-8 at byte 6: convert it with iconv"):
        import_kaldi(data, tmp_path / "corpus", lexicon="letters")
    with pytest.raises(DataError, match=r"nowhere: no wav\.scp here"):
        import_kaldi(tmp_path / "nowhere", tmp_path / "corpus", lexicon="letters")
