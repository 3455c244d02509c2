"""The store's tables, as the newest migration leaves them, for the modules that ask in SQL.

Times are seconds since the epoch, UTC. Paths are bytes, because a name need not be valid Unicode.
"""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path

import sqlalchemy as sa

from reclass_plex.records import GenreScore


class PathBytes(sa.types.TypeDecorator[Path]):
    """A path as the bytes that the file system knows it by."""

    impl = sa.LargeBinary
    cache_ok = True

    def process_bind_param(self, value: Path | None, dialect: sa.Dialect) -> bytes | None:
        """Path to bytes."""
        return None if value is None else os.fsencode(value)

    def process_result_value(self, value: bytes | None, dialect: sa.Dialect) -> Path | None:
        """Bytes to path."""
        return None if value is None else Path(os.fsdecode(value))


class Names(sa.types.TypeDecorator[tuple[str, ...]]):
    """A tuple of texts as JSON; None stays NULL."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: tuple[str, ...] | None, dialect: sa.Dialect) -> str | None:
        """Tuple to JSON."""
        return None if value is None else json.dumps(value)

    def process_result_value(
        self, value: str | None, dialect: sa.Dialect
    ) -> tuple[str, ...] | None:
        """JSON to tuple."""
        return None if value is None else _parse_names(value)


@lru_cache(maxsize=4096)  # a library has few genres, many times
def _parse_names(text: str) -> tuple[str, ...]:
    return tuple(json.loads(text))


class Nanoseconds(sa.types.TypeDecorator[int]):
    """A time in ns. What SQLite cannot hold (before 1678, after 2262) is cut to what it can."""

    impl = sa.Integer
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: sa.Dialect) -> int | None:
        """Cut to 64 bits."""
        return None if value is None else max(-(1 << 63), min(value, (1 << 63) - 1))


class Scores(sa.types.TypeDecorator[tuple[GenreScore, ...]]):
    """Genres and their confidences as JSON, [[name, confidence], ...]."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(
        self, value: tuple[GenreScore, ...] | None, dialect: sa.Dialect
    ) -> str | None:
        """Tuple to JSON."""
        return None if value is None else json.dumps([[one[0], round(one[1], 6)] for one in value])

    def process_result_value(
        self, value: str | None, dialect: sa.Dialect
    ) -> tuple[GenreScore, ...] | None:
        """JSON to tuple."""
        return None if value is None else tuple(map(GenreScore._make, json.loads(value)))


metadata = sa.MetaData()

tracks = sa.Table(
    "tracks",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("path", PathBytes, nullable=False, unique=True),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("mtime_ns", Nanoseconds, nullable=False),
    sa.Column("digest", sa.Text, index=True),  # NULL: could not be read, see error_kind
    sa.Column("genres", Names, nullable=False),  # what the file said when last read
    sa.Column("album", sa.Text, index=True),  # tracks of one album share this key
    sa.Column("written", Names),  # what we wrote last
    sa.Column("added", Names),  # what of it was not there before
    sa.Column("undone", sa.Boolean, nullable=False, default=False),
    sa.Column("moods", Names),  # what the file said when last read; NULL: nothing
    sa.Column("moods_written", Names),  # what we wrote last
    sa.Column("error_kind", sa.Text),
    sa.Column("error_message", sa.Text),
)

verdicts = sa.Table(
    "verdicts",
    metadata,
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("models", sa.Text, primary_key=True),  # Ensemble.fingerprint
    sa.Column("taxonomy", sa.Text, nullable=False),
    sa.Column("genres", sa.Text, nullable=False),  # JSON [[name, confidence], ...], ranked
    sa.Column("unsure", sa.Text),
    sa.Column("decided_by", sa.Text, nullable=False),
    sa.Column("votes", sa.Text, nullable=False),  # JSON [[stage, seconds, genres], ...]
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("moods", Scores),  # NULL: none
    sa.Column("styles", Scores),
)

listing = sa.Table(
    "listing",  # what people search and sort tracks by, short; triggers of the database keep it
    metadata,
    sa.Column("track_id", sa.Integer, primary_key=True),
    sa.Column("path", PathBytes, nullable=False),
    sa.Column("album", sa.Text),
    sa.Column("genre", sa.Text, nullable=False),  # first of the newest verdict; "": none
    sa.Column("confidence", sa.Float, nullable=False),  # of it; -1: never heard
    sa.Column("decided_by", sa.Text, nullable=False),  # "": never heard
    sa.Column("unsure", sa.Text),
    sa.Column("heard", sa.Float, nullable=False),  # when; 0: never
    sa.Column("models", sa.Text),  # which said the newest verdict
    sa.Column("tags", sa.Text, nullable=False),  # JSON: genres that the file has
    sa.Column("former", sa.Text, nullable=False),  # JSON: genres that it had before our first write
    sa.Column("written", sa.Boolean, nullable=False),  # by us, and not taken back
    sa.Column("error_kind", sa.Text),
    sa.Column("state", sa.Text),  # of its job
    sa.Index("ix_listing_path", "path"),
    sa.Index("ix_listing_confidence", "confidence", "track_id"),
    sa.Index("ix_listing_heard", "heard", "track_id"),
    sa.Index("ix_listing_genre", "genre", "confidence", "track_id"),
    sa.Index("ix_listing_stage", "decided_by", "confidence", "track_id"),
    sa.Index("ix_listing_state", "state", "confidence", "track_id"),
    sa.Index("ix_listing_album", "album", "genre"),
    sa.Index("ix_listing_unsure", "unsure", "confidence", "track_id"),
    sa.Index("ix_listing_error", "error_kind", "track_id"),
    sa.Index("ix_listing_former", "former", "genre", "unsure"),
)

