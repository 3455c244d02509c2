"""Talking to the running daemon: where it is found, what it is asked, and what it answers.

The daemon leaves its address and a token in `daemon.json` beside the store, readable by its own
user alone. `find_daemon` looks there; without a daemon the commands work on the store themselves.
The models are those of the daemon's HTTP interface (service/web/app.py). A path that is no valid
UTF-8 travels as JSON's \\udcXX escapes, so both sides use `to_json` and json.loads.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import requests
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from reclass_plex.config import PolicyOptions
from reclass_plex.credentials import write_secret
from reclass_plex.errors import DaemonError, printable
from reclass_plex.jobs import Job, State
from reclass_plex.selection import Selection

ALIVE_SECONDS = 2.0  # to say that it lives
ANSWER_SECONDS = 30.0
SELECT_SECONDS = 600.0  # to find what is to be classified again among 100,000 tracks
MAX_JOBS = 1000  # an answer


MAX_ID = 2**53 - 1  # of rows: JSON, and browsers, know no larger number exactly
JobId = Annotated[int, Field(ge=1, le=MAX_ID)]


class Message(BaseModel):
    """Base of what travels between command and daemon. A newer side may know more keys."""

    model_config = ConfigDict(frozen=True)


class PlexStatus(Message):
    """The Plex server, as the daemon sees it. `pending` counts what is still to be written."""

    state: Literal["connected", "unreachable", "needs sign-in", "off"]
    message: str | None = None
    pending: int = 0


class FolderStatus(Message):
    """A watched folder; `why` says why it is polled or paused."""

    path: Path
    state: Literal["watching", "polling", "paused"]
    why: str | None = None


class Status(Message):
    """What the daemon does. `since` is its start, in seconds since the epoch.

    `backup` is when the newest backup of the store was made; None: there is none.
    """

    version: str
    state: Literal["working", "idle", "paused", "quiet", "waiting"]
    why: str | None = None
    jobs: dict[State, int]
    plex: PlexStatus
    folders: tuple[FolderStatus, ...] = ()
    models_loaded: bool = False
    left_out: tuple[str, ...] = ()  # stages of the ensemble that cannot vote here, and why
    tracks_done: int = 0  # at least, since its start
    in_hand: tuple[Path, ...] = ()  # some of the tracks that are worked on
    per_minute: float | None = None  # tracks that ended, over the last minutes
    seconds_left: float | None = None  # for all that is in line, at that rate
    operations: int = 0  # that people asked for, and that are not done
    since: float
    backup: float | None = None


class Failure(Message):
    """Something that could not be done: a file or an item of Plex, and why."""

    name: str
    reason: str


class Operation(Message):
    """Long work: how far it is. `failures` names the first of the `failed` ones.

    `run_id` is the run in the history that it made, if any; `result` is what it found. For state
    failed, `error` is the kind of the error and `message` says it.
    """

    id: str
    kind: str
    state: Literal["waiting", "running", "done", "stopped", "failed"] = "waiting"
    done: int = 0
    total: int | None = None
    failed: int = 0
    failures: tuple[Failure, ...] = ()
    message: str | None = None
    error: str | None = None
    run_id: int | None = None
    result: dict[str, Any] | None = None
    started: float
    finished: float | None = None


TrackIds = Annotated[tuple[JobId, ...], Field(min_length=1, max_length=10_000)]


Genre = Annotated[
    str,
    Field(
        min_length=1,
        max_length=60,
        description="One printable line without semicolon that names a genre",
        json_schema_extra={"format": "genre"},  # only `decisions.check_genres` can say what is one
    ),
]


class DecideRequest(Message):
    """A person's word on tracks (`albums`: and on all others of their albums).

    accept: what was heard first is right. correct: `genres` are.
    """

    model_config = ConfigDict(
        json_schema_extra={  # in words of JSON Schema what `decisions.correct` asks for
            "anyOf": [
                {"properties": {"kind": {"const": "accept"}}},
                {"properties": {"genres": {"minItems": 1}}, "required": ["genres"]},
            ]
        }
    )

    track_ids: TrackIds
    kind: Literal["accept", "correct"]
    genres: tuple[Genre, ...] = Field(default=(), max_length=10)
    albums: bool = False


class RefusedTrack(Message):
    """A track that nothing could be decided on, and why."""

    track_id: int
    path: Path | None = None
    reason: str


class DecideResult(Message):
    """What was decided, durably: `run_id` can be undone. `operation` writes the files."""

    run_id: int | None = None
    track_ids: tuple[int, ...] = ()
    refused: tuple[RefusedTrack, ...] = ()
    operation: Operation | None = None


class UndoRequest(Message):
    """What is to be taken back; all that is given must hold. `since` is in seconds since 1970."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [  # nothing is taken back of which nothing is named
                {"properties": {"run_id": {"type": "integer"}}, "required": ["run_id"]},
                {"properties": {"track_ids": {"type": "array"}}, "required": ["track_ids"]},
                {"properties": {"since": {"type": "number"}}, "required": ["since"]},
            ]
        }
    )

    run_id: JobId | None = None
    track_ids: TrackIds | None = None
    since: float | None = Field(default=None, ge=0, allow_inf_nan=False, strict=True)


