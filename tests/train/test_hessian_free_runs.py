"""Hessian-free runs: they learn, resume to the same bits, do not depend on the workers, refuse what is senseless."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch

from hemstitch.comm import LocalReducer, MemberLost, run_workers
from hemstitch.criteria import CrossEntropy
from hemstitch.errors import ConfigError, NonFiniteError
from hemstitch.report import write_report
from hemstitch.testing import write_tiny_images
from hemstitch.train import Console, Interrupted, load_recipe, resume, train
from hemstitch.train import _options as o
from hemstitch.train._build import build_model, build_run, build_task
from hemstitch.train._checkpoint import load_checkpoint
from hemstitch.train._hessian_free_data import HessianFreeData, cut
from hemstitch.train._loop import Loop
from hemstitch.train._run_folder import RunFolder
from hemstitch.train._strategy_hessian_free import build_hessian_free

QUIET = Console(quiet=True)
HESSIAN_FREE = ["--update.kind", "hessian-free", "--schedule.kind", "constant", "--update.damping", "0.1",
                "--train.batch_size", "64", "--train.log_every", "1"]  # fmt: skip
SEQUENCES = ["--criterion.kind", "lattice-free-mmi", "--hmm.topology", "chain", "--hmm.realign", "[]",
             "--criterion.length_step", "20", "--decode.acoustic_scale", "[1.0]", "--decode.beam", "30",
             "--model.kind", "tdnn", "--model.width", "16", "--model.offsets", "[[-1,0,1],[-1,0,1]]",
             "--model.norm", "rms"]  # fmt: skip


@pytest.fixture
def recipe(tmp_path):
    write_tiny_images(tmp_path / "images")
    path = tmp_path / "tiny.toml"
    path.write_text(f"""
