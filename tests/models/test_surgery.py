import pytest
import torch
from torch import nn

from hemstitch.errors import MisuseError
from hemstitch.models import (
    FeedForward,
    Lstm,
    Mlp,
    RecurrentLanguageModel,
    Tdnn,
    count_parameters,
    describe,
    freeze,
    replace_output,
    vgg19,
)


def test_freezing_by_name_and_back():
    model = Tdnn(2, 3, 4, ((-1, 0, 1), (0,)))
    assert freeze(model, r"^layers\.0\.") == ["layers.0.affine.weight", "layers.0.affine.bias"]
    assert count_parameters(model) - count_parameters(model, trainable_only=True) == 7 * 4
    model(torch.randn(2, 5, 2)).sum().backward()
    assert model.layers[0].affine.weight.grad is None
    freeze(model, r"^layers\.0\.", frozen=False)
    assert count_parameters(model, trainable_only=True) == count_parameters(model)


def test_a_pattern_without_a_match_lists_the_names():
    with pytest.raises(MisuseError, match=r"'lyaers'.*layers\.1\.weight"):
        freeze(Mlp(2, 2, (3,)), "lyaers")


@pytest.mark.parametrize("build", [
    lambda: Tdnn(2, 3, 4, ((-1, 0, 1),), xent_head=True),
    lambda: FeedForward(2, 3, (4,)),
    lambda: vgg19(3, width=1 / 32),
])
def test_a_new_output_layer_on_an_old_body(build):
    model = build().double()
    body = {name: p for name, p in model.named_parameters() if p.shape[0] != 3}
    new = replace_output(model, 7)
    assert model.num_outputs == new.out_features == 7
    assert all(p.dtype == torch.float64 for p in model.parameters())
    assert all(dict(model.named_parameters())[name] is p for name, p in body.items())
    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 7]
    assert len(heads) == (2 if getattr(model, "xent_output", None) is not None else 1)
    assert not any(head.weight.any() for head in heads)


def test_tied_outputs_and_models_without_one_are_refused():
    with pytest.raises(MisuseError, match=r"tied \(embedding.weight = output.weight\)"):
        replace_output(RecurrentLanguageModel(7, 4, 1, 6, 3, 1, tied=True), 9)
    with pytest.raises(MisuseError, match=r"Conv2d has no nn.Linear"):
        replace_output(nn.Conv2d(1, 1, 1), 9)


def test_a_description_lists_layers_shapes_and_parameters():
    model = Lstm(2, 3, 1, 5, 2, 1, offsets=(-1, 0, 1), warm_up=4)
    table = describe(model, (1, model.context + 6, 2))
    assert [(row.name, row.kind, row.output_shape) for row in table.rows] == [
        ("layers.0", "Splice", (1, 10, 6)), ("layers.1", "ProjectedLstm", (1, 10, 3)), ("output", "Linear", (1, 6, 3))]
    assert [row.num_parameters for row in table.rows] == [0, 20 * 8 + 20 + 5 * 3 + 15, 12]
    assert table.num_parameters == count_parameters(model) == sum(row.num_parameters for row in table.rows)
    lines = str(table).splitlines()
    assert lines[0].split() == ["layer", "kind", "output", "parameters"]
    assert lines[2].split() == ["layers.1", "ProjectedLstm", "1", "x", "10", "x", "3", "210"]
    assert len({len(line) for line in lines}) == 1


def test_describing_leaves_the_model_as_it_was():
    model = Tdnn(2, 3, 4, ((-1, 0, 1), (0,)))
    model.layers[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    describe(model, (2, 9, 2))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (model.training, model.layers[0].training, model.layers[1].training) == (True, True, False)
    assert not any(module._forward_hooks for module in model.modules())


def test_shared_parameters_are_counted_once():
    model = RecurrentLanguageModel(7, 4, 1, 6, 3, 1, tied=True)
    table = describe(model, (1, 5), dtype=torch.long)
    counts = {row.name: row.num_parameters for row in table.rows}
    assert counts["embedding"] == 28
    assert counts["output"] == 7
    assert sum(counts.values()) == table.num_parameters == count_parameters(model)
