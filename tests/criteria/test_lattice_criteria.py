"""Lattice criteria against sums over every path of the graph, and finite differences."""

import numpy as np
import pytest
import torch

from hemstitch.criteria import (
    AuxiliaryFunction,
    FrameAccuracy,
    LatticeMBR,
    LatticeMMI,
    LatticeOptions,
    bound_strength,
)
from hemstitch.errors import MisuseError
from hemstitch.graphs import Graph
from lattice_oracle import graph_paths

KAPPA, NUM_FRAMES, NUM_PDFS = 0.3, 5, 6
EVERYTHING = dict(acoustic_scale=KAPPA, beam=1e3, lattice_beam=1e3, min_occupancy=0.0)
PRIORS = np.log([0.3, 0.1, 0.2, 0.1, 0.2, 0.1])
PHONES = FrameAccuracy.phones([1, 2, 2, 3, 3, 1], silence_phones=[1])
STATES = FrameAccuracy.states(NUM_PDFS, silence_pdfs=[0, 5])
REFERENCE = np.array([0, 1, 2, 2, 5])
ONE_WORD = np.array([0, 3, 4, 5, 5])


def word_loop():
    """Silence (pdf 0), then words 1 and 2 of two states in any number, an epsilon back; ends in silence (pdf 5)."""
    src = [0, 0, 1, 2, 2, 3, 3, 0, 4, 4, 5, 5, 1, 1, 6]
    dst = [0, 1, 2, 2, 3, 3, 1, 0, 4, 5, 5, 1, 4, 6, 6]
    pdf = [0, 0, 1, 1, 2, 2, -1, 0, 3, 4, 4, -1, 3, 5, 5]
    cost = [0.7, 0.5, 0.9, 0.4, 0.3, 0.6, 0.2, 2.0, 0.5, 0.6, 0.7, 0.1, 1.1, 0.4, 0.3]
    label = [0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0]
    return Graph.from_arcs(src, dst, pdf, cost, final=[np.inf] * 6 + [0.2], label=label)


def outputs_of(seed=0, spread=1.5):
    return np.random.default_rng(seed).normal(0, spread, (NUM_FRAMES, NUM_PDFS))


def all_paths(outputs):
    """(path, frame) pdfs and (path,) log weights, by enumeration."""
    graph, scores = word_loop(), outputs - PRIORS
    found = graph_paths(graph, scores, KAPPA)
    pdfs = [[int(graph.pdf[arc]) for _, arc in steps if graph.pdf[arc] >= 0] for _, steps in found]
    return np.array(pdfs), -np.array([cost for cost, _ in found])


def says_one_word(pdfs):
    """(path,) whether it says word 2 and nothing else, as ONE_WORD does."""
    begun = [[pdf for before, pdf in zip([0, *row], row) if pdf in (1, 3) and pdf != before] for row in pdfs]
    return np.array([words == [3] for words in begun])


def occupancies(pdfs, share):
    return np.stack([np.bincount(pdfs[:, t], share, NUM_PDFS) for t in range(NUM_FRAMES)])


def shares(logs):
    return np.exp(logs - np.logaddexp.reduce(logs))


def mmi(boost=0.0, **options):
    settings = LatticeOptions(**{**EVERYTHING, **options})
    return LatticeMMI(word_loop(), PRIORS, settings, boost, PHONES if boost else None)


def mbr(accuracy=STATES, **options):
    return LatticeMBR(word_loop(), PRIORS, accuracy, LatticeOptions(**{**EVERYTHING, **options}))


