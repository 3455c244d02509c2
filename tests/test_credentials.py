"""Secrets: found where they should be, kept so that nobody else reads them, never shown."""

from __future__ import annotations

import os
import stat
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from reclass_plex.config import CONFIG_VARIABLE, PlexOptions
from reclass_plex.credentials import (
    CREDENTIALS_VARIABLE,
    KEY_VARIABLE,
    TOKEN_VARIABLE,
    find_plex_token,
    read_plex_token,
    webhook_key,
    write_secret,
)
from reclass_plex.errors import ConfigError, StoreError

TOKEN = "aBcD-1234_efGH5678xy"
OPTIONS = PlexOptions()


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (TOKEN_VARIABLE, KEY_VARIABLE, CREDENTIALS_VARIABLE, CONFIG_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def keep(path: Path, text: str, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def no_warning(text: str) -> None:
    raise AssertionError(text)


def test_the_places_are_asked_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config.yaml"
    named = PlexOptions(token_file=tmp_path / "elsewhere")
    with pytest.raises(ConfigError) as caught:
        read_plex_token(OPTIONS, config)
    for place in (f"${TOKEN_VARIABLE}", "credential", str(tmp_path / "plex-token"), "init"):
        assert place in str(caught.value)

    keep(tmp_path / "plex-token", f"  {TOKEN}-beside\r\n")
    assert read_plex_token(OPTIONS, config, no_warning) == f"{TOKEN}-beside"
    with pytest.raises(ConfigError, match="elsewhere"):  # what is named is meant
        read_plex_token(named, config)
    keep(tmp_path / "elsewhere", f"{TOKEN}-named")
    assert read_plex_token(named, config, no_warning) == f"{TOKEN}-named"

    monkeypatch.setenv(CREDENTIALS_VARIABLE, str(tmp_path / "credentials"))
    assert read_plex_token(named, config, no_warning) == f"{TOKEN}-named"
    keep(tmp_path / "credentials" / "plex-token", f"{TOKEN}-systemd\n", 0o440)  # systemd's mode
    assert read_plex_token(named, config, no_warning) == f"{TOKEN}-systemd"

    monkeypatch.setenv(TOKEN_VARIABLE, " ")
    assert read_plex_token(named, config, no_warning) == f"{TOKEN}-systemd"
    monkeypatch.setenv(TOKEN_VARIABLE, f" {TOKEN}\n")
    found = find_plex_token(named, config, no_warning)
    assert (found.place, found.value) == (f"${TOKEN_VARIABLE}", TOKEN)
    assert TOKEN not in repr(found)


def test_without_a_named_configuration_the_usual_one_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / "here" / "mine.yaml"))
    keep(tmp_path / "here" / "plex-token", TOKEN)
    assert read_plex_token(OPTIONS) == TOKEN
    assert read_plex_token(PlexOptions(token_file=Path("plex-token"))) == TOKEN  # beside it, too


def test_a_file_that_others_may_read_is_warned_of(tmp_path: Path) -> None:
    keep(tmp_path / "plex-token", TOKEN, 0o644)
    warnings: list[str] = []
    assert read_plex_token(OPTIONS, tmp_path / "config.yaml", warnings.append) == TOKEN
    assert len(warnings) == 1
    assert "mode 644" in warnings[0]
    assert TOKEN not in warnings[0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is empty"),
        (" \n\t", "is empty"),
        (f"{TOKEN}\n{TOKEN}", "one word"),
        (f"token: {TOKEN}", "one word"),
        (f"{TOKEN}ü", "one word"),
        (TOKEN * 300, "too long"),
    ],
)
def test_what_is_no_secret_is_refused_and_not_shown(
    tmp_path: Path, content: str, reason: str
) -> None:
    path = keep(tmp_path / "plex-token", content)
    with pytest.raises(ConfigError, match=reason) as caught:
        read_plex_token(OPTIONS, tmp_path / "config.yaml")
    assert str(path) in str(caught.value)
    assert TOKEN not in "".join(traceback.format_exception(caught.value))


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for place in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(ConfigError, match=r"regular file|cannot be read"):
            read_plex_token(PlexOptions(token_file=place), tmp_path / "config.yaml")


