"""The questions of `reclass-plex init` about Plex: sign-in, server, libraries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from reclass_plex import credentials
from reclass_plex.config import PathMap, PlexOptions
from reclass_plex.errors import ConfigError, PlexError, PlexUnauthorized, printable
from reclass_plex.plex import MusicLibrary, Plex
from reclass_plex.plex.signin import find_address, list_servers, sign_in
from reclass_plex.wizard.asking import Ask
from reclass_plex.wizard.folders import (
    list_local_folders,
    list_newest,
    map_folders,
    sample_tracks,
)

CONNECT_SECONDS = 10.0
LOCAL_PLEX = "http://127.0.0.1:32400"


@dataclass(frozen=True)
class PlexGiven:
    """What the command line says about Plex; `path_map` are texts PLEX=LOCAL."""

    off: bool = False
    url: str | None = None
    token_file: Path | None = None
    libraries: tuple[str, ...] = ()
    path_map: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlexAnswers:
    """What is to be written about Plex.

    `new_token` is to be kept beside the configuration; `folders` are the local folders of the
    libraries, `newest` the local folders of some newly added tracks.
    """

    options: PlexOptions
    new_token: str | None = field(default=None, repr=False)
    folders: tuple[Path, ...] = ()
    newest: tuple[Path, ...] = ()


def ask_plex(
    given: PlexGiven,
    base: PlexOptions,
    ask: Ask,
    config_file: Path,
    *,
    plex_tv: str,
    starts: Sequence[Path],
) -> PlexAnswers:
    """Ask for server, token, libraries and path map, as far as `given` does not say them."""
    if given.off:
        return PlexAnswers(_change(base, url=None))
    maps = tuple(_parse_map(text) for text in given.path_map) or base.path_map
    options = _change(base, path_map=maps, url=given.url or base.url)
    if given.token_file is not None:
        options = _change(options, token_file=given.token_file.absolute())
    connected = _connect_as_known(options, given, ask, config_file)
    new_token = None
    if connected is None:
        how = ask.choose(
            "Shall Plex show the genres, too?",
            (
                "yes: sign in to Plex with a code",
                "yes: I have a token in a file",
                "no Plex, only the files",
            ),
            option="--token-file FILE or --no-plex",
        )[0]
        if how == 2:
            return PlexAnswers(_change(base, url=None))
        if how == 1:
            options, token = _ask_token_file(options, ask, config_file)
        else:
            options, token = _sign_in(options, given, ask, plex_tv)
            new_token = token
        connected = _connect(options, token, ask, may_ask=given.url is None)
    with connected as plex:
        ask.say(f"connected: {plex.name}, version {plex.version}, {plex.url}")
        options = _change(options, url=plex.url)
        libraries = _choose_libraries(given.libraries or base.libraries, given, ask, plex)
        every = len(libraries) == len(plex.list_libraries()) and not given.libraries
        names = () if every else tuple(library.title for library in libraries)
        samples = {library.key: sample_tracks(plex, library) for library in libraries}
    found = {folder: paths for one in samples.values() for folder, paths in one.items()}
    maps = map_folders(found, maps, ask, starts, fixed=bool(given.path_map))
    return PlexAnswers(
        _change(options, libraries=names, path_map=maps),
        new_token,
        tuple(list_local_folders(found, maps)),
        tuple(list_newest(found, maps)),
    )


# Token and server


def _connect_as_known(
    options: PlexOptions, given: PlexGiven, ask: Ask, config_file: Path
) -> Plex | None:
    """Connect with a token that is there already; None if there is none, or it is void."""
    try:
        secret = credentials.find_plex_token(options, config_file, ask.say)
    except ConfigError as error:
        if given.token_file is not None:
            raise
        if credentials.token_file(options, config_file).exists():
            ask.say(str(error))
        return None
    kept = " (which is not written anywhere)" if secret.place.startswith("$") else ""
    ask.say(f"using the Plex token of {secret.place}{kept}")
    try:
        return _connect(options, secret.value, ask, may_ask=given.url is None)
    except PlexUnauthorized as error:
        beside = config_file.with_name(credentials.TOKEN_NAME)
        if given.token_file is not None or secret.place != printable(beside):
            raise  # a new one in plex-token would not be looked at
        ask.say(str(error))
        return None


def _ask_token_file(options: PlexOptions, ask: Ask, config_file: Path) -> tuple[PlexOptions, str]:
    while True:
        answer = ask.text("File with the token?", option="--token-file FILE")
        if not answer:
            continue
        options = _change(options, token_file=Path(answer).expanduser().absolute())
        try:
            return options, credentials.read_plex_token(options, config_file, ask.say)
        except ConfigError as error:
            ask.say(str(error))


def _sign_in(
    options: PlexOptions, given: PlexGiven, ask: Ask, plex_tv: str
) -> tuple[PlexOptions, str]:
    """Return a token, and options with the address of one of the account's servers if found."""
    token = sign_in(
        lambda address, code: ask.say(
            f"Open {address} in a browser, sign in there as the server's owner, and type this"
            f" code:  {code}\nWaiting for that (Ctrl-C ends it)."
        ),
        plex_tv=plex_tv,
    )
    ask.say("signed in")
    options = _change(options, token_file=None)
    if given.url is not None:
        return options, token
    options = _change(options, url=None)
    servers = list_servers(token, plex_tv=plex_tv)
    if not servers:
        ask.say("This account owns no server, and only a server's owner can edit its genres.")
        return options, token
    chosen = 0
    if len(servers) > 1:
        names = [*(server.name for server in servers), "another address"]
        chosen = ask.choose("Which server?", names, option="--url URL")[0]
    if chosen == len(servers):
        return options, token
    server = servers[chosen]
    address = find_address(server)
    if address is None:
        tried = ", ".join(server.addresses) or "none"
        ask.say(f"{server.name} answers at none of the addresses that Plex knows: {tried}")
    return _change(options, url=address), server.token