name = "tiny"
[data]
kind = "images"
source = "{tmp_path / "images"}"
[model]
hidden = [16]
dropout = 0.1
[train]
epochs = 8
threads = 1
""")
    return path


def metrics(folder, name, split="train"):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["value"] for row in rows if (row["split"], row["name"]) == (split, name)]


def newest(folder):
    state = load_checkpoint(RunFolder.open(folder).checkpoints()[-1])
    return {key: state[key] for key in ("model", "optimizer", "source")}


def train_until(chosen, path, step, monkeypatch):
    """Stop a run after a step."""
    original = Loop.one_step

    def one_step(loop):
        original(loop)
        loop.stop_requested = loop.progress.step == step

    monkeypatch.setattr(Loop, "one_step", one_step)
    with pytest.raises(Interrupted):
        train(chosen, path, QUIET)
    monkeypatch.setattr(Loop, "one_step", original)


METHODS = {
    "plain": [],
    "pairs of the step before, geometric": ["--update.preconditioner", "lbfgs", "--update.sampling", "geometric",
                                            "--update.gradient_start", "0.2"],
    "pairs within the run, variance": ["--update.preconditioner", "lbfgs", "--update.rebuild", "within",
                                       "--update.keep_pairs", "even", "--update.sampling", "variance",
                                       "--update.gradient_start", "0.2"],
    "fisher, both, not nested": ["--update.preconditioner", "fisher", "--update.sampling", "geometric-then-variance",
                                 "--update.nested", "false", "--update.gradient_start", "0.2"],
    "jacobi": ["--update.preconditioner", "jacobi", "--update.keep_graphs", "false"],
}  # fmt: skip


@pytest.mark.parametrize("settings", METHODS.values(), ids=METHODS)
def test_every_variant_learns_reports_and_resumes_to_the_same_bits(recipe, tmp_path, monkeypatch, settings):
    chosen = load_recipe(recipe, [*HESSIAN_FREE, *settings])
    whole = train(chosen, tmp_path / "whole", QUIET)
    held_out = metrics(whole, "held_out_loss")
    assert len(held_out) == 8 and held_out[-1] < 0.8 * held_out[0]
    assert all(after <= before for before, after in zip(held_out, metrics(whole, "held_out_loss_after")))
    sizes = metrics(whole, "samples_gradient")
    assert sizes == sorted(sizes) and (len(set(sizes)) > 1) == (chosen.update.sampling != "fixed")
    train_until(chosen, tmp_path / "stopped", 3, monkeypatch)
    again = resume(tmp_path / "stopped", QUIET)
    torch.testing.assert_close(newest(again), newest(whole), rtol=0, atol=0)
    for name in ("loss", "cg_iterations", "samples_gradient", "held_out_loss_after"):
        assert metrics(again, name) == metrics(whole, name)


def test_an_epoch_is_a_step_and_passes_are_counted(recipe, tmp_path):
    whole = train(load_recipe(recipe, [*HESSIAN_FREE, "--update.curvature_cap", "0.5"]), tmp_path / "run", QUIET)
    summary = json.loads((whole / "result.json").read_text())["summary"]
    assert summary["steps"] == 8
    count = {role: sum(metrics(whole, f"passes_{role}")) for role in ("gradient", "curvature", "evaluate")}
    trained, held_out = 243, 27
    share = metrics(whole, "samples_curvature")[0] / trained
    assert count["gradient"] == 8 and metrics(whole, "samples_gradient")[0] == trained and share == 122 / 243
    assert summary["backward_passes"] == pytest.approx(8 + share * count["curvature"])
    assert summary["forward_passes"] == pytest.approx(
        8 + share * (2 * count["curvature"] + 8) + held_out / trained * count["evaluate"])


def test_the_report_shows_the_steps(recipe, tmp_path):
    whole = train(load_recipe(recipe, HESSIAN_FREE), tmp_path / "run", QUIET)
    page = write_report(whole).read_text()
    for caption in ("Hessian-free steps", "Conjugate gradient iterations", "Damping", "Reduction ratio",
                    "Samples per pass", "Seconds of a step", "Passes of a step", "Length of the step"):
        assert caption in page


@pytest.mark.parametrize("settings", [[], ["--update.sample_by", "utterance"], SEQUENCES,
                                      [*SEQUENCES, "--update.preconditioner", "lbfgs", "--update.sampling",
                                       "variance"]],
                         ids=["frames", "frames by utterance", "lattice-free", "lattice-free, sampled"])
def test_speech_criteria_are_lowered(tiny_speech_recipe, settings):
    run = build_run(load_recipe(tiny_speech_recipe, [*HESSIAN_FREE, *settings]), QUIET)
    before = run.task.evaluate(run.model)["loss"]
    reports = [run.strategy.step(run.source) for _ in range(5)]
    assert all(report.applied and report.extra["cg_iterations"] > 0 for report in reports)
    assert run.task.evaluate(run.model)["loss"] < 0.9 * before


def test_the_data_are_cut_by_utterance(tiny_speech_recipe):
    chosen = load_recipe(tiny_speech_recipe, [*HESSIAN_FREE, "--update.held_out", "0.2"])
    task = build_task(chosen, torch.device("cpu"), QUIET)
    task.bind(build_model(chosen, task.num_inputs, task.num_outputs))
    data = HessianFreeData(task, task.source(64, 1), chosen.update, 64, seed=1)
    held_out, trained = (data.units[role][0] for role in ("evaluate", "gradient"))
    offsets = task.parts["train"].offsets
    assert torch.cat([held_out, trained]).sort().values.tolist() == list(range(offsets[-1]))
    utterance = torch.searchsorted(torch.as_tensor(offsets), held_out, right=True)
    assert not set(utterance.tolist()) & set(torch.searchsorted(torch.as_tensor(offsets), trained, right=True).tolist())
    assert 0.15 < len(held_out) / offsets[-1] < 0.3


def test_a_cut_leaves_something_on_both_sides():
    for share in (0.01, 0.5, 0.99):
        held_out, kept = cut(torch.tensor([5, 1, 3]), share, seed=0)
        assert len(held_out) and len(kept) and sorted([*held_out.tolist(), *kept.tolist()]) == [0, 1, 2]
    with pytest.raises(ConfigError, match="cannot be cut in two"):
        cut(torch.tensor([5]), 0.1, seed=0)


@pytest.mark.parametrize("settings", [[], [*SEQUENCES, "--update.preconditioner", "lbfgs", "--update.sampling",
                                           "geometric"]], ids=["frames", "lattice-free"])
def test_the_result_does_not_depend_on_the_number_of_workers(tiny_speech_recipe, settings):
    chosen = load_recipe(tiny_speech_recipe, [*HESSIAN_FREE, *settings])
    task = build_task(chosen, torch.device("cpu"), QUIET)
    start = build_model(chosen, task.num_inputs, task.num_outputs)
    task.bind(start)

    def work(reducer):
        model = copy.deepcopy(start)
        _, strategy, source = build_hessian_free(chosen, task, model, task.source(64, 1), reducer)
        reports = [strategy.step(source) for _ in range(3)]
        return torch.nn.utils.parameters_to_vector(model.parameters()), [(r.loss, r.errors, r.forward) for r in reports]

    (alone, reports), = run_workers(work, 1)
    assert reports[-1][0] < reports[0][0]
    for world in (2, 4):
        for parameters, others in run_workers(work, world):
            assert torch.equal(parameters, alone) and others == reports


class LosesAnother(LocalReducer):
    """Two workers, of which the other is lost in the n-th sum of a step."""

    def __init__(self, lost_in):
        self.lost_in, self.calls, self.rank, self.world, self.generation = lost_in, 0, 0, 2, 0

    def sum_(self, flat, weight=0.0):
        self.calls += 1
        if self.calls == self.lost_in:
            self.world, self.generation = 1, 1
            raise MemberLost([1], 0)
        return super().sum_(flat, weight)


@pytest.mark.parametrize("lost_in", [1, 3, 7])
def test_a_lost_worker_repeats_the_step_and_changes_nothing(recipe, lost_in):
    chosen = load_recipe(recipe, [*HESSIAN_FREE, "--update.preconditioner", "lbfgs"])
    task = build_task(chosen, torch.device("cpu"), QUIET)
    found = []
    for reducer in (None, LosesAnother(lost_in)):
        model = build_model(chosen, task.num_inputs, task.num_outputs)
        _, strategy, source = build_hessian_free(chosen, task, model, task.source(64, 1), reducer)
        reports = [strategy.step(source) for _ in range(2)]
        found.append((list(model.parameters()), [(r.loss, r.errors, r.forward) for r in reports]))
    torch.testing.assert_close(*(parameters for parameters, _ in found), rtol=0, atol=0)
    assert found[0][1] == found[1][1]


def test_statistics_that_each_worker_would_keep_for_itself_are_refused(tiny_speech_recipe):
    chosen = load_recipe(tiny_speech_recipe, [*HESSIAN_FREE, *SEQUENCES, "--model.norm", "batch"])
    task = build_task(chosen, torch.device("cpu"), QUIET)
    model = build_model(chosen, task.num_inputs, task.num_outputs)
    task.bind(model)
    build_hessian_free(chosen, task, model, task.source(64, 1))
    two = SimpleNamespace(rank=0, world=2, generation=0)
    with pytest.raises(ConfigError, match="running statistics"):
        build_hessian_free(chosen, task, model, task.source(64, 1), two)


def test_a_loss_that_is_not_finite_stops_the_run(recipe, tmp_path, monkeypatch):
    original = CrossEntropy.__call__

    def nan(self, outputs, targets):
        objective = original(self, outputs, targets)
        return type(objective)(objective.loss * float("nan"), objective.weight, objective.errors)

    monkeypatch.setattr(CrossEntropy, "__call__", nan)
    with pytest.raises(NonFiniteError, match="step 1: loss nan"):
        train(load_recipe(recipe, HESSIAN_FREE), tmp_path / "run", QUIET)


SENSELESS = {
    "natural gradient": (["--gradient.kind", "natural"], "gradient.kind = 'natural'"),
    "backstitch": (["--backstitch.scale", "0.3"], "backstitch.scale"),
    "clipping": (["--train.clip", "1"], "train.clip"),
    "bfloat16": (["--train.precision", "bf16"], "bf16"),
    "a schedule": (["--schedule.kind", "cosine"], "the line search sets the length"),
    "utterances of images": (["--update.sample_by", "utterance"], "no utterances"),
    "pairs of nothing": (["--update.rebuild", "within"], "rebuild = 'within'"),
    "shards": (["--update.shards", "3"], "power of two"),
}


@pytest.mark.parametrize(("settings", "message"), SENSELESS.values(), ids=SENSELESS)
def test_senseless_combinations_are_refused_with_the_reason(recipe, settings, message):
    with pytest.raises(ConfigError, match=message):
        build_run(load_recipe(recipe, [*HESSIAN_FREE, *settings]), QUIET)


def test_frames_of_a_sequence_criterion_are_refused(tiny_speech_recipe):
    with pytest.raises(ConfigError, match="alone has no loss"):
        build_run(load_recipe(tiny_speech_recipe, [*HESSIAN_FREE, *SEQUENCES, "--update.sample_by", "frame"]), QUIET)


def test_options_document_themselves():
    assert o.HessianFree().damping == 0.1 and "held_out" in o.HessianFree.__doc__
