"""A network learns a made-up language from phone sequences alone, and from alignments."""

import numpy as np
import pytest
import torch
from torch import nn

from hemstitch.criteria import LatticeFreeMMI
from hemstitch.graphs import (
    alignment_graph,
    compose,
    denominator_graph,
    estimate_phone_lm,
    normalisation_graph,
    phone_sequence_graph,
    viterbi,
)

NUM_PHONES, FRAMES = 4, 60
PDFS = [(2 * p, 2 * p + 1) for p in range(NUM_PHONES)]


def utterances(count, seed):
    """Phones, their durations, and noisy frames (utterance, frame, feature)."""
    draw, spoken = np.random.default_rng(seed), []
    patterns = np.random.default_rng(0).normal(size=(NUM_PHONES, 10))
    while len(spoken) < count:
        durations = draw.integers(3, 9, 10)
        durations[-1] += FRAMES - durations.sum()
        if durations[-1] >= 3:
            phones = draw.permutation(np.tile(np.arange(NUM_PHONES), 3))[:10]
            spoken.append((phones.tolist(), durations.tolist(), np.repeat(patterns[phones], durations, axis=0)))
    features = np.stack([clean for _, _, clean in spoken]) + draw.normal(size=(count, FRAMES, 10))
    return [p for p, _, _ in spoken], [d for _, d, _ in spoken], torch.tensor(features, dtype=torch.float32)


@pytest.mark.parametrize("supervision", ["phones", "alignments"])
def test_a_network_learns_to_prefer_what_was_said(supervision):
    phones, durations, features = utterances(24, seed=1)
    graph = denominator_graph(estimate_phone_lm(phones), PDFS)
    norm = normalisation_graph(graph)
    if supervision == "phones":
        numerators = [compose(phone_sequence_graph(p, PDFS), norm) for p in phones]
    else:
        numerators = [compose(alignment_graph(p, d, PDFS, 2, subsampling=1), norm) for p, d in zip(phones, durations)]
    torch.manual_seed(0)
    model = nn.Conv1d(10, 2 * NUM_PHONES, 3, padding=1)
    criterion, lengths = LatticeFreeMMI(graph, output_l2=1e-3), torch.full((24,), FRAMES)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    per_frame = []
    for _ in range(60):
        objective = criterion(model(features.mT).mT, lengths, numerators)
        optimizer.zero_grad()
        objective.loss.backward()
        optimizer.step()
        assert objective.skipped == 0 and objective.num <= objective.den
        per_frame.append(float(objective.num - objective.den) / objective.weight)
    assert per_frame[-1] > 0.25 * per_frame[0]
    with torch.no_grad():
        errors = [sum(viterbi(graph, scores).pdfs // 2 != np.repeat(p, d)) for scores, p, d in
                  zip(model(features.mT).mT, phones, durations)]
    assert np.mean(errors) / FRAMES < 0.15
