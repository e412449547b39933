"""Lattice-free MMI in recipes: alignments, chunks, second head, ties, and what happens when something is wrong."""

import json
import shutil

import numpy as np
import pytest
import torch

from hemstitch.errors import ConfigError, NonFiniteError, RunError
from hemstitch.train import Console, Interrupted, load_recipe, load_trained, resume, train
from hemstitch.train._build import build_run
from hemstitch.train._checkpoint import load_checkpoint
from hemstitch.train._run import dry_run
from hemstitch.train._run_folder import RunFolder
from tiny_speech import speech_recipe

QUIET = Console(quiet=True)
LATTICE_FREE = ["--criterion.kind", "lattice-free-mmi", "--hmm.topology", "chain", "--hmm.realign", "[]",
                "--hmm.flat_start", "3", "--criterion.lm_order", "2", "--train.batch_size", "6",
                "--criterion.length_step", "20", "--train.epochs", "10", "--gradient.kind", "natural",
                "--update.kind", "max-change-sgd", "--update.lr", "0.5", "--decode.acoustic_scale", "[1.0]",
                "--decode.beam", "30", "--model.kind", "tdnn", "--model.width", "16",
                "--model.offsets", "[[-2,-1,0,1,2],[-3,0,3]]", "--model.subsampling", "3"]  # fmt: skip
ALIGNED = ["--criterion.numerator", "alignments"]
CHUNKS = [*ALIGNED, "--criterion.chunk", "30", "--train.batch_size", "10"]
VARIANTS = {
    "whole utterances, end to end": [],
    "aligned": ALIGNED,
    "chunks, second head, range penalty": [*CHUNKS, "--criterion.xent_regularize", "0.1",
                                           "--criterion.range_penalty", "0.01"],
    "biphones": [*CHUNKS, "--hmm.context", "left", "--hmm.leaves", "12", "--hmm.leaf_frames", "20"],
}  # fmt: skip


@pytest.fixture
def recipe(tiny_corpus, tmp_path):
    return speech_recipe(tmp_path / "recipe.toml", tiny_corpus)


def events(folder):
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def wer(folder):
    return json.loads((folder / "result.json").read_text())["wer"]["test"]["rate"]


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_it_learns_the_words_resumes_to_the_same_bits_and_decodes_again(recipe, tmp_path, monkeypatch, settings):
    from hemstitch.train import _loop

    chosen = load_recipe(recipe, [*LATTICE_FREE, *settings])
    whole = train(chosen, tmp_path / "whole", QUIET)
    assert wer(whole) < 0.1
    original = _loop.Loop.one_step

    def one_step(loop):
        original(loop)
        loop.stop_requested = loop.progress.step == 13

    monkeypatch.setattr(_loop.Loop, "one_step", one_step)
    with pytest.raises(Interrupted):
        train(chosen, tmp_path / "stopped", QUIET)
    monkeypatch.setattr(_loop.Loop, "one_step", original)
    resume(tmp_path / "stopped", QUIET)
    a, b = (load_checkpoint(RunFolder.open(f).checkpoints()[-1]) for f in (whole, tmp_path / "stopped"))
    torch.testing.assert_close(a["model"], b["model"], rtol=0, atol=0)
    run, folder = load_trained(whole, QUIET)
    assert run.task.decode(run.model, folder, ("test",), QUIET)["wer"]["test"]["rate"] == wer(whole)


def test_the_network_of_another_run_may_align(recipe, tmp_path):
    teacher = train(load_recipe(recipe), tmp_path / "teacher", QUIET)
    aligned = [*LATTICE_FREE, *CHUNKS, "--criterion.alignments", str(teacher)]
    run = build_run(load_recipe(recipe, aligned), QUIET)
    flat = build_run(load_recipe(recipe, [*LATTICE_FREE, *CHUNKS]), QUIET)
    for ours, others in zip(run.task.phones["dev"], flat.task.phones["dev"]):
        assert ours.phones == others.phones  # the phones are clear, their borders nearly
        assert np.median(np.abs(np.cumsum(ours.frames) - np.cumsum(others.frames))) <= 1
    with pytest.raises(ConfigError, match="other \\[features\\]"):
        build_run(load_recipe(recipe, [*aligned, "--features.deltas", "1"]), QUIET)
    with pytest.raises(ConfigError, match="expected a run with criterion.kind = 'cross-entropy'"):
        wrong = train(load_recipe(recipe, [*LATTICE_FREE, "--train.epochs", "1"]), tmp_path / "wrong", QUIET)
        build_run(load_recipe(recipe, [*aligned[:-1], str(wrong)]), QUIET)


