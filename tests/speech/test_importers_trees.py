import pytest
from recordings import RATE, digest, pcm, write_dictionary, write_tone

from hemstitch.errors import ConfigError, DataError
from hemstitch.speech import LanguageModel, Lexicon, import_an4_audio, import_librispeech, import_wav_tree


def words_of(corpus):
    return {u.id: (u.speaker, u.text, u.split) for u in corpus}


# A folder of audio and transcripts

@pytest.fixture
def tree(tmp_path):
    """Two speakers with two files each and the transcript beside each."""
    for name in ("ann/a1", "ann/a2", "bob/b1", "bob/b2"):
        write_tone(tmp_path / "tree" / f"{name}.wav")
        (tmp_path / "tree" / f"{name}.txt").write_text("One, two!\n" if name[-1] == "1" else "Three.\n")
    return tmp_path / "tree"


def test_transcripts_beside_the_audio_and_whole_speakers_to_test_on(tree, tmp_path):
    corpus = import_wav_tree(tree, tmp_path / "corpus", lexicon=write_dictionary(tmp_path), test_share=0.5)
    assert {u.split for u in corpus if u.speaker == "ann"} != {u.split for u in corpus if u.speaker == "bob"}
    assert {u.id: u.text for u in corpus} == {
        "ann-a1": "One two", "ann-a2": "Three", "bob-b1": "One two", "bob-b2": "Three"}
    assert digest(corpus.folder) == digest(
        import_wav_tree(tree, tmp_path / "again", lexicon=write_dictionary(tmp_path), test_share=0.5).folder)
    everything = import_wav_tree(tree, tmp_path / "all", lexicon="letters", test_share=0.0)
    assert everything.splits == ("train",)


def test_one_speaker_is_split_by_utterance(tree, tmp_path):
    corpus = import_wav_tree(tree / "ann", tmp_path / "corpus", lexicon="letters", test_share=0.5)
    assert corpus.speakers == ("speaker",) and corpus.splits == ("test", "train")


def test_speaker_by_pattern_and_case(tree, tmp_path):
    corpus = import_wav_tree(tree, tmp_path / "corpus", lexicon=write_dictionary(tmp_path), speaker=r"/(.)\d",
                             case="upper", test_share=0)
    assert words_of(corpus)["bob-b1"] == ("b", "ONE TWO", "train")
    assert Lexicon.read(corpus.lexicon).words == ("ONE", "THREE", "TWO")
    with pytest.raises(DataError, match=r"a1\.txt: utterance 'ann-a1': no speaker: the pattern '\(q\)' does not match"):
        import_wav_tree(tree, tmp_path / "none", lexicon="letters", speaker="(q)")
    for wrong, message in (("(", "is no regular expression"), ("x", "has no group")):
        with pytest.raises(ConfigError, match=message):
            import_wav_tree(tree, tmp_path / "none", lexicon="letters", speaker=wrong)


@pytest.mark.parametrize(("text", "kept", "options"), [
    ("It's 5 o'clock -- \"well-known\"!", "It's 5 o'clock well-known", {}),
    ("l’été, 'quoted' _x_", "l'été quoted x", {}),
    ("One, l’été!", "One, l’été!", {"punctuation": True}),
])
def test_punctuation_goes_unless_it_is_inside_a_word(tree, tmp_path, text, kept, options):
    (tree / "ann" / "a1.txt").write_text(text)
    corpus = import_wav_tree(tree, tmp_path / "corpus", lexicon="letters", **options)
    assert words_of(corpus)["ann-a1"][1] == kept


def test_folders_named_after_splits(tmp_path):
    for name in ("train-clean/ann/1", "eval/bob/1"):
        write_tone(tmp_path / "tree" / f"{name}.flac")
        (tmp_path / "tree" / f"{name}.lab").write_text("one")
    corpus = import_wav_tree(tmp_path / "tree", tmp_path / "corpus", lexicon="letters")
    assert words_of(corpus) == {"eval-bob-1": ("bob", "one", "test"), "train-clean-ann-1": ("ann", "one", "train")}


@pytest.mark.parametrize(("name", "content", "expected"), [
    ("transcripts.csv", 'audio,text,speaker,split,id\nann/a1.wav,"one, two",A,test,x\nbob/b1,three,B,train,y\n',
     {"x": ("A", "one two", "test"), "y": ("B", "three", "train")}),
    ("transcripts.tsv", "text\taudio\none\tann/a1\nthree\tbob/b1.wav\n",
     {"ann-a1": ("ann", "one", "train"), "bob-b1": ("bob", "three", "train")}),
    ("transcripts.txt", "ann/a1 one two\n\nbob/b1.wav three\n",
     {"ann-a1": ("ann", "one two", "train"), "bob-b1": ("bob", "three", "train")}),
])
def test_transcripts_in_one_table(tree, tmp_path, name, content, expected):
    (tree / name).write_text(content)
    corpus = import_wav_tree(tree, tmp_path / "corpus", lexicon="letters", test_share=0)
    assert words_of(corpus) == expected


