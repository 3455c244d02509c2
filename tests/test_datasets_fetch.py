"""Datasets fetched from a real server that fails, unpacked, verified; archives that mean harm."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import dataset_archives as made
import pytest
from model_server import ModelServer
from typer.testing import CliRunner, Result

from reclass_plex import cli_dataset
from reclass_plex.download import Patience
from reclass_plex.errors import ConfigError, NoSpace, ReadOnly
from reclass_plex.training.datasets import catalogue
from reclass_plex.training.datasets.archives import Joined, unpack
from reclass_plex.training.datasets.catalogue import find_dataset
from reclass_plex.training.datasets.collection import DatasetError
from reclass_plex.training.datasets.fetch import fetch_component, import_component, match_files
from reclass_plex.training.datasets.installed import (
    datasets_folder,
    is_installed,
    read_origin,
    verify_component,
)
from reclass_plex.training.datasets.published import Component, Dataset

QUICK = Patience(failures=3, first_wait=0.01, connect_seconds=2, read_seconds=0.5)
BASE = "data/sets/resolve/main"  # where the server has them
BLOCK = 16_384  # bytes that are written at a time


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "datasets"


@pytest.fixture
def contents() -> dict[str, bytes]:
    """What is published, by file name."""
    return dict(made.everything())


@pytest.fixture
def server(contents: dict[str, bytes]) -> Iterator[ModelServer]:
    with ModelServer("plain") as running:
        for name, content in contents.items():
            running.add("data/sets", "main", name, content)
        yield running


@pytest.fixture
def dataset(server: ModelServer, contents: dict[str, bytes]) -> Callable[[str], Dataset]:
    return lambda name: made.tiny(find_dataset(name), contents, f"{server.url}/{BASE}")


@pytest.fixture
def fetch(dataset: Callable[[str], Dataset], folder: Path) -> Callable[..., Path]:
    """Fetch one component of a dataset."""

    def call(name: str, part: str, of: Dataset | None = None, **options: Any) -> Path:
        wanted = of or dataset(name)
        component = next(one for one in wanted.components if one.part == part)
        return fetch_component(wanted, component, folder, **({"patience": QUICK} | options))

    return call


@pytest.fixture
def run(
    dataset: Callable[[str], Dataset], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """The commands, as a user has them, with tiny datasets in the catalogue."""
    names = ("gtzan", "fma-small", "msd-cd1", "magnatagatune")
    own = [one for one in catalogue.CATALOGUE if not one.components]
    known = (*map(dataset, names), *own)
    monkeypatch.setattr(catalogue, "CATALOGUE", known)
    monkeypatch.setattr(cli_dataset, "CATALOGUE", known)
    monkeypatch.setenv("XDG_DATA_HOME", os.fspath(folder.parent))
    monkeypatch.setenv("XDG_CONFIG_HOME", os.fspath(folder.parent / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", os.fspath(folder.parent / "state"))
    monkeypatch.delenv("RECLASS_PLEX_CONFIG", raising=False)
    return lambda *args, **options: CliRunner().invoke(
        cli_dataset.app, [str(a) for a in args], **options
    )


# The catalogue


def test_the_catalogue_is_consistent() -> None:
    names = [one.name for one in catalogue.CATALOGUE]
    assert len(names) == len(set(names))
    for one in catalogue.CATALOGUE:
        assert one.get
        for component in one.components:
            assert len(component.files) == 1 or component.part != "features"
            for file in component.files:
                if file.digest is not None:
                    algorithm, _, digest = file.digest.partition(":")
                    assert len(digest) == hashlib.new(algorithm).digest_size * 2
                assert file.url is None or file.url.endswith(f"/{file.name}")
    assert all(file.digest for c in find_dataset("fma-full").components for file in c.files)
    # The metadata is shared: fetched once, it serves all sizes.
    assert find_dataset("fma-small").components[0] == find_dataset("fma-full").components[0]
    with pytest.raises(ConfigError, match="there is no such dataset; there are gtzan, fma-small"):
        find_dataset("fma")
    with pytest.raises(ConfigError, match="has no features to fetch; it has labels, audio"):
        find_dataset("fma-small").chosen(("features",))
    with pytest.raises(ConfigError, match="there is nothing to fetch"):
        find_dataset("library").chosen()


def test_the_folder_is_where_xdg_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/var/lib")
    assert datasets_folder() == Path("/var/lib/reclass-plex/datasets")
    assert datasets_folder(tmp_path) == tmp_path


# Fetching


@pytest.mark.parametrize("style", ["plain", "hub", "bare"])
def test_a_component_is_fetched_checked_and_unpacked(
    fetch: Callable[..., Path], server: ModelServer, folder: Path, style: Any
) -> None:
    server.style = style
    seen: dict[str, int] = {}
    place = fetch("fma-small", "audio", on_bytes=lambda what, here, due: seen.update({what: here}))
    assert place == folder / "fma_small"
    clip = place / "000" / "000002.mp3"  # the archive's top folder is left out
    assert clip.read_bytes() == made.sound("mp3", 2)
    assert seen["fma_small.zip"] == len(made.everything()["fma_small.zip"])
    assert any("unpacking" in what for what in seen)
    # sha256sum itself agrees, and nothing is left of the archive.
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=place, check=True)
    assert [path.name for path in (folder / ".incoming").iterdir()] == ["fma_small.lock"]
    origin = json.loads((place / "origin.json").read_text())
    assert origin["source"] == f"{server.url}/{BASE}/fma_small.zip"
    assert origin["files"] == {
        "fma_small.zip": hashlib.sha256(made.everything()["fma_small.zip"]).hexdigest()
    }


def test_what_is_there_is_not_fetched_again_unless_forced(
    fetch: Callable[..., Path], server: ModelServer
) -> None:
    place = fetch("fma-small", "labels")
    said: list[str] = []
    fetch("fma-small", "labels", say=said.append)
    assert said == ["fma_metadata: is there already"]
    (place / "of the user").touch()
    fetch("fma-small", "labels", force=True)
    assert len(server.got("fma_metadata.zip")) == 2
    assert not (place / "of the user").exists()


def test_an_archive_in_pieces_is_read_as_one(fetch: Callable[..., Path], folder: Path) -> None:
    place = fetch("magnatagatune", "audio")
    clip = place / "f" / "american_bach_soloists-heart-01-30-59.mp3"
    assert clip.read_bytes() == made.sound("mp3", 2)
    assert (place / "c" / "norine_braun-now_and_zen-08-gently-117-146.mp3").stat().st_size == 0


def test_a_mirror_needs_only_the_same_files(
    fetch: Callable[..., Path], server: ModelServer, dataset: Callable[[str], Dataset]
) -> None:
    real = find_dataset("fma-small")
    small = dataset("fma-small")
    gone = replace(  # the official address is not reached, the mirror is
        small,
        components=tuple(
            replace(one, files=tuple(replace(f, url="http://127.0.0.1:9/x") for f in one.files))
            for one in small.components
        ),
    )
    assert fetch("fma-small", "labels", gone, mirror=f"{server.url}/{BASE}/").is_dir()
    assert "os.unil.cloud.switch.ch" in (real.components[0].files[0].url or "")
    with pytest.raises(DatasetError, match=r"cannot be reached: Connection refused.*--mirror URL"):
        fetch("fma-small", "audio", gone)
    with pytest.raises(ConfigError, match=r"must begin with http.*dataset import NAME FILE"):
        fetch("fma-small", "audio", mirror="/media/stick")


def test_broken_connections_are_resumed(fetch: Callable[..., Path], server: ModelServer) -> None:
    server.break_after["fma_small.zip"] = [BLOCK, BLOCK]
    fetch("fma-small", "audio")
    assert server.got("fma_small.zip") == [None, f"bytes={BLOCK}-", f"bytes={BLOCK}-"]


def test_what_breaks_again_and_again_is_kept_for_the_next_run(
    fetch: Callable[..., Path], server: ModelServer, folder: Path
) -> None:
    server.break_after["fma_small.zip"] = [BLOCK] * 4
    with pytest.raises(DatasetError, match=r"broke off.*what is there already is kept"):
        fetch("fma-small", "audio")
    assert not (folder / "fma_small").exists()
    part = folder / ".incoming" / "fma_small" / "fma_small.zip.part"
    assert part.stat().st_size == BLOCK
    fetch("fma-small", "audio")
    assert server.got("fma_small.zip")[-1] == f"bytes={BLOCK}-"


def test_a_beginning_of_another_file_is_found_out(
    fetch: Callable[..., Path], server: ModelServer, folder: Path
) -> None:
    stage = folder / ".incoming" / "fma_small"
    stage.mkdir(parents=True)
    (stage / "fma_small.zip.part").write_bytes(b"x" * BLOCK)
    assert (fetch("fma-small", "audio") / "000" / "000002.mp3").is_file()
    assert server.got("fma_small.zip") == [f"bytes={BLOCK}-", None]


def test_wrong_bytes_are_refused_and_deleted(
    fetch: Callable[..., Path], server: ModelServer, folder: Path, contents: dict[str, bytes]
) -> None:
    right = contents["fma_small.zip"]
    server.contents["fma_small.zip"] = right[:-9] + bytes([right[-9] ^ 1]) + right[-8:]
    with pytest.raises(DatasetError, match=r"another SHA1 than .*not the file that was published"):
        fetch("fma-small", "audio")
    assert list((folder / ".incoming" / "fma_small").iterdir()) == []
    assert not (folder / "fma_small").exists()


def test_lying_sizes_are_refused(fetch: Callable[..., Path], server: ModelServer) -> None:
    server.sizes["mp3.zip.001"] = 12
    with pytest.raises(DatasetError, match=r"offers a mp3\.zip\.001 of 12 bytes, where"):
        fetch("magnatagatune", "audio")
    server.sizes["fma_small.zip"] = 1 << 40
    with pytest.raises(DatasetError, match=r"offers a fma_small\.zip of 1,099,511,627,776 bytes"):
        fetch("fma-small", "audio")


@pytest.mark.parametrize(("status", "says"), [(404, "perhaps it has moved"), (403, "forbids")])
def test_a_refusal_says_what_it_means(
    fetch: Callable[..., Path], server: ModelServer, status: int, says: str
) -> None:
    server.always["fma_small.zip"] = status
    with pytest.raises(DatasetError, match=f"status {status}: .*{says}"):
        fetch("fma-small", "audio")


def test_what_has_no_published_digest_is_held_to_what_came_first(
    fetch: Callable[..., Path], server: ModelServer, folder: Path
) -> None:
    said: list[str] = []
    place = fetch("msd-cd1", "labels", say=said.append)
    assert "no digest is published for msd_tagtraum_cd1.cls.zip: trusted as it came" in said[0]
    shutil.rmtree(place)
    server.contents["msd_tagtraum_cd1.cls.zip"] = made.zipped({"msd_tagtraum_cd1.cls": b"x"})
    with pytest.raises(
        DatasetError, match=r"is another than the one that came first.*--trust-anew"
    ):
        fetch("msd-cd1", "labels")


def test_space_is_made_sure_of_first(
    fetch: Callable[..., Path], server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(NoSpace, match=r"fma_small needs 0\.0 GB free .*--folder"):
        fetch("fma-small", "audio")
    assert not server.seen


def test_a_disk_that_fills_up_leaves_nothing_half(folder: Path, tmp_path: Path) -> None:
    """A real limit: the process may write no file longer than 100 kB."""
    path = tmp_path / "big.zip"
    path.write_bytes(made.zipped({"a/small": b"1", "a/big": bytes(300_000)}))
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from reclass_plex.errors import ReadOnly\n"
        "from reclass_plex.training.datasets.archives import unpack\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: unpack(open(sys.argv[1], 'rb'), 'zip', Path(sys.argv[2]), limit=10**6)\n"
        "except ReadOnly as error: print(error)\n"
    )
    command = [os.sys.executable, "-c", code, path, tmp_path / "out"]  # type: ignore[attr-defined]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert "cannot be written: File too large" in done.stdout


def test_a_folder_that_cannot_be_written_is_named(fetch: Callable[..., Path], folder: Path) -> None:
    folder.write_text("a file")
    with pytest.raises(ReadOnly, match="datasets"):
        fetch("fma-small", "audio")


def test_a_killed_replacement_is_put_back(fetch: Callable[..., Path], folder: Path) -> None:
    place = fetch("fma-small", "labels")
    stage = folder / ".incoming" / "fma_metadata"
    stage.mkdir()
    (stage / "unpacked").mkdir()  # half, as kill -9 leaves it
    place.rename(stage / "old")
    said: list[str] = []
    assert fetch("fma-small", "labels", say=said.append) == place
    assert said == ["fma_metadata: is there already"]
    assert not (stage / "unpacked").exists()


# Taking files that are here


def test_files_from_elsewhere_are_imported(
    dataset: Callable[[str], Dataset],
    folder: Path,
    tmp_path: Path,
    contents: dict[str, bytes],
    server: ModelServer,
) -> None:
    stick = tmp_path / "stick"
    stick.mkdir()
    for name in ("annotations_final.csv", "clip_info_final.csv", "mp3.zip.001", "mp3.zip.002"):
        (stick / name).write_bytes(contents[name])
    wanted = dataset("magnatagatune")
    matched = match_files(wanted, [stick])
    assert [component.part for component, _ in matched] == ["labels"]  # a piece is missing
    for component, files in matched:
        place = import_component(wanted, component, files, folder)
        assert list(verify_component(component, folder)) == []
    assert (place / "annotations_final.csv").read_bytes() == contents["annotations_final.csv"]
    assert (stick / "annotations_final.csv").is_file()
    assert not server.seen
    with pytest.raises(DatasetError, match=r"none of its files is here: it is made of genres\.tar"):
        match_files(dataset("gtzan"), [stick])
    with pytest.raises(DatasetError, match="there is no such file or folder"):
        match_files(dataset("gtzan"), [tmp_path / "nothing"])
    (stick / "genres.tar.gz").write_bytes(b"not this")
    ((component, files),) = match_files(dataset("gtzan"), [stick])
    with pytest.raises(DatasetError, match="another SHA256"):
        import_component(dataset("gtzan"), component, files, folder)
    assert (stick / "genres.tar.gz").read_bytes() == b"not this"


# Verifying


def test_verify_names_every_file_that_is_not_as_it_came(
    fetch: Callable[..., Path], dataset: Callable[[str], Dataset], folder: Path
) -> None:
    place = fetch("fma-small", "labels")
    component = dataset("fma-small").components[0]
    assert list(verify_component(component, folder)) == []
    (place / "README.txt").write_bytes(b"metadatA")
    (place / "tracks.csv").unlink()
    faults = list(verify_component(component, folder))
    assert len(faults) == 2
    assert any("README.txt: differs from what was fetched" in fault for fault in faults)
    assert any("tracks.csv: is missing" in fault for fault in faults)


# Archives that mean harm, or are damaged


def evil_zip(name: str, mode: int = 0, content: bytes = b"x") -> bytes:
    made_zip = io.BytesIO()
    with zipfile.ZipFile(made_zip, "w") as archive:
        member = zipfile.ZipInfo("placeholder")
        member.filename = name
        member.external_attr = mode << 16
        archive.writestr(member, content)
    return made_zip.getvalue()


def evil_tar(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    made_tar = io.BytesIO()
    with tarfile.open(fileobj=made_tar, mode="w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, link
        archive.addfile(member)
    return made_tar.getvalue()


NOISE = bytes(range(256)) * 40
HARMFUL: dict[str, tuple[Literal["zip", "tar.gz"], bytes, str]] = {
    "zip: climbs": ("zip", evil_zip("../evil"), "refused"),
    "zip: climbs late": ("zip", evil_zip("a/../../evil"), "refused"),
    "zip: absolute": ("zip", evil_zip("/etc/evil"), "refused"),
    "zip: backslashes": ("zip", evil_zip("a\\..\\evil"), "refused"),
    "zip: a drive": ("zip", evil_zip("C:evil"), "refused"),
    "zip: an escape": ("zip", evil_zip("a\x1b[2J"), "refused"),
    "zip: a line end": ("zip", evil_zip("a\nb"), "refused"),
    "zip: a link": ("zip", evil_zip("a", stat.S_IFLNK | 0o777, b"/etc"), "link or device"),
    "zip: a pipe": ("zip", evil_zip("a", stat.S_IFIFO | 0o666), "link or device"),
    "zip: empty": ("zip", made.zipped({}), "is empty"),
    "zip: none": ("zip", b"no zip at all", "is damaged"),
    "zip: cut off": ("zip", made.zipped({"a": NOISE})[:60], "is damaged"),
    "zip: swells": ("zip", made.zipped({"a": bytes(3_000_000)}), "more than the 2,000,000 bytes"),
    "zip: below a file": ("zip", made.zipped({"a": b"1", "a/b": b"2"}), "two things named a/b"),
    "tar: climbs": ("tar.gz", evil_tar("../evil"), "refused"),
    "tar: absolute": ("tar.gz", evil_tar("/evil"), "refused"),
    "tar: a link": ("tar.gz", evil_tar("a", tarfile.SYMTYPE, "/etc"), "link or device"),
    "tar: a hard link": ("tar.gz", evil_tar("a", tarfile.LNKTYPE, "/etc"), "link or device"),
    "tar: a device": ("tar.gz", evil_tar("a", tarfile.CHRTYPE), "link or device"),
    "tar: none": ("tar.gz", b"no tar at all", "is damaged"),
    "tar: cut off": ("tar.gz", made.tarred({"a": NOISE})[:200], "is damaged"),
    "tar: swells": ("tar.gz", made.tarred({"a": bytes(3_000_000)}), "more than the 2,000,000"),
}


@pytest.mark.parametrize("name", list(HARMFUL))
def test_an_archive_that_is_not_to_be_trusted_is_refused(tmp_path: Path, name: str) -> None:
    kind, content, says = HARMFUL[name]
    target = tmp_path / "inside" / "target"
    target.parent.mkdir()
    with pytest.raises(DatasetError, match=says):
        unpack(io.BytesIO(content), kind, target, limit=2_000_000)
    outside = [path for path in tmp_path.rglob("*") if not path.is_relative_to(target.parent)]
    assert outside == []
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    twice = io.BytesIO()
    with zipfile.ZipFile(twice, "w") as archive:
        archive.writestr("a", "1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a", "2")
    with pytest.raises(DatasetError, match="two files named a"):
        unpack(twice, "zip", tmp_path / "target", limit=100)


def test_a_changed_byte_in_an_archive_is_found(tmp_path: Path) -> None:
    content = bytearray(made.zipped({"a": NOISE}))
    content[100] ^= 1
    with pytest.raises(DatasetError, match="is damaged"):
        unpack(io.BytesIO(bytes(content)), "zip", tmp_path / "target", limit=20_000)


def test_a_bad_archive_leaves_nothing_behind(
    fetch: Callable[..., Path], dataset: Callable[[str], Dataset], folder: Path, server: ModelServer
) -> None:
    content = evil_zip("../evil")
    server.contents["fma_small.zip"] = content
    published = dataset("fma-small")
    component: Component = published.components[1]
    file = replace(component.files[0], digest=f"sha1:{hashlib.sha1(content).hexdigest()}")
    bad = replace(published, components=(replace(component, files=(file,)),))
    with pytest.raises(DatasetError, match=r"fma_small: the archive has a file .*evil.*refused"):
        fetch("fma-small", "audio", bad)
    assert list((folder / ".incoming" / "fma_small").iterdir()) == []
    assert not is_installed(component, folder)
    assert not (folder / "evil").exists()


def test_joined_files_are_one(tmp_path: Path) -> None:
    for number, text in enumerate((b"abc", b"", b"defgh")):
        (tmp_path / str(number)).write_bytes(text)
    with Joined([tmp_path / str(number) for number in range(3)]) as joined:
        assert joined.read() == b"abcdefgh"
        assert joined.seek(-6, os.SEEK_END) == 2
        assert joined.read(3) == b"c"  # a raw read may stop at a border
        assert joined.read(3) == b"def"
        with pytest.raises(ValueError, match="before the beginning"):
            joined.seek(-1)


# The commands


def test_the_commands_fetch_list_and_verify(run: Callable[..., Result], folder: Path) -> None:
    refused = run("fetch", "fma-small")
    assert isinstance(refused.exception, DatasetError)
    assert "many forbid commercial use" in refused.output
    assert "--accept-licence" in str(refused.exception)
    done = run("fetch", "fma-small", "--accept-licence")
    place = folder.parent / "reclass-plex" / "datasets"
    assert done.exit_code == 0, done.output
    assert f"fma_small: ready in {place / 'fma_small'}" in done.stdout
    assert run("fetch", "fma-small").exit_code == 0  # accepted once is accepted
    listed = {
        one["dataset"]: one for one in map(json.loads, run("list", "--json").stdout.splitlines())
    }
    assert listed["fma-small"]["components"][0]["path"] == str(place / "fma_metadata")
    assert listed["gtzan"]["components"][0]["path"] is None
    assert "fma-small" in run("list").stdout
    assert run("verify").exit_code == 0
    (place / "fma_small" / "README.txt").unlink()
    bad = run("verify", "fma-small", "--json")
    assert bad.exit_code == 1
    problems = {
        one["component"]: one["problems"] for one in map(json.loads, bad.stdout.split("\n")[:-1])
    }
    assert problems["fma_metadata"] == []
    assert "README.txt: is missing" in problems["fma_small"][0]
    nothing = run("verify", "gtzan")
    assert "nothing of it is in" in str(nothing.exception)


def test_a_part_alone_can_be_fetched_and_a_failure_is_named(
    run: Callable[..., Result], server: ModelServer, folder: Path
) -> None:
    server.always["msd_summary_file.h5"] = 404
    done = run("fetch", "msd-cd1", "--only", "labels", "--accept-licence")
    assert done.exit_code == 1
    assert "msd_cd1: ready" in done.stdout
    assert "status 404" in done.output
    assert not server.got("millionsongsubset.tar.gz")
    place = folder.parent / "reclass-plex" / "datasets"
    component = find_dataset("msd-cd1").components[0]
    origin = read_origin(component, place)
    assert origin is not None
    assert "without a licence" in origin.licence


def test_gtzan_says_how_to_get_it(
    run: Callable[..., Result], tmp_path: Path, contents: dict[str, bytes]
) -> None:
    done = run("fetch", "gtzan")
    assert "no longer published by its author" in str(done.exception)
    assert "dataset import gtzan genres.tar.gz" in str(done.exception)
    path = tmp_path / "genres.tar.gz"
    path.write_bytes(contents["genres.tar.gz"])
    assert "nobody gave a licence" in run("import", "gtzan", path).output
    done = run("import", "gtzan", path, "--accept-licence")
    assert done.exit_code == 0, done.output
    assert run("verify", "gtzan").stdout == "gtzan: ok\n"