embeddings = sa.Table(
    "embeddings",
    metadata,
    # Never used twice, and another one when the vector changes: an index of them can tell what is
    # new by the highest id that it has.
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("encoder", sa.Text, nullable=False),
    sa.Column("vector", sa.LargeBinary, nullable=False),  # little-endian float16
    sa.UniqueConstraint("digest", "encoder"),
    sqlite_autoincrement=True,
)

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("command", sa.Text, nullable=False),
    # files.process_token, in temporary names, of each process that works on it; blanks between
    sa.Column("token", sa.Text, nullable=False),
    sa.Column("started", sa.Float, nullable=False),
    sa.Column("finished", sa.Float),  # NULL: still running, or killed
)

journal = sa.Table(
    "journal",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("run_id", sa.ForeignKey("runs.id"), nullable=False, index=True),
    sa.Column("track_id", sa.ForeignKey("tracks.id"), nullable=False, index=True),
    sa.Column("path", PathBytes, nullable=False),  # the file that is replaced, links resolved
    sa.Column("temp_path", PathBytes, nullable=False),
    sa.Column(
        "digest", sa.Text, nullable=False
    ),  # of its audio: what is there later may be another
    # pending: the file may be old or new. done: new. abandoned: old. undone: taken back.
    sa.Column("state", sa.Text, nullable=False, index=True),
    sa.Column("before", Names, nullable=False),
    sa.Column("after", Names, nullable=False),
    sa.Column("before_hash", sa.Text, nullable=False),
    sa.Column("after_hash", sa.Text, nullable=False),
    sa.Column("before_mtime_ns", Nanoseconds, nullable=False),
    sa.Column("delta", sa.LargeBinary, nullable=False),  # see reclass_plex.delta
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("moods", Names),  # that were written where none were; NULL: untouched
    sa.Index("ix_journal_run", "run_id", "state"),
)

decisions = sa.Table(
    "decisions",  # what a person said of a recording; see reclass_plex.decided
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("digest", sa.Text, nullable=False, index=True),
    sa.Column("genres", Names, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),  # accept, or correct
    sa.Column("previous", sa.Text),  # the first genre of the verdict then; NULL: none
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("by", sa.Text),  # who, where that is known
    sa.Column("run_id", sa.ForeignKey("runs.id"), nullable=False, index=True),
    sa.Column("state", sa.Text, nullable=False),  # stands, replaced, withdrawn
    sa.Column("open", Names, nullable=False),  # ids of tracks whose files do not say so yet
    sa.Column("problem", sa.Text),  # why they do not
    sa.Index("ix_decisions_stands", "digest", unique=True, sqlite_where=sa.text("state='stands'")),
    sa.Index("ix_decisions_open", "id", sqlite_where=sa.text("open <> '[]'")),
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("path", PathBytes, nullable=False, unique=True),
    sa.Column("folder", PathBytes, nullable=False),  # the path's parent
    sa.Column("state", sa.Text, nullable=False),  # see reclass_plex.jobs
    sa.Column("reasons", Names, nullable=False),  # what asked for it, in order
    sa.Column("bulk", sa.Boolean, nullable=False),  # asked for in bulk: new music goes first
    sa.Column("due", sa.Float, nullable=False),  # waiting: not before; ready: its place in line
    sa.Column("attempts", sa.Integer, nullable=False),  # that ended in "retry later"
    sa.Column("deaths", sa.Integer, nullable=False),  # of processes that held it
    sa.Column("owner", sa.Text),  # files.process_token of the one that works on it
    sa.Column("lease_until", sa.Float),
    sa.Column("again", Names),  # what asked for it while it was worked on
    sa.Column("again_due", sa.Float),
    sa.Column("message", sa.Text),  # why it was skipped, retried, parked
    sa.Column("changed", sa.Float, nullable=False),  # the state's last change
    sa.Index("ix_jobs_line", "state", "bulk", "due"),
    sa.Index("ix_jobs_folder", "folder", "state", "due"),
    sa.Index("ix_jobs_newest", "state", "changed", "id"),
    sa.Index("ix_jobs_changed", "changed"),
)

web_keys = sa.Table(
    "web_keys",  # by what the daemon's web interface knows who asks; see reclass_plex.web_keys
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("hash", sa.Text, nullable=False, unique=True),  # SHA-256; the key is kept nowhere
    sa.Column("kind", sa.Text, nullable=False),  # session, token, link
    sa.Column("name", sa.Text, nullable=False),  # a token's; a session's browser
    sa.Column("scope", sa.Text, nullable=False),  # read, write
    sa.Column("address", sa.Text),  # from where a session was begun
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("used", sa.Float, nullable=False),  # last, within some minutes
    sa.Column("expires", sa.Float),
    sa.Index("ix_web_keys_kind", "kind", "used"),
)

