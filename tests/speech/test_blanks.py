import dataclasses
import itertools

import pytest
import torch
from speech_oracle import graph_readings, lexicon

from hemstitch.errors import MisuseError
from hemstitch.speech import LanguageModel, Topology, decode, decoding_graph, training_graph, with_blanks

WORDS = lexicon(AB="A B", CAB="C A B | C B", AA="A A")
TOPOLOGY = Topology(phones=WORDS.phones, hmms=Topology.left_to_right(WORDS.phones, 1).hmms, transition_scale=0.0)


def collapsed(pdfs):
    return tuple(pdf for pdf, _ in itertools.groupby(pdfs) if pdf != 0)


def labels(words):
    """Label sequences (phone number - 1) of every way to say the words."""
    said = itertools.product(*(WORDS.entries[word] for word in words))
    return {tuple(TOPOLOGY.phone_ids[p] - 1 for entry in entries for p in entry.phones) for entries in said}


@pytest.mark.parametrize("words", [["AB"], ["CAB"], ["AB", "CAB"]])
@pytest.mark.parametrize("num_frames", [2, 4, 6])
def test_paths_are_those_that_collapse_to_the_labels(words, num_frames):
    graph = with_blanks(training_graph(words, WORDS, TOPOLOGY, 0.0), 0)
    wanted = [s for s in itertools.product(range(4), repeat=num_frames) if collapsed(s) in labels(words)]
    assert graph_readings(graph, num_frames) == [(s, 0.0) for s in sorted(wanted)]


def test_between_equal_phones_a_blank_may_be_left_out():
    graph = with_blanks(training_graph(["AA"], WORDS, TOPOLOGY, 0.0), 0)
    found = [pdfs for pdfs, _ in graph_readings(graph, 3)]
    assert (1, 0, 1) in found and (1, 1, 1) in found


def test_words_and_their_order_survive_in_a_decoding_graph():
    graph = decoding_graph(WORDS, TOPOLOGY, LanguageModel.unigram([["AB", "CAB"]]), 0.0)

    graph = dataclasses.replace(graph, graph=with_blanks(graph.graph, 0))
    spoken = [0, 0, 1, 0, 2, 2, 0, 0, 3, 1, 0, 2, 0]
    found = decode(torch.eye(4)[spoken].mul(20.0).log_softmax(-1), graph)
    assert found.text == "AB CAB" and found.words[1].start == 8


def test_a_graph_with_blanks_gets_no_others():
    graph = with_blanks(training_graph(["AB"], WORDS, TOPOLOGY, 0.0), 0)
    with pytest.raises(MisuseError, match="already"):
        with_blanks(graph, 0)
