"""Runs with lattice criteria on the tiny corpus, from one cross-entropy run."""

import json

import pytest
import torch

from hemstitch.errors import ConfigError
from hemstitch.train import Console, Interrupted, _loop, load_recipe, resume, train
from hemstitch.train._build import build_run
from hemstitch.train._checkpoint import load_checkpoint
from hemstitch.train._experiments._runs import complete
from hemstitch.train._lattice_criteria import pdf_phones
from hemstitch.train._run_folder import RunFolder
from tiny_speech import speech_recipe

QUIET = Console(quiet=True)
KINDS = {"mmi": [], "boosted-mmi": ["--criterion.boost", "0.5"], "mpe": [], "smbr": ["--criterion.smoothing", "0.1"]}
FRAMES = ["--criterion.unit", "frame", "--train.batch_size", "32", "--update.lr", "0.0005"]


@pytest.fixture(scope="module")
def speech(tiny_corpus, tmp_path_factory):
    """A recipe whose network is not sure of its words yet, and the run that trained it."""
    folder = tmp_path_factory.mktemp("start")
    path = speech_recipe(folder / "recipe.toml", tiny_corpus)
    settings = ["--update.lr", "0.003", "--train.epochs", "1", "--decode.acoustic_scale", "[0.2]"]
    return path, train(load_recipe(path, settings), folder / "run", QUIET)


def settings(speech, kind, *more):
    rate = [] if "--update.kind" in more or "--update.lr" in more else ["--update.lr", "0.003"]
    return load_recipe(speech[0], [
        "--start.run", str(speech[1]), "--start.alignment", "true", "--criterion.kind", kind, "--train.epochs", "2",
        "--criterion.acoustic_scale", "0.5", "--train.batch_size", "4", "--model.dropout", "0",
        "--criterion.tolerance", "0.01", *rate, *more])  # fmt: skip


def values(folder, split, name):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["value"] for row in rows if (row["split"], row["name"]) == (split, name)]


def errors(folder):
    return json.loads((folder / "result.json").read_text())["wer"]["test"]["rate"]


@pytest.mark.parametrize("kind", ["mmi", "mpe"])
def test_with_words_as_the_reference_the_criterion_goes_down_and_words_stay_right(speech, tmp_path, kind):
    recipe = settings(speech, kind, "--criterion.numerator", "words")
    before = build_run(recipe, QUIET)
    start = before.task.evaluate(before.model)
    run = train(recipe, tmp_path / "run", QUIET)
    assert values(run, "dev", "loss")[-1] < start["loss"]
    assert errors(run) <= errors(speech[1])


@pytest.mark.parametrize("unit", [[], FRAMES], ids=["utterances", "frames"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_goes_down_and_resumes_to_the_same_bits(speech, tmp_path, monkeypatch, kind, unit):
    recipe = settings(speech, kind, *KINDS[kind], *unit, "--train.log_every", "2")
    before = build_run(recipe, QUIET)
    start = before.task.evaluate(before.model)
    whole = train(recipe, tmp_path / "whole", QUIET)
    assert values(whole, "dev", "loss")[-1] < start["loss"]
    assert {"wer", "error", "left_out"} <= start.keys() and values(whole, "dev", "left_out") == [0.0, 0.0]
    assert not values(whole, "train", "error")  # nothing is counted frame by frame
    assert values(whole, "train", "cancelled_frames") and values(whole, "train", "arcs_per_frame")[0] > 1
    assert errors(whole) <= errors(speech[1])
    original = _loop.Loop.one_step

    def one_step(loop):
        original(loop)
        loop.stop_requested = loop.progress.step == 5

    monkeypatch.setattr(_loop.Loop, "one_step", one_step)
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "stopped", QUIET)
    monkeypatch.setattr(_loop.Loop, "one_step", original)
    resume(tmp_path / "stopped", QUIET)
    a, b = (load_checkpoint(RunFolder.open(f).checkpoints()[-1]) for f in (whole, tmp_path / "stopped"))
    for key in ("model", "task"):
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=0)


