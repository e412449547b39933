"""Graphs for training (one transcript) and decoding (any sentence of a language model).

Between words, and at both ends, silence may stand: it costs -log p, its absence -log(1 - p).

A decoding graph is min(det(L o G)) with every phone replaced by its HMM: G the language model as an automaton, L the
lexicon as a transducer from phones to words. Three devices make the composition determinisable and the words traceable:
words with the same phones, or with phones that begin another word, end in a disambiguation symbol; a back-off is the
symbol #0; and the first phone of a word is a symbol of its own, so that the beginnings of words can be seen on a path
although determinisation moves the labels. All but the last become epsilons in the end.

Where pdfs depend on neighbours, across words too, the graph over phones is split by context (see ``_context``) and
determinised and minimised once more, as a graph over units: phones with their pdfs.

Reference: M. Mohri, F. Pereira, M. Riley, "Speech recognition with weighted finite-state transducers", in Springer
Handbook of Speech Processing (2008), sections 3 and 4.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from hemstitch.errors import DataError, MisuseError
from hemstitch.graphs import Graph
from hemstitch.speech._context import PhoneGraph, UnitGraph, in_context
from hemstitch.speech._expand import expand, expand_units
from hemstitch.speech._language_model import BEGIN, END, LanguageModel, nats
from hemstitch.speech._lexicon import Lexicon, Pronunciation
from hemstitch.speech._media import require
from hemstitch.speech._topology import Topology, phone_numbers

_ROUNDING = 2.0**-16
"""To which costs are rounded before minimisation, in nats: enough to make equal what float32 sums left unequal."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodingGraph:
    """What a decoder searches.

    Attributes:
        graph: labels are numbers of words, ``phone`` those of phones; may have epsilon arcs.
        words: the word of each label, from label 1.
        phones: the name of each phone, from phone 1, which is silence.
        unreachable: words of the lexicon that the language model does not know: they are never recognised.
    """

    graph: Graph
    words: tuple[str, ...]
    phones: tuple[str, ...]
    unreachable: tuple[str, ...]


def training_graph(
    words: Sequence[str], lexicon: Lexicon, topology: Topology, silence_probability: float = 0.5
) -> Graph:
    """All ways to say a transcript: pronunciations in parallel, silence where it may be; without epsilons.

    A word's label (its number in the lexicon) is on the arc of its first frame.

    Args:
        words: the transcript.
        lexicon: pronunciations.
        topology: the HMMs.
        silence_probability: 0 <= p <= 1 of silence between words and at each end.

    Raises:
        DataError: a word is not in the lexicon, or a phone not in the topology.
        MisuseError: ``silence_probability`` is no probability.

    Cost: about 0.4 ms plus 2 us a phone.
    """
    present, absent = _silence_costs(silence_probability)
    arcs: list[tuple[int, int, int, int, float]] = []  # src, dst, phone, label, cost
    before, after, num_states = 0, 1, 2  # the states on both sides of a possible silence
    for word, pronunciations in zip(words, lexicon.pronunciations(words)):
        arcs.append((before, after, topology.silence, 0, present))
        end, num_states = num_states, num_states + 2
        for pronunciation in pronunciations:
            phones = phone_numbers(topology, pronunciation.phones)
            chain = [*range(num_states, num_states + len(phones) - 1), end]
            num_states += len(phones) - 1
            said = -math.log(pronunciation.probability)
            for src, cost in ((before, absent + said), (after, said)):
                arcs.append((src, chain[0], -phones[0], lexicon.word_ids[word], cost))
            arcs.extend((src, dst, phone, 0, 0.0) for src, dst, phone in zip(chain, chain[1:], phones[1:]))
        before, after = end, end + 1
    arcs.append((before, after, topology.silence, 0, present))
    final = np.full(num_states, np.inf)
    final[before], final[after] = absent, 0.0
    return expand(_phone_graph(arcs, final), topology, with_epsilons=False)


