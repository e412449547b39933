"""Beam search against kaldi_decoder's FasterDecoder and SimpleDecoder (C++), same graph, beam and scores, interleaved.

Two graphs of 3,000 states: a decoding graph (made-up lexicon, unigram, scores around a planted sentence), and one of
50,000 random arcs. Ratios base / ours in seconds: above 1 is faster than the peer. The best paths must cost the same.
"""

import importlib.metadata
import time

import kaldi_decoder
import kaldifst
import numpy as np
import torch
from _common import environment, median_ratio, write_result

from hemstitch.graphs import Graph, beam_search
from hemstitch.speech import LanguageModel, Lexicon, Pronunciation, Topology, align, decoding_graph

BEAM = 14.0
MAX_ACTIVE = 1_000_000
FRAMES_PER_SECOND = 100


def lexicon_case(rng, num_words=430, num_phones=35, spoken=20, frames_per_word=50):
    """A decoding graph, and scores in which a sentence stands out from the noise; scaled by 0.1."""
    phones = [f"p{i}" for i in range(num_phones)]
    words = {f"w{i}": (Pronunciation(tuple(rng.choice(phones, rng.integers(2, 8)))),) for i in range(num_words)}
    lexicon = Lexicon(words)
    topology = Topology.left_to_right(lexicon.phones)
    sentence = rng.choice(lexicon.words, spoken).tolist()
    shape = (spoken * frames_per_word, topology.num_pdfs)
    planted = align(rng.normal(size=shape), sentence, lexicon, topology)
    scores = 10 * rng.normal(size=shape)
    scores[np.arange(shape[0]), planted.pdfs] += 20
    model = LanguageModel.unigram([lexicon.words])
    return decoding_graph(lexicon, topology, model).graph, np.float32(0.1 * scores)


def random_case(rng, num_states=3000, num_arcs=50_000, num_pdfs=2000, num_frames=150):
    """A graph without structure, as in the tables of peers."""
    loops = np.arange(num_states)
    src, dst = (np.concatenate([loops, rng.integers(0, num_states, num_arcs - num_states)]) for _ in range(2))
    graph = Graph.from_arcs(src, dst, rng.integers(0, num_pdfs, num_arcs), rng.exponential(2.0, num_arcs),
                            final=np.zeros(num_states), label=np.ones(num_arcs, int))
    return graph, np.float32(3 * rng.normal(size=(num_frames, num_pdfs)))


def kaldi_graph(graph):
    """The graph as the peers want it: input label pdf + 1, the start state in the first line."""
    columns = (graph.src, graph.dst, graph.pdf + 1, graph.label, graph.cost)
    arcs = sorted(zip(*(column.tolist() for column in columns)), key=lambda arc: arc[0] != graph.start)
    lines = ["{} {} {} {} {:.9g}".format(*arc) for arc in arcs]
    lines += [f"{state} {cost:.9g}" for state, cost in enumerate(graph.final.tolist()) if np.isfinite(cost)]
    return kaldifst.StdConstFst(kaldifst.compile("\n".join(lines) + "\n"))


def ours(graph, scores):
    """(seconds, cost) of our search."""
    begin = time.perf_counter()
    path = beam_search(graph, scores, BEAM, MAX_ACTIVE)
    return time.perf_counter() - begin, path.cost


def peer(make_decoder, scores):
    """(seconds, cost) of one of kaldi_decoder's; its scores come from a C++ matrix, without Python callbacks."""
    begin = time.perf_counter()
    decoder = make_decoder()
    decoder.decode(kaldi_decoder.DecodableCtc(scores))
    weight = kaldifst.get_linear_symbol_sequence(decoder.get_best_path()[1])[3]
    return time.perf_counter() - begin, weight.value1 + weight.value2


def main():
    torch.set_num_threads(1)
    rng, cases = np.random.default_rng(0), {}
    for name, (graph, scores) in {"lexicon": lexicon_case(rng), "random": random_case(rng)}.items():
        fst, options = kaldi_graph(graph), kaldi_decoder.FasterDecoderOptions(beam=BEAM)
        peers = {"FasterDecoder": lambda fst=fst, options=options: kaldi_decoder.FasterDecoder(fst, options),
                 "SimpleDecoder": lambda fst=fst: kaldi_decoder.SimpleDecoder(fst, BEAM)}
        cases[name] = {"graph": repr(graph), "epsilon_arcs": int((graph.pdf < 0).sum()), "frames": len(scores)}
        for peer_name, make in peers.items():
            cost, peer_cost = ours(graph, scores)[1], peer(make, scores)[1]
            assert abs(cost - peer_cost) < 1e-3 * abs(cost), (name, peer_name, cost, peer_cost)
            result = median_ratio(lambda make=make, scores=scores: peer(make, scores)[0],
                                  lambda graph=graph, scores=scores: ours(graph, scores)[0], 9)
            cases[name][peer_name] = result
        cases[name]["real_time_factor"] = round(result["our_seconds"] * FRAMES_PER_SECOND / len(scores), 5)
    write_result("decode", {"what": __doc__.splitlines()[0], "beam": BEAM, "cases": cases,
                            "kaldi_decoder": importlib.metadata.version("kaldi-decoder"),
                            "numba": importlib.metadata.version("numba"), **environment()})


if __name__ == "__main__":
    main()
