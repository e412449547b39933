import itertools

import numpy as np
import pytest
import torch
from speech_oracle import lexicon, readings, tied

from hemstitch.errors import DataError, MisuseError
from hemstitch.speech import (
    Alignment,
    DecodeOptions,
    LanguageModel,
    Lexicon,
    Segment,
    Topology,
    align,
    decode,
    decoding_graph,
    log_priors,
    scaled_loglikelihoods,
)

# Homophones (TO, TWO), a word that begins another (A, AN), one that is two others (ANA), and a second pronunciation.
LEXICON = lexicon(A="a", AN="a n", ANA="a n a", TO="t", TWO="t | t a", OUT="n n")
TOPOLOGY = Topology.left_to_right(LEXICON.phones, 1, stay=0.4)
EXACT = {"beam": np.inf, "max_active": 10**9}

BIGRAM = """\\data\\
ngram 1=7
ngram 2=5

\\1-grams:
-99 <s> -0.2
-0.9 </s>
-1.0 A -0.1
-1.1 AN
-1.2 TO -0.3
-0.8 TWO
-2.0 NOWHERE

\\2-grams:
-0.3 <s> TO
-0.2 TO AN
-0.25 A TO
-0.1 AN </s>
-0.4 A NOWHERE

\\end\\
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    path = tmp_path_factory.mktemp("lm") / "bigram.arpa"
    path.write_text(BIGRAM)
    counts = [["A", "TO", "TWO"], ["ANA"], ["TWO", "AN"]]
    return {"bigram": LanguageModel.read(path), "unigram": LanguageModel.unigram(counts, LEXICON.words, 0.1)}


def cheapest_sentence(loglikes, model, scale, silence_probability, word_penalty=0.0):
    """(cost, words) over every sentence of at most three words."""
    frames, best = np.arange(len(loglikes)), (np.inf, None)
    for words in itertools.chain.from_iterable(itertools.product(LEXICON.words, repeat=n) for n in range(4)):
        says = word_penalty * len(words) - model.sentence_log_probability(words)
        if np.isfinite(says):
            for pdfs, cost in readings(words, len(loglikes), LEXICON, TOPOLOGY, silence_probability):
                best = min(best, (says + cost - scale * loglikes[frames, pdfs].sum(), words))
    return best


@pytest.mark.parametrize("name", ["unigram", "bigram"])
@pytest.mark.parametrize("silence_probability", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(4))
def test_finds_the_cheapest_of_all_sentences(models, name, silence_probability, seed):
    loglikes = np.random.default_rng(seed).normal(size=(3, TOPOLOGY.num_pdfs)).astype(np.float32)
    graph = decoding_graph(LEXICON, TOPOLOGY, models[name], silence_probability)
    for penalty in (0.0, 1.5):
        cost, words = cheapest_sentence(loglikes, models[name], 0.8, silence_probability, penalty)
        found = decode(loglikes, graph, DecodeOptions(**EXACT, acoustic_scale=0.8, word_penalty=penalty))
        assert found.reached_final and found.cost == pytest.approx(cost, abs=1e-4)
        assert tuple(word.label for word in found.words) == words


@pytest.mark.parametrize("seed", range(10))
def test_words_and_times_are_those_of_an_alignment_of_the_words(models, seed):
    topology = Topology.left_to_right(LEXICON.phones, 2)  # one state could not tell where "a a" has its border
    loglikes = 3 * np.random.default_rng(seed).normal(size=(40, topology.num_pdfs))
    graph = decoding_graph(LEXICON, topology, models["unigram"], 0.2)
    found = decode(loglikes, graph, DecodeOptions(**EXACT, acoustic_scale=1.0))
    aligned = align(loglikes, found.text.split(), LEXICON, topology, silence_probability=0.2)
    assert found.words == aligned.words and found.phones == aligned.phones and len(found.words) > 2


def test_words_without_language_model_are_told_and_those_without_lexicon_left_out(models):
    graph = decoding_graph(LEXICON, TOPOLOGY, models["bigram"])
    assert graph.unreachable == ("ANA", "OUT")
    with pytest.raises(DataError, match="share no word"):
        decoding_graph(lexicon(a="a"), Topology.left_to_right(("SIL", "a")), models["bigram"])
    with pytest.raises(DataError, match="no HMM"):
        decoding_graph(LEXICON, Topology.left_to_right(("SIL", "a")), models["bigram"])
    with pytest.raises(MisuseError, match="silence_probability"):
        decoding_graph(LEXICON, TOPOLOGY, models["bigram"], -0.1)


def test_a_sentence_cut_short_is_flagged_and_ends_with_its_last_whole_word():
    model = LanguageModel.unigram([["ANA"], ["OUT"]])
    graph = decoding_graph(LEXICON, TOPOLOGY, model, 0.0)
    a, n = TOPOLOGY.phone_ids["a"] - 1, TOPOLOGY.phone_ids["n"] - 1
    loglikes = np.full((5, TOPOLOGY.num_pdfs), -np.inf)
    loglikes[np.arange(5), [n, n, a, a, n]] = 0.0
    found = decode(loglikes, graph, DecodeOptions(acoustic_scale=1.0))
    assert not found.reached_final
    assert found.words == (Segment("OUT", 0, 2), Segment("ANA", 2, 5)) and found.text == "OUT ANA"


@pytest.mark.parametrize("context", ["none", "left", "both"])
def test_recognises_an4_sentences_from_perfect_scores(shared_data, context):
    an4 = Lexicon.read(shared_data / "an4/an4.dic")
    model = LanguageModel.read(shared_data / "an4/an4.ug.lm")
    topology = Topology.left_to_right(an4.phones)
    if context != "none":
        topology = tied(topology, context, seed=0)
    graph = decoding_graph(an4, topology, model)
    rng = np.random.default_rng(3)
    sayable = [word for word in an4.words if word not in graph.unreachable and word != "OH"]  # sounds like O
    for _ in range(5):
        words = rng.choice(sayable, 6).tolist()
        truth = align(rng.normal(size=(300, topology.num_pdfs)), words, an4, topology)
        scores = np.full((300, topology.num_pdfs), -20.0)
        scores[np.arange(300), truth.pdfs] = 0.0
        found = decode(scores, graph, DecodeOptions(acoustic_scale=0.5))
        assert found.text.split() == words and found.words == truth.words


def test_priors_are_smoothed_shares_of_frames():
    alignments = [Alignment(pdfs=np.array(pdfs), phones=(), words=()) for pdfs in ([0, 0, 2], [2])]
    priors = np.exp(log_priors(alignments, 4, smoothing=0.5))
    assert priors == pytest.approx(np.array([2.5, 0.5, 2.5, 0.5]) / 6)


@pytest.mark.parametrize("as_array", [np.asarray, torch.as_tensor])
def test_likelihoods_are_posteriors_over_priors(as_array):
    posteriors, priors = np.log([[0.25, 0.75], [0.5, 0.5]]), np.log([0.1, 0.9])
    found = scaled_loglikelihoods(as_array(posteriors), as_array(priors), prior_scale=0.5)
    assert isinstance(found, type(as_array(posteriors)))
    np.testing.assert_allclose(np.asarray(found), posteriors - 0.5 * priors)
    with pytest.raises(DataError, match="as many priors"):
        scaled_loglikelihoods(as_array(posteriors), np.zeros(3))
    with pytest.raises(DataError, match="pdf 1 is -inf"):
        scaled_loglikelihoods(as_array(posteriors), np.array([0.0, -np.inf]))
