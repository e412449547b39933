"""Reading run folders: complete ones, damaged ones, and folders of other programs."""

import json
import math

import numpy as np
import pytest

from hemstitch.errors import HemstitchError, RunError
from hemstitch.report import Errors, Setting, group_runs, read_run


def test_complete_run(make_run):
    run = read_run(make_run("an4", seed=3, lr=0.2))
    assert (run.name, run.seed, run.status, run.problems) == ("an4", "3", "finished", ())
    assert run.config["update.lr"] == Setting(0.2, "recipes/an4.toml:3")
    assert run.environment["threads"] == 2
    assert [event.level for event in run.events] == ["info", "warning"]
    assert [path.name for path in run.checkpoints] == ["step-00000200.safetensors"]
    wer, accuracy = run.scores
    assert (wer.split, wer.rate, wer.low, wer.high) == ("test", 23 / 200, 0.07, 0.14)
    assert wer.errors == Errors(words=200, insertions=4, deletions=6, substitutions=13)
    assert (accuracy.kind, accuracy.split, accuracy.rate) == ("accuracy", "dev", 0.89)


def test_curves_count_forward_and_backward_passes(make_run):
    curve = read_run(make_run(passes_per_step=2, epochs=3)).curves["dev", "loss"]
    np.testing.assert_array_equal(curve.step, [0, 40, 80, 120])
    np.testing.assert_array_equal(curve.passes, [0, 4, 8, 12])


def test_half_written_tail_is_left_out_and_named(make_run):
    folder = make_run()
    whole = read_run(folder).metrics
    path = folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    run = read_run(folder)
    assert run.metrics == whole[:-1]
    assert run.problems == ("metrics.jsonl: the last line is half-written and was left out",)


@pytest.mark.parametrize(
    "line", [b"\0\0\0", b"[1]", b'"x"', b'{"name": "loss"}', b'{"name": "l", "value": "x"}', b"\xff", b"[" * 9999]
)
def test_unreadable_line_in_the_middle_is_left_out_and_named(make_run, line):
    folder = make_run()
    path = folder / "metrics.jsonl"
    first, rest = path.read_bytes().split(b"\n", 1)
    path.write_bytes(first + b"\n" + line + b"\n" + rest)
    run = read_run(folder)
    assert len(run.metrics) == 1 + rest.count(b"\n")
    assert run.problems == ("metrics.jsonl: 1 unreadable line(s) left out, the first is line 2",)


def test_values_that_are_not_numbers(make_run):
    folder = make_run()
    (folder / "metrics.jsonl").write_text(
        '{"name": "loss", "value": NaN}\n{"name": "loss", "value": null, "step": 4}\n'
    )
    curve = read_run(folder).curves["", "loss"]
    assert np.isnan(curve.value).all() and curve.step[1] == 4 and math.isnan(curve.step[0])


@pytest.mark.parametrize("name", ["config.json", "environment.json", "metrics.jsonl", "result.json"])
def test_damaged_or_missing_file_is_named(make_run, name):
    folder = make_run()
    path = folder / name
    path.write_bytes(path.read_bytes()[:30])
    assert [name in problem for problem in read_run(folder).problems] == [True]
    path.unlink()
    run = read_run(folder)
    if name == "result.json":
        assert run.status == "unfinished" and run.problems == ()
    else:
        assert run.problems == (f"{name} is missing",)


def test_word_errors_are_counted_where_no_result_says_them(make_run):
    folder = make_run()
    (folder / "result.json").unlink()
    lines = [dict(id="a", reference="one two", hypothesis="one"), dict(id="b", reference="three", hypothesis="tree")]
    (folder / "decode" / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (score,) = read_run(folder).scores
    assert (score.rate, score.low) == (2 / 3, None)
    assert score.errors == Errors(words=3, deletions=1, substitutions=1)


@pytest.mark.parametrize("wer", [{"test": None}, {"test": {"rate": "much"}}, [], {"test": {"words": 3}}])
def test_strange_results_are_passed_over(make_run, wer):
    folder = make_run()
    (folder / "result.json").write_text(
        json.dumps({"status": "finished", "wer": wer, "summary": [], "accuracy": {"dev": 1}})
    )
    run = read_run(folder)
    assert [score.kind for score in run.scores] == ["accuracy"] and run.summary == {}


def test_folders_of_other_programs_are_refused(tmp_path):
    for name, content in {
        "empty": None,
        "hf": {"architectures": ["GPT2"]},
        "list": [1],
        "nested": {"a": {"b": 1}},
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        if content is not None:
            (folder / "config.json").write_text(json.dumps(content))
        with pytest.raises(RunError, match="expected a folder that `hemstitch train` has written"):
            read_run(folder)
    with pytest.raises(RunError, match="does not exist"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(HemstitchError, match="is a file"):
        read_run(tmp_path / "hf" / "config.json")


def test_groups_are_equal_up_to_the_seed(make_run):
    folders = [make_run(seed=seed, lr=lr) for lr in (0.1, 0.2) for seed in (10, 9)]
    slow, fast = group_runs([read_run(folder) for folder in folders])
    assert (slow.label, fast.label) == ("update.lr = 0.1", "update.lr = 0.2")
    assert [run.seed for run in slow.runs] == ["9", "10"]
    assert fast.differences == {"update.lr": "0.2"}


def test_group_labels_use_names_where_much_differs(make_run):
    def labels(*names):
        runs = [
            read_run(make_run(f"{name}-{k}", seed=k, **{f"update.{key}": k for key in "abcd"}))
            for k, name in enumerate(names)
        ]
        return [group.label for group in group_runs(runs)]

    assert labels("adam", "sgd") == ["adam-0", "sgd-1"]


def test_group_labels_fall_back_to_letters(make_run):
    settings = [{f"update.{key}": value for key in "abcd"} for value in (1, 2)]
    runs = [read_run(make_run(lr=0.1 * k + 0.1, **setting)) for k, setting in enumerate(settings)]
    assert [group.label for group in group_runs(runs)] == ["A: an4", "B: an4"]


def test_one_group_has_the_name_of_the_run(make_run):
    (group,) = group_runs([read_run(make_run(seed=seed)) for seed in range(2)])
    assert group.label == "an4" and group.differences == {}
