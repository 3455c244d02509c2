"""The configuration: YAML in, validated and frozen options out.

Every key has a default, so that no file is needed. An error names the file, the key and the value.
`config.example.yaml` shows every key with its default; a test compares the two.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    StringConstraints,
    ValidationError,
)

from reclass_plex.errors import ConfigError, printable
from reclass_plex.genres import is_junk_genre, split_genres
from reclass_plex.redaction import HIDDEN, hide_secrets

CONFIG_VARIABLE = "RECLASS_PLEX_CONFIG"  # environment: the configuration file
SYSTEM_CONFIG = Path("/etc/reclass-plex/config.yaml")  # of the service that make install set up


@dataclass(frozen=True)
class ChangedKey:
    """What became of a key: since which version, its new name (None: it is gone), what to do."""

    since: str
    now: str | None
    advice: str


# Keys that a version had, as group.key, and that are not there any more. A test compares all that
# ever were (tests/data/config_keys.txt) with this and with those that there are.
CHANGED_KEYS: dict[str, ChangedKey] = {}

_PRINTABLE = r"^[^\x00-\x1f\x7f]*$"
_TIME = r"([01]?\d|2[0-3]):[0-5]\d"  # of a day, local: 7:30
_SPAN = rf"^{_TIME}-{_TIME}$"  # 22:00-07:30, over midnight too


def _full_path(path: Path) -> Path:
    """Refuse a path that would mean another folder wherever the daemon is started."""
    if not path.is_absolute():
        raise ValueError("must be a full path, beginning with /")
    return path


def _bare_address(url: str) -> str:
    """Refuse an address that bears a secret: it is shown, logged, and part of every error."""
    if "@" in url or "?" in url or "#" in url:
        raise ValueError(
            "must be the address alone, without a name, password or token: the token has a file"
            " of its own (plex.token_file)"
        )
    return url


def _one_genre(name: str) -> str:
    """Refuse what would not be read back from a file as the one genre that it is meant to be."""
    if is_junk_genre(name) or split_genres(name) != (name,):
        raise ValueError("must name one genre")
    return name


class Options(BaseModel):
    """Base of every group of options: unknown keys are errors, values never change."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PolicyOptions(Options):
    """Which genres, moods and styles are written where. See `reclass_plex.policy`."""

    mode: Literal["fill", "append", "replace"] = "fill"
    min_confidence: float = Field(default=0.5, ge=0, le=1)
    max_genres: int = Field(default=1, ge=1, le=10)
    album_consensus: bool = True
    add_parents: bool = False
    overwrite_user_genres: bool = False
    names: dict[str, Annotated[str, StringConstraints(pattern=_PRINTABLE)]] = {}
    allow: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    moods: bool = False
    styles: bool = False
    max_moods: int = Field(default=2, ge=1, le=3)


class TagOptions(Options):
    """How genres are written into files. See `reclass_plex.tags`.

    `join` maps a tag format to the text between several genres, where they shall stand in one
    value instead of several: id3v2.4, vorbis, mp4, asf, apev2. ID3v2.3 knows no several values,
    so it is always joined, with `id3v23_separator`.
    """

    join: dict[Literal["id3v2.4", "vorbis", "mp4", "asf", "apev2"], str] = {}
    id3v23_separator: str = Field(default="; ", min_length=1)
    keep_mtime: bool = False
    hardlinks: Literal["skip", "break"] = "skip"


class EnsembleOptions(Options):
    """Which stages vote and when they stop. See `reclass_plex.ensemble`."""

    taxonomy: Literal["default", "gtzan", "fma16", "msd13", "own"] = "default"
    profile: str = Field(default="cpu", pattern=r"^[a-z0-9][a-z0-9-]*$")
    text_genres: tuple[
        Annotated[
            str,
            StringConstraints(strip_whitespace=True, max_length=60, pattern=_PRINTABLE),
            AfterValidator(_one_genre),
        ],
        ...,
    ] = ()
    learned_genres: bool = True
    early_exit_accuracy: float = Field(default=0.90, ge=0.5, lt=1)


class StoreOptions(Options):
    """Where the daemon and the commands keep what they know."""

    path: Path | None = None  # None: $XDG_STATE_HOME/reclass-plex/store.sqlite

    def resolve(self) -> Path:
        """Return the database's path, by the XDG base directory specification if none is set."""
        if self.path is not None:
            return _expand(self.path).absolute()
        state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
        return _expand(Path(state)) / "reclass-plex" / "store.sqlite"


