"""Models on disk: fetched from a real server that fails in every way, imported, verified."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from model_server import ModelServer
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from reclass_plex import models
from reclass_plex.cli_models import app
from reclass_plex.errors import ConfigError, ModelError, NoSpace, ReadOnly, ReclassError
from reclass_plex.models.catalogue import CATALOGUE, Model, PublishedFile, load_catalogue
from reclass_plex.models.convert import convert, read_checkpoint
from reclass_plex.models.download import Patience
from reclass_plex.models.fetch import fetch_model
from reclass_plex.models.installed import hash_file, incoming, locked, pins_path, read_manifest
from reclass_plex.models.offline import import_model, recognise

QUICK = Patience(failures=3, first_wait=0.01, connect_seconds=2, read_seconds=0.5)
WEIGHTS = "pytorch_model.bin"
BLOCK = 16_384  # bytes, that are written at a time
CONFIG = b'{"hidden_size": 32, "model_type": "tiny"}\n'


def make_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """Of the kinds that the real ones have: weight norm by its old names, a half, a number."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "masked_spec_embed": torch.randn(32, generator=generator),
        "encoder.pos_conv_embed.conv.weight_g": torch.randn(1, 1, 128, generator=generator),
        "encoder.pos_conv_embed.conv.weight_v": torch.randn(32, 2, 128, generator=generator),
        "encoder.layers.0.weight": torch.randn(256, 256, generator=generator),
        "half": torch.randn(64, generator=generator).half(),
        "steps": torch.tensor(7),
    }


def umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def as_bin(tensors: object, path: Path, **options: Any) -> bytes:
    torch.save(tensors, path, **options)
    return path.read_bytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def weights(tmp_path: Path) -> bytes:
    return as_bin(make_tensors(), tmp_path / "made.bin")


@pytest.fixture
def model(weights: bytes) -> Model:
    """A tiny stand-in for mert-95m: its weights are published, its config.json is not."""
    return Model(
        name="mert-95m",
        repository="m-a-p/MERT-v1-95M",
        revision="12af15fef9d0ac838c3f475bfbbf26d2060dd4f5",
        files=(
            PublishedFile(name="config.json", about=100),
            PublishedFile(
                name=WEIGHTS,
                about=len(weights),
                size=len(weights),
                sha256=hashlib.sha256(weights).hexdigest(),
            ),
        ),
        weights=WEIGHTS,
        mark=("masked_spec_embed", (32,)),
        licence="CC-BY-NC-4.0",
        terms="non-commercial",
        purpose="tests",
    )


@pytest.fixture
def server(model: Model, weights: bytes) -> Iterator[ModelServer]:
    with ModelServer() as running:
        running.add(model.repository, model.revision, WEIGHTS, weights)
        running.add(model.repository, model.revision, "config.json", CONFIG)
        yield running


@pytest.fixture
def fetch(model: Model, server: ModelServer, folder: Path) -> Callable[..., models.Manifest]:
    def call(of: Model = model, **options: Any) -> models.Manifest:
        given: dict[str, Any] = {
            "mirror": server.url,
            "accepted": True,
            "patience": QUICK,
        } | options
        return fetch_model(of, folder, **given)

    return call


