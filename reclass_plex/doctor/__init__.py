"""Is this installation well? Each check says ok, warning or error, and what to do.

Nothing is changed, no secret is shown, and nothing waits for ever: what may hang (a server, a
network mount, a driver) has a time limit. `machine` looks at Python, decoders, GPU and models,
`storage` at the store and the disks, `server` at Plex, `folders` at the music, `process` at the
daemon.
"""

from reclass_plex.doctor.checks import Check
from reclass_plex.doctor.examine import diagnose, examine

__all__ = ["Check", "diagnose", "examine"]
