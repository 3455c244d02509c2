"""The commands `models ...`: what votes, and the weights that are fetched for it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reclass_plex import console, models
from reclass_plex.cli_install import install_as
from reclass_plex.cli_options import (
    FAILED,
    AsJson,
    ConfigFile,
    Yes,
    configure,
    confirm,
    exit_if,
    full_path,
)
from reclass_plex.errors import ReclassError, printable
from reclass_plex.transfer_bar import showing_bytes

if TYPE_CHECKING:
    from reclass_plex.installed_ensembles import Installed

app = typer.Typer(help="The models that vote, and their weights.", no_args_is_help=True)

Names = Annotated[
    list[str] | None, typer.Argument(help="mert-95m, mert-330m, jmla, clap.", show_default=False)
]
Mirror = Annotated[
    str | None, typer.Option(help="An address that has REPOSITORY/resolve/REVISION/FILE.")
]
AcceptLicence = Annotated[
    bool, typer.Option("--accept-licence", help="Accept the weights' licence.")
]


@app.command("list")
def list_all(as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """List heads, models to fetch, ensembles that were installed, and the files in the package."""
    from reclass_plex.heads import load_card
    from reclass_plex.installed_ensembles import list_installed

    folder, _ = _places(config_file)
    ensembles = list_installed(folder)
    options = configure(config_file).ensemble
    in_use = f"{options.taxonomy}-{options.profile}"
    cards = [load_card(path) for path in sorted((models.DATA / "heads").iterdir())]
    known = models.load_catalogue(folder).values()
    files = list(models.list_models())
    if as_json:
        for card in cards:
            console.print_json({"head": card.model_dump(mode="json")})
        for model in known:
            console.print_json(_model_as_json(model, folder))
        for ensemble in ensembles:
            console.print_json(_ensemble_as_json(ensemble, in_use))
        for file in files:
            console.print_json({"file": file.name, "size": file.size, "problem": file.problem})
        return
    heads = console.table("head", "genres", "hears", "accuracy (95 %)", "measured by")
    for card in cards:
        for number, one in enumerate(card.measured):
            name = (
                (card.name, str(len(card.genres)), card.features) if number == 0 else ("", "", "")
            )
            accuracy = f"{one.accuracy:.3f} ({one.low:.2f} to {one.high:.2f})"
            heads.add_row(*name, accuracy, one.protocol)
    console.out.print(heads)
    console.say("")
    fetched = console.table("model", "size", "licence", "state", "what for")
    for model in known:
        size = f"{model.length / 1e6:,.0f} MB"
        state = _state(model, folder)
        fetched.add_row(model.name, size, _licence(model), state, model.purpose)
    console.out.print(fetched)
    console.say(f"in {printable(folder)}\n")
    if ensembles:
        installed = console.table("ensemble", "stages", "state", "in use", "fitted to")
        for ensemble in ensembles:
            told = _ensemble_as_json(ensemble, in_use)
            stages = ", ".join(map(str, told["stages"]))
            installed.add_row(
                ensemble.name, stages, "; ".join(ensemble.notes) or "ok",
                "yes" if told["in_use"] else "", told["protocol"] or "",
            )  # fmt: skip
        console.out.print(installed)
        console.say("")
    listed = console.table("file", "size", "state")
    for file in files:
        listed.add_row(file.name, f"{file.size / 1e6:.2f} MB", file.problem or "ok")
    console.out.print(listed)


@app.command()
def fetch(
    names: Annotated[list[str], typer.Argument(help="mert-95m, mert-330m, jmla, clap.")],
    mirror: Mirror = None,
    accept_licence: AcceptLicence = False,
    force: Annotated[bool, typer.Option("--force", help="Also what is there already.")] = False,
    config_file: ConfigFile = None,
) -> None:
    """Fetch models. One that broke off goes on where it ended; every file is checked."""
    from reclass_plex.models.fetch import fetch_model

    folder, configured = _places(config_file)
    wanted = [models.find_in_catalogue(name, folder) for name in dict.fromkeys(names)]
    for model in wanted:  # all questions first, then the long part
        _accept(model, folder, accept_licence)
    failed = 0
    for model in wanted:
        try:
            with showing_bytes(f"{model.name}/") as on_bytes:
                fetch_model(
                    model,
                    folder,
                    mirror=mirror or configured,
                    accepted=True,
                    force=force,
                    on_bytes=on_bytes,
                    say=_remark,
                )
        except ReclassError as error:
            failed += 1
            console.say(f"error: {error}", style="red", to=console.err)
        else:
            console.say(f"{model.name}: ready in {printable(folder / model.name)}")
    exit_if(False, failed)


@app.command("import")
def import_from(
    source: Annotated[
        Path, typer.Argument(metavar="FOLDER_OR_FILE", help="A folder, a stick, or a file.")
    ],
    name: Annotated[str | None, typer.Argument(help="Only this model.")] = None,
    accept_licence: AcceptLicence = False,
    config_file: ConfigFile = None,
) -> None:
    """Take models from a folder or a stick: without a network, checked all the same."""
    from reclass_plex.models.offline import import_model, recognise

    folder, _ = _places(config_file)
    found = recognise(source, folder, name)
    for model, _weights in found:
        _accept(model, folder, accept_licence)
    for model, weights in found:
        with showing_bytes(f"{model.name}/") as on_bytes:
            import_model(model, weights, folder, accepted=True, on_bytes=on_bytes, say=_remark)
        console.say(f"{model.name}: ready in {printable(folder / model.name)}")


@app.command()
def verify(names: Names = None, as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """Read every file, and compare it with what was released or fetched. Default: all."""
    folder, _ = _places(config_file)
    known = models.load_catalogue(folder)
    faults: dict[str, list[str]] = {}
    if names:
        for name in names:
            models.find_in_catalogue(name, folder)
    else:
        faults["bundled"] = [
            f"{file.name} {file.problem}" for file in models.list_models() if file.problem
        ]
        names = [name for name in known if (folder / name).is_dir()]
    for name in names:
        try:
            faults[name] = models.verify_model(name, folder)
        except ReclassError as error:
            faults[name] = [str(error)]
    for name, found in faults.items():
        if as_json:
            console.print_json({"model": name, "ok": not found, "problems": list(found)})
        elif not found:
            console.say(f"{name}: ok")
        for fault in () if as_json else found:
            text = fault if fault.startswith(f"{name}:") else f"{name}: {fault}"
            console.say(text, style="red", to=console.err)
    raise typer.Exit(FAILED if any(faults.values()) else 0)


@app.command()
def install(
    ensemble: Annotated[Path, typer.Argument(help="The folder `ensemble` of a progressive run.")],
    profile: Annotated[str, typer.Option(help="What it is to be called.")],
    config_file: ConfigFile = None,
) -> None:
    """Put an ensemble that was trained here in use, as a profile. The former one is kept."""
    install_as(full_path(ensemble), profile, config_file)


@app.command()
def rollback(
    profile: Annotated[str, typer.Argument(help="The profile whose former ensemble comes back.")],
    taxonomy: Annotated[str | None, typer.Option(help="Of the ensemble.")] = None,
    yes: Yes = False,
    config_file: ConfigFile = None,
) -> None:
    """Take an installed ensemble back: the former one counts again, or none."""
    from reclass_plex.training.cascade import roll_back

    config = configure(config_file, {"ensemble": {"profile": profile, "taxonomy": taxonomy}})
    chosen = config.ensemble.taxonomy
    confirm(f"Take the ensemble {chosen}-{profile} back?", yes)
    former = roll_back(chosen, profile, models.models_folder(config.models.folder))
    console.say("the former ensemble counts again" if former else "there is none now: cpu decides")


@app.command()
def remove(
    names: Annotated[list[str], typer.Argument(help="mert-95m, mert-330m, jmla, clap.")],
    forget: Annotated[
        bool,
        typer.Option("--forget", help="Also what was trusted on first use: trust the next anew."),
    ] = False,
    yes: Yes = False,
    config_file: ConfigFile = None,
) -> None:
    """Delete fetched models. Without them their stages are skipped."""
    folder, _ = _places(config_file)
    for name in names:
        models.find_in_catalogue(name, folder)
    confirm(f"Delete {', '.join(names)} from {printable(folder)}?", yes)
    for name in names:
        freed = models.remove_model(name, folder, forget=forget)
        console.say(f"{name}: removed, {freed / 1e6:,.1f} MB freed")


def _places(config_file: Path | None) -> tuple[Path, str | None]:
    """Return the folder of the models, and the mirror that the configuration names."""
    options = configure(config_file).models
    return models.models_folder(options.folder), options.mirror


def _accept(model: models.Model, folder: Path, accepted: bool) -> None:
    """Show a licence that has to be accepted, and ask on a terminal. Raises ModelError."""
    from reclass_plex.models.install import describe_terms, former_acceptance, require_licence

    if not model.must_accept:
        return
    console.say(f"{model.name}: {describe_terms(model)}.", to=console.err)
    if accepted or former_acceptance(model, folder) is not None:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        require_licence(model, folder, accepted=False)  # says how to accept
    if not console.agrees("Do you accept this licence?"):
        console.say("not accepted; nothing was fetched", to=console.err)
        raise typer.Exit(FAILED)


def _state(model: models.Model, folder: Path) -> str:
    from reclass_plex.models.installed import incoming

    problem = models.why_missing(model.name, folder)
    if problem is None:
        return "fetched"
    if (folder / model.name).is_dir():
        return "damaged"
    begun = [path.stat().st_size for path in incoming(model, folder).glob("*") if path.is_file()]
    return f"begun, {sum(begun) / 1e6:,.0f} MB" if sum(begun) else "not fetched"


def _model_as_json(model: models.Model, folder: Path) -> dict[str, object]:
    problem = models.why_missing(model.name, folder)
    return {
        "model": model.name,
        "state": _state(model, folder),
        "problem": problem,
        "path": None if problem else str(folder / model.name),
        "size": model.length,
        "licence": model.licence,
        "terms": model.terms,
        "repository": model.repository,
        "revision": model.revision,
        "purpose": model.purpose,
    }


def _ensemble_as_json(one: Installed, in_use: str) -> dict[str, Any]:
    spec = one.spec
    return {
        "ensemble": one.name,
        "taxonomy": one.taxonomy,
        "profile": one.profile,
        "path": os.fspath(one.folder),
        "stages": [stage.name for stage in spec.stages] if spec else [],
        "models": [stage.model for stage in spec.stages if stage.model] if spec else [],
        "genres": list(spec.genres) if spec else [],
        "protocol": spec.protocol if spec else None,
        "in_use": one.name == in_use,
        "problems": list(one.notes),
    }


def _licence(model: models.Model) -> str:
    return model.licence if model.terms == "free" else f"{model.licence} ({model.terms})"


def _remark(text: str) -> None:
    console.say(text, to=console.err)