class UndoCount(Message):
    """What an undo would take back: changes of files, edits in Plex at most, and decisions."""

    files: int
    edits: int
    decisions: int


class PreviewRequest(Message):
    """Options of `policy` that would be others, by name, and how many examples to show."""

    policy: Annotated[dict[str, Any], WithJsonSchema(PolicyOptions.model_json_schema())] = {}
    sample: int = Field(default=50, ge=0, le=1000)


class PlaylistRequest(Message):
    """A playlist of what sounds alike: its name in Plex, how many tracks besides the first, and
    whether one of this name may be replaced.
    """

    name: str = Field(max_length=200, pattern=r"\S")
    count: int = Field(default=20, ge=1, le=200)
    replace: bool = False


class RadioRequest(Message):
    """What to listen to: an http or https address (RFC 3986), or an input such as alsa:default.

    `window` is how many seconds of sound a verdict is of.
    """

    # The inputs are `stream_source.DEVICES`.
    address: str = Field(
        max_length=2000,
        pattern=r"^(https?://|(alsa|pulse|avfoundation|oss|jack|sndio|dshow):)[!-~]+$",
    )
    window: float = Field(default=15.0, ge=1, le=3600, allow_inf_nan=False, strict=True)


class RadioGenre(Message):
    """A genre that plays now, and how sure that is."""

    name: str
    confidence: float


class RadioLine(Message):
    """What was heard of a live stream at a time (seconds since the epoch), or what befell it.

    `at` counts its seconds of audio; with a `notice` there are no genres.
    """

    at: float
    time: float
    genres: tuple[RadioGenre, ...] = ()
    unsure: str | None = None
    changed: bool = False
    title: str | None = None
    notice: str | None = None


class RadioStatus(Message):
    """The live stream that is listened to; `lines` are the latest, the newest last."""

    state: Literal["off", "starting", "playing", "lost", "failed"]
    source: str | None = None
    error: str | None = None
    lines: tuple[RadioLine, ...] = ()


class ReclassifyRequest(Message):
    """Which tracks are to be classified again; a dry run only counts them."""

    selection: Selection
    dry_run: bool = False


class ReclassifyResult(Message):
    """How many tracks were (or would be) put in line, and some of them."""

    count: int
    sample: tuple[Path, ...] = ()


class ReviveRequest(Message):
    """The ids of the dead letters to try again; None: all."""

    ids: tuple[JobId, ...] | None = Field(default=None, max_length=10_000)


class Count(Message):
    """How many."""

    count: int


class JobList(Message):
    """A page of the queue."""

    jobs: tuple[Job, ...]


Answer = TypeVar("Answer", bound=Message)


