import dataclasses
import json

import pytest
import torch

from hemstitch.errors import ConfigError, NonFiniteError
from hemstitch.train import Console, Interrupted, load_recipe, resume, train
from hemstitch.train._build import build_run
from hemstitch.train._checkpoint import load_checkpoint
from hemstitch.train._combinations import check_combination
from hemstitch.train._run_folder import RunFolder

QUIET = Console(quiet=True)
PLAIN = ["--update.kind", "sgd", "--update.lr", "0.3", "--update.momentum", "0", "--schedule.kind", "constant",
         "--model.dropout", "0"]  # fmt: skip
EXACT = ["--order.kind", "backward"]
TAIL = [*EXACT, "--order.mode", "fixed_tail", "--order.tail", "4"]
ORDERS = {
    "exact": (EXACT, (9 + 18 + 27) / 9),
    "exact after 5 forward steps until step 20": ([*EXACT, "--order.start", "5", "--order.stop", "20"], None),
    "fixed tail": (TAIL, (27 - 4 + 3 * 4) / 9),
    "fixed tail after an average": ([*TAIL, "--order.head_horizon", "5"], (27 - 4 + 3 * 4) / 9),
    "probed": ([*TAIL, "--order.diagnose_every", "3"], None),
    "windows": ([*EXACT, "--order.window", "6"], (24 + 3 + 3) / 9),
    "windows, held": ([*EXACT, "--order.window", "6", "--order.hold", "true"], 24 / 9),
    "the better window": ([*EXACT, "--order.window", "6", "--order.reset", "better"], None),
    "order average": (["--order.kind", "order-average", "--order.num_parts", "3"], 3 * 4),
    "moving average": (["--average.kind", "ema", "--average.horizon", "5"], 3),
    "plain mean": (["--average.kind", "swa", "--average.interval", "2"], 3),
}


def values(folder, split, name):
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row["value"] for row in rows if (row["split"], row["name"]) == (split, name)]


def rows_without_clocks(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("wall_seconds", "cpu_seconds")} for row in rows]


def newest(folder):
    return load_checkpoint(RunFolder.open(folder).checkpoints()[-1])


def assert_same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.fixture
def stopping(monkeypatch):
    """Stop runs after a step; 0: no longer."""
    from hemstitch.train import _loop

    original = _loop.Loop.one_step

    def stop_after(step):
        def one_step(loop):
            original(loop)
            loop.stop_requested = loop.progress.step == step

        monkeypatch.setattr(_loop.Loop, "one_step", one_step if step else original)

    return stop_after


@pytest.mark.parametrize(("settings", "backward_passes"), ORDERS.values(), ids=ORDERS)
def test_every_order_learns_counts_its_passes_and_resumes_to_the_same_bits(
    tiny_recipe, tmp_path, stopping, settings, backward_passes
):
    recipe = load_recipe(tiny_recipe, settings)
    whole = train(recipe, tmp_path / "whole", QUIET)
    result = json.loads((whole / "result.json").read_text())
    assert result["accuracy"]["test"] > 0.8
    if backward_passes is not None:
        assert result["summary"]["backward_passes"] == pytest.approx(backward_passes, rel=1e-6)
    for step in (7, 9, 22):
        stopping(step)
        with pytest.raises(Interrupted):
            train(recipe, tmp_path / str(step), QUIET)
        stopping(0)
        resume(tmp_path / str(step), QUIET)
        assert rows_without_clocks(tmp_path / str(step)) == rows_without_clocks(whole)
        for part in ("model", "look"):
            assert_same(newest(tmp_path / str(step)).get(part), newest(whole).get(part))


def test_the_network_at_the_end_is_the_product_of_the_maps_in_reverse(tiny_recipe, tmp_path):
    recipe = load_recipe(tiny_recipe, [*PLAIN, *EXACT])
    look = newest(train(recipe, tmp_path / "run", QUIET))["look"]
    run = build_run(recipe, QUIET)
    for batch in reversed([run.source.next() for _ in range(27)]):
        run.optimizer.zero_grad()
        torch.nn.functional.cross_entropy(run.model(batch.inputs)[:, 0], batch.targets[:, 0]).backward()
        run.optimizer.step()
    torch.testing.assert_close(look, dict(run.model.state_dict()))


@pytest.mark.parametrize("update", [[], ["--update.momentum", "0.9", "--train.clip", "0.3"]], ids=["sgd", "momentum"])
def test_windows_of_one_step_are_ordinary_training(tiny_recipe, tmp_path, update):
    forward = train(load_recipe(tiny_recipe, [*PLAIN, *update]), tmp_path / "forward", QUIET)
    windows = train(load_recipe(tiny_recipe, [*PLAIN, *update, *EXACT, "--order.window", "1"]), tmp_path / "w", QUIET)
    assert values(windows, "dev", "loss") == pytest.approx(values(forward, "dev", "loss"), rel=1e-5)


def test_an_order_average_of_strength_zero_is_the_plain_gradient(tiny_recipe, tmp_path):
    average = ["--order.kind", "order-average", "--order.num_parts", "3", "--order.strength"]
    plain, zero, one = (
        train(load_recipe(tiny_recipe, [*PLAIN, *settings]), tmp_path / name, QUIET)
        for name, settings in {"plain": [], "zero": [*average, "0"], "one": [*average, "1"]}.items()
    )
    for split in ("train", "dev"):
        assert values(zero, split, "loss") == pytest.approx(values(plain, split, "loss"), rel=1e-4)
        assert values(zero, split, "error") == pytest.approx(values(plain, split, "error"), abs=1e-6)
    assert values(one, "dev", "loss") != pytest.approx(values(plain, "dev", "loss"), rel=1e-3)


