"""Word alignment against the plain recursion."""

from functools import cache

from hypothesis import given
from hypothesis import strategies as st

from hemstitch.report import Errors, align_words, count_errors, sum_errors

words = st.lists(st.sampled_from("abc"), max_size=7)


def edit_distance(reference, hypothesis):
    @cache
    def distance(i, j):
        if not i or not j:
            return i + j
        together = distance(i - 1, j - 1) + (reference[i - 1] != hypothesis[j - 1])
        return min(together, distance(i - 1, j) + 1, distance(i, j - 1) + 1)

    return distance(len(reference), len(hypothesis))


@given(words, words)
def test_alignment_is_complete_and_shortest(reference, hypothesis):
    pairs = align_words(reference, hypothesis)
    assert [r for r, _ in pairs if r is not None] == reference
    assert [h for _, h in pairs if h is not None] == hypothesis
    errors = count_errors(pairs)
    assert errors.total == edit_distance(reference, hypothesis)
    assert errors.words == len(reference)
    assert errors.insertions - errors.deletions == len(hypothesis) - len(reference)


def test_kinds_of_error():
    errors = count_errors(align_words("one two three four".split(), "nine one two tree".split()))
    assert errors == Errors(words=4, insertions=1, deletions=1, substitutions=1)
    assert errors.rate == 3 / 4
    assert sum_errors([errors, errors]) == Errors(words=8, insertions=2, deletions=2, substitutions=2)


def test_rate_without_reference():
    assert count_errors(align_words([], [])).rate == 0
    assert count_errors(align_words([], ["noise"])).rate == float("inf")