class PathMap(Options):
    """One folder under its two names: as the Plex server sees it, and as this machine does."""

    plex: str = Field(pattern=r"^(/|[A-Za-z]:[\\/]|\\\\)")  # /data/music, D:\Music, \\nas\music
    local: str = Field(pattern=r"^/")


class PlexOptions(Options):
    """The Plex server, and what is written there. See `reclass_plex.plex`.

    The token is no option: it is a secret, see `reclass_plex.credentials`.
    """

    url: Annotated[str, AfterValidator(_bare_address)] | None = Field(
        default=None, pattern=r"^https?://[^/\s]+(/\S*)?$"
    )
    token_file: Path | None = None  # None: plex-token beside the configuration file
    alerts: bool = True
    libraries: tuple[str, ...] = ()
    path_map: tuple[PathMap, ...] = ()
    tracks: bool = True
    albums: bool = True
    artists: bool = False
    overwrite_locked: bool = False
    timeout_seconds: float = Field(default=30, gt=0)


class WatchOptions(Options):
    """Which folders the daemon watches for music. See `service.watch`."""

    folders: tuple[Annotated[Path, AfterValidator(_full_path)], ...] = ()
    settle_seconds: float = Field(default=10, ge=0.1, le=3600)
    always_poll: bool = False
    poll_seconds: float = Field(default=60, ge=1)


class WorkerOptions(Options):
    """When and on what the daemon listens to tracks. See `service.work`."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    cpu_fallback: bool = True
    memory_gib: float | None = Field(default=None, gt=0)  # None: what is free, less a reserve
    decoders: int | None = Field(default=None, ge=1, le=64)  # None: one a core, at most 4
    file_seconds: float = Field(default=120, ge=1)
    file_memory_gib: float = Field(default=1, ge=0.25)
    idle_minutes: float = Field(default=10, ge=0.01)
    share: float = Field(default=1, ge=0.01, le=1)
    quiet_hours: tuple[Annotated[str, StringConstraints(pattern=_SPAN)], ...] = ()


class ScheduleOptions(Options):
    """What the daemon looks after by the clock. See `service.schedule`."""

    reconcile_hours: float = Field(default=24, ge=0.1)
    plex_minutes: float = Field(default=15, ge=0.1)
    maintenance: str = Field(default="04:00", pattern=rf"^{_TIME}$")
    keep_undo_days: int | None = Field(default=None, ge=1)
    backup_days: int = Field(default=7, ge=1, le=366)
    backup_weeks: int = Field(default=4, ge=0, le=520)


class TrustedProxy(Options):
    """A reverse proxy that signs people in itself. See `service.web.access`.

    From its `addresses` (or networks) X-Forwarded-For and X-Forwarded-Proto are believed, and who
    it names in `user_header`, if that is set, is signed in.
    """

    addresses: tuple[IPvAnyNetwork, ...] = Field(min_length=1)
    user_header: str | None = Field(default=None, pattern=r"^[A-Za-z][A-Za-z0-9-]*$")


class WebOptions(Options):
    """Where the daemon answers webhooks, the command line, and people. See `service.web`."""

    host: str = "127.0.0.1"
    port: int = Field(default=8787, ge=0, le=65535)
    names: tuple[
        Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")], ...
    ] = ()
    trusted_proxy: TrustedProxy | None = None

    @property
    def is_local(self) -> bool:
        """Tell whether only this machine reaches what listens there."""
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"  # other names: who knows where they lead

    @property
    def own_host(self) -> str:
        """The host by which this machine reaches it."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104


class NotifyOptions(Options):
    """What the user is told, and when. See `service.notices`.

    The addresses are no option: they hold passwords, see `reclass_plex.credentials`.
    """

    urls_file: Path | None = None  # None: notify-urls beside the configuration file
    errors: bool = True
    repeat_hours: float = Field(default=24, ge=1)
    daily: Annotated[
        Annotated[str, StringConstraints(pattern=rf"^{_TIME}$")] | None,
        BeforeValidator(lambda value: None if value is False else value),  # YAML's "off"
    ] = "08:00"


