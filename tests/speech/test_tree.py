import itertools
import json
from collections import defaultdict

import numpy as np
import pytest
from speech_oracle import lexicon, tied

from hemstitch.errors import DataError, MisuseError, NonFiniteError
from hemstitch.graphs import NoPathError
from hemstitch.speech import (
    Alignment,
    Lexicon,
    Segment,
    TiedTopology,
    Topology,
    TreeStatistics,
    align,
    convert_alignment,
    equal_alignment,
    phone_questions,
    position_dependent,
    subsample_alignment,
    tie_states,
)
from hemstitch.speech._questions import variants

LEXICON = lexicon(AB="a b", BA="b a", CAB="c a b", DAD="d a d", C="c")
TOPOLOGY = Topology.left_to_right(LEXICON.phones, 2, num_silence_states=1)
SIL, A, B, C, D = range(1, 6)


def sentences(rng, count, topology=TOPOLOGY, spoken=LEXICON):
    """Alignments of random sentences, 1 to 4 frames a state, silence at the ends and sometimes between words."""
    for _ in range(count):
        words = rng.choice(spoken.words, 5).tolist()
        truth = align(rng.normal(size=(60, topology.num_pdfs)), words, spoken, topology, silence_probability=0.4)
        yield truth


def heard(alignment, topology=TOPOLOGY):
    """(phone, position, left, right) of every frame."""
    names = ["SIL", *(phone.label for phone in alignment.phones), "SIL"]
    for i, phone in enumerate(alignment.phones):
        left, centre, right = (topology.phone_ids[name] for name in names[i:i + 3])
        for pdf in alignment.pdfs[phone.start:phone.end]:
            yield centre, int(topology.pdf_positions[pdf]), left, right


def speech(rng, alignment, topology=TOPOLOGY):
    """Features whose mean is told by phone and position, and by both neighbours."""
    return np.array([[p + 0.3 * (left in (A, B)), k - 0.5 * (right == C), p * k + 0.2 * left * right]
                     for p, k, left, right in heard(alignment, topology)]) + rng.normal(size=(len(alignment.pdfs), 3))


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    alignments = list(sentences(rng, 40))
    return [speech(rng, alignment) for alignment in alignments], alignments


@pytest.fixture(scope="module")
def statistics(data):
    return TreeStatistics.collect(*data, TOPOLOGY)


def log_likelihood(frames, floor):
    """Of frames under their own Gaussian."""
    if not len(frames):
        return 0.0
    mean, variance = frames.mean(0), np.maximum(frames.var(0), floor)
    return -0.5 * (np.log(2 * np.pi * variance) + (frames - mean) ** 2 / variance).sum()


class SlowTrees:
    """The same trees grown from the frames themselves, every split looked for anew in every round."""

    def __init__(self, features, alignments, questions, asked, num_leaves, min_count):
        self.frames = np.concatenate(features)
        self.keys = np.array([key for alignment in alignments for key in heard(alignment)])
        self.floor = 0.01 * self.frames.var(0)
        places = [(p, k) for p, n in enumerate(TOPOLOGY.num_positions, 1) for k in range(n)]
        self.leaves = [(place, np.flatnonzero((self.keys[:, :2] == place).all(1))) for place in places]
        while len(self.leaves) < num_leaves:
            _, i, sides = max(self.candidates(questions, asked, min_count), key=lambda found: found[0])
            self.leaves[i:i + 1] = [(self.leaves[i][0], side) for side in sides]

    def candidates(self, questions, asked, min_count):
        """(gain, leaf, its two halves) of every question to every leaf."""
        for i, (place, members) in enumerate(self.leaves):
            whole = log_likelihood(self.frames[members], self.floor)
            for column, phones in itertools.product(asked, questions):
                yes = np.isin(self.keys[members, column], list(phones))
                sides = members[yes], members[~yes]
                if place[0] != SIL and min(map(len, sides)) >= min_count:
                    yield sum(log_likelihood(self.frames[side], self.floor) for side in sides) - whole, i, sides

    def sets(self):
        return {frozenset(members.tolist()) for _, members in self.leaves}


