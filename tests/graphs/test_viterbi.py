import numpy as np
import pytest
import torch
from best_path_oracle import cheapest_path, path_cost, random_graph

from hemstitch.errors import DataError, MisuseError, NonFiniteError
from hemstitch.graphs import Graph, NoPathError, shortest_length, viterbi

LEFT_TO_RIGHT = Graph.from_arcs([0, 1, 1, 2], [1, 1, 2, 2], [0, 0, 1, 1], [0.0, 0.7, 0.7, 0.7],
                                final=[np.inf, np.inf, 0.5], label=[7, 0, 8, 0])


@pytest.mark.parametrize("seed", range(20))
def test_finds_the_cheapest_of_all_paths(seed):
    rng = np.random.default_rng(seed)
    graph, loglikes = random_graph(rng), rng.normal(size=(5, 4)).astype(np.float32)
    cost, arcs = cheapest_path(graph, loglikes, scale=0.7)
    if arcs is None:
        with pytest.raises(NoPathError):
            viterbi(graph, loglikes, 0.7)
        return
    path = viterbi(graph, torch.from_numpy(loglikes), 0.7)
    assert path.arcs.tolist() == arcs
    assert path.cost == pytest.approx(cost) == pytest.approx(path_cost(path, loglikes, 0.7))


def test_reads_pdfs_labels_and_frames_off_the_path():
    loglikes = np.log([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8]])
    path = viterbi(LEFT_TO_RIGHT, loglikes)
    assert path.pdfs.tolist() == [0, 0, 1] and path.labels.tolist() == [7, 8] and path.frames.tolist() == [0, 1, 2]
    assert path.cost == pytest.approx(-np.log(0.9 * 0.9 * 0.8) + 2 * 0.7 + 0.5)


def test_says_how_many_frames_are_missing():
    with pytest.raises(NoPathError, match=r"needs 2 .* there are 1"):
        viterbi(LEFT_TO_RIGHT, np.zeros((1, 2)))


def test_says_when_scores_of_minus_infinity_close_every_path():
    scores = np.zeros((3, 2))
    scores[2, 1] = -np.inf
    with pytest.raises(NoPathError, match="-inf"):
        viterbi(LEFT_TO_RIGHT, scores)


def test_zero_frames_fit_where_the_start_is_final():
    graph = Graph.from_arcs([0], [0], [0], [0.0], final=[0.25])
    path = viterbi(graph, np.zeros((0, 1)))
    assert path.cost == 0.25 and len(path.arcs) == 0


@pytest.mark.parametrize(("scores", "error", "words"), [
    (np.zeros((3, 1)), DataError, "another model"),
    (np.zeros(3), DataError, "shape"),
    (np.array([[0, 0], [0, np.nan]]), NonFiniteError, "frame 1"),
    (np.array([[0, np.inf], [0, 0]]), NonFiniteError, "frame 0"),
])
def test_refuses_scores_it_cannot_use(scores, error, words):
    with pytest.raises(error, match=words):
        viterbi(LEFT_TO_RIGHT, scores)


def test_refuses_epsilon_arcs_and_labels_that_are_not_there():
    with pytest.raises(MisuseError, match="beam_search"):
        viterbi(Graph.from_arcs([0], [1], [-1], [0.0]), np.zeros((1, 1)))
    with pytest.raises(MisuseError, match="no labels"):
        _ = viterbi(Graph.from_arcs([0], [0], [0], [0.0]), np.zeros((1, 1))).labels
    with pytest.raises(MisuseError, match="no phones"):
        _ = viterbi(LEFT_TO_RIGHT, np.zeros((2, 2))).phone_marks


def test_shortest_length_counts_frames_not_arcs():
    graph = Graph.from_arcs([0, 1, 0, 2], [1, 3, 2, 3], [-1, 0, 0, 1], [9.0, 9.0, 0.0, 0.0],
                            final=[np.inf, np.inf, np.inf, 0.0])
    assert shortest_length(graph) == 1
    assert shortest_length(Graph.from_arcs([0], [1], [0], [0.0], final=[np.inf, np.inf])) == np.inf


def test_a_graph_keeps_its_marks_in_step_with_its_arcs():
    graph = Graph.from_arcs([1, 0], [1, 1], [3, 2], [0.0, 1.0], label=[0, 5], phone=[0, -4])
    assert graph.pdf.tolist() == [2, 3] and graph.label.tolist() == [5, 0] and graph.phone.tolist() == [-4, 0]
    with pytest.raises(DataError, match="'phone': 1"):
        Graph.from_arcs([1, 0], [1, 1], [3, 2], [0.0, 1.0], phone=[1])
