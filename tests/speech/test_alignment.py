import numpy as np
import pytest
from speech_oracle import chain, lexicon, readings

from hemstitch.errors import DataError
from hemstitch.graphs import NoPathError
from hemstitch.speech import Segment, Topology, align, equal_alignment, training_graph

LEXICON = lexicon(AB="a b | b", C="c", D="a b a")
TOPOLOGY = Topology.left_to_right(LEXICON.phones, 2, stay=0.4)


def loglikes_of(pdfs, num_pdfs, margin=30.0):
    """Log-likelihoods that leave no doubt."""
    scores = np.full((len(pdfs), num_pdfs), -margin)
    scores[np.arange(len(pdfs)), pdfs] = 0.0
    return scores


@pytest.mark.parametrize("seed", range(10))
def test_is_the_cheapest_of_all_readings(seed):
    rng = np.random.default_rng(seed)
    words, loglikes = ["AB", "C"], rng.normal(size=(9, TOPOLOGY.num_pdfs)).astype(np.float32)
    alignment = align(loglikes, words, LEXICON, TOPOLOGY, silence_probability=0.3, acoustic_scale=0.5)
    costs = {pdfs: cost - 0.5 * loglikes[np.arange(9), pdfs].sum()
             for pdfs, cost in readings(words, 9, LEXICON, TOPOLOGY, 0.3)}
    assert tuple(alignment.pdfs) == min(costs, key=costs.get)
    assert alignment.cost == pytest.approx(min(costs.values()), rel=1e-6)


def test_finds_silence_pronunciations_and_times():
    sil, a, b, c = ([TOPOLOGY.pdf(phone, i) for i in (0, 1)] for phone in (1, 2, 3, 4))
    pdfs = [*sil, sil[1], *b, *c, c[1], *sil, a[0], *a, *b]
    alignment = align(loglikes_of(pdfs, TOPOLOGY.num_pdfs), ["AB", "C", "AB"], LEXICON, TOPOLOGY)
    assert alignment.pdfs.tolist() == pdfs
    assert alignment.words == (Segment("AB", 3, 5), Segment("C", 5, 8), Segment("AB", 10, 15))
    assert alignment.phones == (Segment("SIL", 0, 3), Segment("b", 3, 5), Segment("c", 5, 8), Segment("SIL", 8, 10),
                                Segment("a", 10, 13), Segment("b", 13, 15))


def test_a_graph_at_hand_gives_the_same():
    loglikes = np.random.default_rng(0).normal(size=(12, TOPOLOGY.num_pdfs))
    graph = training_graph(["D"], LEXICON, TOPOLOGY)
    first, second = align(loglikes, ["D"], LEXICON, TOPOLOGY), align(loglikes, ["D"], LEXICON, TOPOLOGY, graph=graph)
    assert first.pdfs.tolist() == second.pdfs.tolist() and first.phones == second.phones


def test_too_short_is_said_with_numbers():
    with pytest.raises(NoPathError, match=r"cannot align 'D C': too few frames: the graph needs 8 .* there are 7"):
        align(np.zeros((7, TOPOLOGY.num_pdfs)), ["D", "C"], LEXICON, TOPOLOGY)


def test_equal_shares_out_frames_evenly_between_silences():
    alignment = equal_alignment(["AB", "C"], 21, LEXICON, TOPOLOGY)
    assert alignment.words == (Segment("AB", 4, 13), Segment("C", 13, 17))
    assert [phone.label for phone in alignment.phones] == ["SIL", "a", "b", "c", "SIL"]
    values, counts = np.unique(alignment.pdfs, return_counts=True)
    assert len(values) == 8 and counts[:2].tolist() == [4, 4] and set(counts[2:]) <= {2, 3}
    assert alignment.phones[0].start == 0 and alignment.phones[-1].end == 21 == len(alignment.pdfs)


@pytest.mark.parametrize(("num_frames", "phones"), [(8, ["SIL", "c", "c", "SIL"]), (7, ["c", "c"]), (4, ["c", "c"])])
def test_equal_gives_up_silence_before_words(num_frames, phones):
    alignment = equal_alignment(["C", "C"], num_frames, LEXICON, TOPOLOGY)
    assert [phone.label for phone in alignment.phones] == phones and len(alignment.pdfs) == num_frames


def test_equal_says_what_does_not_fit():
    with pytest.raises(NoPathError, match=r"too few frames for 'D': it needs 6 .* there are 5"):
        equal_alignment(["D"], 5, LEXICON, TOPOLOGY)
    with pytest.raises(DataError, match="'E'"):
        equal_alignment(["E"], 50, LEXICON, TOPOLOGY)


def test_equal_knows_the_first_frame_of_a_chain_state():
    topology = chain(LEXICON.phones)
    assert equal_alignment(["C"], 9, LEXICON, topology).pdfs.tolist() == [0, 1, 1, 6, 7, 7, 0, 1, 1]