def test_a_secret_is_written_for_its_owner_only_and_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "plex-token"
    for umask in (0, 0o777):
        before = os.umask(umask)
        try:
            write_secret(path, TOKEN)
        finally:
            os.umask(before)
            path.parent.chmod(0o700)
            path.parent.parent.chmod(0o700)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.read_text() == TOKEN
        assert os.listdir(path.parent) == ["plex-token"]


def test_nobody_ever_sees_a_secret_with_other_permissions_or_in_part(tmp_path: Path) -> None:
    path = tmp_path / "plex-token"
    contents = (TOKEN, "x" * 3000)
    write_secret(path, contents[0])
    done = threading.Event()
    wrong: list[str] = []

    def look() -> None:
        while not done.is_set():
            for entry in os.scandir(tmp_path):
                try:
                    mode = stat.S_IMODE(entry.stat().st_mode)
                except FileNotFoundError:
                    continue
                if mode & 0o077:
                    wrong.append(f"{entry.name}: {mode:o}")
            if path.read_text() not in contents:
                wrong.append("in part")

    looking = threading.Thread(target=look)
    looking.start()
    before = os.umask(0)
    try:
        for number in range(200):
            write_secret(path, contents[number % 2])
    finally:
        os.umask(before)
        done.set()
        looking.join()
    assert wrong == []


def test_a_link_is_followed_and_a_failure_leaves_nothing(tmp_path: Path) -> None:
    target = keep(tmp_path / "dotfiles" / "config.yaml", "old", 0o644)
    link = tmp_path / "config.yaml"
    link.symlink_to(target)
    write_secret(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError):
        write_secret(tmp_path / "taken", "new")
    assert sorted(os.listdir(tmp_path)) == ["config.yaml", "dotfiles", "taken"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_root_writes_belongs_to_the_service(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    write_secret(tmp_path / "config.yaml", "a")
    assert (tmp_path / "config.yaml").stat().st_uid == 65534
    os.chown(tmp_path / "config.yaml", 1234, 1235)
    write_secret(tmp_path / "config.yaml", "b")
    status = (tmp_path / "config.yaml").stat()
    assert (status.st_uid, status.st_gid) == (1234, 1235)


def test_the_webhook_key_is_made_once_however_many_ask_at_once(tmp_path: Path) -> None:
    store = tmp_path / "state" / "store.sqlite"
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(webhook_key, [store] * 40))
    assert len(keys) == 1
    assert len(keys.pop()) == 32
    assert stat.S_IMODE((store.parent / "webhook-key").stat().st_mode) == 0o600
    assert os.listdir(store.parent) == ["webhook-key"]
    assert webhook_key(tmp_path / "other" / "store.sqlite") != webhook_key(store)


def test_the_webhook_key_can_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "store.sqlite"
    keep(tmp_path / "credentials" / "webhook-key", "from-systemd-0123456789\n", 0o440)
    monkeypatch.setenv(CREDENTIALS_VARIABLE, str(tmp_path / "credentials"))
    assert webhook_key(store) == "from-systemd-0123456789"
    monkeypatch.setenv(KEY_VARIABLE, "from-environment-0123456789")
    assert webhook_key(store) == "from-environment-0123456789"
    assert not (tmp_path / "webhook-key").exists()
    for bad in ("too-short", "with/a/slash/0123456789", "with?question0123456789"):
        monkeypatch.setenv(KEY_VARIABLE, bad)
        with pytest.raises(ConfigError, match="no key for an address") as caught:
            webhook_key(store)
        assert bad not in str(caught.value)


def test_a_key_that_cannot_be_kept_is_an_error_of_the_store(tmp_path: Path) -> None:
    keep(tmp_path / "file", "")
    with pytest.raises(StoreError, match="webhook-key"):
        webhook_key(tmp_path / "file" / "store.sqlite")