plex_wanted = sa.Table(
    "plex_wanted",  # what shall stand in Plex
    metadata,
    sa.Column("path", PathBytes, primary_key=True),
    sa.Column("genres", Scores, nullable=False),
    sa.Column("run_id", sa.ForeignKey("runs.id")),  # which wanted it, to be undone with it
    sa.Column("state", sa.Text, nullable=False),  # see reclass_plex.sync.wanted
    sa.Column("asked", sa.Float, nullable=False),
    sa.Column("due", sa.Float, nullable=False),  # waiting: not before
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("message", sa.Text),  # why it waits, or what was left as it was
    sa.Column("moods", Scores, nullable=False),
    sa.Column("styles", Scores, nullable=False),
    sa.Index("ix_plex_wanted_line", "state", "due"),
)

plex_libraries = sa.Table(
    "plex_libraries",  # of which `plex_items` has the tracks
    metadata,
    sa.Column("server", sa.Text, primary_key=True),  # its machineIdentifier
    sa.Column("library_key", sa.Integer, primary_key=True),
    sa.Column("path_map", sa.Text, nullable=False),  # that the local paths were made with
    sa.Column("listed", sa.Float, nullable=False),  # when all of it was read
    sa.Column("newest", sa.Integer, nullable=False),  # by the server's clock
)

plex_items = sa.Table(
    "plex_items",  # where the server's tracks lie
    metadata,
    sa.Column("server", sa.Text, primary_key=True),
    sa.Column("rating_key", sa.Integer, primary_key=True),
    sa.Column("path", PathBytes, primary_key=True),  # local; a track may have several files
    sa.Column("library_key", sa.Integer, nullable=False),
    sa.Column("album_key", sa.Integer, nullable=False),
    sa.Column("artist_key", sa.Integer, nullable=False),
    sa.Column("seen", sa.Float, nullable=False),  # when it was last read
    sa.Index("ix_plex_items_path", "path"),
    sa.Index("ix_plex_items_album", "server", "album_key"),
    sa.Index("ix_plex_items_artist", "server", "artist_key"),
)

plex_edits = sa.Table(
    "plex_edits",  # what we changed in Plex, and what it takes to take it back
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("run_id", sa.ForeignKey("runs.id"), index=True),
    # The edit of ours that this one replaced. None: the item had somebody else's genres.
    sa.Column("over", sa.ForeignKey("plex_edits.id")),
    sa.Column("server", sa.Text, nullable=False),
    sa.Column("rating_key", sa.Integer, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("field", sa.Text, nullable=False, server_default="genre"),  # or mood, style
    sa.Column("library_key", sa.Integer, nullable=False),
    sa.Column("path", PathBytes),  # of a track's file; NULL for an album or artist
    sa.Column("before", Names, nullable=False),
    sa.Column("after", Names, nullable=False),
    sa.Column("was_locked", sa.Boolean, nullable=False),
    sa.Column("replaced", Names, nullable=False),
    # planned: perhaps applied. done: applied. undone: taken back. gone: the item is.
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Index("ix_plex_edits_item", "server", "rating_key", "state"),
)

notice_problems = sa.Table(
    "notice_problems",  # what is wrong, and what the user was told of it; see reclass_plex.notices
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("since", sa.Float, nullable=False),
    sa.Column("told", sa.Float),  # when last; NULL: never
    sa.Column("gone", sa.Float),  # since when it is not there; NULL: it is
    sa.Column("open", sa.Boolean, nullable=False),  # told, and not yet told that it is solved
)

notice_outbox = sa.Table(
    "notice_outbox",  # messages on their way, and those of the last 30 days
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),  # problem, well, daily
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),  # empty: there was nothing to say
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("state", sa.Text, nullable=False),  # waiting, sent, given up
    sa.Column("due", sa.Float, nullable=False),  # waiting: not before
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("reached", Names, nullable=False),  # who took it, by messages.address_key
    sa.Column("why", sa.Text),  # it is still waiting
)

placements = sa.Table(
    "placements",  # files that `organize` put into a tree; see reclass_plex.placing
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("run_id", sa.ForeignKey("runs.id"), nullable=False, index=True),
    sa.Column("source", PathBytes, nullable=False, index=True),
    sa.Column("target", PathBytes, nullable=False),
    sa.Column("temp_path", PathBytes),  # the copy before its rename; NULL: there is none
    sa.Column("made", PathBytes),  # the topmost folder that was made for it
    sa.Column("how", sa.Text, nullable=False),  # copy, hardlink, move
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),  # BLAKE2b-16 of the whole file
    # pending: it may be in place. done: it is. abandoned: it is not. undone: taken back.
    sa.Column("state", sa.Text, nullable=False, index=True),
    sa.Column("created", sa.Float, nullable=False),
)
