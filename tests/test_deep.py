from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_approaches import Memory, accuracy, parts
from test_training_runs import SILENT, Child, call, results, wait_for_checkpoints
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from training_tables import make_table, write_folder

from reclass_plex.encoders.musicnn import CHECKPOINTS, load_musicnn
from reclass_plex.errors import ConfigError, ModelError
from reclass_plex.fetched import FetchedEncoders
from reclass_plex.heads import load_head
from reclass_plex.listening import Listening
from reclass_plex.networks import ResnetSpec, tensor_shapes
from reclass_plex.networks.musicnn import MusicnnNetwork, published_bodies
from reclass_plex.profiles import Profile, read_spec
from reclass_plex.records import Excerpt, Waveform
from reclass_plex.stage_heads import load_stage_heads
from reclass_plex.training import runs
from reclass_plex.training.approaches import Settings, build, make_settings
from reclass_plex.training.approaches.augment import disturb_spectrograms
from reclass_plex.training.approaches.base import State
from reclass_plex.training.cascade import combine_runs, write_ensemble
from reclass_plex.training.comparison import read_predictions
from reclass_plex.training.evaluating import evaluate_model, load_trained
from reclass_plex.training.extraction import read_table
from reclass_plex.training.extraction_sets import choose_sets, load_extractor
from reclass_plex.training.inspection import inspect_model
from reclass_plex.training.run_config import RunConfig, Source, read_tables
from reclass_plex.training.table import FeatureTable, fingerprint

FRAMES, BANDS = 187, 96
TINY = {"width": 4, "batch": 8, "epochs": 8, "backbone": "msd", "mixup": 0.0, "dropout": 0.0}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


def make_mel(recordings: int = 30, *, split: bool = False, tags: bool = False) -> FeatureTable:
    """Return spectrograms whose loud bands tell the genre, in half precision."""
    table = make_table(recordings, split=split, tags=tags)
    generator = np.random.default_rng(1)
    rows = generator.random((recordings, FRAMES, BANDS)).astype(np.float32)
    for i in range(recordings):
        rows[i, :, 30 * (i % 3) + 5 : 30 * (i % 3) + 25] += 1.5
    return replace(
        table, name="mel", rows=rows.reshape(recordings, -1).astype(np.float16), rate=16_000
    )


def small(name: str, **given: object) -> Settings:
    rate = {"cnn": 0.02, "transfer": 0.05}[name]
    return make_settings(name, {**TINY, "learning_rate": rate, **given})


# --- networks


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_it_begins_as_the_published_musicnn(checkpoint: str) -> None:
    patches = torch.rand(3, FRAMES, BANDS, generator=torch.manual_seed(3)) * 4
    (one,) = (known for known in CHECKPOINTS if known == checkpoint)
    spec, tensors = published_bodies((one,))
    network = MusicnnNetwork(spec, 10)
    missing, odd = network.load_state_dict(tensors, strict=False)
    assert (sorted(missing), odd) == (["head.bias", "head.weight"], [])
    expected = load_musicnn(one).encode(patches).penultimate
    with torch.no_grad():
        torch.testing.assert_close(network.penultimate(patches), expected, rtol=1e-4, atol=1e-4)
        network.freeze_front()
        torch.testing.assert_close(network.penultimate(patches), expected, rtol=1e-4, atol=1e-4)
    learned = {name for name, p in network.named_parameters() if p.requires_grad}
    assert not any("branches" in name for name in learned)
    assert {"bodies.0.mid.0.weight", "bodies.0.dense.weight", "head.weight"} <= learned


def test_a_spec_says_what_its_tensors_are_without_making_them() -> None:
    spec = ResnetSpec(frames=FRAMES, bands=BANDS, width=3)
    shapes = tensor_shapes(spec, 4)
    assert shapes["stem.0.weight"] == (3, 1, 5, 5)
    assert shapes["head.weight"] == (4, 2 * 24)


