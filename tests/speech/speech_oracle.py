"""Slow, readable twins: every way to say a sentence, frame by frame."""

import itertools
import math

import numpy as np

from hemstitch.speech import HmmState, Lexicon, Pronunciation, Root, Split, TiedTopology, Topology


def lexicon(**words):
    """Lexicon from WORD="PHONE PHONE | PHONE", alternatives separated by |."""
    return Lexicon({word: tuple(Pronunciation(tuple(said.split())) for said in entry.split("|"))
                    for word, entry in words.items()})


def chain(phones):
    """The two-pdf topology: one state per phone, whose first frame has a pdf of its own."""
    return Topology(phones=tuple(phones), hmms=tuple((HmmState(0, 1, 0.3),) for _ in phones))


def tied(topology, context, seed, depth=3):
    """The topology with random trees of so many questions on each path; silence has none."""
    rng, numbers = np.random.default_rng(seed), itertools.count()

    def tree(depth):
        if depth == 0:
            return next(numbers)
        asked = 0 if context == "left" else 2 * int(rng.integers(2))
        among = frozenset(i for i in range(1, len(topology.phones) + 1) if rng.random() < 0.5)
        return Split(asked, among, tree(depth - 1), tree(depth - 1))

    roots = [Root((phone,), position, tree(depth if phone > 1 else 0))
             for phone, count in enumerate(topology.num_positions, start=1) for position in range(count)]
    return TiedTopology(phones=topology.phones, hmms=topology.hmms, context=context, roots=tuple(roots))


def phone_strings(words, lexicon, silence_probability):
    """(phones, cost) of every way to say the words: pronunciations, and silence or none in every gap."""
    options = [lexicon.entries[word] for word in words]
    gaps = [(choice, p) for choice, p in ((True, silence_probability), (False, 1 - silence_probability)) if p > 0]
    for said in itertools.product(*options):
        for silences in itertools.product(gaps, repeat=len(words) + 1):
            phones = [lexicon.silence] * silences[0][0]
            for pronunciation, (silent, _) in zip(said, silences[1:]):
                phones += [*pronunciation.phones, *[lexicon.silence] * silent]
            probabilities = [p.probability for p in said] + [p for _, p in silences]
            yield tuple(phones), -sum(map(math.log, probabilities))


def pdf_strings(phones, num_frames, topology):
    """(pdfs, cost) of every way to spread phones over frames."""
    numbers = [1, *(topology.phone_ids[phone] for phone in phones), 1]
    states = [(number, (before, after), state) for before, number, after in zip(numbers, numbers[1:], numbers[2:])
              for state in topology.hmms[number - 1]]
    for cuts in itertools.combinations(range(1, num_frames), len(states) - 1) if states else ():
        edges = (0, *cuts, num_frames)
        pdfs, cost = [], 0.0
        for (phone, context, state), begin, end in zip(states, edges, edges[1:]):
            pdfs.append(topology.pdf(phone, state.enter, context))
            pdfs += [topology.pdf(phone, state.loop, context)] * (end - begin - 1)
            cost -= (end - begin - 1) * math.log(state.stay) + math.log(1 - state.stay)
        yield tuple(pdfs), cost


def readings(words, num_frames, lexicon, topology, silence_probability=0.5):
    """(pdfs, cost) of every way to say the words in so many frames, sorted."""
    return sorted((pdfs, said + spread)
                  for phones, said in phone_strings(words, lexicon, silence_probability)
                  for pdfs, spread in pdf_strings(phones, num_frames, topology))


def graph_readings(graph, num_frames):
    """(pdfs, cost) of every path of so many frames, sorted; the graph has no epsilons."""
    arcs = list(zip(*(column.tolist() for column in (graph.src, graph.dst, graph.pdf, graph.cost))))
    paths = [(graph.start, (), 0.0)]
    for _ in range(num_frames):
        paths = [(dst, (*pdfs, pdf), total + cost) for state, pdfs, total in paths
                 for src, dst, pdf, cost in arcs if src == state]
    return sorted((pdfs, total + float(graph.final[state])) for state, pdfs, total in paths
                  if math.isfinite(float(graph.final[state])))
