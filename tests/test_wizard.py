"""`reclass-plex init`: sign-in at a real HTTP server, a real Plex stand-in, real folders, a pty."""

from __future__ import annotations

import os
import pty
import re
import select
import stat
import subprocess
import sys
import threading
import time
import unicodedata
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest
import yaml
from plex_server import Library, PlexStandIn
from timing import timed

from reclass_plex.config import CONFIG_VARIABLE, Config, PathMap, load_config
from reclass_plex.credentials import CREDENTIALS_VARIABLE, TOKEN_VARIABLE
from reclass_plex.errors import ConfigError, PlexUnauthorized, PlexUnreachable
from reclass_plex.plex import to_local
from reclass_plex.plex.signin import LINK, AccountServer, find_address, list_servers, sign_in
from reclass_plex.wizard import Given, PlexGiven, Unattended, config_text, run_init
from reclass_plex.wizard.path_guess import count_found, guess_maps, join_maps

TOKEN = "stand-in-token"


class PlexTv:
    """A stand-in for plex.tv: /api/v2/pins and /api/v2/resources, as strict as can be.

    The code counts as typed after `polls_needed` looks, never if that is None; with `expired`
    it is forgotten at once.
    """

    def __init__(self) -> None:
        self.polls_needed: int | None = 0
        self.expired = False
        self.broken = False
        self.resources = ""
        self.log: list[str] = []
        self.errors: list[str] = []
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), _TvHandler)
        self.http.tv = self  # type: ignore[attr-defined]
        self.http.daemon_threads = False
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.05,))
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    def answer(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        if not headers.get("x-plex-client-identifier"):
            self.errors.append(f"{method} {path}: no client identifier")
            return 400, ""
        if self.broken:
            return 503, "maintenance"
        if (method, path) == ("POST", "/api/v2/pins"):
            if headers.get("x-plex-product") != "reclass-plex":
                self.errors.append("the sign-in does not say who asks")
            return 201, '<pin id="4711" code="QX7K" expiresIn="900" authToken=""/>'
        if (method, path) == ("GET", "/api/v2/pins/4711"):
            if self.expired:
                return (
                    404,
                    '<errors><error code="1020" message="Code not found or expired"/></errors>',
                )
            token = ""
            if self.polls_needed is not None:
                token = TOKEN if self.polls_needed <= 0 else ""
                self.polls_needed -= 1
            return 200, f'<pin id="4711" code="QX7K" authToken="{token}"/>'
        if (method, path) == ("GET", "/api/v2/resources"):
            if headers.get("x-plex-token") != TOKEN:
                return 401, "<errors/>"
            return 200, f"<resources>{self.resources}</resources>"
        self.errors.append(f"{method} {path}")
        return 400, ""

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


class _TvHandler(BaseHTTPRequestHandler):
    def _serve(self) -> None:
        tv: PlexTv = self.server.tv  # type: ignore[attr-defined]
        path = urlsplit(self.path)
        tv.log.append(f"{self.command} {path.path}")
        if "X-Plex-Token" in dict(parse_qsl(path.query)):
            tv.errors.append("a token in an address")
        headers = {name.lower(): value for name, value in self.headers.items()}
        status, body = tv.answer(self.command, path.path, headers)
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    do_GET = do_POST = _serve

    def log_message(self, format: str, *arguments: object) -> None:
        pass


class Scripted:
    """Answers questions in order; each must be the one that is expected."""

    def __init__(self, *script: tuple[str, str | bool | tuple[int, ...]]) -> None:
        self.script = list(script)
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    @property
    def heard(self) -> str:
        return "\n".join(self.said)

    def _next(self, question: str, kind: type) -> object:
        assert self.script, f"not expected: {question}"
        expected, answer = self.script.pop(0)
        assert re.search(expected, question), f"{question!r} instead of {expected!r}"
        assert isinstance(answer, kind)
        return answer

    def text(self, question: str, default: str = "", *, option: str = "") -> str:
        return str(self._next(question, str)) or default

    def confirm(self, question: str, default: bool = True, *, option: str = "") -> bool:
        return bool(self._next(question, bool))

    def choose(
        self,
        question: str,
        choices: Sequence[str],
        default: Sequence[int] = (0,),
        *,
        several: bool = False,
        option: str = "",
    ) -> tuple[int, ...]:
        self.said += choices
        answer = self._next(question, tuple)
        assert isinstance(answer, tuple)
        assert several or len(answer) == 1
        return answer


@pytest.fixture(autouse=True)
def nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (TOKEN_VARIABLE, CREDENTIALS_VARIABLE, CONFIG_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home" / ".config"))


@pytest.fixture
def tv() -> Iterator[PlexTv]:
    running = PlexTv()
    yield running
    running.close()
    assert running.errors == []


@pytest.fixture
def plex() -> Iterator[PlexStandIn]:
    with PlexStandIn(token=TOKEN) as running:
        yield running
        assert running.errors == []


@pytest.fixture
def nas(tmp_path: Path) -> Path:
    """Where the music is here: mnt/nas/music/ARTIST/ALBUM/TRACK below the test's folder."""
    return add_music(tmp_path / "mnt" / "nas" / "music")


def add_music(root: Path, artists: int = 3) -> Path:
    for artist in range(artists):
        album = root / f"Artist {artist}" / "Greatest Hits"
        album.mkdir(parents=True)
        for track in range(4):
            (album / f"{track:02} Größe.flac").write_bytes(b"fLaC")
    return root


def fill(plex: PlexStandIn, root: Path, location: str, title: str = "Music") -> Library:
    library = plex.add_library(title, location, root)
    plex.scan(library)
    return library


def resource(plex: PlexStandIn, name: str = "Stand-in", **changes: str) -> str:
    """Return what plex.tv says of a server: one address that is another machine's by now, too."""
    port = plex.url.rpartition(":")[2]
    given = {
        **{"name": name, "provides": "server", "owned": "1", "clientIdentifier": plex.uuid},
        **{"accessToken": TOKEN, "httpsRequired": "0", **changes},
    }
    attributes = " ".join(f'{key}="{value}"' for key, value in given.items())
    connections = "".join(
        f'<connection protocol="https" address="{host}" port="{at}" local="{local}" relay="{relay}"'
        f' uri="https://{host.replace(".", "-")}.0123.plex.direct:{at}" IPv6="0"/>'
        for host, at, local, relay in (
            ("203.0.113.9", "8443", 0, 1),
            ("203.0.113.7", "32400", 0, 0),
            ("127.0.0.1", port, 1, 0),
        )
    )
    return f"<resource {attributes}><connections>{connections}</connections></resource>"


# Sign-in


def test_signing_in_shows_the_code_and_waits_until_it_is_typed(tv: PlexTv) -> None:
    tv.polls_needed = 2
    shown: list[tuple[str, str]] = []
    token = sign_in(
        lambda *what: shown.append(what), plex_tv=tv.url, poll_seconds=0.01, patience_seconds=5
    )
    assert token == TOKEN
    assert shown == [(LINK, "QX7K")]
    assert tv.log == ["POST /api/v2/pins"] + ["GET /api/v2/pins/4711"] * 3


@timed
def test_a_code_that_nobody_types_ends_in_a_clear_message(tv: PlexTv) -> None:
    tv.polls_needed = None
    began = time.monotonic()
    with pytest.raises(PlexUnauthorized, match=f"nobody typed the code QX7K at {LINK}"):
        sign_in(lambda *_: None, plex_tv=tv.url, poll_seconds=0.05, patience_seconds=0.3)
    assert time.monotonic() - began < 2


def test_an_expired_code_and_an_absent_plex_tv_are_told_apart(tv: PlexTv) -> None:
    tv.expired = True
    with pytest.raises(PlexUnauthorized, match="has expired"):
        sign_in(lambda *_: None, plex_tv=tv.url, poll_seconds=0.01)
    tv.broken = True
    with pytest.raises(PlexUnreachable, match="503"):
        sign_in(lambda *_: None, plex_tv=tv.url)
    with pytest.raises(PlexUnreachable, match="503"):
        list_servers(TOKEN, plex_tv=tv.url)
    with pytest.raises(PlexUnreachable, match="Connection refused"):
        sign_in(lambda *_: None, plex_tv="http://127.0.0.1:9")


def test_only_own_servers_are_offered_the_nearest_address_first(
    tv: PlexTv, plex: PlexStandIn
) -> None:
    tv.resources = resource(plex) + resource(plex, "A friend's", owned="0")
    tv.resources += resource(plex, "A phone", provides="player,client")
    (server,) = list_servers(TOKEN, plex_tv=tv.url)
    port = plex.url.rpartition(":")[2]
    assert server.addresses == (
        plex.url,
        f"https://127-0-0-1.0123.plex.direct:{port}",
        "https://203-0-113-7.0123.plex.direct:32400",
    )
    assert TOKEN not in repr(server)
    tv.resources = resource(plex, httpsRequired="1")
    (server,) = list_servers(TOKEN, plex_tv=tv.url)
    assert all(address.startswith("https://") for address in server.addresses)
    with pytest.raises(PlexUnauthorized, match="sign in again"):
        list_servers("another", plex_tv=tv.url)


def test_another_machine_at_an_old_address_is_not_given_the_token(plex: PlexStandIn) -> None:
    with PlexStandIn(token="x", name="Another") as other:
        addresses = ("http://127.0.0.1:9", other.url, plex.url)
        server = AccountServer("Stand-in", plex.uuid, addresses, TOKEN)
        assert find_address(server, timeout_seconds=1) == plex.url
        assert other.log == plex.log == ["GET /identity"]
        assert find_address(AccountServer("", "gone", addresses, TOKEN)) is None


# Path maps


@pytest.mark.parametrize(
    "folder",
    ["/data/music", "/music", "D:\\Media\\Music", "\\\\nas\\share\\Music"],
)
def test_a_map_is_guessed_from_a_few_tracks(tmp_path: Path, nas: Path, folder: str) -> None:
    separator = "\\" if "\\" in folder else "/"
    paths = [
        folder + separator + str(path.relative_to(nas)).replace("/", separator)
        for path in sorted(nas.rglob("*.flac"))[:10]
    ]
    (best, *_) = guess_maps(folder, paths, [tmp_path / "mnt"])
    assert best.complete
    assert best.path_map == PathMap(plex=folder, local=str(nas))
    local = to_local(paths[0], [best.path_map])
    assert local is not None
    assert local.is_file()


def test_a_guess_says_how_many_of_the_tracks_it_finds(tmp_path: Path, nas: Path) -> None:
    paths = [f"/m/{path.relative_to(nas)}" for path in sorted(nas.rglob("*.flac"))][:10]
    sorted(nas.rglob("*.flac"))[0].unlink()
    (best, *_) = guess_maps("/m", paths, [tmp_path / "mnt"])
    assert (best.found, best.samples, best.complete) == (9, 10, False)
    assert guess_maps("/m", ["/m/Nobody/Nothing/00.flac"], [tmp_path / "mnt"]) == []
    assert guess_maps("/m", paths, [tmp_path / "absent"]) == []


def test_of_two_copies_both_are_offered(tmp_path: Path, nas: Path) -> None:
    copy = add_music(tmp_path / "mnt" / "backup" / "2024" / "music")
    paths = [f"/m/{path.relative_to(nas)}" for path in sorted(nas.rglob("*.flac"))][:10]
    guesses = [guess for guess in guess_maps("/m", paths, [tmp_path / "mnt"]) if guess.complete]
    assert {guess.path_map.local for guess in guesses} == {str(nas), str(copy)}


def test_a_part_of_a_library_is_mapped_as_that(tmp_path: Path, nas: Path) -> None:
    paths = [f"/m/new/{path.relative_to(nas)}" for path in sorted(nas.rglob("*.flac"))][:10]
    (best, *_) = guess_maps("/m", paths, [tmp_path / "mnt"])
    assert best.path_map == PathMap(plex="/m/new", local=str(nas))


def test_accents_in_two_characters_are_the_same_name(tmp_path: Path) -> None:
    name = "Größe é.flac"
    music = tmp_path / "Música"
    music.mkdir()
    (music / unicodedata.normalize("NFD", name)).write_bytes(b"")
    path = "/m/" + unicodedata.normalize("NFC", name)
    assert guess_maps("/m", [path], [tmp_path])[0].path_map.local == str(music)
    assert count_found([path], [PathMap(plex="/m", local=str(music))]) == 1


@timed
def test_folders_that_may_not_be_searched_or_lead_in_circles_do_not_matter(
    tmp_path: Path, nas: Path
) -> None:
    (tmp_path / "mnt" / "loop").symlink_to(tmp_path / "mnt")
    (tmp_path / "mnt" / "broken").symlink_to(tmp_path / "nowhere")
    paths = [f"/m/{path.relative_to(nas)}" for path in sorted(nas.rglob("*.flac"))][:10]
    assert guess_maps("/m", paths, [tmp_path / "mnt", Path("~nobody-here")])[0].complete
    began = time.monotonic()
    assert guess_maps("/m", ["/m/x/y.flac"], [Path("/usr")], seconds=0.2) == []
    assert time.monotonic() - began < 3


def test_maps_of_siblings_become_one_and_say_no_more() -> None:
    def maps(*pairs: tuple[str, str]) -> list[PathMap]:
        return [PathMap(plex=plex, local=local) for plex, local in pairs]

    siblings = maps(("/data/music/a", "/mnt/nas/music/a"), ("/data/music/b", "/mnt/nas/music/b"))
    assert join_maps(siblings) == tuple(maps(("/data/music", "/mnt/nas/music")))
    windows = maps(("D:\\M\\a", "/mnt/a"), ("D:\\M\\b", "/mnt/b"))
    assert join_maps(windows) == tuple(maps(("D:\\M", "/mnt")))
    for apart in (
        maps(("/data/music", "/mnt/nas/music")),  # one says what it says
        maps(("/music", "/mnt/music"), ("/audio", "/mnt/audio")),  # / would be everything
        maps(("/data/a", "/mnt/a"), ("/data/b", "/srv/b")),
    ):
        assert join_maps(apart) == tuple(apart)


# The whole, with scripted answers


def test_init_asks_little_and_writes_what_was_found(
    tmp_path: Path, tv: PlexTv, plex: PlexStandIn, nas: Path
) -> None:
    tv.resources = resource(plex)
    fill(plex, nas, "/data/music")
    path = tmp_path / "home" / ".config" / "reclass-plex" / "config.yaml"
    ask = Scripted(
        ("Shall Plex show the genres", (0,)),
        ("Is that right", True),
        (f"Watch {nas}", True),
        ("Another folder", ""),
        ("genres that are there", (1,)),
        (f"Write {path}", True),
        ("Try it on 4 tracks in .*Greatest Hits", True),
    )
    tried: list[Sequence[Path]] = []
    written = run_init(
        Given(), ask, dry_run=tried.append, plex_tv=tv.url, starts=[tmp_path / "mnt"]
    )
    assert ask.script == []
    assert written is not None
    assert written.config_file == path
    expected = {
        "watch": {"folders": [str(nas)]},
        "policy": {"mode": "append"},
        "plex": {"url": plex.url, "path_map": [{"plex": "/data/music", "local": str(nas)}]},
    }
    assert yaml.safe_load(path.read_text()) == expected
    assert load_config() == written.config
    assert "config.example.yaml" in path.read_text().partition("\nwatch")[0]
    for file in (path, path.with_name("plex-token")):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert path.with_name("plex-token").read_text() == f"{TOKEN}\n"
    assert sorted(os.listdir(path.parent)) == ["config.yaml", "plex-token"]
    assert len(tried) == 1
    assert all(one.is_file() and nas in one.parents for one in tried[0])
    assert f"/data/music is {nas} here: 10 of 10 tracks found" in ask.heard
    assert f"reclass-plex tag {nas} --dry-run\n" in ask.heard
    assert TOKEN not in ask.heard
    assert f"GET {LINK}" not in tv.log


def test_init_again_keeps_other_settings_and_the_former_file(
    tmp_path: Path, plex: PlexStandIn, nas: Path
) -> None:
    fill(plex, nas, str(nas))  # the same name on both sides: no map
    fill(plex, add_music(tmp_path / "books"), str(tmp_path / "books"), "Audiobooks")
    path = tmp_path / "config.yaml"
    former = "policy: {names: {Hip-Hop: Rap}}  # mine\n"
    path.write_text(former)
    path.with_name("plex-token").write_text(TOKEN)
    path.with_name("plex-token").chmod(0o600)
    before = sorted(os.listdir(tmp_path))
    script: list[tuple[str, str | bool | tuple[int, ...]]] = [
        ("Address of the Plex", "127.0.0.1:9"),  # nobody is there
        ("Address of the Plex", plex.url),
        ("Which libraries", (0,)),
        (f"Watch {nas}", True),
        ("Another folder", str(tmp_path / "absent")),
        ("Another folder", str(nas / "Artist 0")),  # is in the other already
        ("Another folder", ""),
        ("genres that are there", (0,)),
    ]
    ask = Scripted(*script, ("Replace .*config.yaml.bak", False))
    assert run_init(Given(), ask, config_file=path, starts=[]) is None
    assert path.read_text() == former
    assert sorted(os.listdir(tmp_path)) == before
    assert "Connection refused" in ask.heard
    assert "absent: no such file" in ask.heard

    ask = Scripted(*script, ("Replace", True))
    written = run_init(Given(), ask, config_file=path, starts=[])
    assert written is not None
    assert yaml.safe_load(path.read_text()) == {
        "watch": {"folders": [str(nas)]},
        "policy": {"names": {"Hip-Hop": "Rap"}},
        "plex": {"url": plex.url, "libraries": ["Music"]},
    }
    backup = path.with_name("config.yaml.bak")
    assert backup.read_text() == former
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    assert f"--dry-run --config {path}" in ask.heard


def test_a_folder_that_is_not_found_is_asked_for(
    tmp_path: Path, plex: PlexStandIn, nas: Path
) -> None:
    fill(plex, nas, "/music")
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    ask = Scripted(
        ("Shall Plex", (1,)),
        ("File with the token", str(tmp_path / "absent")),
        ("File with the token", str(token)),
        ("Which folder here is Plex's /music", str(tmp_path / "nowhere")),
        ("Which folder here is Plex's /music", str(nas.parent.parent)),  # some way above
        ("Is that right", True),
        ("Watch", True),
        ("Another", ""),
        ("genres", (0,)),
        ("Write", True),
    )
    given = Given(PlexGiven(url=plex.url))
    written = run_init(given, ask, config_file=tmp_path / "config.yaml", starts=[])
    assert written is not None
    assert ask.script == []
    assert written.config.plex.path_map == (PathMap(plex="/music", local=str(nas)),)
    assert written.config.plex.token_file == token
    assert not (tmp_path / "plex-token").exists()


def test_a_token_that_is_void_leads_to_a_new_sign_in(
    tmp_path: Path, tv: PlexTv, plex: PlexStandIn, nas: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(plex, nas, str(nas))
    tv.resources = resource(plex) + resource(plex, "Second")
    path = tmp_path / "config.yaml"
    path.write_text(f"plex: {{url: '{plex.url}'}}\n")
    path.with_name("plex-token").write_text("void")
    ask = Scripted(
        ("Shall Plex", (0,)),
        ("Which server", (0,)),
        ("Watch", True),
        ("Another", ""),
        ("genres", (0,)),
        ("Replace", True),
    )
    assert run_init(Given(), ask, config_file=path, plex_tv=tv.url, starts=[]) is not None
    assert path.with_name("plex-token").read_text() == f"{TOKEN}\n"
    assert "is not accepted" in ask.heard

    monkeypatch.setenv(TOKEN_VARIABLE, "void")  # a new file would not be looked at
    with pytest.raises(PlexUnauthorized):
        run_init(Given(), Scripted(), config_file=path, plex_tv=tv.url, starts=[])


# For scripts


def test_init_can_be_scripted(tmp_path: Path, plex: PlexStandIn, nas: Path) -> None:
    fill(plex, nas, "/data/music")
    fill(plex, add_music(tmp_path / "books"), "/data/books", "Audiobooks")
    token = tmp_path / "secret"
    token.write_text(TOKEN)
    token.chmod(0o600)
    path = tmp_path / "etc" / "config.yaml"
    said: list[str] = []
    given = Given(
        PlexGiven(
            url=plex.url, token_file=token, libraries=("music",), path_map=(f"/data/music={nas}",)
        ),
        folders=(nas,),
        mode="replace",
    )
    written = run_init(given, Unattended(said.append), config_file=path)
    assert written is not None
    assert yaml.safe_load(path.read_text()) == {
        "watch": {"folders": [str(nas)]},
        "policy": {"mode": "replace"},
        "plex": {
            "url": plex.url,
            "token_file": str(token),
            "libraries": ["Music"],
            "path_map": [{"plex": "/data/music", "local": str(nas)}],
        },
    }
    with pytest.raises(ConfigError, match=r"Replace .* add --yes"):
        run_init(given, Unattended(said.append), config_file=path)
    assert not path.with_name("config.yaml.bak").exists()
    assert run_init(given, Unattended(said.append, yes=True), config_file=path) is not None
    assert path.with_name("config.yaml.bak").read_text() == path.read_text()
    assert TOKEN not in "\n".join(said)


def test_a_script_may_leave_the_path_map_to_us(
    tmp_path: Path, plex: PlexStandIn, nas: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(plex, nas, "/data/music")
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    path = tmp_path / "config.yaml"
    given = Given(PlexGiven(url=plex.url), folders=(nas.parent,))
    written = run_init(given, Unattended(print), config_file=path, starts=[])
    assert written is not None
    assert written.config.plex.path_map == (PathMap(plex="/data/music", local=str(nas)),)
    copy = add_music(nas.parent / "copy")
    path.unlink()
    with pytest.raises(ConfigError, match=r"Which of these is /data/music.* add --path-map"):
        run_init(given, Unattended(print), config_file=path, starts=[])
    assert copy.is_dir()
    assert not path.exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Given(), "add --token-file FILE or --no-plex"),
        (Given(PlexGiven(off=True)), "add --folder DIR"),
        (Given(PlexGiven(off=True), folders=(Path("/nowhere"),)), "--folder /nowhere: no such"),
        (Given(PlexGiven(token_file=Path("/nowhere/token"))), "no Plex token.*/nowhere/token"),
        (Given(PlexGiven(path_map=("/data/music",))), "--path-map /data/music: must be PLEX=LOCAL"),
        (Given(PlexGiven(path_map=("data=/mnt",))), "--path-map data=/mnt: must be"),
        (Given(PlexGiven(url="ftp://x")), r"plex\.url: has value 'ftp://x'"),
    ],
)
def test_what_a_script_forgets_is_named(tmp_path: Path, given: Given, message: str) -> None:
    path = tmp_path / "etc" / "config.yaml"
    with pytest.raises(ConfigError, match=message):
        run_init(given, Unattended(print, yes=True), config_file=path, starts=[])
    assert not path.parent.exists()


def test_a_script_hears_of_a_wrong_library_map_or_server(
    tmp_path: Path, plex: PlexStandIn, nas: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(plex, nas, "/data/music")
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    path = tmp_path / "config.yaml"

    def init(**options: object) -> None:
        given = Given(PlexGiven(**options), folders=(nas,))  # type: ignore[arg-type]
        run_init(given, Unattended(print), config_file=path, starts=[])

    with pytest.raises(ConfigError, match="--library Jazz: is none of the music libraries: Music"):
        init(url=plex.url, libraries=("Jazz",))
    with pytest.raises(ConfigError, match="finds no track of /data/music"):
        init(url=plex.url, path_map=("/data/music=/nowhere",))
    with pytest.raises(PlexUnreachable):
        init(url="http://127.0.0.1:9")
    monkeypatch.setenv(TOKEN_VARIABLE, "void")
    with pytest.raises(PlexUnauthorized):
        init(url=plex.url)
    assert not path.exists()


def test_without_plex_a_folder_is_enough(tmp_path: Path, nas: Path) -> None:
    path = tmp_path / "config.yaml"
    given = Given(PlexGiven(off=True), folders=(nas,))
    written = run_init(given, Unattended(print), config_file=path)
    assert written is not None
    assert yaml.safe_load(path.read_text()) == {"watch": {"folders": [str(nas)]}}
    assert len(written.try_files) == 10


def test_a_folder_with_any_name_survives_the_file(tmp_path: Path) -> None:
    for name in (b"a: b # c", b"\xff\xfe", "Ünï".encode(), b'it\'s "x"', b"- y"):
        folder = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
        config = Config.model_validate({"watch": {"folders": [folder]}})
        text = config_text(config)
        (tmp_path / "config.yaml").write_bytes(text.encode("utf-8"))
        assert load_config(tmp_path / "config.yaml") == config
    assert yaml.safe_load(config_text(Config())) is None


# On a terminal

CHILD = """
import sys
from pathlib import Path
from reclass_plex import console
from reclass_plex.wizard import Given, Terminal, run_init
config, tv, start = sys.argv[1:]
run_init(
    Given(), Terminal(), config_file=Path(config), plex_tv=tv, starts=[Path(start)],
    dry_run=lambda files: console.say(f"dry run of {len(files)} files"),
)
"""


class Typist:
    """Types into a program on a terminal of its own, when it has asked."""

    def __init__(self, *command: str) -> None:
        self.master, slave = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200"}
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
        )
        os.close(slave)
        self.seen = ""
        self.read_to = 0

    def expect(self, pattern: str, seconds: float = 60) -> str:
        end = time.monotonic() + seconds
        while True:
            plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.seen)
            if found := re.compile(pattern).search(plain, self.read_to):
                self.read_to = found.end()
                return found[0]
            assert time.monotonic() < end, f"no {pattern!r} in {plain[self.read_to :]!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    data = os.read(self.master, 65536)
                except OSError:  # Linux says that the other side has closed it
                    data = b""
                assert data, f"it ended without {pattern!r}: {plain}"
                self.seen += data.decode()

    def type(self, line: str) -> None:
        os.write(self.master, f"{line}\n".encode())

    def close(self) -> int:
        if sys.exc_info()[0] is not None:
            self.process.kill()
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self.master)


