"""Tiny datasets in exactly the layouts in which the real ones are published.

Sound is real and synthesized here. The layouts: FMA's tracks.csv has two header rows and a third
line, features.csv three; MagnaTagATune's tables are tab separated and quoted, its audio is one zip
cut in three; tagtraum's labels are tab separated below comments; the Million Song Dataset is HDF5.
"""

from __future__ import annotations

import csv
import functools
import gzip
import hashlib
import io
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
from audio_files import make_audio

from reclass_plex.encoders.musicnn_tags import MTT_TAGS
from reclass_plex.features import COLUMNS
from reclass_plex.training.datasets.gtzan import GENRES
from reclass_plex.training.datasets.published import Component, Dataset, PublishedFile

FMA_TRACKS = (  # number, artist, split, subset, top genre
    (2, 1, "training", "small", "Hip-Hop"),
    (5, 1, "training", "medium", "Hip-Hop"),
    (10, 6, "validation", "small", "Pop"),
    (140, 54, "test", "small", "Folk"),
    (1039, 70, "training", "large", "Soul-RnB"),
    (1040, 70, "test", "large", ""),
)
MSD_SONGS = (  # track, artist
    ("TRAAAAK128F9318786", "ARJNIUY12298900C91"),
    ("TRAAAAW128F429D538", "ARD7TVE1187B99BFB1"),
    ("TRAAABD128F429CF47", "ARMJAGH1187FB546F3"),
)
MTT_CLIPS = (  # number, artist, path, tags
    (2, "American Bach Soloists", "f/american_bach_soloists-heart-01-30-59.mp3", ("violin",)),
    (6, "American Bach Soloists", "0/american_bach_soloists-other-01-0-29.mp3", ("choir", "slow")),
    (10, "Norine Braun", "c/norine_braun-now_and_zen-08-gently-117-146.mp3", ()),
)

Clip = tuple[int, str, str, tuple[str, ...]]


@functools.cache
def sound(format_name: str, seed: int = 0) -> bytes:
    """A second of music."""
    with tempfile.TemporaryDirectory() as folder:
        return make_audio(
            Path(folder), format_name, seconds=1.0, rate=22_050, channels=1, seed=seed
        ).read_bytes()


