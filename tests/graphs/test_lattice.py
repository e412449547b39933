import kaldi_decoder
import kaldifst
import numpy as np
import pytest
from best_path_oracle import random_graph
from test_beam import kaldi_fst

from hemstitch.errors import DataError, MisuseError, NonFiniteError
from hemstitch.graphs import (
    Graph,
    LatticeGraph,
    NoPathError,
    arc_weights,
    beam_search,
    frame_sums,
    labelled_sums,
    lattice_search,
    lattice_sums,
    nbest,
    path_of_pdfs,
    restricted_to,
)
from lattice_oracle import graph_paths, lattice_paths, path_weights

EVERYTHING = {"beam": np.inf, "max_active": 10**9}


def small_case(seed, epsilons=3, num_frames=4):
    rng = np.random.default_rng(seed)
    graph = random_graph(rng, num_states=5, num_arcs=8, num_pdfs=4, epsilons=epsilons)
    return graph, rng.normal(size=(num_frames, 4)).astype(np.float32)


def large_case(seed=7, epsilons=40):
    rng = np.random.default_rng(seed)
    graph = random_graph(rng, num_states=120, num_arcs=900, num_pdfs=40, epsilons=epsilons)
    return graph, 3 * rng.normal(size=(40, 40)).astype(np.float32)


def steps_of(lattice):
    """The set of (frame, pdf, rounded graph cost) of its arcs."""
    return {(int(t), int(p), round(float(c), 9)) for t, p, c in zip(lattice.time, lattice.pdf, lattice.graph_cost)}


