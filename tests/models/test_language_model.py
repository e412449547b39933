import math

import pytest
import torch

from hemstitch.errors import MisuseError
from hemstitch.models import LockedDropout, RecurrentLanguageModel, perplexity, sentence_log_probabilities


def model_of(**options):
    torch.manual_seed(0)
    model = RecurrentLanguageModel(7, 4, 2, 6, 3, 1, **options)
    torch.nn.init.normal_(model.output.weight)
    return model


def test_text_in_chunks_is_text_in_one_piece():
    model, words = model_of(), torch.randint(7, (2, 20))
    whole, last = model(words)
    first, state = model(words[:, :9])
    second, state = model(words[:, 9:], state)
    torch.testing.assert_close((torch.cat([first, second], 1), state), (whole, last))


def test_gradients_stop_at_the_start_of_a_chunk():
    _, state = model_of()(torch.randint(7, (2, 5)))
    assert not any(part.requires_grad for layer in state for part in layer)


def test_a_word_does_not_see_the_words_after_it():
    model, words = model_of(), torch.randint(7, (1, 10))
    changed = words.clone()
    changed[0, 6] = (words[0, 6] + 1) % 7
    assert (model(words)[0] != model(changed)[0]).any(-1)[0].tolist() == [False] * 6 + [True] * 4


def test_perplexity_is_the_inverse_geometric_mean_of_the_probabilities():
    model, words = model_of(dropout=0.5), torch.randint(7, (2, 12))
    probabilities = model.eval()(words)[0].softmax(-1)
    logs = [probabilities[b, t - 1, words[b, t]].log().item() for b in range(2) for t in range(1, 12)]
    model.train()
    assert perplexity(model, words, chunk=5) == pytest.approx(math.exp(-sum(logs) / 22), rel=1e-5)
    assert model.training


def test_perplexity_of_a_uniform_model_is_the_vocabulary():
    model = model_of()
    torch.nn.init.zeros_(model.output.weight)
    assert perplexity(model, torch.randint(7, (30,))) == pytest.approx(7, rel=1e-6)


def test_a_sentence_scores_the_same_in_any_company():
    model, boundary = model_of(), 0
    sentences = [[1, 2, 3], [], [4, 5, 6, 1, 1]]
    together = sentence_log_probabilities(model, sentences, boundary)
    alone = torch.cat([sentence_log_probabilities(model, [s], boundary) for s in sentences])
    torch.testing.assert_close(together, alone)
    logs = model(torch.tensor([[0, 1, 2, 3]]))[0].log_softmax(-1)[0]
    torch.testing.assert_close(together[0], logs[range(4), [1, 2, 3, 0]].sum().detach())


def test_tied_word_vectors_are_one_parameter():
    model = model_of(tied=True)
    assert model.output.weight is model.embedding.weight
    copy = RecurrentLanguageModel(7, 4, 2, 6, 3, 1, tied=True)
    copy.load_state_dict(model.state_dict())
    words = torch.randint(7, (1, 5))
    assert torch.equal(copy(words)[0], model(words)[0])
    with pytest.raises(MisuseError, match="got 5 and 4"):
        RecurrentLanguageModel(7, 5, 2, 6, 3, 1, tied=True)


def test_the_same_seed_drops_the_same_units():
    dropout, ones = LockedDropout(0.5), torch.ones(3, 9, 200)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(dropout(ones))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(draws[0], draws[0][:, :1].expand(3, 9, 200)), "one mask for all steps"
    assert draws[0].unique().tolist() == [0.0, 2.0]
    assert 0.4 < (draws[0] == 0).float().mean() < 0.6
    torch.manual_seed(1)
    assert torch.equal(dropout(ones[:, :4]), draws[0][:, :4]), "whatever the chunk's length"
    assert dropout.eval()(ones) is ones


def test_it_learns_a_repeating_text():
    model = model_of()
    words = torch.arange(60).remainder(5).view(1, -1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    before = perplexity(model, words)
    for _ in range(60):
        optimizer.zero_grad()
        logits, _ = model(words[:, :-1])
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), words[:, 1:].flatten()).backward()
        optimizer.step()
    assert perplexity(model, words) < 1.5 < before


def test_perplexity_needs_a_word_to_predict():
    with pytest.raises(MisuseError, match="at least two words"):
        perplexity(model_of(), torch.tensor([3]))