@pytest.fixture
def run(folder: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The commands, as a user has them; the catalogue of the folder stands for the real one."""
    monkeypatch.setenv("XDG_DATA_HOME", os.fspath(folder.parent))
    monkeypatch.setenv("XDG_CONFIG_HOME", os.fspath(folder.parent / "config"))
    monkeypatch.delenv("RECLASS_PLEX_CONFIG", raising=False)
    own = write_catalogue(folder.parent / "reclass-plex" / "models", model)
    monkeypatch.chdir(own.parent)
    return lambda *args, **options: CliRunner().invoke(app, [str(a) for a in args], **options)


def write_catalogue(folder: Path, *known: Model) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "catalogue.json"
    path.write_text(json.dumps({"models": [one.model_dump(mode="json") for one in known]}))
    return path


def assert_whole(folder: Path, name: str = "mert-95m") -> None:
    found = models.find_model(name, folder)
    assert found == folder / name
    assert models.verify_model(name, folder) == []
    tensors = load_file(found / "model.safetensors")
    for key, tensor in make_tensors().items():
        assert tensors[key].dtype == tensor.dtype
        assert torch.equal(tensors[key], tensor)


# The catalogue


def test_the_catalogue_pins_all_that_is_published() -> None:
    for known in CATALOGUE:
        assert len(known.revision) == 40  # a commit, which cannot change
        weights = next(file for file in known.files if file.name == known.weights)
        assert weights.sha256 is not None
        assert known.converted.endswith(".safetensors")
    terms = {known.name: known.terms for known in CATALOGUE}
    assert terms["clap"] == "free"
    assert terms["mert-95m"] == terms["mert-330m"] == "non-commercial"
    assert terms["jmla"] == "unclear"


def test_a_catalogue_of_ones_own_goes_before_ours(folder: Path, model: Model) -> None:
    assert load_catalogue(folder)["mert-95m"].files[1].size == 377_552_987
    path = write_catalogue(folder, model, model.model_copy(update={"name": "mine"}))
    assert list(load_catalogue(folder)) == ["mert-95m", "mert-330m", "jmla", "clap", "mine"]
    assert load_catalogue(folder)["mert-95m"] == model
    path.write_text('{"models": [{"name": "../evil"}]}')
    with pytest.raises(ModelError, match=r"catalogue\.json: models\.0\.name"):
        load_catalogue(folder)
    with pytest.raises(ModelError, match="there is no such model; there are mert-95m, "):
        path.unlink()
        models.find_in_catalogue("mert", folder)


def test_the_folder_is_where_xdg_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/var/lib")
    assert models.models_folder() == Path("/var/lib/reclass-plex/models")
    assert models.models_folder(tmp_path) == tmp_path


# Fetching


@pytest.mark.parametrize("style", ["hub", "plain", "bare"])
def test_a_model_is_fetched_checked_and_converted(
    fetch: Callable[..., models.Manifest],
    server: ModelServer,
    folder: Path,
    style: Any,
    weights: bytes,
) -> None:
    server.style = style
    seen: dict[str, tuple[int, int]] = {}
    said: list[str] = []
    manifest = fetch(
        on_bytes=lambda name, here, due: seen.__setitem__(name, (here, due)), say=said.append
    )
    assert_whole(folder)
    # Only safetensors is kept, and that it came from the published file is written down.
    names = sorted(path.name for path in (folder / "mert-95m").iterdir())
    assert names == ["config.json", "manifest.json", "model.safetensors"]
    assert (folder / "mert-95m" / "config.json").read_bytes() == CONFIG
    modes = {path.stat().st_mode & 0o777 for path in (folder / "mert-95m").iterdir()}
    assert modes == {0o666 & ~umask()}  # the service reads what root fetched
    by_name = {file.name: file for file in manifest.files}
    original = by_name["model.safetensors"].original
    assert original is not None
    assert (original.name, original.size) == (WEIGHTS, len(weights))
    assert original.sha256 == hashlib.sha256(weights).hexdigest()
    assert not by_name["model.safetensors"].first_use
    assert by_name["config.json"].first_use
    assert "no digest is published for config.json" in " ".join(said)
    assert manifest.origin == server.url
    assert manifest.accepted is not None
    assert manifest.accepted.licence == "CC-BY-NC-4.0"
    assert seen[WEIGHTS] == (len(weights), len(weights))
    assert not list((folder / ".incoming").iterdir())
    assert all(one.agent_encoding == "identity" for one in server.seen)


def test_a_whole_model_is_not_fetched_again_unless_forced(
    fetch: Callable[..., models.Manifest], server: ModelServer, folder: Path
) -> None:
    first = fetch()
    said: list[str] = []
    assert fetch(say=said.append, accepted=False) == first  # accepted once is accepted
    assert said == ["mert-95m: is there already"]
    assert len(server.got(WEIGHTS)) == 1
    fetch(force=True)
    assert len(server.got(WEIGHTS)) == 2
    assert_whole(folder)


def test_a_newer_revision_takes_the_place_of_the_old(
    fetch: Callable[..., models.Manifest],
    server: ModelServer,
    folder: Path,
    model: Model,
    weights: bytes,
) -> None:
    fetch()
    newer = model.model_copy(update={"revision": "f" * 40})
    server.add(model.repository, newer.revision, WEIGHTS, weights)
    server.add(model.repository, newer.revision, "config.json", b'{"new": 1}')
    assert fetch(newer).revision == "f" * 40  # the pin of config.json held for the old one
    assert (folder / "mert-95m" / "config.json").read_bytes() == b'{"new": 1}'


def test_a_licence_must_be_accepted(
    fetch: Callable[..., models.Manifest], server: ModelServer, model: Model, folder: Path
) -> None:
    with pytest.raises(ModelError, match=r"CC-BY-NC-4\.0: not for commercial.*--accept-licence"):
        fetch(accepted=False)
    assert not server.seen
    unclear = model.model_copy(update={"terms": "unclear", "licence": "cc"})
    with pytest.raises(ModelError, match="never pass them on"):
        fetch(unclear, accepted=False)
    free = model.model_copy(update={"terms": "free", "licence": "Apache-2.0"})
    assert fetch(free, accepted=False).accepted is None


def test_the_hub_is_asked_with_its_own_login_and_storage_is_not(
    server: ModelServer, model: Model, folder: Path
) -> None:
    """In a process of its own: huggingface_hub reads its address once, when it is imported."""
    pytest.importorskip("huggingface_hub")
    code = (
        "import sys; from pathlib import Path; from reclass_plex.models.fetch import fetch_model\n"
        "from reclass_plex.models import find_in_catalogue\n"
        "folder = Path(sys.argv[1])\n"
        "fetch_model(find_in_catalogue('mert-95m', folder), folder, accepted=True)\n"
    )
    write_catalogue(folder, model)
    environment = os.environ | {
        "HF_ENDPOINT": server.url,
        "HF_TOKEN": "hf_secret",
        "HF_HOME": os.fspath(folder.parent / "hf"),
    }
    subprocess.run(
        [sys.executable, "-c", code, os.fspath(folder)], check=True, env=environment, timeout=60
    )
    assert_whole(folder)
    tokens = {(one.place, one.token) for one in server.seen}
    assert tokens == {("hub", "Bearer hf_secret"), ("storage", None)}
    offline = subprocess.run(
        [sys.executable, "-c", code, os.fspath(folder.parent / "other")],
        env=environment | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "HF_HUB_OFFLINE forbids the network" in offline.stderr


def test_the_server_is_true_to_the_hub(
    server: ModelServer, model: Model, tmp_path: Path, weights: bytes
) -> None:
    """huggingface_hub itself can fetch from it, so that our tests test something."""
    pytest.importorskip("huggingface_hub")
    code = (
        "import sys; from huggingface_hub import hf_hub_download as get\n"
        "repo, revision, to = sys.argv[1:]\n"
        "for name in ('config.json', 'pytorch_model.bin'):\n"
        "    get(repo, name, revision=revision, local_dir=to)\n"
    )
    environment = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": os.fspath(tmp_path / "hf")}
    command = [sys.executable, "-c", code, model.repository, model.revision, str(tmp_path / "to")]
    subprocess.run(command, check=True, env=environment, timeout=60, capture_output=True)
    assert (tmp_path / "to" / WEIGHTS).read_bytes() == weights
    assert (tmp_path / "to" / "config.json").read_bytes() == CONFIG


# What goes wrong on the way


@pytest.mark.parametrize("style", ["hub", "plain"])
def test_broken_connections_are_resumed(
    fetch: Callable[..., models.Manifest],
    server: ModelServer,
    folder: Path,
    style: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server.style = style
    server.break_after[WEIGHTS] = [3 * BLOCK, 3 * BLOCK, 7 * BLOCK, 12 * BLOCK]
    with caplog.at_level(logging.INFO):
        fetch()
    assert_whole(folder)
    assert server.got(WEIGHTS) == [
        None,
        f"bytes={3 * BLOCK}-",
        f"bytes={3 * BLOCK}-",
        f"bytes={7 * BLOCK}-",
        f"bytes={12 * BLOCK}-",
    ]
    assert "the connection broke off; trying again" in caplog.text
    assert "secret" not in caplog.text


def test_a_server_without_ranges_is_read_from_the_start(
    fetch: Callable[..., models.Manifest], server: ModelServer, folder: Path
) -> None:
    server.no_ranges = True
    server.break_after[WEIGHTS] = [3 * BLOCK]
    fetch()
    assert_whole(folder)


def test_a_wrong_part_is_not_appended(
    fetch: Callable[..., models.Manifest], server: ModelServer, folder: Path
) -> None:
    server.break_after[WEIGHTS] = [3 * BLOCK]
    server.wrong_ranges = [40_000]
    fetch()
    assert_whole(folder)
    assert server.got(WEIGHTS) == [None, f"bytes={3 * BLOCK}-", None]


def test_silence_and_busy_servers_are_waited_for(
    fetch: Callable[..., models.Manifest], server: ModelServer, folder: Path
) -> None:
    server.hang_after[WEIGHTS] = [4 * BLOCK]
    server.statuses[WEIGHTS] = [503, 429]
    server.retry_after = "0"
    fetch()
    assert_whole(folder)
    assert server.got(WEIGHTS)[-1] == f"bytes={4 * BLOCK}-"


def test_what_breaks_again_and_again_is_given_up_and_kept(
    fetch: Callable[..., models.Manifest], server: ModelServer, folder: Path, model: Model
) -> None:
    server.break_after[WEIGHTS] = [5 * BLOCK] * 4
    with pytest.raises(ModelError, match=r"cannot be reached: the connection broke off.*is kept"):
        fetch()
    assert models.find_model("mert-95m", folder) is None
    assert (incoming(model, folder) / f"{WEIGHTS}.part").stat().st_size == 5 * BLOCK
    fetch()
    assert_whole(folder)
    assert server.got(WEIGHTS)[-1] == f"bytes={5 * BLOCK}-"


def test_without_a_network_the_error_says_what_to_do(
    fetch: Callable[..., models.Manifest], model: Model
) -> None:
    with pytest.raises(ModelError, match=r"Connection refused.*--mirror URL.*models import") as e:
        fetch(mirror="http://user:password@127.0.0.1:9")
    assert "password" not in str(e.value)
    with pytest.raises(ConfigError, match="must begin with http"):
        fetch(mirror="/media/stick")


@pytest.mark.parametrize(
    ("status", "says"),
    [(404, "does not have this file"), (401, "asks for a login: set HF_TOKEN"), (403, "terms")],
)
def test_what_is_not_there_or_forbidden_is_said_at_once(
    fetch: Callable[..., models.Manifest], server: ModelServer, status: int, says: str
) -> None:
    server.always[WEIGHTS] = status
    with pytest.raises(ModelError, match=f"status {status}: .*{says}"):
        fetch()
    assert len([one for one in server.seen if one.file == WEIGHTS]) == 1


def test_a_login_that_is_asked_for_later_names_no_signed_link(
    fetch: Callable[..., models.Manifest], server: ModelServer
) -> None:
    server.statuses[WEIGHTS] = [403]
    with pytest.raises(ModelError) as raised:
        fetch()
    assert "signature" not in str(raised.value)


@pytest.mark.parametrize("style", ["hub", "plain", "bare"])
def test_wrong_bytes_are_refused_and_deleted(
    fetch: Callable[..., models.Manifest],
    server: ModelServer,
    folder: Path,
    model: Model,
    weights: bytes,
    style: Any,
) -> None:
    server.style = style
    server.contents[WEIGHTS] = weights[:-1] + bytes([weights[-1] ^ 1])
    with pytest.raises(ModelError, match="is not the file that was published, and was refused"):
        fetch()
    assert not (incoming(model, folder) / WEIGHTS).exists()
    assert not (incoming(model, folder) / f"{WEIGHTS}.part").exists()
    assert models.find_model("mert-95m", folder) is None
    del server.contents[WEIGHTS]
    fetch()
    assert_whole(folder)


def test_a_part_of_another_file_is_thrown_away(
    fetch: Callable[..., models.Manifest],
    server: ModelServer,
    folder: Path,
    model: Model,
) -> None:
    stage = incoming(model, folder)
    stage.mkdir(parents=True)
    (stage / f"{WEIGHTS}.part").write_bytes(bytes(1000))
    (stage / ".tmp123").write_bytes(bytes(1000))
    fetch()
    assert_whole(folder)
    assert not (folder / "mert-95m" / ".tmp123").exists()
    assert server.got(WEIGHTS) == ["bytes=1000-", None]
    (stage).mkdir(parents=True)
    (stage / f"{WEIGHTS}.part").write_bytes(bytes(1_000_000))  # longer than the file
    (stage / "config.json.part").write_bytes(bytes(1000))  # of unknown length: 416
    fetch(force=True)
    assert_whole(folder)


def test_lies_about_sizes_are_refused(
    fetch: Callable[..., models.Manifest], server: ModelServer, weights: bytes
) -> None:
    server.sizes[WEIGHTS] = len(weights) + 1
    with pytest.raises(ModelError, match=r"offers a pytorch_model\.bin of"):
        fetch()
    assert server.got(WEIGHTS) == []
    del server.sizes[WEIGHTS]
    server.contents[WEIGHTS] = weights + b"more"
    with pytest.raises(ModelError, match="the server sends"):
        fetch()
    server.style = "bare"
    with pytest.raises(ModelError, match="more than the"):
        fetch()
    server.contents[WEIGHTS] = weights[:-4]  # without a length, its end looks like a true one
    with pytest.raises(ModelError, match="broke off"):
        fetch()


def test_an_endless_file_of_unknown_size_ends(
    fetch: Callable[..., models.Manifest], server: ModelServer
) -> None:
    server.sizes["config.json"] = 80 << 20
    with pytest.raises(ModelError, match="where about 100 are due"):
        fetch()


def test_another_file_is_refused_before_it_is_sent(
    fetch: Callable[..., models.Manifest], server: ModelServer, model: Model, weights: bytes
) -> None:
    swapped = weights[::-1]
    server.add(model.repository, model.revision, WEIGHTS, swapped)
    with pytest.raises(ModelError, match=r"offers a pytorch_model\.bin with the SHA-256"):
        fetch()
    assert server.got(WEIGHTS) == []


def test_what_was_trusted_on_first_use_is_held_to(
    fetch: Callable[..., models.Manifest], server: ModelServer, folder: Path, model: Model
) -> None:
    fetch()
    models.remove_model("mert-95m", folder)
    server.add(model.repository, model.revision, "config.json", CONFIG.replace(b"32", b"64"))
    with pytest.raises(ModelError, match=r"config\.json has the SHA-256.*remove --forget"):
        fetch()
    assert pins_path("mert-95m", folder).exists()
    models.remove_model("mert-95m", folder, forget=True)
    fetch()
    assert b"64" in (folder / "mert-95m" / "config.json").read_bytes()


def test_weights_of_another_model_are_refused(
    fetch: Callable[..., models.Manifest],
    server: ModelServer,
    folder: Path,
    model: Model,
    tmp_path: Path,
) -> None:
    other = as_bin({"something": torch.zeros(3)}, tmp_path / "other.bin")
    server.add(model.repository, model.revision, WEIGHTS, other)
    files = (model.files[0], PublishedFile(name=WEIGHTS, about=1000))
    unknown = model.model_copy(update={"files": files})
    with pytest.raises(ModelError, match="these are not its weights: there is no masked_spec"):
        fetch(unknown)
    assert models.find_model("mert-95m", folder) is None


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("evil-was-here",)


def test_a_pickle_that_would_run_code_runs_none(
    fetch: Callable[..., models.Manifest],
    server: ModelServer,
    folder: Path,
    model: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    evil = as_bin({"masked_spec_embed": Evil()}, tmp_path / "evil.bin")
    server.add(model.repository, model.revision, WEIGHTS, evil)
    files = (model.files[0], PublishedFile(name=WEIGHTS, about=1000))
    with pytest.raises(ModelError, match="holds more than plain tensors"):
        fetch(model.model_copy(update={"files": files}))
    assert not (tmp_path / "evil-was-here").exists()
    assert not list(incoming(model, folder).glob("pytorch_model*"))


# Killed, at once, full, read-only


def command(folder: Path, *args: str) -> tuple[list[str], dict[str, str]]:
    code = "from reclass_plex.cli_models import app; app()"
    environment = os.environ | {
        "XDG_DATA_HOME": os.fspath(folder),
        "XDG_CONFIG_HOME": os.fspath(folder / "config"),
    }
    return [sys.executable, "-c", code, *args], environment


def test_a_killed_fetch_goes_on_where_it_was(
    server: ModelServer, model: Model, tmp_path: Path, weights: bytes
) -> None:
    folder = tmp_path / "reclass-plex" / "models"
    write_catalogue(folder, model)
    server.hang_after[WEIGHTS] = [11 * BLOCK]
    args, environment = command(
        tmp_path, "fetch", "mert-95m", "--mirror", server.url, "--accept-licence"
    )
    process = subprocess.Popen(args, env=environment)
    part = incoming(model, folder) / f"{WEIGHTS}.part"
    try:
        assert server.hanging.wait(30)
        deadline = time.monotonic() + 5
        while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    kept = part.stat().st_size
    assert 0 < kept <= 11 * BLOCK
    assert models.find_model("mert-95m", folder) is None
    fetch_model(model, folder, mirror=server.url, accepted=True, patience=QUICK)
    assert_whole(folder)
    assert server.got(WEIGHTS) == [None, f"bytes={kept}-"]


def test_a_model_that_was_out_of_its_way_when_killed_comes_back(
    fetch: Callable[..., models.Manifest], server: ModelServer, folder: Path
) -> None:
    fetch()
    (folder / "mert-95m").rename(folder / ".incoming" / "mert-95m@old")
    assert models.find_model("mert-95m", folder) is None
    server.always[WEIGHTS] = 404
    with pytest.raises(ModelError, match="404"):
        fetch()
    assert_whole(folder)


def test_two_fetches_at_once_are_one(
    fetch: Callable[..., models.Manifest], server: ModelServer, folder: Path
) -> None:
    said: list[str] = []
    waiting = threading.Event()

    def say(text: str) -> None:
        said.append(text)
        waiting.set()

    with locked("mert-95m", folder):
        threads = [threading.Thread(target=fetch, kwargs={"say": say}) for _ in range(2)]
        for thread in threads:
            thread.start()
        assert waiting.wait(5)
        assert not server.seen
    for thread in threads:
        thread.join(20)
    assert len(server.got(WEIGHTS)) == 1
    assert "mert-95m: another process is fetching it; waiting" in said
    assert "mert-95m: is there already" in said
    assert_whole(folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 1 MiB, where this machine lets us mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", os.fspath(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("cannot mount a small disk")
    yield disk
    subprocess.run(["umount", os.fspath(disk)], check=True)


def test_too_little_room_is_said_before_and_on_the_way(
    server: ModelServer, small_disk: Path, model: Model
) -> None:
    large = os.urandom(3_000_000)
    server.add(model.repository, model.revision, WEIGHTS, large)
    files = (model.files[0], PublishedFile(name=WEIGHTS, about=3_000_000))
    big = model.model_copy(update={"files": files})
    with pytest.raises(NoSpace, match=r"needs 6\.1 MB free for a while, there are 1\.0 MB"):
        fetch_model(big, small_disk, mirror=server.url, accepted=True, patience=QUICK)
    assert server.got(WEIGHTS) == []
    server.style = "bare"  # it tells no size, and the catalogue thinks it is small
    files = (model.files[0], PublishedFile(name=WEIGHTS, about=1000))
    big = model.model_copy(update={"files": files})
    with pytest.raises(NoSpace, match="No space left on device"):
        fetch_model(big, small_disk, mirror=server.url, accepted=True, patience=QUICK)
    assert models.find_model("mert-95m", small_disk) is None


def test_a_folder_that_cannot_be_written_is_named(
    server: ModelServer, small_disk: Path, model: Model
) -> None:
    remount = ["mount", "-o", "remount,ro", os.fspath(small_disk)]
    subprocess.run(remount, check=True)
    with pytest.raises(ReadOnly, match="Read-only file system; name another folder in models"):
        fetch_model(model, small_disk / "new", mirror=server.url, accepted=True)
    assert not server.seen


# Found, verified, removed


def test_a_model_is_missing_or_damaged_for_a_reason(
    fetch: Callable[..., models.Manifest], folder: Path
) -> None:
    why = models.why_missing("mert-95m", folder)
    assert why == "mert-95m is not fetched; to have it: reclass-plex models fetch mert-95m"
    with pytest.raises(ModelError, match="is not fetched"):
        models.verify_model("mert-95m", folder)
    fetch()
    assert models.why_missing("mert-95m", folder) is None
    path = folder / "mert-95m" / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert "instead of" in str(models.why_missing("mert-95m", folder))
    assert models.find_model("mert-95m", folder) is None
    path.unlink()
    assert "No such file" in str(models.why_missing("mert-95m", folder))
    path.write_bytes(content)
    assert_whole(folder)  # its time is another, its contents are right
    manifest = folder / "mert-95m" / "manifest.json"
    manifest.write_text("{}")
    assert "manifest.json: is damaged" in str(models.why_missing("mert-95m", folder))
    with pytest.raises(ModelError, match="is damaged"):
        models.verify_model("mert-95m", folder)
    fetch()  # and a fetch mends it
    assert_whole(folder)


def test_times_are_looked_at_always_and_contents_when_they_changed(
    fetch: Callable[..., models.Manifest], folder: Path
) -> None:
    fetch()
    path = folder / "mert-95m" / "model.safetensors"
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert models.find_model("mert-95m", folder) is not None  # cheap: size and time are the same
    fault = "model.safetensors has other contents than were fetched"
    assert models.verify_model("mert-95m", folder) == [fault]
    os.utime(path)
    assert fault in str(models.why_missing("mert-95m", folder))
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))  # as a restored backup may have it: noted once found right
    assert models.find_model("mert-95m", folder) is not None
    manifest = read_manifest("mert-95m", folder)
    assert manifest is not None
    assert {file.name: file.mtime_ns for file in manifest.files}["model.safetensors"] == 1


def test_removing_leaves_nothing_but_what_was_trusted(
    fetch: Callable[..., models.Manifest], server: ModelServer, folder: Path, weights: bytes
) -> None:
    with pytest.raises(ModelError, match="nothing to remove"):
        models.remove_model("mert-95m", folder)
    assert not folder.exists()
    fetch()
    server.break_after[WEIGHTS] = [5 * BLOCK] * 4
    with pytest.raises(ModelError, match="broke off"):
        fetch(force=True)
    assert models.remove_model("mert-95m", folder) > len(weights) + 4 * BLOCK
    left = sorted(path.name for path in folder.iterdir())
    assert left == [".incoming", ".mert-95m.lock", "mert-95m.pins.json"]
    assert not list((folder / ".incoming").iterdir())


# Importing


@pytest.fixture
def stick(tmp_path: Path, weights: bytes) -> Path:
    """What a user has on a stick: the files as they were downloaded elsewhere."""
    stick = tmp_path / "stick"
    stick.mkdir()
    (stick / WEIGHTS).write_bytes(weights)
    (stick / "config.json").write_bytes(CONFIG)
    return stick


def take(source: Path, folder: Path, name: str | None = None) -> list[models.Manifest]:
    return [
        import_model(model, weights, folder, accepted=True)
        for model, weights in recognise(source, folder, name)
    ]


def test_a_model_is_imported_from_a_folder(folder: Path, model: Model, stick: Path) -> None:
    write_catalogue(folder, model)
    (manifest,) = take(stick, folder)
    assert manifest.origin == os.fspath(stick)
    assert_whole(folder)
    assert (stick / WEIGHTS).exists()


def test_a_renamed_file_is_known_by_its_tensors(
    folder: Path, model: Model, stick: Path, tmp_path: Path
) -> None:
    write_catalogue(folder, model)
    deep = stick / "m-a-p" / "MERT-v1-95M" / "resolve" / model.revision  # as a mirror has it
    deep.mkdir(parents=True)
    (stick / WEIGHTS).rename(deep / "mert (1).bin")
    (stick / "config.json").rename(deep / "config.json")
    take(stick, folder)
    assert_whole(folder)
    models.remove_model("mert-95m", folder, forget=True)
    take(deep / "mert (1).bin", folder, "mert-95m")
    assert_whole(folder)


def test_converted_weights_are_imported_and_checked_by_their_manifest(
    folder: Path, model: Model, stick: Path, tmp_path: Path
) -> None:
    write_catalogue(folder, model)
    take(stick, folder)
    other = tmp_path / "other"
    write_catalogue(other, model)
    (manifest,) = take(folder / "mert-95m", other)
    by_name = {file.name: file for file in manifest.files}
    assert by_name["model.safetensors"].first_use  # nobody published a digest of this one
    assert by_name["model.safetensors"].original is None
    assert_whole(other)
    path = folder / "mert-95m" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    third = tmp_path / "third"
    write_catalogue(third, model)
    with pytest.raises(ModelError, match="differs from the manifest beside it"):
        take(folder / "mert-95m", third)


def test_jmla_in_its_wrapping_is_known_and_unwrapped(folder: Path, tmp_path: Path) -> None:
    wrapped = {
        "state_dict": {
            "backbone.pos_embed": torch.zeros(1, 936, 768),
            "backbone.ln": torch.ones(2),
        },
        "author": "MMSelfSup",
    }
    torch.save(wrapped, tmp_path / "epoch_20.pth")
    ((known, path),) = recognise(tmp_path / "epoch_20.pth", folder)
    assert known.name == "jmla"
    with pytest.raises(ModelError, match="345,508,821: it is not the file that was published"):
        import_model(known, path, folder, accepted=True)
    convert(path, tmp_path / "epoch_20.safetensors")
    ((known, path),) = recognise(tmp_path / "epoch_20.safetensors", folder)
    import_model(known, path, folder, accepted=True)
    tensors = load_file(folder / "jmla" / "epoch_20.safetensors")
    assert set(tensors) == {"backbone.pos_embed", "backbone.ln"}


def test_what_cannot_be_imported_is_said(
    folder: Path, model: Model, stick: Path, tmp_path: Path
) -> None:
    write_catalogue(folder, model)
    with pytest.raises(ModelError, match="there is no such file or folder"):
        recognise(tmp_path / "away", folder)
    (stick / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json: is missing; mert-95m needs beside"):
        take(stick, folder)
    (stick / WEIGHTS).write_bytes(b"PK\3\4 no zip")
    with pytest.raises(ModelError, match=r"holds no model that we know: .*is damaged"):
        recognise(stick, folder)
    save_file({"x": torch.zeros(1)}, stick / "x.safetensors")
    (stick / WEIGHTS).unlink()
    with pytest.raises(ModelError, match=r"x\.safetensors: not of mert-95m"):
        recognise(stick, folder, "mert-95m")
    (stick / "x.safetensors").unlink()
    with pytest.raises(ModelError, match=r"there is no \.bin"):
        recognise(stick, folder)


# Converting


def test_every_kind_of_checkpoint_is_converted_exactly(tmp_path: Path) -> None:
    base = torch.randn(10, 6)
    kinds = make_tensors() | {
        "tied": base,
        "tied again": base,
        "a row": base[2],
        "turned": base.t(),
        "brain": torch.randn(3).bfloat16(),
        "empty": torch.zeros(0, 4),
        "nan": torch.tensor([float("nan"), 1.0]),
    }
    for number, options in enumerate(({}, {"_use_new_zipfile_serialization": False})):
        source, target = tmp_path / f"{number}.bin", tmp_path / f"{number}.safetensors"
        torch.save(kinds, source, **options)
        convert(source, target)
        copied = load_file(target)
        assert set(copied) == set(kinds)
        for name, tensor in kinds.items():
            assert copied[name].dtype == tensor.dtype
            assert torch.equal(copied[name].nan_to_num(), tensor.nan_to_num())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>Please log in</html>",
        b"PK\x03\x04" + bytes(50),
        pickle.dumps({"a": 1}),
        pickle.dumps([Evil]),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"x\.bin: "):
        read_checkpoint(path)


def test_checkpoints_cut_or_damaged_anywhere_are_refused_or_read(
    tmp_path: Path, weights: bytes
) -> None:
    path = tmp_path / "x.bin"
    for length in range(0, len(weights), len(weights) // 20 or 1):
        path.write_bytes(weights[:length])
        with pytest.raises(ModelError):
            read_checkpoint(path)
    for at in range(0, 1500, 25):  # the pickle lies at the front
        damaged = bytearray(weights)
        damaged[at] ^= 0xFF
        path.write_bytes(damaged)
        try:
            read_checkpoint(path)  # a number of a tensor, say, is not noticed: the digest is there
        except ModelError:
            continue


def test_lists_and_other_things_are_no_tensors(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    for data, says in (
        ([torch.zeros(1)], "holds no tensors by name"),
        ({}, "holds no tensors by name"),
        ({"a": 3}, "a is no tensor but int"),
        ({"state_dict": {"a": torch.eye(3).to_sparse()}}, "sparse"),
    ):
        torch.save(data, path)
        with pytest.raises(ModelError, match=says):
            read_checkpoint(path)


# The commands


def test_fetch_list_verify_remove_from_the_command_line(
    run: Callable[..., Result], server: ModelServer, folder: Path
) -> None:
    listed = run("list")
    assert listed.exit_code == 0
    for word in ("mert-330m", "CC-BY-NC-4.0", "not fetched", "musicnn"):
        assert word in listed.output
    done = run("fetch", "mert-95m", "--mirror", server.url, "--accept-licence")
    assert done.exit_code == 0, done.output
    assert "not for commercial use" in done.output
    assert "trusted as it came" in done.output
    assert "mert-95m: ready in " in done.output
    assert " fetched " in run("list").output
    rows = [json.loads(line) for line in run("list", "--json").output.splitlines()]
    row = next(row for row in rows if row.get("model") == "mert-95m")
    assert row["state"] == "fetched"
    path = Path(row["path"])
    assert any("head" in row for row in rows)
    assert any("file" in row for row in rows)
    verified = run("verify")
    assert (verified.exit_code, verified.output) == (0, "bundled: ok\nmert-95m: ok\n")
    (path / "config.json").write_text("{}")
    damaged = run("verify", "mert-95m")
    assert damaged.exit_code == 1
    assert "mert-95m: config.json has 2 bytes instead of" in damaged.output
    assert "damaged" in run("list").output
    as_json = json.loads(run("verify", "mert-95m", "--json").output)
    assert as_json["ok"] is False
    assert run("verify", "clap").exit_code == 1
    assert isinstance(run("remove", "mert-95m").exception, ConfigError)  # no terminal, no --yes
    removed = run("remove", "mert-95m", "--yes")
    assert removed.exit_code == 0
    assert "MB freed" in removed.output
    assert not path.exists()


def test_without_a_terminal_a_licence_is_accepted_by_an_option(
    run: Callable[..., Result], server: ModelServer, stick: Path
) -> None:
    refused = run("fetch", "mert-95m", "--mirror", server.url)
    assert isinstance(refused.exception, ModelError)
    assert "--accept-licence" in str(refused.exception)
    assert not server.seen
    assert isinstance(run("import", stick).exception, ModelError)
    assert run("import", stick, "--accept-licence").exit_code == 0
    assert run("verify", "mert-95m").exit_code == 0
    assert "model: there is no such" in str(run("fetch", "model").exception)


def test_one_model_that_fails_does_not_stop_the_others(
    run: Callable[..., Result], server: ModelServer
) -> None:
    server.always["tokenizer.json"] = 404
    done = run("fetch", "clap", "mert-95m", "--mirror", server.url, "--accept-licence")
    assert done.exit_code == 1
    assert "status 404" in done.output
    assert "mert-95m: ready" in done.output


def test_on_a_terminal_the_licence_is_asked_for_and_progress_shown(
    server: ModelServer, model: Model, tmp_path: Path
) -> None:
    import pty

    folder = tmp_path / "reclass-plex" / "models"
    write_catalogue(folder, model)
    for answer, accepted in (("\n", False), ("yes\n", True)):
        args, environment = command(tmp_path, "fetch", "mert-95m", "--mirror", server.url)
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            args,
            env=environment | {"TERM": "xterm", "COLUMNS": "100"},
            stdin=theirs,
            stderr=theirs,
            stdout=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.write(ours, answer.encode())
        shown = b""
        try:
            while block := os.read(ours, 4096):
                shown += block
        except OSError:  # how a pseudo-terminal says that the other side has ended
            pass
        os.close(ours)
        assert process.wait() == (0 if accepted else 1)
        text = shown.decode()
        assert "Do you accept this licence?" in text
        assert (models.find_model("mert-95m", folder) is not None) is accepted
        assert ("mert-95m/" in text) is accepted  # the bar's name


def test_errors_are_ours(run: Callable[..., Result], tmp_path: Path) -> None:
    for args in (["import", tmp_path / "none"], ["fetch", "x"], ["verify", "x"], ["remove", "x"]):
        assert isinstance(run(*args).exception, ReclassError)
    assert hash_file(Path(__file__)) == hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
