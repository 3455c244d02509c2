"""Each dataset, tiny and in its official layout: from fetching it to the report."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import dataset_archives as made
import pytest
from model_server import ModelServer
from typer.testing import CliRunner, Result

from reclass_plex import cli_dataset
from reclass_plex.cli import app
from reclass_plex.encoders.musicnn_tags import MTT_TAGS
from reclass_plex.genres import DEFAULT
from reclass_plex.records import Excerpt
from reclass_plex.store import Store
from reclass_plex.training.datasets import catalogue
from reclass_plex.training.datasets.catalogue import find_dataset
from reclass_plex.training.datasets.collection import Collection
from reclass_plex.training.datasets.gtzan import GENRES, published_split
from reclass_plex.training.datasets.installed import datasets_folder
from reclass_plex.training.datasets.library import read_library, tracks_of_store
from reclass_plex.training.datasets.own_files import read_folders, read_listed
from reclass_plex.training.datasets.reading import Reading, read_dataset
from reclass_plex.training.extraction_run import open_extraction
from reclass_plex.training.extraction_sets import choose_sets
from reclass_plex.training.extraction_workers import Workers

BASE = "data/sets/resolve/main"
OWN = ("Jazz", "Metal")
FMA = tuple(
    (number, 300 + number, split, "small", genre)
    for number, (genre, split) in enumerate(
        [
            (genre, split)
            for genre in ("Hip-Hop", "Pop", "Folk")
            for split in ("training", "training", "validation", "test")
        ],
        11,
    )
)
SONGS = tuple((f"TRAA{chr(65 + i)}AK128F9318786", f"ARTIST{i // 2:012d}") for i in range(12))
CLIPS = tuple(
    (i + 1, f"Artist {i}", f"{place}/artist-{i}-song-0-29.mp3", (("choir", "violin")[i % 2],))
    for i, place in enumerate("000000ccdddd")
)


@dataclass(frozen=True)
class Expected:
    """What comes of a dataset: recordings with features, those that are asked, by which split."""

    recordings: int
    asked: int
    protocol: str
    tags: bool = False


SPLIT, FOLDS = "published split: tuned on valid, asked about test", "2-fold cross-validation"
EXPECTED = {
    "gtzan": Expected(12, 3, SPLIT),
    "fma-small": Expected(12, 3, SPLIT),
    "msd-cd1": Expected(12, 12, FOLDS),
    "magnatagatune": Expected(12, 4, SPLIT, tags=True),
    "folders": Expected(12, 12, FOLDS),
    "table": Expected(12, 4, SPLIT),
    "library": Expected(12, 12, FOLDS),
}


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers(1) as running:
        yield running


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("DATA", "CONFIG", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", os.fspath(tmp_path / name.lower()))
    monkeypatch.delenv("RECLASS_PLEX_CONFIG", raising=False)
    return tmp_path


def run(*arguments: object) -> Result:
    done = CliRunner().invoke(app, [str(one) for one in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


def gtzan_numbers() -> list[tuple[str, int]]:
    """Of three genres two excerpts to train on, one to tune on, one to ask about."""
    chosen = []
    for genre in list(GENRES)[:3]:
        wanted = Counter(train=2, valid=1, test=1)
        for key, split in published_split().items():
            name, number = key.split(".")
            if name == genre and split is not None and wanted[split]:
                wanted[split] -= 1
                chosen.append((genre, int(number)))
    return chosen


def archives() -> dict[str, bytes]:
    labels = ["Pop_Rock", "Rap"] * 6
    return {f"mp3.zip.00{i}": part for i, part in enumerate(made.mtt_audio(CLIPS), 1)} | {
        "fma_metadata.zip": made.fma_metadata(FMA),
        "fma_small.zip": made.fma_small(FMA),
        "annotations_final.csv": made.mtt_annotations(CLIPS),
        "clip_info_final.csv": made.mtt_info(CLIPS),
        "mp3_echonest_xml.zip": made.mtt_features(CLIPS),
        "msd_tagtraum_cd1.cls.zip": made.zipped(
            {"msd_tagtraum_cd1.cls": made.tagtraum(labels, SONGS)}
        ),
        "msd_summary_file.h5": made.msd_file(SONGS),
        "millionsongsubset.tar.gz": made.msd_subset(SONGS),
        "genres.tar.gz": made.tarred(
            {f"genres/{g}/{g}.{n:05d}.wav": made.sound("wav", n) for g, n in gtzan_numbers()}
        ),
    }


def fetch(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetch a dataset from a real server; GTZAN, which nobody publishes, is imported."""
    contents = archives()
    with ModelServer("plain") as server:
        for file, content in contents.items():
            server.add("data/sets", "main", file, content)
        known = (made.tiny(find_dataset(name), contents, f"{server.url}/{BASE}"),)
        monkeypatch.setattr(catalogue, "CATALOGUE", known)
        monkeypatch.setattr(cli_dataset, "CATALOGUE", known)
        if name == "gtzan":
            (home / "genres.tar.gz").write_bytes(contents["genres.tar.gz"])
            run("dataset", "import", name, home / "genres.tar.gz", "--accept-licence")
        else:
            run("dataset", "fetch", name, "--accept-licence")
    assert "ok" in run("dataset", "verify", name).stdout


