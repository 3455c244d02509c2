"""The report of a run or of an evaluation: one HTML file that needs nothing else.

Made of the files in the folder alone. jinja2 comes with torch.
"""

from __future__ import annotations

import csv
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from reclass_plex.errors import FileError
from reclass_plex.files import naming_errors
from reclass_plex.training.checkpoints import read_json, write_whole
from reclass_plex.training.comparison import read_predictions
from reclass_plex.training.judging import headline
from reclass_plex.training.report_plots import (
    IMPORTANCE,
    Point,
    draw_columns,
    draw_confusion,
    draw_cost,
    draw_curves,
    draw_groups,
    draw_labels,
    draw_reliability,
)
from reclass_plex.training.run_config import RUN
from reclass_plex.training.run_outputs import COST, LOG, METRICS

REPORT, PLOTS = "report.html", "plots"

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 }
td, th { padding: .15em .9em .15em 0; text-align: left; border-bottom: 1px solid #ddd }
td.number { text-align: right; font-variant-numeric: tabular-nums }
.warning { background: #b00020; color: white; padding: .5em 1em; font-weight: bold }
svg { max-width: 100%; height: auto; background: white }
code { white-space: pre-wrap }
</style></head><body>
<h1>{{ title }}</h1>
{% for warning in figures.warnings %}<p class="warning">{{ warning }}</p>{% endfor %}
<p>{{ headline }}; {{ figures.recordings }} recordings of {{ figures.groups }} groups.
{{ figures.protocol }}. Intervals: 95 %, bootstrap over groups.</p>
<table>{% for name, value in numbers %}
<tr><th>{{ name }}</th><td class="number">{{ value }}</td></tr>{% endfor %}</table>
{% for name, svg in plots %}<h2>{{ name }}</h2>
{{ svg }}
{% endfor %}
<h2>Labels</h2>
<table><tr>{% for column in columns %}<th>{{ column }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for value in row %}
<td{% if not loop.first %} class="number"{% endif %}>{{ value }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% if run %}<h2>Run</h2>
<p><code>{{ run.command }}</code><br>started {{ run.started }}, {{ run.device }},
{% for name, version in run.versions.items() %}{{ name }} {{ version }} {% endfor %}</p>
<table>{% for name, value in run.settings.items() %}
<tr><th>{{ name }}</th><td class="number">{{ value }}</td></tr>{% endfor %}</table>{% endif %}
</body></html>
"""


def write_report(folder: Path) -> None:
    """Draw the plots and write the report. Raises FileError or ConfigError."""
    import jinja2
    from markupsafe import Markup

    figures = read_json(folder / METRICS)
    run = read_json(folder / RUN) if (folder / RUN).exists() else None
    cost = read_json(folder / COST) if (folder / COST).exists() else {}
    # The plots are files of our own making; everything else is escaped.
    drawn = [(name, Markup(_inline(path))) for name, path in _draw(folder, figures)]  # noqa: S704
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(PAGE)
    text = page.render(
        title=figures["protocol"] if run is None else f"{run['approach']}: {folder.name}",
        headline=headline(figures),
        figures=figures,
        numbers=[(k, _text(v)) for k, v in _numbers({**figures, **cost})],
        plots=drawn,
        columns=list(figures["labels"][0]),
        rows=[[_text(value) for value in one.values()] for one in figures["labels"]],
        run=run,
    )
    write_whole(folder / REPORT, (text + "\n").encode("utf-8", "backslashreplace"))


def _draw(folder: Path, figures: dict[str, Any]) -> list[tuple[str, Path]]:
    plots = folder / PLOTS
    drawn = []
    if not figures["multi_label"]:
        draw_confusion(figures, plots / "confusion.svg")
        drawn.append(("Confusion", plots / "confusion.svg"))
    draw_labels(figures, plots / "labels.svg")
    drawn.append(("Each label", plots / "labels.svg"))
    draw_reliability(read_predictions(folder), plots / "reliability.svg")
    drawn.append(("Reliability", plots / "reliability.svg"))
    if lines := _log(folder / LOG):
        draw_curves(lines, plots / "curves.svg")
        drawn.append(("Learning curves", plots / "curves.svg"))
    if points := _points(folder, figures):
        measure = "mean average precision" if figures["multi_label"] else "accuracy"
        draw_cost(points, measure, plots / "cost.svg")
        drawn.append(("Accuracy against cost", plots / "cost.svg"))
    if groups := _log(folder / IMPORTANCE / "groups.csv"):
        draw_groups(groups, plots / "importance-groups.svg")
        drawn.append(("What is lost without", plots / "importance-groups.svg"))
    columns = _log(folder / IMPORTANCE / "columns.csv")
    if columns and (columns[0]["shap"] or columns[0]["gain"]):
        draw_columns(columns, plots / "importance-columns.svg")
        drawn.append(("Columns that matter most", plots / "importance-columns.svg"))
    return drawn


def _log(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with naming_errors(path, writing=False), path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _points(folder: Path, figures: dict[str, Any]) -> list[Point]:
    """Return this run, and the runs beside it that were asked about as many recordings."""
    points = []
    for beside in _neighbours(folder.resolve()):
        ours = beside == folder.resolve()
        try:
            other = figures if ours else read_json(beside / METRICS)
            same = other["recordings"] == figures["recordings"]
            if not same or other["multi_label"] != figures["multi_label"]:
                continue
            name = "mean_average_precision" if figures["multi_label"] else "accuracy"
            one = other[name]
            micro = read_json(beside / COST)["microseconds_a_window"]
            points.append(
                Point(beside.name, max(micro, 1e-3), one["value"], one["low"], one["high"], ours)
            )
        except (KeyError, TypeError, FileError):
            if ours:
                raise
            continue  # a neighbour that is not ours, or damaged, shall not spoil this report
    return points


def _neighbours(folder: Path) -> list[Path]:
    """Return the finished runs beside this one, itself among them, as far as we may look."""
    beside = [folder]
    with suppress(OSError):  # a folder whose contents are not ours to list
        beside = sorted(folder.parent.iterdir())
    # Not `Path.exists`: it fails at folders that we may not enter, of which /tmp is full.
    there = os.path.exists
    return [one for one in beside if there(one / COST) and there(one / METRICS)]


def _inline(path: Path) -> str:
    """Return an SVG without what stands before its root."""
    with naming_errors(path, writing=False):
        text = path.read_text(encoding="utf-8")
    return text[text.index("<svg") :]


def _numbers(figures: dict[str, Any]) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in figures.items():
        shown = name.replace("_", " ")
        if isinstance(value, dict) and "low" in value:
            text = f"{_text(value['value'])} ({_text(value['low'])} to {_text(value['high'])})"
            found.append((shown, text))
        elif isinstance(value, int | float | str) and name != "protocol":
            found.append((shown, value))
    return found


def _text(value: object) -> str:
    if value is None:
        return "unknown"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
