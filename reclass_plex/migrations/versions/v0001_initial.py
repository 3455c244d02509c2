"""Tracks, verdicts, embeddings, runs, the journal, jobs, decisions, and what concerns Plex."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

# `listing` follows the tables that it is made of by itself, whoever writes to these. A verdict that
# is no JSON counts as none here: it is for `store` to say that the database is damaged.
_LIST = """
    DELETE FROM listing WHERE track_id IN (SELECT id FROM tracks WHERE {which});
    INSERT INTO listing SELECT
        tracks.id, tracks.path, tracks.album,
        coalesce(iif(json_valid(genres_of), json_extract(genres_of, '$[0][0]'), NULL), ''),
        coalesce(iif(json_valid(genres_of), json_extract(genres_of, '$[0][1]'), NULL), -1),
        coalesce(heard.decided_by, ''), heard.unsure, coalesce(heard.created, 0), heard.models,
        tracks.genres,
        coalesce(
            (SELECT journal.before FROM journal WHERE journal.track_id = tracks.id
             AND journal.state IN ('done', 'pending') AND tracks.written IS NOT NULL
             AND NOT tracks.undone ORDER BY journal.id LIMIT 1),
            tracks.genres),
        tracks.written IS NOT NULL AND NOT tracks.undone,
        tracks.error_kind,
        (SELECT jobs.state FROM jobs WHERE jobs.path = tracks.path)
    FROM tracks LEFT JOIN (
        SELECT digest, models, created, decided_by, unsure, genres AS genres_of FROM verdicts
    ) AS heard ON heard.digest = tracks.digest AND heard.models = (
        SELECT models FROM verdicts WHERE digest = tracks.digest ORDER BY created DESC LIMIT 1)
    WHERE {which};
