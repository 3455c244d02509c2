"""The commands `dataset ...`: labelled music to train on and to be judged by."""

from __future__ import annotations

import enum
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from reclass_plex import console
from reclass_plex.cli_options import FAILED, AsJson, ConfigFile, configure, exit_if
from reclass_plex.errors import ConfigError, ReclassError, printable
from reclass_plex.training.datasets.catalogue import CATALOGUE, find_dataset
from reclass_plex.training.datasets.collection import Collection, DatasetError
from reclass_plex.training.datasets.installed import (
    TRUSTED,
    datasets_folder,
    is_installed,
    read_origin,
    verify_component,
)
from reclass_plex.training.datasets.published import Component, Dataset, describe_terms
from reclass_plex.transfer_bar import showing_bytes

app = typer.Typer(help="Labelled music to train on.", no_args_is_help=True)


class PartName(enum.Enum):
    """What may be fetched alone."""

    labels = "labels"
    audio = "audio"
    features = "features"


Name = Annotated[str, typer.Argument(help="As `dataset list` has it.", show_default=False)]
Folder = Annotated[
    Path | None,
    typer.Option(help="Where datasets are; else $XDG_DATA_HOME/reclass-plex/datasets."),
]
AcceptLicence = Annotated[bool, typer.Option("--accept-licence", help="Accept its licence.")]
Only = Annotated[
    list[PartName] | None, typer.Option(help="Only this part; several times for several.")
]


@app.command("list")
def list_all(as_json: AsJson = False, folder: Folder = None) -> None:
    """List the datasets: what they hold, their licence, and what of them is here."""
    place = datasets_folder(folder)
    if as_json:
        for dataset in CATALOGUE:
            console.print_json(_dataset_as_json(dataset, place))
        return
    table = console.table("dataset", "holds", "licence", "to fetch", "here")
    for dataset in CATALOGUE:
        size = sum(one.length for one in dataset.components if one.files[0].url)
        fetched = f"{size / 1e9:,.1f} GB" if size else "-"
        licence = f"{dataset.licence} ({dataset.terms})"
        table.add_row(dataset.name, dataset.holds, licence, fetched, _state(dataset, place))
    console.out.print(table)
    console.say(f"in {printable(place)}")


@app.command()
def fetch(
    name: Name,
    only: Only = None,
    mirror: Annotated[
        str | None, typer.Option(help="An address under which the same files lie.")
    ] = None,
    accept_licence: AcceptLicence = False,
    force: Annotated[bool, typer.Option("--force", help="Also what is there already.")] = False,
    trust_anew: Annotated[
        bool, typer.Option("--trust-anew", help="Forget digests of files that came before.")
    ] = False,
    folder: Folder = None,
) -> None:
    """Fetch a dataset. What broke off goes on where it ended; every file is checked."""
    from reclass_plex.training.datasets.fetch import fetch_component, find_addresses

    dataset, place = find_dataset(name), datasets_folder(folder)
    wanted = dataset.chosen(tuple(part.value for part in only or ()))
    for component in wanted:
        find_addresses(dataset, component, mirror)
    _accept(dataset, wanted, place, accept_licence)
    failed = 0
    for component in wanted:
        if trust_anew:
            (place / TRUSTED / f"{component.name}.json").unlink(missing_ok=True)
        try:
            with showing_bytes() as on_bytes:
                where = fetch_component(
                    dataset,
                    component,
                    place,
                    mirror=mirror,
                    force=force or trust_anew,
                    on_bytes=on_bytes,
                    say=_remark,
                )
        except ReclassError as error:
            failed += 1
            console.say(f"error: {error}", style="red", to=console.err)
        else:
            console.say(f"{component.name}: ready in {printable(where)}")
    exit_if(False, failed)


