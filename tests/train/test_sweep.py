import json
import math

import pytest

from hemstitch.cli import main
from hemstitch.commands._experiments import _values
from hemstitch.errors import ConfigError, RunError
from hemstitch.train import Console, load_recipe, sweep
from hemstitch.train._experiments import Cost, tuned_recipe
from hemstitch.train._experiments._grid import beyond, combinations, step_beyond
from hemstitch.train._experiments._runs import complete, folder_name, vary

QUIET = Console(quiet=True)
CLOCKS = ("wall_seconds", "cpu_seconds")


@pytest.fixture
def recipe(tiny_recipe):
    return load_recipe(tiny_recipe)


def without_clocks(trial):
    cost = trial.cost
    return trial.settings, trial.scores, trial.status, trial.refinement, cost.runs, cost.forward_passes


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.parent != folder}


class Died(BaseException):
    """Stands for a kill without warning."""


def die_after(monkeypatch, steps):
    """The process ends after that many steps, whichever run they are in."""
    from hemstitch.train import _loop

    original, count = _loop.Loop.one_step, iter(range(10**9))

    def one_step(loop):
        original(loop)
        if next(count) == steps:
            raise Died

    monkeypatch.setattr(_loop.Loop, "one_step", one_step)
    return lambda: monkeypatch.setattr(_loop.Loop, "one_step", original)


def test_chooses_on_dev_goes_beyond_the_end_of_the_grid_and_tells_the_cost(recipe, tmp_path):
    result = sweep(recipe, {"update.lr": [0.0001, 0.001]}, seeds=[1, 2], out=tmp_path / "sweep", console=QUIET)
    assert [row.settings["update.lr"] for row in result.rows] == [0.0001, 0.001, 0.003]
    assert [row.refinement for row in result.rows] == [False, False, True]
    assert result.best is min(result.rows, key=lambda row: row.score) and result.best.settings == {"update.lr": 0.003}
    assert result.recipe.update.lr == 0.003 and result.recipe.origins["update.lr"] == "sweep"
    assert result.cost.runs == 6 and result.cost.backward_passes == 6 * 3
    summaries = [json.loads(p.read_text())["summary"] for p in (tmp_path / "sweep").glob("*/result.json")]
    assert result.cost.cpu_seconds == pytest.approx(sum(summary["cpu_seconds"] for summary in summaries))
    for seed, folder in result.best.folders.items():
        found = json.loads((tmp_path / folder / "result.json").read_text())
        assert found["summary"]["best_dev_loss"] == result.best.scores[seed]
    assert "was the end of the grid: tried 0.003" in result.remarks[0]
    assert "update.lr = 0.003 is the end of what was tried" in result.remarks[1]


def test_its_file_is_plain_json_and_keeps_the_test_results_of_losers_to_itself(recipe, tmp_path):
    result = sweep(recipe, {"update.lr": [0.01, 1e30]}, out=tmp_path, refine=False, console=QUIET)
    content = json.loads((tmp_path / "sweep.json").read_text(), parse_constant=pytest.fail)
    assert content["rows"][1]["score"] is None and content["rows"][0]["score"] == result.best.score
    assert list(content["best"]["test"]) == ["accuracy"] and "accuracy" not in json.dumps(content["rows"])
    found, cost = tuned_recipe(tmp_path)
    assert found.flat() == result.recipe.flat() and cost == result.cost


@pytest.mark.parametrize("steps", [5, 30, 40, 60])
def test_a_killed_sweep_continues_and_repeats_nothing(recipe, tmp_path, monkeypatch, steps):
    grid = {"update.lr": [0.003, 0.01]}
    whole = sweep(recipe, grid, out=tmp_path / "whole", console=QUIET)
    restore = die_after(monkeypatch, steps)
    with pytest.raises(Died):
        sweep(recipe, grid, out=tmp_path / "killed", console=QUIET)
    restore()
    finished = [p.parent for p in (tmp_path / "killed").glob("*/result.json")]
    before = {path: time for folder in finished for path, time in files(folder).items()}
    assert len(finished) == (steps + 1) // 27
    continued = sweep(recipe, grid, out=tmp_path / "killed", console=QUIET)
    assert [without_clocks(t) for t in continued.rows] == [without_clocks(t) for t in whole.rows]
    assert before.items() <= files(tmp_path / "killed").items()