@pytest.mark.parametrize(("context", "asked"), [("left", (2,)), ("both", (2, 3))])
@pytest.mark.parametrize("num_leaves", [10, 17])
def test_grows_the_trees_of_the_slow_twin(data, statistics, context, asked, num_leaves):
    questions = phone_questions(statistics)
    slow = SlowTrees(*data, questions, asked, num_leaves, min_count=8)
    grown = tie_states(statistics, num_leaves, context=context, min_count=8)
    members = defaultdict(set)
    for frame, (phone, position, *neighbours) in enumerate(slow.keys.tolist()):
        members[grown.pdf(phone, position, neighbours)].add(frame)
    assert {frozenset(frames) for frames in members.values()} == slow.sets()
    assert grown.num_pdfs == num_leaves and sorted(members) == list(range(num_leaves))
    average = sum(log_likelihood(slow.frames[list(frames)], slow.floor) for frames in members.values())
    assert statistics.log_likelihood(grown) == pytest.approx(average / len(slow.frames), rel=1e-9)
    assert statistics.log_likelihood(grown) > statistics.log_likelihood() + 0.01


def test_finds_what_was_planted():
    rng = np.random.default_rng(1)
    alignments = list(sentences(rng, 60))
    features = [np.array([[10.0 * (p == A and k == 1 and right in (B, D))] for p, k, _, right in heard(alignment)])
                + rng.normal(size=(len(alignment.pdfs), 1)) for alignment in alignments]
    statistics = TreeStatistics.collect(features, alignments, TOPOLOGY)
    questions = [["b"], ["d"], ["b", "d"], ["c", "d"]]
    grown = tie_states(statistics, TOPOLOGY.num_pdfs + 1, questions=questions)
    split = [root.tree for root in grown.roots if not isinstance(root.tree, int)]
    assert len(split) == 1 and split[0].asked == 2 and split[0].phones == {B, D}
    assert grown.pdfs(A, 1) == (split[0].yes, split[0].no) and grown.pdf(A, 1, (C, D)) == split[0].yes


def test_stops_early_and_is_the_same_again(statistics):
    big = tie_states(statistics, 1000, min_count=5)
    assert TOPOLOGY.num_pdfs < big.num_pdfs < 1000
    counts = np.bincount([big.pdf(p, k, context) for p, k, *context in statistics.keys.tolist()],
                         statistics.sums[:, 0])
    assert counts.min() >= 5
    assert tie_states(statistics, 1000, min_count=5) == big and tie_states(statistics, 1000, min_count=6) != big
    gains = [tie_states(statistics, 1000, min_count=5, min_gain=gain).num_pdfs for gain in (0, 10, 30, 1e9)]
    assert gains == sorted(gains, reverse=True) and gains[0] > gains[1] > gains[-1] == TOPOLOGY.num_pdfs


def test_silence_has_no_context_and_every_context_a_leaf(statistics):
    grown = tie_states(statistics, 25, min_count=5)
    phones = range(1, 6)
    for phone, left, right in itertools.product(phones, repeat=3):
        for position in range(TOPOLOGY.num_positions[phone - 1]):
            assert grown.pdf(phone, position, (left, right)) in grown.pdfs(phone, position)
    assert len(grown.pdfs(SIL, 0)) == 1 and max(len(grown.pdfs(A, k)) for k in (0, 1)) > 1
    assert grown.pdf(A, 0) == grown.pdf(A, 0, (SIL, SIL)) and grown.context_width == (1, 1)
    biphones = tie_states(statistics, 25, min_count=5, context="left")
    assert biphones.context_width == (1, 0)
    assert all(biphones.pdf(p, 0, (c, right)) == biphones.pdf(p, 0, (c,)) for p, c, right in
               itertools.product(phones, repeat=3))


def test_phones_without_frames_keep_a_pdf():
    rng = np.random.default_rng(3)
    topology = Topology.left_to_right((*LEXICON.phones, "z"), 1)
    alignments = list(sentences(rng, 30, topology))
    statistics = TreeStatistics.collect([speech(rng, a, topology) for a in alignments], alignments, topology)
    grown = tie_states(statistics, 9, min_count=5)
    assert len(grown.pdfs(topology.phone_ids["z"], 0)) == 1 and grown.num_pdfs == 9
    assert frozenset([topology.phone_ids["z"]]) in phone_questions(statistics)


