"""Phone n-gram, topology, minimisation and numerator graphs against counting by hand and listing every path."""

import itertools
import math
from collections import Counter

import kaldifst
import numpy as np
import pytest
import torch

from hemstitch.errors import DataError, MisuseError
from hemstitch.graphs import (
    Graph,
    alignment_graph,
    compose,
    denominator_graph,
    denominator_posteriors,
    estimate_phone_lm,
    expand_phones,
    initial_probabilities,
    minimise,
    normalisation_graph,
    numerator_posteriors,
    phone_sequence_graph,
    slice_frames,
    trimmed,
)

SEQUENCES = [[0, 1, 2, 0, 1], [0, 1, 0, 1, 2], [2, 1, 0], [0, 2, 1, 0, 1, 2, 1], [1, 1], [0, 1, 2, 0, 2]]
PDFS = [(0, 1), (2, 3), (4, 5)]


def biphone(left, phone):
    return (6 * (3 if left is None else left) + 2 * phone, 6 * (3 if left is None else left) + 2 * phone + 1)


def sentences(graph, num_arcs):
    """{pdfs along a path of so many arcs from start to end: summed weight}."""
    paths = {(graph.start, ()): 1.0}
    arcs = list(zip(graph.src.tolist(), graph.dst.tolist(), graph.pdf.tolist(), (-graph.cost).exp().tolist()))
    for _ in range(num_arcs):
        longer = Counter()
        for (state, pdfs), weight in paths.items():
            for src, dst, pdf, p in arcs:
                if src == state:
                    longer[dst, (*pdfs, pdf)] += weight * p
        paths = longer
    found = Counter()
    for (state, pdfs), weight in paths.items():
        if graph.final[state] < torch.inf:
            found[pdfs] += weight * math.exp(-graph.final[state])
    return found


def spelled(phones, durations, pdfs=PDFS):
    of = pdfs if callable(pdfs) else lambda left, phone: pdfs[phone]
    heads = [of(left, phone) for left, phone in zip([None, *phones], phones)]
    return tuple(pdf for (forward, loop), n in zip(heads, durations) for pdf in [forward] + [loop] * (n - 1))


def test_an_unpruned_lm_has_the_relative_frequencies_of_its_histories():
    lm = estimate_phone_lm(SEQUENCES, order=3, unpruned_order=3)
    after, total = Counter(), Counter()
    for sequence in SEQUENCES:
        for i, phone in enumerate([*sequence, None]):
            history = tuple(sequence[max(0, i - 2):i])
            after[history, phone] += 1
            total[history] += 1
    assert lm.num_states == len(total)
    for length in range(1, 5):
        for phones, weight in sentences(lm, length).items():
            steps = [(phones[max(0, i - 2):i], p) for i, p in enumerate([*phones, None])]
            assert weight == pytest.approx(math.prod(after[step] / total[step[0]] for step in steps))


@pytest.mark.parametrize(("order", "unpruned_order"), [(4, 3), (4, 2), (5, 1)])
@pytest.mark.parametrize("num_extra_states", [0, 1, 3, 8, 100])
def test_a_pruned_lm_is_small_stochastic_and_has_the_training_sequences(order, unpruned_order, num_extra_states):
    lm = estimate_phone_lm(SEQUENCES, order, unpruned_order, num_extra_states)
    leaving = torch.zeros(lm.num_states, dtype=torch.float64).index_add_(0, lm.src, (-lm.cost).exp())
    torch.testing.assert_close(leaving + (-lm.final).exp(), torch.ones(lm.num_states, dtype=torch.float64))
    short = {tuple(s[max(0, i - unpruned_order + 1):i]) for s in SEQUENCES for i in range(len(s) + 1)}
    assert lm.num_states <= len(short) + num_extra_states
    for sequence in SEQUENCES:
        assert tuple(sequence) in sentences(lm, len(sequence))


def test_the_history_whose_loss_is_least_is_pruned_first():
    sequences = [[0, 1, 0]] * 10 + [[2, 1, 2]] * 10 + [[3, 1, 0]]
    likelihood = {}
    for extra in range(6):
        lm = estimate_phone_lm(sequences, order=3, unpruned_order=2, num_extra_states=extra)
        likelihood[extra] = sum(math.log(sentences(lm, len(s))[tuple(s)]) for s in sequences)
    losses = np.diff(list(likelihood.values()))[::-1]
    assert (np.diff(losses) > -1e-9).all() and losses[-1] > 1.0