def test_a_finished_sweep_is_left_alone_and_a_wider_grid_adds_to_it(recipe, tmp_path):
    sweep(recipe, {"update.lr": [0.003, 0.01]}, out=tmp_path, refine=False, console=QUIET)
    before = files(tmp_path)
    again = sweep(recipe, {"update.lr": [0.003, 0.01]}, out=tmp_path, refine=False, console=QUIET)
    assert files(tmp_path) == before and again.cost.runs == 2
    wider = sweep(recipe, {"update.lr": [0.01, 0.02]}, out=tmp_path, refine=False, console=QUIET)
    assert before.items() <= files(tmp_path).items()
    assert len(wider.rows) == 2 and wider.cost.runs == 3  # the earlier search is not forgotten


def test_a_diverged_run_is_a_result_that_costs_and_is_not_repeated(recipe, tmp_path):
    grid = {"update.lr": [1e30, 0.01]}
    result = sweep(recipe, grid, seeds=[1, 2], out=tmp_path, refine=False, console=QUIET)
    diverged, finished = result.rows
    assert diverged.status == "diverged" and math.isinf(diverged.score) and list(diverged.scores) == [1]
    assert 0 < diverged.cost.forward_passes < 3 and finished.cost.forward_passes == 6
    assert result.cost.forward_passes == diverged.cost.forward_passes + 6
    assert "1 of 2 combinations diverged; their cost is counted" in result.remarks
    before = files(tmp_path)
    assert sweep(recipe, grid, seeds=[1, 2], out=tmp_path, refine=False, console=QUIET).rows == result.rows
    assert files(tmp_path) == before


def test_where_nothing_finishes_there_is_no_winner(recipe, tmp_path):
    with pytest.raises(RunError, match=r"none of 2 combinations finished \(diverged\)"):
        sweep(recipe, {"update.lr": [1e30, 1e31]}, out=tmp_path, console=QUIET)


def test_hopeless_runs_are_stopped_and_what_they_used_is_counted(recipe, tmp_path):
    recipe = vary(recipe, {"train.epochs": 8}, "test")
    result = sweep(recipe, {"update.lr": [0.01, 1e-6]}, out=tmp_path, stop_hopeless=True, refine=False, console=QUIET)
    good, hopeless = result.rows
    assert good.status == "finished" and hopeless.status == "stopped early"
    assert hopeless.cost.forward_passes == 4 and result.cost.forward_passes == 12
    error = json.loads((tmp_path / "update.lr=1e-06,seed=1" / "result.json").read_text())["error"]
    assert error.startswith("stopped after 50% of its epochs: dev loss")


def test_what_is_compared_can_be_chosen(recipe, tmp_path):
    by_error = sweep(recipe, {"update.lr": [1e-6, 0.01]}, out=tmp_path, by="error", refine=False, console=QUIET)
    folder = by_error.best.folders[1]
    accuracy = json.loads((tmp_path / folder / "result.json").read_text())["accuracy"]
    assert by_error.best.score == pytest.approx(1 - accuracy["dev"])
    with pytest.raises(RunError, match="there is no wer of the dev part to choose by; there is loss, error"):
        sweep(recipe, {"update.lr": [1e-6, 0.01]}, out=tmp_path, by="wer", console=QUIET)


def test_the_first_of_equals_wins(recipe, tmp_path):
    result = sweep(recipe, {"train.log_every": [7, 3]}, out=tmp_path, console=QUIET)
    assert result.rows[0].score == result.rows[1].score and result.best is result.rows[0]


def test_a_folder_with_other_runs_is_refused(recipe, tmp_path):
    sweep(recipe, {"update.lr": [0.01]}, out=tmp_path, console=QUIET)
    with pytest.raises(RunError, match=r"holds a run with train.epochs = 3, wanted is 2: give another folder"):
        sweep(vary(recipe, {"train.epochs": 2}, "test"), {"update.lr": [0.01]}, out=tmp_path, console=QUIET)


