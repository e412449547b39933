"""The report and the comparison as documents."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from hemstitch.errors import RunError
from hemstitch.report import read_run, report_page, reproduction_command, write_comparison, write_report

HOSTILE = "</script></style><img src=x onerror=alert(1)>\"'&\x00\ud800 $\\frac{"


def test_report_of_a_complete_run(make_run, parse):
    folder = make_run("an4", seed=3)
    path = write_report(folder)
    page = parse(path)
    assert path == folder / "report.html"
    page.assert_self_contained()
    assert "://" not in page.source
    text = page.text.replace("\u00a0", " ")
    right = sum(u.reference == u.hypothesis for u in read_run(folder).decoded["test"])
    for expected in (
        "an4, seed 3",
        "11.5 %",
        "confidence interval 7.0 to 14.0 %",
        "4 ins, 6 del, 13 sub in 200 words",
        "412,345",
        "5 forward, 5 backward",
        "hemstitch train recipes/an4.toml --seed 3",
        "skipped utterance",
        f"{right} of 40 utterances without an error",
        "speaker-4",
        "Gradient norm",
    ):
        assert expected in text, expected
    assert page.values("name").count(page.values("name")[-1]) == 4  # steps, passes, wall time, CPU time


def test_pictures_of_a_run_are_shown_and_damaged_ones_named(make_run, parse):
    folder = make_run()
    (folder / "diagrams").mkdir()
    line = {"label": "replicas", "x": [0, 1], "y": [0.2, 0.8]}
    picture = {"title": "Ages of gradients", "x_label": "updates", "lines": [line]}
    (folder / "diagrams" / "ages.json").write_text(json.dumps(picture))
    (folder / "diagrams" / "cut.json").write_text(json.dumps(picture | {"lines": [{"x": [0, 1], "y": [0.2]}]}))
    text = parse(write_report(folder)).text
    assert "Ages of gradients" in text and "cut.json is no picture of ours" in text


def test_what_never_changed_is_a_line_of_text(make_run, parse):
    folder = make_run()
    lines = [{"step": step, "split": "train", "name": "skipped", "value": 0} for step in range(3)]
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    assert "The same throughout: skipped 0." in parse(write_report(folder)).text


def test_report_of_a_killed_run_says_so(make_run, parse):
    folder = make_run()
    (folder / "result.json").unlink()
    metrics = folder / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-9])
    text = parse(write_report(folder)).text
    assert "this run is still going, or was stopped" in text
    assert f"hemstitch resume {folder} from step-00000200.safetensors" in text
    assert "the last line is half-written" in text


@pytest.mark.parametrize("kept", ["config.json", "metrics.jsonl"])
def test_report_of_what_is_left(make_run, parse, kept):
    folder = make_run()
    for path in [*folder.glob("*.json*"), *folder.glob("*/*")]:
        if path.name != kept:
            path.unlink()
    parse(write_report(folder)).assert_self_contained()
    parse(write_comparison([folder], folder)).assert_self_contained()


def test_nothing_from_the_folder_becomes_markup(make_run, parse):
    folder = make_run()
    records = {
        "metrics.jsonl": dict(step=1, split=HOSTILE, name=HOSTILE, value=1.0),
        "events.jsonl": dict(level=HOSTILE, kind=HOSTILE, message=HOSTILE),
        "decode/test.jsonl": dict(id=HOSTILE, speaker=HOSTILE, reference=HOSTILE, hypothesis="x"),
    }
    for name, record in records.items():
        (folder / name).write_text(json.dumps(record) + "\n" + json.dumps({**record, "step": 2}) + "\n")
    setting = dict(value=HOSTILE, origin=HOSTILE)
    (folder / "config.json").write_text(json.dumps({"name": setting, "seed": setting, HOSTILE: setting}))
    (folder / "environment.json").write_text(json.dumps({HOSTILE: HOSTILE, "started": HOSTILE}))
    scores = dict(wer={HOSTILE: 0.1}, accuracy={HOSTILE: {"rate": 0.5}})
    (folder / "result.json").write_text(
        json.dumps({"status": HOSTILE, "reason": HOSTILE, "summary": {HOSTILE: HOSTILE}, **scores})
    )
    for path in (write_report(folder), write_comparison([folder, make_run(seed=1)], folder)):
        page = parse(path)
        page.assert_self_contained()
        assert "onerror" in page.text


def test_failed_run_gives_its_reason(make_run, parse):
    folder = make_run()
    (folder / "result.json").write_text(json.dumps({"status": "failed", "reason": "loss is not finite"}))
    assert "This run ended as: failed. loss is not finite" in parse(write_report(folder)).text


def test_reproduction_command_quotes_what_was_typed(make_run):
    folder = make_run(seed=1, **{"update.kind": "sgd; rm -rf /", "model.sizes": [1, 2]})
    command, remark = reproduction_command(read_run(folder))
    assert command == ("hemstitch train recipes/an4.toml --seed 1 --model.sizes '[1, 2]' --update.kind 'sgd; rm -rf /'")
    assert remark == ""


def test_reproduction_command_knows_extended_recipes_and_what_was_typed(make_run):
    folder = make_run()
    config = json.loads((folder / "config.json").read_text())
    config["update.lr"]["origin"] = "recipes/base.toml:7"
    (folder / "config.json").write_text(json.dumps(config))
    command = "hemstitch train recipes/an4.toml --seed 0"
    assert reproduction_command(read_run(folder)) == (command, "It builds on recipes/base.toml.")
    typed = ["hemstitch", "train", "an4", "--name", "a b"]
    (folder / "environment.json").write_text(json.dumps({"command": typed}))
    assert reproduction_command(read_run(folder)) == ("hemstitch train an4 --name 'a b'", "")


def test_report_elsewhere_and_where_it_cannot_go(make_run, tmp_path):
    folder = make_run()
    assert write_report(folder, tmp_path / "new" / "page.html").is_file()
    with pytest.raises(RunError, match="cannot write"):
        write_report(folder, folder / "config.json" / "report.html")
    assert not list(tmp_path.rglob(".report*"))


def test_comparison_groups_seeds_and_shows_costs(make_run, tmp_path, parse):
    folders = [
        make_run(seed=s, passes_per_step=p, **{"update.kind": k})
        for s in range(3)
        for p, k in ((1, "sgd"), (2, "backstitch"))
    ]
    page = parse(write_comparison([*folders, folders[0]], tmp_path))
    page.assert_self_contained()
    text = page.text.replace("\u00a0", " ")
    assert "6 runs in 2 configurations" in text
    assert "Comparison: update.kind = sgd and update.kind = backstitch" in text
    assert "10.5 %7.0 to 14.0 %10.0 %, 10.5 %, 11.0 %" in text
    assert page.text.count("update.kind = sgd, seed 2") == page.text.count("update.kind = sgd, mean of 3 seeds") > 4
    rows = re.findall(r"<tr><th scope=\"row\">.*?</tr>", page.source)[:2]
    assert [re.search(r">(10|20)</td>", row)[1] for row in rows] == ["10", "20"]  # passes


def test_comparison_names_runs_that_did_not_finish(make_run, tmp_path, parse):
    stopped, whole = make_run(seed=0), make_run(seed=1)
    (stopped / "result.json").unlink()
    text = parse(write_comparison([stopped, whole], tmp_path / "page.html")).text
    assert f"{stopped}: unfinished" in text and f"{whole}: " not in text


def test_nothing_to_compare(tmp_path):
    with pytest.raises(RunError, match="name one or more"):
        write_comparison([], tmp_path)


def test_long_curves_are_averaged_and_keep_their_range():
    from hemstitch.report._curves import thin

    x = np.arange(10_001.0)
    mean_x, mean_y, (low, high) = thin(x, 2 * x, limit=300)
    assert len(mean_x) <= 300
    np.testing.assert_allclose(mean_y, 2 * mean_x)
    assert low.min() == 0 and high.max() == 20_000
    np.testing.assert_allclose(mean_x[0], (x[:34]).mean())
    assert thin(x[:300], x[:300])[2] is None


def test_only_fractions_are_shown_as_percent(make_run, parse):
    folder = make_run()
    values = {"frame_error": 0.5, "squared_error": 7.0}
    lines = [json.dumps(dict(step=s, split="dev", name=n, value=v / s)) for n, v in values.items() for s in (1, 2)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    frame, squared = re.findall(r"<figcaption>\w+ error</figcaption>.*?</svg>", report_page(read_run(folder)))
    assert "50\u00a0%" in frame and "%" not in squared


def test_mean_of_seeds_covers_what_all_have():
    from hemstitch.report._comparison import _mean_curve

    short = np.array([0.0, 2.0]), np.array([0.0, 2.0])
    long = np.array([1.0, 2.0, 3.0]), np.array([3.0, 4.0, 9.0])
    places, mean = _mean_curve([short, long])
    np.testing.assert_array_equal(places, [1, 2])
    np.testing.assert_array_equal(mean, [2, 3])
    assert _mean_curve([short, (np.array([5.0]), np.array([1.0]))]) is None


def test_reports_open_without_torch_and_import_matplotlib_late(make_run):
    code = (
        "import sys, hemstitch.report as r; print('matplotlib' in sys.modules);"
        "r.write_report(sys.argv[1]); print('torch' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code, str(make_run())], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False", "False"]
