"""Sessions, API tokens and sign-in links of the web interface, on disk: the table `web_keys`.

A key has 256 random bits and is shown once, to whom it is given; the store has its SHA-256, from
which nobody finds it. Scopes: "read" sees everything, "write" may also change things.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from reclass_plex.errors import ConfigError, StoreError, visible
from reclass_plex.store import Store
from reclass_plex.tables import web_keys

Kind = Literal["session", "token", "link"]
Scope = Literal["read", "write"]
SESSION_SECONDS = 30 * 86400.0  # a session ends after so long,
IDLE_SECONDS = 7 * 86400.0  # or when it was not used for so long
LINK_SECONDS = 600.0
MAX_SESSIONS = 100  # the longest unused ones end first
TOKEN_PREFIX = "rplex_"  # noqa: S105 - what tokens begin with, so that one in a log is known as such
_USED_SECONDS = 600.0  # between two notes of when a key was used
_MAX_KEY = 200  # characters


@dataclass(frozen=True)
class WebKey:
    """A row of `web_keys`. Times are seconds since the epoch."""

    id: int
    kind: Kind
    name: str
    scope: Scope
    address: str | None
    created: float
    used: float
    expires: float | None


class WebKeys:
    """The keys in `store`. Any number of threads and processes may use them at once."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def begin_session(self, now: float, *, browser: str = "", address: str | None = None) -> str:
        """Begin a session and return its key; sessions that ended are dropped."""
        key = secrets.token_urlsafe(32)
        name = visible(browser)[:200]
        self._add(key, "session", name, "write", now, now + SESSION_SECONDS, address)
        newest = (
            sa.select(web_keys.c.id)
            .where(web_keys.c.kind == "session")
            .order_by(web_keys.c.used.desc(), web_keys.c.id.desc())
            .limit(MAX_SESSIONS)
        )
        with self._store.transaction() as connection:
            connection.execute(web_keys.delete().where(web_keys.c.expires < now))
            ended = sa.or_(web_keys.c.used < now - IDLE_SECONDS, web_keys.c.id.not_in(newest))
            connection.execute(web_keys.delete().where(web_keys.c.kind == "session", ended))
        return key

    def make_link(self, now: float) -> str:
        """Return a key that signs in once, within `LINK_SECONDS`."""
        key = secrets.token_urlsafe(32)
        self._add(key, "link", "", "write", now, now + LINK_SECONDS)
        return key

    def use_link(self, key: str, now: float) -> bool:
        """Tell whether this link is good; from now on it is not."""
        with self._store.transaction() as connection:
            done = connection.execute(
                web_keys.delete().where(
                    web_keys.c.hash == _hash(key),
                    web_keys.c.kind == "link",
                    web_keys.c.expires >= now,
                )
            )
        return bool(done.rowcount)

    def make_token(self, name: str, scope: Scope, now: float, *, days: float | None = None) -> str:
        """Return a new API token. Raises ConfigError if the name is taken, or none."""
        name = name.strip()
        if not name or len(name) > 100 or not name.isprintable():
            raise ConfigError("the token's name: must have 1 to 100 letters")
        if any(token.name == name for token in self.list_keys("token")):
            raise ConfigError(f"there is a token named {name} already: revoke it, or name another")
        key = TOKEN_PREFIX + secrets.token_urlsafe(32)
        self._add(key, "token", name, scope, now, None if days is None else now + days * 86400)
        return key

    def find(self, key: str, kind: Kind, now: float) -> WebKey | None:
        """Return the session or token with this key, if it holds; note that it is used."""
        if not key or len(key) > _MAX_KEY:
            return None
        wanted = _hash(key)
        query = sa.select(web_keys).where(web_keys.c.hash == wanted, web_keys.c.kind == kind)
        with self._store.transaction(write=False) as connection:
            row = connection.execute(query).first()
        if row is None or not hmac.compare_digest(row.hash, wanted):
            return None
        if row.expires is not None and row.expires < now:
            return None
        if kind == "session" and row.used < now - IDLE_SECONDS:
            return None
        if abs(now - row.used) > _USED_SECONDS:
            self._note_use(row.id, now)
        return _key(row)

    def _note_use(self, key_id: int, now: float) -> None:
        statement = web_keys.update().where(web_keys.c.id == key_id).values(used=now)
        try:
            with self._store.transaction() as connection:
                connection.execute(statement)
        except StoreError:  # a full disk: the key is good all the same
            return

    def list_keys(self, kind: Kind) -> list[WebKey]:
        """Return the keys of a kind, the newest first."""
        query = sa.select(web_keys).where(web_keys.c.kind == kind).order_by(web_keys.c.id.desc())
        with self._store.transaction(write=False) as connection:
            return [_key(row) for row in connection.execute(query)]

    def end_session(self, key: str) -> None:
        """End the session with this key."""
        self._drop(web_keys.c.hash == _hash(key), web_keys.c.kind == "session")

    def end_sessions(self) -> int:
        """End all sessions and links; return how many."""
        return self._drop(web_keys.c.kind.in_(("session", "link")))

    def revoke_token(self, name: str) -> bool:
        """Make a token worthless; tell whether there was one of this name."""
        return bool(self._drop(web_keys.c.kind == "token", web_keys.c.name == name))

    def _drop(self, *conditions: sa.ColumnElement[bool]) -> int:
        with self._store.transaction() as connection:
            return int(connection.execute(web_keys.delete().where(*conditions)).rowcount)

    def _add(
        self,
        key: str,
        kind: Kind,
        name: str,
        scope: Scope,
        now: float,
        expires: float | None,
        address: str | None = None,
    ) -> None:
        values: dict[str, object] = {"kind": kind, "name": name, "scope": scope, "address": address}
        values |= {"hash": _hash(key), "created": now, "used": now, "expires": expires}
        with self._store.transaction() as connection:
            connection.execute(web_keys.insert().values(values))


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _key(row: sa.Row[Any]) -> WebKey:
    return WebKey(**{name: row._mapping[name] for name in WebKey.__dataclass_fields__})
