"""The secrets: Plex's token, the key in the webhook's address, and where notifications go.

None of them is in the configuration. A process that starts others takes those in its environment
out of it first (`take_from_environment`): who decodes strange files needs none.

Each is looked for in the environment, then among systemd's credentials (systemd.exec(5),
LoadCredential=), then in a file of mode 600. No message and no repr here ever holds a secret.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from reclass_plex.config import NotifyOptions, PlexOptions, config_path
from reclass_plex.errors import ConfigError, StoreError, printable
from reclass_plex.files import give_to_owner, sync_folder
from reclass_plex.redaction import remember, remember_address

log = logging.getLogger(__name__)

TOKEN_VARIABLE = "RECLASS_PLEX_TOKEN"  # noqa: S105 - a name
KEY_VARIABLE = "RECLASS_PLEX_WEBHOOK_KEY"
CREDENTIALS_VARIABLE = "CREDENTIALS_DIRECTORY"  # set by systemd
TOKEN_NAME = "plex-token"  # noqa: S105 - of a file, and of a credential
KEY_NAME = "webhook-key"
KEY_BYTES = 24  # of randomness
URLS_VARIABLE = "RECLASS_PLEX_NOTIFY_URLS"  # several stand apart by white space
URLS_NAME = "notify-urls"
MAX_URLS = 64 << 10  # bytes of all addresses together
MAX_SECRET = 4096  # bytes; a token has 20, a signed one some 500

Warn = Callable[[str], object]
_taken: dict[str, str] = {}  # what was in the environment


@dataclass(frozen=True)
class Secret:
    """A secret and where it is from: "$NAME", or a file."""

    place: str
    value: str = field(repr=False)

    def __post_init__(self) -> None:
        remember(self.value)


def token_file(options: PlexOptions, config_file: Path | None = None) -> Path:
    """Return the file for the token: plex.token_file, else plex-token beside the configuration.

    A relative plex.token_file is one beside the configuration, too. `config_file` is the
    configuration file in use, by default that of `config_path()`.
    """
    return _beside_config("plex.token_file", options.token_file, TOKEN_NAME, config_file)


def _beside_config(key: str, named: Path | None, name: str, config_file: Path | None) -> Path:
    folder = (config_file or config_path()).absolute().parent
    if named is None:
        return folder / name
    try:
        return folder / named.expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{key}: {printable(named)}: whose home is meant is not known") from error


def find_plex_token(
    options: PlexOptions, config_file: Path | None = None, warn: Warn = log.warning
) -> Secret:
    """Return the token of the Plex server and where it is from.

    In this order: $RECLASS_PLEX_TOKEN, systemd's credential plex-token, plex.token_file or, if
    that is not set, plex-token beside the configuration file. An empty variable counts as none.
    `warn` is called with a line if others may read the file. Raises ConfigError, naming all
    places, if there is none, and for one that is no token.
    """
    if found := _from_environment(TOKEN_VARIABLE, TOKEN_NAME):
        return found
    path = token_file(options, config_file)
    try:
        secret = _read_file(path)
    except FileNotFoundError:
        raise ConfigError(
            f"there is no Plex token: not in ${TOKEN_VARIABLE}, not in a systemd credential"
            f" {TOKEN_NAME}, not in {printable(path)}; reclass-plex init gets one"
        ) from None
    if mode := path.stat().st_mode & 0o077:
        warn(f"{printable(path)}: others may read it (mode {mode | 0o600:o}); chmod 600 it")
    return secret


def read_plex_token(
    options: PlexOptions, config_file: Path | None = None, warn: Warn = log.warning
) -> str:
    """Return the token of the Plex server; see `find_plex_token`."""
    return find_plex_token(options, config_file, warn).value


def urls_file(options: NotifyOptions, config_file: Path | None = None) -> Path:
    """Return the file for the addresses: notify.urls_file, else notify-urls beside the
    configuration; a relative one is beside it, too."""
    return _beside_config("notify.urls_file", options.urls_file, URLS_NAME, config_file)


def read_notify_urls(
    options: NotifyOptions, config_file: Path | None = None, warn: Warn = log.warning
) -> tuple[str, ...]:
    """Return the addresses that notifications go to; none where nobody set any up.

    In this order: $RECLASS_PLEX_NOTIFY_URLS, systemd's credential notify-urls, notify.urls_file or,
    if that is not set, notify-urls beside the configuration file: one a line, lines that begin with
    # do not count. `warn` is called with a line if others may read the file. Raises ConfigError for
    a file that is named but missing, or cannot be read.
    """
    if given := _variable(URLS_VARIABLE):
        return _remembered(tuple(given.split()))
    if folder := os.environ.get(CREDENTIALS_VARIABLE):
        with contextlib.suppress(FileNotFoundError):
            return _lines(_read_bytes(Path(folder) / URLS_NAME, MAX_URLS))
    path = urls_file(options, config_file)
    try:
        data = _read_bytes(path, MAX_URLS)
    except FileNotFoundError:
        if options.urls_file is None:
            return ()
        raise ConfigError(
            f"notify.urls_file: {printable(path)}: there is no such file; it must hold one address"
            " a line, with mode 600"
        ) from None
    if mode := path.stat().st_mode & 0o077:
        warn(f"{printable(path)}: others may read it (mode {mode | 0o600:o}); chmod 600 it")
    return _lines(data)


def _lines(data: bytes) -> tuple[str, ...]:
    lines = (line.strip() for line in data.decode("utf-8", "replace").splitlines())
    return _remembered(tuple(line for line in lines if line and not line.startswith("#")))


def _remembered(urls: tuple[str, ...]) -> tuple[str, ...]:
    for url in urls:
        remember_address(url)
    return urls


def webhook_key(store_path: Path) -> str:
    """Return the key that Plex's webhook must name in its address.

    In this order: $RECLASS_PLEX_WEBHOOK_KEY, systemd's credential webhook-key, the file
    webhook-key beside the store, which is made once. Raises ConfigError for a key that is too
    short or does not fit into an address, StoreError if none can be kept.
    """
    secret = _from_environment(KEY_VARIABLE, KEY_NAME)
    if secret is None:
        path = store_path.parent / KEY_NAME
        try:
            with _locked(path.parent):  # two that begin at once must agree
                try:
                    secret = _read_file(path)
                except FileNotFoundError:
                    secret = Secret(printable(path), secrets.token_urlsafe(KEY_BYTES))
                    write_secret(path, secret.value + "\n")
        except OSError as error:
            reason = error.strerror or str(error)
            raise StoreError(f"{printable(path)}: the key cannot be kept: {reason}") from error
    if not re.fullmatch(r"[A-Za-z0-9_-]{16,}", secret.value):
        raise ConfigError(
            f"{secret.place}: is no key for an address: 16 or more of A-Z, a-z, 0-9, - and _"
        )
    return secret.value


def write_secret(path: Path, content: str | bytes) -> None:
    """Write a file that only its owner may read (mode 600), as a whole and durably, or not at all.

    At no time does it exist with other permissions or with a part of its content. A link is
    followed. Missing folders are made with mode 700. Done by root, the file belongs to whom the
    former one belonged to, else to the owner of the folder, so that a service can read what
    `sudo reclass-plex init` wrote. Raises OSError.
    """
    data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    copy = path.parent / f".{path.name[:100]}.{secrets.token_hex(6)}.tmp"
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(copy, flags, 0o600), "wb") as file:
            os.fchmod(file.fileno(), 0o600)  # the umask may have taken more away
            give_to_owner(file.fileno(), path if path.exists() else path.parent)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(copy, path)  # noqa: PTH105 - rename(2), named as such
    except BaseException:
        with contextlib.suppress(OSError):
            copy.unlink()
        raise
    sync_folder(path.parent)


def take_from_environment() -> None:
    """Take the secrets out of this process' environment, so that no child is given them.

    They are still found here, under the same names, for as long as the process lives.
    """
    for name in (TOKEN_VARIABLE, KEY_VARIABLE, URLS_VARIABLE):
        if name in os.environ:
            _taken[name] = os.environ.pop(name)


def _variable(name: str) -> str | None:
    """Return a variable of the environment, None if it is not set or empty."""
    value = os.environ.get(name) or _taken.get(name, "")
    return value if value.strip() else None


def _from_environment(variable: str, name: str) -> Secret | None:
    """Return a secret from the environment or from systemd's credentials, which nobody sees."""
    if given := _variable(variable):
        return _checked(f"${variable}", given)
    if folder := os.environ.get(CREDENTIALS_VARIABLE):
        with contextlib.suppress(FileNotFoundError):
            return _read_file(Path(folder) / name)
    return None


def _read_file(path: Path) -> Secret:
    """Read a file with one secret. Raises FileNotFoundError if there is no such file."""
    return _checked(printable(path), _read_bytes(path, MAX_SECRET).decode("utf-8", "replace"))


def _read_bytes(path: Path, most: int) -> bytes:
    """Read a file of at most so many bytes. Raises FileNotFoundError if there is no such file."""
    place = printable(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # no fifo may wait
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigError(f"{place}: is not a regular file")
            data = file.read(most + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"{place}: the secret in it cannot be read: {reason}") from error
    if len(data) > most:
        raise ConfigError(f"{place}: is too long for what it shall hold")
    return data


def _checked(place: str, text: str) -> Secret:
    value = text.strip()
    if not value:
        raise ConfigError(f"{place}: is empty; it must hold the secret and nothing else")
    if not re.fullmatch(r"[!-~]+", value):
        raise ConfigError(f"{place}: must hold one word, the secret, and nothing else")
    return Secret(place, value)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
