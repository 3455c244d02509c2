"""The dashboard over real HTTP, without scripts: every page, hostile names, forms, media."""

from __future__ import annotations

import io
import logging
import os
import re
import shutil
import subprocess
import sys
import time
import wave
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import requests
from daemon_tools import DEMO
from many_tracks import fill_store
from page_tools import PageDaemon, Visitor, dashboard

from reclass_plex.records import GenreScore, Verdict, Vote
from reclass_plex.redaction import hide_secrets
from reclass_plex.store import Store
from reclass_plex.tags import read_tags
from service.operations import Progress
from service.recent_lines import recent_lines
from service.web.pages.frame import own_path
from service.web.pages.rendering import TEMPLATES, duration, percent
from service.web.texts import ENGLISH, text
from service.web.track_media import parse_range

PAGES = (
    "/",
    "/library",
    "/review",
    "/statistics",
    "/listen",
    "/duplicates",
    "/settings",
    "/log",
    "/tracks/1",
)
XSS = "\"><script>alert(1)</script><img src=x onerror=alert(2)>'{{7*7}}"


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("music")


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, music: Path
) -> Iterator[tuple[PageDaemon, Visitor]]:
    with Store.open(tmp_path_factory.mktemp("state") / "store.sqlite") as store:
        fill_store(store, 600)
        with dashboard(store, music) as made:
            yield made


@pytest.fixture
def visitor(site: tuple[PageDaemon, Visitor]) -> Visitor:
    return site[1]


@pytest.fixture
def store(site: tuple[PageDaemon, Visitor]) -> Store:
    return site[0].store


def add_track(
    store: Store,
    path: Path,
    *,
    digest: str,
    genres: tuple[str, ...] = (),
    heard: str = "Rock",
    state: str | None = None,
) -> int:
    """Put a file into the store as if it had been heard."""
    status = path.stat() if os.path.lexists(path) else None
    track_id = store.save_track(
        path,
        status.st_size if status else 1,
        status.st_mtime_ns if status else 1,
        digest=digest,
        genres=genres,
        album=f"{path.parent}\nAn album",
    )
    scores = (GenreScore(heard, 0.4), GenreScore("Metal", 0.35), GenreScore("Punk", 0.25))
    vote = Vote("musicnn-few", scores, 0.03)
    store.save_verdict(digest, "m", Verdict("default", scores, "musicnn-few", (vote,), 0.1))
    if state is not None:
        from reclass_plex.jobs import Jobs

        jobs = Jobs(store)
        jobs.enqueue([path], "watch", 1.0)
        claimed = jobs.claim(1000, time.time(), owner="test", lease=100)
        jobs.finish([job.id for job in claimed], "test", state, time.time())  # type: ignore[arg-type]
    return track_id


