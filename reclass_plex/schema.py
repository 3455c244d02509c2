"""The store's schema: which one it has, and bringing it up to this version's.

Each step is a file in `migrations/versions`. All steps are one transaction, so that a store is
wholly as before or wholly up to date, whatever kills us; and before it a backup is made.
"""

from __future__ import annotations

import logging
import re
from contextlib import ExitStack
from pathlib import Path

import sqlalchemy as sa

from reclass_plex.backups import list_backups, look_into, make_backup
from reclass_plex.errors import StoreBusy, StoreError, StoreNewer, printable
from reclass_plex.store_guard import hold_daemon_lock

log = logging.getLogger(__name__)

SCHEMA_VERSION = "0001"  # the newest migration in reclass_plex/migrations/versions
MIGRATIONS = Path(__file__).parent / "migrations"
_SHOWN = 3  # backups named in an error


def known_revisions() -> list[str]:
    """Return the schemas that this version can read, oldest first."""
    names = (path.name for path in (MIGRATIONS / "versions").iterdir())
    found = (re.fullmatch(r"v(\d{4})_\w+\.py", name) for name in names)
    return sorted(match[1] for match in found if match)


def bring_up_to_date(engine: sa.Engine, path: Path, *, keep_former: bool = True) -> None:
    """Bring the schema to SCHEMA_VERSION; alembic is imported only when there is work.

    With `keep_former` a backup is made before. Raises StoreNewer for a schema that this version
    does not know, StoreBusy while the daemon of another version uses the store, and StoreError
    when there is no space for the backup: then nothing is changed.
    """
    with engine.connect() as connection:
        has_version = sa.inspect(connection).has_table("alembic_version")
        version = (
            connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
            if has_version
            else None
        )
    if version == SCHEMA_VERSION:
        return
    if version is not None and version not in known_revisions():
        raise StoreNewer(describe_newer(path, version))
    if version is None and (former := list_backups(path)):
        log.warning(
            "%s: is not there and is begun anew, although there are %d backups of it: stop"
            " reclass-plex and give reclass-plex restore, if that is not what you want",
            *(printable(path), len(former)),
        )
    with ExitStack() as stack:
        if version is not None and keep_former:
            try:
                stack.enter_context(hold_daemon_lock(path))
            except StoreBusy as error:
                raise StoreBusy(
                    f"{printable(path)}: is of another version, whose daemon runs: restart that"
                    " first (systemctl restart reclass-plex)"
                ) from error
            make_backup(path, before=SCHEMA_VERSION)
        from alembic import command
        from alembic.config import Config as AlembicConfig

        config = AlembicConfig()
        config.set_main_option("script_location", str(MIGRATIONS))
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, SCHEMA_VERSION)


def describe_newer(path: Path, version: str) -> str:
    """Say that a store is of a newer version, and which backups this one could go back to."""
    usable = []
    for backup in list_backups(path):
        try:
            if look_into(backup.path).schema in known_revisions():
                usable.append(backup.path.name)
        except StoreError:
            continue
        if len(usable) == _SHOWN:
            break
    back = (
        f"to stay with this version, give reclass-plex restore {usable[0]} (what was written to"
        " files since then stays written, and is taken over as far as this version can read it)"
        if usable
        else "there is no backup of before; or name another store (store.path)"
    )
    return (
        f"{printable(path)}: was written by a newer reclass-plex (its schema is {version}, this"
        f" version knows up to {SCHEMA_VERSION}). Nothing was changed. Upgrade reclass-plex again;"
        f" {back}"
    )