def test_questions_merge_what_sounds_alike():
    sounds = {"a": 0.0, "b": 0.5, "c": 5.0, "d": 6.0, "e": 20.0}
    topology = Topology.left_to_right(("SIL", *sounds), 1)
    keys = np.array([(phone, 0, SIL, SIL) for phone in range(2, 7)])
    mean = np.array(list(sounds.values()))
    sums = 100 * np.stack([np.ones(5), mean, mean**2 + 1], axis=1)
    questions = phone_questions(TreeStatistics(topology=topology, keys=keys, sums=sums))
    assert set(questions) == {*(frozenset([p]) for p in range(1, 7)), *map(frozenset, [(2, 3), (4, 5), (2, 3, 4, 5)])}


def test_variants_of_a_phone_share_a_root_and_their_place_is_asked_for():
    marked = position_dependent(LEXICON)
    topology = Topology.left_to_right(marked.phones, 1)
    rng = np.random.default_rng(4)
    alignments = list(sentences(rng, 60, topology, marked))
    ids = topology.phone_ids
    inside = [number for name, number in ids.items() if name.endswith("_I")]
    features = [np.array([[5.0 * (p in inside)] for p, *_ in heard(alignment, topology)])
                + rng.normal(size=(len(alignment.pdfs), 1)) for alignment in alignments]
    statistics = TreeStatistics.collect(features, alignments, topology)
    assert frozenset(inside) in phone_questions(statistics)
    assert {frozenset(ids[f"a{mark}"] for mark in ("_B", "_I", "_E"))} <= set(phone_questions(statistics))
    grown = tie_states(statistics, 6, min_count=20)
    assert len(variants(topology)) == 5 and grown.num_pdfs == 6
    assert grown.pdf(ids["a_B"], 0) == grown.pdf(ids["a_E"], 0) != grown.pdf(ids["a_I"], 0)
    alone = tie_states(statistics, len(ids), shared_roots=False)
    assert all(len(root.phones) == 1 for root in alone.roots)


def test_goes_through_json(statistics):
    for grown in (tie_states(statistics, 20, min_count=5), tied(Topology.chain(LEXICON.phones), "left", 3)):
        assert TiedTopology.from_dict(json.loads(json.dumps(grown.to_dict()))) == grown
    content = grown.to_dict()
    with pytest.raises(DataError, match="expected version"):
        TiedTopology.from_dict(content | {"version": 0})
    with pytest.raises(DataError, match="damaged"):
        TiedTopology.from_dict({key: content[key] for key in content if key != "roots"})


def test_refuses_what_cannot_be(data, statistics):
    with pytest.raises(MisuseError, match="9 trees .* cannot have only 8"):
        tie_states(statistics, 8)
    with pytest.raises(MisuseError, match="min_count"):
        tie_states(statistics, 20, min_count=0)
    with pytest.raises(DataError, match="no HMM"):
        tie_states(statistics, 20, questions=[["x"]])
    with pytest.raises(DataError, match="same frame rate"):
        TreeStatistics.collect([data[0][0][1:]], [data[1][0]], TOPOLOGY)
    with pytest.raises(DataError, match="only 1 utterances"):
        TreeStatistics.collect(data[0][:1], data[1][:2], TOPOLOGY)
    with pytest.raises(NonFiniteError, match="NaN"):
        TreeStatistics.collect([np.full_like(data[0][0], np.nan)], data[1][:1], TOPOLOGY)
    with pytest.raises(DataError, match="no frames"):
        TreeStatistics.collect([], [], TOPOLOGY)
    good = tie_states(statistics, 9)
    for change, message in ((dict(roots=good.roots[1:]), "exactly one root"), (dict(context="right"), "context"),
                            (dict(roots=(good.roots[0]._replace(tree=1), *good.roots[1:])), "numbered from 0")):
        with pytest.raises(MisuseError, match=message):
            TiedTopology(**{"phones": good.phones, "hmms": good.hmms, "roots": good.roots} | change)


@pytest.mark.parametrize("topology", [TOPOLOGY, Topology.chain(LEXICON.phones)], ids=["states", "chain"])
@pytest.mark.parametrize("context", ["left", "both"])
def test_a_converted_alignment_is_the_path_of_the_tied_system(topology, context):
    tree = tied(topology, context, 2)
    for alignment in sentences(np.random.default_rng(6), 10, topology):
        converted = convert_alignment(alignment, topology, tree)
        expected = [tree.pdf(p, k, around) for p, k, *around in heard(alignment, topology)]
        assert converted.pdfs.tolist() == expected and converted.phones == alignment.phones
        scores = np.full((len(expected), tree.num_pdfs), -50.0)
        scores[np.arange(len(expected)), expected] = 0.0
        words = [word.label for word in alignment.words]
        assert align(scores, words, LEXICON, tree).pdfs.tolist() == expected
        assert convert_alignment(converted, tree, topology).pdfs.tolist() == alignment.pdfs.tolist()