class Scripts(HTMLParser):
    """Collects what must not be in a page that a hostile name is shown in."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        if tag == "script" and not (names.get("src") or "").startswith("/static/"):
            self.found.append("script")
        if tag == "img" and not (names.get("src") or "").startswith("/tracks/"):
            self.found.append("img")
        self.found += [name for name, _ in attrs if name.startswith("on") or name == "style"]


def scripts_in(page: str) -> list[str]:
    parser = Scripts()
    parser.feed(page)
    return parser.found


# Every page


@pytest.mark.parametrize("path", PAGES)
def test_every_page_is_there_and_loads_nothing_foreign(visitor: Visitor, path: str) -> None:
    answer = visitor.get(path)
    assert answer.status_code == 200, answer.text
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"
    assert scripts_in(answer.text) == []
    loaded = re.findall(r'(?:src|href|action)="([^"]*)"', answer.text)
    assert loaded and all(one.startswith(("/", "#")) for one in loaded)
    assert 'lang="en"' in answer.text and "<h1>" in answer.text


@pytest.mark.parametrize("path", PAGES)
def test_no_page_is_shown_to_strangers(visitor: Visitor, path: str) -> None:
    stranger = Visitor(visitor.url)
    answer = stranger.get(path)
    assert answer.status_code == 303
    assert answer.headers["Location"].startswith("/login")
    login = stranger.get("/login")
    assert login.status_code == 200
    assert "Song" not in login.text
    stranger.session.close()


def test_nothing_is_changed_without_the_token_of_a_page(
    site: tuple[PageDaemon, Visitor],
) -> None:
    daemon, visitor = site
    assert visitor.post("/now/pause", token="wrong").status_code == 403
    assert visitor.post("/now/pause", Origin="https://evil.example").status_code == 403
    assert visitor.post("/now/pause", Sec_Fetch_Site="cross-site").status_code == 403
    assert not daemon.paused
    assert visitor.post("/now/pause").headers["Location"] == "/?said=paused"
    assert daemon.paused
    assert "Paused" in visitor.get("/").text
    visitor.post("/now/resume")
    assert not daemon.paused


def test_the_live_part_is_silent_while_nothing_changes(visitor: Visitor) -> None:
    page = visitor.get("/now/live", HX_Request="true")
    assert page.status_code == 200 and "<html" not in page.text
    found = re.search(r"/now/live\?seen=(\w+)", page.text)
    assert found is not None
    assert visitor.get(f"/now/live?seen={found[1]}").status_code == 204
    assert visitor.get("/now/live?seen=other").status_code == 200


def test_static_files_are_cached_for_ever_and_nothing_else_is_served(visitor: Visitor) -> None:
    stranger = Visitor(visitor.url)
    urls = re.findall(r'(?:src|href)="(/static/[^"]+)"', stranger.get("/login").text)
    assert len(urls) >= 4
    for url in urls:
        answer = stranger.get(url)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["Cache-Control"]
    folder = urls[0].rsplit("/", 1)[0]
    for path in (
        "/static/../app.py",
        f"{folder}/../../app.py",
        "/static/%2e%2e/app.py",
        "/static/",
    ):
        assert stranger.get(path).status_code != 200
    manifest = stranger.get("/manifest.webmanifest").json()
    assert manifest["display"] == "standalone"
    assert all(stranger.get(icon["src"]).status_code == 200 for icon in manifest["icons"])
    stranger.session.close()


def test_the_appearance_is_kept_in_a_cookie(visitor: Visitor) -> None:
    answer = visitor.post("/theme", {"theme": "dark", "back": "/log"})
    assert answer.headers["Location"] == "/log"
    assert 'data-theme="dark"' in visitor.get("/log").text
    visitor.post("/theme", {"theme": "<b>", "back": "https://evil.example/"})
    assert 'data-theme="auto"' in visitor.get("/").text


def test_strangers_are_not_offered_what_would_be_refused(visitor: Visitor) -> None:
    with requests.Session() as session:
        page = Visitor(visitor.url, session).get("/login").text
    assert set(re.findall(r'<form[^>]* action="([^"]+)"', page)) <= {"/login"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("/library?q=a", "/library?q=a"),
        ("https://evil.example/", "/"),
        ("//evil.example/", "/"),
        ("/\\evil.example", "/evil.example"),
        ("javascript:alert(1)", "/"),
        ("/a\r\nSet-Cookie: x=y", "/"),
        ("http://[", "/"),
    ],
)
def test_nobody_is_sent_elsewhere(given: str, expected: str) -> None:
    assert own_path(given) == expected


# Texts


def test_every_text_is_used_and_every_one_that_is_used_exists() -> None:
    web = TEMPLATES.parent
    sources = [*TEMPLATES.glob("*.html"), *(web / "pages").glob("*.py")]
    code = "\n".join(path.read_text() for path in sources)
    whole = set(re.findall(r"""(?:\bt|\btext)\(["']([\w. -]+)["'][,)]""", code))
    begun = set(re.findall(r"""(?:\bt|\btext)\(["']([\w. -]+\.)["'] ~""", code))
    begun |= set(re.findall(r"""\btext\(f["']([\w. -]+\.)\{""", code))
    assert whole <= set(ENGLISH)
    unused = [key for key in ENGLISH if key not in whole and not key.startswith(tuple(begun))]
    assert unused == []
    for start in begun:
        assert any(key.startswith(start) for key in ENGLISH), start


def test_texts_and_numbers() -> None:
    assert text("now.tracks", n=1) == "1 track"
    assert text("now.tracks", n="1,200") == "1,200 tracks"
    assert percent(0.999) == "99 %" and percent(1) == "100 %" and percent(0.005) == "1 %"
    assert duration(59) == "59 s" and duration(7200) == "2 h" and duration(400_000) == "5 days"


# Library


def rows_in(page: str) -> list[str]:
    return re.findall(r'<a href="/tracks/(\d+)">', page)


def test_the_library_comes_in_pages_that_follow_one_another(visitor: Visitor) -> None:
    seen: list[str] = []
    path = "/library?q=00004"
    while path:
        page = visitor.get(path, **({"HX_Request": "true"} if seen else {})).text
        seen += rows_in(page)
        more = re.search(r'hx-get="(/library\?[^"]*cursor[^"]*)"', page)
        path = more[1].replace("&amp;", "&") if more else ""
    assert len(seen) == len(set(seen)) == 72  # 12 of an album, 60 of an artist
    assert visitor.get("/library?cursor=rubbish&sort=confidence").status_code == 200


def test_the_library_is_narrowed(visitor: Visitor) -> None:
    assert "600 tracks" in visitor.get("/library").text
    sure = visitor.get("/library?sure=high&sort=confidence").text
    assert all(int(n) >= 79 for n in re.findall(r'class="sure \w+">(\d+) %', sure))
    assert "No track is like that" in visitor.get("/library?q=nothing+of+this+kind").text
    odd = visitor.get("/library?genre=%22%3E%3Cscript%3E&state=nonsense&sure=x&sort=x&album=%FF")
    assert odd.status_code == 200
    part = visitor.get("/library?genre=Rock", HX_Request="true").text
    assert "<html" not in part and 'id="results"' in part


def test_nonsense_is_answered_with_a_page(visitor: Visitor) -> None:
    for path in (
        "/tracks/999999",
        "/tracks/x",
        "/tracks/0",
        f"/tracks/{2**70}",
        f"/library?q={'a' * 300}",
    ):
        answer = visitor.get(path)
        assert answer.status_code in {404, 422}, path
        assert "That did not work" in answer.text
    assert "<html" not in visitor.get("/tracks/999999", HX_Request="true").text


# Hostile names


def test_names_and_tags_are_shown_and_never_acted_on(
    visitor: Visitor, store: Store, music: Path
) -> None:
    folder = music / XSS.replace("/", "-")
    path = folder / os.fsdecode(b"caf\xe9 \xff" + XSS.replace("/", "-").encode() + b"\n.mp3")
    track_id = add_track(
        store, path, digest="x" * 64, genres=(XSS, "\ud800\x1b[31m"), heard=XSS, state="review"
    )
    for page in (
        f"/tracks/{track_id}",
        "/library?q=onerror",
        "/review",
        "/",
        "/statistics",
        "/log",
    ):
        answer = visitor.get(page)
        assert answer.status_code == 200, page
        assert scripts_in(answer.text) == [], page
        assert "\x1b" not in answer.text
        assert "49" not in re.findall(r"'(\d+)</span>", answer.text)
    assert "\\xff" in visitor.get(f"/tracks/{track_id}").text


# Media


@pytest.fixture(scope="module")
def song(music: Path) -> Path:
    return Path(shutil.copy(DEMO / "HSR - Rock.mp3", music / "song.mp3"))


def test_the_player_gets_ranges(visitor: Visitor, store: Store, song: Path) -> None:
    url = f"/tracks/{add_track(store, song, digest='a' * 64)}/audio"
    content = song.read_bytes()
    whole = visitor.get(url)
    assert whole.content == content
    assert whole.headers["Content-Type"] == "audio/mpeg"
    part = visitor.get(url, Range="bytes=100-199")
    assert part.status_code == 206 and part.content == content[100:200]
    assert part.headers["Content-Range"] == f"bytes 100-199/{len(content)}"
    assert visitor.get(url, Range="bytes=-5").content == content[-5:]
    assert visitor.get(url, Range=f"bytes={len(content)}-").status_code == 416
    assert visitor.get(url, Range="bytes=0-1", If_Range='"other"').content == content
    head = visitor.session.head(visitor.url + url, timeout=10)
    assert head.headers["Content-Length"] == str(len(content)) and not head.content


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=5-", (5, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-99", (0, 10)),
        ("bytes=4-99", (4, 10)),
        ("bytes=10-", None),
        ("bytes=-0", None),
        ("bytes=1-2,4-5", (0, 0)),
        ("bytes=5-2", (0, 0)),
        ("bytes=-", (0, 0)),
        ("bytes=²-", (0, 0)),
        ("lines=1-2", (0, 0)),
        ("bytes=" + "9" * 100 + "-", (0, 0)),
    ],
)
def test_ranges(given: str, expected: tuple[int, int] | None) -> None:
    assert parse_range(given, 10) == expected


