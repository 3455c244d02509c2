"""The command `reclass-plex`: parse, call, print. What it does is in the modules it calls.

Exit status: 0 when all worked, 1 when some files failed (each is named), 2 for wrong use.
"""

from __future__ import annotations

import enum
import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer

from reclass_plex import (
    changes,
    cli_access,
    cli_analyse,
    cli_backup,
    cli_daemon,
    cli_dataset,
    cli_evaluate,
    cli_extract,
    cli_history,
    cli_learn,
    cli_listen,
    cli_models,
    cli_notify,
    cli_organize,
    cli_review,
    cli_similar,
    cli_train,
    console,
    pipeline,
)
from reclass_plex.cli_options import (
    FAILED,
    LOCK_SECONDS,
    WRONG_USE,
    AsJson,
    ConfigFile,
    Profile,
    Taxonomy,
    Yes,
    configure,
    confirm,
    exit_if,
    full_path,
    repair_files,
)
from reclass_plex.config import Config
from reclass_plex.decoders import Decoders, Limits
from reclass_plex.ensemble import Ensemble
from reclass_plex.errors import ConfigError, FileError, ReclassError, printable
from reclass_plex.files import AUDIO_SUFFIXES, FoundFile, find_audio_files
from reclass_plex.records import Excerpt
from reclass_plex.store import Store