def decoding_graph(
    lexicon: Lexicon, topology: Topology, language_model: LanguageModel, silence_probability: float = 0.5
) -> DecodingGraph:
    """The graph of every sentence that the language model allows.

    n-grams with words that are not in the lexicon are left out. Backing off is possible even where a longer n-gram is
    listed (the usual approximation), so a sentence may cost less than its probability says, never more.

    Args:
        lexicon: pronunciations.
        topology: the HMMs.
        language_model: of any order.
        silence_probability: 0 <= p <= 1 of silence between words and at each end.

    Raises:
        DataError: no word of the lexicon is in the language model, or a phone is not in the topology.
        MisuseError: ``silence_probability`` is no probability.
    """
    known = set(language_model.vocabulary)
    words = {word: number for word, number in lexicon.word_ids.items() if word in known}
    if not words:
        raise DataError(f"the language model and the lexicon share no word: the one begins with "
                        f"{list(language_model.vocabulary[:3])}, the other with {list(lexicon.words[:3])}; "
                        "look for upper and lower case")
    fst = require("kaldifst")
    grammar = _grammar(fst, language_model, words, len(lexicon) + 1)
    transducer = _transducer(fst, lexicon, topology, words, silence_probability)
    fst.arcsort(grammar, "ilabel")
    combined = fst.StdVectorFst(fst.compose(transducer, grammar))
    if combined.num_states == 0:
        raise DataError("the language model allows no sentence over the lexicon's words: every probability is zero")
    num_phones = len(topology.phones)
    phones, _ = _read_off(fst, _smallest(fst, combined), np.arange(1, num_phones + 1), num_phones)
    context = in_context(phones, topology)
    if any(topology.context_width):
        split = _smallest(fst, _unit_transducer(fst, context, num_phones))
        context = UnitGraph(*_read_off(fst, split, context.units.phone, num_phones), context.units)
    graph = expand_units(_without_symbols(context), with_epsilons=True)
    unreachable = tuple(word for word in lexicon.words if word not in words)
    return DecodingGraph(graph=graph, words=lexicon.words, phones=topology.phones, unreachable=unreachable)


def _silence_costs(probability: float) -> tuple[float, float]:
    """Costs of silence and of no silence."""
    if not 0 <= probability <= 1:
        raise MisuseError(f"silence_probability: expected 0 <= p <= 1, got {probability}")
    return (-math.log(probability) if probability > 0 else math.inf,
            -math.log1p(-probability) if probability < 1 else math.inf)


def _phone_graph(arcs: Sequence[tuple], final: np.ndarray, start: int = 0) -> PhoneGraph:
    possible = [arc for arc in arcs if arc[-1] < math.inf]
    *integers, cost = zip(*possible) if possible else ((),) * 5
    src, dst, phone, label = (np.array(column, dtype=np.int64) for column in integers)
    return PhoneGraph(src, dst, phone, label, np.array(cost, dtype=np.float64), final, start)


def _grammar(fst: ModuleType, model: LanguageModel, words: Mapping[str, int], backoff_label: int) -> Any:
    """The language model as an acceptor of word numbers; a back-off reads ``backoff_label`` and writes nothing."""
    grammar, contexts = fst.StdVectorFst(), model.contexts()
    states = {context: grammar.add_state() for context in contexts}

    def state_of(history: tuple[str, ...]) -> int:
        return next(states[history[i:]] for i in range(len(history) + 1) if history[i:] in states)

    grammar.start = state_of((BEGIN,))
    for context, backoff in contexts.items():
        if context and backoff > -math.inf:
            grammar.add_arc(states[context], fst.StdArc(backoff_label, 0, -backoff, state_of(context[1:])))
    for ngram, weights in (item for listed in model.ngrams for item in listed.items()):
        state, word, cost = states[ngram[:-1]], ngram[-1], -nats(weights.log10_probability)
        if word == END and cost < math.inf:
            grammar.set_final(state, cost)
        elif word in words and cost < math.inf:
            grammar.add_arc(state, fst.StdArc(words[word], words[word], cost, state_of(ngram)))
    return grammar