def test_a_dry_run_shows_the_outputs_that_are_searched(recipe):
    shown = dry_run(load_recipe(recipe, [*LATTICE_FREE, "--criterion.xent_regularize", "0.1"]), QUIET)
    assert shown["output batch"][0] == 6 and shown["output batch"][2] == 8  # 3 phones and silence, 2 pdfs each


@pytest.mark.parametrize(("settings", "message"), [
    (["--hmm.topology", "left-to-right"], "needs hmm.topology = 'chain'"),
    (["--criterion.chunk", "30"], "chunk = 30 needs numerator = 'alignments'"),
    ([*ALIGNED, "--criterion.chunk", "31"], "must be a multiple of the network's subsampling, 3"),
    (["--hmm.context", "both"], "hmm.context = 'left' or 'none'"),
    (["--model.kind", "feed-forward", "--criterion.xent_regularize", "0.1"], "second output layer"),
    (["--criterion.leak", "-1"], "leak must not be negative"),
])  # fmt: skip
def test_combinations_without_sense_are_refused(recipe, settings, message):
    options = LATTICE_FREE[:LATTICE_FREE.index("--model.kind")] if "feed-forward" in settings else LATTICE_FREE
    with pytest.raises(ConfigError, match=message):
        build_run(load_recipe(recipe, [*options, *settings]), QUIET)


def test_shifts_take_turns_and_every_item_has_each_in_three_epochs(recipe):
    run = build_run(load_recipe(recipe, [*LATTICE_FREE, *CHUNKS]), QUIET)
    stream, count = run.source.indices, len(run.task.pieces["train"].utterance)
    seen = torch.cat([stream.next() for _ in range(3 * stream.batches_per_epoch)])
    assert sorted(seen.tolist()) == list(range(3 * count))
    a, b = (run.source.select(torch.tensor([item])).inputs for item in (5, 5 + 2 * count))
    assert torch.equal(a[:, 2:], b[:, :-2]) and not torch.equal(a, b)


def test_scores_can_be_the_mean_over_first_frames(recipe):
    averaged = build_run(load_recipe(recipe, [*LATTICE_FREE, "--decode.average_shifts", "true"]), QUIET)
    part, model = averaged.task.parts["dev"], averaged.model
    for parameter in model.parameters():  # the output layer begins at zero
        torch.nn.init.normal_(parameter, std=0.3)
    scores, offsets = averaged.task.scores(model, part)
    frames, expected = part.windows.utterance(1), 0
    with torch.no_grad():
        for shift in range(3):
            later = frames[[min(t + shift, len(frames) - 1) for t in range(len(frames))]]
            expected = expected + model.eval()(later[None])[0] / 3
    torch.testing.assert_close(scores[offsets[1]:offsets[2]], expected)
    assert not torch.allclose(scores[offsets[1]:offsets[2]], model(frames[None])[0].detach())
    with pytest.raises(ConfigError, match="average_shifts is for criterion.kind = 'lattice-free-mmi'"):
        load_recipe(recipe, ["--decode.average_shifts", "true"])