@pytest.mark.parametrize("seed", range(12))
def test_it_holds_the_arcs_of_all_paths_within_the_beam_and_no_others(seed):
    graph, loglikes = small_case(seed)
    paths = graph_paths(graph, loglikes, scale=0.7)
    lattice = lattice_search(graph, loglikes, lattice_beam=2.0, acoustic_scale=0.7, **EVERYTHING)
    if not paths:
        assert not lattice.reached_final
        return
    bound = min(cost for cost, _ in paths) + 2.0
    steps = {step for cost, path in paths if cost <= bound for step in path}
    assert steps_of(lattice) == {(t, int(graph.pdf[a]), round(float(graph.cost[a]), 9)) for t, a in steps}
    ours = sorted(round(-w, 6) for w in path_weights(lattice, arc_weights(lattice))[0] if -w <= bound)
    assert ours == pytest.approx(sorted(round(cost, 6) for cost, _ in paths if cost <= bound), abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_states_and_arcs_are_in_topological_order(seed):
    lattice = lattice_search(*large_case(seed), beam=12.0, lattice_beam=6.0)
    assert (lattice.src < lattice.dst).all() and (np.diff(lattice.dst) >= 0).all()
    assert (np.diff(lattice.state_time) >= 0).all()
    spoken = lattice.pdf >= 0
    assert (lattice.state_time[lattice.dst] - lattice.state_time[lattice.src] == spoken).all()
    assert (lattice.time == lattice.state_time[lattice.src]).all()


@pytest.mark.parametrize("epsilons", [0, 40])
def test_agrees_with_kaldis_lattice_decoder(epsilons):
    graph, loglikes = large_case(epsilons=epsilons)
    options = kaldi_decoder.LatticeSimpleDecoderConfig(beam=200.0, lattice_beam=5.0)
    fst = kaldi_fst(graph)  # the decoder does not keep it alive
    decoder = kaldi_decoder.LatticeSimpleDecoder(fst, options)
    decoder.decode(kaldi_decoder.DecodableCtc(loglikes))
    peer = decoder.get_raw_lattice()[1]
    lattice = lattice_search(graph, loglikes, beam=200.0, lattice_beam=5.0)
    assert peer.num_states == lattice.num_states
    ends = int(np.isfinite(lattice.final).sum())
    assert peer.to_str().count("\n") == lattice.num_arcs + ends  # a line for each arc and each final state
    weight = kaldifst.get_linear_symbol_sequence(decoder.get_best_path()[1])[3]
    assert nbest(lattice, 1)[0].cost == pytest.approx(weight.value1 + weight.value2, abs=1e-3)


def test_the_narrow_sweep_and_the_wide_one_find_the_same():
    graph, loglikes = large_case(epsilons=0)
    more = {"src": 120, "dst": 1, "pdf": 0, "cost": np.inf}  # arcs that no path takes, so that most are asleep
    columns = {name: np.concatenate([getattr(graph, name), np.full(9000, value)]) for name, value in more.items()}
    dead = Graph.from_arcs(**columns, final=np.concatenate([graph.final, np.full(1, np.inf)]))
    ours, other = (lattice_search(g, loglikes, beam=15.0, lattice_beam=6.0) for g in (graph, dead))
    assert steps_of(ours) == steps_of(other)


def test_a_pruned_search_still_holds_the_path_of_beam_search():
    graph, loglikes = large_case()
    cost = beam_search(graph, loglikes, beam=4.0, max_active=20).cost
    lattice = lattice_search(graph, loglikes, beam=4.0, max_active=20, lattice_beam=3.0)
    assert nbest(lattice, 1)[0].cost <= cost + 1e-6
    assert lattice.num_arcs < lattice_search(graph, loglikes, beam=40.0, lattice_beam=3.0).num_arcs


def test_where_nothing_reaches_the_end_it_says_so():
    graph = Graph.from_arcs([0, 1], [1, 2], [0, 1], [0.0, 0.0], final=[np.inf, np.inf, np.inf])
    lattice = lattice_search(graph, np.zeros((2, 2)))
    assert not lattice.reached_final and lattice.num_arcs == 2
    stuck = lattice_search(graph, np.full((2, 2), -np.inf))
    assert not stuck.reached_final and stuck.num_arcs == 0 and stuck.num_states == 1


def test_misuse_is_refused():
    cycle = Graph.from_arcs([0, 1, 0], [1, 0, 1], [-1, -1, 0], [0.0, 0.0, 0.0])
    with pytest.raises(MisuseError, match="cycle"):
        LatticeGraph(cycle)
    graph, loglikes = small_case(0)
    with pytest.raises(MisuseError, match="lattice_beam"):
        lattice_search(graph, loglikes, lattice_beam=-1.0)
    with pytest.raises(DataError, match="pdfs"):
        lattice_search(graph, loglikes[:, :1])
    with pytest.raises(NonFiniteError, match="frame 1"):
        lattice_search(graph, np.where(np.arange(4)[:, None] == 1, np.nan, loglikes))
    with pytest.raises(MisuseError, match="n >= 1"):
        nbest(lattice_search(graph, loglikes), 0)


@pytest.mark.parametrize("seed", range(8))
def test_sums_over_paths_are_those_of_enumeration(seed):
    graph, loglikes = small_case(seed, num_frames=5)
    lattice = lattice_search(graph, loglikes, lattice_beam=6.0, **EVERYTHING)
    rng = np.random.default_rng(seed)
    values, weights = rng.normal(size=lattice.num_arcs), arc_weights(lattice) + rng.normal(size=lattice.num_arcs)
    logs, paths = path_weights(lattice, weights)
    share = np.exp(logs - np.logaddexp.reduce(logs))
    worth = np.array([values[arcs].sum() for arcs in paths])
    through = np.array([[arc in arcs for arcs in paths] for arc in range(lattice.num_arcs)]).reshape(-1, len(paths))
    sums = lattice_sums(lattice, weights, values)
    assert sums.logprob == pytest.approx(np.logaddexp.reduce(logs)) and sums.mean == pytest.approx(share @ worth)
    np.testing.assert_allclose(sums.posteriors, through @ share, atol=1e-12)
    np.testing.assert_allclose(sums.contrasts, through @ (share * (worth - share @ worth)), atol=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_sums_over_paths_with_given_labels_are_those_of_enumeration(seed):
    graph, loglikes = small_case(seed, num_frames=5)
    lattice = lattice_search(graph, loglikes, lattice_beam=6.0, **EVERYTHING)
    logs, paths = path_weights(lattice, arc_weights(lattice))
    said = [tuple(int(w) for w in lattice.label[arcs] if w) for arcs in paths]
    for labels in {*said, (), (2, 2, 1, 2, 2, 1)}:
        ours = [i for i, words in enumerate(said) if words == labels]
        logprob, posteriors = labelled_sums(lattice, labels)
        expected = np.zeros(lattice.num_arcs)
        for i in ours:
            np.add.at(expected, paths[i], np.exp(logs[i] - np.logaddexp.reduce(logs[ours])))
        assert logprob == (pytest.approx(np.logaddexp.reduce(logs[ours])) if ours else -np.inf)
        np.testing.assert_allclose(posteriors, expected, atol=1e-12)


def test_occupancies_of_every_frame_sum_to_one_and_can_be_restricted():
    graph, loglikes = large_case()
    lattice = lattice_search(graph, loglikes, lattice_beam=6.0)
    weights = arc_weights(lattice)
    np.testing.assert_allclose(weights, arc_weights(lattice, loglikes), atol=1e-5)
    occupancies = frame_sums(lattice, lattice_sums(lattice).posteriors, 40)
    np.testing.assert_allclose(occupancies.sum(1), 1.0)
    pdfs = beam_search(graph, loglikes).pdfs
    only = lattice_sums(lattice, restricted_to(lattice, pdfs, weights))
    assert only.logprob < lattice_sums(lattice).logprob
    np.testing.assert_allclose(frame_sums(lattice, only.posteriors, 40), np.eye(40)[pdfs], atol=1e-12)
    wrong = restricted_to(lattice, np.full(40, 39), weights)
    assert lattice_sums(lattice, wrong).logprob == -np.inf and not lattice_sums(lattice, wrong).posteriors.any()


@pytest.mark.parametrize("epsilons", [0, 4])
def test_a_path_that_fell_out_can_be_put_back(epsilons):
    rng = np.random.default_rng(3)
    graph = random_graph(rng, num_states=10, num_arcs=60, num_pdfs=6, epsilons=epsilons)
    loglikes = rng.normal(size=(6, 6)).astype(np.float32)
    everything = lattice_search(graph, loglikes, lattice_beam=1000.0, **EVERYTHING)
    pruned = lattice_search(graph, loglikes, lattice_beam=0.5)
    costs, paths = path_weights(everything, arc_weights(everything))
    pdfs = everything.pdf[paths[int(costs.argmin())]]
    pdfs = pdfs[pdfs >= 0]
    path = path_of_pdfs(graph, pdfs, loglikes)
    assert path.pdfs.tolist() == pdfs.tolist()
    joined = pruned.with_path(path, loglikes)
    assert len(lattice_paths(joined)) == len(lattice_paths(pruned)) + 1
    assert (np.diff(joined.dst) >= 0).all() and (joined.src < joined.dst).all()
    before, after = lattice_sums(pruned).logprob, lattice_sums(joined).logprob
    assert after == pytest.approx(np.logaddexp(before, -path.cost), abs=1e-5)


def test_a_path_that_the_graph_lacks_is_an_error():
    graph, loglikes = small_case(0, epsilons=0)
    with pytest.raises(NoPathError, match="language model"):
        path_of_pdfs(Graph.from_arcs([0], [0], [1], [0.0]), np.array([1, 0]), loglikes)
    with pytest.raises(MisuseError, match="frames"):
        long = beam_search(graph, loglikes)
        lattice_search(graph, loglikes[:2]).with_path(long, loglikes)


@pytest.mark.parametrize("seed", range(6))
def test_n_best_word_sequences_are_those_of_enumeration(seed):
    graph, loglikes = small_case(seed, num_frames=5)
    lattice = lattice_search(graph, loglikes, lattice_beam=5.0, **EVERYTHING)
    logs, paths = path_weights(lattice, arc_weights(lattice))
    best = {}
    for log, arcs in zip(logs, paths):
        words = tuple(int(w) for w in lattice.label[arcs] if w)
        best[words] = min(best.get(words, np.inf), -log)
    expected = sorted(best.values())[:4]
    sentences = nbest(lattice, 4)
    assert [s.cost for s in sentences] == pytest.approx(expected)
    assert all(best[s.labels] == pytest.approx(s.cost) for s in sentences)
    assert len({s.labels for s in sentences}) == len(sentences)
