"""A playlist of a track and what sounds most like it, for API and pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.responses import Response

from reclass_plex.browse import TrackDetail
from reclass_plex.m3u import Entry, render_m3u

if TYPE_CHECKING:
    from reclass_plex.similarity import SimilarMusic

M3U = "audio/x-mpegurl"


def files_like(music: SimilarMusic, track: TrackDetail, count: int) -> tuple[Path, ...]:
    """Return a track and `count` others, one an album, the most similar first. Raises NotHeard."""
    from reclass_plex.similarity import Wish

    near = music.near(track.digest or "", count, Wish(per_album=1))
    return (track.row.path, *(one.path for one in near))


def as_m3u(files: Sequence[Path]) -> Response:
    """Return a playlist to be downloaded. Its paths are this machine's."""
    content, _ = render_m3u(map(Entry, files), title=f"Like {files[0].stem}")
    headers = {"Content-Disposition": 'attachment; filename="similar.m3u8"'}
    return Response(content, media_type=M3U, headers=headers)
