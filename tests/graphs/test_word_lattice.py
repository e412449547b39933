import numpy as np
import pytest
from best_path_oracle import random_graph

from hemstitch.graphs import Graph, lattice_search, word_lattice
from lattice_oracle import lattice_paths

EVERYTHING = {"beam": np.inf, "max_active": 10**9}


def labelled_lattice(seed, num_frames=5):
    rng = np.random.default_rng(seed)
    plain = random_graph(rng, num_states=5, num_arcs=9, num_pdfs=4, epsilons=2)
    label = np.where(rng.random(len(plain.src)) < 0.4, rng.integers(1, 4, len(plain.src)), 0)
    graph = Graph.from_arcs(plain.src, plain.dst, plain.pdf, plain.cost, start=plain.start, final=plain.final,
                            label=label)
    loglikes = rng.normal(size=(num_frames, 4)).astype(np.float32)
    return lattice_search(graph, loglikes, lattice_beam=6.0, acoustic_scale=0.7, **EVERYTHING)


def cheapest(lattice):
    """Labels -> cost of their cheapest path, graph and acoustics apart, path by path."""
    found = {}
    for arcs, end in lattice_paths(lattice):
        labels = tuple(int(w) for w in lattice.label[arcs] if w)
        parts = lattice.graph_cost[arcs].sum() + end, lattice.acoustic_cost[arcs].sum()
        found[labels] = min(found.get(labels, (np.inf, 0, 0)), (parts[0] + 0.7 * parts[1], *parts))
    return found


def word_paths(lattice):
    """The same of a word lattice."""
    found = {}

    def walk(state, labels, graph_cost, acoustic_cost):
        if state == lattice.num_states - 1:
            cost = graph_cost + lattice.acoustic_scale * acoustic_cost
            found[labels] = min(found.get(labels, (np.inf, 0, 0)), (cost, graph_cost, acoustic_cost))
        for link in np.flatnonzero(lattice.src == state):
            word = (int(lattice.label[link]),) if lattice.label[link] else ()
            walk(int(lattice.dst[link]), labels + word, graph_cost + lattice.graph_cost[link],
                 acoustic_cost + lattice.acoustic_cost[link])  # fmt: skip

    walk(0, (), 0.0, 0.0)
    return found


@pytest.mark.parametrize("seed", range(10))
def test_every_label_sequence_keeps_its_cheapest_cost(seed):
    lattice = labelled_lattice(seed)
    expected, words = cheapest(lattice), word_lattice(lattice)
    found = word_paths(words)
    assert found.keys() == expected.keys()
    for labels, costs in expected.items():
        assert found[labels] == pytest.approx(costs, abs=1e-9)
    assert (words.src < words.dst).all() and (np.diff(words.time) >= 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_a_beam_keeps_what_is_within_it(seed):
    lattice = labelled_lattice(seed)
    expected = cheapest(lattice)
    if not expected:
        return
    best = min(cost for cost, _, _ in expected.values())
    found = word_paths(word_lattice(lattice, beam=1.0))
    assert {k for k, (cost, _, _) in expected.items() if cost <= best + 1} <= found.keys() <= expected.keys()
    assert len(word_paths(word_lattice(lattice, beam=0.0))) >= 1