def test_states_become_the_one_state_of_a_chain():
    chain = Topology.chain(LEXICON.phones)
    for alignment in sentences(np.random.default_rng(7), 5):
        converted = convert_alignment(alignment, TOPOLOGY, chain)
        for phone in converted.phones:
            first, *others = chain.pdf_positions[converted.pdfs[phone.start:phone.end]]
            assert first == 0 and all(position == 1 for position in others)
        with pytest.raises(MisuseError, match="has 1 states, but 2"):
            convert_alignment(converted, chain, TOPOLOGY)
        with pytest.raises(DataError, match="another topology"):
            convert_alignment(alignment, Topology.left_to_right(LEXICON.phones, 3), TOPOLOGY)


def spaced(edges):
    """Edges pushed apart, first to the right, then back from the end; None if there is no room."""
    moved = list(edges)
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + 1)
    moved[-1] = edges[-1]
    for i in reversed(range(len(moved) - 1)):
        moved[i] = min(moved[i], moved[i + 1] - 1)
    return moved if moved[0] == 0 else None


@pytest.mark.parametrize("seed", range(20))
def test_subsampling_rounds_borders_and_leaves_no_state_without_a_frame(seed):
    rng, topology = np.random.default_rng(seed), Topology.chain(LEXICON.phones)
    names, lengths = rng.choice(LEXICON.phones, 8).tolist(), rng.integers(1, 7, 8)
    edges = [0, *np.cumsum(lengths).tolist()]
    numbers = [topology.phone_ids[name] for name in names]
    whole = Alignment(
        pdfs=np.concatenate([[topology.pdf(p, int(k > 0)) for k in range(n)] for p, n in zip(numbers, lengths)]),
        phones=tuple(Segment(name, *edges[i:i + 2]) for i, name in enumerate(names)),
        words=(Segment("W", edges[1], edges[4]), Segment("V", edges[4], edges[8])))
    for factor, shift in ((f, s) for f in (1, 2, 3) for s in range(f)):
        expected = spaced([len(range(shift, edge, factor)) for edge in edges])
        if expected is None:
            with pytest.raises(NoPathError, match="8 states in"):
                subsample_alignment(whole, topology, factor, shift)
            continue
        found = subsample_alignment(whole, topology, factor, shift)
        assert found.phones == tuple(Segment(name, *expected[i:i + 2]) for i, name in enumerate(names))
        assert found.words == (Segment("W", expected[1], expected[4]), Segment("V", expected[4], expected[8]))
        assert topology.pdf_positions[found.pdfs].tolist() == [int(t not in expected) for t in range(expected[-1])]
    with pytest.raises(MisuseError, match="shift"):
        subsample_alignment(whole, topology, 3, 3)


def test_staying_is_estimated_over_all_pdfs_of_a_position(statistics, data):
    grown = tie_states(statistics, 20, min_count=5)
    converted = [convert_alignment(alignment, TOPOLOGY, grown) for alignment in data[1]]
    learned, plain = grown.with_transitions(converted), TOPOLOGY.with_transitions(data[1])
    assert learned.hmms == plain.hmms and learned.hmms != TOPOLOGY.hmms and learned.roots == grown.roots


def test_ties_the_states_of_an4(shared_data):
    an4 = Lexicon.read(shared_data / "an4/an4.dic")
    stored = np.load(shared_data / "an4/train.npz")
    frames = stored["feats"].astype(np.float64)
    features = [piece - piece.mean(0) for piece in np.split(frames, stored["offsets"][1:-1])]
    texts = [json.loads(line)["text"].split() for line in (shared_data / "an4/train.jsonl").read_text().splitlines()]
    topology = Topology.left_to_right(an4.phones)
    alignments = [equal_alignment(words, len(x), an4, topology) for words, x in zip(texts, features)]
    statistics = TreeStatistics.collect(features, alignments, topology)
    grown = tie_states(statistics, 400)
    assert grown.num_pdfs == 400
    assert statistics.log_likelihood(grown) > statistics.log_likelihood() + 0.1
