import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from hemstitch.errors import NonFiniteError, RunError
from hemstitch.train import Console, Interrupted, load_recipe, resume, train
from hemstitch.train._build import build_run
from hemstitch.train._checkpoint import load_checkpoint
from hemstitch.train._run_folder import RunFolder

QUIET = Console(quiet=True)
CLOCKS = ("wall_seconds", "cpu_seconds")


def content(folder):
    """Everything a run computed, without the clocks."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((folder / "result.json").read_text())
    for entry in [*rows, result["summary"]]:
        for clock in CLOCKS:
            entry.pop(clock)
    newest = load_checkpoint(RunFolder.open(folder).checkpoints()[-1])
    return rows, result, newest["model"], newest["optimizer"]["state"]


def assert_same_run(a, b):
    for x, y in zip(content(a)[:2], content(b)[:2]):
        assert x == y
    for x, y in zip(content(a)[2:], content(b)[2:]):
        torch.testing.assert_close(x, y, rtol=0, atol=0)


@pytest.fixture
def whole(tiny_recipe, tmp_path):
    return train(load_recipe(tiny_recipe), tmp_path / "whole", QUIET)


def test_a_run_learns_and_leaves_a_complete_folder(whole):
    result = json.loads((whole / "result.json").read_text())
    assert result["status"] == "finished" and result["accuracy"]["test"] > 0.9
    assert result["summary"]["steps"] == 27 and result["summary"]["backward_passes"] == 3
    assert {p.name for p in whole.iterdir()} == {
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "events.jsonl",
        "checkpoints",
        "result.json",
    }


@pytest.mark.parametrize("stop_after", [1, 4, 9, 11, 26])
def test_a_stopped_run_continues_to_the_same_bits(tiny_recipe, tmp_path, whole, monkeypatch, stop_after):
    from hemstitch.train import _loop

    original = _loop.Loop.one_step

    def one_step(loop):
        original(loop)
        if loop.progress.step == stop_after:
            loop.stop_requested = True

    monkeypatch.setattr(_loop.Loop, "one_step", one_step)
    with pytest.raises(Interrupted):
        train(load_recipe(tiny_recipe), tmp_path / "stopped", QUIET)
    monkeypatch.setattr(_loop.Loop, "one_step", original)
    assert_same_run(resume(tmp_path / "stopped", QUIET), whole)


def test_a_run_asked_to_stop_in_its_last_look_stops_there(tiny_recipe, tmp_path, whole, monkeypatch):
    from hemstitch.train import _loop

    original = _loop.Loop.end_epoch

    def end_epoch(loop):
        original(loop)
        loop.stop_requested = loop.finished

    monkeypatch.setattr(_loop.Loop, "end_epoch", end_epoch)
    with pytest.raises(Interrupted):
        train(load_recipe(tiny_recipe), tmp_path / "stopped", QUIET)
    assert not (tmp_path / "stopped" / "result.json").exists()
    monkeypatch.setattr(_loop.Loop, "end_epoch", original)
    assert_same_run(resume(tmp_path / "stopped", QUIET), whole)


METHODS = {
    "natural gradient": ["--gradient.kind", "natural", "--update.kind", "max-change-sgd", "--update.lr", "0.3"],
    "backstitch": ["--backstitch.scale", "0.3", "--backstitch.interval", "2", "--backstitch.warmup_steps", "9"],
    "all together": [
        "--gradient.kind",
        "natural",
        "--update.kind",
        "max-change-sgd",
        "--update.lr",
        "0.3",
        "--backstitch.scale",
        "0.3",
        "--backstitch.interval",
        "1",
    ],
}


@pytest.mark.parametrize("settings", METHODS.values(), ids=METHODS)
def test_every_method_learns_counts_its_passes_and_resumes_to_the_same_bits(
    tiny_recipe, tmp_path, monkeypatch, settings
):
    from hemstitch.train import _loop

    recipe = load_recipe(tiny_recipe, settings)
    whole = train(recipe, tmp_path / "whole", QUIET)
    result = json.loads((whole / "result.json").read_text())
    assert result["accuracy"]["test"] > 0.9
    pairs = sum((step + recipe.seed) % recipe.backstitch.interval == 0 for step in range(27))
    expected = 3 * (1 + pairs / 27) if recipe.backstitch.scale else 3
    assert result["summary"]["backward_passes"] == pytest.approx(expected, rel=0.05)
    original = _loop.Loop.one_step

    def one_step(loop):
        original(loop)
        loop.stop_requested = loop.progress.step == 13

    monkeypatch.setattr(_loop.Loop, "one_step", one_step)
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "stopped", QUIET)
    monkeypatch.setattr(_loop.Loop, "one_step", original)
    assert_same_run(resume(tmp_path / "stopped", QUIET), whole)


@pytest.mark.parametrize("die_at", [3, 8, 14, 22])
def test_a_run_that_died_without_warning_repeats_what_was_not_saved(tiny_recipe, tmp_path, whole, monkeypatch, die_at):
    from hemstitch.train import _loop

    class Died(BaseException):
        pass

    original = _loop.Loop.one_step

    def one_step(loop):
        original(loop)
        if loop.progress.step == die_at:
            raise Died

    monkeypatch.setattr(_loop.Loop, "one_step", one_step)
    with pytest.raises(Died):
        train(load_recipe(tiny_recipe), tmp_path / "died", QUIET)
    monkeypatch.setattr(_loop.Loop, "one_step", original)
    assert_same_run(resume(tmp_path / "died", QUIET), whole)


def test_resume_falls_back_to_an_older_checkpoint_and_says_so(tiny_recipe, tmp_path, whole):
    (whole / "result.json").unlink()
    newest = RunFolder.open(whole).checkpoints()[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    resume(whole, QUIET)
    events = [json.loads(line) for line in (whole / "events.jsonl").read_text().splitlines()]
    assert any(e["kind"] == "checkpoint" and newest.name in e["message"] for e in events)
    assert_same_run(whole, train(load_recipe(tiny_recipe), tmp_path / "again", QUIET))


def test_a_finished_run_is_left_alone(whole):
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
    assert resume(whole, QUIET) == whole
    assert before == {p: p.stat().st_mtime_ns for p in whole.rglob("*")}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "no such run folder"),
        (lambda p: p.mkdir(), "not a run folder"),
        (lambda p: (p.mkdir(), (p / "config.json").write_text("{")), "cannot be read as JSON"),
    ],
)
def test_a_foreign_folder_is_not_resumed(tmp_path, make, message):
    make(tmp_path / "x")
    with pytest.raises(RunError, match=message):
        resume(tmp_path / "x", QUIET)


def test_an_existing_folder_is_not_overwritten(tiny_recipe, tmp_path, whole):
    with pytest.raises(RunError, match="is a run already: `hemstitch resume` it"):
        train(load_recipe(tiny_recipe), whole, QUIET)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(RunError, match="exists and is not a run"):
        train(load_recipe(tiny_recipe), tmp_path / "mine", QUIET)


def test_a_folder_that_cannot_be_written_is_named(tiny_recipe):
    with pytest.raises(RunError, match="cannot write /proc/hemstitch"):
        train(load_recipe(tiny_recipe), __import__("pathlib").Path("/proc/hemstitch/run"), QUIET)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_loses_nothing_that_was_saved(tiny_recipe, tmp_path, whole, monkeypatch):
    from hemstitch.train import _loop

    original = _loop.Loop.one_step

    def one_step(loop):
        if loop.progress.step == 13:
            os.replace(loop.folder.metrics.path, tmp_path / "kept")
            os.symlink("/dev/full", loop.folder.metrics.path)
        original(loop)

    monkeypatch.setattr(_loop.Loop, "one_step", one_step)
    with pytest.raises(RunError, match=r"metrics.jsonl: No space left on device.*free space.*resume"):
        train(load_recipe(tiny_recipe), tmp_path / "full", QUIET)
    monkeypatch.setattr(_loop.Loop, "one_step", original)
    os.replace(tmp_path / "kept", tmp_path / "full" / "metrics.jsonl")
    assert_same_run(resume(tmp_path / "full", QUIET), whole)


def poisoned(recipe, tmp_path, name, *settings):
    """Train with training example 7 made NaN."""
    run = build_run(load_recipe(recipe, settings), QUIET)
    run.task.parts["train"][0][7] = float("nan")
    folder = RunFolder.create(tmp_path / name, run.recipe.with_origins())
    loop = run.loop(folder)
    return loop


def test_a_loss_that_is_not_finite_stops_the_run_with_clean_parameters(tiny_recipe, tmp_path):
    loop = poisoned(tiny_recipe, tmp_path, "raise")
    with pytest.raises(NonFiniteError, match=r"loss nan.*Lower update.lr"):
        loop.run()
    assert all(torch.isfinite(p).all() for p in loop.model.parameters())


@pytest.mark.parametrize("policy", ["skip", "roll-back"])
def test_steps_that_are_not_finite_are_left_out_and_counted(tiny_recipe, tmp_path, policy):
    loop = poisoned(tiny_recipe, tmp_path, policy, "--train.non_finite", policy)
    loop.run()
    assert loop.progress.non_finite == 3  # once in each epoch
    assert all(torch.isfinite(p).all() for p in loop.model.parameters())
    assert loop.task.evaluate(loop.model)["error"] < 0.2
    events = (tmp_path / policy / "events.jsonl").read_text()
    assert events.count('"kind": "non-finite"') == 3


def test_too_many_steps_that_are_not_finite_stop_the_run_all_the_same(tiny_recipe, tmp_path):
    loop = poisoned(tiny_recipe, tmp_path, "many", "--train.non_finite", "skip", "--train.max_non_finite", "2")
    with pytest.raises(NonFiniteError, match="3 such steps"):
        loop.run()


def test_bfloat16_trains_and_keeps_float32_parameters(tiny_recipe, tmp_path):
    folder = train(load_recipe(tiny_recipe, ["--train.precision", "bf16"]), tmp_path / "bf16", QUIET)
    assert json.loads((folder / "result.json").read_text())["accuracy"]["test"] > 0.9
    model = load_checkpoint(RunFolder.open(folder).checkpoints()[-1])["model"]
    assert all(t.dtype == torch.float32 for t in model.values())


@pytest.mark.slow
def test_a_run_killed_at_any_moment_continues_to_the_same_bits(tiny_recipe, tmp_path, whole):
    """SIGKILL from outside, twelve times at random moments, also while checkpoints are written."""
    random = __import__("random").Random(0)
    folder, command = tmp_path / "killed", [sys.executable, "-m", "hemstitch.cli"]
    arguments = ["train", str(tiny_recipe), "--run", str(folder), "--quiet"]
    for _ in range(12):
        process = subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not (folder / "config.json").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        arguments = ["resume", str(folder), "--quiet"]
    subprocess.run([*command, *arguments], check=True, timeout=120, stdout=subprocess.DEVNULL)
    (whole / "report.html").touch()
    assert_same_run(folder, whole)
