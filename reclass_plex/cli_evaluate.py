"""The commands that judge: how accurate the ensemble is, and what it costs on this machine."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reclass_plex import console
from reclass_plex.cli_options import (
    AsJson,
    ConfigFile,
    Profile,
    Taxonomy,
    configure,
    exit_if,
    full_path,
)
from reclass_plex.cli_train import Csv, LabelsFile, Parents, evaluate_on_table
from reclass_plex.errors import ConfigError, FileError, printable

if TYPE_CHECKING:
    from reclass_plex.costs import Costs
    from reclass_plex.training.progressive import Judgement, Progressive, Share

app = typer.Typer()

TRACKS = 20  # to measure costs with


@app.command()
def calibrate(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(help="Music; without any, the newest tracks known.", show_default=False),
    ] = None,
    tracks: Annotated[int, typer.Option(min=1, max=10_000, help="How many to hear.")] = TRACKS,
    taxonomy: Taxonomy = None,
    profile: Profile = None,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Measure what each stage costs here, in seconds a track. Changes no music."""
    from reclass_plex import costs
    from reclass_plex.decoders import Decoders, Limits
    from reclass_plex.device import choose_device
    from reclass_plex.ensemble import Ensemble

    overrides = {"ensemble": {"taxonomy": taxonomy, "profile": profile}}
    config = costs.patient(configure(config_file, overrides))
    failed = 0

    def on_error(error: FileError) -> None:
        nonlocal failed
        failed += 1
        console.print_error(error)

    if paths:
        chosen = costs.choose_tracks([full_path(path) for path in paths], tracks, on_error)
    else:
        chosen = costs.newest_tracks(config.store.resolve(), tracks)
    ensemble = Ensemble.from_config(config, choose_device(config.worker.device))
    for note in ensemble.notes:
        console.say(note, style="yellow", to=console.err)
    measured: Costs | None = None
    with (
        console.stopping_politely() as should_stop,
        Decoders(1, Limits.of(config.worker)) as decoders,
    ):
        each = costs.measure_costs(
            chosen, config, ensemble, on_error=on_error, should_stop=should_stop,
            decode=decoders.decode,
        )  # fmt: skip
        for measured in console.follow(each, len(chosen), "listening"):  # noqa: B007
            pass
        stopped = should_stop()
    if stopped:
        exit_if(stopped, 0)
    if measured is None:
        raise ConfigError("nothing could be measured: no stage voted on any of these tracks")
    path = costs.costs_path(config)
    costs.save_costs(path, measured)
    if as_json:
        console.print_json({**measured.model_dump(mode="json"), "path": os.fspath(path)})
    else:
        _show_costs(measured)
        console.say(f"kept in {printable(path)}")
    exit_if(False, failed)


