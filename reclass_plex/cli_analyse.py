"""The commands that look closer: `analyse importance`, `analyse features`, `analyse gpu`."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reclass_plex import console
from reclass_plex.cli_options import AsJson, full_path
from reclass_plex.errors import printable

if TYPE_CHECKING:
    from reclass_plex.gpus import GpuState

app = typer.Typer(help="What matters to a model, which features to take, what the GPU does.")


@app.command()
def importance(
    run: Annotated[Path, typer.Argument(help="A finished training run.")],
    repeats: Annotated[
        int, typer.Option(min=1, max=1000, help="Exchanges of each group of columns.")
    ] = 5,
    top: Annotated[int, typer.Option(min=0, help="Columns that are listed.")] = 15,
    as_json: AsJson = False,
) -> None:
    """Tell what a run's model looks at: permutation on held-out recordings, gain, SHAP."""
    from reclass_plex.training.importance_run import measure_importance

    folder = full_path(run)
    with console.showing_progress(None, "exchanging columns") as step:
        found = measure_importance(folder, repeats=repeats, say=_remark, step=step)
    best = found.top_columns(top)
    if as_json:
        columns = [{"column": name, "gain": gain, "shap": shap} for name, gain, shap in best]
        effects = [asdict(effect) for effect in found.effects]
        console.print_json({"path": str(folder), "groups": effects, "columns": columns})
        return
    shown = console.table("by", "group", "columns", "loss without", "accuracy without")
    for one in sorted(found.effects, key=lambda effect: (effect.by, -effect.loss)):
        drop = ""
        if (
            one.accuracy is not None
            and one.accuracy_low is not None
            and one.accuracy_high is not None
        ):
            low, high = -one.accuracy_high, -one.accuracy_low
            drop = f"{-one.accuracy:+.3f} ({low:+.3f} to {high:+.3f})"
        loss = f"{one.loss:+.4f} ({one.loss_low:+.4f} to {one.loss_high:+.4f})"
        shown.add_row(one.by, one.group, str(one.columns), loss, drop)
    console.out.print(shown)
    if best:
        shown = console.table("column", "gain", "mean |SHAP|")
        for name, gain, shap in best:
            shown.add_row(name, "" if gain is None else f"{gain:.2%}",
                          "" if shap is None else f"{shap:.4f}")  # fmt: skip
        console.out.print(shown)
    console.say(
        f"loss in nats; 95 %, bootstrap over groups; report: {printable(folder / 'report.html')}"
    )


@app.command()
def gpu(
    watch: Annotated[
        float | None,
        typer.Option(min=0.1, max=3600, help="Look again every so many seconds, until Ctrl-C."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show each GPU's memory and utilisation, by nvidia-smi or else by torch."""
    from reclass_plex.gpus import read_gpus

    try:
        while True:
            states = read_gpus()
            for state in states:
                if as_json:
                    console.print_json({"time": time.time(), **asdict(state)})
                else:
                    console.say(describe(state))
            if watch is None:
                return
            time.sleep(watch)
    except KeyboardInterrupt:
        return


def describe(state: GpuState) -> str:
    """Return one line of a GPU, with a bar of its memory."""
    parts = [state.name]
    if state.used is not None and state.total:
        filled = round(20 * min(1.0, state.used / state.total))
        bar = "#" * filled + "." * (20 - filled)
        parts.append(f"[{bar}] {state.used:,.0f} of {state.total:,.0f} MiB")
    else:
        parts.append("memory unknown")
    parts.append("use unknown" if state.use is None else f"{state.use:.0f} % busy")
    if state.celsius is not None:
        parts.append(f"{state.celsius:.0f} °C")
    if state.watts is not None:
        parts.append(f"{state.watts:.0f} W")
    return "  ".join(parts)


def _remark(text: str) -> None:
    console.say(text, to=console.err)
