"""A playlist of a track and what sounds most like it, for API and pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from starlette.responses import Response

from reclass_plex.browse import TrackDetail
from reclass_plex.m3u import Entry, render_m3u
from reclass_plex.similarity import SimilarMusic, Wish

M3U = "audio/x-mpegurl"


def files_like(music: SimilarMusic, track: TrackDetail, count: int) -> tuple[Path, ...]:
    """Return a track and `count` others, one an album, the most similar first. Raises NotHeard."""
    near = music.near(track.digest or "", count, Wish(per_album=1))
    return (track.row.path, *(one.path for one in near))


def as_m3u(files: Sequence[Path]) -> Response:
    """Return a playlist to be downloaded. Its paths are this machine's.

    What it cannot hold is named at its end, in comments, which players pass over.
    """
    content, written = render_m3u(map(Entry, files), title=f"Like {files[0].stem}")
    content += "".join(f"# left out: {error}\n" for error in written.left_out).encode()
    headers = {"Content-Disposition": 'attachment; filename="similar.m3u8"'}
    return Response(content, media_type=M3U, headers=headers)