app = typer.Typer(
    help="Listens to your music, decides each genre, writes it so that nothing is lost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cli_models.app, name="models")
app.add_typer(cli_dataset.app, name="dataset")
app.add_typer(cli_notify.app, name="notify")
app.add_typer(cli_organize.app)
app.add_typer(cli_listen.app)
app.add_typer(cli_extract.app)
app.add_typer(cli_analyse.app, name="analyse")
app.add_typer(cli_train.app)
app.add_typer(cli_learn.app)
app.add_typer(cli_evaluate.app)
app.add_typer(cli_history.app)
app.add_typer(cli_backup.app)
app.add_typer(cli_similar.app)
app.add_typer(cli_review.app)
app.add_typer(cli_daemon.app)
app.add_typer(cli_access.app)
app.add_typer(cli_access.tokens, name="token")

TOP = 3  # genres shown of each verdict


class Mode(enum.Enum):
    """What happens to a genre that is already there."""

    fill = "fill"
    append = "append"
    replace = "replace"


Paths = Annotated[list[Path], typer.Argument(help="Files and folders.", show_default=False)]
Jobs = Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Tracks heard at once.")]


@app.command()
def classify(
    paths: Paths,
    as_json: AsJson = False,
    top: Annotated[int, typer.Option(min=1, help="How many genres to show.")] = TOP,
    stages: Annotated[bool, typer.Option("--stages", help="Show each stage's vote.")] = False,
    moods: Annotated[bool, typer.Option("--moods", help="Show moods and styles.")] = False,
    taxonomy: Taxonomy = None,
    profile: Profile = None,
    jobs: Jobs = None,
    config_file: ConfigFile = None,
) -> None:
    """Say the genre of files and folders. Changes nothing, remembers nothing."""
    config = configure(config_file, {"ensemble": {"taxonomy": taxonomy, "profile": profile}})
    found = _find(paths, leftovers=[])
    ensemble = _open_ensemble(config)
    failed = 0
    workers = jobs or pipeline.count_cores()
    with (
        console.stopping_politely() as should_stop,
        Decoders(workers, Limits.of(config.worker)) as decoders,
    ):
        results = pipeline.classify_files(
            found, ensemble, workers=workers, decode=decoders.decode, should_stop=should_stop
        )
        for result in console.follow(results, len(found), "listening"):
            failed += result.error is not None
            if as_json:
                console.print_json(console.result_as_json(result, top))
            elif result.error is not None:
                console.print_error(result.error)
            elif (verdict := result.verdict) is not None:
                console.say(
                    f"{console.short_path(result.path)}: {console.describe_verdict(verdict, top)}"
                    f"  [{verdict.decided_by}, {verdict.seconds:.2f} s]"
                )
                if moods:
                    console.say(f"    {console.describe_labels(verdict)}")
                for vote in verdict.votes if stages else ():
                    ranked = ", ".join(f"{g.name} {g.confidence:.2f}" for g in vote.genres[:top])
                    console.say(f"    {vote.stage:<16} {ranked}  [{vote.seconds:.2f} s]")
        exit_if(should_stop(), failed)


@app.command()
def tag(
    paths: Paths,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show, but write nothing.")] = False,
    mode: Annotated[
        Mode | None,
        typer.Option(help="fill: only where none is. append: add. replace: put in its place."),
    ] = None,
    min_confidence: Annotated[
        float | None, typer.Option(min=0, max=1, help="Write only genres this probable.")
    ] = None,
    overwrite_user_genres: Annotated[
        bool | None,
        typer.Option("--overwrite-user-genres", help="Also where you edited or undid our genre."),
    ] = None,
    taxonomy: Taxonomy = None,
    profile: Profile = None,
    jobs: Jobs = None,
    yes: Yes = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also list the files that stay as they are.")
    ] = False,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Write the genre of every track that has none. Every change can be undone."""
    config = configure(
        config_file,
        {
            "ensemble": {"taxonomy": taxonomy, "profile": profile},
            "policy": {
                "mode": mode.value if mode else None,
                "min_confidence": min_confidence,
                "overwrite_user_genres": overwrite_user_genres,
            },
        },
    )
    leftovers: list[Path] = []
    found = _find(paths, leftovers)
    total = len(found)
    count = sum(isinstance(item, FoundFile) for item in found)
    if not dry_run:
        confirm(f"Tag {count} files ({config.policy.mode} mode)?", yes)
    workers = jobs or pipeline.count_cores()
    with (
        Store.open(config.store.resolve()) as store,
        store.writing_files(LOCK_SECONDS),
        console.stopping_politely() as should_stop,
        Decoders(workers, Limits.of(config.worker)) as decoders,
    ):
        repair_files(store, config.tags)
        changes.remove_leftovers(store, leftovers)
        run_id = None if dry_run else store.start_run("tag")
        ensemble = _open_ensemble(config)
        results = pipeline.tag_files(
            _each(found),
            store=store,
            ensemble=ensemble,
            config=config,
            run_id=run_id,
            workers=workers,
            examine=decoders.examine,
            hear=pipeline.listener(ensemble, decoders.decode),
            should_stop=should_stop,
        )
        counts = {"written": 0, "kept": 0, "failed": 0}
        want = _plex_sink(store, config, run_id)
        for result in console.follow(results, total, "tagging"):
            want(result)
            _count_and_print(result, counts, dry_run=dry_run, as_json=as_json, verbose=verbose)
        if run_id is not None:
            store.finish_run(run_id)
        if not as_json:
            changed = "would change" if dry_run else "changed"
            console.say(
                f"{counts['written']} {changed}, {counts['kept']} kept as they were,"
                f" {counts['failed']} failed"
            )
            if run_id is not None and counts["written"]:
                console.say(f"take it back with: reclass-plex undo --run {run_id}")
        exit_if(should_stop(), counts["failed"])


def _plex_sink(
    store: Store, config: Config, run_id: int | None
) -> Callable[[pipeline.TrackResult], object]:
    """Return what notes a track's genres for Plex, where the daemon will write them."""
    if config.plex.url is None or run_id is None:
        return lambda result: None
    from reclass_plex.sync import Wanted, WantedGenres

    wanted = Wanted(store)

    def want(result: pipeline.TrackResult) -> None:
        genres, labels = pipeline.genres_for_plex(result), pipeline.labels_for_plex(result)
        if result.written and (genres or any(labels)):
            wanted.want([WantedGenres(result.path, genres, run_id, *labels)], time.time())

    return want


def _count_and_print(
    result: pipeline.TrackResult,
    counts: dict[str, int],
    *,
    dry_run: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    plan, verdict = result.plan, result.verdict
    changes_file = result.written or (dry_run and plan is not None and plan.after is not None)
    kind = "failed" if result.error else "written" if changes_file else "kept"
    counts[kind] += 1
    if as_json:
        console.print_json(console.result_as_json(result, TOP))
    elif result.error is not None:
        console.print_error(result.error)
    elif plan is not None and verdict is not None and (changes_file or verbose):
        name = console.short_path(result.path)
        if changes_file:
            before, after = console.genres_text(plan.before), console.genres_text(plan.after or ())
            console.say(f"{name}: {before} -> {after}  [{plan.reason}; {verdict.decided_by}]")
        else:
            console.say(f"{name}: kept {console.genres_text(plan.before)}  [{plan.reason}]")


@app.command()
def features(
    file: Annotated[Path, typer.Argument(help="An audio file.", show_default=False)],
    excerpt: Annotated[str, typer.Option(help="full, or middle30 (the middle 30 s).")] = "middle30",
    as_json: AsJson = False,
) -> None:
    """Print the 518 FMA features of a file, named and ordered as the published table has them."""
    try:
        part = Excerpt.parse(excerpt)
    except ValueError as error:
        raise ConfigError(f"--excerpt: {error}") from None
    rate, values = pipeline.fma_features(file, part)
    if as_json:
        console.print_json(
            {"path": os.fspath(file), "excerpt": part.name, "rate": rate, "features": values}
        )
        return
    for name, value in values.items():
        console.say(f"{name}\t{value:.6g}")


@app.command()
def init(
    url: Annotated[str | None, typer.Option(help="The Plex server's address.")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="A file that holds Plex's token and nothing else.")
    ] = None,
    no_plex: Annotated[bool, typer.Option("--no-plex", help="Only files, no Plex.")] = False,
    library: Annotated[
        list[str] | None, typer.Option(help="A music library of Plex; again for more. [all]")
    ] = None,
    folder: Annotated[
        list[Path] | None, typer.Option(help="A folder to watch; again for more.")
    ] = None,
    path_map: Annotated[
        list[str] | None,
        typer.Option(metavar="PLEX=LOCAL", help="Plex's name of a folder and the one here."),
    ] = None,
    mode: Annotated[Mode | None, typer.Option(help="fill, append or replace.")] = None,
    yes: Yes = False,
    config_file: ConfigFile = None,
) -> None:
    """Ask a few questions, then write the configuration."""
    from reclass_plex import wizard

    given = wizard.Given(
        wizard.PlexGiven(
            off=no_plex,
            url=url,
            token_file=token_file,
            libraries=tuple(library or ()),
            path_map=tuple(path_map or ()),
        ),
        tuple(folder or ()),
        mode.value if mode else None,
    )
    attended = not yes and sys.stdin is not None and sys.stdin.isatty()
    ask: wizard.Ask = wizard.Terminal()
    if not attended:
        ask = wizard.Unattended(lambda text: console.say(text, to=console.err), yes=yes)

    def dry_run(files: Sequence[Path]) -> None:
        with suppress(typer.Exit):  # a file that fails is named, and is no fault here
            tag(list(files), dry_run=True, verbose=True, config_file=config_file)

    written = wizard.run_init(
        given, ask, config_file=config_file, dry_run=dry_run if attended else None
    )
    if written is not None:
        cli_access.offer_password(written.config)


@app.command("doctor")
def run_doctor(as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """Check everything, from the models to Plex, and say what to do about each fault."""
    from reclass_plex import doctor

    failed = False
    for check in doctor.diagnose(config_file):
        failed = failed or check.level == "error"
        if as_json:
            console.print_json(dict(vars(check)))
        else:
            style = {"ok": "green", "warning": "yellow", "error": "red"}[check.level]
            console.say(f"{check.level:<8}{check.name}: {check.text}", style=style)
            if check.advice:
                console.say(f"        {check.advice}")
    raise typer.Exit(FAILED if failed else 0)


def _find(paths: Sequence[Path], leftovers: list[Path]) -> deque[FoundFile | FileError]:
    """Return every audio file below the paths, made absolute without resolving links.

    Temporary copies of ours on the way go to `leftovers`.
    """
    absolute = [full_path(path) for path in paths]
    found: deque[FoundFile | FileError] = deque()
    with console.showing_progress(None, "looking for music") as advance:
        for item in find_audio_files(absolute, AUDIO_SUFFIXES, leftovers.append):
            found.append(item)
            advance(1)
    if not found:
        named = ", ".join(printable(path) for path in paths)
        console.say(f"no audio files in {named}", to=console.err)
    return found


def _each(found: deque[FoundFile | FileError]) -> Iterator[FoundFile | FileError]:
    """Yield the files, and keep none that was: a million of them are a third of a gigabyte."""
    while found:
        yield found.popleft()


def _open_ensemble(config: Config) -> Ensemble:
    ensemble = Ensemble.from_config(config)
    for note in ensemble.notes:
        console.warn(note)
    return ensemble


def main() -> None:
    """Run the command; turn our own errors into one line and an exit status."""
    console.prepare_streams()
    with _numba_can_cache():
        try:
            app()
        except ConfigError as error:
            console.complain(error)
            sys.exit(WRONG_USE)
        except ReclassError as error:
            console.complain(error)
            sys.exit(FAILED)
        except BrokenPipeError:  # the reader of our output (head, say) has seen enough
            console.discard_output()
            sys.exit(FAILED)
        except OSError as error:  # of files we say more; this is our own output, or no memory
            console.discard_output()
            console.complain(error)
            sys.exit(FAILED)


@contextmanager
def _numba_can_cache() -> Iterator[None]:
    """Give numba (librosa's compiler) a folder for its cache where the user has none.

    It refuses to work without one: as a service user without a home, say.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111
    nearest = next(folder for folder in (cache, *cache.parents) if os.path.exists(folder))  # noqa: PTH110
    if "NUMBA_CACHE_DIR" in os.environ or os.access(nearest, os.W_OK | os.X_OK):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="reclass-plex-numba-") as folder:
        os.environ["NUMBA_CACHE_DIR"] = folder
        yield
