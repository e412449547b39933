import kaldi_decoder
import kaldifst
import numpy as np
import pytest
from best_path_oracle import cheapest_path, path_cost, random_graph

from hemstitch.errors import MisuseError
from hemstitch.graphs import Graph, beam_search, viterbi

EVERYTHING = {"beam": np.inf, "max_active": 10**9}


def kaldi_fst(graph):
    """The graph for kaldi_decoder: input label = pdf + 1, 0 for an epsilon."""
    fst = kaldifst.StdVectorFst()
    for final in graph.final.tolist():
        state = fst.add_state()
        if np.isfinite(final):
            fst.set_final(state, final)
    fst.start = graph.start
    for src, dst, pdf, cost, label in zip(graph.src.tolist(), graph.dst.tolist(), graph.pdf.tolist(),
                                          graph.cost.tolist(), graph.label.tolist()):
        fst.add_arc(src, kaldifst.StdArc(pdf + 1, label, cost, dst))
    return fst


def kaldi_best(decoder, loglikes):
    """(labels, cost) of the best path of one of kaldi_decoder's decoders."""
    decoder.decode(kaldi_decoder.DecodableCtc(loglikes))
    _, lattice = decoder.get_best_path()
    _, _, labels, weight = kaldifst.get_linear_symbol_sequence(lattice)
    return labels, weight.value1 + weight.value2


@pytest.mark.parametrize("seed", range(20))
def test_without_pruning_it_finds_the_cheapest_of_all_paths(seed):
    rng = np.random.default_rng(seed)
    graph, loglikes = random_graph(rng, epsilons=4), rng.normal(size=(4, 4)).astype(np.float32)
    cost, arcs = cheapest_path(graph, loglikes, scale=0.7)
    path = beam_search(graph, loglikes, **EVERYTHING, acoustic_scale=0.7)
    assert path.reached_final == (arcs is not None)
    assert path.cost == pytest.approx(path_cost(path, loglikes, 0.7))
    if arcs is not None:
        assert path.cost == pytest.approx(cost) and path.arcs.tolist() == arcs


def test_without_pruning_it_equals_viterbi():
    rng = np.random.default_rng(5)
    graph = random_graph(rng, num_states=80, num_arcs=600, num_pdfs=30)
    loglikes = rng.normal(size=(60, 30)).astype(np.float32)
    exact, beam = viterbi(graph, loglikes), beam_search(graph, loglikes, **EVERYTHING)
    assert beam.cost == exact.cost and beam.arcs.tolist() == exact.arcs.tolist()


@pytest.mark.parametrize("epsilons", [0, 60])
@pytest.mark.parametrize("beam", [6.0, 12.0])
def test_agrees_with_kaldis_decoders(beam, epsilons):
    rng = np.random.default_rng(7)
    graph = random_graph(rng, num_states=200, num_arcs=2000, num_pdfs=50, epsilons=epsilons)
    loglikes = 3 * rng.normal(size=(80, 50)).astype(np.float32)
    path = beam_search(graph, loglikes, beam=beam, max_active=10**9)
    fst, options = kaldi_fst(graph), kaldi_decoder.FasterDecoderOptions(beam=beam)
    for decoder in (kaldi_decoder.SimpleDecoder(fst, beam), kaldi_decoder.FasterDecoder(fst, options)):
        labels, cost = kaldi_best(decoder, loglikes)
        assert path.cost == pytest.approx(cost, abs=2e-3) and path.labels.tolist() == labels


@pytest.mark.parametrize("options", [{"beam": 2.0}, {"max_active": 3}, {"beam": np.inf, "max_active": 1}])
def test_pruning_gives_a_true_path_that_is_never_better_than_the_best(options):
    rng = np.random.default_rng(11)
    graph = random_graph(rng, num_states=100, num_arcs=800, num_pdfs=20, epsilons=20)
    loglikes = 2 * rng.normal(size=(50, 20)).astype(np.float32)
    best, path = beam_search(graph, loglikes, **EVERYTHING), beam_search(graph, loglikes, **options)
    assert path.cost == pytest.approx(path_cost(path, loglikes))
    assert path.cost > best.cost and len(path.pdfs) == 50


def test_max_active_bounds_the_tokens_that_are_followed():
    fan = Graph.from_arcs([0] * 50 + list(range(1, 51)), list(range(1, 51)) * 2, list(range(50)) * 2, [0.0] * 100)
    from hemstitch.graphs._beam import pass_tokens

    scores = np.tile(-np.linspace(0, 10, 50, dtype=np.float32), (3, 1))
    _, offsets = pass_tokens(fan, scores, beam=100.0, max_active=7, acoustic_scale=1.0)
    assert np.diff(offsets).tolist() == [1, 50, 7, 7]


def test_without_a_final_state_the_best_token_is_taken_and_flagged():
    graph = Graph.from_arcs([0, 0, 1], [0, 1, 1], [0, 1, 1], [0.0, 0.0, 0.0], final=[np.inf, np.inf], label=[3, 4, 0])
    path = beam_search(graph, np.array([[0.0, -1.0], [-1.0, 0.0]]))
    assert not path.reached_final and path.cost == 0.0 and path.labels.tolist() == [3, 4]


def test_where_all_tokens_die_the_living_part_is_returned_and_flagged():
    graph = Graph.from_arcs([0, 1], [1, 2], [0, 0], [0.0, 0.0])
    path = beam_search(graph, np.zeros((5, 1)))
    assert not path.reached_final and path.arcs.tolist() == [0, 1]


def test_epsilon_cycles_end_or_are_refused():
    arcs = dict(src=[0, 1, 0], dst=[1, 0, 0], pdf=[-1, -1, 0])
    assert beam_search(Graph.from_arcs(**arcs, cost=[1.0, 0.0, 0.0]), np.zeros((3, 1))).cost == 0.0
    with pytest.raises(MisuseError, match="cycle of negative cost"):
        beam_search(Graph.from_arcs(**arcs, cost=[1.0, -2.0, 0.0]), np.zeros((3, 1)))


@pytest.mark.parametrize("options", [{"beam": 0.0}, {"beam": np.nan}, {"max_active": 0}, {"acoustic_scale": 0.0}])
def test_refuses_options_out_of_range(options):
    with pytest.raises(MisuseError, match="expected beam > 0"):
        beam_search(Graph.from_arcs([0], [0], [0], [0.0]), np.zeros((1, 1)), **options)


def test_kernels_run_without_the_interpreters_lock():
    from hemstitch.graphs import _search_kernels as kernels

    for kernel in (kernels.best_alignment, kernels.pass_tokens, kernels.trace_back):
        assert kernel.targetoptions["nogil"]


def test_a_disk_that_refuses_the_compiled_code_is_no_error(monkeypatch):
    import numba

    from hemstitch.graphs import _jit

    calls = []

    def fills_up(x):
        calls.append(x)
        if len(calls) < 3:
            raise OSError("No space left on device")
        return 2 * x

    assert _jit.run(fills_up, 4) == 8

    def nowhere_to_write(function, **options):
        if options.pop("cache", False):
            raise RuntimeError("no locator available")
        return ("compiled", function, options)

    monkeypatch.setattr(numba, "njit", nowhere_to_write)
    assert _jit.kernel(len) == ("compiled", len, {"nogil": True})
