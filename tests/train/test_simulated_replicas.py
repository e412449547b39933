"""Asynchronous recipes on the simulated clock: one replica is serial SGD, many learn, resume, failures, decoders."""

import json

import pytest
import torch

from hemstitch.errors import ConfigError
from hemstitch.report import write_report
from hemstitch.train import Console, Interrupted, load_recipe, resume, train
from hemstitch.train import _strategies as strategies
from hemstitch.train._build import build_run
from hemstitch.train._checkpoint import load_checkpoint
from hemstitch.train._run_folder import RunFolder
from tiny_speech import speech_recipe

QUIET = Console(quiet=True)
PLAIN = ["--update.kind", "sgd", "--update.momentum", "0", "--update.lr", "0.3"]
NATURAL = ["--gradient.kind", "natural", "--update.kind", "max-change-sgd", "--update.lr", "0.1"]
SIMULATED = ["--parallel.kind", "simulated-async"]


def go(recipe, settings, path):
    return train(load_recipe(recipe, settings), path, QUIET)


def newest(folder):
    return load_checkpoint(RunFolder.open(folder).checkpoints()[-1])


def rows(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("wall_seconds", "cpu_seconds")} for row in found]


def last(folder):
    return {row["name"]: row["value"] for row in rows(folder) if row["split"] == "train"}


@pytest.mark.parametrize("kind", [PLAIN, NATURAL])
def test_one_replica_is_a_local_run(tiny_recipe, tmp_path, kind):
    settings = [*kind, "--train.log_every", "1"]
    local = go(tiny_recipe, settings, tmp_path / "local")
    alone = go(tiny_recipe, [*settings, *SIMULATED, "--parallel.replicas", "1"], tmp_path / "one")
    torch.testing.assert_close(newest(local)["model"], newest(alone)["model"], rtol=1e-5, atol=1e-7)
    losses = [[r["value"] for r in rows(f) if (r["split"], r["name"]) == ("train", "loss")] for f in (local, alone)]
    torch.testing.assert_close(*map(torch.tensor, losses), rtol=1e-5, atol=1e-6)
    assert last(alone)["staleness"] == 0


@pytest.mark.parametrize("settings", [[], NATURAL, ["--parallel.failure_seconds", "6", "--parallel.shards", "2"]])
def test_many_replicas_learn_and_continue_to_the_same_bits(tiny_recipe, tmp_path, monkeypatch, settings):
    from hemstitch.train import _loop

    settings = [*PLAIN, *SIMULATED, "--parallel.replicas", "4", "--train.batch_size", "10", *settings]
    whole = go(tiny_recipe, settings, tmp_path / "whole")
    assert json.loads((whole / "result.json").read_text())["accuracy"]["test"] > 0.9
    assert 1 < last(whole)["staleness"] < 3.5 and last(whole)["simulated_seconds"] > 1
    assert ("failures" in last(whole)) == ("--parallel.failure_seconds" in settings)
    assert "Share of gradients by age" in write_report(whole).read_text()
    save = _loop.Loop.save

    def save_and_stop(loop):
        save(loop)
        loop.stop_requested |= loop.progress.looked == 1

    monkeypatch.setattr(_loop.Loop, "save", save_and_stop)
    with pytest.raises(Interrupted):
        go(tiny_recipe, settings, tmp_path / "cut")
    monkeypatch.setattr(_loop.Loop, "save", save)
    assert rows(resume(tmp_path / "cut", QUIET)) == rows(whole)
    torch.testing.assert_close(newest(tmp_path / "cut")["model"], newest(whole)["model"], rtol=0, atol=0)


def test_every_batch_is_used_once(tiny_recipe, tmp_path, monkeypatch):
    seen, objective = [], strategies.Gradient.objective
    monkeypatch.setattr(strategies.Gradient, "objective",
                        lambda self, batch: seen.append(batch.targets.sum().item()) or objective(self, batch))
    go(tiny_recipe, [*PLAIN, "--train.epochs", "1"], tmp_path / "local")
    local, seen[:] = sorted(seen), []
    go(tiny_recipe, [*PLAIN, *SIMULATED, "--train.epochs", "1", "--parallel.replicas", "4"], tmp_path / "many")
    assert sorted(seen) == local