@pytest.mark.parametrize(("content", "message"), [
    ("audio,txt\na,b\n", r"transcripts\.csv:1: unknown column 'txt': did you mean 'text'\?"),
    ("audio,speaker\na,b\n", r"transcripts\.csv:1: needs a header with the columns audio and text, got audio, speaker"),
    ("audio,text\nann/a1,one,two\n", r"transcripts\.csv:2: expected 2 fields"),
    ("audio,text\nann/a1\n", r"transcripts\.csv:2: expected 2 fields"),
    ("audio,text\nann/a1,one\nann/a9,two\n", r"transcripts\.csv:3: utterance 'ann-a9': audio file .*a9 is missing"),
    ("audio,text\nann/a1,one\nann/a1.wav,two\n", r"csv:3: utterance 'ann-a1': the id is already used in .*csv:2"),
    ("audio,text\nann/a1,...\n", r"csv:2: utterance 'ann-a1': the transcript is empty"),
])
def test_tables_that_are_not_as_expected(tree, tmp_path, content, message):
    (tree / "transcripts.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        import_wav_tree(tree, tmp_path / "corpus", lexicon="letters")


def test_audio_that_cannot_be_used(tree, tmp_path):
    write_tone(tree / "ann" / "a1.wav", channels=2)
    (tree / "bob" / "b1.txt").unlink()
    with pytest.raises(DataError, match=r"a1\.wav has 2 channels") as caught:
        import_wav_tree(tree, tmp_path / "corpus", lexicon="letters", tolerance=0.25)
    assert "2 of 4 utterances" in str(caught.value) and "b1.txt (missing)" in str(caught.value)
    with pytest.raises(DataError, match=r"empty: no audio file \(\.wav"):
        (tmp_path / "empty").mkdir()
        import_wav_tree(tmp_path / "empty", tmp_path / "corpus", lexicon="letters")


# LibriSpeech

@pytest.fixture
def libri(tmp_path):
    for part, speaker in (("train-clean-5", 19), ("dev-clean-2", 84)):
        chapter = tmp_path / "LibriSpeech" / part / str(speaker) / "7"
        for number in range(2):
            write_tone(chapter / f"{speaker}-7-000{number}.flac", rate=16000)
        (chapter / f"{speaker}-7.trans.txt").write_text(f"{speaker}-7-0000 ONE TWO\n{speaker}-7-0001 THREE\n")
    return tmp_path / "LibriSpeech"


def test_librispeech_parts_become_splits(libri, tmp_path):
    corpus = import_librispeech(libri, tmp_path / "corpus", lexicon=write_dictionary(tmp_path))
    assert words_of(corpus) == {
        "84-7-0000": ("84", "ONE TWO", "dev"), "84-7-0001": ("84", "THREE", "dev"),
        "19-7-0000": ("19", "ONE TWO", "train"), "19-7-0001": ("19", "THREE", "train")}
    assert corpus.sampling_rate == 16000 and corpus.licence == "CC BY 4.0"
    chosen = import_librispeech(libri, tmp_path / "chosen", lexicon="letters", parts="train-clean-5, dev-clean-2=test")
    assert chosen.splits == ("test", "train")
    one = import_librispeech(libri / "dev-clean-2", tmp_path / "one", lexicon="letters", sampling_rate=RATE)
    assert one.splits == ("dev",) and len(pcm(one.folder / "audio" / "84-7-0000.wav")) == RATE // 2


def test_librispeech_that_is_not_as_expected(libri, tmp_path):
    (libri / "dev-clean-2" / "84" / "7" / "84-7-0001.flac").unlink()
    with pytest.raises(DataError, match=r"84-7\.trans\.txt:2: utterance '84-7-0001': no 84-7-0001\.flac beside"):
        import_librispeech(libri, tmp_path / "corpus", lexicon="letters")
    with pytest.raises(DataError, match=r"no PART/SPEAKER/CHAPTER"):
        import_librispeech(tmp_path / "nowhere", tmp_path / "corpus", lexicon="letters")


# AN4 with audio

@pytest.fixture
def an4(tmp_path):
    folder = tmp_path / "an4"
    (folder / "etc").mkdir(parents=True)
    (folder / "etc" / "an4.dic").write_text("ONE  W AH N\nONE(2)  HH W AH N\nTWO  T UW\n")
    for split, name, line in (("train", "an251-fash-b", "<s> ONE TWO </s> (an251-fash-b)"),
                              ("test", "cen1-fcaw-b", "TWO (cen1-fcaw-b)")):
        path = f"an4_clstk/{name.split('-')[1]}/{name}"
        write_tone(folder / "wav" / f"{path}.sph", rate=16000, format="NIST", subtype="PCM_16")
        (folder / "etc" / f"an4_{split}.fileids").write_text(path + "\n")
        (folder / "etc" / f"an4_{split}.transcription").write_text(line + "\n")
    return folder


def test_an4_audio_in_sphere_files(an4, tmp_path):
    corpus = import_an4_audio(an4, tmp_path / "corpus")
    assert words_of(corpus) == {"an251-fash-b": ("fash", "ONE TWO", "train"), "cen1-fcaw-b": ("fcaw", "TWO", "test")}
    assert corpus.sampling_rate == 16000 and len(Lexicon.read(corpus.lexicon).entries["ONE"]) == 2
    LanguageModel.unigram([["ONE"]]).write(an4 / "etc" / "an4.ug.lm")
    assert import_an4_audio(an4, tmp_path / "own").language_model().read_bytes() == (
        an4 / "etc" / "an4.ug.lm").read_bytes()


@pytest.mark.parametrize(("file", "content", "message"), [
    ("an4_test.transcription", "TWO (cen2-fcaw-b)\n", r"an4_test\.transcription:1: expected 'WORDS \(cen1-fcaw-b\)'"),
    ("an4_test.fileids", "a/b\nc/d\n", r"has 1 lines, .*fileids has 2: they do not belong together"),
    ("an4_train.fileids", None, r"is not AN4 as expected: an4_train\.fileids missing"),
])
def test_an4_audio_that_is_not_as_expected(an4, tmp_path, file, content, message):
    path = an4 / "etc" / file
    path.write_text(content) if content else path.unlink()
    with pytest.raises(DataError, match=message):
        import_an4_audio(an4, tmp_path / "corpus")