def points_of(recipe):
    """The parameters after each step of ordinary training."""
    run = build_run(recipe, QUIET)
    for _ in range(27):
        run.strategy.step(run.source)
        yield {name: p.detach().clone() for name, p in run.model.named_parameters()}


def test_averages_are_of_the_iterates_and_leave_training_alone(tiny_recipe, tmp_path):
    points = list(points_of(load_recipe(tiny_recipe, PLAIN)))
    mean = {name: torch.stack([point[name] for point in points[15::2]]).mean(0) for name in points[0]}
    moving = points[0]
    for n, point in enumerate(points[1:], 2):
        moving = {name: p.lerp(point[name], max(1 / 5, 1 / n)) for name, p in moving.items()}
    for expected, *settings in (
        (mean, "--average.kind", "swa", "--average.start", "0.54", "--average.interval", "2"),  # steps 16, 18, ... 26
        (moving, "--average.kind", "ema", "--average.horizon", "5"),
    ):
        state = newest(train(load_recipe(tiny_recipe, [*PLAIN, *settings]), tmp_path / settings[1], QUIET))
        assert_same({name: state["model"][name] for name in points[0]}, points[-1])
        torch.testing.assert_close({name: state["look"][name] for name in expected}, expected)


REFUSED = {
    "backstitch": ([*EXACT, "--backstitch.scale", "0.3"], "no such count"),
    "two networks to look at": ([*EXACT, "--average.kind", "ema"], "either is a network to look at"),
    "roll-back of an exact order": ([*EXACT, "--train.non_finite", "roll-back"], "long past"),
    "natural gradient of an order average": (
        ["--order.kind", "order-average", "--gradient.kind", "natural", "--update.kind", "max-change-sgd"],
        "second derivatives of the plain",
    ),
    "Hessian-free backward": ([*EXACT, "--update.kind", "hessian-free"], "no sequence of small batches"),
    "Hessian-free, averaged": (["--average.kind", "swa", "--update.kind", "hessian-free"], "lags behind"),
    "parts without samples": (["--order.kind", "order-average", "--order.num_parts", "31"], "at least one sample"),
    "hold without a window": ([*EXACT, "--order.hold", "true"], "needs a window"),
    "better without a window": ([*EXACT, "--order.reset", "better"], "needs a window"),
    "stop before start": ([*EXACT, "--order.start", "4", "--order.stop", "3"], "start < stop"),
}


@pytest.mark.parametrize(("settings", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_makes_no_sense_is_refused_with_the_reason(tiny_recipe, settings, reason):
    with pytest.raises(ConfigError, match=reason):
        load_recipe(tiny_recipe, settings)


def test_text_has_one_order(tiny_recipe):
    recipe = load_recipe(tiny_recipe, EXACT)
    with pytest.raises(ConfigError, match="carried from one batch to the next"):
        check_combination(dataclasses.replace(recipe, kinds=recipe.kinds | {"data": "text"}))


@pytest.mark.parametrize(
    ("settings", "reason"), [(EXACT, "an order of its own"), (ORDERS["plain mean"][0], "combined")]
)
def test_many_workers_with_orders_or_averages_of_their_own_are_refused(tiny_recipe, settings, reason):
    recipe = load_recipe(tiny_recipe, settings)
    with pytest.raises(ConfigError, match=reason):
        check_combination(dataclasses.replace(recipe, kinds=recipe.kinds | {"parallel": "several"}))


def poisoned(recipe, folder, settings):
    """A run whose training example 7 is NaN."""
    run = build_run(load_recipe(recipe, settings), QUIET)
    run.task.parts["train"][0][7] = float("nan")
    return run.loop(RunFolder.create(folder, run.recipe.with_origins()))


@pytest.mark.parametrize("policy", ["skip", "roll-back"])
def test_a_fixed_tail_leaves_out_what_is_not_finite(tiny_recipe, tmp_path, policy):
    loop = poisoned(tiny_recipe, tmp_path / "run", [*TAIL, "--train.non_finite", policy])
    loop.run()
    assert loop.progress.non_finite == 2  # once in each epoch but the first: there it is in the tail,
    assert loop.strategy.map.num_left_out >= 3  # which each look applies again
    with loop.shown():
        assert loop.task.evaluate(loop.model)["error"] < 0.2


def test_an_exact_order_leaves_out_maps_that_are_not_finite_or_stops(tiny_recipe, tmp_path):
    loop = poisoned(tiny_recipe, tmp_path / "skip", [*EXACT, "--train.non_finite", "skip"])
    loop.run()
    assert loop.strategy.map.num_left_out == 1 + 2 + 3
    with loop.shown():
        assert loop.task.evaluate(loop.model)["error"] < 0.2
    with pytest.raises(NonFiniteError, match="applied again has loss nan"):
        poisoned(tiny_recipe, tmp_path / "raise", EXACT).run()


SPEECH = {
    "exact": EXACT,
    "natural gradient": [*TAIL, "--gradient.kind", "natural", "--update.kind", "max-change-sgd", "--update.lr", "0.5"],
    "order average": ["--order.kind", "order-average", "--order.num_parts", "2"],
    "moving average": ["--average.kind", "ema", "--average.horizon", "20"],
}


@pytest.mark.parametrize("settings", SPEECH.values(), ids=SPEECH)
def test_speech_recipes_take_any_order(tiny_speech_recipe, tmp_path, settings, stopping):
    recipe = load_recipe(tiny_speech_recipe, settings)
    whole = train(recipe, tmp_path / "whole", QUIET)
    losses = values(whole, "dev", "loss")
    assert losses[-1] < losses[0]
    stopping(13)
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "stopped", QUIET)
    stopping(0)
    resume(tmp_path / "stopped", QUIET)
    assert rows_without_clocks(tmp_path / "stopped") == rows_without_clocks(whole)
