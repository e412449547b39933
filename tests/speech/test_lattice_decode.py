import numpy as np
import pytest
from speech_oracle import lexicon

from hemstitch.graphs import Sentence, arc_weights
from hemstitch.speech import DecodeOptions, LanguageModel, LatticeDecoder, Topology, decode, decoding_graph, write_slf
from hemstitch.speech._lattice_decode import confidences
from lattice_oracle import lattice_paths

LEXICON = lexicon(A="a", AN="a n", TO="t", TWO="t", OUT="n n")
TOPOLOGY = Topology.left_to_right(LEXICON.phones, 1, stay=0.4)
MODEL = LanguageModel.unigram([["A", "TO", "TWO"], ["AN"], ["TWO", "AN"]], LEXICON.words, 0.1)
GRAPH = decoding_graph(LEXICON, TOPOLOGY, MODEL)
EXACT = DecodeOptions(beam=np.inf, max_active=10**9, acoustic_scale=0.8, word_penalty=0.3)


def loglikes(seed, num_frames=5):
    return 2 * np.random.default_rng(seed).normal(size=(num_frames, TOPOLOGY.num_pdfs)).astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
def test_the_best_sentence_is_that_of_plain_decoding_and_alternatives_follow(seed):
    found = LatticeDecoder(GRAPH, EXACT, lattice_beam=4.0)(loglikes(seed))
    best = decode(loglikes(seed), GRAPH, EXACT)
    assert found.best == best
    costs = {}
    weights = arc_weights(found.lattice)
    for arcs, end in lattice_paths(found.lattice):
        words = tuple(found.names[label - 1] for label in found.lattice.label[arcs] if label)
        costs[words] = min(costs.get(words, np.inf), end - weights[arcs].sum())
    alternatives = found.alternatives(5)
    assert alternatives[0].text == best.text and alternatives[0].cost == pytest.approx(best.cost, abs=1e-5)
    assert [a.cost for a in alternatives] == pytest.approx(sorted(costs.values())[:5])
    assert all(costs[a.words] == pytest.approx(a.cost) for a in alternatives)


def fewest_errors(reference, other):
    """[(word, word)] of the alignments with the fewest errors, one by one."""
    if not reference or not other:
        return [[(a, None) for a in reference] + [(None, b) for b in other]]
    found = [[(reference[0], other[0]), *rest] for rest in fewest_errors(reference[1:], other[1:])]
    found += [[(reference[0], None), *rest] for rest in fewest_errors(reference[1:], other)]
    found += [[(None, other[0]), *rest] for rest in fewest_errors(reference, other[1:])]
    errors = [sum(a != b for a, b in pairs) for pairs in found]
    return [pairs for pairs, count in zip(found, errors) if count == min(errors)]


@pytest.mark.parametrize("seed", range(4))
def test_confidences_are_the_share_of_sentences_that_keep_the_word(seed):
    found = LatticeDecoder(GRAPH, EXACT, lattice_beam=3.0)(loglikes(seed))
    weights, costs = arc_weights(found.lattice), {}
    for arcs, end in lattice_paths(found.lattice):
        said = tuple(found.names[label - 1] for label in found.lattice.label[arcs] if label)
        costs[said] = min(costs.get(said, np.inf), end - weights[arcs].sum())
    costs = dict(sorted(costs.items(), key=lambda item: item[1])[:50])
    total = sum(np.exp(-cost) for cost in costs.values())
    words = tuple(found.best.text.split())
    low, high = np.zeros(len(words)), np.zeros(len(words))  # equally good alignments may keep different words
    for said, cost in costs.items():
        kept = np.array([[a == b for a, b in pairs if a] for pairs in fewest_errors(words, said)])
        low, high = low + np.exp(-cost) / total * kept.min(0), high + np.exp(-cost) / total * kept.max(0)
    assert len(found.confidences) == len(words)
    assert (low - 1e-6 <= found.confidences).all() and (found.confidences <= high + 1e-6).all()


def test_confidences_by_hand():
    sentences = [Sentence((1, 2, 3), 1.0), Sentence((1, 3), 1.0 + np.log(2)), Sentence((4, 2, 3, 3), 1.0 + np.log(4))]
    assert confidences([1, 2, 3], sentences) == pytest.approx((6 / 7, 5 / 7, 1.0))
    assert confidences([], [Sentence((), 3.0)]) == ()


def test_a_clear_utterance_is_sure_and_an_unclear_one_is_not():
    phones = LEXICON.phones
    clear = np.full((4, TOPOLOGY.num_pdfs), -9.0, np.float32)
    for t, phone in enumerate(("SIL", "a", "n", "SIL")):
        clear[t, TOPOLOGY.pdf(phones.index(phone) + 1, 0)] = 0
    options = DecodeOptions(beam=np.inf, max_active=10**9, acoustic_scale=1.0)
    decoder = LatticeDecoder(GRAPH, options, lattice_beam=15.0)
    assert decoder(clear).best.text == "AN" and decoder(clear).confidences[0] > 0.99
    homophones = np.full((3, TOPOLOGY.num_pdfs), -9.0, np.float32)
    for t, phone in enumerate(("SIL", "t", "SIL")):
        homophones[t, TOPOLOGY.pdf(phones.index(phone) + 1, 0)] = 0
    found = decoder(homophones)
    ratio = np.exp(MODEL.log_probability("TWO", ())) / np.exp(MODEL.log_probability("TO", ()))
    assert found.best.text == "TWO"
    assert found.confidences[0] == pytest.approx(ratio / (1 + ratio), abs=1e-2)


def test_lattice_files_hold_every_link(tmp_path):
    found = LatticeDecoder(GRAPH, EXACT, lattice_beam=4.0)(loglikes(1))
    lattice = found.word_lattice()
    write_slf(tmp_path / "a.slf", lattice, found.names, "a", 0.01, start=2.0)
    fields = [dict(f.split("=", 1) for f in line.split()) for line in (tmp_path / "a.slf").read_text().splitlines()]
    header = {key: value for line in fields if not {"I", "J"} & line.keys() for key, value in line.items()}
    nodes, links = [f for f in fields if "I" in f], [f for f in fields if "J" in f]
    assert (int(header["N"]), int(header["L"])) == (len(nodes), len(links)) == (lattice.num_states, lattice.num_links)
    assert float(nodes[0]["t"]) == 2.0 and float(nodes[-1]["t"]) == pytest.approx(2.05)
    cost = np.full(lattice.num_states, np.inf)
    cost[0] = 0.0
    for link in links:
        step = -float(link["l"]) - float(header["acscale"]) * float(link["a"])
        cost[int(link["E"])] = min(cost[int(link["E"])], cost[int(link["S"])] + step)
    assert cost[int(header["end"])] == pytest.approx(found.best.cost, abs=1e-2)
    assert {link["W"] for link in links} <= {*LEXICON.words, "!NULL"}
