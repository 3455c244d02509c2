"""The command `extract`: a dataset's audio to features on disk."""

from __future__ import annotations

import enum
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reclass_plex import console
from reclass_plex.cli_options import AsJson, ConfigFile, configure, exit_if
from reclass_plex.errors import ConfigError, printable
from reclass_plex.pipeline import count_cores
from reclass_plex.records import Excerpt

if TYPE_CHECKING:
    from collections.abc import Callable

    from reclass_plex.training.datasets.collection import Collection
    from reclass_plex.training.extraction_run import Extraction
    from reclass_plex.training.extraction_workers import Workers

SHOWN = 5  # failures that are listed, unless for programs: all are in the manifest

app = typer.Typer()


class Device(enum.Enum):
    """Where encoders compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Precision(enum.Enum):
    """How numbers are held."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Stored(enum.Enum):
    """How rows are held on disk."""

    float16 = "float16"
    float32 = "float32"


@app.command()
def extract(
    dataset: Annotated[
        str,
        typer.Argument(
            help="As `dataset list` has it; or a folder with one for each genre; or a CSV of"
            " paths and labels.",
            show_default=False,
        ),
    ],
    features: Annotated[
        str,
        typer.Option(
            help="Separated by commas: fma, fma-windows, musicnn, mel, mert, jmla, clap;"
            " published, the dataset's own."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the features; one is made for each set.")],
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="Processes. Default: all cores.")
    ] = None,
    excerpt: Annotated[str, typer.Option(help="middle30, or full.")] = "middle30",
    device: Annotated[Device, typer.Option(help="Where encoders compute.")] = Device.auto,
    precision: Annotated[
        Precision | None, typer.Option(help="Of encoders. Default: float32; on a GPU its fastest.")
    ] = None,
    dtype: Annotated[
        Stored | None,
        typer.Option(help="On disk. Default: float16; float32 where there are several layers."),
    ] = None,
    path: Annotated[
        Path | None, typer.Option(help="Where the dataset's audio is, if it was not fetched.")
    ] = None,
    datasets: Annotated[Path | None, typer.Option(help="Folder of the fetched datasets.")] = None,
    models: Annotated[Path | None, typer.Option(help="Folder of the fetched models.")] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Delete what was extracted there before.")
    ] = False,
    overview: Annotated[
        bool, typer.Option("--overview", help="Also draw overview.svg: labels, and a map.")
    ] = False,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Extract features of a dataset for training. Interrupted, it goes on where it stopped."""
    from reclass_plex.training.extraction_run import open_extraction
    from reclass_plex.training.extraction_sets import choose_jobs, choose_sets
    from reclass_plex.training.extraction_workers import Workers

    try:
        part = Excerpt.parse(excerpt)
    except ValueError as error:
        raise ConfigError(f"--excerpt: {error}") from error
    names = [name.strip() for name in features.split(",") if name.strip()]
    if "published" in names:
        names.remove("published")
        _take_published(dataset, datasets, path, out, restart, as_json)
        if not names:
            return
    sets = choose_sets(
        names,
        part,
        folder=models or configure(config_file).models.folder,
        device=device.value,
        precision=precision.value if precision else None,
        dtype=dtype.value if dtype else None,
    )
    collection = _read(dataset, datasets, path, config_file)
    failed = 0
    with ExitStack() as opened, console.stopping_politely() as should_stop:
        # all are opened first: what is wrong with one is said before hours of work on another
        runs = [
            opened.enter_context(open_extraction(collection, each, part, out, restart=restart))
            for each in sets
        ]
        workers = opened.enter_context(Workers(jobs or choose_jobs(sets, count_cores())))
        for run in runs:
            if not should_stop():
                failed += _run(run, workers, should_stop, as_json)
            if overview and run.manifest is not None:
                _look(run, as_json)
        exit_if(should_stop(), failed)


def _take_published(
    dataset: str, datasets: Path | None, path: Path | None, out: Path, restart: bool, as_json: bool
) -> None:
    """Put a dataset's published features beside the others, and say what is not in them."""
    from reclass_plex.training.datasets.installed import datasets_folder
    from reclass_plex.training.datasets.reading import Reading
    from reclass_plex.training.extraction_published import NAME, extract_published

    folder, manifest, remarks = extract_published(
        dataset, datasets_folder(datasets), Reading(path), out, restart=restart
    )
    count = len(manifest.recordings)
    if as_json:
        summary: dict[str, object] = {"features": NAME, "folder": str(folder), "total": count}
        summary |= {"finished": True, "failed": 0, "recordings": count}
        console.print_json(summary | {"shape": list(manifest.shape)})
        return
    for remark in remarks:
        console.say(f"{NAME}: {remark}", to=console.err)
    rows = f"{manifest.shape[0]:,} rows"
    console.say(f"{NAME}: {count:,} recordings, {rows} in {printable(folder)}")


