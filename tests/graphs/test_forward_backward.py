"""Path sums against enumeration of every path, and each implementation against the others."""

import itertools
import math

import numpy as np
import pytest
import torch

from hemstitch.errors import DataError, MisuseError
from hemstitch.graphs import Graph, denominator_posteriors, initial_probabilities, numerator_posteriors
from hemstitch.graphs import _denominator as den
from hemstitch.graphs import _numerator as num

LENGTHS = torch.tensor([4, 2, 0, 3, 4])


def random_graph(seed=0, num_states=4, num_arcs=9, num_pdfs=5):
    draw = np.random.default_rng(seed)
    src, dst = draw.integers(0, num_states, num_arcs), draw.integers(0, num_states, num_arcs)
    src[0], dst[-1] = 0, num_states - 1
    final = np.where(draw.random(num_states) < 0.5, draw.random(num_states), np.inf)
    final[-1] = 0.3
    return Graph.from_arcs(src, dst, draw.integers(0, num_pdfs, num_arcs), draw.random(num_arcs), final=final)


def random_outputs(dtype=torch.float64, scale=1.0, shape=(5, 4, 5)):
    torch.manual_seed(1)
    return (scale * torch.randn(shape, dtype=torch.float64)).to(dtype)


def enumerate_paths(graph, scores, initial, final, leak=0.0):
    """log Z and occupancies of one sequence: every choice of arc, and of jump or stay, for each frame."""
    arcs = list(zip(graph.src.tolist(), graph.dst.tolist(), graph.pdf.tolist(), (-graph.cost).exp().tolist()))
    occupancies, total = np.zeros(scores.shape), 0.0
    jump = np.eye(graph.num_states) + leak * np.outer(np.ones(graph.num_states), initial)
    for path in itertools.product(arcs, repeat=len(scores)):
        weight = initial @ jump[:, path[0][0]] if path else initial @ jump @ final
        for t, (_, dst, pdf, p) in enumerate(path):
            weight *= p * np.exp(scores[t, pdf])
            weight *= jump[dst, path[t + 1][0]] if t + 1 < len(path) else jump[dst] @ final
        total += weight
        for t, arc in enumerate(path):
            occupancies[t, arc[2]] += weight
    return math.log(total) if total else -math.inf, occupancies / (total or 1.0)


@pytest.fixture(params=["kernel", "twin"])
def implementation(request, monkeypatch):
    if request.param == "twin":
        monkeypatch.setattr(den, "_implementation", lambda outputs: den.scaled_forward_backward)
        monkeypatch.setattr(num, "_implementation", lambda outputs: num.log_domain_twin)
    return request.param


@pytest.mark.parametrize("leak", [0.0, 0.1])
@pytest.mark.parametrize("seed", range(3))
def test_denominator_is_the_sum_over_all_paths(implementation, leak, seed):
    graph, outputs = random_graph(seed), random_outputs()
    found = denominator_posteriors(graph, outputs, LENGTHS, leak)
    for b, length in enumerate(LENGTHS.tolist()):
        expected = enumerate_paths(graph, outputs[b, :length].numpy(), initial_probabilities(graph).numpy(),
                                   np.ones(graph.num_states), leak)
        assert float(found.logprob[b]) == pytest.approx(expected[0], abs=1e-12)
        np.testing.assert_allclose(found.occupancies[b, :length], expected[1], atol=1e-12)
        assert not found.occupancies[b, length:].any()


@pytest.mark.parametrize("seed", range(3))
def test_numerator_is_the_sum_over_all_paths(implementation, seed):
    graphs = [random_graph(seed + 10 * b, num_states=3 + b % 2) for b in range(5)]
    outputs = random_outputs()
    found = numerator_posteriors(graphs, outputs, LENGTHS)
    for b, (graph, length) in enumerate(zip(graphs, LENGTHS.tolist())):
        start = np.eye(graph.num_states)[0]
        with np.errstate(divide="ignore"):
            expected = enumerate_paths(graph, outputs[b, :length].numpy(), start, np.exp(-graph.final.numpy()))
        assert float(found.logprob[b]) == pytest.approx(expected[0], abs=1e-12)
        np.testing.assert_allclose(found.occupancies[b, :length], expected[1], atol=1e-12)


@pytest.mark.parametrize("leak", [0.0, 0.1])
@pytest.mark.parametrize("batch", [1, 8, 9, 33, 70])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5)])
def test_kernel_and_twin_agree_with_the_log_domain(batch, leak, dtype, tolerance):
    graph = random_graph(3, num_states=30, num_arcs=200, num_pdfs=37)
    outputs, lengths = random_outputs(dtype, 3.0, (batch, 20, 40)), torch.arange(batch) % 21
    for run in (den._implementation(outputs), den.scaled_forward_backward):
        logprob, shares, error = run(den._paired_arcs(graph, dtype), outputs, lengths, leak, True)
        exact = den._in_log_domain(graph, outputs, lengths, leak, True)
        torch.testing.assert_close(logprob, exact[0], atol=tolerance, rtol=0)
        torch.testing.assert_close(shares, exact[1], atol=tolerance, rtol=0)
        assert float(error.max()) < tolerance
        assert torch.equal(logprob, run(den._paired_arcs(graph, dtype), outputs, lengths, leak, False)[0])


