import itertools

import numpy as np
import pytest
from speech_oracle import graph_readings, lexicon, readings, tied

from hemstitch.speech import (
    DecodeOptions,
    LanguageModel,
    Topology,
    align,
    decode,
    decoding_graph,
    training_graph,
)
from hemstitch.speech._context import PhoneGraph, in_context
from hemstitch.speech._topology import with_neighbours

# Homophones (TO, TWO), a word that begins another (A, AN), one that is two others (ANA), one phone twice (OUT).
LEXICON = lexicon(A="a", AN="a n", ANA="a n a", TO="t", TWO="t | t a", OUT="n n")
PLAIN = {"one state": Topology.left_to_right(LEXICON.phones, 1, stay=0.4),
         "two states": Topology.left_to_right(LEXICON.phones, 2, num_silence_states=1),
         "chain": Topology.chain(LEXICON.phones)}
TIED = {(name, context, seed): tied(topology, context, seed)
        for name, topology in PLAIN.items() for context in ("left", "both") for seed in range(3)}
ALL = pytest.mark.parametrize("topology", TIED.values(), ids=map(str, TIED))


@ALL
@pytest.mark.parametrize("silence_probability", [0.0, 0.3, 1.0])
def test_training_graphs_hold_every_reading_at_its_cost(topology, silence_probability):
    for words, num_frames in (("TWO ANA", 6), ("A", 4), ("", 2), ("OUT A TO", 6)):
        graph = training_graph(words.split(), LEXICON, topology, silence_probability)
        expected = readings(words.split(), num_frames, LEXICON, topology, silence_probability)
        found = graph_readings(graph, num_frames)
        assert [pdfs for pdfs, _ in found] == [pdfs for pdfs, _ in expected] and not graph.has_epsilons
        np.testing.assert_allclose([cost for _, cost in found], [cost for _, cost in expected], rtol=1e-12)


@pytest.fixture(scope="module")
def models():
    counts = [["A", "TO", "TWO"], ["ANA"], ["TWO", "AN"], ["OUT", "A"]]
    unigram = LanguageModel.unigram(counts, LEXICON.words, 0.1)
    bigrams = {("<s>", "TO"): (-0.3,), ("TO", "AN"): (-0.2,), ("A", "TO"): (-0.25,), ("AN", "</s>"): (-0.1,)}
    backoffs = {("<s>",): -0.2, ("TO",): -0.3, ("A",): -0.1}
    weighted = {words: weights._replace(log10_backoff=backoffs.get(words, 0.0))
                for words, weights in unigram.ngrams[0].items()}
    like = type(next(iter(weighted.values())))
    return {"unigram": unigram, "bigram": LanguageModel((weighted, {k: like(*v) for k, v in bigrams.items()}))}


def cheapest_sentence(loglikes, topology, model, silence_probability):
    """(cost, words) over every sentence of at most three words."""
    frames, best = np.arange(len(loglikes)), (np.inf, None)
    for words in itertools.chain.from_iterable(itertools.product(LEXICON.words, repeat=n) for n in range(4)):
        says = -model.sentence_log_probability(words)
        for pdfs, cost in readings(words, len(loglikes), LEXICON, topology, silence_probability):
            best = min(best, (says + cost - loglikes[frames, pdfs].sum(), words))
    return best


@ALL
@pytest.mark.parametrize(("name", "silence_probability"), [("unigram", 0.3), ("bigram", 0.0), ("bigram", 0.3)])
def test_finds_the_cheapest_of_all_sentences(models, topology, name, silence_probability):
    graph = decoding_graph(LEXICON, topology, models[name], silence_probability)
    for seed in range(3):
        loglikes = np.random.default_rng(seed).normal(size=(4, topology.num_pdfs)).astype(np.float32)
        cost, words = cheapest_sentence(loglikes, topology, models[name], silence_probability)
        found = decode(loglikes, graph, DecodeOptions(beam=np.inf, max_active=10**9, acoustic_scale=1.0))
        assert found.reached_final and found.cost == pytest.approx(cost, abs=1e-4)
        assert tuple(word.label for word in found.words) == words