def gradient(run, batch):
    """(gradient of the summed loss, the loss)."""
    run.model.zero_grad()
    objective = run.task.criterion(run.model(batch.inputs), batch.targets)
    objective.loss.backward()
    return torch.cat([p.grad.reshape(-1) for p in run.model.parameters()]), float(objective.loss.detach())


def test_frames_with_outer_gradients_add_up_to_the_gradient_of_their_utterances(speech):
    everyone = torch.arange(6)
    whole = build_run(settings(speech, "mmi", "--criterion.tolerance", "0"), QUIET)
    expected, loss = gradient(whole, whole.source.select(everyone))
    for auxiliary in ("tangent", "bound"):
        run = build_run(settings(speech, "mmi", *FRAMES, "--criterion.tolerance", "0", "--criterion.auxiliary",
                                 auxiliary), QUIET)
        found, value = gradient(run, run.source.select(everyone))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        assert value == pytest.approx(loss, rel=1e-3)


def test_without_its_denominator_it_is_scaled_cross_entropy(speech):
    run = build_run(settings(speech, "mmi", "--criterion.denominator", "false", "--criterion.tolerance", "0"), QUIET)
    batch = run.source.select(torch.arange(3))
    outputs = run.model(batch.inputs)
    losses = [torch.nn.functional.cross_entropy(outputs[b, :n], torch.from_numpy(pdfs), reduction="sum")
              for b, (n, pdfs) in enumerate(zip(batch.targets.lengths, batch.targets.pdfs))]
    objective = run.task.criterion(outputs, batch.targets)
    assert float(objective.loss.detach()) == pytest.approx(0.5 * float(sum(losses).detach()), rel=1e-5)


@pytest.mark.parametrize("silence", ["false", "true"], ids=["", "silence as it is"])
def test_without_its_denominator_frames_have_the_gradient_of_the_moment(speech, silence):
    run = build_run(settings(speech, "mmi", *FRAMES, "--criterion.denominator", "false", "--criterion.tolerance", "0",
                             "--criterion.smoothing", "0.2", "--criterion.fix_silence", silence), QUIET)
    batch = run.source.select(torch.arange(3))
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.mul_(1.5)  # far from where the frames were loaded
    outputs = run.model(batch.inputs)[:, 0].detach().requires_grad_()
    objective = run.task.criterion(outputs[:, None], batch.targets)
    objective.loss.backward()
    frames = batch.targets[0].frames
    targets = run.task.parts["train"].targets[frames].long()
    expected = 0.6 * (outputs.detach().softmax(1) - torch.nn.functional.one_hot(targets, outputs.shape[1]))
    expected[:, list(run.task.objective.options.fixed_pdfs)] = 0.0
    torch.testing.assert_close(outputs.grad, expected)
    loss = 0.6 * float(torch.nn.functional.cross_entropy(outputs.detach(), targets, reduction="sum"))
    assert float(objective.loss.detach()) == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("realign", ["once", "epoch", "on-the-fly"])
def test_transcripts_are_aligned_anew_when_asked(speech, tmp_path, realign):
    run = build_run(settings(speech, "mmi", "--criterion.realign", realign), QUIET)
    before, priors = run.task.parts["train"].targets.clone(), run.task.log_priors()
    run.loop(RunFolder.create(tmp_path / "run", {})).run()
    after = run.task.parts["train"].targets
    assert 0 < int((before != after).sum()) < 0.5 * len(before) and run.task.log_priors() is priors


def test_a_penalty_keeps_the_network_near_its_beginning(speech, tmp_path):
    moved = []
    for strength in ("0", "30"):
        run = build_run(settings(speech, "mmi", "--criterion.start_l2", strength), QUIET)
        at = [p.detach().clone() for p in run.model.parameters()]
        loop = run.loop(RunFolder.create(tmp_path / strength, {}))
        loop.run()
        moved.append(sum(float((p.detach() - q).square().sum()) for p, q in zip(run.model.parameters(), at)))
        if strength != "0":
            saved = load_checkpoint(loop.folder.checkpoints()[-1])["task"]["start"]
            assert all(torch.equal(p, q) for p, q in zip(saved, at))
    assert moved[1] < 0.5 * moved[0]


