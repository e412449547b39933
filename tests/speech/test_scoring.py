import itertools

import kaldialign
import numpy as np
import pytest

from hemstitch.errors import DataError
from hemstitch.speech import ErrorCounts, word_error_rate

REFERENCES = {"u1": "a b c d", "u2": "a a", "u3": "c"}
HYPOTHESES = {"u1": "a x c d e", "u2": "a"}


def edit_distance(ref, hyp):
    """The textbook recursion."""
    rows = [list(range(len(hyp) + 1))]
    for i, word in enumerate(ref, start=1):
        rows.append([i])
        for j, other in enumerate(hyp, start=1):
            rows[i].append(min(rows[i - 1][j] + 1, rows[i][j - 1] + 1, rows[i - 1][j - 1] + (word != other)))
    return rows[-1][-1]


def test_counts_errors_and_missing_utterances():
    wer = word_error_rate(REFERENCES, HYPOTHESES)
    assert (wer.words, wer.insertions, wer.deletions, wer.substitutions) == (7, 1, 2, 1) and wer.rate == 4 / 7
    assert wer.missing == ("u3",) and wer.utterances["u3"] == ErrorCounts(words=1, deletions=1)
    assert str(wer).startswith("WER 57.14% [") and str(wer).endswith("; no hypothesis for u3")
    nothing = word_error_rate({f"u{i}": "a" for i in range(5)}, {})
    assert nothing.rate == 1.0 and str(nothing).endswith("; no hypothesis for u0, u1, u2 and 2 more")


def test_has_the_fewest_errors_there_can_be():
    rng = np.random.default_rng(0)
    refs = {f"u{i}": list(rng.choice(list("abcd"), rng.integers(0, 9))) for i in range(60)}
    hyps = {key: list(rng.choice(list("abcd"), rng.integers(0, 9))) for key in refs}
    wer = word_error_rate(refs, hyps)
    for key, counts in wer.utterances.items():
        assert counts.errors == edit_distance(refs[key], hyps[key])
        assert counts.insertions - counts.deletions == len(hyps[key]) - len(refs[key])
        assert [ref for ref, _ in wer.pairs[key] if ref] == refs[key]
        assert [hyp for _, hyp in wer.pairs[key] if hyp] == hyps[key]


def test_speakers_add_up_and_carry_the_interval():
    rng = np.random.default_rng(1)
    speakers = {f"u{i}": f"s{i % 8}" for i in range(160)}
    refs = {key: "a b c d e" for key in speakers}
    hyps = {key: "x x c d e" if speaker in ("s0", "s1") else "a b c d e" for key, speaker in speakers.items()}
    by_speaker, by_utterance = word_error_rate(refs, hyps, speakers), word_error_rate(refs, hyps)
    assert by_speaker.speakers["s0"] == ErrorCounts(words=100, substitutions=40) and by_speaker.rate == 0.1
    assert sum(by_speaker.speakers.values(), ErrorCounts()) == by_speaker.total
    share = np.sort([2 / 5 * rng.binomial(8, 2 / 8) / 8 for _ in range(20_000)])
    assert (by_speaker.low, by_speaker.high) == pytest.approx(tuple(np.quantile(share, [0.025, 0.975])), abs=0.051)
    kaldi = kaldialign.bootstrap_wer_ci([r.split() for r in refs.values()], [h.split() for h in hyps.values()])
    assert by_utterance.low == pytest.approx(kaldi["ci95min"], abs=0.006)
    assert by_utterance.high == pytest.approx(kaldi["ci95max"], abs=0.006)
    assert by_utterance.high - by_utterance.low < 0.5 * (by_speaker.high - by_speaker.low)


def test_the_same_seed_gives_the_same_interval():
    intervals = [(wer.low, wer.high) for wer in (word_error_rate(REFERENCES, HYPOTHESES, seed=s) for s in (4, 4, 5))]
    assert intervals[0] == intervals[1]
    assert intervals[0][0] <= 4 / 7 <= intervals[0][1]


def test_shows_alignments_and_confusions():
    wer = word_error_rate({"u": "one two three", "v": "two"}, {"u": "one to three four", "v": "to"})
    assert wer.aligned_text("u") == "REF one two three ***\nHYP one to  three four\n        S         I"
    assert wer.confusions == [("two", "to", 2), ("", "four", 1)]
    assert word_error_rate({"u": "", "v": "a"}, {}).aligned_text("u") == "REF\nHYP\n"


def test_words_may_be_split_already():
    assert word_error_rate({"u": ["a", "b"]}, {"u": ("a", "b")}).rate == 0.0


@pytest.mark.parametrize(("references", "hypotheses", "speakers", "message"), [
    ({"u": ""}, {}, None, "no reference word"),
    ({"u": "a"}, {"v": "a"}, None, r"no reference, among them \['v'\]"),
    ({"u": "a"}, {}, {"v": "s"}, r"no speaker, among them \['u'\]"),
])
def test_refuses_sets_that_do_not_match(references, hypotheses, speakers, message):
    with pytest.raises(DataError, match=message):
        word_error_rate(references, hypotheses, speakers)


def test_rates_of_empty_references():
    assert ErrorCounts().rate == 0.0 and ErrorCounts(insertions=1).rate == float("inf")
    assert all(ErrorCounts(words=w, insertions=i).rate >= 0 for w, i in itertools.product((0, 1), (0, 1)))
