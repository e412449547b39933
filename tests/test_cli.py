import json
import subprocess
import sys

import pytest

from hemstitch.cli import main


@pytest.fixture
def recipe(tiny_recipe, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return str(tiny_recipe)


def run(capsys, *arguments):
    """Exit status, standard output, standard error."""
    try:
        status = main(list(arguments))
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_training_ends_with_result_report_and_what_to_try_next(capsys, recipe, tmp_path):
    status, out, _ = run(capsys, "train", recipe)
    assert status == 0
    assert "test accuracy" in out and "hemstitch compare" in out
    report = tmp_path / "runs" / "tiny-1" / "report.html"
    assert str(report.relative_to(tmp_path)) in out and "<svg" in report.read_text()
    assert run(capsys, "train", recipe, "--quiet", "--seed", "2")[0] == 0
    status, out, _ = run(capsys, "compare", "runs/tiny-1", "runs/tiny-2")
    assert status == 0 and "<svg" in (tmp_path / "comparison.html").read_text()
    assert run(capsys, "resume", "runs/tiny-1", "--quiet")[0] == 0
    status, out, _ = run(capsys, "export", "runs/tiny-1", "--to", "csv")
    assert status == 0 and "step" in (tmp_path / "runs/tiny-1/metrics.csv").read_text().splitlines()[0]
    assert run(capsys, "report", "runs/tiny-1")[0] == 0


def test_print_config_shows_values_with_origins_and_trains_nothing(capsys, recipe, tmp_path):
    status, out, _ = run(capsys, "train", recipe, "--print-config", "--update.lr", "0.5")
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
    assert status == 0 and not (tmp_path / "runs").exists()
    assert lines["update.lr"] == ["0.5", "command", "line"]
    assert lines["train.keep"] == ["2", "default"]
    assert lines["model.hidden"][1].endswith("tiny.toml:7")


def test_dry_run_shows_shapes_parameters_and_passes(capsys, recipe, tmp_path):
    status, out, _ = run(
        capsys, "train", recipe, "--dry-run", "--backstitch.scale", "0.3", "--backstitch.interval", "1"
    )
    assert status == 0 and not (tmp_path / "runs").exists()
    facts = {
        line[: line.index("  ")].strip(): line[line.index("  ") :].strip()
        for line in out.splitlines()
        if "  " in line[1:]
    }
    assert any("[30, 1, 16]" in value for value in facts.values())
    assert any("backward passes per step" in line and "2.0" in line for line in out.splitlines())


def test_help_after_a_recipe_shows_only_what_applies(capsys, recipe):
    status, out, _ = run(capsys, "train", recipe, "--help")
    assert status == 0
    assert "--schedule.patience" in out and "looks without improvement" in out
    assert "--decode.beam" not in out and "--schedule.final" not in out


def test_list_and_doctor_answer(capsys):
    status, out, _ = run(capsys, "list")
    assert status == 0 and "fashion-mnist" in out and "max-change-sgd" in out and "synthetic-digits" in out
    status, out, _ = run(capsys, "doctor")
    assert status == 0 and "torch" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "an5"], "no recipe 'an5'"),
        (["train", "RECIPE", "--update.lrr", "1"], "did you mean 'update.lr'"),
        (
            ["train", "RECIPE", "--data.source", "/nowhere"],
            "/nowhere: neither train-images-idx3-ubyte.gz nor train.images.npy.xz there. Set data.source",
        ),
        (["train", "RECIPE", "--train.device", "cuda"], "this torch sees no GPU"),
        (["resume", "nowhere"], "nowhere: no such run folder"),
        (["report", "nowhere"], "nowhere"),
        (["compare", "nowhere"], "nowhere"),
        (["decode", "nowhere"], "nowhere: no such run folder"),
        (["score", "nowhere.txt", "nowhere.txt"], "nowhere.txt: cannot be read as a transcript"),
        (["data", "an5", "target"], "no importer 'an5': did you mean 'an4'?"),
        (["data", "check", "nowhere"], "no corpus folder nowhere"),
    ],
)
def test_a_mistake_is_one_message_without_a_traceback(capsys, recipe, arguments, message):
    import torch

    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    status, _, err = run(capsys, *[recipe if a == "RECIPE" else a for a in arguments])
    assert status == 2 and message in err and "Traceback" not in err
    assert err.startswith("hemstitch: ")


def test_a_misspelt_flag_names_the_command(capsys, recipe):
    status, _, err = run(capsys, "resume", "x", "--quite")
    assert status == 2 and "unexpected arguments for resume: --quite" in err


def test_scores_of_two_transcript_files(capsys, tmp_path):
    (tmp_path / "ref").write_text("a one two three\nb four\n")
    (tmp_path / "hyp").write_text("a one too three\nb four five\n")
    status, out, _ = run(capsys, "score", str(tmp_path / "ref"), str(tmp_path / "hyp"))
    assert status == 0 and "WER 50.00%" in out and "1 insertions" in out
    (tmp_path / "hyp").write_text("a one\na two\n")
    assert "hyp:2: utterance 'a' appears twice" in run(capsys, "score", str(tmp_path / "ref"), str(tmp_path / "hyp"))[2]


def test_help_imports_no_torch():
    code = (
        "import sys; from hemstitch.cli import build_parser; build_parser().format_help(); print(json.dumps("
        "sorted(m for m in ('torch', 'numpy', 'matplotlib', 'rich') if m in sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", f"import json; {code}"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