def test_expansion_spends_one_forward_frame_and_any_number_of_self_loops():
    line = Graph.from_arcs([0, 1], [1, 2], [2, 0], [0.5, 0.25], final=[torch.inf, torch.inf, 0.125])
    for pdfs in (PDFS, biphone):
        found = sentences(expand_phones(line, pdfs), 4)
        expected = {spelled([2, 0], (n, 4 - n), pdfs): 0.5**4 * math.exp(-0.875) for n in (1, 2, 3)}
        assert found == pytest.approx(expected)


@pytest.mark.parametrize("pdfs", [PDFS, biphone], ids=["monophone", "biphone"])
@pytest.mark.parametrize("num_extra_states", [0, 100])
def test_minimisation_keeps_every_sentence_up_to_one_factor(pdfs, num_extra_states):
    lm = estimate_phone_lm(SEQUENCES, num_extra_states=num_extra_states)
    plain, small = expand_phones(lm, pdfs), denominator_graph(lm, pdfs)
    assert small.num_states <= plain.num_states and not small.has_epsilons
    leaving = torch.zeros(small.num_states, dtype=torch.float64).index_add_(0, small.src, (-small.cost).exp())
    torch.testing.assert_close(leaving + (-small.final).exp(), torch.ones_like(leaving))
    ratios = []
    for length in range(1, 7):
        expected, found = sentences(plain, length), sentences(small, length)
        assert set(expected) == set(found)
        ratios += [found[s] / expected[s] for s in expected]
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-6)


def test_minimisation_merges_equal_futures_and_pasts():
    twins = Graph.from_arcs([0, 0, 1, 2, 3, 3], [1, 2, 3, 3, 4, 5], [0, 1, 2, 2, 0, 0], [math.log(4)] + [0.7] * 5,
                            final=[torch.inf] * 4 + [0.0, 0.0])
    assert minimise(twins).num_states == 4
    with pytest.raises(DataError, match="does not converge"):
        minimise(Graph.from_arcs([0], [0], [0], [0.0], final=[0.0]))
    with pytest.raises(DataError, match="no path"):
        minimise(Graph.from_arcs([0], [0], [0], [0.0], final=[torch.inf]))


def test_a_phone_sequence_has_all_its_alignments():
    for pdfs in (PDFS, biphone):
        found = sentences(phone_sequence_graph([0, 2, 2], pdfs), 6)
        durations = [d for d in itertools.product(range(1, 5), repeat=3) if sum(d) == 6]
        assert found == {spelled([0, 2, 2], d, pdfs): 1.0 for d in durations}


@pytest.mark.parametrize(("tolerance", "subsampling", "shift"),
                         [(0, 1, 0), (2, 1, 0), ((1, 3), 1, 0), (2, 3, 0), (5, 3, 0), (5, 3, 2)])
def test_alignments_stay_within_the_tolerance(tolerance, subsampling, shift):
    phones, durations = [0, 1, 2, 1], [4, 3, 6, 5]
    early, late = (tolerance, tolerance) if isinstance(tolerance, int) else tolerance
    end = np.cumsum(durations)
    frames = range(shift, sum(durations), subsampling)
    expected = Counter()
    for firsts in itertools.combinations(range(1, len(frames)), len(phones) - 1):
        bounds = [0, *firsts, len(frames)]
        within = all(end[i] - durations[i] - early <= frames[t] < end[i] + late
                     for i in range(len(phones)) for t in range(bounds[i], bounds[i + 1]))
        if within:
            expected[spelled(phones, np.diff(bounds))] = 1.0
    graph = alignment_graph(phones, durations, PDFS, tolerance, subsampling, shift)
    assert sentences(graph, len(frames)) == expected and expected
    assert all(not sentences(graph, n) for n in (len(frames) - 1, len(frames) + 1))


def test_too_many_phones_for_the_frames_leave_no_path():
    graph = alignment_graph([0, 1, 2, 1], [1, 1, 1, 1], PDFS, tolerance=1, subsampling=3)
    assert graph.num_arcs == 0
    assert numerator_posteriors([graph], torch.zeros(1, 2, 6), torch.tensor([2])).logprob[0] == -torch.inf


def test_a_chunk_has_the_frames_of_the_whole():
    whole = alignment_graph([0, 1, 2, 1], [4, 3, 6, 5], PDFS, 2, subsampling=1)
    everything = sentences(whole, 18)
    for first, length in ((0, 18), (0, 5), (3, 6), (10, 8)):
        chunk = slice_frames(whole, first, length)
        assert set(sentences(chunk, length)) == {pdfs[first:first + length] for pdfs in everything}
    assert set(sentences(slice_frames(whole, 15, 9), 3)) == {pdfs[15:] for pdfs in everything}
    with pytest.raises(MisuseError, match="know the time"):
        slice_frames(phone_sequence_graph([0, 1], PDFS), 0, 2)


