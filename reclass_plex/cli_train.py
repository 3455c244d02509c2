"""The commands that learn and compare: `train`, `compare`, `inspect`; `evaluate` on a table."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from reclass_plex import console
from reclass_plex.cli_install import install_as
from reclass_plex.cli_options import FAILED, AsJson, ConfigFile, configure, full_path
from reclass_plex.errors import ConfigError, printable

if TYPE_CHECKING:
    from reclass_plex.training.approaches.base import Round
    from reclass_plex.training.run_config import RunConfig, Source
    from reclass_plex.training.table import FeatureTable

app = typer.Typer()

Csv = Annotated[
    Path | None, typer.Option("--csv", help="Features as CSV instead.", show_default=False)
]
LabelsFile = Annotated[
    Path | None, typer.Option("--labels", help="CSV of key and label.", show_default=False)
]
Parents = Annotated[
    Path | None,
    typer.Option(help="FMA's genres.csv: ids become top genres.", show_default=False),
]
FeaturesName = Annotated[
    str | None, typer.Option("--features-name", help="What the CSV's features are called.")
]


@app.command()
def train(
    approach: Annotated[
        str | None,
        typer.Option(
            help="baseline, xgboost, fma-mlp, musicnn, mert, jmla, cnn, transfer, fusion or"
            " progressive.",
            show_default=False,
        ),
    ] = None,
    table: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of reclass-plex extract; several to fuse, or as stages, cheapest first.",
            show_default=False,
        ),
    ] = None,
    csv: Csv = None,
    labels: LabelsFile = None,
    parents: Parents = None,
    features_name: FeaturesName = None,
    excerpt: Annotated[str, typer.Option(help="Of the CSV's features: full, middle30.")] = "full",
    out: Annotated[
        Path | None, typer.Option(help="New folder for the run.", show_default=False)
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="A run to go on with; needs nothing else.")
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="auto (the published split, else folds), split or folds.")
    ] = "auto",
    folds: Annotated[int, typer.Option(min=2, max=100, help="Of the cross-validation.")] = 5,
    hidden: Annotated[
        str | None,
        typer.Option(
            help="Widths of inner layers, as 512,128; 0 for a logistic head or trees alone. fma-mlp"
            " and xgboost have one that is infinitely wide, if not told."
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="At most; rounds of trees, steps of a logistic head.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Windows a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The highest.")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Transfer begins as MusiCNN's msd, mtt, or both.")
    ] = None,
    unfreeze: Annotated[
        str | None, typer.Option(help="Transfer: top, or all: MusiCNN's front end learns, too.")
    ] = None,
    class_weights: Annotated[
        str | None, typer.Option(help="none, or balanced: rare labels count as common ones.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same result.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int, typer.Option(min=1, max=1024, help="CPU threads.")] = 1,
    licence: Annotated[str | None, typer.Option(help="Of the data, for the card.")] = None,
    install: Annotated[
        str | None,
        typer.Option(help="Progressive: put the ensemble in use as this profile.", metavar="NAME"),
    ] = None,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Learn genres from features; write a run with its head, figures and report."""
    from reclass_plex.training import progressive_run, runs

    of_csv = (csv, labels, parents, features_name)
    of_fit = (hidden, epochs, batch, learning_rate, backbone, unfreeze, class_weights)
    if resume is not None:
        folder = full_path(resume)
        if any((approach, table, out, licence, *of_csv, *of_fit)):
            raise ConfigError("--resume takes everything from the run: give nothing else")
        if progressive_run.is_progressive(folder):
            _finish_progressive(folder, install, config_file, as_json=as_json)
            return
    else:
        if approach is None or out is None:
            raise ConfigError("say --approach and --out, or --resume a run")
        folder = full_path(out)
        if approach == progressive_run.NAME:
            if protocol == "split" or any((*of_csv, *of_fit)):
                raise ConfigError("--approach progressive takes --table, --folds and --seed only")
            _start_progressive(folder, table or [], folds, seed, device, threads, licence)
            _finish_progressive(folder, install, config_file, as_json=as_json)
            return
        sources = sources_of(table or [], csv, labels, parents, features_name, excerpt)
        given = {
            "hidden": _widths(hidden),
            "epochs": epochs,
            "batch": batch,
            "learning_rate": learning_rate,
            "backbone": backbone,
            "unfreeze": unfreeze,
            "class_weights": class_weights,
            "seed": seed,
        }
        config = configure_run(
            approach, sources, {k: v for k, v in given.items() if v is not None},
            protocol, folds, device, threads, licence, configure(config_file).models.folder,
        )  # fmt: skip
        runs.start_run(folder, config)
    if install is not None:
        raise ConfigError("--install is for --approach progressive")
    with _resumable(folder):
        figures = runs.finish_run(folder, runs.Voice(remark_line, warn_loudly, show_line))
    _print(figures, folder, as_json)


