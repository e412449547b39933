import json
import math

import numpy as np
import pytest
from speech_oracle import chain, graph_readings, lexicon, readings

from hemstitch.errors import DataError, MisuseError
from hemstitch.graphs import shortest_length
from hemstitch.speech import Lexicon, Pronunciation, Topology, training_graph

LEXICON = lexicon(AB="a b | b", C="c", D="a b a")
TOPOLOGIES = {
    "one state": Topology.left_to_right(LEXICON.phones, 1, stay=0.3),
    "three states": Topology.left_to_right(LEXICON.phones, 3, num_silence_states=1),
    "chain": chain(LEXICON.phones),
}


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("silence_probability", [0.0, 0.2, 1.0])
@pytest.mark.parametrize(("words", "num_frames"), [("AB", 5), ("AB C", 6), ("C D", 7), ("", 2), ("AB AB", 8)])
def test_holds_every_reading_at_its_cost(topology, silence_probability, words, num_frames):
    graph = training_graph(words.split(), LEXICON, TOPOLOGIES[topology], silence_probability)
    expected = readings(words.split(), num_frames, LEXICON, TOPOLOGIES[topology], silence_probability)
    found = graph_readings(graph, num_frames)
    assert [pdfs for pdfs, _ in found] == [pdfs for pdfs, _ in expected] and not graph.has_epsilons
    np.testing.assert_allclose([cost for _, cost in sorted(found)], [cost for _, cost in expected], rtol=1e-12)


def test_pronunciation_probabilities_are_costs():
    two_ways = Lexicon({"W": (Pronunciation(("a",), 0.9), Pronunciation(("b",), 0.1))})
    topology = Topology.left_to_right(two_ways.phones, 1)
    found = dict(graph_readings(training_graph(["W"], two_ways, topology, 0.0), 1))
    assert found == pytest.approx({(1,): -math.log(0.9 * 0.5), (2,): -math.log(0.1 * 0.5)})


def test_labels_and_phone_marks_are_where_words_and_phones_begin():
    graph = training_graph(["C", "D"], LEXICON, TOPOLOGIES["three states"], 0.5)
    begins = {(label, phone) for label, phone in zip(graph.label.tolist(), graph.phone.tolist()) if phone}
    a, b, c = (LEXICON.phones.index(phone) + 1 for phone in "abc")
    assert begins == {(0, 1), (2, -c), (3, -a), (0, b), (0, a)}
    assert shortest_length(graph) == 4 * 3


def test_says_what_it_cannot_build():
    with pytest.raises(DataError, match="'E'"):
        training_graph(["AB", "E"], LEXICON, TOPOLOGIES["chain"])
    with pytest.raises(DataError, match=r"no HMM for the phones \['b'\]"):
        training_graph(["AB"], LEXICON, Topology.left_to_right(["SIL", "a"]))
    with pytest.raises(MisuseError, match="silence_probability"):
        training_graph(["AB"], LEXICON, TOPOLOGIES["chain"], 1.5)


def test_every_transcript_of_an4_has_a_graph(shared_data):
    an4 = Lexicon.read(shared_data / "an4/an4.dic")
    topology = Topology.left_to_right(an4.phones)
    for line in (shared_data / "an4/test.jsonl").read_text().splitlines():
        utterance = json.loads(line)
        graph = training_graph(utterance["text"].split(), an4, topology)
        assert shortest_length(graph) <= utterance["num_frames"]