def test_silence_can_be_left_as_it_is(speech):
    run = build_run(settings(speech, "mmi", "--criterion.fix_silence", "true"), QUIET)
    gradient(run, run.source.select(torch.arange(4)))
    layer = list(run.model.parameters())[-1].grad
    assert layer[0] == 0 and layer[1:].abs().max() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_hessian_free_steps_on_a_lattice_criterion(speech, tmp_path, kind):
    recipe = settings(speech, kind, "--update.kind", "hessian-free", "--train.epochs", "1", "--update.max_cg", "5")
    before = build_run(recipe, QUIET)
    start = before.task.evaluate(before.model)["loss"]
    folder = train(recipe, tmp_path / "run", QUIET)
    assert not values(folder, "train", "error")
    assert values(folder, "train", "accepted") == [1.0] and values(folder, "dev", "loss")[-1] < start


def test_two_stages_share_their_first_one(tiny_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = speech_recipe(tmp_path / "first.toml", tiny_corpus)
    (tmp_path / "second.toml").write_text(f"""
extends = "first.toml"
[start]
recipe = "{first}"
alignment = true
[criterion]
kind = "smbr"
[train]
epochs = 1
batch_size = 4
""")
    runs = [train(load_recipe(tmp_path / "second.toml", ["--criterion.kind", kind]), tmp_path / kind, QUIET)
            for kind in ("mmi", "smbr")]
    stages = list((tmp_path / "runs" / "starts").iterdir())
    assert len(stages) == 1 and (stages[0] / "result.json").exists()
    for run in runs:
        config = json.loads((run / "config.json").read_text())
        assert (tmp_path / config["start.run"]["value"]) == stages[0] and config["start.recipe"]["value"] is None
    again = complete(load_recipe(tmp_path / "second.toml", ["--criterion.kind", "mmi"]), tmp_path / "mmi", QUIET)
    assert again["status"] == "finished"
    train(load_recipe(tmp_path / "second.toml", ["--seed", "2"]), tmp_path / "other", QUIET)
    assert len(list((tmp_path / "runs" / "starts").iterdir())) == 2


@pytest.mark.parametrize(("more", "message"), [
    (["--hmm.topology", "chain"], "left-to-right"),
    ([*FRAMES, "--model.kind", "blstm"], "whole ones"),
    ([*FRAMES[:4], "--update.kind", "hessian-free"], "older than the parameters"),
    ([*FRAMES, "--order.kind", "backward"], "another order"),
    ([*FRAMES, "--parallel.kind", "virtual-averaging"], "shared out over workers"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(speech, more, message):
    with pytest.raises(ConfigError, match=message):
        build_run(load_recipe(speech[0], ["--criterion.kind", "mmi", *more]), QUIET)


@pytest.mark.parametrize(("kind", "more", "message"), [
    ("smbr", ["--criterion.auxiliary", "bound", "--criterion.unit", "frame"], "no bound"),
    ("mmi", ["--criterion.auxiliary", "bound"], "unit = 'frame'"),
    ("mpe", ["--criterion.denominator", "false"], "control"),
    ("mmi", ["--criterion.acoustic_scale", "0"], "above 0"),
])  # fmt: skip
def test_options_out_of_range_are_refused(speech, kind, more, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe(speech[0], ["--criterion.kind", kind, *more])


def test_phones_are_the_same_wherever_in_a_word_they_stand(tiny_corpus, tmp_path):
    path = speech_recipe(tmp_path / "recipe.toml", tiny_corpus)
    run = build_run(load_recipe(path, ["--hmm.position_dependent", "true", "--criterion.kind", "mpe"]), QUIET)
    phones = pdf_phones(run.task.topology, True)
    names = [run.task.topology.phones[i].rpartition("_")[0] for i in range(1, len(phones))]
    assert len(set(phones.tolist())) == 4 and len(phones) == 1 + 6
    assert all((phones[i + 1] == phones[j + 1]) == (a == b) for i, a in enumerate(names) for j, b in enumerate(names))
