import itertools
import math

import pytest
import torch

from hemstitch.graphs import Graph, denominator_graph, estimate_phone_lm, normalisation_graph, numerator_posteriors
from hemstitch.speech import Alignment, Segment, Topology
from hemstitch.train._numerators import PhoneAlignment, aligned_numerators, phone_pdfs, shuffled_words

PHONES = ("SIL", "A", "B")
TOPOLOGY = Topology.chain(PHONES)
ALIGNMENT = PhoneAlignment([0, 1, 2, 0], [6, 5, 7, 6])


@pytest.fixture
def normalisation():
    return normalisation_graph(denominator_graph(estimate_phone_lm([[0, 1, 2, 0]] * 3, 2), phone_pdfs(TOPOLOGY)))


def pdf_sequences(graph: Graph, length: int) -> set[tuple[int, ...]]:
    arcs = list(zip(*(x.tolist() for x in (graph.src, graph.dst, graph.pdf))))
    paths = {((), graph.start)}
    for _ in range(length):
        paths = {((*said, pdf), dst) for said, state in paths for src, dst, pdf in arcs if src == state}
    return {said for said, state in paths if math.isfinite(graph.final[state])}


def allowed(outputs: int, first: int, shift: int, tolerance: int) -> set[tuple[int, ...]]:
    """The slow twin: every assignment of frames to phones within the tolerance, as pdfs, cut to the stretch."""
    phones, frames = ALIGNMENT
    ends = list(itertools.accumulate(frames))
    times = range(shift, max(ends[-1], first + outputs * 3), 3)
    ends[-1] = max(ends[-1], first + outputs * 3)
    found = set()
    for borders in itertools.combinations(range(1, len(times)), len(phones) - 1):
        owner = [sum(t >= b for b in borders) for t in range(len(times))]
        begins = [0, *ends[:-1]]
        if all(begins[i] - tolerance <= time < ends[i] + tolerance for time, i in zip(times, owner)):
            pdfs = [2 * phones[i] + (t > 0 and owner[t - 1] == i) for t, i in enumerate(owner)]
            found.add(tuple(pdfs[first // 3 : first // 3 + outputs]))
    return found


@pytest.mark.parametrize(("first", "outputs", "shift"), [(0, 8, 0), (0, 8, 2), (9, 3, 1), (12, 6, 0)])
def test_aligned_numerators_hold_the_paths_within_the_tolerance(normalisation, first, outputs, shift):
    numerators = aligned_numerators([ALIGNMENT], phone_pdfs(TOPOLOGY), 2, 3, normalisation)
    graph = numerators(0, first, outputs, shift)
    assert pdf_sequences(graph, outputs) == allowed(outputs, first, shift, 2)
    assert numerators(0, first, outputs, shift) is graph


def test_a_numerator_never_outweighs_the_denominator(normalisation):
    numerators = aligned_numerators([ALIGNMENT], phone_pdfs(TOPOLOGY), 2, 3, normalisation)
    logprob = numerator_posteriors([numerators(0, 0, 8, 0)], torch.zeros(1, 8, 6), torch.tensor([8])).logprob
    assert -30 < float(logprob) < 0


def test_phones_that_the_language_model_has_not_heard_have_no_numerator(normalisation):
    unheard = PhoneAlignment([0, 2, 1, 0], [6, 5, 7, 6])
    assert aligned_numerators([unheard], phone_pdfs(TOPOLOGY), 2, 3, normalisation)(0, 0, 8, 0) is None


def test_the_phones_of_an_alignment_count_from_zero():
    segments = (Segment("SIL", 0, 6), Segment("B", 6, 11))
    alignment = Alignment(pdfs=torch.zeros(11).numpy(), phones=segments, words=())
    assert PhoneAlignment.of(alignment, TOPOLOGY) == ([0, 2], [6, 5])


def test_shuffled_transcripts_keep_their_lengths_and_all_words():
    said = [["a", "b"], ["c"], [], ["a", "d", "e"]]
    dealt = shuffled_words(said, 2)
    first, second = dealt[:4], dealt[4:]
    assert [len(s) for s in first] == [len(s) for s in second] == [2, 1, 0, 3]
    assert all(sorted(itertools.chain(*each)) == ["a", "a", "b", "c", "d", "e"] for each in (first, second))
    assert first != second and shuffled_words(said, 0) == []