class ModelOptions(Options):
    """Where fetched models are kept, and from where they come. See `reclass_plex.models`."""

    folder: Path | None = None  # None: $XDG_DATA_HOME/reclass-plex/models
    mirror: str | None = Field(default=None, pattern=r"^https?://[^/\s]+(/\S*)?$")


class Config(Options):
    """All options."""

    watch: WatchOptions = WatchOptions()
    worker: WorkerOptions = WorkerOptions()
    schedule: ScheduleOptions = ScheduleOptions()
    web: WebOptions = WebOptions()
    notify: NotifyOptions = NotifyOptions()
    policy: PolicyOptions = PolicyOptions()
    tags: TagOptions = TagOptions()
    ensemble: EnsembleOptions = EnsembleOptions()
    models: ModelOptions = ModelOptions()
    store: StoreOptions = StoreOptions()
    plex: PlexOptions = PlexOptions()


def config_path() -> Path:
    """Return where the configuration is looked for when none is named.

    $RECLASS_PLEX_CONFIG, the user's own, or where there is none, that of the installed service:
    the commands then speak of the same store as the daemon.
    """
    if named := os.environ.get(CONFIG_VARIABLE):
        return Path(named)
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    own = _expand(Path(home)) / "reclass-plex" / "config.yaml"
    # os.path: a folder that may not be entered counts as none, no error
    return SYSTEM_CONFIG if os.path.exists(SYSTEM_CONFIG) and not os.path.exists(own) else own  # noqa: PTH110


def _expand(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"{printable(path)}: whose home is meant is not known; set HOME, or name a full path"
        ) from error


def load_config(path: Path | None = None) -> Config:
    """Read and validate a configuration file.

    Without `path`, `config_path()` is read if it exists, else the defaults hold. Raises
    ConfigError for a missing or unreadable file, bad YAML, unknown keys and bad values, all of
    them at once.
    """
    if path is None:
        path = config_path()
        if CONFIG_VARIABLE not in os.environ and not os.path.exists(path):  # noqa: PTH110
            return Config()
    name = printable(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: cannot be read: {error}") from error
    return parse_config(text, name)


def parse_config(text: str, name: str) -> Config:
    """Validate what a configuration file says; errors call it `name`. Raises ConfigError.

    No YAML aliases: a few lines of them can mean more than fits into the memory.
    """
    import yaml

    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise ConfigError(f"{name}: has an alias (*name), which is not allowed here")
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{name}: is not valid YAML: {hide_secrets(str(error))}") from error
    if data is None:
        return Config()
    if not isinstance(data, dict):
        raise ConfigError(
            f"{name}: must hold keys (policy:, tags:, ...), not a {type(data).__name__}"
        )
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(_describe(name, detail) for detail in error.errors())) from None


def _describe(name: str, detail: object) -> str:
    """Say one validation error as: file: key: what is wrong, and the value that is."""
    assert isinstance(detail, dict)  # noqa: S101 - pydantic's ErrorDetails is a TypedDict
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"{name}: {key}: {_explain_key(key)}"
    if detail["type"] in {"model_type", "dict_type"}:  # a token that was put there, perhaps
        return f"{name}: {key}: must hold keys, not a {type(detail['input']).__name__}"
    value = hide_secrets(repr(detail["input"]))
    if key.startswith("plex.") and re.fullmatch(r"'[\w-]{16,}'", value):
        value = f"{HIDDEN} (which looks like a token)"
    shown = value if len(value) <= 200 else value[:200] + "..."
    return f"{name}: {key}: has value {shown}. {detail['msg']}."


def _explain_key(key: str) -> str:
    """Say what became of a key, or which one may be meant."""
    for former, change in CHANGED_KEYS.items():
        if key == former or key.startswith(former + "."):
            what = f"is {change.now} now" if change.now else "is gone"
            return f"{what}, since version {change.since}: {change.advice}"
    names = get_close_matches(key, known_keys(), 1, cutoff=0.75)
    meant = f"; is {names[0]} meant?" if names else "; see config.example.yaml"
    return f"there is no such key{meant}"


def known_keys() -> list[str]:
    """Return every key, as group.key, and every group."""
    groups = {name: type(value) for name, value in Config()}
    keys = [f"{name}.{key}" for name, group in groups.items() for key in group.model_fields]
    return [*groups, *keys]
