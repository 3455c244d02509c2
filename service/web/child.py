"""What is dear to draw of a track, in a process of its own, so that the daemon stays light.

    python -m service.web.child spectrogram|excerpt|windows DESCRIPTOR

The file comes as an open descriptor: what was checked is what is read, whatever its name leads to
by now. The answer goes to standard output: a PNG, a WAV, or JSON of what MusiCNN hears window by
window. On failure standard error has a line for people, and the status is 1.
"""

from __future__ import annotations

import json
import os
import resource
import struct
import sys
import zlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt

    from reclass_plex.ensemble import Ensemble

EXCERPT_SECONDS = 30.0
CPU_SECONDS = 60  # then the system ends it
MEMORY = 1 << 30  # bytes that a file may take: a damaged one may ask for all there is
RATE = 22050  # Hz, of what is drawn and played
SHORTEST_SECONDS = 3.0  # of audio that has windows
WIDTH, HEIGHT = 900, 180  # pixels
_FRAME = 2048  # samples
_LOWEST, _HIGHEST = 40.0, 11_025.0  # Hz
_RANGE = 80.0  # dB below the loudest that are told apart
# From quiet to loud: dark, teal, sand.
_COLOURS = ((16, 20, 24), (15, 60, 66), (20, 120, 108), (120, 176, 120), (240, 214, 140))


def main() -> int:
    """Do what the arguments ask for."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    os.nice(10)
    what, descriptor = sys.argv[1:]
    path = Path(f"/dev/fd/{int(descriptor)}")
    from reclass_plex.decoding import forgo_core, limit_memory
    from reclass_plex.errors import ReclassError

    try:
        forgo_core()
        draw = _load(what)
        limit_memory(MEMORY)
        answer = draw(path)
    except ReclassError as error:
        print(getattr(error, "reason", error), file=sys.stderr)
        return 1
    except MemoryError:
        print(f"it needs over {MEMORY >> 30} GiB of memory: damaged, or made so", file=sys.stderr)
        return 1
    sys.stdout.buffer.write(answer)
    return 0


def _load(what: str) -> Callable[[Path], bytes]:
    """Return what draws, with all that it needs besides the file."""
    from reclass_plex import audio  # noqa: F401 - before the memory is counted
    from reclass_plex.config import EnsembleOptions

    if what != "windows":
        return {"spectrogram": spectrogram, "excerpt": excerpt}[what]
    from reclass_plex.ensemble import Ensemble

    ensemble = Ensemble(EnsembleOptions(learned_genres=False))
    ensemble.load()
    return partial(windows, ensemble)


def spectrogram(path: Path) -> bytes:
    """Return the middle 30 s as a PNG: time to the right, frequency upwards, by octaves."""
    import numpy as np

    samples = _samples(path)
    padded = np.pad(samples, (0, max(0, _FRAME - len(samples))))
    starts = np.linspace(0, len(padded) - _FRAME, WIDTH).astype(int)
    frames = padded[starts[:, None] + np.arange(_FRAME)] * np.hanning(_FRAME).astype(np.float32)
    power = np.abs(np.fft.rfft(frames)) ** 2  # (WIDTH, bins)
    wanted = np.geomspace(_HIGHEST, _LOWEST, HEIGHT) / (RATE / _FRAME)  # bins, from above down
    below = np.minimum(wanted.astype(int), power.shape[1] - 2)
    share = wanted - below
    rows = (power[:, below] * (1 - share) + power[:, below + 1] * share).T
    loud = 10 * np.log10(np.maximum(rows, 1e-10))
    level = np.clip((loud - loud.max() + _RANGE) / _RANGE, 0, 1)
    return _png((level * 63).astype(np.uint8) * 4)  # few levels, so that it packs well


def excerpt(path: Path) -> bytes:
    """Return the middle 30 s as a WAV, mono: what the models hear, for every browser."""
    import numpy as np

    data = (np.clip(_samples(path), -1, 1) * 32767).astype("<i2").tobytes()
    form = struct.pack("<HHIIHH", 1, 1, RATE, RATE * 2, 2, 16)
    head = struct.pack("<4sI4s4sI", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", len(form))
    return head + form + struct.pack("<4sI", b"data", len(data)) + data


def windows(ensemble: Ensemble, path: Path) -> bytes:
    """Return JSON: what MusiCNN's last stage of an ensemble hears, window by window."""
    from reclass_plex.audio import decode_excerpt
    from reclass_plex.errors import NotAudio

    waveform = decode_excerpt(path, ensemble.excerpt)
    if waveform.seconds < SHORTEST_SECONDS:
        raise NotAudio(path, f"is shorter than {SHORTEST_SECONDS:g} s")
    return json.dumps(
        {
            "start": waveform.start,
            "seconds": waveform.seconds,
            "windows": [
                [list(one) for one in heard] for heard in ensemble.classify_windows(waveform)
            ],
        }
    ).encode()


def _samples(path: Path) -> npt.NDArray[np.float32]:
    from reclass_plex.audio import decode_excerpt, resample
    from reclass_plex.records import Excerpt

    return resample(decode_excerpt(path, Excerpt(EXCERPT_SECONDS)), RATE).samples


def _png(image: npt.NDArray[np.uint8]) -> bytes:
    """Return an image (rows, columns) of 0 to 255 as a PNG in our colours."""
    import numpy as np

    at = np.linspace(0, 255, len(_COLOURS))
    stops = np.array(_COLOURS, float)
    palette = np.stack([np.interp(np.arange(256), at, stops[:, c]) for c in range(3)], 1)
    height, width = image.shape
    unfiltered = np.hstack([np.zeros((height, 1), np.uint8), image])

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            chunk(b"PLTE", palette.astype(np.uint8).tobytes()),
            chunk(b"IDAT", zlib.compress(unfiltered.tobytes(), 7)),
            chunk(b"IEND", b""),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