@ALL
def test_words_and_times_are_those_of_an_alignment_of_the_words(models, topology):
    loglikes = 3 * np.random.default_rng(5).normal(size=(40, topology.num_pdfs))
    found = decode(loglikes, decoding_graph(LEXICON, topology, models["unigram"], 0.2),
                   DecodeOptions(beam=np.inf, max_active=10**9, acoustic_scale=1.0))
    aligned = align(loglikes, found.text.split(), LEXICON, topology, silence_probability=0.2)
    assert found.cost == pytest.approx(aligned.cost - models["unigram"].sentence_log_probability(found.text.split()))
    assert len(found.words) > 2
    if topology.hmms[1] != topology.hmms[0] or topology.num_positions[1] > 1:  # one state cannot tell where "n n" parts
        assert found.words == aligned.words and found.phones == aligned.phones


def units(graph, length):
    """(phone, pdfs of its HMM) strings of every path of so many phones, with costs; epsilons are passed."""
    phones, unit, table = graph.phones, graph.unit, graph.units.table
    paths, whole = [(phones.start, (), 0.0)], []
    while paths:
        state, said, cost = paths.pop()
        if len(said) == length and np.isfinite(phones.final[state]):
            whole.append((said, round(cost + phones.final[state], 9)))
        for arc in np.flatnonzero(phones.src == state):
            more = ()
            if unit[arc] >= 0:
                rows = slice(*table.offsets[unit[arc]:unit[arc] + 2])
                more = ((int(phones.phone[arc]), tuple(table.enter_pdf[rows]), tuple(table.loop_pdf[rows])),)
            if len(said) + len(more) <= length:
                paths.append((phones.dst[arc], said + more, cost + phones.cost[arc]))
    return sorted(whole)


def plain_units(graph, length, topology):
    """The same from the graph over phones: spell every path, then look at neighbours."""
    paths, whole = [(graph.start, (), 0.0)], []
    while paths:
        state, said, cost = paths.pop()
        if len(said) == length and np.isfinite(graph.final[state]):
            hmms = [topology.table([u]) for u in with_neighbours([abs(phone) for phone in said])]
            whole.append((tuple((phone, tuple(hmm.enter_pdf), tuple(hmm.loop_pdf)) for phone, hmm in zip(said, hmms)),
                          round(cost + graph.final[state], 9)))
        for arc in np.flatnonzero(graph.src == state):
            more = (int(graph.phone[arc]),) if graph.phone[arc] else ()
            if len(said) + len(more) <= length:
                paths.append((graph.dst[arc], said + more, cost + graph.cost[arc]))
    return sorted(whole)


@ALL
@pytest.mark.parametrize("seed", range(4))
def test_any_graph_keeps_its_paths_epsilons_and_a_start_that_is_left_again(topology, seed):
    rng, num_states, num_arcs = np.random.default_rng(seed), 5, 14
    src, dst = rng.integers(0, num_states, (2, num_arcs))
    phone = rng.integers(1, 5, num_arcs) * rng.choice([-1, 1], num_arcs)
    phone[(src < dst) & (rng.random(num_arcs) < 0.6)] = 0  # epsilons, without loops of them
    final = np.where(rng.random(num_states) < 0.5, rng.random(num_states), np.inf)
    graph = PhoneGraph(src, dst, phone, np.zeros(num_arcs, int), rng.random(num_arcs), final, int(rng.integers(5)))
    split = in_context(graph, topology)
    for length in range(4):
        assert units(split, length) == plain_units(graph, length, topology)


def test_a_graph_without_a_path_stays_without():
    nothing = PhoneGraph(*np.zeros((4, 0), int), np.zeros(0), np.array([np.inf, 0.0]))
    split = in_context(nothing, TIED["chain", "both", 0])
    assert len(split.unit) == 0 and not np.isfinite(split.phones.final[split.phones.start])
