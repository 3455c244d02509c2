"""The datasets that we can read: what each is, its licence, and where its files are published.

A dataset is made of components: what is fetched, unpacked and kept together, in a folder of the
component's name. Datasets may share one (all sizes of FMA have the same metadata). The catalogue
is data; nothing here reads a file.

Digests: those of FMA are its authors' (README of github.com/mdeff/fma). Those of MagnaTagATune
and GTZAN are not their publishers', but what independent projects that fetched the files wrote
down (kapre; torchaudio). Where none is known, a file is trusted on first use: its SHA-256 is
written down, and everything later is held to it.
"""

from __future__ import annotations

from typing import Literal

from reclass_plex.errors import ConfigError
from reclass_plex.training.datasets.published import Component, Dataset, Part, PublishedFile

_MEBI = 1 << 20
_GIBI = 1 << 30

_FMA = "https://os.unil.cloud.switch.ch/fma/"
_MTT = "https://mirg.city.ac.uk/datasets/magnatagatune/"
_TAGTRAUM = "https://www.tagtraum.com/genres/"
_MSD = "http://millionsongdataset.com/sites/default/files/AdditionalFiles/"


def _one(
    name: str,
    part: Part,
    file: PublishedFile,
    archive: Literal["zip", "tar.gz"] | None,
    unpacked: int,
) -> Component:
    return Component(name, part, (file,), archive, unpacked)


def _fma_file(name: str, size: int, sha1: str) -> PublishedFile:
    return PublishedFile(f"{name}.zip", f"{_FMA}{name}.zip", size, digest=f"sha1:{sha1}")


FMA_METADATA = _one(
    "fma_metadata",
    "labels",
    _fma_file("fma_metadata", 342 * _MEBI, "f0df49ffe5f2a6008d7dc83c6915b31835dfe733"),
    "zip",
    1_500_000_000,  # features.csv alone has 900 MB
)


def _fma(subset: str, size: int, sha1: str, holds: str) -> Dataset:
    name = f"fma_{subset}"
    return Dataset(
        f"fma-{subset}",
        f"FMA {subset}",
        holds,
        "the authors', without an artist on two sides",
        "metadata and features CC BY 4.0, audio each artist's Creative Commons licence",
        "each its own",
        "Defferrard et al., FMA: a dataset for music analysis, 2017 (arXiv:1612.01840)",
        "With --only labels: the metadata and the 518 features, without the audio.",
        (FMA_METADATA, _one(name, "audio", _fma_file(name, size, sha1), "zip", size)),
    )


def _mtt_file(name: str, about: int, md5: str, size: int | None = None) -> PublishedFile:
    return PublishedFile(name, _MTT + name, about, size, f"md5:{md5}")


_MAGNATAGATUNE = Dataset(
    "magnatagatune",
    "MagnaTagATune",
    "25,863 clips of 29 s, 188 tags (50 in most papers), any number a clip",
    "by folder: 0 to b train, c valid, d to f test; it shares artists",
    "CC BY-NC-SA",
    "non-commercial",
    "Law et al., Evaluation of algorithms using games: the case of music tagging, 2009",
    "With --only labels or --only features: the tags, or the Echo Nest features, alone.",
    (
        Component(
            "magnatagatune_labels",
            "labels",
            (
                _mtt_file("annotations_final.csv", 12_000_000, "f04fa01752a8cc64f6e1ca142a0fef1d"),
                _mtt_file("clip_info_final.csv", 9_000_000, "03ef3cb8ddcfe53fdcdb8e0cda005be2"),
            ),
            None,
            0,
        ),
        Component(
            "magnatagatune_audio",
            "audio",
            (
                _mtt_file(
                    "mp3.zip.001",
                    1_100_000_000,
                    "179c91c8c2a6e9b3da3d4e69d306fd3b",
                    1_100_000_000,
                ),
                _mtt_file(
                    "mp3.zip.002",
                    1_100_000_000,
                    "acf8265ff2e35c6ff22210e46457a824",
                    1_100_000_000,
                ),
                _mtt_file(
                    "mp3.zip.003", 772_769_864, "582dc649cabb8cd991f09e14b99349a5", 772_769_864
                ),
            ),
            "zip",
            3_100_000_000,
        ),
        _one(
            "magnatagatune_features",
            "features",
            _mtt_file("mp3_echonest_xml.zip", 377_000_000, "09be4ac8c682a8c182279276fadb37f9"),
            "zip",
            4_000_000_000,
        ),
    ),
)