def test_padding_never_matters(implementation):
    graph, outputs = random_graph(), random_outputs()
    spoilt = outputs.clone()
    for b, length in enumerate(LENGTHS.tolist()):
        spoilt[b, length:] = torch.nan
    graphs = [random_graph(b) for b in range(5)]
    for posteriors, given in ((denominator_posteriors, graph), (numerator_posteriors, graphs)):
        clean, dirty = posteriors(given, outputs, LENGTHS), posteriors(given, spoilt, LENGTHS)
        assert torch.equal(clean.logprob, dirty.logprob)
        assert torch.equal(clean.occupancies, dirty.occupancies)


def test_a_sequence_gets_the_same_bits_in_any_batch_on_any_number_of_threads():
    graph = random_graph(3, num_states=30, num_arcs=200, num_pdfs=37)
    outputs, lengths = random_outputs(torch.float32, 2.0, (41, 20, 40)), 20 - torch.arange(41) % 7
    whole = denominator_posteriors(graph, outputs, lengths)
    alone = denominator_posteriors(graph, outputs[17:18], lengths[17:18])
    assert torch.equal(whole.logprob[17:18], alone.logprob)
    assert torch.equal(whole.occupancies[17:18], alone.occupancies)
    graphs = [random_graph(b) for b in range(41)]
    threads, numerators = torch.get_num_threads(), numerator_posteriors(graphs, outputs, lengths)
    try:
        torch.set_num_threads(3)
        assert torch.equal(denominator_posteriors(graph, outputs, lengths).occupancies, whole.occupancies)
        assert torch.equal(numerator_posteriors(graphs, outputs, lengths).occupancies, numerators.occupancies)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("scale", [20.0, 100.0, 1000.0])
def test_peaked_outputs_are_redone_in_the_log_domain(implementation, scale):
    graph = random_graph(5, num_states=30, num_arcs=60, num_pdfs=40)
    outputs, lengths = random_outputs(torch.float32, scale, (6, 60, 40)), torch.full((6,), 60)
    found = denominator_posteriors(graph, outputs, lengths, leak=0.0)
    exact = den._in_log_domain(graph, outputs, lengths, 0.0, True)
    torch.testing.assert_close(found.logprob, exact[0], atol=0, rtol=1e-6)
    torch.testing.assert_close(found.occupancies, exact[1], atol=1e-4, rtol=0)
    assert not den._in_probability_space(graph, outputs, lengths, 0.0, True)[2].all()  # or nothing was redone


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_outputs_that_are_no_numbers_spoil_their_own_sequence_only(implementation, value):
    graph, outputs = random_graph(), random_outputs()
    clean = denominator_posteriors(graph, outputs, LENGTHS)
    outputs[0, 1] = value
    for found in (denominator_posteriors(graph, outputs, LENGTHS), numerator_posteriors([graph] * 5, outputs, LENGTHS)):
        assert found.logprob[0].isnan() and not found.occupancies[0].any()
        assert not found.logprob[1:].isnan().any()
    assert torch.equal(denominator_posteriors(graph, outputs, LENGTHS).occupancies[1:], clean.occupancies[1:])


def test_autocast_does_not_touch_the_recursions(implementation):
    graph, outputs = random_graph(), random_outputs(torch.float32)
    plain = denominator_posteriors(graph, outputs, LENGTHS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(denominator_posteriors(graph, outputs, LENGTHS).occupancies, plain.occupancies)


def test_no_path_is_minus_infinity_with_zero_occupancies(implementation):
    chain = Graph.from_arcs([0, 1], [1, 2], [0, 1], [0.0, 0.0], final=[torch.inf, torch.inf, 0.0])
    outputs = torch.zeros(3, 3, 2)
    found = numerator_posteriors([chain, chain, None], outputs, torch.tensor([2, 3, 3]))
    assert found.logprob.tolist() == [0.0, -torch.inf, -torch.inf]
    assert found.occupancies.sum((1, 2)).tolist() == [2.0, 0.0, 0.0]
    dead = denominator_posteriors(chain, outputs, torch.tensor([1, 2, 3]), leak=0.0)
    assert dead.logprob[0].isfinite() and dead.logprob[2] == -torch.inf and not dead.occupancies[2].any()


def test_outputs_of_minus_infinity_forbid_paths(implementation):
    graph, outputs = random_graph(), random_outputs()
    outputs[:, :, 2] = -torch.inf
    found = denominator_posteriors(graph, outputs, LENGTHS)
    assert found.logprob.isfinite().all() and not found.occupancies[:, :, 2].any()


def test_misuse_is_named():
    graph, outputs = random_graph(), random_outputs()
    with pytest.raises(MisuseError, match="one integer length per sequence"):
        denominator_posteriors(graph, outputs, LENGTHS[:3])
    with pytest.raises(MisuseError, match="lengths run from 0 to 4, but outputs have 3 frames"):
        denominator_posteriors(graph, outputs[:, :3], LENGTHS)
    with pytest.raises(DataError, match="speaks of pdf 2, but there are 2 outputs"):
        numerator_posteriors([graph] * 5, outputs[:, :, :2], LENGTHS)
    with pytest.raises(MisuseError, match="one graph per sequence"):
        numerator_posteriors([graph], outputs, LENGTHS)
    with pytest.raises(MisuseError, match="epsilon"):
        numerator_posteriors([Graph.from_arcs([0], [0], [-1], [0.0])] * 5, outputs, LENGTHS)
    with pytest.raises(MisuseError, match="leak"):
        denominator_posteriors(graph, outputs, LENGTHS, leak=-1.0)


def test_the_setting_of_denormals_is_left_alone():
    tiny = torch.tensor(1e-40)
    denominator_posteriors(random_graph(), random_outputs(torch.float32), LENGTHS)
    assert float(tiny * 0.5) > 0.0
