"""The queue for people to read: jobs in pages, the latest change first."""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa

from reclass_plex.cursors import Page, cut_page, read_cursor
from reclass_plex.jobs import Job, State
from reclass_plex.store import Store
from reclass_plex.tables import jobs

_NAMES = tuple(Job.__dataclass_fields__)


def list_jobs(
    store: Store,
    states: Collection[State] = (),
    *,
    cursor: str | None = None,
    limit: int = 50,
) -> Page[Job]:
    """Return a page of the jobs in these states (none: in any). Raises BadCursor."""
    query = sa.select(*(jobs.c[name] for name in _NAMES))
    if states:
        query = query.where(jobs.c.state.in_(states))
    if cursor is not None:
        last = read_cursor(cursor, "jobs", float, int)
        query = query.where(sa.tuple_(jobs.c.changed, jobs.c.id) < sa.tuple_(*last))
    query = query.order_by(jobs.c.changed.desc(), jobs.c.id.desc()).limit(limit + 1)
    with store.transaction(write=False) as connection:
        found = [Job(**row._mapping) for row in connection.execute(query)]
    return cut_page(found, limit, "jobs", lambda job: (job.changed, job.id))


def find_job(store: Store, job_id: int) -> Job | None:
    """Return one job."""
    query = sa.select(*(jobs.c[name] for name in _NAMES)).where(jobs.c.id == job_id)
    with store.transaction(write=False) as connection:
        row = connection.execute(query).first()
    return None if row is None else Job(**row._mapping)