@pytest.mark.parametrize("boost", [0.0, 0.4])
@pytest.mark.parametrize("seed", range(3))
def test_mmi_is_that_of_enumeration(seed, boost):
    outputs = outputs_of(seed)
    pdfs, logs = all_paths(outputs)
    wrong = sum((PHONES.classes[pdfs[:, t]] != PHONES.classes[r]) & ~PHONES.is_silence[pdfs[:, t]]
                for t, r in enumerate(REFERENCE))
    num = np.logaddexp.reduce(logs[(pdfs == REFERENCE).all(1)])
    found = mmi(boost).utterance(outputs, REFERENCE)
    assert found.loss == pytest.approx(np.logaddexp.reduce(logs + boost * wrong) - num, abs=1e-5)
    den = occupancies(pdfs, shares(logs + boost * wrong))
    np.testing.assert_allclose(found.occupancy, den, atol=1e-5)
    np.testing.assert_allclose(found.derivative, KAPPA * (den - np.eye(NUM_PDFS)[REFERENCE]), atol=1e-5)


@pytest.mark.parametrize("boost", [0.0, 0.4])
@pytest.mark.parametrize("seed", range(3))
def test_mmi_of_words_counts_all_ways_to_say_them(seed, boost):
    outputs, reference = outputs_of(seed), ONE_WORD
    pdfs, logs = all_paths(outputs)
    same = says_one_word(pdfs)
    wrong = sum((PHONES.classes[pdfs[:, t]] != PHONES.classes[r]) & ~PHONES.is_silence[pdfs[:, t]]
                for t, r in enumerate(reference))
    logs = logs + boost * wrong
    criterion = mmi(boost, numerator="words")
    found = criterion.utterance(outputs, reference)
    assert 1 < same.sum() < len(same)
    assert found.loss == pytest.approx(np.logaddexp.reduce(logs) - np.logaddexp.reduce(logs[same]), abs=1e-5)
    num, den = (occupancies(pdfs[which], shares(logs[which])) for which in (same, slice(None)))
    np.testing.assert_allclose(found.derivative, KAPPA * (den - num), atol=1e-5)
    assert found.rejected == 0
    rejecting = mmi(boost, numerator="words", min_occupancy=0.3).utterance(outputs, reference)
    assert rejecting.rejected == (np.minimum(num, den).sum(1) < 0.3).sum() > 0


@pytest.mark.parametrize("accuracy", [STATES, PHONES, FrameAccuracy.states(NUM_PDFS, [0, 5], one_silence_class=False)])
@pytest.mark.parametrize("seed", range(3))
def test_minimum_bayes_risk_is_that_of_enumeration(seed, accuracy):
    outputs = outputs_of(seed)
    pdfs, logs = all_paths(outputs)
    right = sum(accuracy.correct(pdfs[:, t], np.full(len(pdfs), r)) for t, r in enumerate(REFERENCE))
    share = shares(logs)
    mean = share @ right
    found = mbr(accuracy).utterance(outputs, REFERENCE)
    assert found.loss == pytest.approx(NUM_FRAMES - mean, abs=1e-5)
    np.testing.assert_allclose(found.derivative, -KAPPA * occupancies(pdfs, share * (right - mean)), atol=1e-5)


@pytest.mark.parametrize("accuracy", [STATES, PHONES, FrameAccuracy.states(NUM_PDFS, [0, 5], one_silence_class=False)])
def test_minimum_bayes_risk_of_words_compares_with_all_ways_to_say_them(accuracy):
    pdfs, logs = all_paths(outputs_of(1))
    same, share = says_one_word(pdfs), shares(logs)
    spoken = zip(pdfs[same], shares(logs[same]))
    right = sum(weight * accuracy.correct(pdfs, np.broadcast_to(r, pdfs.shape)).sum(1) for r, weight in spoken)
    found = mbr(accuracy, numerator="words").utterance(outputs_of(1), ONE_WORD)
    assert found.loss == pytest.approx(NUM_FRAMES - share @ right, abs=1e-5)
    expected = -KAPPA * occupancies(pdfs, share * (right - share @ right))
    np.testing.assert_allclose(found.derivative, expected, atol=1e-5)