"""
_OF = "path, digest, genres, album, written, undone, error_kind"
_TRIGGERS = {
    "listing_track_new": ("AFTER INSERT ON tracks", _LIST.format(which="tracks.id = NEW.id")),
    "listing_track": (f"AFTER UPDATE OF {_OF} ON tracks", _LIST.format(which="tracks.id = NEW.id")),
    "listing_track_gone": (
        "AFTER DELETE ON tracks",
        "DELETE FROM listing WHERE track_id = OLD.id;",
    ),
    "listing_verdict_new": (
        "AFTER INSERT ON verdicts",
        _LIST.format(which="tracks.digest = NEW.digest"),
    ),
    "listing_verdict": (
        "AFTER UPDATE ON verdicts",
        _LIST.format(which="tracks.digest = NEW.digest"),
    ),
    "listing_verdict_gone": (
        "AFTER DELETE ON verdicts",
        _LIST.format(which="tracks.digest = OLD.digest"),
    ),
    "listing_job_new": (
        "AFTER INSERT ON jobs",
        "UPDATE listing SET state = NEW.state WHERE path = NEW.path;",
    ),
    "listing_job": (
        "AFTER UPDATE OF state ON jobs WHEN NEW.state IS NOT OLD.state",
        "UPDATE listing SET state = NEW.state WHERE path = NEW.path;",
    ),
    "listing_job_gone": (
        "AFTER DELETE ON jobs",
        "UPDATE listing SET state = NULL WHERE path = OLD.path;",
    ),
}


def upgrade() -> None:
    op.create_table(
        "tracks",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("path", sa.LargeBinary, nullable=False, unique=True),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("mtime_ns", sa.Integer, nullable=False),
        sa.Column("digest", sa.Text, index=True),
        sa.Column("genres", sa.Text, nullable=False),
        sa.Column("album", sa.Text, index=True),
        sa.Column("written", sa.Text),
        sa.Column("added", sa.Text),
        sa.Column("undone", sa.Boolean, nullable=False),
        sa.Column("moods", sa.Text),
        sa.Column("moods_written", sa.Text),
        sa.Column("error_kind", sa.Text),
        sa.Column("error_message", sa.Text),
    )
    op.create_table(
        "verdicts",
        sa.Column("digest", sa.Text, primary_key=True),
        sa.Column("models", sa.Text, primary_key=True),
        sa.Column("taxonomy", sa.Text, nullable=False),
        sa.Column("genres", sa.Text, nullable=False),
        sa.Column("unsure", sa.Text),
        sa.Column("decided_by", sa.Text, nullable=False),
        sa.Column("votes", sa.Text, nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("moods", sa.Text),
        sa.Column("styles", sa.Text),
    )
    op.create_table(
        "listing",
        sa.Column("track_id", sa.Integer, primary_key=True),
        sa.Column("path", sa.LargeBinary, nullable=False),
        sa.Column("album", sa.Text),
        sa.Column("genre", sa.Text, nullable=False),
        sa.Column("confidence", sa.Float, nullable=False),
        sa.Column("decided_by", sa.Text, nullable=False),
        sa.Column("unsure", sa.Text),
        sa.Column("heard", sa.Float, nullable=False),
        sa.Column("models", sa.Text),
        sa.Column("tags", sa.Text, nullable=False),
        sa.Column("former", sa.Text, nullable=False),
        sa.Column("written", sa.Boolean, nullable=False),
        sa.Column("error_kind", sa.Text),
        sa.Column("state", sa.Text),
    )
    op.create_index("ix_listing_path", "listing", ["path"])
    op.create_index("ix_listing_confidence", "listing", ["confidence", "track_id"])
    op.create_index("ix_listing_heard", "listing", ["heard", "track_id"])
    op.create_index("ix_listing_genre", "listing", ["genre", "confidence", "track_id"])
    op.create_index("ix_listing_stage", "listing", ["decided_by", "confidence", "track_id"])
    op.create_index("ix_listing_state", "listing", ["state", "confidence", "track_id"])
    op.create_index("ix_listing_album", "listing", ["album", "genre"])
    op.create_index("ix_listing_unsure", "listing", ["unsure", "confidence", "track_id"])
    op.create_index("ix_listing_error", "listing", ["error_kind", "track_id"])
    op.create_index("ix_listing_former", "listing", ["former", "genre", "unsure"])
    op.create_table(
        "embeddings",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("encoder", sa.Text, nullable=False),
        sa.Column("vector", sa.LargeBinary, nullable=False),
        sa.UniqueConstraint("digest", "encoder"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "runs",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("command", sa.Text, nullable=False),
        sa.Column("token", sa.Text, nullable=False),
        sa.Column("started", sa.Float, nullable=False),
        sa.Column("finished", sa.Float),
    )
    op.create_table(
        "journal",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.id"), nullable=False, index=True),
        sa.Column("track_id", sa.Integer, sa.ForeignKey("tracks.id"), nullable=False, index=True),
        sa.Column("path", sa.LargeBinary, nullable=False),
        sa.Column("temp_path", sa.LargeBinary, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False, index=True),
        sa.Column("before", sa.Text, nullable=False),
        sa.Column("after", sa.Text, nullable=False),
        sa.Column("before_hash", sa.Text, nullable=False),
        sa.Column("after_hash", sa.Text, nullable=False),
        sa.Column("before_mtime_ns", sa.Integer, nullable=False),
        sa.Column("delta", sa.LargeBinary, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("moods", sa.Text),
    )
    op.create_index("ix_journal_run", "journal", ["run_id", "state"])
    op.create_table(
        "jobs",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("path", sa.LargeBinary, nullable=False, unique=True),
        sa.Column("folder", sa.LargeBinary, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("reasons", sa.Text, nullable=False),
        sa.Column("bulk", sa.Boolean, nullable=False),
        sa.Column("due", sa.Float, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("deaths", sa.Integer, nullable=False),
        sa.Column("owner", sa.Text),
        sa.Column("lease_until", sa.Float),
        sa.Column("again", sa.Text),
        sa.Column("again_due", sa.Float),
        sa.Column("message", sa.Text),
        sa.Column("changed", sa.Float, nullable=False),
    )
    op.create_index("ix_jobs_line", "jobs", ["state", "bulk", "due"])
    op.create_index("ix_jobs_folder", "jobs", ["folder", "state", "due"])
    op.create_index("ix_jobs_newest", "jobs", ["state", "changed", "id"])
    op.create_index("ix_jobs_changed", "jobs", ["changed"])
    op.create_table(
        "decisions",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("digest", sa.Text, nullable=False, index=True),
        sa.Column("genres", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("previous", sa.Text),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("by", sa.Text),
        sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.id"), nullable=False, index=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("open", sa.Text, nullable=False),
        sa.Column("problem", sa.Text),
    )
    stands = sa.text("state='stands'")
    op.create_index(
        "ix_decisions_stands", "decisions", ["digest"], unique=True, sqlite_where=stands
    )
    op.create_index("ix_decisions_open", "decisions", ["id"], sqlite_where=sa.text("open <> '[]'"))
    op.create_table(
        "web_keys",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("hash", sa.Text, nullable=False, unique=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("scope", sa.Text, nullable=False),
        sa.Column("address", sa.Text),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("used", sa.Float, nullable=False),
        sa.Column("expires", sa.Float),
    )
    op.create_index("ix_web_keys_kind", "web_keys", ["kind", "used"])
    op.create_table(
        "plex_wanted",
        sa.Column("path", sa.LargeBinary, primary_key=True),
        sa.Column("genres", sa.Text, nullable=False),
        sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.id")),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("asked", sa.Float, nullable=False),
        sa.Column("due", sa.Float, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("message", sa.Text),
        sa.Column("moods", sa.Text, nullable=False),
        sa.Column("styles", sa.Text, nullable=False),
    )
    op.create_index("ix_plex_wanted_line", "plex_wanted", ["state", "due"])
    op.create_table(
        "plex_libraries",
        sa.Column("server", sa.Text, primary_key=True),
        sa.Column("library_key", sa.Integer, primary_key=True),
        sa.Column("path_map", sa.Text, nullable=False),
        sa.Column("listed", sa.Float, nullable=False),
        sa.Column("newest", sa.Integer, nullable=False),
    )
    op.create_table(
        "plex_items",
        sa.Column("server", sa.Text, primary_key=True),
        sa.Column("rating_key", sa.Integer, primary_key=True),
        sa.Column("path", sa.LargeBinary, primary_key=True),
        sa.Column("library_key", sa.Integer, nullable=False),
        sa.Column("album_key", sa.Integer, nullable=False),
        sa.Column("artist_key", sa.Integer, nullable=False),
        sa.Column("seen", sa.Float, nullable=False),
    )
    op.create_index("ix_plex_items_path", "plex_items", ["path"])
    op.create_index("ix_plex_items_album", "plex_items", ["server", "album_key"])
    op.create_index("ix_plex_items_artist", "plex_items", ["server", "artist_key"])
    op.create_table(
        "plex_edits",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.id"), index=True),
        sa.Column("over", sa.Integer, sa.ForeignKey("plex_edits.id")),
        sa.Column("server", sa.Text, nullable=False),
        sa.Column("rating_key", sa.Integer, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("field", sa.Text, nullable=False, server_default="genre"),
        sa.Column("library_key", sa.Integer, nullable=False),
        sa.Column("path", sa.LargeBinary),
        sa.Column("before", sa.Text, nullable=False),
        sa.Column("after", sa.Text, nullable=False),
        sa.Column("was_locked", sa.Boolean, nullable=False),
        sa.Column("replaced", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
    )
    op.create_index("ix_plex_edits_item", "plex_edits", ["server", "rating_key", "state"])
    op.create_table(
        "notice_problems",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("since", sa.Float, nullable=False),
        sa.Column("told", sa.Float),
        sa.Column("gone", sa.Float),
        sa.Column("open", sa.Boolean, nullable=False),
    )
    op.create_table(
        "notice_outbox",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("due", sa.Float, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("reached", sa.Text, nullable=False),
        sa.Column("why", sa.Text),
    )
    op.create_table(
        "placements",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.id"), nullable=False, index=True),
        sa.Column("source", sa.LargeBinary, nullable=False, index=True),
        sa.Column("target", sa.LargeBinary, nullable=False),
        sa.Column("temp_path", sa.LargeBinary),
        sa.Column("made", sa.LargeBinary),
        sa.Column("how", sa.Text, nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("hash", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False, index=True),
        sa.Column("created", sa.Float, nullable=False),
    )
    for name, (event, statements) in _TRIGGERS.items():
        op.get_bind().exec_driver_sql(f"CREATE TRIGGER {name} {event} BEGIN {statements} END")