def own_music(home: Path) -> list[tuple[Path, str]]:
    found = []
    for number in range(12):
        genre = OWN[number % 2]
        path = home / "music" / genre / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made.sound("wav", number))
        found.append((path, genre))
    return found


def own_folders(home: Path) -> Collection:
    own_music(home)
    return read_folders(home / "music")


def own_table(home: Path) -> Collection:
    splits = ["train"] * 6 + ["valid"] * 2 + ["test"] * 4
    lines = ["path,label,artist,split"]
    for (path, genre), split in zip(own_music(home), splits, strict=True):
        lines.append(f"{path},{genre},artist {path.stem},{split}")
    (home / "mine.csv").write_text("\n".join(lines))
    return read_listed(home / "mine.csv")


def own_library(home: Path) -> Collection:
    with Store.open(home / "store.sqlite") as store:
        for path, genre in own_music(home):
            store.save_track(path, 1, 1, digest=f"digest of {path}", genres=(genre,))
        return read_library(tracks_of_store(store), DEFAULT, minimum=6)


OWN_DATA: dict[str, Callable[[Path], Collection]] = {
    "folders": own_folders, "table": own_table, "library": own_library,
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_a_dataset_goes_all_the_way(
    name: str, home: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = EXPECTED[name]
    if name in OWN_DATA:
        collection = OWN_DATA[name](home)
    else:
        fetch(name, home, monkeypatch)
        collection = read_dataset(name, datasets_folder(None), Reading())
    out = home / "features"
    if name == "msd-cd1":  # its audio is not published, its features are
        for _ in range(2):  # the second time all is there
            told = run("extract", name, "--features", "published", "--out", out).stdout
            assert f"published: 12 recordings, 12 rows in {out / 'published'}" in told
        table = out / "published"
    else:
        (musicnn,) = choose_sets(["musicnn"], Excerpt(30.0), device="cpu")
        with open_extraction(collection, musicnn, Excerpt(30.0), out) as extraction:
            manifest = extraction.run(workers)
            assert manifest is not None
            assert len(manifest.recordings) == expected.recordings
        table = out / "musicnn"
    trained = home / "run"
    asked = json.loads(
        run("train", "--approach", "baseline", "--table", table, "--folds", 2,
            "--out", trained, "--json").stdout
    )  # fmt: skip
    assert asked["recordings"] == expected.asked
    assert expected.protocol in asked["protocol"]
    assert asked["multi_label"] == expected.tags
    measure = "roc_auc" if expected.tags else "accuracy"
    assert 0 <= asked[measure]["value"] <= 1
    card = json.loads((trained / ("tagger.json" if expected.tags else "card.json")).read_text())
    assert f"{expected.recordings} recordings" in card["training_data"]
    assert card["licence"] == collection.licence
    if expected.tags:
        assert card["tags"] == list(MTT_TAGS)
    judged = json.loads(run("evaluate", trained, table, "--json").stdout)
    assert judged["recordings"] == expected.recordings
    assert any("TRAINED ON" in warning for warning in judged["warnings"])
    report = (trained / "report.html").read_text()
    assert "<svg" in report
    assert expected.protocol in report