def test_disturbed_spectrograms_lose_bars_and_nothing_else() -> None:
    windows = torch.rand(6, FRAMES, BANDS, generator=torch.manual_seed(3)) + 1
    given = windows.clone()
    disturbed = disturb_spectrograms(windows, np.random.default_rng(5))
    assert torch.equal(windows, given)
    assert torch.equal(disturbed, disturb_spectrograms(windows, np.random.default_rng(5)))
    assert not torch.equal(disturbed[0], disturbed[1])
    for before, after in zip(windows, disturbed, strict=True):
        mean = before.mean()
        hidden = torch.isclose(after, mean, rtol=1e-6)
        bands, frames = hidden.all(0), hidden.all(1)
        assert bands.sum() <= 2 * (BANDS // 8)
        assert frames.sum() <= 2 * (FRAMES // 6)
        kept = after[~frames][:, ~bands]
        assert not torch.isclose(kept, mean, rtol=1e-7).all(0).any()
        # what is kept are the window's own frames, turned
        rows = {tuple(row) for row in before[:, ~bands].tolist()}
        assert all(tuple(row) in rows for row in kept.tolist())


# --- fits


@pytest.mark.parametrize(("name", "tags"), [("cnn", False), ("cnn", True), ("transfer", False)])
def test_networks_learn_from_spectrograms(name: str, tags: bool) -> None:
    train, held = parts(make_mel(tags=tags))
    fit = build(name, small(name, epochs=12), device="cpu", threads=1).fit(
        train, held, None, Memory()
    )
    # Of tags a tenth is chance, and always saying no reaches 0.6.
    assert accuracy(fit, held) > (0.75 if tags else 0.85)
    assert fit.model.kind == "network"
    assert fit.model.parameters > 1000


@pytest.mark.parametrize(("name", "tuned"), [("cnn", True), ("cnn", False), ("transfer", True)])
def test_a_fit_that_died_goes_on_to_the_same_bits(name: str, tuned: bool) -> None:
    train, held = parts(make_mel(12))
    settings = small(name, mixup=0.4, dropout=0.2, average=0.4, epochs=5)
    approach = build(name, settings, device="cpu", threads=1)
    tune, rounds = (held, None) if tuned else (None, 5)
    whole = approach.fit(train, tune, rounds, Memory())
    assert len(whole.log) == 5
    for die_at in (1, 4):  # of 5 epochs the last two are averaged
        first = Memory(die_at=die_at)
        with pytest.raises(KeyboardInterrupt):
            approach.fit(train, tune, rounds, first)
        rest = Memory(first.state)
        resumed = approach.fit(train, tune, rounds, rest)
        assert len(rest.lines) == 5 - die_at
        assert resumed.rounds == whole.rounds
        for key, tensor in whole.model.tensors.items():
            assert torch.equal(resumed.model.tensors[key], tensor), key
        untimed = [replace(line, seconds=0) for line in whole.log]
        assert [replace(line, seconds=0) for line in resumed.log] == untimed


class Every(Memory):
    """Keeps all states."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[State] = []

    def save(self, state: State, *, done: bool = False) -> None:
        self.states.append(state)


def test_the_weights_of_the_last_epochs_are_averaged() -> None:
    train, _ = parts(make_mel(18))
    memory = Every()
    settings = small("cnn", average=0.5)
    fit = build("cnn", settings, device="cpu", threads=1).fit(train, None, 6, memory)
    later = [state.tensors["now.stem.0.weight"] for state in memory.states[3:]]
    mean = torch.stack(later).mean(0)
    torch.testing.assert_close(fit.model.tensors["stem.0.weight"], mean, rtol=1e-4, atol=1e-6)
    assert not torch.equal(later[0], later[-1])
    rates = [line.learning_rate for line in fit.log]
    assert rates[3:] == [settings.learning_rate * 0.1] * 3


def test_what_was_trained_before_is_left_alone_until_the_head_knows_something() -> None:
    train, held = parts(make_mel(9))
    memory = Every()
    build("transfer", small("transfer", epochs=4), device="cpu", threads=1).fit(
        train, held, None, memory
    )
    _, published = published_bodies(("msd",))
    alone, late = memory.states[0].tensors, memory.states[-1].tensors
    moved = [
        name for name, tensor in published.items() if not torch.equal(alone[f"now.{name}"], tensor)
    ]
    assert moved == []
    assert not torch.equal(late["now.bodies.0.dense.weight"], published["bodies.0.dense.weight"])
    front = "bodies.0.branches.0.conv.weight"
    assert torch.equal(late[f"now.{front}"], published[front])
    whole = Every()
    settings = small("transfer", unfreeze="all", epochs=2, average=0)
    build("transfer", settings, device="cpu", threads=1).fit(train, held, None, whole)
    assert not torch.equal(whole.states[-1].tensors[f"now.{front}"], published[front])


def test_where_tuning_stalls_averaging_begins_and_then_it_ends() -> None:
    train, held = parts(make_mel(18))
    wrong = replace(held, targets=(held.targets + 1) % 3)  # the better, the worse
    settings = small("cnn", epochs=40, patience=3, average=0.25)
    fit = build("cnn", settings, device="cpu", threads=1).fit(train, wrong, None, Memory())
    losses = [line.tune_loss for line in fit.log if line.tune_loss is not None]
    assert fit.rounds == int(np.argmin(losses)) + 1
    assert len(fit.log) < 20
    none = small("cnn", epochs=40, patience=3, average=0)
    fit = build("cnn", none, device="cpu", threads=1).fit(train, wrong, None, Memory())
    assert len(fit.log) == fit.rounds + 3


# --- runs


def begin(run: Path, source: Path, name: str, **given: object) -> Path:
    sources = (Source(folder=source),)
    config = RunConfig(
        approach=name,
        settings=small(name, **given),
        sources=sources,
        fingerprint=fingerprint(read_tables(name, sources)[0]),
        device="cpu",
        threads=1,
        licence="CC0-1.0",
        started="2026-11-26",
        command="reclass-plex train",
        versions={"torch": "2"},
        folds=2,
    )
    runs.start_run(run, config)
    return run


@pytest.fixture(scope="module")
def mel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(make_mel(36, split=True), tmp_path_factory.mktemp("tables") / "mel")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, mel: Path) -> Path:
    run = begin(tmp_path_factory.mktemp("runs") / "cnn", mel, "cnn", epochs=12)
    runs.finish_run(run, SILENT)
    return run


def test_long_rows_stay_on_disk(mel: Path) -> None:
    table = read_table(mel)
    assert isinstance(table.rows, np.memmap)
    assert table.rows.dtype == np.float16


def test_a_run_writes_a_head_like_any_other(finished: Path, mel: Path) -> None:
    table = read_table(mel)
    head = load_head(finished)
    assert (head.card.kind, head.card.features, head.card.dims) == ("network", "mel", 187 * 96)
    assert isinstance(head.card.network, ResnetSpec)
    asked = read_predictions(finished)
    places = [table.keys.index(key) for key in asked.keys]
    told = head.predict(torch.from_numpy(table.rows[places].astype(np.float32))).numpy()
    np.testing.assert_allclose(told, asked.probabilities, atol=1e-4)
    answers, figures = evaluate_model(load_trained(finished), table, "test")
    assert figures["accuracy"]["value"] > 0.85
    np.testing.assert_allclose(answers.probabilities, asked.probabilities, atol=1e-4)
    found = inspect_model(finished)
    assert found.problems == ()
    learned = sum(tensor.numel() for tensor in head._tensors.values())
    assert int(found.facts["parameters"]) == learned - 2 * 96
    assert {path.name for path in finished.iterdir()} >= {"report.html", "log.csv", "cost.json"}
    cost = json.loads((finished / "cost.json").read_text())
    assert cost["parameters"] == int(found.facts["parameters"])
    saved = finished.parent / "saved"
    head.save(saved)
    assert (saved / "head.safetensors").read_bytes() == (finished / "head.safetensors").read_bytes()


def test_a_transferred_model_is_compared_with_another(
    finished: Path, mel: Path, tmp_path: Path
) -> None:
    run = begin(tmp_path / "transfer", mel, "transfer", epochs=3)
    runs.finish_run(run, SILENT)
    assert load_trained(run).dims == 187 * 96
    told = json.loads(call("compare", finished, run, "--json").stdout)
    assert told["recordings"] > 0
    assert "works with this installation" in call("inspect", run).stdout


def test_a_run_that_is_killed_ends_in_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    killed.mkdir()
    shutil.copy(finished / "run.json", killed)
    child = Child()
    try:
        pid = child.start(killed)
        wait_for_checkpoints(killed / "checkpoint", 1)
        time.sleep(0.03)
        os.kill(pid, signal.SIGKILL)
        assert child.read() == -signal.SIGKILL, "the kill came too late"
    finally:
        child.close()
    assert (killed / "checkpoint" / "in-hand.safetensors").exists()
    runs.finish_run(killed, SILENT)
    assert results(killed) == results(finished)


def test_a_run_of_tags(tmp_path: Path) -> None:
    table = make_mel(36, split=True, tags=True)
    source = write_folder(table, tmp_path / "mel")
    run = begin(tmp_path / "run", source, "cnn", epochs=4)
    figures = runs.finish_run(run, SILENT)
    _, asked = evaluate_model(load_trained(run), table, "test")
    assert asked["roc_auc"]["value"] == pytest.approx(figures["roc_auc"]["value"])
    assert inspect_model(run).facts["kind"] == "tags, network"


def test_what_does_not_go_together_is_refused(mel: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=r"mel is no vector.*take cnn, transfer"):
        call("train", "--approach", "fma-mlp", "--table", mel, "--out", out)
    vectors = write_folder(make_table(), tmp_path / "fma518")
    with pytest.raises(ConfigError, match="cnn reads features of mel, not fma518"):
        call("train", "--approach", "cnn", "--table", vectors, "--out", out)
    broken = tmp_path / "broken"
    shutil.copytree(finished, broken)
    card = json.loads((broken / "card.json").read_text())
    for network, reason in (
        ({"architecture": "resnet", "frames": 187, "bands": 95}, "as many numbers"),
        ({"architecture": "resnet", "frames": 187, "bands": 96, "width": 5}, "stem"),
        ({"architecture": "resnet", "frames": 187, "bands": 96, "width": 10**9}, "width"),
        ({"architecture": "pickle", "frames": 187, "bands": 96}, "network"),
        (None, "'network' belongs"),
    ):
        (broken / "card.json").write_text(json.dumps(card | {"network": network}))
        with pytest.raises(ModelError, match=reason):
            load_head(broken)


# --- an ensemble


def test_a_network_is_a_stage_of_an_ensemble(tmp_path: Path) -> None:
    mel = write_folder(make_mel(36), tmp_path / "mel")
    vectors = write_folder(make_table(36, dims=500, name="musicnn"), tmp_path / "musicnn")
    folders = [tmp_path / "a", tmp_path / "b"]
    options = ("--folds", "2", "--epochs", "2")
    call("train", "--approach", "musicnn", "--table", vectors, "--out", folders[0], *options)
    runs.finish_run(begin(folders[1], mel, "cnn", epochs=2), SILENT)
    write_ensemble(tmp_path / "ensemble", combine_runs(folders))
    spec = read_spec(tmp_path / "ensemble" / "ensemble.json")
    assert [stage.features for stage in spec.stages] == ["musicnn", "mel"]
    profile = Profile("own", spec, (tmp_path / "ensemble" / "heads",), "sums")
    heads, faults = load_stage_heads(profile)
    assert faults == {}
    samples = np.random.default_rng(0).standard_normal(7 * 22_050).astype(np.float32) * 0.1
    waveform = Waveform(samples, 22_050, 0.0, 7.0)
    listening = Listening(waveform, FetchedEncoders(None, "cpu"), "cpu")
    heard = listening.features(spec.stages[1], heads["mel"])
    (features,) = choose_sets(["mel"], Excerpt(30.0))
    np.testing.assert_array_equal(heard.numpy(), load_extractor(features)(waveform))
    assert heads["mel"].predict(heard).shape == (len(heard), 3)
