"""Lattice generation against kaldi_decoder's LatticeSimpleDecoder (C++), same graph, beams and scores, interleaved.

A graph of 3,000 states and 50,000 random arcs with 150 frames, and a decoding graph (made-up lexicon, unigram) with 1,000.
Ratios base / ours in seconds: above 1 is faster than the peer. The best paths must cost the same. The peer's scores come
from a C++ matrix, without Python callbacks; ours include the checks of the scores and the making of the arrays.
"""

import importlib.metadata
import time

import kaldi_decoder
import kaldifst
import numpy as np
import torch
from _common import environment, median_ratio, write_result
from bench_decode import kaldi_graph, lexicon_case, random_case

from hemstitch.graphs import LatticeGraph, lattice_sums, nbest

BEAMS = ((14.0, 8.0), (16.0, 10.0))
"""(search beam, lattice beam); the second is the peer's default."""


def ours(graph, scores, beam, lattice_beam):
    """(seconds, lattice) of our search."""
    begin = time.perf_counter()
    lattice = graph.search(scores, beam, lattice_beam, max_active=1_000_000)
    return time.perf_counter() - begin, lattice


def peer(fst, scores, beam, lattice_beam):
    """(seconds, cost of the best path) of the peer."""
    options = kaldi_decoder.LatticeSimpleDecoderConfig(beam=beam, lattice_beam=lattice_beam)
    begin = time.perf_counter()
    decoder = kaldi_decoder.LatticeSimpleDecoder(fst, options)
    decoder.decode(kaldi_decoder.DecodableCtc(scores))
    decoder.get_raw_lattice()
    seconds = time.perf_counter() - begin
    weight = kaldifst.get_linear_symbol_sequence(decoder.get_best_path()[1])[3]
    return seconds, weight.value1 + weight.value2


def compare(graph, scores, beam, lattice_beam):
    """The ratio of one case, the lattice's size, and what sums over it cost."""
    fst, laid_out = kaldi_graph(graph), LatticeGraph(graph)
    lattice = ours(laid_out, scores, beam, lattice_beam)[1]
    cost, peer_cost = nbest(lattice, 1)[0].cost, peer(fst, scores, beam, lattice_beam)[1]
    assert abs(cost - peer_cost) < 1e-3 * abs(cost), (cost, peer_cost)
    begin = time.perf_counter()
    lattice_sums(lattice)
    return {"beam": beam, "lattice_beam": lattice_beam, "lattice": repr(lattice),
            "sums_seconds": round(time.perf_counter() - begin, 5),
            **median_ratio(lambda: peer(fst, scores, beam, lattice_beam)[0],
                           lambda: ours(laid_out, scores, beam, lattice_beam)[0], 9)}


def main():
    torch.set_num_threads(1)
    rng, cases = np.random.default_rng(0), {}
    for name, (graph, scores) in {"lexicon": lexicon_case(rng), "random": random_case(rng)}.items():
        cases[name] = {"graph": repr(graph), "frames": len(scores),
                       "beams": [compare(graph, scores, *beams) for beams in BEAMS]}
    write_result("lattice", {"what": __doc__.splitlines()[0], "cases": cases,
                             "kaldi_decoder": importlib.metadata.version("kaldi-decoder"),
                             "numba": importlib.metadata.version("numba"), **environment()})


if __name__ == "__main__":
    main()
