import json
import math

import pytest

from hemstitch.cli import main
from hemstitch.errors import ConfigError, RunError
from hemstitch.report import align_words, count_errors
from hemstitch.speech import Corpus
from hemstitch.train import Console, Method, cross_validate, load_recipe
from hemstitch.train._experiments._pooling import ANSWERS, pool, read_answers
from hemstitch.train._experiments._runs import vary
from hemstitch.train._run_folder import RunFolder

QUIET = Console(quiet=True)
FOLDS, SEEDS = 4, (1, 2)


@pytest.fixture(scope="module")
def speech(tiny_speech_recipe):
    """A recipe that learns its words, and one that hardly does."""
    good = load_recipe(tiny_speech_recipe, ["--train.epochs", "3", "--name", "good"])
    return good, vary(good, {"update.lr": 0.002, "name": "poor"}, "test")


@pytest.fixture(scope="module")
def compared(speech, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared")
    methods = [Method(name=recipe.name, recipe=recipe, paper="12.3 %") for recipe in speech]
    return cross_validate(methods, folds=FOLDS, seeds=SEEDS, out=out, console=QUIET), out


@pytest.fixture
def images(tiny_recipe):
    recipe = load_recipe(tiny_recipe)
    return [Method(name="A", recipe=recipe), Method(name="B", recipe=vary(recipe, {"update.lr": 1e-6}, "test"))]


def rows(run):
    return [json.loads(line) for line in (run / "decode" / "test.jsonl").read_text().splitlines()]


def test_every_method_and_seed_is_tested_on_the_same_folds(compared, tiny_corpus):
    _, out = compared
    folds = Corpus.load(tiny_corpus).speaker_folds(FOLDS)
    for number, corpus in enumerate(folds, start=1):
        expected = [u.id for u in corpus.select("test")]
        runs = [out / method / f"fold={number},seed={seed}" for method in ("good", "poor") for seed in SEEDS]
        assert all([row["id"] for row in rows(run)] == expected for run in runs)
        devs = [(run / "decode" / "dev.jsonl").read_text().count("\n") for run in runs]
        assert len(set(devs)) == 1 and 0 < devs[0] < len(expected)
        configs = [RunFolder.open(run).config() for run in runs]
        assert {c["data.fold"]["value"] for c in configs} == {number}
        assert {c["data.fold"]["origin"] for c in configs} == {"cross-validation"}


def test_the_errors_of_all_folds_are_one_test(compared, tiny_corpus):
    result, out = compared
    corpus = Corpus.load(tiny_corpus)
    assert result.words == sum(len(u.words) for u in corpus) and result.units == len(corpus.speakers)
    for method in result.methods:
        for seed in SEEDS:
            found = [r for k in range(FOLDS) for r in rows(out / method.name / f"fold={k + 1},seed={seed}")]
            assert sorted(row["id"] for row in found) == sorted(u.id for u in corpus)
            errors = [count_errors(align_words(r["reference"].split(), r["hypothesis"].split())) for r in found]
            assert method.seeds[seed] == pytest.approx(sum(e.total for e in errors) / result.words)
            official = json.loads((out / method.name / f"official,seed={seed}" / "result.json").read_text())
            assert method.official[seed] == official["wer"]["test"]["rate"]
        assert method.rate == pytest.approx(sum(method.seeds.values()) / 2) and method.low <= method.rate <= method.high
        assert method.cost.runs == 2 * FOLDS and method.cost.forward_passes == 2 * FOLDS * 3


def test_the_better_method_is_found(compared):
    result, _ = compared
    (pair,) = result.comparisons
    good, poor = result.methods
    assert (pair.a, pair.b, pair.gain.verdict) == ("good", "poor", "better")
    assert pair.gain.absolute == pytest.approx(poor.rate - good.rate) and 0.1 < pair.gain.absolute
    assert pair.gain.relative == pytest.approx(1 - good.rate / poor.rate)
    assert pair.gain.probability > 0.99 and pair.gain.relative_high <= 1


def test_its_file_holds_what_a_page_of_results_needs(compared):
    result, out = compared
    content = json.loads((out / "cross-validation.json").read_text(), parse_constant=pytest.fail)
    good = content["methods"][0]
    assert good["paper"] == "12.3 %" and good["tuning"] is None and good["settings"]["update.lr"] == 0.02
    assert {"rate", "low", "high", "seeds", "official", "cost", "errors"} <= good.keys()
    assert content["comparisons"][0]["relative"] == result.comparisons[0].gain.relative
    assert content["measure"] == "WER" and content["seeds"] == [1, 2] and content["environment"]["command"]


def test_a_finished_comparison_is_left_alone_and_another_seed_adds_to_it(compared, speech):
    result, out = compared
    methods = [Method(name=recipe.name, recipe=recipe) for recipe in speech]
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*/*") if path.is_file()}
    again = cross_validate(methods, folds=FOLDS, seeds=SEEDS, out=out, console=QUIET)
    assert again.methods == result.methods and again.comparisons == result.comparisons
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*/*") if path.is_file()} == before
    one_seed = cross_validate(methods, folds=FOLDS, seeds=[2], official=False, out=out, console=QUIET)
    assert one_seed.methods[0].seeds == {2: result.methods[0].seeds[2]} and one_seed.methods[0].official == {}
    assert math.isnan(one_seed.comparisons[0].gain.luck)


def test_images_are_compared_by_folds_of_examples(images, tmp_path):
    result = cross_validate(images, folds=3, seeds=[1], out=tmp_path, console=QUIET)
    assert (result.measure, result.words, result.units) == ("error rate", 390, 120)
    seen = []
    for fold in (1, 2, 3):
        run = tmp_path / "A" / f"fold={fold},seed=1"
        answers = read_answers(run)
        seen += [row["id"] for row in answers]
        wrong = sum(row["reference"] != row["hypothesis"] for row in answers) / len(answers)
        accuracy = json.loads((run / "result.json").read_text())["accuracy"]
        assert wrong == pytest.approx(1 - accuracy["test"])
        assert answers != read_answers(tmp_path / "B" / f"fold={fold},seed=1")
    assert sorted(map(int, seen)) == list(range(390))
    assert result.comparisons[0].gain.verdict == "better"
    assert result.methods[0].rate == 0 < result.methods[1].rate


def test_a_killed_comparison_continues(images, tmp_path, monkeypatch):
    from hemstitch.train import _loop

    whole = cross_validate(images, folds=2, seeds=[1], official=False, out=tmp_path / "whole", console=QUIET)
    original, steps = _loop.Loop.one_step, []

    def one_step(loop):
        original(loop)
        steps.append(loop)
        if len(steps) == 40:
            raise KeyboardInterrupt

    monkeypatch.setattr(_loop.Loop, "one_step", one_step)
    with pytest.raises(KeyboardInterrupt):
        cross_validate(images, folds=2, seeds=[1], official=False, out=tmp_path / "cut", console=QUIET)
    monkeypatch.setattr(_loop.Loop, "one_step", original)
    continued = cross_validate(images, folds=2, seeds=[1], official=False, out=tmp_path / "cut", console=QUIET)
    assert continued.comparisons[0].gain.by_seed == whole.comparisons[0].gain.by_seed
    assert [m.seeds for m in continued.methods] == [m.seeds for m in whole.methods]


def test_a_method_that_diverges_is_no_method(images, tmp_path):
    broken = Method(name="C", recipe=vary(images[0].recipe, {"update.lr": 1e30}, "test"))
    with pytest.raises(RunError, match=r"not finite.*A method must not fail on any fold: tune it first"):
        cross_validate([broken], folds=2, seeds=[1], out=tmp_path, console=QUIET)


def test_only_methods_on_the_same_data_are_compared(images, tmp_path):
    other = Method(name="C", recipe=vary(images[0].recipe, {"data.dev_share": 0.2}, "test"))
    with pytest.raises(ConfigError, match=r"A and C are to be compared on the same data, but data.dev_share is 0.1"):
        cross_validate([images[0], other], out=tmp_path, console=QUIET)
    with pytest.raises(ConfigError, match=r"different names and different seeds, got \['A', 'A'\]"):
        cross_validate([images[0], images[0]], out=tmp_path, console=QUIET)
    with pytest.raises(ConfigError, match="different seeds"):
        cross_validate(images, seeds=[1, 1], out=tmp_path, console=QUIET)


@pytest.mark.parametrize(
    ("fold_1", "fold_2", "message"),
    [
        ({"u": ("s", 3, 1), "v": ("t", 2, 0)}, {"w": ("s", 2, 0)}, "speaker s is in folds 1 and 2"),
        ({"u": ("s", 3, 1)}, {"v": ("t", 2, 0), "w": ("t", 1, 0)}, r"fold 2 was not the same for all runs.*\['w'\]"),
    ],
)
def test_what_was_not_tested_alike_is_not_pooled(fold_1, fold_2, message):
    first = {1: fold_1, 2: fold_2}
    second = {1: fold_1, 2: {u: c for u, c in fold_2.items() if u != "w"} if len(fold_2) > 1 else fold_2}
    with pytest.raises(RunError, match=message):
        pool(lambda m, s, fold: (second if m else first)[fold], 2, 1, 2, 10)


def test_missing_or_damaged_answers_are_named(tmp_path):
    with pytest.raises(RunError, match=f"no {ANSWERS[0]} or {ANSWERS[1]} there"):
        read_answers(tmp_path)
    (tmp_path / "decode").mkdir()
    (tmp_path / "decode" / "test.jsonl").write_text('{"id": "u"')
    with pytest.raises(RunError, match=r"test.jsonl is damaged"):
        read_answers(tmp_path)


@pytest.mark.parametrize(("setting", "message"), [("--data.fold=6", "0 .* to 5, got 6"), ("--data.folds=1", "least 2")])
def test_folds_that_do_not_exist_are_refused(tiny_recipe, setting, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe(tiny_recipe, [setting])


def test_from_the_command_line_and_from_a_sweep(tiny_recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    short = ["--quiet", "--train.epochs", "1"]
    assert main(["sweep", str(tiny_recipe), "--over", "update.lr=0.003,0.01", "--no-refine", *short]) == 0
    other = tmp_path / "other.toml"
    other.write_text(f'extends = "{tiny_recipe.name}"\nname = "other"\n[update]\nlr = 1e-5\n')
    assert main(["cross-validate", "runs/sweep-tiny", str(other), "--folds", "2", "--seeds", "1", *short]) == 0
    out = capsys.readouterr().out.replace("\u00a0", " ")
    assert "tiny makes" in out and "fewer errors than other" in out and "note: One seed" in out
    content = json.loads((tmp_path / "runs" / "compare-tiny-other" / "cross-validation.json").read_text())
    assert content["methods"][0]["tuning"]["runs"] == 2 and content["methods"][0]["settings"]["update.lr"] == 0.01
    assert "<svg" in (tmp_path / "runs" / "compare-tiny-other" / "comparison.html").read_text()
