"""Datasets read: labels, splits, artists, features; what is wrong with them is named."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import dataset_archives as made
import mutagen
import numpy as np
import pytest
from plex_server import Library, PlexStandIn
from typer.testing import CliRunner, Result

from reclass_plex import cli_dataset
from reclass_plex.errors import ConfigError, FileError
from reclass_plex.features import COLUMN_NAMES, COLUMNS
from reclass_plex.genres import DEFAULT, GTZAN
from reclass_plex.plex import EditRecord, Plex
from reclass_plex.records import GenreScore, Verdict
from reclass_plex.store import Store
from reclass_plex.sync.ledger import Ledger, NewEdit
from reclass_plex.tables import tracks
from reclass_plex.training.datasets import echonest, installed, library
from reclass_plex.training.datasets.catalogue import find_dataset
from reclass_plex.training.datasets.collection import (
    Collection,
    DatasetError,
    Recording,
    Split,
    has_audio,
    our_name,
)
from reclass_plex.training.datasets.confident import estimate_wrong, find_suspicious
from reclass_plex.training.datasets.fma import read_features, read_fma
from reclass_plex.training.datasets.gtzan import GENRES, published_split, read_clips, read_gtzan
from reclass_plex.training.datasets.library import LabelledTrack, read_library
from reclass_plex.training.datasets.magnatagatune import analysis_path, read_magnatagatune
from reclass_plex.training.datasets.msd import read_msd, song_path
from reclass_plex.training.datasets.own_files import artist_of, read_folders, read_listed
from reclass_plex.training.datasets.published_table import read_published_table
from reclass_plex.training.datasets.reading import Reading, features_folder, read_dataset
from reclass_plex.training.datasets.summary import describe, find_leaks, summarise, warn

MODELS = "0123456789abcdef"  # a fingerprint


def unzip(content: bytes, folder: Path) -> Path:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(folder)
    return folder


def untar(content: bytes, folder: Path) -> Path:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def labels_of(collection: Collection) -> dict[str, tuple[str, ...]]:
    return {one.key: one.labels for one in collection.recordings}


# The shape


def test_a_collection_must_be_consistent() -> None:
    one = Recording("a", None, ("Rock",))
    with pytest.raises(ValueError, match="the same key"):
        Collection("c", ("Rock",), (one, one), "mine")
    with pytest.raises(ValueError, match=r"a has unknown labels \['Rock'\]"):
        Collection("c", ("Pop",), (one,), "mine")
    with pytest.raises(ValueError, match="a has not exactly one label"):
        Collection("c", ("Rock",), (Recording("a", None, ()),), "mine")
    assert Collection("c", ("Rock",), (Recording("a", None, ()),), "mine", multi_label=True)
    assert [our_name(name) for name in ("hiphop", "rnb", "techno")] == [
        "Hip-Hop",
        "Soul/R&B",
        "techno",
    ]


def test_recordings_without_audio_are_counted_and_can_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "whole").write_bytes(b"x")
    (tmp_path / "empty").touch()
    recordings = tuple(
        Recording(name, tmp_path / name, ("Rock",)) for name in ("whole", "empty", "missing")
    )
    collection = Collection("c", ("Rock",), (*recordings, Recording("t", None, ("Rock",))), "mine")
    summary = summarise(collection)
    assert summary.missing == ("empty", "missing")
    assert summary.without_audio == 1
    assert list(warn(summary)) == ["2 audio files are missing or empty: empty, missing"]


def test_leaks_are_found() -> None:
    def one(key: str, group: str | None, split: Split | None) -> Recording:
        return Recording(key, None, ("Rock",), group, split)

    recordings = (
        one("1", "a", "train"),
        one("2", "a", "test"),
        one("3", "a", "test"),
        one("4", "b", "train"),
        one("5", "b", "train"),
        one("6", None, "train"),
        one("7", None, "test"),
        one("8", "c", None),
        one("9", "c", "valid"),
    )
    collection = Collection("c", ("Rock",), recordings, "mine", groups_are_artists=True)
    (leak,) = find_leaks(collection)
    assert (leak.sides, leak.groups, leak.recordings) == (("train", "test"), 1, 2)
    assert leak.examples == ("a",)
    summary = summarise(collection)
    assert "leak: 1 groups of train are also in test, with 2 recordings" in next(warn(summary))
    assert "3 artists; of 2 recordings none is known" in list(describe(summary, "mine"))
    assert summary.counts == {"Rock": {"train": 4, "test": 3, "none": 1, "valid": 1}}
    assert summary.largest_group == ("a", 3)


# GTZAN


def test_gtzans_published_split_is_whole() -> None:
    splits = published_split()
    sides = [list(splits.values()).count(side) for side in ("train", "valid", "test")]
    assert sides == [443, 197, 290]
    assert splits["blues.00012"] == "test"
    # What Sturm lists as unusable is in none of them.
    assert not {"reggae.00086", "pop.00037"} & splits.keys()


def test_gtzan_is_read_wherever_its_genres_are(tmp_path: Path) -> None:
    folder = untar(made.gtzan(), tmp_path)
    collection = read_gtzan(folder)
    assert len(collection.recordings) == 930
    assert collection.labels == GTZAN.genres
    assert collection.remarks == ("70 excerpts that repeat others or are distorted are left out.",)
    there = [one for one in collection.recordings if has_audio(one)]
    assert len(there) == 20 - sum(f"{genre}.00042" not in published_split() for genre in GENRES)
    assert labels_of(collection)["hiphop.00000"] == ("Hip-Hop",)
    assert not collection.groups_are_artists
    assert find_leaks(collection) != ()  # blocks of ten are a guess; artists are not
    whole = read_gtzan(folder / "genres", faults=True)
    assert len(whole.recordings) == 1000
    assert whole.recordings[0].path == folder / "genres" / "blues" / "blues.00000.wav"
    (folder / "genres" / "blues" / "blues.00000.au").touch()
    with pytest.raises(FileError, match=r"there is also blues\.00000\.au; keep one"):
        read_gtzan(folder)
    with pytest.raises(FileError, match="is not GTZAN: it has no folder blues"):
        read_gtzan(tmp_path / "genres" / "blues")


def test_gtzans_artists_come_from_sturms_index(tmp_path: Path) -> None:
    folder = untar(made.gtzan(), tmp_path)
    index = tmp_path / "index.txt"
    index.write_text(
        "## an index\n\nblues.00000.wav ::: John Lee  Hooker ::: One Bourbon\n"
        "classical.00061.wav ::: ::: \nclassical.00062.wav ::: :::\n"
    )
    collection = read_gtzan(folder, index=index)
    groups = {one.key: one.group for one in collection.recordings}
    assert groups["blues.00000"] == "john lee hooker"
    assert groups["classical.00061"] == "classical/6"
    assert not collection.groups_are_artists, "the artist of one track alone is known"
    lines = (f"{key}.wav ::: Artist of {key} ::: Title\n" for key in published_split())
    index.write_text("".join(lines))
    assert read_gtzan(folder, index=index).groups_are_artists
    index.write_text("something else\n")
    with pytest.raises(FileError, match=r"is not Sturm's index\.txt"):
        read_gtzan(folder, index=index)
    with pytest.raises(FileError, match="cannot be read: No such file"):
        read_gtzan(folder, index=tmp_path / "nothing")


def test_a_part_of_gtzan_is_read_as_its_clips_are(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(
        "file,genre,gtzan_id,split\na.flac,blues,3,train\nb.flac,hiphop,14,valid\n"
    )
    collection, clips = read_gtzan(tmp_path), read_clips(tmp_path)
    assert [one.path for one in collection.recordings] == list(clips.path)
    assert [one.group for one in collection.recordings] == ["blues/0", "hiphop/1"]
    assert [one.split for one in collection.recordings] == ["train", "valid"]
    (tmp_path / "labels.csv").write_text("file,genre\na.flac,blues\n")
    with pytest.raises(FileError, match="is not a list of GTZAN's clips: KeyError"):
        read_gtzan(tmp_path)


# FMA


def test_fmas_subsets_hold_one_another(tmp_path: Path) -> None:
    metadata = unzip(made.fma_metadata(), tmp_path) / "fma_metadata"
    unzip(made.fma_small(), tmp_path)
    small = read_fma(metadata, "small", tmp_path / "fma_small")
    assert labels_of(small) == {"2": ("Hip-Hop",), "10": ("Pop",), "140": ("Folk",)}
    assert small.labels == ("Folk", "Hip-Hop", "Pop")  # in the published order
    assert summarise(small).missing == ("140",)
    assert small.recordings[0].path == tmp_path / "fma_small" / "000" / "000002.mp3"
    assert [one.split for one in small.recordings] == ["train", "valid", "test"]
    assert small.groups_are_artists
    assert len(read_fma(metadata, "medium").recordings) == 4
    large = read_fma(metadata, "large")
    assert labels_of(large)["1039"] == ("Soul/R&B",)
    assert large.remarks == ("1 tracks without a top genre are left out.",)
    assert large.recordings[-1].path is None
    assert labels_of(read_fma(metadata, "full")) == labels_of(large)


def test_fmas_features_are_those_of_whole_tracks_with_todays_rmse(tmp_path: Path) -> None:
    path = unzip(made.fma_metadata(), tmp_path) / "fma_metadata" / "features.csv"
    table = read_features(path)
    assert table.names == COLUMN_NAMES
    assert table.keys == ("2", "5", "10", "1039", "1040")  # 140 has no values
    expected = made.fma_features(5)
    scaled = [c[0] == "rmse" and c[1] not in ("kurtosis", "skew") for c in COLUMNS]
    assert sum(scaled) == 5
    expected[scaled] /= 2048 / np.sqrt(2 * 1025)
    np.testing.assert_allclose(table.rows[1], expected, rtol=1e-6)
    assert read_features(path, {"10", "7"}).keys == ("10",)
    lines = path.read_text().split("\n")
    path.write_text("\n".join(lines[:3] + lines[4:]))  # as other copies are, without "track_id,,"
    assert read_features(path).keys == table.keys


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("features.csv", "statistics", "means", "no three header rows"),
        ("features.csv", "chroma_cens", "melody", "has a column 'melody_kurtosis_01'"),
        ("features.csv", "\n5,", "\n5,1,", "line 6: has 519 values, not 518"),
        ("features.csv", "\n5,", "\n5,x", "line 6: could not convert"),
        ("tracks.csv", "genre_top", "genre", "it has no track.genre_top"),
        ("tracks.csv", "training", "rehearsal", "line 4: is not as published: 'rehearsal'"),
        ("tracks.csv", "Hip-Hop", "Noodling", "line 4: 'Noodling' is none of FMA's 16"),
    ],
)
def test_what_is_wrong_with_fmas_tables_is_named(
    tmp_path: Path, file: str, old: str, new: str, says: str
) -> None:
    metadata = unzip(made.fma_metadata(), tmp_path) / "fma_metadata"
    text = (metadata / file).read_text()
    (metadata / file).write_text(text.replace(old, new))
    with pytest.raises(FileError, match=f"{file}: .*{says}"):
        read_features(metadata / file) if file == "features.csv" else read_fma(metadata, "small")


def test_no_table_is_told_apart_from_a_wrong_one(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot be read: No such file"):
        read_fma(tmp_path, "small")
    (tmp_path / "tracks.csv").touch()
    with pytest.raises(FileError, match="it has no two header rows"):
        read_fma(tmp_path, "small")
    (tmp_path / "tracks.csv").write_bytes(b"\xff\xfe\n")
    with pytest.raises(FileError, match="is damaged"):
        read_fma(tmp_path, "small")


# The Million Song Dataset


def test_msd_has_tagtraums_labels_and_its_own_artists(tmp_path: Path) -> None:
    labels = tmp_path / "msd_tagtraum_cd1.cls"
    labels.write_bytes(made.tagtraum(["Pop_Rock", "Rap", "Vocal"]))
    summary = tmp_path / "msd_summary_file.h5"
    summary.write_bytes(made.msd_file(made.MSD_SONGS))
    collection = read_msd(labels, summary, "msd-cd1")
    assert list(labels_of(collection).values()) == [("Pop/Rock",), ("Hip-Hop",), ("Vocal",)]
    assert [one.group for one in collection.recordings] == [artist for _, artist in made.MSD_SONGS]
    assert collection.groups_are_artists
    assert collection.recordings[0].path is None
    without = read_msd(labels)
    assert not without.groups_are_artists
    assert without.remarks == ("The artists of 3 songs are not known.",)


def test_msds_files_give_artists_and_features(tmp_path: Path) -> None:
    labels = tmp_path / "labels.cls"
    labels.write_bytes(made.tagtraum(["Rock", "World", "Metal"]))
    folder = untar(made.msd_subset(), tmp_path) / "MillionSongSubset"
    collection = read_msd(labels, folder)
    assert list(labels_of(collection).values()) == [("Rock",), ("International",)]  # two are there
    track = collection.recordings[0].key
    segments = echonest.read_hdf5(song_path(folder, track))
    assert segments.timbre.shape == segments.pitches.shape == (30, 12)
    assert (segments.tempo, segments.loudness) == (120.5, -8.25)
    statistics = echonest.timbre_statistics(segments.timbre)
    assert statistics.shape == (echonest.STATISTICS,) == (90,)
    np.testing.assert_allclose(statistics[:12], segments.timbre.mean(0), rtol=1e-5)
    np.testing.assert_allclose(statistics[12], segments.timbre[:, 0].var(), rtol=1e-5)
    assert np.isfinite(echonest.timbre_statistics(segments.timbre[:1])).all()
    with pytest.raises(ValueError, match=r"not \(n, 12\)"):
        echonest.timbre_statistics(segments.timbre[:0])


def test_what_is_wrong_with_msds_files_is_named(tmp_path: Path) -> None:
    labels = tmp_path / "labels.cls"
    labels.write_text("# comment\nTRAAAAK128F9318786\tNoodling\n")
    with pytest.raises(FileError, match=r"line 2: .*Noodling.* is no track and its genre"):
        read_msd(labels)
    labels.write_bytes(made.tagtraum(["Rock", "World", "Metal"]))
    bad = tmp_path / "TRX.h5"
    bad.write_bytes(b"no HDF5")
    for read in (echonest.read_hdf5, lambda path: read_msd(labels, path)):
        with pytest.raises(FileError, match=r"TRX\.h5: is no (song|file) of the Million Song"):
            read(bad)
    with pytest.raises(FileError, match="has no files of the Million Song Dataset"):
        read_msd(labels, tmp_path)
    bad.write_bytes(made.msd_file(made.MSD_SONGS))  # the summary has no segments
    with pytest.raises(FileError, match="is no song"):
        echonest.read_hdf5(bad)


# MagnaTagATune


@pytest.fixture
def magnatagatune(tmp_path: Path) -> Path:
    (tmp_path / "annotations_final.csv").write_bytes(made.mtt_annotations())
    (tmp_path / "clip_info_final.csv").write_bytes(made.mtt_info())
    return tmp_path


def test_magnatagatune_has_many_labels_and_warns_of_its_split(magnatagatune: Path) -> None:
    audio = unzip(b"".join(made.mtt_audio()), magnatagatune / "audio")
    collection = read_magnatagatune(magnatagatune, audio)
    assert collection.multi_label
    assert len(collection.labels) == 50
    assert [one.labels for one in collection.recordings] == [("violin",), ("slow", "choir"), ()]
    assert [one.split for one in collection.recordings] == ["test", "train", "valid"]
    assert collection.remarks == ("1 clips have none of the 50 tags.",)
    summary = summarise(collection)
    assert summary.missing == ("c/norine_braun-now_and_zen-08-gently-117-146",)  # empty
    assert [leak.sides for leak in summary.leaks] == [("train", "test")]
    assert summary.groups_are_artists
    assert len(read_magnatagatune(magnatagatune, tags="all").labels) == 52


def test_magnatagatunes_analyses_are_read(tmp_path: Path) -> None:
    folder = unzip(made.mtt_features(), tmp_path)
    segments = echonest.read_xml(analysis_path(folder, made.MTT_CLIPS[0][2][:-4]))
    assert segments.timbre.shape == segments.pitches.shape == (20, 12)
    assert (segments.tempo, segments.loudness) == (98.5, -20.1)
    assert ((segments.pitches >= 0) & (segments.pitches <= 1)).all()
    path = tmp_path / "x.xml"
    entities = b'<!DOCTYPE a [<!ENTITY b "c">]><analysis>&b;</analysis>'
    for content, says in (
        (entities, "defines entities"),
        (b"<analysis><track/></analysis>", "has no segments"),
        (b"<analysis>", "is no analysis of the Echo Nest"),
        (made.echonest_xml().replace(b"</coeff>", b"</coeff><coeff>1</coeff>", 1), "is no"),
        (made.echonest_xml().replace(b"<coeff>", b"<coeff>nan", 1), "is no analysis"),
    ):
        path.write_bytes(content)
        with pytest.raises(FileError, match=says):
            echonest.read_xml(path)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (b'"f/american', b'"../american', r"line 2: .* is no clip in a folder 0 to f"),
        (b'"guitar"', b'"guitarre"', "has no column guitar"),
        (b'"2"\t', b'"2"\t"1"\t', "line 2: has not as many fields as due"),
    ],
)
def test_what_is_wrong_with_magnatagatune_is_named(
    magnatagatune: Path, old: bytes, new: bytes, says: str
) -> None:
    path = magnatagatune / "annotations_final.csv"
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(FileError, match=says):
        read_magnatagatune(magnatagatune)


# One's own files


def tagged(path: Path, **tags: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(made.sound("flac"))
    audio = mutagen.File(path)
    audio.update({name: [value] for name, value in tags.items()})
    audio.save()
    return path


def test_a_folder_a_genre(tmp_path: Path) -> None:
    root = tmp_path / "my music"
    tagged(root / "hiphop" / "a.flac", artist="Someone")
    tagged(root / "hiphop" / "Various" / "b.flac", albumartist="Various Artists", artist="Other")
    (root / "techno" / "Unknown").mkdir(parents=True)
    (root / "techno" / "Unknown" / "c.mp3").write_bytes(made.sound("mp3"))
    (root / "techno" / "d.wav").write_bytes(made.sound("wav"))
    (root / "techno" / "cover.jpg").touch()
    (root / "techno" / "gone.mp3").symlink_to("nowhere")
    (root / ".hidden").mkdir()
    collection = read_folders(root)
    assert collection.labels == ("Hip-Hop", "techno")
    groups = {one.key: one.group for one in collection.recordings}
    assert groups == {
        "hiphop/a.flac": "someone",
        "hiphop/Various/b.flac": "other",
        "techno/Unknown/c.mp3": "techno/Unknown",
        "techno/d.wav": None,
    }
    assert not collection.groups_are_artists
    assert collection.remarks == ("1 files cannot be read.",)
    assert artist_of(tmp_path / "nothing.mp3") is None
    # Names that are no UTF-8: a manifest could not be written of them, after hours of extraction.
    latin = os.fsencode(root) + b"/Caf\xe9/\xc9t\xe9"
    os.makedirs(latin)
    shutil.copy(os.fsencode(root / "techno" / "d.wav"), latin + b"/\xe9.wav")
    (odd,) = [one for one in read_folders(root).recordings if one.labels == (r"Caf\xe9",)]
    assert (odd.key, odd.group) == (r"Caf\xe9/\xc9t\xe9/\xe9.wav", r"Caf\xe9/\xc9t\xe9")
    assert odd.path is not None and odd.path.exists()
    with pytest.raises(FileError, match="has no folders with audio files"):
        read_folders(root / ".hidden")
    with pytest.raises(FileError, match="is not a folder"):
        read_folders(root / "nothing")


def test_a_table_of_paths_and_labels(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(
        "\ufeffPath,Label,Artist,Split\nx/a.mp3,hiphop,Someone,training\n"
        "/abs/b.mp3, techno ,Other,val\n",
        encoding="utf-8",
    )
    collection = read_listed(path)
    assert collection.labels == ("Hip-Hop", "techno")
    assert [one.path for one in collection.recordings] == [
        tmp_path / "x/a.mp3",
        Path("/abs/b.mp3"),
    ]
    assert [one.split for one in collection.recordings] == ["train", "valid"]
    assert collection.groups_are_artists
    assert not collection.multi_label
    table = tmp_path / "many.tsv"
    table.write_text("path\tlabel\tgroup\na.mp3\tRock; Pop\t1\nb.mp3\t\t\n")
    many = read_listed(table)
    assert many.multi_label
    assert [one.labels for one in many.recordings] == [("Rock", "Pop"), ()]
    assert [one.group for one in many.recordings] == ["1", None]
    assert not many.groups_are_artists


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "needs the columns path and label"),
        ("file,genre\na,b\n", "needs the columns path and label; it has"),
        ("path,label\n", "it has no rows"),
        ("path,label\na,Rock\na,Pop\n", "line 3: a stands there twice"),
        ("path,label\na,Rock,x\n,Pop\n", "line 2: has not as many fields.*; line 3: has no path"),
        ("path,label,split\na,Rock,exam\n", "line 2: split 'exam' is none of train, valid, test"),
        ("path,label\n" + "a\n" * 7, "line 6: .*; and 2 more"),
        ("path,label\na\0,b\n", "has no path|NUL"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises(FileError, match=says):
        read_listed(path)


# The own library


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store.sqlite") as opened:
        yield opened


def save(store: Store, path: Path, *genres: str, album: str | None = None) -> None:
    store.save_track(path, 1, 1, digest=f"digest of {path}", genres=genres, album=album)


def test_only_what_others_wrote_is_a_label(store: Store, tmp_path: Path) -> None:
    path = tagged(tmp_path / "a.flac", albumartist="Someone")
    save(store, path, "Heavy Metal")
    save(store, Path("/m/b.mp3"), "Rock", album="/m\nAlbum")
    save(store, Path("/m/none.mp3"))
    save(store, Path("/m/ours.mp3"), "Jazz")
    save(store, Path("/m/undone.mp3"), "Jazz")
    with store.transaction() as connection:
        ours = tracks.update().where(
            tracks.c.path.in_([Path("/m/ours.mp3"), Path("/m/undone.mp3")])
        )
        connection.execute(ours.values(written=("Jazz",), added=("Jazz",)))
        undone = tracks.update().where(tracks.c.path == Path("/m/undone.mp3"))
        connection.execute(undone.values(undone=True))
    collection = read_library(library.tracks_of_store(store), DEFAULT, minimum=1)
    assert labels_of(collection) == {
        str(path): ("Metal",),
        "/m/b.mp3": ("Rock",),
        "/m/undone.mp3": ("Jazz",),
    }
    groups = {one.key: one.group for one in collection.recordings}
    assert groups[str(path)] == "someone"
    assert groups["/m/b.mp3"] == "/m\nAlbum"
    assert collection.remarks == ("1 tracks are left out: we wrote their genre.",)


def track(name: str, *genres: str) -> LabelledTrack:
    return LabelledTrack(Path(name), genres, "someone")


def test_genres_are_brought_into_the_taxonomy() -> None:
    tracks_there = [
        track("1", "Melodic Death Metal"),
        track("2", "Rock; Metal"),  # the narrower
        track("3", "Rock", "Jazz"),
        track("4", "Other"),
        track("5", "Zouk"),
        track("6", "Other", "rap"),
        track("7", "Zouk", "Pop"),
    ]
    collection = read_library(tracks_there, DEFAULT, minimum=1)
    assert labels_of(collection) == {
        "1": ("Metal",),
        "2": ("Metal",),
        "6": ("Hip-Hop",),
        "7": ("Pop",),
    }
    remarks = " ".join(collection.remarks)
    assert "1 tracks are left out: they have several genres." in remarks
    assert "1 tracks are left out: their genre says nothing." in remarks
    assert "does not know: Zouk (2)" in remarks
    rare = read_library(tracks_there, DEFAULT, minimum=2)
    assert rare.labels == ("Metal",)
    assert "Genres of fewer than 2 tracks are left out: Hip-Hop (1), Pop (1)." in rare.remarks
    nothing = read_library([], DEFAULT)
    assert (nothing.labels, nothing.recordings) == ((), ())


def test_plexs_genres_can_be_the_labels(
    plex: Plex, server: PlexStandIn, library: Library, store: Store
) -> None:
    own = server.add_track(library, "A", "First", "1", genres=["Blues"])
    by_album = server.add_track(library, "A", "First", "2")
    assert own.parent is not None
    own.parent.genres = ["Country"]
    ours = server.add_track(library, "B", "Second", "3", genres=["Jazz"])
    before = EditRecord(ours.key, "track", library.key, (), ("Jazz",), False, ())
    Ledger(store, plex.uuid).plan([NewEdit(before, None, None, None)], 1.0)
    from reclass_plex.training.datasets.library import tracks_of_plex

    found = list(tracks_of_plex(plex, store))
    collection = read_library(found, DEFAULT, minimum=1)
    assert labels_of(collection) == {own.files[0]: ("Blues",), by_album.files[0]: ("Country",)}
    assert len({one.group for one in collection.recordings}) == 1  # one artist
    assert collection.remarks == ("1 tracks are left out: we wrote their genre.",)


# Labels that are probably wrong


def test_confident_learning_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1])
    probabilities = np.array(
        [[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.45, 0.55], [0.7, 0.3]]
    )
    # thresholds: label 0: (0.9 + 0.8 + 0.1) / 3 = 0.6; label 1: (0.8 + 0.55 + 0.3) / 3 = 0.55
    found = find_suspicious(labels, probabilities)
    assert [(one.index, one.given, one.suggested) for one in found] == [(2, 0, 1), (5, 1, 0)]
    assert [one.margin for one in found] == pytest.approx([0.8, 0.4])


def test_confident_learning_knows_what_was_flipped() -> None:
    generator = np.random.default_rng(0)
    count, width = 4000, 4
    truth = generator.integers(width, size=count)
    probabilities = generator.dirichlet(np.ones(width), count) * 0.4
    probabilities[np.arange(count), truth] += 0.6
    labels = truth.copy()
    flipped = generator.choice(count, 200, replace=False)
    labels[flipped] = (labels[flipped] + 1 + generator.integers(3, size=200)) % width
    flipped = np.flatnonzero(labels != truth)
    found = {one.index for one in find_suspicious(labels, probabilities)}
    assert len(found & set(flipped)) >= 0.75 * len(
        flipped
    )  # its estimate of how many has noise, too
    assert len(found - set(flipped)) <= 10
    assert find_suspicious(truth, probabilities) == []
    wrong = estimate_wrong(labels, probabilities)
    assert (np.diag(wrong) == 0).all()
    assert abs(int(wrong.sum()) - len(flipped)) <= 40


def test_confident_learning_refuses_what_does_not_fit() -> None:
    one = np.array([[0.5, 0.5]])
    assert find_suspicious(np.array([], np.int64), np.empty((0, 3))) == []
    for labels, probabilities, says in (
        (np.array([0, 1]), one, "do not fit"),
        (np.array([2]), one, "columns of the probabilities, 0 to 1"),
        (np.array([0]), one * np.nan, "finite"),
        (np.array([0]), -one, "not negative"),
    ):
        with pytest.raises(ValueError, match=says):
            find_suspicious(labels, probabilities)


def hear(store: Store, path: Path, **heard: float) -> None:
    genres = tuple(GenreScore(name, confidence) for name, confidence in heard.items())
    save_as = Verdict("default", genres, "stage", (), 0.1)
    store.save_verdict(f"digest of {path}", MODELS, save_as, now=1.0)


def test_doubtful_labels_of_the_library_are_listed(store: Store) -> None:
    for number in range(8):
        path = Path(f"/m/{number}.mp3")
        save(store, path, "Rock" if number % 2 else "Jazz")
        rock = 0.9 if number % 2 else 0.1
        if number == 4:
            rock = 0.95  # labelled Jazz
        if number != 7:
            hear(store, path, Rock=rock, Jazz=0.98 - rock, Blues=0.02)
    collection = read_library(library.tracks_of_store(store), DEFAULT, minimum=1)
    paths = [one.path for one in collection.recordings if one.path]
    heard = library.heard_genres(store, paths, MODELS)
    assert len(heard) == 7
    assert library.heard_genres(store, paths, "other models") == {}
    (found,) = library.find_doubtful(collection, heard)
    assert (found.path, found.label, found.suggested) == (Path("/m/4.mp3"), "Jazz", "Rock")
    assert found.margin == pytest.approx(0.92)
    assert library.find_doubtful(collection, {}) == []


# By name


def put(folder: Path, component: str, content: bytes, top: bool = True) -> None:
    """What fetching leaves."""
    place = unzip(content, folder / "unpacked" / component)
    inside = place / component if top else place
    inside.rename(folder / component)
    (folder / component / installed.SUMS).touch()


def test_datasets_are_read_by_name(tmp_path: Path, magnatagatune: Path) -> None:
    with pytest.raises(DatasetError, match=r"does not hold its labels.*dataset fetch fma-small"):
        read_dataset("fma-small", tmp_path)
    put(tmp_path, "fma_metadata", made.fma_metadata())
    assert read_dataset("fma-small", tmp_path).recordings[0].path is None
    put(tmp_path, "fma_small", made.fma_small())
    clip = read_dataset("fma-small", tmp_path).recordings[0]
    assert clip.path == tmp_path / "fma_small" / "000" / "000002.mp3"
    elsewhere = read_dataset("fma-small", tmp_path, Reading(path=Path("/music")))
    assert elsewhere.recordings[0].path == Path("/music/000/000002.mp3")
    features = features_folder(find_dataset("fma-small"), tmp_path)
    assert read_features(features / "features.csv", {"2"}).keys == ("2",)
    put(tmp_path, "msd_cd1", made.everything()["msd_tagtraum_cd1.cls.zip"], top=False)
    assert len(read_dataset("msd-cd1", tmp_path).recordings) == 3
    with pytest.raises(DatasetError, match="no longer published by its author"):
        read_dataset("gtzan", tmp_path)
    with pytest.raises(DatasetError, match="where is it\\? reclass-plex dataset info folders"):
        read_dataset("folders", tmp_path)
    with pytest.raises(DatasetError, match="is read with the store"):
        read_dataset("library", tmp_path, Reading(path=tmp_path))
    with pytest.raises(DatasetError, match="no features are published of it"):
        features_folder(find_dataset("gtzan"), tmp_path)


def test_published_features_are_tables_that_say_what_they_are(
    tmp_path: Path, magnatagatune: Path
) -> None:
    put(tmp_path, "fma_metadata", made.fma_metadata())
    table, remarks = read_published_table("fma-medium", tmp_path)
    assert table.keys == ("2", "5", "10")  # 140 has none
    assert (table.name, table.excerpt, table.rate) == ("fma518", "full", "native")
    assert [table.label_names[label] for label in table.labels] == ["Hip-Hop", "Hip-Hop", "Pop"]
    assert table.splits == ("train", "train", "valid")
    assert table.groups_are_artists
    assert remarks == ("There are no features of 1 of 4 recordings.",)
    put(tmp_path, "msd_cd1", made.everything()["msd_tagtraum_cd1.cls.zip"], top=False)
    with pytest.raises(DatasetError, match="does not hold its features"):
        read_published_table("msd-cd1", tmp_path)
    songs = untar(made.msd_subset(), tmp_path) / "MillionSongSubset"
    table, _ = read_published_table("msd-cd1", tmp_path, Reading(path=songs))
    assert table.rows.shape == (2, 90)
    assert (table.name, table.rate, table.label_names) == (
        "echonest90",
        22_050,
        ("Pop/Rock", "Hip-Hop"),
    )
    place = tmp_path / "magnatagatune_labels"
    place.mkdir()
    for file in ("annotations_final.csv", "clip_info_final.csv", installed.SUMS):
        (place / file).write_bytes((magnatagatune / file).read_bytes() if "csv" in file else b"")
    put(tmp_path, "magnatagatune_features", made.mtt_features(), top=False)
    (tmp_path / "magnatagatune_features" / f"{made.MTT_CLIPS[2][2]}.xml").write_bytes(b"damaged")
    table, remarks = read_published_table("magnatagatune", tmp_path)
    assert table.multi_label
    assert table.labels.tolist() == [[False, True, False], [True, False, True]]
    assert table.label_names == ("slow", "violin", "choir")
    assert "There are no features of 1 of 3 recordings." in remarks


def test_info_shows_counts_and_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", os.fspath(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", os.fspath(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", os.fspath(tmp_path))
    monkeypatch.delenv("RECLASS_PLEX_CONFIG", raising=False)

    def run(*arguments: object) -> Result:
        done = CliRunner().invoke(cli_dataset.app, ["info", *map(str, arguments)])
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    table = tmp_path / "t.csv"
    table.write_text("path,label,artist,split\na.mp3,Rock,A,train\nb.mp3,Rock,A,test\n")
    done = run("table", "--path", table)
    assert done.exit_code == 0
    assert "Rock" in done.output
    assert "1 artists" in done.output
    assert "2 audio files are missing or empty: a.mp3, b.mp3" in done.output
    assert "leak: 1 groups of train are also in test" in done.output
    data = json.loads(run("table", "--path", table, "--json").output)
    assert data["dataset"] == "table"
    assert data["counts"] == {"Rock": {"train": 1, "test": 1}}
    assert data["leaks"][0]["sides"] == ["train", "test"]
    with Store.open(tmp_path / "reclass-plex" / "store.sqlite") as store:
        save(store, Path("/m/a.mp3"), "Rock")
    data = json.loads(run("library", "--minimum", "1", "--json").output)
    assert data["counts"] == {"Rock": {"none": 1}}
    heard = run("library", "--minimum", "1", "--suspicious").output
    assert "0 of 0 labels are doubtful; 1 tracks were not heard yet" in heard
    with pytest.raises(ConfigError, match="is for the dataset library"):
        run("gtzan", "--suspicious")
