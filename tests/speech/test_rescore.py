"""N-best lists and their rescoring against every sentence that there is, one by one."""

import itertools

import numpy as np
import pytest
import torch
from speech_oracle import lexicon

from hemstitch.errors import MisuseError
from hemstitch.graphs import viterbi
from hemstitch.speech import (
    BestLists,
    Candidate,
    DecodeOptions,
    Topology,
    decode,
    decoding_graph,
    estimate_ngrams,
    rescore,
    training_graph,
)

FRAMES, SCALE, PENALTY, SILENCE = 5, 0.7, 0.3, 0.4


@pytest.fixture(scope="module")
def problem():
    """Graph, language model, log-likelihoods, and (words -> cost, log P) of every sentence by brute force."""
    words_of = lexicon(ONE="a", TWO="b", TEN="a b")
    topology = Topology.left_to_right(words_of.phones, 1)
    model = estimate_ngrams([["ONE", "TWO"], ["TEN"], ["TWO", "TEN", "ONE"], ["ONE", "ONE"]], order=2)
    graph = decoding_graph(words_of, topology, model, SILENCE)
    loglikes = torch.from_numpy(np.random.default_rng(3).normal(size=(FRAMES, topology.num_pdfs)).astype(np.float32))
    sentences = {}
    for length in range(FRAMES + 1):
        for words in itertools.product(("ONE", "TWO", "TEN"), repeat=length):
            if length + words.count("TEN") <= FRAMES:
                spoken = viterbi(training_graph(words, words_of, topology, SILENCE), loglikes, acoustic_scale=SCALE)
                logprob = model.sentence_log_probability(words)
                sentences[words] = (spoken.cost - logprob + PENALTY * length, logprob)
    return graph, model, loglikes, sentences


def lists(problem, count):
    graph, model, loglikes, _ = problem
    options = DecodeOptions(beam=1000.0, acoustic_scale=SCALE, word_penalty=PENALTY)
    return BestLists(graph, model, count, options, lattice_beam=1000.0)(loglikes)


def test_list_is_that_of_brute_force(problem):
    expected = sorted(problem[3].items(), key=lambda item: item[1][0])
    found = lists(problem, len(expected) + 5)
    assert [c.words for c in found] == [words for words, _ in expected]
    for candidate, (_, (cost, logprob)) in zip(found, expected):
        assert candidate.cost == pytest.approx(cost, abs=1e-4) and candidate.log_probability == logprob
    assert [c.words for c in lists(problem, 4)] == [words for words, _ in expected[:4]]


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_rescored_best_is_that_of_brute_force(problem, weight):
    generator = np.random.default_rng(1)
    new = {words: float(generator.normal(-8, 4)) for words in problem[3]}
    found = lists(problem, len(new))
    best = rescore(found, [new[c.words] for c in found], weight)
    costs = {words: cost + weight * (logprob - new[words]) for words, (cost, logprob) in problem[3].items()}
    assert best.words == min(costs, key=costs.__getitem__)
    if weight == 0:
        graph, _, loglikes, _ = problem
        options = DecodeOptions(beam=1000.0, acoustic_scale=SCALE, word_penalty=PENALTY)
        assert " ".join(best.words) == decode(loglikes, graph, options).text


def test_misuse():
    with pytest.raises(MisuseError, match="count = 0"):
        BestLists(None, None, 0)
    with pytest.raises(MisuseError, match="1 for 0"):
        rescore([], [0.0], 0.5)
    with pytest.raises(MisuseError, match="0 for 1"):
        rescore([Candidate(words=(), cost=0.0, log_probability=0.0)], [], 0.5)
