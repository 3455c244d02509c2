"""Tracks, verdicts, embeddings, runs, the journal, jobs, decisions, and what concerns Plex."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


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
