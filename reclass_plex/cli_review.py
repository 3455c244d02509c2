"""The commands for a person's word: what waits for it, and what other settings would do."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reclass_plex import console
from reclass_plex.cli_options import (
    LOCK_SECONDS,
    AsJson,
    ConfigFile,
    configure,
    exit_if,
    full_path,
)
from reclass_plex.config import Config
from reclass_plex.ensemble import Ensemble
from reclass_plex.errors import ConfigError, printable
from reclass_plex.store import Store

if TYPE_CHECKING:
    from reclass_plex.decisions import Decided, Written
    from reclass_plex.preview import Counts, Preview

app = typer.Typer()

TOP = 3  # genres shown of each track
SHOWN = 20  # examples, and genres, of a preview


@app.command()
def review(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(help="Files, and folders with all in them.", show_default=False),
    ] = None,
    accept: Annotated[
        bool, typer.Option("--accept", help="What was heard first in PATHS is right.")
    ] = False,
    correct: Annotated[
        list[str] | None,
        typer.Option(metavar="GENRE", help="PATHS are of this genre; again for more."),
    ] = None,
    forget: Annotated[
        bool, typer.Option("--forget", help="Let the models decide on PATHS again.")
    ] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000)] = 100,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """List what waits for your decision, or decide: it is written, and no model overrules it."""
    from reclass_plex import decisions

    if bool(accept) + bool(correct) + bool(forget) > 1:
        raise ConfigError("say one thing: --accept, --correct or --forget")
    config = configure(config_file)
    with Store.open(config.store.resolve()) as store:
        if not (accept or correct or forget):
            if paths:
                raise ConfigError("say what to do with them: --accept, --correct or --forget")
            _list(store, config, limit, as_json=as_json)
            return
        ids = _find_tracks(store, [full_path(path) for path in paths or ()])
        if forget:
            console.say(f"{decisions.forget(store, ids)} decisions are forgotten; files stay")
            return
        ensemble = Ensemble.from_config(config)
        if correct:
            said = decisions.correct(store, ids, correct, config, ensemble)
        else:
            said = decisions.accept(store, ids, config, ensemble)
        with console.stopping_politely() as should_stop:
            results = decisions.write_decisions(
                store,
                config,
                run_id=said.run_id,
                wait_seconds=LOCK_SECONDS,
                should_stop=should_stop,
            )
            written = [] if said.run_id is None else results
            failed = _say(said, console.follow(written, len(ids), "writing"), as_json=as_json)
            exit_if(should_stop(), failed)


def _find_tracks(store: Store, paths: Sequence[Path]) -> list[int]:
    """Return the ids of the known tracks at and below paths. Raises ConfigError if none is."""
    if not paths:
        raise ConfigError("name the files, or folders, that you decide on")
    found: dict[int, None] = {}
    for path in paths:
        ids = store.tracks_below([path, Path(os.path.realpath(path))])
        if not ids:
            raise ConfigError(
                f"{printable(path)}: no track here was heard yet: reclass-plex tag --dry-run"
            )
        found.update(dict.fromkeys(ids))
    return list(found)


def _list(store: Store, config: Config, limit: int, *, as_json: bool) -> None:
    """List what the daemon set aside, and what `tag` left: that is in no queue."""
    from reclass_plex.batches import cut
    from reclass_plex.jobs import Jobs
    from reclass_plex.preview import unsure_tracks

    ensemble = Ensemble.from_config(config)
    models = ensemble.fingerprint
    jobs = {job.path: job.message for job in Jobs(store).list_jobs("review", limit=100_000)}
    known = {one.id: one for page in cut(jobs, 1000) for one in store.known_files(page, models)}
    reasons = {one.id: jobs[one.path] for one in known.values()}
    left = dict(unsure_tracks(store, models, ensemble.taxonomy, config.policy))
    more = [track_id for track_id in left if track_id not in known]
    known |= {one.id: one for page in cut(more, 500) for one in store.find_tracks(page, models)}
    reasons |= {track_id: left[track_id] for track_id in more}
    rows = []
    for track in known.values():
        verdict = track.verdict or store.newest_verdict(track.digest or "")
        if verdict is not None:
            rows.append((verdict.genres[0].confidence if verdict.genres else 0.0, track, verdict))
    rows.sort(key=lambda row: (row[0], os.fsencode(row[1].path)))
    for _, track, verdict in rows[:limit]:
        heard = [(score.name, score.confidence) for score in verdict.genres[:TOP]]
        why = reasons[track.id]
        if as_json:
            console.print_json(
                {
                    "id": track.id,
                    "path": os.fspath(track.path),
                    "heard": [{"genre": name, "confidence": sure} for name, sure in heard],
                    "unsure": verdict.unsure,
                    "why": why,
                }
            )
        else:
            ranked = ", ".join(f"{name} {sure:.2f}" for name, sure in heard) or "nothing"
            console.say(f"{console.short_path(track.path)}: {ranked}  [{why}]")
    if as_json:
        return
    if not rows:
        console.say("no track waits for your decision")
    elif len(rows) > limit:
        console.say(f"and {len(rows) - limit} more")


def _say(said: Decided, results: Iterable[Written], *, as_json: bool) -> int:
    """Say what became of a decision; return how many files do not say so yet."""
    failed = len(said.refused)
    done = 0
    for one in said.refused:
        name = printable(one.path) if one.path else f"track {one.track_id}"
        console.say(f"{name}: {one.reason}", style="yellow", to=console.err)
    for result in results:
        failed += result.state in ("failed", "missing")
        done += result.state in ("written", "unchanged")
        _say_written(result, as_json=as_json)
    if not as_json:
        console.say(f"{done} decided, {failed} not")
        if said.run_id is not None:
            console.say(f"take it back with: reclass-plex undo --run {said.run_id}")
    return failed


def _say_written(one: Written, *, as_json: bool) -> None:
    if as_json:
        console.print_json(
            {
                "id": one.track_id,
                "path": os.fspath(one.path),
                "genres": list(one.genres),
                "state": one.state,
                "reason": one.reason,
            }
        )
    else:
        text = one.reason or f"{console.genres_text(one.genres)} ({one.state})"
        style = "yellow" if one.reason else ""
        console.say(f"{console.short_path(one.path)}: {text}", style=style)


@app.command("preview")
def preview_settings(
    mode: Annotated[
        str | None, typer.Option(help="fill, append or replace.", show_default=False)
    ] = None,
    min_confidence: Annotated[float | None, typer.Option(min=0, max=1)] = None,
    max_genres: Annotated[int | None, typer.Option(min=1, max=10)] = None,
    album_consensus: Annotated[
        bool | None, typer.Option("--album-consensus/--no-album-consensus", show_default=False)
    ] = None,
    add_parents: Annotated[
        bool | None, typer.Option("--add-parents/--no-add-parents", show_default=False)
    ] = None,
    overwrite_user_genres: Annotated[
        bool | None, typer.Option("--overwrite-user-genres", show_default=False)
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option(metavar="OURS=YOURS", help="Another name; again for more.")
    ] = None,
    allow: Annotated[list[str] | None, typer.Option(help="Only these; again for more.")] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Not these; again for more.")] = None,
    sample: Annotated[int, typer.Option(min=0, max=10_000, help="Files to show.")] = SHOWN,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Say what other settings would do to all that was heard. Changes nothing."""
    from reclass_plex.preview import change_policy, preview

    config = configure(config_file)
    pairs = [one.partition("=") for one in name or ()]
    if wrong := [ours for ours, equals, yours in pairs if not (ours and equals and yours)]:
        raise ConfigError(f"--name {wrong[0]}: write it as Hip-Hop=Rap")
    options = {
        "mode": mode,
        "min_confidence": min_confidence,
        "max_genres": max_genres,
        "album_consensus": album_consensus,
        "add_parents": add_parents,
        "overwrite_user_genres": overwrite_user_genres,
        "names": {ours: yours for ours, _, yours in pairs} or None,
        "allow": tuple(allow) if allow else None,
        "ignore": tuple(ignore) if ignore else None,
    }
    given = {key: value for key, value in options.items() if value is not None}
    policy = change_policy(config.policy, given)
    ensemble = Ensemble.from_config(config)
    began = time.perf_counter()
    with (
        Store.open(config.store.resolve()) as store,
        console.stopping_politely() as should_stop,
        console.showing_progress(store.count_tracks(), "looking") as advance,
    ):
        found = preview(
            store,
            ensemble.fingerprint,
            ensemble.taxonomy,
            policy,
            config.policy,
            sample=sample,
            on_progress=advance,
            should_stop=should_stop,
        )
    _say_preview(found, time.perf_counter() - began, as_json=as_json)
    exit_if(found.stopped, 0)


