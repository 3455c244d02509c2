"""Profiles: fetched encoders that vote, and what happens where they are missing or damaged."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from audio_files import synthesize
from model_server import ModelServer
from scipy.io import wavfile
from tiny_ensemble import GENRES, install_ensemble, make_head, make_stage, publish
from tiny_models import write_tiny_clap, write_tiny_jmla, write_tiny_mert
from typer.testing import CliRunner, Result

from reclass_plex.audio import decode_excerpt, resample
from reclass_plex.cli import app
from reclass_plex.config import EnsembleOptions
from reclass_plex.doctor import diagnose
from reclass_plex.encoders import Readout
from reclass_plex.encoders.opening import encoder_footprint, open_encoder
from reclass_plex.ensemble import TEXT_STAGE, Ensemble
from reclass_plex.errors import ModelError
from reclass_plex.heads import Head
from reclass_plex.memory import GIB, MARGIN
from reclass_plex.models import find_model, write_sums
from reclass_plex.profiles import (
    SPEC,
    EnsembleSpec,
    ensemble_folder,
    find_profile,
    load_ensemble,
    read_spec,
)
from reclass_plex.records import Excerpt, Waveform

MUSIC = Path(__file__).parent.parent / "demo" / "HSR - Rock.mp3"
Floats = npt.NDArray[np.float64]
READOUT = Readout((1, 2), (0.25, 0.75))
OPTIONS = EnsembleOptions(taxonomy="gtzan", profile="gpu")


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    with ModelServer() as running:
        yield running


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of fetched models, as a user has it."""
    for name in ("DATA", "CONFIG", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", os.fspath(tmp_path / name.lower()))
    monkeypatch.delenv("RECLASS_PLEX_CONFIG", raising=False)
    return tmp_path / "data" / "reclass-plex" / "models"


@pytest.fixture
def run(models: Path) -> Callable[..., Result]:
    def invoke(*args: object) -> Result:
        return CliRunner().invoke(app, [str(arg) for arg in args])

    return invoke


@pytest.fixture
def gpu(models: Path) -> EnsembleSpec:
    return install_gpu(models)


def install_gpu(models: Path) -> EnsembleSpec:
    """Install a profile of MusiCNN, MERT and OpenJMLA, trained on nothing; no weights yet."""
    heads = [
        make_head("mert", "mert-95m", 32, READOUT, seed=1),
        make_head("jmla", "jmla", 64, None, seed=2),
    ]
    stages = [
        make_stage("mert-95m", "mert-95m", "mert", (0.5, 0.5)),
        make_stage("jmla", "jmla", "jmla", (0.25, 0.35, 0.4)),
    ]
    return install_ensemble(models, "gpu", heads, stages)


@pytest.fixture(scope="module")
def fetched_once(server: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fetched")
    models = root / "reclass-plex" / "models"
    install_gpu(models)
    write_tiny_mert(root / "mert")
    write_tiny_jmla(root / "jmla")
    publish("mert-95m", root / "mert", server, models)
    publish("jmla", root / "jmla", server, models)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", os.fspath(root))
        for name in ("mert-95m", "jmla"):
            fetch = ["models", "fetch", name, "--mirror", server.url, "--accept-licence"]
            result = CliRunner().invoke(app, fetch)
            assert result.exit_code == 0, result.output
    return models


@pytest.fixture
def fetched(gpu: EnsembleSpec, models: Path, fetched_once: Path) -> Path:
    """The same with its weights, which the command fetched: a copy of the test's own."""
    shutil.copytree(fetched_once, models, dirs_exist_ok=True)
    return models


def rewrite(models: Path, spec: EnsembleSpec | None = None, head: Head | None = None) -> Path:
    """Change the installed ensemble, as if it had been installed like that."""
    folder = ensemble_folder("gtzan", "gpu", models)
    if spec is not None:
        (folder / SPEC).write_text(spec.model_dump_json(), encoding="utf-8")
    if head is not None:
        head.save(folder / "heads" / head.card.name)
    write_sums(folder)
    return folder


def listen(path: Path = MUSIC) -> Waveform:
    return decode_excerpt(path, Excerpt(30.0))


def softmax(logits: Floats) -> Floats:
    odds = np.exp(logits - logits.max())
    result: Floats = odds / odds.sum()
    return result


def test_fetched_models_vote_from_the_command_line(
    fetched: Path, run: Callable[..., Result]
) -> None:
    result = run("classify", MUSIC, "--profile", "gpu", "--taxonomy", "gtzan", "--json", "--top", 3)
    assert result.exit_code == 0, result.output
    verdict = json.loads(result.stdout)
    assert [stage["name"] for stage in verdict["stages"]] == ["musicnn-few", "mert-95m", "jmla"]
    assert verdict["decided_by"] == "jmla"
    assert "left out" not in result.output


def test_a_fetched_encoder_votes_by_its_head_and_its_readout(fetched: Path) -> None:
    """The same from the parts, by hand: resample, cut, hidden states, weights, softmax."""
    waveform = listen()
    verdict, embeddings = Ensemble(OPTIONS, models=fetched).classify(waveform)
    heard = {score.name: score.confidence for score in verdict.votes[1].genres}

    folder = find_model("mert-95m", fetched)
    assert folder is not None
    encoder = open_encoder(folder)  # all layers: 0, 1, 2, 3
    assert encoder.layers == (0, 1, 2, 3)
    samples = torch.from_numpy(resample(waveform, 24_000).samples)
    windows = encoder.cut(samples)
    assert len(windows) > 1
    states = encoder.encode(windows).double().numpy()
    read = 0.25 * states[:, 1] + 0.75 * states[:, 2]
    head = make_head("mert", "mert-95m", 32, READOUT, seed=1)
    logits = read @ head._tensors["weight"].double().numpy()
    logs = np.log([softmax(row) for row in logits]).mean(0)
    expected = softmax(logs * 1.2)
    assert heard == {
        GENRES[i]: pytest.approx(expected[i], abs=2e-3) for i in range(10) if GENRES[i] in heard
    }
    assert sum(heard.values()) > 0.98
    vectors = {embedding.encoder: embedding.vector for embedding in embeddings}
    assert set(vectors) == {"musicnn-msd", "mert-95m", "jmla"}
    np.testing.assert_allclose(vectors["mert-95m"], read.mean(0), atol=5e-3)


def test_an_exit_before_spares_the_fetched_models(fetched: Path, gpu: EnsembleSpec) -> None:
    first = gpu.stages[0].model_copy(update={"exits": {"0.90": 0.0}})
    spec = gpu.model_copy(update={"stages": (first, *gpu.stages[1:])})
    rewrite(fetched, spec)
    verdict, _ = Ensemble(OPTIONS, models=fetched).classify(listen())
    assert [vote.stage for vote in verdict.votes] == ["musicnn-few"]


def test_missing_weights_leave_out_their_stage(
    fetched: Path, tmp_path: Path, run: Callable[..., Result]
) -> None:
    whole = Ensemble(OPTIONS, models=fetched).fingerprint
    assert run("models", "remove", "mert-95m", "--yes").exit_code == 0
    ensemble = Ensemble(OPTIONS, models=fetched)
    assert [stage.name for stage in ensemble.spec.stages] == ["musicnn-few", "jmla"]
    assert ensemble.spec.stages[-1].weights == pytest.approx((1.0 * 0.25 / 0.65, 0.4 / 0.65))
    assert ensemble.fingerprint != whole
    (note,) = ensemble.notes
    assert note.startswith("stage mert-95m is left out: mert-95m is not fetched")
    verdict, _ = ensemble.classify(listen())
    assert verdict.decided_by == "jmla"
    config = tmp_path / "config.yaml"
    config.write_text(
        f"ensemble: {{taxonomy: gtzan, profile: gpu}}\nmodels: {{folder: {fetched}}}\n"
    )
    said = [check.text for check in diagnose(config) if check.name == "ensemble"]
    assert any("mert-95m is left out" in text for text in said)


def test_a_profile_without_any_of_its_models_is_the_cpu_s(
    gpu: EnsembleSpec, models: Path, run: Callable[..., Result]
) -> None:
    ensemble = Ensemble(OPTIONS, models=models)
    assert ensemble.spec == load_ensemble("gtzan")
    assert "jmla is not fetched" in " ".join(ensemble.notes)
    assert "cpu decides" in ensemble.notes[-1]
    result = run("classify", MUSIC, "--profile", "gpu", "--taxonomy", "gtzan")
    assert result.exit_code == 0
    assert "reclass-plex models fetch mert-95m" in " ".join(result.stderr.split())


def test_a_profile_that_nobody_trained_is_the_cpu_s(models: Path) -> None:
    ensemble = Ensemble(EnsembleOptions(profile="full"), models=models)
    assert ensemble.spec == load_ensemble("default")
    assert "is not trained here" in ensemble.notes[0]
    assert not models.exists()


@pytest.mark.parametrize("fault", ["cut", "other"])
def test_damaged_weights_leave_out_their_stage(
    fetched: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Damage that keeps size and time, so that only reading shows it."""
    path = fetched / "mert-95m" / "model.safetensors"
    status, content = path.stat(), path.read_bytes()
    damaged = (
        content[:100] + bytes(len(content) - 100)
        if fault == "cut"
        else content[:8] + b"x" * (len(content) - 8)
    )
    path.write_bytes(damaged)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    ensemble = Ensemble(OPTIONS, models=fetched)
    before = ensemble.fingerprint
    verdict, _ = ensemble.classify(listen())  # not loaded before: heard without it
    assert [vote.stage for vote in verdict.votes] == ["musicnn-few", "jmla"]
    ensemble.classify(listen())
    assert caplog.text.count("without the stage mert-95m") == 1
    ensemble.load()
    assert "mert-95m is left out" in ensemble.notes[0]
    assert ensemble.fingerprint != before
    assert [stage.name for stage in ensemble.spec.stages] == ["musicnn-few", "jmla"]


def test_a_head_that_reads_layers_which_are_not_there(fetched: Path) -> None:
    head = make_head("mert", "mert-95m", 32, Readout((9,)), seed=1)
    rewrite(fetched, head=head)
    ensemble = Ensemble(OPTIONS, models=fetched)
    ensemble.load()
    assert "has the layers 0 to 3; asked for are (9,)" in ensemble.notes[0]


@pytest.mark.parametrize("content", ["", "{}", '{"taxonomy": "gtzan"}'])
def test_a_damaged_ensemble_is_named_and_the_cpu_decides(
    gpu: EnsembleSpec, models: Path, content: str
) -> None:
    path = ensemble_folder("gtzan", "gpu", models) / SPEC
    path.write_text(content, encoding="utf-8")
    write_sums(path.parent)
    with pytest.raises(ModelError, match=SPEC):
        read_spec(path)
    profile = find_profile("gtzan", "gpu", models)
    assert profile.spec == load_ensemble("gtzan")
    assert str(path) in profile.notes[0]


def test_stages_that_are_left_out_keep_the_others_in_proportion() -> None:
    spec = load_ensemble("gtzan")
    a, b, c = (stage.name for stage in spec.stages)
    assert spec.without([]) == spec
    assert spec.without([c]).stages == spec.stages[:2]
    middle = spec.without([b]).stages
    assert middle[0] == spec.stages[0]
    assert math.fsum(middle[1].weights) == pytest.approx(math.fsum(spec.stages[2].weights))
    assert middle[1].exits == {}
    zero = spec.stages[2].model_copy(update={"weights": (0.0, 0.0, 1.0)})
    lonely = spec.model_copy(update={"stages": (*spec.stages[:2], zero)}).without([c])
    assert lonely.stages == spec.stages[:2]
    nothing = spec.stages[2].model_copy(update={"weights": (0.0, 1.0, 0.0)})
    left = spec.model_copy(update={"stages": (*spec.stages[:2], nothing)}).without([b])
    assert left.stages[-1].weights == (1.0, 1.0)
    assert a == "musicnn-few"


def test_silence_and_short_audio_ask_no_fetched_model(fetched: Path) -> None:
    ensemble = Ensemble(OPTIONS, models=fetched)
    silent = Waveform(np.zeros(24_000 * 5, np.float32), 24_000, 0.0, 5.0)
    verdict, embeddings = ensemble.classify(silent)
    assert (verdict.unsure, verdict.votes, embeddings) == ("silence", (), ())
    noise = np.random.default_rng(0).normal(0, 0.1, 36_000).astype(np.float32)
    verdict, _ = ensemble.classify(Waveform(noise, 24_000, 0.0, 1.5))  # shorter than a window
    assert len(verdict.votes) == 3
    assert all(math.isfinite(score.confidence) for score in verdict.genres)


# Genres that are known by name alone


TEXT = EnsembleOptions(taxonomy="gtzan", text_genres=("K-Pop", "Anime", "jazz"))


def test_named_genres_take_from_the_others_alike(
    models: Path, server: ModelServer, tmp_path: Path, run: Callable[..., Result]
) -> None:
    before = Ensemble(TEXT, models=models)
    assert "clap is not fetched" in before.notes[0]
    plain, _ = before.classify(listen())
    assert {score.name for score in plain.genres} <= set(GENRES)

    write_tiny_clap(tmp_path / "clap")
    publish("clap", tmp_path / "clap", server, models)
    result = run("models", "fetch", "clap", "--mirror", server.url, "--accept-licence")
    assert result.exit_code == 0, result.output
    ensemble = Ensemble(TEXT, models=models)
    assert ensemble.notes == ()
    assert ensemble.fingerprint != before.fingerprint
    verdict, _ = ensemble.classify(listen())
    found = {score.name: score.confidence for score in verdict.genres}
    assert math.fsum(found.values()) == pytest.approx(1, abs=0.02)
    theirs = found["K-Pop"] + found["Anime"]  # jazz is the taxonomy's own
    assert 0 < theirs < 1
    for score in plain.genres[:3]:
        assert found[score.name] == pytest.approx(score.confidence * (1 - theirs), abs=1e-3)
    assert verdict.votes[-1].stage == TEXT_STAGE
    assert (verdict.decided_by == TEXT_STAGE) == (verdict.genres[0].name in {"K-Pop", "Anime"})


def odd_audio(kind: str) -> tuple[npt.NDArray[np.float32], int]:
    """Return (channels, n) float32 and its rate."""
    music = synthesize(12.0, 44_100)
    if kind == "clipped":
        return np.clip(music * 20, -1, 1).astype(np.float32), 44_100
    if kind == "one channel only":
        return np.stack([music[0], np.zeros_like(music[0])]), 44_100
    if kind == "opposite channels":
        return np.stack([music[0], -music[0]]), 44_100
    if kind == "8 channels":
        return np.concatenate([music] * 4) * np.float32(0.5), 48_000
    return synthesize(6.0, 192_000), 192_000


@pytest.mark.parametrize(
    "kind", ["clipped", "one channel only", "opposite channels", "8 channels", "192 kHz"]
)
def test_odd_audio_gets_a_sane_verdict(fetched: Path, tmp_path: Path, kind: str) -> None:
    samples, rate = odd_audio(kind)
    path = tmp_path / "odd.wav"
    wavfile.write(path, rate, samples.T.astype(np.float32))
    verdict, embeddings = Ensemble(OPTIONS, models=fetched).classify(listen(path))
    if kind == "opposite channels":
        assert verdict.unsure == "silence"  # nothing is left of it in mono
        return
    assert [vote.stage for vote in verdict.votes] == ["musicnn-few", "mert-95m", "jmla"]
    for scores in (verdict.genres, *(vote.genres for vote in verdict.votes)):
        assert all(math.isfinite(score.confidence) for score in scores)
        assert math.fsum(score.confidence for score in scores) == pytest.approx(1, abs=0.02)
    assert all(np.isfinite(embedding.vector).all() for embedding in embeddings)


def test_speech_and_noise_are_refused_where_no_stage_of_musicnn_votes(
    fetched: Path, gpu: EnsembleSpec
) -> None:
    last = gpu.stages[2].model_copy(update={"weights": (1.0,)})
    spec = gpu.model_copy(update={"stages": (last,)})
    rewrite(fetched, spec)
    ensemble = Ensemble(OPTIONS, models=fetched)
    noise = np.random.default_rng(0).normal(0, 0.1, 16_000 * 20).astype(np.float32)
    verdict, _ = ensemble.classify(Waveform(noise, 16_000, 0.0, 20.0))
    assert [vote.stage for vote in verdict.votes] == ["jmla"]
    assert verdict.unsure == "speech or noise"
    assert verdict.moods == ()
    music, embeddings = ensemble.classify(listen())
    assert music.unsure in {None, "too close to call"}
    assert {embedding.encoder for embedding in embeddings} == {"jmla", "musicnn-msd"}


def test_models_that_do_not_fit_together_take_turns(fetched: Path) -> None:
    plenty, _ = Ensemble(OPTIONS, models=fetched, memory_gib=8).classify(listen())
    sizes = [
        encoder_footprint(fetched / name, layers, "cpu")
        for name, layers in (("mert-95m", READOUT.layers), ("jmla", ()))
    ]
    larger = max(one.weights + one.window * MARGIN for one in sizes)
    ensemble = Ensemble(OPTIONS, models=fetched, memory_gib=larger * 1.05 / GIB)
    with ThreadPoolExecutor(3) as pool:
        verdicts = [verdict for verdict, _ in pool.map(ensemble.classify, [listen()] * 6)]
    residents = ensemble._encoders._plan.residents
    assert residents is not None
    assert len(residents.names) == 1
    for verdict in verdicts:
        assert [vote.genres for vote in verdict.votes] == [vote.genres for vote in plenty.votes]


def test_models_that_do_not_fit_the_memory_are_left_out(fetched: Path) -> None:
    """On a CPU no new process could do better, so that a DeviceError would come again for ever."""
    ensemble = Ensemble(OPTIONS, models=fetched, memory_gib=1e-5)
    ensemble.load()
    assert "worker.memory_gib" in ensemble.notes[0]
    assert "cpu decides" in ensemble.notes[-1]
    assert ensemble.fingerprint == Ensemble(EnsembleOptions(taxonomy="gtzan")).fingerprint
    verdict, _ = ensemble.classify(listen())
    assert verdict.votes