def test_composition_multiplies_the_weights_of_shared_sentences():
    lm = expand_phones(estimate_phone_lm(SEQUENCES), PDFS)
    numerator = phone_sequence_graph([0, 1, 2, 0, 1], PDFS)
    both, weights = sentences(compose(numerator, lm), 7), sentences(lm, 7)
    assert both == pytest.approx({s: weights[s] for s in sentences(numerator, 7)})
    assert compose(numerator, phone_sequence_graph([1], PDFS)).num_arcs == 0


def test_the_normalised_numerator_is_a_part_of_the_denominator():
    graph = denominator_graph(estimate_phone_lm(SEQUENCES), PDFS)
    torch.manual_seed(0)
    outputs, length = torch.randn(1, 5, 6, dtype=torch.float64), torch.tensor([5])
    norm = normalisation_graph(graph)
    everything = numerator_posteriors([norm], outputs, length).logprob
    torch.testing.assert_close(everything, denominator_posteriors(graph, outputs, length, leak=0.0).logprob)
    part = numerator_posteriors([compose(phone_sequence_graph([0, 1], PDFS), norm)], outputs, length).logprob
    assert torch.isfinite(part).all() and part < everything
    entering = norm.src == norm.start
    assert float((-norm.cost[entering]).exp().sum()) == pytest.approx(
        float((initial_probabilities(graph)[graph.src] * (-graph.cost).exp()).sum()))


def test_the_reference_composition_is_met_by_its_best_path_per_sentence(shared_golden):
    """The reference keeps the heaviest path of each sentence where :func:`compose` keeps all."""
    data = np.load(shared_golden / "lfmmi_a.npz")

    def graph(arcs, final):
        return Graph.from_arcs(arcs[:, 0].astype(int), arcs[:, 1].astype(int), arcs[:, 2].astype(int) - 1, arcs[:, 3],
                               final=np.where(final < 1e30, final, np.inf))

    norm = normalisation_graph(graph(data["in_den_arcs"], data["in_den_final"]), merge="max")
    outputs = torch.tensor(data["in_nnet_output"]).double().reshape(20, 3, 8).transpose(0, 1)
    numerators = [_determinised(compose(graph(data[f"in_num_arcs_{s}"], data[f"in_num_final_{s}"]), norm))
                  for s in range(3)]
    total = numerator_posteriors(numerators, outputs, torch.full((3,), 20)).logprob.sum()
    assert float(total) == pytest.approx(float(data["f64_num_logprob_weighted"][0]), abs=1e-3)  # kaldifst has float32


def _determinised(graph):
    fst = kaldifst.StdVectorFst()
    for final in graph.final.tolist():
        state = fst.add_state()
        if final < math.inf:
            fst.set_final(state, final)
    fst.start = graph.start
    for src, dst, pdf, cost in zip(*(x.tolist() for x in (graph.src, graph.dst, graph.pdf, graph.cost))):
        fst.add_arc(src, kaldifst.StdArc(pdf + 1, pdf + 1, cost, dst))
    kaldifst.determinize_star(fst)
    arcs = [(s, a.nextstate, a.ilabel - 1, a.weight.value) for s in range(fst.num_states)
            for a in kaldifst.ArcIterator(fst, s)]
    return Graph.from_arcs(*zip(*arcs), start=fst.start, final=[fst.final(s).value for s in range(fst.num_states)])


def test_trimming_keeps_sentences_and_drops_dead_ends():
    graph = Graph.from_arcs([0, 0, 1, 4], [1, 2, 3, 3], [0, 1, 2, 0], [0.0] * 4, final=[torch.inf] * 3 + [0.0, 0.0])
    assert sentences(trimmed(graph), 2) == sentences(graph, 2) == {(0, 2): 1.0}
    assert trimmed(graph).num_states == 3


def test_misuse_is_named():
    with pytest.raises(DataError, match="no sequences"):
        estimate_phone_lm([])
    with pytest.raises(DataError, match="sequence 1 has the phone -3"):
        estimate_phone_lm([[0], [1, -3]])
    with pytest.raises(MisuseError, match="order 0"):
        estimate_phone_lm([[0]], order=0)
    with pytest.raises(DataError, match="phone 3 has no pdfs"):
        phone_sequence_graph([3], PDFS)
    with pytest.raises(DataError, match="one duration of at least 1 frame"):
        alignment_graph([0, 1], [3], PDFS)
    with pytest.raises(MisuseError, match="shift 3 is not one of 0..2"):
        alignment_graph([0], [3], PDFS, shift=3)
    with pytest.raises(MisuseError, match="merge 'mean'"):
        normalisation_graph(phone_sequence_graph([0], PDFS), merge="mean")
