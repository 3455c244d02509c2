"""The commands that look closer: `analyse importance`, `analyse features`, `analyse gpu`."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reclass_plex import console
from reclass_plex.cli_options import FAILED, AsJson, full_path
from reclass_plex.cli_train import (
    Csv,
    FeaturesName,
    LabelsFile,
    Parents,
    configure_run,
    remark_line,
    show_line,
    sources_of,
    warn_loudly,
)
from reclass_plex.errors import ConfigError, printable

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
        found = measure_importance(folder, repeats=repeats, say=remark_line, step=step)
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
def features(
    out: Annotated[Path, typer.Option(help="Folder for the runs and the table.")],
    approach: Annotated[str, typer.Option(help="As `train` has it.")] = "fma-mlp",
    table: Annotated[
        list[Path] | None, typer.Option(help="Folder of reclass-plex extract; each is a set.")
    ] = None,
    csv: Csv = None,
    labels: LabelsFile = None,
    parents: Parents = None,
    features_name: FeaturesName = None,
    joined: Annotated[
        bool, typer.Option("--joined", help="Also all tables side by side, windows averaged.")
    ] = False,
    columns: Annotated[
        list[str] | None,
        typer.Option(help="Only these groups of one table's columns, as mfcc,tonnetz; a set each."),
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option(help="All but these groups of columns; a set each.")
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="auto (the published split, else folds), split or folds.")
    ] = "auto",
    folds: Annotated[int, typer.Option(min=2, max=100, help="Of the cross-validation.")] = 5,
    epochs: Annotated[int | None, typer.Option(min=1, help="At most, as in `train`.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same folds.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int, typer.Option(min=1, max=1024, help="CPU threads.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Train one approach on several sets of features, with the same folds, and compare."""
    from reclass_plex.training import feature_sets, runs

    if approach in {"progressive", "fusion"}:
        raise ConfigError(f"--approach {approach} takes all tables at once; see --joined")
    sources = sources_of(table or [], csv, labels, parents, features_name, "full")
    named = feature_sets.plan_sets(
        sources, joined=joined, columns=columns or (), without=without or ()
    )
    given: dict[str, Any] = {"seed": seed} | ({} if epochs is None else {"epochs": epochs})
    sets = [
        (name, configure_run(approach, (source,), given, protocol, folds, device, threads, None))
        for name, source in named
    ]
    folder = full_path(out)
    try:
        results = feature_sets.compare_sets(
            folder, sets, runs.Voice(lambda text: None, warn_loudly, show_line), remark_line
        )
    except KeyboardInterrupt:
        remark_line("stopped; give the same command again to go on")
        raise typer.Exit(FAILED) from None
    if as_json:
        for one in results:
            console.print_json(asdict(one))
        return
    shown = console.table("features", "columns", results[0].measure, "gain", "p", "seconds")
    for one in results:
        gain = p = ""
        if one.gain is not None and one.gain_low is not None and one.gain_high is not None:
            gain = f"{one.gain:+.3f} ({one.gain_low:+.3f} to {one.gain_high:+.3f})"
        if one.p is not None:
            p = f"{one.p:.3g}"
        value = f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})"
        shown.add_row(one.name, str(one.columns), value, gain, p, f"{one.seconds:.1f}")
    console.out.print(shown)
    console.say(
        f"{results[0].recordings} recordings; 95 %; gain against the first, paired; in"
        f" {printable(folder)}"
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