def evaluate_on_table(
    model: Path,
    table: Path | None,
    *,
    csv: Path | None = None,
    labels: Path | None = None,
    parents: Path | None = None,
    split: str | None = None,
    out: Path | None = None,
    as_json: bool = False,
) -> None:
    """Print what a run's, or any head's, answers on a table are worth; with `out` keep them.

    Features of a CSV file are taken for those that the model hears.
    """
    from reclass_plex.training import evaluating

    trained = evaluating.load_trained(full_path(model))
    tables = [] if table is None else [table]
    (source,) = sources_of(tables, csv, labels, parents, trained.features, "full")
    features, remarks = source.read()
    for remark in remarks:
        remark_line(remark)
    answers, figures = evaluating.evaluate_model(trained, features, split)
    for warning in figures["warnings"]:
        warn_loudly(warning)
    if out is not None:
        evaluating.write_evaluation(full_path(out), answers, figures)
    _print(figures, None if out is None else full_path(out), as_json)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="A run, or what evaluate --out wrote.")],
    second: Annotated[Path, typer.Argument(help="Another.")],
    as_json: AsJson = False,
) -> None:
    """Tell whether one model is better than another on the same recordings, or only luckier."""
    from dataclasses import asdict

    from reclass_plex.training.comparison import compare as compare_answers
    from reclass_plex.training.comparison import read_predictions

    found = compare_answers(read_predictions(full_path(first)), read_predictions(full_path(second)))
    for warning in found.warnings:
        warn_loudly(warning)
    if found.only_one:
        warn_loudly(f"{found.only_one} recordings, which only one was asked about, are left out")
    if as_json:
        console.print_json(asdict(found))
        return
    gain = found.second - found.first
    console.say(f"{found.measure} on {found.recordings} recordings that both were asked about")
    console.say(f"  first   {found.first:.4f}   {printable(first)}")
    console.say(f"  second  {found.second:.4f}   {printable(second)}")
    console.say(f"  gain    {gain:+.4f} ({found.low:+.4f} to {found.high:+.4f}, 95 %)")
    if (test := found.test) is not None:
        console.say(
            f"  McNemar: only the first is right {test.only_first} times, only the second"
            f" {test.only_second}; p = {test.exact:.4g} (exact), {test.mid:.4g} (mid-p)"
        )


@app.command("inspect")
def inspect_model(
    model: Annotated[Path, typer.Argument(help="The folder of a head or of a run.")],
    as_json: AsJson = False,
) -> None:
    """Show a model's card and size, and whether it works with this installation."""
    from reclass_plex.training.inspection import inspect_model as look

    found = look(full_path(model))
    if as_json:
        console.print_json(found.as_json())
    else:
        shown = console.table("", "")
        for name, value in found.facts.items():
            shown.add_row(name, value)
        console.out.print(shown)
        for problem in found.problems:
            console.say(problem, style="red", to=console.err)
        if not found.problems:
            console.say("works with this installation")
    if found.problems:
        raise typer.Exit(FAILED)