MSD_SONGS = _one(
    "msd_songs",
    "labels",
    PublishedFile("msd_summary_file.h5", f"{_MSD}msd_summary_file.h5", 315_000_000),
    None,
    0,
)
MSD_SUBSET = _one(
    "msd_subset",
    "features",
    PublishedFile(
        "millionsongsubset.tar.gz",
        "http://labrosa.ee.columbia.edu/~dpwe/tmp/millionsongsubset.tar.gz",
        1_990_000_000,
    ),
    "tar.gz",
    3_000_000_000,
)


def _msd(version: str, count: str, genres: int, remark: str) -> Dataset:
    file = f"msd_tagtraum_{version}.cls.zip"
    labels = _one(
        f"msd_{version}",
        "labels",
        PublishedFile(file, _TAGTRAUM + file, 2_500_000),
        "zip",
        12_000_000,
    )
    return Dataset(
        f"msd-{version}",
        f"Million Song Dataset, tagtraum {version.upper()}",
        f"{count} songs, {genres} genres, Echo Nest features in HDF5, no audio; {remark}",
        "none: tagtraum publishes many, and artists are known, so make one by group",
        "The Echo Nest's and tagtraum's data, published for research without a licence",
        "none",
        "Bertin-Mahieux et al., The Million Song Dataset, 2011; Schreiber, Improving genre"
        " annotations for the Million Song Dataset, 2015",
        "The features that are fetched are those of the 10,000 songs of its subset; for all of"
        " them (280 GB) see millionsongdataset.com, and name their folder with --path.",
        (labels, MSD_SONGS, MSD_SUBSET),
    )


_GTZAN = Dataset(
    "gtzan",
    "GTZAN",
    "1,000 excerpts of 30 s, 10 genres",
    "the published artist-filtered one: 443, 197 and 290, without repetitions and distortions",
    "none (its collector had no rights in the music)",
    "none",
    "Tzanetakis and Cook, Musical genre classification of audio signals, 2002; faults: Sturm, The"
    " GTZAN dataset, 2013 (arXiv:1306.1461)",
    "It is no longer published by its author, but many have copies. With genres.tar.gz:"
    " reclass-plex dataset import gtzan genres.tar.gz. Unpacked, from wherever:"
    " reclass-plex dataset info gtzan --path FOLDER.",
    (
        _one(
            "gtzan",
            "audio",
            PublishedFile(
                "genres.tar.gz",
                None,
                1_225_571_541,
                digest="sha256:24347e0223d2ba798e0a558c4c172d9d4a19c00bb7963fe055d183dadb4ef2c6",
            ),
            "tar.gz",
            1_330_000_000,
        ),
    ),
)


def _own(name: str, title: str, holds: str, split: str, get: str) -> Dataset:
    return Dataset(name, title, holds, split, "yours", "free", "your own files", get)


CATALOGUE = (
    _GTZAN,
    _fma(
        "small",
        int(7.2 * _GIBI),
        "ade154f733639d52e35e32f5593efe5be76c6d70",
        "8,000 clips of 30 s, 8 genres of 1,000 each",
    ),
    _fma(
        "medium",
        22 * _GIBI,
        "c67b69ea232021025fca9231fc1c7c1a063ab50b",
        "25,000 clips of 30 s, 16 genres",
    ),
    _fma(
        "large",
        93 * _GIBI,
        "497109f4dd721066b5ce5e5f250ec604dc78939e",
        "106,574 clips of 30 s, half of them with one of 16 genres",
    ),
    _fma(
        "full",
        879 * _GIBI,
        "0f0ace23fbe9ba30ecb7e95f763e435ea802b8ab",
        "106,574 whole tracks, half of them with one of 16 genres",
    ),
    _msd("cd1", "133,676", 13, "the genres of Top-MAGD"),
    _msd("cd2", "280,831", 15, "some ambiguous: the majority's genre is taken"),
    _msd("cd2c", "191,401", 15, "CD2 without what is ambiguous"),
    _MAGNATAGATUNE,
    _own(
        "folders",
        "a folder a genre",
        "whatever lies below the folders, each of which names a genre",
        "none; groups are artists by the files' tags, else folders",
        "reclass-plex dataset info folders --path FOLDER",
    ),
    _own(
        "table",
        "a CSV of paths and labels",
        "the columns path and label, and if you like group and split",
        "the column split",
        "reclass-plex dataset info table --path FILE.csv",
    ),
    _own(
        "library",
        "your own library",
        "tracks that you gave a genre, in the files or in Plex",
        "none; groups are artists",
        "Run reclass-plex tag --dry-run over it first, so that it is known; then:"
        " reclass-plex dataset info library",
    ),
)


def find_dataset(name: str) -> Dataset:
    """Return the dataset of that name. Raises ConfigError, naming those that there are."""
    known = {dataset.name: dataset for dataset in CATALOGUE}
    if name not in known:
        raise ConfigError(f"{name}: there is no such dataset; there are {', '.join(known)}")
    return known[name]