def _look(run: Extraction, as_json: bool) -> None:
    """Draw the overview of a finished set, and print its figures."""
    from reclass_plex.training.extraction import read_table
    from reclass_plex.training.overview import NAME, draw_overview, summarise_table

    table = read_table(run.folder)
    try:
        seen = summarise_table(table)
    except ConfigError as error:  # the other sets may have one
        console.say(str(error), to=console.err)
        return
    draw_overview(table, run.folder / NAME)
    if as_json:
        console.print_json({"features": run.features.name, "overview": asdict(seen)})
        return
    console.say(
        f"{run.features.name}: {seen.dims} features, {seen.constant} constant, {seen.redundant}"
        f" redundant, {seen.components} principal components hold 95 %;"
        f" {printable(run.folder / NAME)}"
    )


def _read(
    name: str, datasets: Path | None, path: Path | None, config_file: Path | None
) -> Collection:
    from reclass_plex.training.datasets.catalogue import CATALOGUE
    from reclass_plex.training.datasets.installed import datasets_folder
    from reclass_plex.training.datasets.reading import Reading, read_dataset

    if name == "library":
        from reclass_plex.genres import DEFAULT, TAXONOMIES
        from reclass_plex.store import Store
        from reclass_plex.training.datasets.library import read_library, tracks_of_store

        config = configure(config_file)
        with Store.open(config.store.resolve()) as store:
            return read_library(
                tracks_of_store(store), TAXONOMIES.get(config.ensemble.taxonomy, DEFAULT)
            )
    own = Path(name)
    if name not in {known.name for known in CATALOGUE} and own.exists():
        name, path = ("folders" if own.is_dir() else "table"), own
    return read_dataset(name, datasets_folder(datasets), Reading(path))


def _run(run: Extraction, workers: Workers, should_stop: Callable[[], bool], as_json: bool) -> int:
    """Finish one set, print what came of it; return how many recordings have no features."""
    name, total = run.features.name, run.total
    if run.done and not as_json:
        console.say(f"{name}: {run.done:,} of {total:,} recordings are there", to=console.err)
    with console.showing_progress(total - run.done, f"extracting {name}") as advance:
        manifest = run.run(workers, lambda: advance(1), should_stop)
    failed = {key: (failure.kind, failure.reason) for key, failure in run.unread.items()}
    if manifest is not None:
        failed |= {each.key: (each.kind, each.reason) for each in manifest.failed}
    if as_json:
        for key, (kind, reason) in failed.items():
            error = {"kind": kind, "message": reason}
            console.print_json({"features": name, "key": key, "error": error})
        summary: dict[str, object] = {"features": name, "folder": str(run.folder), "total": total}
        summary |= {"finished": manifest is not None, "failed": len(failed)}
        if manifest is not None:
            summary |= {"recordings": len(manifest.recordings), "shape": list(manifest.shape)}
        console.print_json(summary)
        return len(failed)
    for key, (_, reason) in list(failed.items())[:SHOWN]:
        console.say(f"{name}: {key}: {reason}", style="red", to=console.err)
    if len(failed) > SHOWN:
        console.say(f"{name}: {len(failed) - SHOWN:,} more failed", style="red", to=console.err)
    where = printable(run.folder)
    if manifest is None:
        console.say(f"{name}: not finished; give the same command again to go on")
    else:
        kept = f"{len(manifest.recordings):,} of {total:,} recordings, {manifest.shape[0]:,} rows"
        console.say(f"{name}: {kept} in {where}")
    return len(failed) or int(manifest is None)
