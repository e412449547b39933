"""The metrics of a run for other programs: TensorBoard and tables."""

import csv
import io
import math
from datetime import datetime
from pathlib import Path
from typing import Any

from hemstitch.errors import HemstitchError, RunError
from hemstitch.report._files import write_whole
from hemstitch.report._run import Metric, Run, read_run

_SUFFIX = ".hemstitch"  # marks our own event files


def export_csv(folder: str | Path, target: str | Path) -> Path:
    """Write ``metrics.jsonl`` as one table with a header, a metric value a row.

    Args:
        folder: A run folder.
        target: The file to write.

    Returns:
        The path written.

    Raises:
        RunError: The folder is not a run, or the file cannot be written.
    """
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(Metric._fields)
    writer.writerows([_plain(value) for value in metric] for metric in read_run(folder).metrics)
    return write_whole(table.getvalue(), target)


def _plain(value: float | str) -> float | int | str:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def export_tensorboard(folder: str | Path, target: str | Path) -> Path:
    """Write the metrics of a run as TensorBoard event files, one folder a split, so that splits share a chart.

    Times are those of the training, not of the export. A second export takes the place of the first.

    Args:
        folder: A run folder.
        target: The log directory.

    Returns:
        The log directory.

    Raises:
        HemstitchError: TensorBoard is not installed.
        RunError: The folder is not a run, or the target cannot be written.
    """
    run, target = read_run(folder), Path(target)
    try:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:
        raise HemstitchError(
            "exporting to TensorBoard needs the package tensorboard: pip install 'hemstitch[tensorboard]'"
        ) from None
    try:
        for split in dict.fromkeys(metric.split for metric in run.metrics):
            directory = target / _folder_name(split)
            for old in directory.glob(f"events.out.tfevents.*{_SUFFIX}"):
                old.unlink()
            writer = EventFileWriter(str(directory), filename_suffix=_SUFFIX)
            for metric in run.metrics:
                if metric.split == split:
                    writer.add_event(_event(metric, _started(run)))
            writer.close()
    except OSError as error:
        raise RunError(f"cannot write to {target} ({error.strerror}): name another place, or make room there") from None
    return target


def _event(metric: Metric, started: float) -> Any:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    summary = Summary(value=[Summary.Value(tag=metric.name, simple_value=metric.value)])
    wall, step = (0 if math.isnan(value) else value for value in (metric.wall_seconds, metric.step))
    return Event(wall_time=started + wall, step=int(step), summary=summary)


def _started(run: Run) -> float:
    try:
        return datetime.fromisoformat(str(run.environment.get("started"))).timestamp()
    except ValueError:
        return 0.0


def _folder_name(split: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in split).strip(".") or "run"