def _say_preview(found: Preview, seconds: float, *, as_json: bool) -> None:
    if as_json:
        console.print_json(
            {
                "tracks": found.tracks,
                "unheard": found.unheard,
                "then": dict(vars(found.then)),
                "now": dict(vars(found.now)),
                "differs": found.differs,
                "genres": dict(found.genres),
                "library": dict(found.library),
                "reasons": dict(found.reasons),
                "sample": [dict(vars(one)) | {"path": os.fspath(one.path)} for one in found.sample],
                "stopped": found.stopped,
            }
        )
        return
    for one in found.sample:
        before, after = console.genres_text(one.before), console.genres_text(one.after)
        console.say(f"{console.short_path(one.path)}: {before} -> {after}  [{one.reason}]")
    console.say(
        f"{found.tracks} tracks ({found.unheard} not heard yet), looked at in {seconds:.1f} s"
    )
    console.say(f"with these settings: {_describe(found.then)}")
    console.say(f"with yours:          {_describe(found.now)}; {found.differs} files differ")
    if found.genres:
        ranked = ", ".join(f"{name} {count}" for name, count in found.genres[:SHOWN])
        console.say(f"written: {ranked}")
    for reason, count in found.reasons[:SHOWN]:
        console.say(f"  {count} stay: {reason}")


def _describe(counts: Counts) -> str:
    return (
        f"{counts.written} written, {counts.changed} changed, {counts.moods} only moods,"
        f" {counts.review} for review, {counts.kept} kept"
    )