def test_silence_options():
    hyp, ref = np.array([0, 5, 0, 1]), np.array([5, 0, 1, 0])
    assert STATES.correct(hyp, ref).tolist() == [1, 1, 0, 0]
    apart = FrameAccuracy.states(NUM_PDFS, [0, 5], one_silence_class=False)
    assert apart.correct(hyp, ref).tolist() == [0, 0, 0, 0] and apart.correct(ref, ref).tolist() == [0, 0, 1, 0]
    assert STATES.errors(hyp, ref).tolist() == [0, 0, 0, 1]
    with pytest.raises(MisuseError, match="silence pdfs"):
        FrameAccuracy.states(3, [3])


@pytest.mark.parametrize("make", [mmi, lambda **o: mmi(0.3, **o), lambda **o: mmi(0.3, numerator="words", **o), mbr,
                                  lambda **o: mbr(PHONES, **o)])
@pytest.mark.parametrize("smoothing", [0.0, 0.4])
def test_the_derivative_is_that_of_finite_differences(make, smoothing):
    criterion, outputs, step = make(smoothing=smoothing), outputs_of(4), 1e-5
    lattice, _ = criterion.lattice(outputs, REFERENCE)
    derivative = criterion.utterance(outputs, REFERENCE, lattice).derivative
    for cell in np.ndindex(outputs.shape):
        moved = [outputs.copy() for _ in range(2)]
        for sign, each in zip((1, -1), moved):
            each[cell] += sign * step
        above, below = (criterion.utterance(each, REFERENCE, lattice).loss for each in moved)
        assert derivative[cell] == pytest.approx((above - below) / (2 * step), abs=1e-7)


def test_a_batch_adds_up_and_leaves_out_what_cannot_be_computed():
    criterion = mmi()
    outputs = torch.tensor(np.stack([outputs_of(s) for s in range(5)]), requires_grad=True)
    with torch.no_grad():
        outputs[2, 1, 0] = torch.nan
    lengths = torch.tensor([5, 4, 5, 5, 5])
    references = [REFERENCE, np.array([0, 3, 4, 5]), REFERENCE, None, np.array([3, 3, 3, 3, 3])]
    objective = criterion(outputs, lengths, references)
    objective.loss.backward()
    assert sorted(objective.reasons) == [2, 3, 4] and objective.skipped == 3 and objective.weight == 9
    assert "frame 1" in objective.reasons[2] and "alignment" in objective.reasons[3]
    assert "language model" in objective.reasons[4]
    single = [criterion.utterance(outputs[b, :n].detach().numpy(), references[b]) for b, n in ((0, 5), (1, 4))]
    assert float(objective.loss.detach()) == pytest.approx(sum(each.loss for each in single))
    np.testing.assert_allclose(outputs.grad[0], single[0].derivative)
    np.testing.assert_allclose(outputs.grad[1, :4], single[1].derivative)
    assert not outputs.grad[1, 4:].any() and not outputs.grad[2:].any()


def test_where_no_sentence_survives_the_utterance_is_left_out():
    found = mmi().utterance(outputs_of()[:1], REFERENCE[:1])
    assert "empty" in found.reason and not found.derivative.any() and found.cancelled.all()
    assert "frames" in mmi().utterance(outputs_of(), REFERENCE[:3]).reason


def test_a_reference_that_fell_out_is_added_then_its_frames_are_rejected():
    outputs = outputs_of(spread=0.1)
    outputs[np.arange(NUM_FRAMES), [0, 3, 4, 4, 5]] += 60.0
    full, pruned = mmi().utterance(outputs, REFERENCE), mmi(lattice_beam=1.0).utterance(outputs, REFERENCE)
    assert pruned.added and not full.added
    assert pruned.loss == pytest.approx(full.loss, rel=1e-3)
    rejecting = mmi(lattice_beam=1.0, min_occupancy=1e-3).utterance(outputs, REFERENCE)
    impossible = [1, 2, 3]
    assert rejecting.rejected == 3 and not rejecting.derivative[impossible].any()
    assert np.abs(pruned.derivative[impossible]).max() > 0.9 * KAPPA


