"""Every pair of choices on two axes trains to the end or is refused with a reason before training."""

import itertools

import pytest

from hemstitch.reproduce._combinations import AXES, attempt, available, combinations, matrix_markdown

ALL = list(combinations())


def covering():
    """Few combinations that hold every pair of choices of two axes, greedily chosen."""
    wanted = set()
    for (i, a), (j, b) in itertools.combinations(enumerate(AXES.values()), 2):
        wanted |= {((i, x), (j, y)) for x in available(a) for y in available(b)}
    chosen = []
    while wanted:
        held = {c.names: set(itertools.combinations(enumerate(c.names), 2)) & wanted for c in ALL}
        best = max(ALL, key=lambda c: len(held[c.names]))
        wanted -= held[best.names]
        chosen.append(best)
    return chosen


@pytest.mark.parametrize("combination", covering(), ids=lambda c: "-".join(c.names).replace(" ", "_"))
def test_runs_or_is_refused_with_a_reason(combination, tmp_path):
    refusal = attempt(combination, tmp_path)
    assert refusal == "" or len(refusal) > 30
    needs_more = combination.names[0] in ("MMI", "boosted MMI", "MPE", "sMBR") or combination.names[1] == "Hessian-free"
    if combination.names[2:] == ("forward", "one worker") and not needs_more:
        assert refusal == ""


def test_matrix_as_markdown():
    outcomes = {c.names: "" if c.names[2] == "forward" else f"{c.names[2]} makes no sense" for c in ALL}
    text = matrix_markdown(outcomes)
    assert "✓" in text and "## Cross-entropy" in text