@app.command("import")
def import_from(
    name: Name,
    files: Annotated[
        list[Path], typer.Argument(help="Its files as they are published, or their folder.")
    ],
    accept_licence: AcceptLicence = False,
    folder: Folder = None,
) -> None:
    """Take a dataset from files that you have: without a network, checked all the same."""
    from reclass_plex.training.datasets.fetch import import_component, match_files

    dataset, place = find_dataset(name), datasets_folder(folder)
    matched = match_files(dataset, files)
    _accept(dataset, tuple(component for component, _ in matched), place, accept_licence)
    for component, paths in matched:
        with showing_bytes() as on_bytes:
            where = import_component(
                dataset, component, paths, place, on_bytes=on_bytes, say=_remark
            )
        console.say(f"{component.name}: ready in {printable(where)}")


@app.command()
def verify(
    names: Annotated[list[str] | None, typer.Argument(help="Default: all that are here.")] = None,
    as_json: AsJson = False,
    folder: Folder = None,
) -> None:
    """Read every file, and compare it with what was fetched."""
    place = datasets_folder(folder)
    chosen = [find_dataset(name) for name in names or ()] or list(CATALOGUE)
    here = {
        one.name: one
        for dataset in chosen
        for one in dataset.components
        if is_installed(one, place)
    }
    if names and not here:
        raise DatasetError(f"{', '.join(names)}: nothing of it is in {printable(place)}")
    if not here:
        console.say(f"nothing is in {printable(place)}", to=console.err)
    failed = 0
    for component in here.values():
        with console.showing_progress(None, component.name) as advance:
            try:
                faults = list(verify_component(component, place, advance))
            except ReclassError as error:
                faults = [str(error)]
        failed += bool(faults)
        if as_json:
            console.print_json({"component": component.name, "problems": list(faults)})
        elif not faults:
            console.say(f"{component.name}: ok")
        for fault in () if as_json else faults:
            console.say(fault, style="red", to=console.err)
    exit_if(False, failed)


@app.command()
def info(
    name: Name,
    path: Annotated[
        Path | None, typer.Option(help="Where it is, if you have it from elsewhere.")
    ] = None,
    index: Annotated[
        Path | None, typer.Option(help="GTZAN: Sturm's index.txt, which names the artists.")
    ] = None,
    faults: Annotated[
        bool, typer.Option("--faults", help="GTZAN: with the excerpts that are known to be bad.")
    ] = False,
    all_tags: Annotated[
        bool, typer.Option("--all-tags", help="MagnaTagATune: all 188 tags, not the 50 commonest.")
    ] = False,
    plex: Annotated[
        bool, typer.Option("--plex", help="library: genres of the Plex server, not of the files.")
    ] = False,
    minimum: Annotated[
        int | None, typer.Option(min=1, help="library: leave out genres of fewer tracks.")
    ] = None,
    suspicious: Annotated[
        bool, typer.Option("--suspicious", help="library: labels that the models doubt.")
    ] = False,
    as_json: AsJson = False,
    folder: Folder = None,
    config_file: ConfigFile = None,
) -> None:
    """Count a dataset's labels, splits, artists and missing files; warn of leaks."""
    from reclass_plex.training.datasets.reading import Reading, read_dataset

    dataset, place = find_dataset(name), datasets_folder(folder)
    if suspicious and name != "library":
        raise ConfigError("--suspicious is for the dataset library")
    if name == "library":
        _own_library(dataset, plex, minimum, suspicious, as_json, config_file)
        return
    tags: Literal["all", "top50"] = "all" if all_tags else "top50"
    collection = read_dataset(name, place, Reading(path, index, faults, tags))
    _show(dataset, collection, as_json)