def zipped(files: Mapping[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return made.getvalue()


def tarred(files: Mapping[str, bytes]) -> bytes:
    made = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=made, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return made.getvalue()


def _csv(rows: Sequence[Sequence[object]], **options: object) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n", **options).writerows(rows)  # type: ignore[arg-type]
    return text.getvalue().encode()


def fma_metadata(tracks: Sequence[tuple[int, int, str, str, str]] = FMA_TRACKS) -> bytes:
    """tracks.csv and features.csv, with a biography that is too long for Python's csv module."""
    columns = (
        ("album", "id"), ("artist", "bio"), ("artist", "id"), ("artist", "name"), ("set", "split"),
        ("set", "subset"), ("track", "genre_top"), ("track", "genres"), ("track", "title"),
    )  # fmt: skip
    rows: list[list[object]] = [
        ["", *(group for group, _ in columns)],
        ["", *(name for _, name in columns)],
        ["track_id", *("" for _ in columns)],
    ]
    for track, artist, split, subset, genre in tracks:
        biography = 'Said "hello",\nand ' + "played " * 30_000 if track == 5 else ""
        rows.append(
            [track, 1, biography, artist, f"Artist {artist}", split, subset, genre, "[21]", "Title"]
        )
    files = {
        "fma_metadata/README.txt": b"metadata",
        "fma_metadata/tracks.csv": _csv(rows),
        "fma_metadata/features.csv": _csv(_feature_rows(tracks)),
    }
    return zipped(files)


def _feature_rows(tracks: Sequence[tuple[int, int, str, str, str]]) -> list[list[object]]:
    rows: list[list[object]] = [
        [name, *(column[place] for column in COLUMNS)]
        for place, name in enumerate(("feature", "statistics", "number"))
    ]
    rows.append(["track_id", *("" for _ in COLUMNS)])
    for track, *_ in tracks:
        values = fma_features(track)
        empty = track == 140  # some rows of the real table are
        rows.append([track, *("" if empty else repr(float(value)) for value in values)])
    return rows


def fma_features(track: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """What the published table says of a track."""
    return np.random.default_rng(track).normal(size=len(COLUMNS)).astype(np.float32).astype(float)


def fma_small(tracks: Sequence[tuple[int, int, str, str, str]] = FMA_TRACKS) -> bytes:
    """Its clips; one of them is missing."""
    clips = {
        f"fma_small/{track:06d}"[:13] + f"/{track:06d}.mp3": sound("mp3", track)
        for track, _, _, subset, _ in tracks
        if subset == "small" and track != 140
    }
    return zipped({"fma_small/README.txt": b"clips", "fma_small/checksums": b""} | clips)


def gtzan() -> bytes:
    """Two excerpts a genre, of which one is left out of the published split in three genres."""
    return tarred(
        {
            f"genres/{genre}/{genre}.{number:05d}.wav": sound("wav", number)
            for genre in GENRES
            for number in (0, 42)
        }
    )


def tagtraum(genres: Sequence[str], songs: Sequence[tuple[str, str]] = MSD_SONGS) -> bytes:
    lines = ["# Genre annotations", "# tab separated"]
    lines += ["\t".join((song, genre)) for (song, _), genre in zip(songs, genres, strict=True)]
    lines[-1] += "\tFolk"  # what a minority says
    return "\n".join(lines).encode() + b"\n"


def msd_file(songs: Sequence[tuple[str, str]], seed: int = 0) -> bytes:
    """A song's file, or with several songs the summary, which has no segments."""
    metadata = np.array(
        [(artist, b"Name", b"Title") for _, artist in songs],
        [("artist_id", "S32"), ("artist_name", "S1024"), ("title", "S1024")],
    )
    analysis = np.array(
        [(track, 120.5, -8.25) for track, _ in songs],
        [("track_id", "S32"), ("tempo", "f8"), ("loudness", "f8")],
    )
    made = io.BytesIO()
    with h5py.File(made, "w") as file:
        file.create_dataset("metadata/songs", data=metadata)
        file.create_dataset("analysis/songs", data=analysis)
        if len(songs) == 1:
            generator = np.random.default_rng(seed)
            file.create_dataset("analysis/segments_timbre", data=generator.normal(size=(30, 12)))
            file.create_dataset("analysis/segments_pitches", data=generator.random(size=(30, 12)))
    return made.getvalue()


def msd_subset(songs: Sequence[tuple[str, str]] = MSD_SONGS[:2]) -> bytes:
    """Only the first two songs are in it, if no others are named."""
    return tarred(
        {
            f"MillionSongSubset/{track[2]}/{track[3]}/{track[4]}/{track}.h5": msd_file(
                [(track, artist)], seed
            )
            for seed, (track, artist) in enumerate(songs)
        }
    )


def mtt_annotations(clips: Sequence[Clip] = MTT_CLIPS) -> bytes:
    tags = sorted({*MTT_TAGS, "singer", "duet"})
    rows: list[Sequence[object]] = [("clip_id", *tags, "mp3_path")]
    for clip, _, path, own in clips:
        rows.append((clip, *(int(tag in own) for tag in tags), path))
    return _csv(rows, delimiter="\t", quoting=csv.QUOTE_ALL)


def mtt_info(clips: Sequence[Clip] = MTT_CLIPS) -> bytes:
    columns = (
        "clip_id", "track_number", "title", "artist", "album", "url", "segmentStart", "segmentEnd",
        "original_url", "mp3_path",
    )  # fmt: skip
    rows: list[Sequence[object]] = [columns]
    rows += [(c, 1, 'A "T"', artist, "B", "u", 0, 29, "o", p) for c, artist, p, _ in clips]
    return _csv(rows, delimiter="\t", quoting=csv.QUOTE_ALL)


def mtt_audio(clips: Sequence[Clip] = MTT_CLIPS) -> list[bytes]:
    """A zip, cut in three; one clip is empty, as in the real one."""
    whole = zipped(
        {path: b"" if "norine" in path else sound("mp3", clip) for clip, _, path, _ in clips}
    )
    third = len(whole) // 3
    return [whole[:third], whole[third : 2 * third], whole[2 * third :]]


def echonest_xml(seed: int = 0) -> bytes:
    generator = np.random.default_rng(seed)
    segments = []
    for start in range(20):
        pitches = "".join(f"<pitch>{v:.3f}</pitch>" for v in generator.random(12))
        timbre = "".join(f"<coeff>{v:.3f}</coeff>" for v in generator.normal(0, 40, 12))
        segments.append(
            f'<segment start="{start}" duration="1"><loudness><dB time="0">-60</dB></loudness>'
            f"<pitches>{pitches}</pitches><timbre>{timbre}</timbre></segment>"
        )
    return (
        '<?xml version="1.0" encoding="UTF-8"?><analysis><track duration="29" tempo="98.5"'
        f' loudness="-20.1"><segments>{"".join(segments)}</segments></track></analysis>'
    ).encode()


def mtt_features(clips: Sequence[Clip] = MTT_CLIPS) -> bytes:
    return zipped({f"{path}.xml": echonest_xml(clip) for clip, _, path, _ in clips})


@functools.cache
def everything() -> Mapping[str, bytes]:
    """What is published, by file name."""
    return {f"mp3.zip.00{number}": part for number, part in enumerate(mtt_audio(), 1)} | {
        "fma_metadata.zip": fma_metadata(),
        "fma_small.zip": fma_small(),
        "annotations_final.csv": mtt_annotations(),
        "clip_info_final.csv": mtt_info(),
        "mp3_echonest_xml.zip": mtt_features(),
        "msd_tagtraum_cd1.cls.zip": zipped(
            {"msd_tagtraum_cd1.cls": tagtraum(["Pop_Rock", "Rap", "Vocal"])}
        ),
        "msd_summary_file.h5": msd_file(MSD_SONGS),
        "millionsongsubset.tar.gz": msd_subset(),
        "genres.tar.gz": gtzan(),
    }


def tiny(dataset: Dataset, contents: Mapping[str, bytes], base: str) -> Dataset:
    """The dataset with these contents of its files: addresses at `base`, sizes and digests theirs.

    Where nothing is published of a file, nothing is here.
    """

    def own(file: PublishedFile) -> PublishedFile:
        content = contents[file.name]
        algorithm = (file.digest or "").partition(":")[0]
        return PublishedFile(
            file.name,
            None if file.url is None else f"{base}/{file.name}",
            len(content),
            None if file.size is None else len(content),
            f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}" if algorithm else None,
        )

    def small(component: Component) -> Component:
        return replace(component, files=tuple(map(own, component.files)), unpacked=1_000_000)

    return replace(dataset, components=tuple(map(small, dataset.components)))
