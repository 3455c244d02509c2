"""The Echo Nest's analysis of a track: what the Million Song Dataset and MagnaTagATune hold.

A track is cut into segments of about a note's length, each with twelve timbre coefficients and
twelve pitch classes. What a classifier gets of them is what the Million Song Dataset's authors
take: the mean of the timbre, and its covariance (Bertin-Mahieux et al. 2011): 12 + 78 numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from reclass_plex.errors import FileError

COEFFICIENTS = 12
STATISTICS = COEFFICIENTS + COEFFICIENTS * (COEFFICIENTS + 1) // 2  # 90
_LARGEST_XML = 64 << 20  # bytes

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Segments:
    """The segments of a track, in time: `timbre` (n, 12) and `pitches` (n, 12), 0 to 1.

    `tempo` is in beats a minute, `loudness` in dB; NaN where the analysis does not say.
    """

    timbre: Floats
    pitches: Floats
    tempo: float
    loudness: float


def timbre_statistics(timbre: Floats) -> Floats:
    """Return mean and covariance (90,) of the timbre (n, 12); n may be 1, and must not be 0."""
    if timbre.ndim != 2 or timbre.shape[1] != COEFFICIENTS or not len(timbre):
        raise ValueError(f"timbre has the shape {timbre.shape}, not (n, {COEFFICIENTS})")
    covariance = np.atleast_2d(np.cov(timbre.astype(np.float64), rowvar=False, bias=True))
    upper = covariance[np.triu_indices(COEFFICIENTS)]
    return np.concatenate([timbre.mean(0, dtype=np.float64), upper]).astype(np.float32)


def read_hdf5(path: Path) -> Segments:
    """Read a song's file of the Million Song Dataset. Raises FileError."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            song = file["analysis/songs"][0]
            return _checked(
                path,
                file["analysis/segments_timbre"][:],
                file["analysis/segments_pitches"][:],
                float(song["tempo"]),
                float(song["loudness"]),
            )
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise FileError(path, f"is no song of the Million Song Dataset: {error}") from error


def read_xml(path: Path) -> Segments:
    """Read an analysis of MagnaTagATune. Raises FileError."""
    try:
        if path.stat().st_size > _LARGEST_XML:
            raise FileError(path, "is too large for an analysis")
        text = path.read_bytes()
        if b"<!ENTITY" in text:  # a few bytes of them can swell to gigabytes
            raise FileError(path, "is no analysis of the Echo Nest: it defines entities")
        root = ElementTree.fromstring(text)  # noqa: S314 - without entities nothing can swell
        track = root if root.tag == "track" else root.find(".//track")
        segments = list(root.iter("segment"))
        timbre = [_numbers(segment.find("timbre")) for segment in segments]
        pitches = [_numbers(segment.find("pitches")) for segment in segments]
        attributes = {} if track is None else track.attrib
        tempo, loudness = (float(attributes.get(key, "nan")) for key in ("tempo", "loudness"))
        return _checked(path, np.array(timbre), np.array(pitches), tempo, loudness)
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror}") from error
    except (ElementTree.ParseError, ValueError) as error:
        raise FileError(path, f"is no analysis of the Echo Nest: {error}") from error


def _numbers(element: ElementTree.Element | None) -> list[float]:
    """Return what the children of an element hold, whatever they are called."""
    return [] if element is None else [float(child.text or "nan") for child in element]


def _checked(
    path: Path,
    timbre: npt.NDArray[np.float64],
    pitches: npt.NDArray[np.float64],
    tempo: float,
    loudness: float,
) -> Segments:
    if not len(timbre):
        raise FileError(path, "has no segments: the track could not be analysed")
    for values, what in ((timbre, "timbre"), (pitches, "pitches")):
        if values.shape != (len(timbre), COEFFICIENTS) or not np.isfinite(values).all():
            raise FileError(path, f"has not {COEFFICIENTS} finite numbers of {what} a segment")
    return Segments(timbre.astype(np.float32), pitches.astype(np.float32), tempo, loudness)
