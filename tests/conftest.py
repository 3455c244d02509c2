"""What the tests of Plex share: a server that is stricter than the real one, and a way to it."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest
from plex_server import Library, PlexStandIn
from plex_tools import connect

from reclass_plex.plex import Plex


@pytest.fixture(autouse=True)
def limits() -> Iterator[None]:
    """No test leaves bounds of memory or of anything behind, of which another would die."""
    kinds = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]
    before = [resource.getrlimit(kind) for kind in kinds]
    yield
    assert [resource.getrlimit(kind) for kind in kinds] == before


@pytest.fixture
def server() -> Iterator[PlexStandIn]:
    """A server that must not have been asked for anything that it does not know."""
    with PlexStandIn() as stand_in:
        yield stand_in
        assert stand_in.errors == []


@pytest.fixture
def library(server: PlexStandIn) -> Library:
    """An empty music library of the server."""
    return server.add_library()


@pytest.fixture
def plex(server: PlexStandIn) -> Iterator[Plex]:
    """A connection to the server."""
    with connect(server) as connected:
        yield connected