def to_json(value: object) -> bytes:
    """Return a Message, or plain values, as JSON in ASCII."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return json.dumps(plain, ensure_ascii=True, separators=(",", ":")).encode("ascii")


# Where the daemon is


class DaemonFile(Message):
    """What `daemon.json` holds."""

    store: Path
    pid: int
    url: str
    token: str = Field(repr=False)
    started: float  # seconds since the epoch


def daemon_file(store_path: Path) -> Path:
    """Return where the daemon that works on a store is announced."""
    return store_path.with_name("daemon.json")


def write_daemon_file(store_path: Path, url: str, token: str) -> None:
    """Announce this process as the daemon of a store. Raises DaemonError."""
    path = daemon_file(store_path)
    entry = DaemonFile(
        store=store_path.absolute(), pid=os.getpid(), url=url, token=token, started=time.time()
    )
    try:
        write_secret(path, to_json(entry))
    except OSError as error:
        reason = error.strerror or error
        raise DaemonError(f"{printable(path)}: cannot be written: {reason}") from error


def remove_daemon_file(store_path: Path) -> None:
    """Take back the announcement of this process; that of another one stays."""
    entry = _read_daemon_file(store_path)
    if entry is not None and entry.pid == os.getpid():
        daemon_file(store_path).unlink(missing_ok=True)


def find_daemon(store_path: Path) -> DaemonClient | None:
    """Return the daemon that works on a store, None if none runs.

    Raises DaemonError if there may be one that this user must not talk to.
    """
    entry = _read_daemon_file(store_path)
    if entry is None:
        return None
    client = DaemonClient(entry.url, entry.token)
    return client if client.process_id() == entry.pid else None


def _read_daemon_file(store_path: Path) -> DaemonFile | None:
    path = daemon_file(store_path)
    try:
        entry = DaemonFile.model_validate(json.loads(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError, ValueError):  # none, or damaged by a crash
        return None
    except OSError as error:
        raise DaemonError(
            f"{printable(path)}: cannot be read ({(error.strerror or str(error)).lower()}): give"
            " this command as the user that the daemon runs as"
        ) from error
    return entry if entry.store == store_path.absolute() else None


class DaemonClient:
    """The running daemon, from outside. Every method may raise DaemonError."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self._token = token

    def process_id(self) -> int | None:
        """Return the id of the process that answers, None if none does or it is no daemon."""
        try:
            # Without the token: after a crash another program may have the port by now.
            answer = self._send("GET", "/healthz", {}, timeout=ALIVE_SECONDS)
            process_id = json.loads(answer.content)["pid"]
        except (requests.RequestException, ValueError, KeyError, TypeError):
            return None
        return process_id if isinstance(process_id, int) else None

    def status(self) -> Status:
        """Return what it does."""
        return self._ask(Status, "GET", "/api/v1/status")

    def pause(self) -> None:
        """Make it stop after the tracks in hand, until `resume`."""
        self._call("POST", "/api/v1/pause")

    def resume(self) -> None:
        """Make it go on."""
        self._call("POST", "/api/v1/resume")

    def reclassify(self, selection: Selection, *, dry_run: bool) -> ReclassifyResult:
        """Put tracks in line again, or only count them."""
        body = ReclassifyRequest(selection=selection, dry_run=dry_run)
        return self._ask(
            ReclassifyResult, "POST", "/api/v1/reclassify", body=body, timeout=SELECT_SECONDS
        )

    def list_jobs(
        self, states: Collection[State], *, limit: int = 100, offset: int = 0
    ) -> list[Job]:
        """Return jobs in these states, the latest change first; at most `MAX_JOBS`."""
        query = {"state": list(states), "limit": limit, "offset": offset}
        return list(self._ask(JobList, "GET", "/api/jobs", query=query).jobs)

    def revive(self, ids: Collection[int] | None = None) -> int:
        """Put dead letters back in line, all of them without `ids`; return how many."""
        body = ReviveRequest(ids=None if ids is None else tuple(ids))
        return self._ask(Count, "POST", "/api/v1/jobs/revive", body=body).count

    def _ask(
        self,
        model: type[Answer],
        method: str,
        path: str,
        *,
        body: Message | None = None,
        query: Mapping[str, Any] | None = None,
        timeout: float = ANSWER_SECONDS,
    ) -> Answer:
        content = self._call(method, path, body=body, query=query, timeout=timeout)
        try:
            return model.model_validate(json.loads(content))
        except (ValidationError, ValueError):
            raise DaemonError(
                f"the daemon at {self.url} answers {path} with something else than this version"
                " of reclass-plex expects; restart it after an update"
            ) from None

    def _call(
        self,
        method: str,
        path: str,
        *,
        body: Message | None = None,
        query: Mapping[str, Any] | None = None,
        timeout: float = ANSWER_SECONDS,
    ) -> bytes:
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        try:
            answer = self._send(method, path, headers, body=body, query=query, timeout=timeout)
        except requests.Timeout:
            raise DaemonError(
                f"the daemon at {self.url} did not answer {path} within {timeout:g} s"
            ) from None
        except requests.RequestException as error:
            raise DaemonError(f"the daemon at {self.url} does not answer {path}: {error}") from None
        if answer.status_code == HTTPStatus.UNAUTHORIZED:
            raise DaemonError(
                f"the daemon at {self.url} does not know our token: it was started anew just now;"
                " try again"
            )
        if answer.status_code not in {HTTPStatus.OK, HTTPStatus.NO_CONTENT}:
            raise DaemonError(f"the daemon at {self.url}: {_problem(answer)}")
        return answer.content

    def _send(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        *,
        body: Message | None = None,
        query: Mapping[str, Any] | None = None,
        timeout: float,
    ) -> requests.Response:
        with requests.Session() as session:
            session.trust_env = False  # no proxy, and no .netrc in place of the token
            return session.request(
                method,
                self.url + path,
                params=query,
                data=None if body is None else to_json(body),
                headers=headers,
                timeout=(ALIVE_SECONDS, timeout),
                allow_redirects=False,
            )


def _problem(answer: requests.Response) -> str:
    """Return what a problem (RFC 9457) says."""
    try:
        detail = json.loads(answer.content)["detail"]
    except (ValueError, KeyError, TypeError):
        detail = None
    return detail if isinstance(detail, str) else f"{answer.status_code} {answer.reason}"