def _own_library(
    dataset: Dataset,
    from_plex: bool,
    minimum: int | None,
    suspicious: bool,
    as_json: bool,
    config_file: Path | None,
) -> None:
    from reclass_plex.credentials import read_plex_token
    from reclass_plex.ensemble import Ensemble
    from reclass_plex.genres import DEFAULT, TAXONOMIES
    from reclass_plex.plex import Plex
    from reclass_plex.store import Store
    from reclass_plex.training.datasets import library

    config = configure(config_file)
    taxonomy = TAXONOMIES.get(config.ensemble.taxonomy, DEFAULT)
    least = library.MINIMUM if minimum is None else minimum
    with Store.open(config.store.resolve()) as store:
        if from_plex:
            with Plex(config.plex, read_plex_token(config.plex, config_file)) as server:
                tracks = library.tracks_of_plex(server, store)
                collection = library.read_library(tracks, taxonomy, least)
        else:
            collection = library.read_library(library.tracks_of_store(store), taxonomy, least)
        if not collection.recordings:
            console.say(f"there is no track with a usable genre. {dataset.get}", to=console.err)
        if not suspicious:
            _show(dataset, collection, as_json)
            return
        paths = [one.path for one in collection.recordings if one.path is not None]
        heard = library.heard_genres(store, paths, Ensemble.from_config(config).fingerprint)
    doubtful = library.find_doubtful(collection, heard)
    for one in doubtful:
        if as_json:
            console.print_json(asdict(one) | {"path": os.fspath(one.path)})
        else:
            where = console.short_path(one.path)
            console.say(f"{where}: {one.label}, rather {one.suggested} (by {one.margin:.2f})")
    console.say(
        f"{len(doubtful)} of {len(heard)} labels are doubtful; {len(paths) - len(heard)} tracks"
        " were not heard yet",
        to=console.err,
    )


def _show(dataset: Dataset, collection: Collection, as_json: bool) -> None:
    from reclass_plex.training.datasets.summary import describe, summarise, warn

    summary = summarise(collection)
    if as_json:
        console.print_json({"dataset": dataset.name} | asdict(summary))
        return
    splits = [split for split in ("train", "valid", "test", "none") if split in summary.splits]
    table = console.table("label", *splits)
    for label, counts in summary.counts.items():
        table.add_row(label, *(f"{counts.get(split, 0):,}" for split in splits))
    if not collection.multi_label:
        table.add_row("all", *(f"{summary.splits[split]:,}" for split in splits))
    console.out.print(table)
    console.say("")
    for line in describe(summary, dataset.split):
        console.say(line)
    for warning in warn(summary):
        console.say(warning, style="yellow", to=console.err)


def _accept(
    dataset: Dataset, components: tuple[Component, ...], place: Path, accepted: bool
) -> None:
    """Show what the licence allows, and ask on a terminal where it is not all. Raises."""
    console.say(f"{describe_terms(dataset)}.", to=console.err)
    if not dataset.must_accept or accepted:
        return
    origins = [read_origin(component, place) for component in components]
    if all(origin is not None and origin.licence == dataset.licence for origin in origins):
        return  # accepted when it was fetched before
    if sys.stdin is None or not sys.stdin.isatty():
        raise DatasetError(f"{dataset.name}: its licence has to be accepted: --accept-licence")
    if not console.agrees("Do you accept this?"):
        console.say("not accepted; nothing was fetched", to=console.err)
        raise typer.Exit(FAILED)


def _state(dataset: Dataset, place: Path) -> str:
    if not dataset.components:
        return "-"
    here = [one.part for one in dataset.components if is_installed(one, place)]
    if len(here) == len(dataset.components):
        return "all"
    return ", ".join(dict.fromkeys(here)) or "no"


def _dataset_as_json(dataset: Dataset, place: Path) -> dict[str, object]:
    return {
        "dataset": dataset.name,
        "title": dataset.title,
        "holds": dataset.holds,
        "split": dataset.split,
        "licence": dataset.licence,
        "terms": dataset.terms,
        "source": dataset.source,
        "get": dataset.get,
        "components": [
            {
                "component": one.name,
                "part": one.part,
                "size": one.length,
                "path": str(place / one.name) if is_installed(one, place) else None,
                "files": [
                    {"name": file.name, "url": file.url, "digest": file.digest}
                    for file in one.files
                ],
            }
            for one in dataset.components
        ],
    }


def _remark(text: str) -> None:
    console.say(text, to=console.err)
