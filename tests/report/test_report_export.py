"""Exports carry the same numbers as ``metrics.jsonl``."""

import csv
import sys

import pytest

from hemstitch.errors import HemstitchError
from hemstitch.report import export_csv, export_tensorboard, read_run


def test_csv_has_a_row_for_every_value(make_run, tmp_path):
    folder = make_run(epochs=2)
    with open(export_csv(folder, tmp_path / "metrics.csv"), newline="") as stream:
        rows = list(csv.DictReader(stream))
    metrics = read_run(folder).metrics
    assert [float(row["value"]) for row in rows] == [metric.value for metric in metrics]
    assert rows[-1]["step"] == "80" and {row["split"] for row in rows} == {"train", "dev"}


def test_tensorboard_reads_back_what_was_written(make_run, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = make_run(epochs=2)
    target = export_tensorboard(folder, tmp_path / "board")
    assert sorted(path.name for path in target.iterdir()) == ["dev", "train"]
    events = accumulator.EventAccumulator(str(target / "dev"))
    events.Reload()
    curve = read_run(folder).curves["dev", "loss"]
    scalars = events.Scalars("loss")
    assert [event.step for event in scalars] == [0, 40, 80]
    assert [event.value for event in scalars] == pytest.approx(list(curve.value))
    assert scalars[1].wall_time - scalars[0].wall_time == pytest.approx(36.0)
    assert len(list(export_tensorboard(folder, target).rglob("events*"))) == 2


def test_missing_tensorboard_is_named_with_its_remedy(make_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.event_file_writer", None)
    with pytest.raises(HemstitchError, match=r"pip install 'hemstitch\[tensorboard\]'"):
        export_tensorboard(make_run(), tmp_path / "board")