def _transducer(
    fst: ModuleType, lexicon: Lexicon, topology: Topology, words: Mapping[str, int], silence_probability: float
) -> Any:
    """The lexicon as a transducer.

    It reads phones p, word-initial phones P + p and disambiguation symbols 2 P + 1 (back-off), 2 P + 2 ..., and writes
    word numbers. State 0: a silence may come; state 1: a word may come, or the end.
    """
    transducer, num_phones = fst.StdVectorFst(), len(topology.phones)
    before, after = transducer.add_state(), transducer.add_state()
    transducer.start = before
    transducer.set_final(after, 0.0)
    for label, cost in zip((topology.silence, 0), _silence_costs(silence_probability)):
        if cost < math.inf:
            transducer.add_arc(before, fst.StdArc(label, 0, cost, after))
    transducer.add_arc(after, fst.StdArc(2 * num_phones + 1, len(lexicon) + 1, 0.0, after))
    for word, pronunciation, symbol in _disambiguated(lexicon, words):
        phones = phone_numbers(topology, pronunciation.phones)
        labels = [num_phones + phones[0], *phones[1:], *([2 * num_phones + 1 + symbol] if symbol else [])]
        chain = [after, *(transducer.add_state() for _ in labels[1:]), before]
        for i, label in enumerate(labels):
            output, cost = (words[word], -math.log(pronunciation.probability)) if i == 0 else (0, 0.0)
            transducer.add_arc(chain[i], fst.StdArc(label, output, cost, chain[i + 1]))
    fst.arcsort(transducer, "olabel")
    return transducer


def _disambiguated(lexicon: Lexicon, words: Mapping[str, int]) -> Iterator[tuple[str, Pronunciation, int]]:
    """Every pronunciation with the disambiguation symbol at its end: 0 for none, else from 1 among equal ones."""
    entries = [(word, pronunciation) for word in words for pronunciation in lexicon.entries[word]]
    copies = Counter(pronunciation.phones for _, pronunciation in entries)
    prefixes = {phones[:i] for phones in copies for i in range(1, len(phones))}
    used: defaultdict[tuple[str, ...], int] = defaultdict(int)
    for word, pronunciation in entries:
        phones = pronunciation.phones
        used[phones] += 1
        yield word, pronunciation, used[phones] if copies[phones] > 1 or phones in prefixes else 0


def _smallest(fst: ModuleType, transducer: Any) -> Any:
    """The transducer, determinised and minimised in place."""
    fst.determinize_star(transducer)
    fst.minimize_encoded(transducer, delta=_ROUNDING)
    return transducer


def _unit_transducer(fst: ModuleType, graph: UnitGraph, num_phones: int) -> Any:
    """Reads units u + 1, word-initial units U + u + 1 and symbols 2 U + 1 ..., as the lexicon reads phones."""
    phones, unit, units = graph
    num_units = len(units.phone)
    marked = unit + 1 + num_units * (phones.phone < 0)
    symbol = np.where(phones.phone > num_phones, phones.phone - num_phones + 2 * num_units, 0)
    transducer = fst.StdVectorFst()
    for _ in phones.final:
        transducer.add_state()
    transducer.start = phones.start
    columns = (phones.src, np.where(unit >= 0, marked, symbol), phones.label, phones.cost, phones.dst)
    for src, *arc in zip(*(column.tolist() for column in columns)):
        transducer.add_arc(src, fst.StdArc(*arc))
    for state in np.flatnonzero(np.isfinite(phones.final)).tolist():
        transducer.set_final(state, float(phones.final[state]))
    return transducer


def _read_off(
    fst: ModuleType, transducer: Any, unit_phone: np.ndarray, num_phones: int
) -> tuple[PhoneGraph, np.ndarray]:
    """A transducer as arrays: phones (with symbols above them), and the unit of each arc, -1 where it has none."""
    rows = [(state, arc.nextstate, arc.ilabel, arc.olabel, arc.weight.value)
            for state in range(transducer.num_states) for arc in fst.ArcIterator(transducer, state)]
    *integers, cost = np.array(rows, dtype=np.float64).reshape(-1, 5).T
    src, dst, mark, label = (column.astype(np.int64) for column in integers)
    kind, unit = np.divmod(mark - 1, len(unit_phone))  # kind -1: epsilon, 0: phone, 1: word-initial phone, then symbols
    spoken = (kind == 0) | (kind == 1)
    symbol = np.where(kind > 1, mark - 2 * len(unit_phone) + num_phones, 0)
    phone = np.where(spoken, np.where(kind == 1, -1, 1) * unit_phone[unit], symbol)
    final = np.array([transducer.final(state).value for state in range(transducer.num_states)])
    return PhoneGraph(src, dst, phone, label, cost, final, transducer.start), np.where(spoken, unit, -1)


def _without_symbols(graph: UnitGraph) -> UnitGraph:
    """Symbols become epsilons."""
    return graph._replace(phones=graph.phones._replace(phone=np.where(graph.unit >= 0, graph.phones.phone, 0)))