@app.command()
def evaluate(
    model: Annotated[
        Path | None, typer.Argument(help="A training run, or a head.", show_default=False)
    ] = None,
    table: Annotated[
        Path | None, typer.Argument(help="A table of reclass-plex extract.", show_default=False)
    ] = None,
    progressive: Annotated[
        bool,
        typer.Option("--progressive", help="What leaving early is worth: accuracy against cost."),
    ] = False,
    csv: Csv = None,
    labels: LabelsFile = None,
    parents: Parents = None,
    split: Annotated[
        str | None, typer.Option(help="Only train, valid or test.", show_default=False)
    ] = None,
    taxonomy: Taxonomy = None,
    profile: Profile = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for plots and figures.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Judge a model on a table; or an ensemble by the held-out votes that it was fitted to."""
    if model is not None and not progressive:
        evaluate_on_table(
            model, table, csv=csv, labels=labels, parents=parents, split=split, out=out,
            as_json=as_json,
        )  # fmt: skip
    elif progressive and model is None:
        evaluate_progressive(taxonomy, profile, out, as_json=as_json, config_file=config_file)
    else:
        raise ConfigError("say what to evaluate: a MODEL and a TABLE, or --progressive")


def evaluate_progressive(
    taxonomy: str | None,
    profile: str | None,
    out: Path | None,
    *,
    as_json: bool,
    config_file: Path | None,
) -> None:
    """Print, and with `out` draw, what early exits of an ensemble are worth."""
    from reclass_plex import costs
    from reclass_plex.ensemble import Ensemble
    from reclass_plex.profiles import CPU
    from reclass_plex.training.cascade import read_installed
    from reclass_plex.training.held_out import read_held_out
    from reclass_plex.training.progressive import judge

    overrides = {"ensemble": {"taxonomy": taxonomy, "profile": profile or CPU}}
    config = costs.patient(configure(config_file, overrides))
    ensemble = Ensemble.from_config(config)
    if ensemble.notes:
        raise ConfigError("; ".join(ensemble.notes))
    spec = ensemble.spec
    options = config.ensemble
    if options.profile == CPU:
        held = read_held_out(spec)
    else:
        held = read_installed(options.taxonomy, options.profile, config.models.folder)
    known, ours = costs.load_costs(config, ensemble.fingerprint)
    seconds = known.seconds([stage.name for stage in spec.stages])
    judgement = judge(held, spec, seconds, known.decode)
    show_judgement(judgement, known, ours=ours, as_json=as_json)
    if out is not None:
        write_judgement(judgement, known, full_path(out))


def show_judgement(judgement: Judgement, known: Costs, *, ours: bool, as_json: bool) -> None:
    """Print a judgement: tables for people, or one object."""
    if as_json:
        console.print_json(judgement_as_json(judgement, known))
        return
    _show_costs(known)
    if not ours:
        console.say("(measured elsewhere; for this machine: reclass-plex calibrate)")
    console.say(
        f"\n{judgement.taxonomy}: {judgement.clips} held-out clips, as sure as "
        f"{judgement.effective:.0f} independent ones; 95 % intervals"
    )
    shown = console.table("way", "accuracy", "seconds")
    for way in (*judgement.singles, *judgement.pools):
        shown.add_row(way.name, _text(way.accuracy), f"{way.seconds:.3f}")
    console.out.print(shown)
    console.say("")
    numbers = [f"by {number}" for number in range(1, len(judgement.stages) + 1)]
    shown = console.table("wanted", "accuracy", "seconds", *numbers, "early exits right")
    for point in judgement.exits:
        decided = [f"{share:.0%}" for share in point.decided]
        early = "none leaves early" if point.early is None else _text(point.early)
        wanted = f"{point.wanted:.2f}"
        shown.add_row(wanted, _text(point.accuracy), f"{point.seconds:.3f}", *decided, early)
    console.out.print(shown)
    console.say("")
    shown = console.table("wanted", "more accurate than", "by", "saves")
    for gain in judgement.gains:
        saved = f"{gain.seconds:+.3f} s"
        shown.add_row(f"{gain.wanted:.2f}", gain.against, _text(gain.accuracy, sign="+"), saved)
    console.out.print(shown)
    console.say("")
    shown = console.table("answers of", "calibration error")
    for each in judgement.reliability:
        shown.add_row(each.name, f"{each.error:.3f}")
    console.out.print(shown)


def write_judgement(judgement: Judgement, known: Costs, folder: Path) -> None:
    """Write the plots, and all figures as `figures.json`, into `folder`. Raises ConfigError."""
    import json

    from reclass_plex.training.plots import draw_all

    files = draw_all(judgement, folder)
    figures = folder / "figures.json"
    try:
        text = json.dumps(judgement_as_json(judgement, known), indent=2)
        figures.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{printable(figures)}: cannot be written: {error.strerror}") from error
    for file in (*files, figures):
        console.say(printable(file), to=console.err)


def judgement_as_json(judgement: Judgement, known: Costs) -> dict[str, object]:
    """Return all figures; a threshold that is never reached is null."""
    data: dict[str, Any] = asdict(judgement) | {"costs": known.model_dump(mode="json")}
    for name in ("exits", "curve"):
        points: tuple[Progressive, ...] = getattr(judgement, name)
        data[name] = [
            asdict(point) | {"thresholds": [t if t < 1 else None for t in point.thresholds]}
            for point in points
        ]
    return data


def _show_costs(known: Costs) -> None:
    shown = console.table("stage", "seconds a track")
    shown.add_row("decode", f"{known.decode:.4f}")
    for name, seconds in known.stages.items():
        shown.add_row(name, f"{seconds:.4f}")
    shown.add_row("all", f"{known.decode + sum(known.stages.values()):.4f}")
    console.out.print(shown)
    console.say(
        f"medians of {known.tracks} tracks, one core; {known.device}, {known.machine}, "
        f"torch {known.torch}, {known.date}"
    )


def _text(share: Share, sign: str = "") -> str:
    return f"{share.value:{sign}.3f} ({share.low:{sign}.2f} to {share.high:{sign}.2f})"