def _connect(options: PlexOptions, token: str, ask: Ask, *, may_ask: bool) -> Plex:
    """Connect, asking for the address until a Plex server answers there."""
    url = options.url
    while True:
        if url is None:
            url = ask.text("Address of the Plex server?", LOCAL_PLEX, option="--url URL")
            url = url if "://" in url else f"http://{url}"
        try:
            # Every library is to be listed, and nobody wants to wait long.
            wanted = _change(options, url=url, libraries=(), timeout_seconds=CONNECT_SECONDS)
            return Plex(wanted, token)
        except PlexUnauthorized:
            raise
        except (PlexError, ConfigError) as error:
            if not may_ask:
                raise
            ask.say(str(error))
            url = None


# Libraries


def _choose_libraries(
    wanted: Sequence[str], given: PlexGiven, ask: Ask, plex: Plex
) -> tuple[MusicLibrary, ...]:
    libraries = plex.list_libraries()
    if not libraries:
        raise ConfigError(f"{plex.name} has no music library; make one in Plex first")
    by_name = {library.title.casefold(): index for index, library in enumerate(libraries)}
    if given.libraries:
        for name in given.libraries:
            if name.casefold() not in by_name:
                there = ", ".join(library.title for library in libraries)
                raise ConfigError(f"--library {name}: is none of the music libraries: {there}")
    known = tuple(by_name[name.casefold()] for name in wanted if name.casefold() in by_name)
    chosen = known or tuple(range(len(libraries)))
    if not given.libraries and len(libraries) > 1:
        names = [library.title for library in libraries]
        chosen = ask.choose("Which libraries?", names, chosen, several=True)
    return tuple(libraries[index] for index in chosen)


def _parse_map(text: str) -> PathMap:
    """Read PLEX=LOCAL; the local path begins behind the last "=/"."""
    plex, separator, local = text.rpartition("=/")
    try:
        if not separator:
            raise ValueError
        return PathMap(plex=plex, local="/" + local)
    except ValueError:  # pydantic's is one
        raise ConfigError(
            f"--path-map {text}: must be PLEX=LOCAL, such as /data/music=/mnt/music"
        ) from None


def _change(options: PlexOptions, **changes: object) -> PlexOptions:
    """Return options with some of them changed, checked."""
    try:
        return PlexOptions.model_validate(options.model_dump() | changes)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"plex.{key}: has value {first['input']!r}. {first['msg']}.") from None