def test_weights_of_utterances_scale_their_gradient(tiny_corpus, tmp_path):
    corpus = tmp_path / "corpus"
    shutil.copytree(tiny_corpus, corpus)
    rows = [json.loads(line) for line in (corpus / "utterances.jsonl").read_text().splitlines()]
    rows[0]["info"] = {"weight": 0.0}
    (corpus / "utterances.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = speech_recipe(tmp_path / "recipe.toml", corpus)
    run = build_run(load_recipe(path, [*LATTICE_FREE, "--data.dev_seed", "3"]), QUIET)
    item = [u.id for u in run.task.parts["train"].utterances].index(rows[0]["id"])
    batch = run.source.select(torch.tensor([item]))
    outputs = torch.randn(1, int(batch.targets.lengths), run.task.num_outputs, requires_grad=True)
    objective = run.task.criterion(outputs, batch.targets)
    objective.loss.backward()
    assert objective.weight == 0 and not outputs.grad.any()


# -- what goes wrong -------------------------------------------------------------------------------------------------


def test_phones_in_an_unheard_order_are_reported_and_do_not_count(recipe, tmp_path):
    chosen = load_recipe(recipe, [*LATTICE_FREE, "--criterion.lm_order", "6", "--criterion.num_extra_states", "1000",
                                  "--hmm.silence_probability", "0.01", "--train.epochs", "1"])
    folder = train(chosen, tmp_path / "run", QUIET)
    reported = [e["message"] for e in events(folder) if e["kind"] == "skipped"]
    assert len(reported) == 1 and "lower criterion.lm_order" in reported[0] and reported[0].startswith("dev part")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    dev = {row["name"]: row["value"] for row in rows if row["split"] == "dev"}
    assert 0 < dev["skipped"] < 1 and np.isfinite(dev["loss"])


def test_shuffles_let_all_words_compete_in_any_order(recipe):
    def without(*settings):
        unheard = ["--criterion.lm_order", "6", "--hmm.silence_probability", "0.01"]
        task = build_run(load_recipe(recipe, [*LATTICE_FREE, *unheard, *settings]), QUIET).task
        items = torch.arange(len(task.pieces["dev"].utterance))
        return sum(graph is None for graph in task.graphs("dev", items)), task.denominator.num_arcs

    (heard, arcs), (dealt, more_arcs) = without(), without("--criterion.lm_shuffles", "20")
    assert heard > dealt == 0 and more_arcs > arcs


def test_more_phones_than_output_frames_are_reported_and_do_not_count(tiny_corpus, tmp_path):
    corpus = tmp_path / "corpus"
    shutil.copytree(tiny_corpus, corpus)
    rows = [json.loads(line) for line in (corpus / "utterances.jsonl").read_text().splitlines()]
    rows[0]["features"][2] = rows[0]["features"][1] + 8  # six phones in three output frames
    (corpus / "utterances.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = speech_recipe(tmp_path / "recipe.toml", corpus)
    folder = train(load_recipe(path, [*LATTICE_FREE, "--criterion.length_step", "1", "--train.epochs", "1",
                                      "--data.dev_seed", "3"]), tmp_path / "run", QUIET)  # fmt: skip
    reported = [e["message"] for e in events(folder) if e["kind"] == "skipped"]
    assert len(reported) == 1 and f"1 of 30 utterances, such as {rows[0]['id']}," in reported[0]


def test_a_batch_without_any_path_changes_nothing_and_the_run_goes_on(recipe, tmp_path):
    run = build_run(load_recipe(recipe, LATTICE_FREE), QUIET)
    run.task.numerators["train"] = lambda *key: None
    before = {name: p.clone() for name, p in run.model.named_parameters()}
    report = run.strategy.step(run.source)
    assert report.applied and report.loss == 0 and report.weight == 0
    torch.testing.assert_close(dict(run.model.named_parameters()), before, rtol=0, atol=0)


def test_outputs_that_are_not_finite_stop_the_run_and_touch_nothing(recipe, tmp_path):
    run = build_run(load_recipe(recipe, LATTICE_FREE), QUIET)
    with torch.no_grad():
        run.model.output.bias[0] = torch.nan
    before = {name: p.clone() for name, p in run.model.named_parameters()}
    with pytest.raises(NonFiniteError, match="parameters were not touched"):
        run.loop(RunFolder.create(tmp_path / "run", {})).run()
    torch.testing.assert_close(dict(run.model.named_parameters()), before, rtol=0, atol=0, equal_nan=True)


def test_wildly_peaked_outputs_have_a_finite_loss_and_gradient(recipe):
    run = build_run(load_recipe(recipe, [*LATTICE_FREE, *CHUNKS]), QUIET)
    batch = run.source.select(torch.arange(4))
    shape = (4, int(batch.targets.lengths[0]), run.task.num_outputs)
    for size in (1e2, 1e4, 1e30):
        outputs = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) * size).requires_grad_()
        objective = run.task.criterion(outputs, batch.targets)
        objective.loss.backward()
        assert objective.loss.isfinite() and outputs.grad.isfinite().all()


# -- graph and network -----------------------------------------------------------------------------------------------


def test_a_network_is_not_searched_with_other_units(tiny_corpus, tmp_path):
    corpus = tmp_path / "corpus"
    shutil.copytree(tiny_corpus, corpus)
    folder = train(load_recipe(speech_recipe(tmp_path / "recipe.toml", corpus), [*LATTICE_FREE, "--train.epochs", "1"]),
                   tmp_path / "run", QUIET)  # fmt: skip
    lexicon = (corpus / "lexicon.txt").read_text()
    (corpus / "lexicon.txt").write_text(lexicon + "AGAIN A B C\n")  # the same phones: fine
    load_trained(folder, QUIET)
    (corpus / "lexicon.txt").write_text(lexicon.replace(" A", " Z"))  # as many phones, in another order
    with pytest.raises(RunError, match="its outputs stand for other phones or states"):
        load_trained(folder, QUIET)


def test_a_scale_made_for_posteriors_is_warned_of(recipe, tmp_path, capsys):
    folder = train(load_recipe(recipe, [*LATTICE_FREE, "--train.epochs", "1"]), tmp_path / "run", QUIET)
    run, opened = load_trained(folder, Console(), {"decode.acoustic_scale": [0.1]})
    run.task.decode(run.model, opened, ("test",), Console())
    assert "searched at a scale of about 1" in " ".join(capsys.readouterr().err.split())
