"""Entries: resumed part by part, their outcome files, the page, the command."""

import json
import math

import pytest

from hemstitch import commands
from hemstitch.cli import main
from hemstitch.errors import ConfigError, RunError
from hemstitch.reproduce import (
    Entry,
    Line,
    Outcome,
    Plot,
    Row,
    mean_and_interval,
    read_outcomes,
    recipe,
    run_entry,
    select,
    trained,
    write_page,
)
from hemstitch.train import Console

QUIET = Console(quiet=True)


def example(calls, fail=()):
    """Two parts that note that they are called; those in ``fail`` raise."""

    def part(name):
        def work(folder):
            calls.append(name)
            if name in fail:
                raise RunError(f"{name} cannot run")
            return {"value": len(name) + 0.123456789, "curve": [1.0, math.nan]}

        return work

    def conclude(results):
        values = [result["value"] for result in results.values()]
        mean, low, high = mean_and_interval(values)
        row = Row(quantity="length", paper="3.1", ours=mean, low=low, high=high, seeds=2)
        line = Line(label="curve", x=[0, 1], y=results["one"]["curve"])
        return Outcome(verdict="partly", summary="Parts were run.", rows=[row], plots=[Plot(title="c", lines=[line])])

    return Entry(name="figure-1", paper=5, title="A figure", paper_says="Three.", minutes=1,
                 parts=lambda scale: {"one": part("one"), "three": part("three")}, conclude=conclude)  # fmt: skip


def test_a_failed_entry_goes_on_with_the_parts_that_are_missing(tmp_path):
    calls = []
    with pytest.raises(RunError, match="three"):
        run_entry(example(calls, fail=["three"]), "smoke", tmp_path, QUIET)
    outcome = run_entry(example(calls), "smoke", tmp_path, QUIET)
    assert calls == ["one", "three", "three"]
    assert outcome["rows"][0]["ours"] == pytest.approx(4.12346)
    assert outcome["plots"][0]["lines"][0]["y"] == [1.0, None]
    run_entry(example(calls), "smoke", tmp_path, QUIET)
    assert len(calls) == 3
    assert read_outcomes(tmp_path / "smoke") == [json.loads((tmp_path / "smoke/paper-5/figure-1.json").read_text())]


def test_the_page_shows_the_papers_value_beside_ours_and_what_is_missing(tmp_path):
    run_entry(example([]), "smoke", tmp_path, QUIET)
    other = Entry(name="table-9", paper=1, title="Big", paper_says="x", unavailable="needs 300 hours of speech")
    text = write_page(tmp_path / "smoke", [example([]), other], "smoke").read_text()
    for expected in ("3.1", "4.123", "Partly", "needs 300 hours of speech", "<svg"):
        assert expected in text


def test_select_by_paper_entry_and_all():
    entries = [example([]), Entry(name="table-1", paper=3, title="", paper_says="", unavailable="no")]
    assert [e.key for e in select(entries, ["all"])] == ["paper-5/figure-1", "paper-3/table-1"]
    assert [e.key for e in select(entries, ["paper-3"])] == ["paper-3/table-1"]
    with pytest.raises(ConfigError, match="paper-5/figure-1"):
        select(entries, ["paper-5/figur-1"])


def test_interval_is_students():
    mean, low, high = mean_and_interval([1.0, 2.0, 3.0])
    assert (mean, high - mean, mean - low) == pytest.approx((2.0, 4.303 / math.sqrt(3), 4.303 / math.sqrt(3)))
    assert mean_and_interval([1.0]) == (1.0, None, None)
    stats = pytest.importorskip("scipy.stats")
    values = [float(i * i % 7) for i in range(20)]
    half = stats.t.ppf(0.975, 19) * stats.sem(values)
    assert mean_and_interval(values)[2] - mean_and_interval(values)[0] == pytest.approx(half, rel=1e-3)


@pytest.mark.parametrize("name", ["fashion-mnist", "an4-small"])
def test_runs_of_recipes_are_made_once(tmp_path, name):
    small = {"model.hidden": [8]}
    wanted = recipe("smoke", name, tmp_path / "part", small)
    first = trained(wanted, tmp_path / "part")
    again = trained(wanted, tmp_path / "part")
    assert first.result == again.result and first.result["status"] == "finished"
    assert 0 <= first.test_rate <= 1
    curve = first.curve("dev", "loss")
    assert len(curve["x"]) == len(curve["y"]) == 2 and first.curve("dev", "nothing") == {"x": [], "y": []}


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(commands._reproduce, "catalogue", lambda: (example([], fail=["three"]),))
    out = ["--out", str(tmp_path), "--scale", "smoke"]
    assert main(["reproduce", "all", *out]) == 1
    assert "three cannot run" in capsys.readouterr().out
    monkeypatch.setattr(commands._reproduce, "catalogue", lambda: (example([]),))
    assert main(["reproduce", "paper-5", *out, "--keep", str(tmp_path / "kept")]) == 0
    assert main(["reproduce", "--list", *out]) == 0
    assert "1 partly" in capsys.readouterr().out
    target = tmp_path / "results.md"
    assert main(["reproduce", "--markdown", str(tmp_path / "kept/smoke"), str(target)]) == 0
    assert "| length | 3.1 | 4.123 |" in target.read_text() and " | partly | " in target.read_text()
    assert main(["reproduce", "--markdown", str(tmp_path / "nothing"), str(target)]) == 2