def test_frames_where_numerator_and_denominator_agree_are_cancelled():
    outputs = outputs_of(spread=0.1)
    outputs[np.arange(NUM_FRAMES), REFERENCE] += 60.0
    found = mmi(tolerance=1e-2).utterance(outputs, REFERENCE)
    assert found.cancelled.all() and np.abs(found.derivative).max() <= 1e-2 * KAPPA
    assert not mmi(tolerance=1e-2).utterance(outputs_of(), REFERENCE).cancelled.all()


def test_fixed_outputs_get_no_gradient():
    free, fixed = mmi().utterance(outputs_of(), REFERENCE), mmi(fixed_pdfs=(0, 5)).utterance(outputs_of(), REFERENCE)
    assert not fixed.derivative[:, [0, 5]].any() and free.derivative[:, [0, 5]].any()
    np.testing.assert_array_equal(fixed.derivative[:, 1:5], free.derivative[:, 1:5])


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_curvature_is_positive_semi_definite_and_made_of_the_right_probabilities(smoothing):
    outputs = torch.tensor(outputs_of(2))[None]
    softmax = outputs[0].softmax(-1).numpy()
    for criterion, occupancy in ((mmi(smoothing=smoothing), mmi().utterance(outputs_of(2), REFERENCE).occupancy),
                                 (mbr(smoothing=smoothing), softmax)):
        found = criterion.curvature(outputs, torch.tensor([NUM_FRAMES]), [REFERENCE])
        units = torch.eye(NUM_FRAMES * NUM_PDFS, dtype=torch.float64).reshape(-1, 1, NUM_FRAMES, NUM_PDFS)
        matrix = torch.stack([found.product(unit).reshape(-1) for unit in units])
        assert found.weight == NUM_FRAMES and torch.linalg.eigvalsh(matrix).min() > -1e-12
        blocks = [(1 - smoothing) * KAPPA**2 * (np.diag(g) - np.outer(g, g)) + smoothing * (np.diag(p) - np.outer(p, p))
                  for g, p in zip(occupancy, softmax)]
        np.testing.assert_allclose(matrix, torch.block_diag(*map(torch.tensor, blocks)), atol=1e-9)


def test_auxiliary_functions_touch_the_criterion_and_the_bound_stays_above_it():
    criterion, at = mmi(), torch.tensor(outputs_of(1))[None]
    lengths = torch.tensor([NUM_FRAMES])
    outer = criterion.outer_gradient(at, lengths, [REFERENCE])
    tangent = AuxiliaryFunction(derivative=outer.derivative, at=at, loss=float(outer.loss))
    bound = AuxiliaryFunction(derivative=outer.derivative, at=at, loss=float(outer.loss),
                              strength=bound_strength(criterion, lengths)[:, None])
    lattice = criterion.lattice(at[0].numpy(), REFERENCE)[0]
    for function in (tangent, bound):
        outputs = at.clone().requires_grad_(True)
        value = function(outputs)
        value.backward()
        assert float(value.detach()) == pytest.approx(float(outer.loss))
        torch.testing.assert_close(outputs.grad, outer.derivative)
    below = 0
    for seed in range(40):
        moved = at + torch.tensor(outputs_of(seed, spread=0.3 * (1 + seed % 10)))
        loss = criterion.utterance(moved[0].numpy(), REFERENCE, lattice).loss
        assert float(bound(moved)) >= loss
        below += float(tangent(moved)) < loss
    assert below > 0  # the tangent is no bound
    with pytest.raises(MisuseError, match="tangent"):
        bound_strength(mbr(), lengths)


def test_misuse_is_refused():
    with pytest.raises(MisuseError, match="acoustic_scale"):
        LatticeOptions(acoustic_scale=0.0)
    with pytest.raises(MisuseError, match="smoothing"):
        LatticeOptions(smoothing=2.0)
    with pytest.raises(MisuseError, match="log prior"):
        LatticeMMI(word_loop(), PRIORS[:3])
    with pytest.raises(MisuseError, match="boost"):
        LatticeMMI(word_loop(), PRIORS, boost=0.1)
    with pytest.raises(MisuseError, match="references"):
        mmi()(torch.zeros(2, 5, 6), torch.tensor([5, 5]), [REFERENCE])