def test_init_on_a_real_terminal(tmp_path: Path, tv: PlexTv, plex: PlexStandIn, nas: Path) -> None:
    tv.resources = resource(plex) + resource(plex, "[bold]Second")
    tv.polls_needed = 1
    fill(plex, nas, "/data/music")
    fill(plex, add_music(tmp_path / "mnt" / "books"), "/data/books", "Audiobooks")
    path = tmp_path / "config.yaml"
    typist = Typist(sys.executable, "-c", CHILD, str(path), tv.url, str(tmp_path / "mnt"))
    try:
        typist.expect("Shall Plex show the genres")
        typist.expect("Number")
        typist.type("yes")
        typist.expect("Please type one number from 1 to 3")
        typist.type("")
        typist.expect(f"Open {LINK} .* this code:  QX7K")
        typist.expect(r"2  \[bold\]Second")  # a name is no markup
        typist.type("1")
        typist.expect("Which libraries")
        typist.expect("Numbers")
        typist.type("1")
        typist.expect("Which of these is /data/music")  # the other library's files look the same
        typist.expect(f"2  /data/music is {nas} here: 10 of 10 tracks found")
        typist.expect("Number")
        typist.type("2")
        typist.expect(f"Watch {nas} for new music")
        typist.type("maybe")
        typist.expect(f"Watch {nas} for new music")
        typist.type("y")
        typist.expect("Another folder")
        typist.type("")
        typist.expect("What about genres")
        typist.expect("Number")
        typist.type("")
        typist.expect("path_map")
        typist.expect("Write .*config.yaml")
        assert not path.exists()
        typist.type("")
        typist.expect("written")
        typist.expect("Try it on 4 tracks")
        typist.type("")
        typist.expect("dry run of 4 files")
    finally:
        status = typist.close()
    assert status == 0
    assert load_config(path).plex.path_map == (PathMap(plex="/data/music", local=str(nas)),)
    assert load_config(path).plex.libraries == ("Music",)
    assert TOKEN not in typist.seen
    assert path.with_name("plex-token").read_text() == f"{TOKEN}\n"


def test_an_end_of_the_input_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), "http://127.0.0.1:9", str(tmp_path)],
        check=False,
        input="3\n",
        capture_output=True,
        text=True,
    )
    assert "ConfigError: the input ended before the last answer" in done.stderr
    assert os.listdir(tmp_path) == []
