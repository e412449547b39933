"""Curves, tables, the HTML report of a run and of a comparison.

:func:`read_run` opens a run folder; :func:`write_report` and :func:`write_comparison` write pages that are one file,
need no network and run no script. The plots and the HTML layer serve other pages as well. Importing this package
loads numpy, but neither torch nor matplotlib.
"""

from hemstitch.report._align import Errors, align_words, count_errors, sum_errors
from hemstitch.report._comparison import comparison_page, write_comparison
from hemstitch.report._export import export_csv, export_tensorboard
from hemstitch.report._files import write_whole
from hemstitch.report._groups import Group, group_runs
from hemstitch.report._html import (
    Html,
    cards,
    columns,
    details,
    element,
    escape,
    join,
    note,
    page,
    section,
    share_bar,
    swatch,
    table,
    tabs,
)
from hemstitch.report._method_comparison import method_comparison_page, verdict, write_method_comparison
from hemstitch.report._plots import Bar, Series, bar_plot, histogram, line_plot, scatter_plot
from hemstitch.report._report import report_page, reproduction_command, write_report
from hemstitch.report._run import Curve, Decoded, Event, Metric, Run, Score, Setting, read_run
from hemstitch.report._sweep_page import sweep_page, write_sweep_page

__all__ = [
    "Bar",
    "Curve",
    "Decoded",
    "Errors",
    "Event",
    "Group",
    "Html",
    "Metric",
    "Run",
    "Score",
    "Series",
    "Setting",
    "align_words",
    "bar_plot",
    "cards",
    "columns",
    "comparison_page",
    "count_errors",
    "details",
    "element",
    "escape",
    "export_csv",
    "export_tensorboard",
    "group_runs",
    "histogram",
    "join",
    "line_plot",
    "method_comparison_page",
    "note",
    "page",
    "read_run",
    "report_page",
    "reproduction_command",
    "scatter_plot",
    "section",
    "share_bar",
    "sum_errors",
    "swatch",
    "sweep_page",
    "table",
    "tabs",
    "verdict",
    "write_comparison",
    "write_method_comparison",
    "write_report",
    "write_sweep_page",
    "write_whole",
]