def test_only_music_below_the_folders_is_served(
    visitor: Visitor, store: Store, music: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "secret.mp3"
    outside.write_bytes(b"secret" * 100)
    link = music / "link.mp3"
    link.symlink_to(outside)
    up = music / ".." / music.name / ".." / "secret.mp3"
    shutil.copy(outside, music.parent / "secret.mp3")
    os.mkfifo(music / "fifo.mp3")
    (music / "folder.mp3").mkdir()
    for number, path in enumerate(
        (
            outside,
            link,
            up,
            music / "fifo.mp3",
            music / "folder.mp3",
            music / "gone.mp3",
            Path("/etc/passwd"),
        )
    ):
        track = add_track(store, path, digest=f"{number}" * 64)
        for what in ("audio", "excerpt.wav", "spectrogram.png"):
            answer = visitor.get(f"/tracks/{track}/{what}")
            assert answer.status_code == 404, (path, what)
            assert b"secret" not in answer.content


def test_a_child_draws_and_decodes(visitor: Visitor, store: Store, song: Path) -> None:
    track = add_track(store, song, digest="a" * 64)
    drawn = visitor.get(f"/tracks/{track}/spectrogram.png")
    assert drawn.content.startswith(b"\x89PNG") and len(drawn.content) < 200_000
    again = visitor.get(f"/tracks/{track}/spectrogram.png", If_None_Match=drawn.headers["ETag"])
    assert again.status_code == 304
    with wave.open(io.BytesIO(visitor.get(f"/tracks/{track}/excerpt.wav").content)) as heard:
        assert heard.getframerate() == 22050
        assert 20 < heard.getnframes() / 22050 < 31


def test_a_file_that_asks_for_all_memory_gets_a_part(song: Path) -> None:
    script = """
import sys
from reclass_plex import audio
from service.web import child
audio.decode_excerpt = lambda path, excerpt: bytearray(child.MEMORY + (64 << 20))
sys.exit(child.main())
"""
    with song.open("rb") as file:
        done = subprocess.run(
            [sys.executable, "-c", script, "excerpt", str(file.fileno())],
            pass_fds=[file.fileno()],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.strip() == "it needs over 1 GiB of memory: damaged, or made so"


def test_what_is_heard_window_by_window(visitor: Visitor, store: Store, song: Path) -> None:
    track = add_track(store, song, digest="a" * 64)
    part = visitor.get(f"/tracks/{track}/over-time", HX_Request="true").text
    assert part.count("<svg") == 5
    assert "Metal" in part and "25 s" in part
    elsewhere = visitor.get(f"/tracks/{track}/over-time").headers["Location"]
    assert 'id="over-time-shown"' in visitor.get(elsewhere).text


def test_a_damaged_file_is_named_and_harms_nobody(
    visitor: Visitor, store: Store, music: Path
) -> None:
    damaged = music / "damaged.mp3"
    damaged.write_bytes(os.urandom(5000))
    track = add_track(store, damaged, digest="d" * 64)
    answer = visitor.get(f"/tracks/{track}/spectrogram.png")
    assert answer.status_code == 422
    assert "could not be decoded" in answer.text


# Deciding


def test_a_correction_reaches_the_file_and_undo_gives_it_back(
    visitor: Visitor, store: Store, music: Path
) -> None:
    from reclass_plex.audio import audio_digest

    path = Path(shutil.copy(DEMO / "HSR - City.ogg", music / "city.ogg"))
    before = path.read_bytes()
    track = add_track(store, path, digest=audio_digest(path), state="review")
    page = visitor.get("/review").text
    assert f'action="/review/{track}"' in page
    answer = visitor.post(f"/review/{track}", {"genre": "Metal"})
    assert answer.headers["Location"] == "/review?said=decided&n=1"
    assert read_tags(path).genres == ("Metal",)
    assert f'action="/review/{track}"' not in visitor.get("/review").text
    shown = visitor.get(f"/tracks/{track}").text
    assert 'id="undo"' in shown
    assert visitor.post(f"/tracks/{track}/undo").headers["Location"].endswith("said=undone")
    assert path.read_bytes() == before

    typed = visitor.post(f"/tracks/{track}/decide", {"other": "Dream Pop; Shoegaze"})
    assert typed.headers["Location"].endswith("said=corrected")
    assert read_tags(path).genres == ("Dream Pop", "Shoegaze")
    run = re.search(r'action="/log/undo/(\d+)"', visitor.get("/log").text)
    assert run is not None
    assert visitor.post(f"/log/undo/{run[1]}").headers["Location"] == "/log?said=undone"
    assert path.read_bytes() == before


def test_what_names_no_genre_is_refused(visitor: Visitor) -> None:
    for genre in ("", " ; ", "a" * 61, "x\ny"):
        answer = visitor.post("/tracks/1/decide", {"other": genre, "genre": genre})
        assert answer.status_code == 422, genre
    part = visitor.post("/review/1", {"genre": "\x00"}, HX_Request="true")
    assert part.status_code == 422 and "<html" not in part.text


def test_listening_again_is_asked_of_the_daemon(site: tuple[PageDaemon, Visitor]) -> None:
    daemon, visitor = site
    assert visitor.post("/tracks/1/reclassify").headers["Location"].endswith("said=reclassified")
    selection, dry_run = daemon.selected[-1]
    assert len(selection.paths) == 1 and not dry_run


# Settings


def test_settings_are_checked_and_compared(visitor: Visitor) -> None:
    page = visitor.get("/settings").text
    assert "min_confidence: 0.5" in page
    answer = visitor.post(
        "/settings/check", {"given": "policy: {min_confidence: 0.9}\nweb: {port: 1}"}
    )
    assert answer.status_code == 200
    assert "policy.min_confidence" in answer.text and "next restart" in answer.text
    what = {"given": "policy: {mode: replace, min_confidence: 0.2}", "preview": "true"}
    long = {"given": "policy: {min_confidence: 0.9}\n" + "# a comment\n" * 10_000}
    assert "min_confidence" in visitor.post("/settings/check", long).text
    preview = visitor.post("/settings/check", what).text
    found = re.search(r"/settings/preview/(\w+)", preview)
    while found is not None and "every 2s" in preview:
        time.sleep(0.2)
        preview = visitor.get(found[0]).text
    assert "Another outcome for" in preview and "instead of" in preview
    assert scripts_in(preview) == []
    assert visitor.get("/settings/preview/none").status_code == 404


def test_pages_tell_errors_as_the_api_does(visitor: Visitor) -> None:
    for path, api in (
        ("/log?older=bad", "/api/v1/runs?cursor=bad"),
        ("/log?cursor=bad", "/api/v1/journal?cursor=bad"),
    ):
        page, answer = visitor.get(path), visitor.get(api)
        assert (page.status_code, answer.status_code) == (404, 404)
        assert answer.json()["detail"] in page.text
    assert visitor.post("/log/undo/999999").status_code == 404


def test_a_preview_that_was_stopped_says_so(
    site: tuple[PageDaemon, Visitor], visitor: Visitor
) -> None:
    operations = site[0].actions.operations

    def wait(progress: Progress) -> None:
        while not progress.should_stop():
            time.sleep(0.01)

    started = operations.start("preview", wait, writes=False)
    operations.ask_to_stop(started.id)
    operations.wait(started.id, 10)
    answer = visitor.get(f"/settings/preview/{started.id}")
    assert answer.status_code == 200
    assert "stopped before its end" in answer.text
    bomb = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{','.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)
    )
    for given, said in (
        ("policy: {mode: <script>}", "policy.mode"),
        ("- 1", "must hold keys"),
        ("a: [", "not valid YAML"),
        (bomb, "alias"),
        ("[" * 5000, "not valid YAML"),
        ("policy: {max_genres: " + "9" * 5000 + "}", "text"),
        ("!!python/object/apply:os.system [true]", "not valid YAML"),
    ):
        refused = visitor.post("/settings/check", {"given": given})
        assert refused.status_code == 422, given[:50]
        assert said in refused.text
        assert scripts_in(refused.text) == []


# Log


def test_the_log_is_shown_without_secrets(visitor: Visitor) -> None:
    logger = logging.getLogger("test-pages")
    logger.addHandler(recent_lines)
    logger.propagate = False
    try:
        logger.warning("asked http://plex/?X-Plex-Token=abc123 for %s", XSS)
        logger.warning("Authorization: Bearer tok456; /webhook/key789 smtp://me:pw321@host")
    finally:
        logger.removeHandler(recent_lines)
    page = visitor.get("/log").text
    assert scripts_in(page) == []
    assert "asked http://plex/" in page
    for secret in ("abc123", "tok456", "key789", "pw321"):
        assert secret not in page
    assert hide_secrets('{"password": "p4ss"}') == '{"password": "•••"}'
    assert "asked" not in visitor.get("/log?level=error", HX_Request="true").text
