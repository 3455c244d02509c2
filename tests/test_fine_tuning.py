from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_approaches import Memory
from test_extraction import MIDDLE, collection, extract, models
from test_training_runs import call
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from reclass_plex.audio import decode_excerpt, resample
from reclass_plex.encoders.opening import open_encoder
from reclass_plex.encoders.top import Top, parse_top
from reclass_plex.errors import ConfigError, ModelError
from reclass_plex.heads import load_head
from reclass_plex.networks import BlocksSpec
from reclass_plex.networks.blocks import BlocksNetwork, published_blocks
from reclass_plex.training.approaches import Origin, build, make_settings
from reclass_plex.training.approaches.base import Approach
from reclass_plex.training.approaches.gpu import gpu_load, utilisation
from reclass_plex.training.datasets.collection import Collection
from reclass_plex.training.evaluating import evaluate_model, load_trained
from reclass_plex.training.extraction import read_table
from reclass_plex.training.extraction_sets import choose_sets
from reclass_plex.training.runs import examples
from reclass_plex.training.table import FeatureTable

__all__ = ["collection", "models"]  # fixtures

SETS = ("mert-95m-top2", "jmla-top1")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tables(collection: Collection, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("features")
    for features in choose_sets(SETS, MIDDLE, folder=models, device="cpu"):
        extract(collection, features, out)
    return out


def read(tables: Path, name: str) -> FeatureTable:
    return read_table(tables / name)


def approach(table: FeatureTable, models: Path) -> Approach:
    settings = make_settings("mert", {"epochs": 5, "batch": 4, "average": 0.4}, table.name)
    origin = Origin(table.name, table.versions, models)
    return build("mert", settings, device="cpu", threads=1, origin=origin)


def test_names_of_hidden_states() -> None:
    assert parse_top("mert-330m-top12") == Top("mert-330m", 12)
    assert parse_top("jmla-top1") == Top("jmla", 1)
    for name in ("mert-95m", "mert-95m-top0", "clap-top1", "jmla-top", "jmla-top1 "):
        assert parse_top(name) is None


@pytest.mark.parametrize("name", SETS)
def test_blocks_go_on_where_the_lower_part_stopped(
    name: str, tables: Path, models: Path, collection: Collection
) -> None:
    table = read(tables, name)
    top = parse_top(name)
    assert top is not None
    assert table.rows.dtype == np.float16
    folder = models / top.model
    spec, tensors = published_blocks(top, folder, table.dims)
    assert (spec.depth, spec.frames * spec.bands) == (top.depth, table.dims)
    network = BlocksNetwork(spec, 2)
    missing, odd = network.load_state_dict(tensors, strict=False)
    assert (sorted(missing), odd) == (["head.bias", "head.weight", "scores"], [])
    encoder = open_encoder(folder, dtype=torch.float32)
    path = collection.recordings[0].path
    assert path is not None
    samples = torch.from_numpy(resample(decode_excerpt(path, MIDDLE), encoder.rate).samples)
    expected = encoder.encode(encoder.cut(samples))[0, -1]  # the last layer's mean over time
    stream = torch.from_numpy(table.rows[:1].astype(np.float32)).view(1, spec.frames, spec.bands)
    with torch.no_grad():
        for block in network.blocks:
            stream = block(stream)
        found = network.norm(stream)[0, spec.skipped :].mean(0)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.01)  # of half precision


def test_a_fit_that_died_goes_on_to_the_same_bits(tables: Path, models: Path) -> None:
    table = read(tables, SETS[0])
    train, held = (examples(table, np.arange(*ends), False) for ends in ((0, 6), (6, 9)))
    whole = approach(table, models).fit(train, held, None, Memory())
    first = Memory(die_at=3)
    with pytest.raises(KeyboardInterrupt):
        approach(table, models).fit(train, held, None, first)
    resumed = approach(table, models).fit(train, held, None, Memory(first.state))
    for key, tensor in whole.model.tensors.items():
        assert torch.equal(resumed.model.tensors[key], tensor), key
    _, published = published_blocks(Top("mert-95m", 2), models / "mert-95m", table.dims)
    assert first.state is not None
    late = first.state.tensors
    assert any(not torch.equal(late[f"now.{n}"], tensor) for n, tensor in published.items())


@pytest.mark.parametrize(("way", "name"), [("mert", SETS[0]), ("transfer", SETS[1])])
def test_fine_tuning_is_a_run_like_any_other(
    way: str, name: str, tables: Path, models: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"models:\n  folder: {models}\n")
    out = tmp_path / "run"
    options = ("--protocol", "folds", "--folds", "2", "--epochs", "2", "--batch", "4")
    table = ("--table", tables / name)
    call("train", "--approach", way, *table, "--out", out, *options, "--config", config)
    card = load_head(out).card
    assert isinstance(card.network, BlocksSpec)
    assert card.features == name
    answers, _ = evaluate_model(load_trained(out), read(tables, name))
    assert len(answers.keys) == 9
    assert (out / "report.html").exists()


def test_what_does_not_go_together_is_refused(
    tables: Path, models: Path, collection: Collection, tmp_path: Path
) -> None:
    table = read(tables, SETS[0])
    train = examples(table, np.arange(6), False)
    weights = {name: "0" * 64 for name in table.versions if name.endswith(".safetensors")}
    other = replace(table, versions={**table.versions, **weights})
    with pytest.raises(ModelError, match="mert-95m: has other weights here"):
        approach(other, models).fit(train, None, 1, Memory())
    with pytest.raises(ModelError, match="mert-95m"):
        approach(table, tmp_path).fit(train, None, 1, Memory())
    (deep,) = choose_sets(["mert-95m-top9"], MIDDLE, folder=models, device="cpu")
    with pytest.raises(ModelError, match="has 3 blocks, and 9 are to learn"):
        extract(collection, deep, tmp_path)
    for way in ("cnn", "jmla", "fma-mlp"):
        with pytest.raises(ConfigError, match="mert-95m-top2"):
            call("train", "--approach", way, "--table", tables / SETS[0], "--out", tmp_path / "o")
    both = [word for name in SETS for word in ("--table", tables / name)]
    with pytest.raises(ConfigError, match="cannot be a stage yet"):
        call("train", "--approach", "progressive", *both, "--out", tmp_path / "o")


def test_a_gpu_that_does_not_tell_how_busy_it_is_ends_no_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class NVMLError(Exception):
        """As pynvml has it, and no RuntimeError: a Jetson lacks the library."""

    def refuse() -> int:
        raise NVMLError("Not Supported")

    monkeypatch.setattr(torch.cuda, "utilization", refuse)
    memory, busy = gpu_load("cuda")
    assert memory is not None
    assert busy is None or 0 <= busy <= 100


def test_how_busy_a_gpu_is(tmp_path: Path) -> None:
    load = tmp_path / "load"
    load.write_text("457\n")
    assert utilisation("no-such-command", load) == 45.7
    load.write_text("?")
    assert utilisation("no-such-command", load) is None
    told = tmp_path / "nvidia-smi"
    told.write_text(f"#!{sys.executable}\nprint(37)\nprint(99)\n")
    told.chmod(0o755)
    assert utilisation(str(told), tmp_path / "none") == 37
    told.write_text(f"#!{sys.executable}\nprint('[N/A]')\n")
    assert utilisation(str(told), tmp_path / "none") is None