def test_a_run_killed_before_its_configuration_was_written_starts_anew(recipe, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "environment.json").write_text("{}")
    assert complete(recipe, tmp_path / "run", QUIET)["status"] == "finished"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(RunError, match="exists and is not a run"):
        complete(recipe, tmp_path / "mine", QUIET)


@pytest.mark.parametrize(
    ("values", "best", "expected"),
    [
        ([0.01, 0.1], 0.1, 0.3),
        ([0.03, 0.01], 0.01, 0.00333333),
        ([0.01, 0.03, 0.1], 0.03, None),
        ([0.8, 0.9], 0.9, None),
        ([0.0, 0.1], 0.1, None),
        ([0.1], 0.1, None),
        ([10, 100], 100, None),
        (["sgd", "adam"], "sgd", None),
    ],
)
def test_the_grid_is_extended_only_at_the_end_of_positive_numbers_in_big_steps(values, best, expected):
    assert step_beyond(values, best) == expected


def test_two_ends_are_passed_together(recipe):
    tried = combinations(recipe, {"update.lr": [0.01, 0.1], "update.weight_decay": [0.1, 1]})
    more, remarks = beyond(recipe, tried[-1], tried)
    assert [tuple(s.values()) for s in more] == [(0.1, 3.0), (0.3, 1.0), (0.3, 3.0)] and len(remarks) == 2
    tried = combinations(recipe, {"model.dropout": [0.1, 0.4]})
    more, remarks = beyond(recipe, tried[-1], tried)
    assert more == [] and "could not be tried: [model]: dropout must be in [0, 1)" in remarks[1]


def test_kinds_can_be_swept_and_equal_combinations_are_run_once(recipe):
    tried = combinations(recipe, {"update.kind": ["adam", "sgd"], "update.lr": [1, 1.0]})
    assert tried == [{"update.kind": "adam", "update.lr": 1.0}, {"update.kind": "sgd", "update.lr": 1.0}]
    momentum = vary(recipe, {"update.kind": "sgd", "update.momentum": 0.5}, "test")
    assert vary(momentum, {"update.kind": "adam"}, "test").update.lr == 1e-3  # momentum and lr went with their kind
    with pytest.raises(ConfigError, match=r"unknown key 'update.rl' \(sweep\)"):
        combinations(recipe, {"update.rl": [1]})
    with pytest.raises(ConfigError, match="gets its seeds apart"):
        combinations(recipe, {"seed": [1, 2]})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("update.lr=0.01,3e-2", ("update.lr", [0.01, 0.03])),
        ("update.kind=sgd,adam", ("update.kind", ["sgd", "adam"])),
        ("model.hidden=[8],[8,8]", ("model.hidden", [[8], [8, 8]])),
        ("update.weight-decay=0", ("update.weight_decay", [0])),
    ],
)
def test_values_are_read_from_the_command_line(text, expected):
    assert _values(text) == expected


def test_folder_names_are_readable_and_never_shared():
    assert folder_name("update.lr=0.1,seed=1") == "update.lr=0.1,seed=1"
    odd = ["a/b", "a b", "../a", "x" * 200, "x" * 201, "[1, 2]", "."]
    assert len({folder_name(text) for text in odd}) == len(odd)
    assert all("/" not in folder_name(text) and not folder_name(text).startswith(".") for text in odd)


def test_costs_add_up():
    one = Cost(runs=1, forward_passes=2.0, backward_passes=1.0, wall_seconds=4.0, cpu_seconds=3.0)
    assert one + Cost() == one and (one + one).forward_passes == 4.0


def test_from_the_command_line(tiny_recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["sweep", str(tiny_recipe), "--over", "update.lr=0.01,1e30", "--quiet", "--train.epochs", "2"]
    assert main(arguments) == 0
    out = capsys.readouterr().out.replace("\u00a0", " ")
    assert "best on dev: update.lr = 0.01  (dev loss" in out and "diverged" in out
    assert "the search cost 3 runs:" in out  # 0.003333 beyond the end, too
    assert "<svg" in (tmp_path / "runs" / "sweep-tiny" / "sweep.html").read_text()
    assert main([*arguments[:3], "update.lr", "--quiet"]) == 2
    assert "expected section.field=VALUE" in capsys.readouterr().err
