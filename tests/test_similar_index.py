"""The daemon's index of similar music: made in a process of its own, which stops when told."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from daemon_tools import Site, running, wait_until
from similar_store import clustered, digest_of, fill

from reclass_plex.similarity import FEW, SimilarMusic, Wish, index_path
from reclass_plex.store import Store
from service.similar_index import update_index


def test_the_index_is_made_beside_the_daemon(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store.sqlite") as store:
        fill(store, clustered(FEW + 100)[1])
        music = SimilarMusic.open(store)
        before = music.near(digest_of(0), 3, Wish(existing=False))
        assert not update_index(store.path, lambda: True)  # stopped at once
        assert not index_path(store).exists()
        assert update_index(store.path)
        assert index_path(store).stat().st_mode & 0o777 == 0o600
        assert not music.needs_update()
        after = music.near(digest_of(0), 3, Wish(existing=False))
        assert [one.digest for one in after] == [one.digest for one in before]
        made = index_path(store).stat().st_mtime_ns
        assert update_index(store.path)  # nothing new: nothing is written
        assert index_path(store).stat().st_mtime_ns == made


def test_a_large_import_does_not_wait_for_the_night(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.configure()
    with Store.open(site.store) as store:
        fill(store, clustered(FEW + 100)[1])
        music = SimilarMusic.open(store)
        assert music.needs_update()
        with running(site):
            wait_until(lambda: index_path(store).exists(), "the index is made")
        assert not music.needs_update()


def test_looking_whether_much_is_new_reads_no_vector(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store.sqlite") as store:
        fill(store, clustered(FEW + 100)[1])
        asked: list[str] = []
        sa.event.listen(
            store._engine, "before_cursor_execute", lambda *given: asked.append(given[2])
        )
        assert SimilarMusic.open(store).needs_update()
        assert asked
        assert not any("embeddings.vector" in statement for statement in asked)


def test_a_store_that_is_none_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "store.sqlite"
    path.write_bytes(b"no database at all, but long enough to be looked at" * 99)
    began = time.monotonic()
    assert not update_index(path)
    assert "is damaged" in capfd.readouterr().err
    assert time.monotonic() - began < 60