@contextmanager
def _resumable(folder: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        remark_line(f"stopped; go on with: reclass-plex train --resume {printable(folder)}")
        raise typer.Exit(FAILED) from None


def _start_progressive(
    folder: Path,
    tables: list[Path],
    folds: int,
    seed: int,
    device: str,
    threads: int,
    licence: str | None,
) -> None:
    from datetime import datetime, timezone

    from reclass_plex.device import choose_device
    from reclass_plex.training.progressive_run import ProgressiveConfig, start_progressive
    from reclass_plex.training.run_config import installed_versions

    if len(tables) < 2:
        raise ConfigError("--approach progressive needs a --table for each stage, two or more")
    wanted = _one_of("--device", device, ("auto", "cpu", "cuda"))
    config = ProgressiveConfig(
        tables=tuple(full_path(table) for table in tables),
        folds=folds,
        seed=seed,
        device=choose_device(cast(Literal["auto", "cpu", "cuda"], wanted)),
        threads=threads,
        licence=licence,
        started=datetime.now(timezone.utc).date().isoformat(),
        command=shlex.join(["reclass-plex", *sys.argv[1:]]),
        versions=installed_versions(),
    )
    start_progressive(folder, config)


def _finish_progressive(
    folder: Path, profile: str | None, config_file: Path | None, *, as_json: bool
) -> None:
    from reclass_plex.training import cascade, progressive_run
    from reclass_plex.training.runs import Voice

    with _resumable(folder):
        made = progressive_run.finish_progressive(
            folder, Voice(remark_line, warn_loudly, show_line)
        )
    written = folder / progressive_run.ENSEMBLE
    summary = cascade.summarise(made)
    if as_json:
        console.print_json({"path": os.fspath(written), **summary})
    else:
        shown = console.table("after stage", "weights", "accuracy", "alone", "exits")
        for stage in summary["stages"]:
            exits = ", ".join(f"{wanted}: {t:.2f}" for wanted, t in stage["exits"].items())
            weights = ", ".join(f"{weight:.2f}" for weight in stage["weights"])
            shown.add_row(
                stage["name"], weights, f"{stage['accuracy']:.3f}", f"{stage['alone']:.3f}",
                exits or "none",
            )  # fmt: skip
        console.out.print(shown)
        console.say(f"{summary['recordings']} recordings; ensemble: {printable(written)}")
    if profile is not None:
        install_as(written, profile, config_file)


def configure_run(
    approach: str,
    sources: tuple[Source, ...],
    given: dict[str, Any],
    protocol: str,
    folds: int,
    device: str,
    threads: int,
    licence: str | None,
    models: Path | None = None,
) -> RunConfig:
    """Return the configuration of a run. Raises ConfigError if it cannot be begun."""
    from datetime import datetime, timezone

    from reclass_plex.device import choose_device
    from reclass_plex.training.approaches import check_table, make_settings
    from reclass_plex.training.run_config import RunConfig, installed_versions, read_tables
    from reclass_plex.training.splits import divide
    from reclass_plex.training.table import fingerprint

    make_settings(approach, given)  # what is wrong with them is said before tables are read
    wanted = _one_of("--device", device, ("auto", "cpu", "cuda"))
    where = choose_device(cast(Literal["auto", "cpu", "cuda"], wanted))
    kind = cast(
        Literal["auto", "split", "folds"],
        _one_of("--protocol", protocol, ("auto", "split", "folds")),
    )
    features: FeatureTable = read_tables(approach, sources)[0]
    check_table(approach, features)
    settings = make_settings(approach, given, features.name)
    divide(features, kind, folds, settings.seed)  # what cannot be divided shall not be begun
    return RunConfig(
        approach=approach,
        settings=settings,
        sources=sources,
        fingerprint=fingerprint(features),
        protocol=kind,
        folds=folds,
        device=where,
        threads=threads,
        models=None if models is None else full_path(models),
        licence=licence,
        started=datetime.now(timezone.utc).date().isoformat(),
        command=shlex.join(["reclass-plex", *sys.argv[1:]]),
        versions=installed_versions(),
    )


def sources_of(
    tables: list[Path],
    csv: Path | None,
    labels: Path | None,
    parents: Path | None,
    name: str | None,
    excerpt: str,
) -> tuple[Source, ...]:
    """Return the tables that options name. Raises ConfigError unless they name any."""
    from reclass_plex.training.run_config import Source

    if (csv is None) == (not tables):
        raise ConfigError("say where the features are: a table's folder, or --csv FILE")
    if csv is None:
        return tuple(Source(folder=full_path(folder)) for folder in tables)
    files = [None if file is None else full_path(file) for file in (csv, labels, parents)]
    return (
        Source(
            features=files[0], labels=files[1], parents=files[2], name=name,
            excerpt=_one_of("--excerpt", excerpt, ("full", "middle30")),
        ),
    )  # fmt: skip


def _one_of(option: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ConfigError(f"{option} {value}: is none of {', '.join(known)}")
    return value


def _widths(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        widths = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--hidden {text}: give widths as 512,128, or 0") from None
    if widths == (0,):
        return ()
    if min(widths) < 1:
        raise ConfigError(f"--hidden {text}: widths are at least 1; 0 alone is a logistic head")
    return widths


def _print(figures: dict[str, Any], folder: Path | None, as_json: bool) -> None:
    from reclass_plex.training.judging import headline

    if as_json:
        told = {} if folder is None else {"path": os.fspath(folder)}
        console.print_json({**told, **figures})
        return
    console.say(f"{headline(figures)}\n{figures['recordings']} recordings; {figures['protocol']}")
    columns = list(figures["labels"][0])
    shown = console.table(*columns)
    for one in figures["labels"]:
        values = [f"{v:.3f}" if isinstance(v, float) else str(v) for v in one.values()]
        shown.add_row(*values)
    console.out.print(shown)
    if folder is not None:
        console.say(f"report: {printable(folder / 'report.html')}")


def remark_line(text: str) -> None:
    """Say something by the way."""
    console.say(text, to=console.err)


def warn_loudly(text: str) -> None:
    """Say what nobody shall miss."""
    console.say(f"WARNING: {text}", style="bold red", to=console.err)


def show_line(fit: str, line: Round) -> None:
    """Show a line of a learning curve, on a terminal."""
    if not console.err.is_terminal:
        return
    tuned = "" if line.tune_loss is None else f", held out {line.tune_loss:.4f}"
    gpu = "" if line.gpu_mebibytes is None else f", GPU {line.gpu_mebibytes:.0f} MiB"
    use = "" if line.gpu_use is None else f" {line.gpu_use:.0f} %"
    remark_line(
        f"{fit}: round {line.number}, loss {line.train_loss:.4f}{tuned},"
        f" {line.seconds:.1f} s{gpu}{use}"
    )