def test_a_bad_gradient_rolls_back_and_the_run_goes_on(tiny_recipe, tmp_path, monkeypatch):
    calls, objective = [], strategies.Gradient.objective

    def sometimes_bad(self, batch):
        calls.append(0)
        found = objective(self, batch)
        if len(calls) == 14:
            found.loss.data.fill_(float("nan"))
            found = type(found)(**{**vars(found), "loss": found.loss * float("nan")})
        return found

    monkeypatch.setattr(strategies.Gradient, "objective", sometimes_bad)
    folder = go(tiny_recipe, [*PLAIN, *SIMULATED, "--parallel.replicas", "3", "--train.non_finite", "roll-back"],
                tmp_path / "run")
    assert "rolled back" in (folder / "events.jsonl").read_text()
    assert all(value.isfinite().all() for value in newest(folder)["model"].values())


@pytest.mark.parametrize("settings, reason", [
    ([], "plain steps"),
    ([*PLAIN, "--backstitch.scale", "0.3"], "plain steps"),
    ([*PLAIN, "--average.kind", "ema"], "average.kind"),
    ([*PLAIN, "--parallel.decoder_fetch_synchronous", "true"], "decoder_fetch_seconds"),
    ([*PLAIN, "--parallel.lookahead", "0"], "lookahead"),
])
def test_what_makes_no_sense_is_refused(tiny_recipe, settings, reason):
    with pytest.raises(ConfigError, match=reason):
        build_run(load_recipe(tiny_recipe, [*SIMULATED, *settings]), QUIET)


# -- sequence criteria -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def speech(tiny_corpus, tmp_path_factory):
    """A recipe and a run that has trained its network by cross-entropy."""
    folder = tmp_path_factory.mktemp("start")
    path = speech_recipe(folder / "recipe.toml", tiny_corpus)
    settings = ["--update.lr", "0.003", "--train.epochs", "1", "--decode.acoustic_scale", "[0.2]"]
    return path, train(load_recipe(path, settings), folder / "run", QUIET)


def sequence_settings(speech, *more):
    return load_recipe(speech[0], [
        "--start.run", str(speech[1]), "--start.alignment", "true", "--criterion.kind", "mmi", "--train.epochs", "2",
        "--criterion.acoustic_scale", "0.5", "--model.dropout", "0", "--criterion.tolerance", "0.01",
        "--update.kind", "sgd", "--update.momentum", "0", "--update.lr", "0.005", *SIMULATED,
        "--parallel.replicas", "3", *more])  # fmt: skip


FRAMES = ["--criterion.unit", "frame", "--train.batch_size", "8", "--parallel.decode_seconds", "1"]


@pytest.mark.parametrize("unit", [["--train.batch_size", "4"], FRAMES, [
    *FRAMES, "--parallel.decoder_fetch_seconds", "20", "--parallel.decoder_fetch_synchronous", "true"]],
    ids=["utterances", "frames", "frames-synchronous"])  # fmt: skip
def test_a_sequence_criterion_goes_down(speech, tmp_path, unit):
    recipe = sequence_settings(speech, *unit)
    before = build_run(recipe, QUIET)
    start = before.task.evaluate(before.model)["loss"]
    folder = train(recipe, tmp_path / "run", QUIET)
    dev = [row["value"] for row in rows(folder) if (row["split"], row["name"]) == ("dev", "loss")]
    assert len(dev) == 2 and dev[-1] < start
    assert ("outer_staleness" in last(folder)) == ("frame" in unit)
    if "frame" in unit:
        assert last(folder)["outer_staleness"] > last(folder)["staleness"]
        assert 0 < last(folder)["cancelled_frames"] < 1


def test_frames_need_to_be_shuffled_on_the_fly(speech):
    with pytest.raises(ConfigError, match="on-the-fly"):
        build_run(sequence_settings(speech, *FRAMES, "--criterion.shuffling", "full"), QUIET)
