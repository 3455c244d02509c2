"""What matters to a model, which features to take, what the GPU does."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from test_training_runs import SILENT, begin
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from training_tables import GENRES, make_table, write_csv, write_folder
from typer.testing import CliRunner, Result

from reclass_plex.cli import app
from reclass_plex.errors import ConfigError, DeviceError, ModelError
from reclass_plex.features import COLUMN_NAMES
from reclass_plex.gpus import JETSON_LOAD, _ask_kernel, parse_smi, read_gpus
from reclass_plex.training import runs
from reclass_plex.training.approaches.base import Model
from reclass_plex.training.columns import column_names, find_groupings, select_columns
from reclass_plex.training.importance import gain, shap_values
from reclass_plex.training.importance_run import measure_importance
from reclass_plex.training.inspection import inspect_model
from reclass_plex.training.table import join_tables, keep
from reclass_plex.training.tagger_card import load_tagger_card


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments], catch_exceptions=False)


def blind_csv(folder: Path) -> Path:
    """A table of which only the first two columns tell the label: the others are of anyone."""
    table = make_table()
    rows = table.rows.copy()
    rows[:, 2:] = np.random.default_rng(5).permutation(rows[:, 2:])
    object.__setattr__(table, "rows", rows)
    return write_csv(table, folder / "table.csv")


# --- columns


def test_the_518_go_by_series_and_by_statistic() -> None:
    table = make_table(dims=518)
    assert column_names(table) == COLUMN_NAMES
    by = {one.by: one.groups for one in find_groupings(table)}
    assert set(by) == {"series", "statistic"}
    assert {name: len(at) for name, at in by["series"].items()} == {
        "chroma_cens": 84, "chroma_cqt": 84, "chroma_stft": 84, "mfcc": 140, "rmse": 7,
        "spectral_bandwidth": 7, "spectral_centroid": 7, "spectral_contrast": 49,
        "spectral_rolloff": 7, "tonnetz": 42, "zcr": 7,
    }  # fmt: skip
    assert {len(at) for at in by["statistic"].values()} == {74}
    for groups in by.values():
        assert sorted(np.concatenate(list(groups.values()))) == list(range(518))


def test_columns_are_chosen_by_the_names_of_their_groups() -> None:
    table = make_table(dims=518)
    chosen = select_columns(table, ("tonnetz", "zcr"))
    assert (chosen.name, chosen.dims) == ("fma518[tonnetz,zcr]", 49)
    assert np.array_equal(chosen.rows[:, -7:], table.rows[:, -7:])
    assert all(name.startswith(("tonnetz", "zcr")) for name in chosen.columns)
    again = select_columns(chosen, ("mean",))
    assert again.dims == 7
    with pytest.raises(ConfigError, match=r"--columns zrc: table fma518 has chroma_cens, .*, mean"):
        select_columns(table, ("zrc",))
    with pytest.raises(ConfigError, match="has layers"):
        select_columns(make_table(layers=(1, 2)), ("mean",))


def test_joined_tables_and_musicnn_are_told_apart() -> None:
    joined = join_tables([make_table(dims=518), make_table(dims=500, name="musicnn")])
    by = {one.by: {k: len(v) for k, v in one.groups.items()} for one in find_groupings(joined)}
    assert by["table"] == {"fma518": 518, "musicnn": 500}
    assert by["series"]["msd tag"] == by["series"]["mtt tag"] == 50
    assert by["series"]["mtt penultimate"] == 200
    assert by["statistic"]["others"] == 500
    assert "musicnn/msd tag jazz" in column_names(joined)
    (layers,) = find_groupings(make_table(layers=(3, 7)))
    assert list(layers.groups) == ["layer 3", "layer 7"]
    assert find_groupings(make_table(dims=65)) == ()


# --- importance


@pytest.mark.parametrize("approach", ["baseline", "xgboost", "fma-mlp"])
def test_what_tells_the_label_is_what_matters(approach: str, tmp_path: Path) -> None:
    csv_file = blind_csv(tmp_path)
    given = {"hidden": ()} if approach == "xgboost" else {}  # trees alone
    run = begin(tmp_path / "run", csv_file, approach, **given)
    runs.finish_run(run, SILENT)
    told = call("analyse", "importance", run, "--json", "--repeats", 3)
    found = json.loads(told.stdout)
    effects = {one["group"]: one for one in found["groups"]}
    assert set(effects) == {f"f{i}" for i in range(6)}
    useful, useless = effects["f0"]["loss"], max(effects[f"f{i}"]["loss"] for i in range(2, 6))
    assert max(useful, effects["f1"]["loss"]) > 5 * max(useless, 0.005)
    best = max(("f0", "f1"), key=lambda name: effects[name]["loss"])
    assert effects[best]["loss_low"] > 0
    assert effects[best]["accuracy"] > 0.1
    if approach == "fma-mlp":
        assert found["columns"] == []
    else:
        assert {one["column"] for one in found["columns"][:2]} == {"f0", "f1"}
    if approach == "xgboost":
        assert sum(one["gain"] for one in found["columns"]) == pytest.approx(1)

    with (run / "importance" / "groups.csv").open() as file:
        assert [line["group"] for line in csv.DictReader(file)] == list(effects)
    with (run / "importance" / "columns.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 6
    assert (f"shap {GENRES[0]}" in lines[0]) == (approach != "fma-mlp")
    report = (run / "report.html").read_text()
    assert "What is lost without" in report
    assert ("Columns that matter most" in report) == (approach != "fma-mlp")
    if approach == "baseline":
        assert "loss without" in call("analyse", "importance", run, "--repeats", 1).stdout


def test_layers_and_tags_have_importance_too(tmp_path: Path) -> None:
    folder = write_folder(make_table(name="mert-95m", layers=(1, 2, 9)), tmp_path / "mert")
    call("train", "--approach", "mert", "--table", folder, "--folds", 2, "--epochs", 6,
         "--out", tmp_path / "run")  # fmt: skip
    found = measure_importance(
        tmp_path / "run", repeats=2, say=lambda text: None, step=lambda count: None
    )
    effects = {one.group: one.loss for one in found.effects}
    assert max(effects, key=lambda name: effects[name]) == "layer 9"  # the others are noise
    assert found.shap is not None and found.shap.shape == (6, 3)

    tags = write_csv(make_table(tags=True), tmp_path / "tags.csv")
    run = begin(tmp_path / "tags", tags, "xgboost")
    runs.finish_run(run, SILENT)
    seen = json.loads(call("analyse", "importance", run, "--json", "--repeats", 1).stdout)
    assert {one["accuracy"] for one in seen["groups"]} == {None}
    assert max(one["loss_low"] for one in seen["groups"]) > 0


def test_a_published_split_asks_the_runs_own_model(tmp_path: Path) -> None:
    run = begin(tmp_path / "run", write_csv(make_table(120, split=True), tmp_path / "t.csv"))
    runs.finish_run(run, SILENT)
    said: list[str] = []
    measure_importance(run, repeats=1, say=said.append, step=lambda count: None)
    assert said == []  # nothing was fitted again


def test_importance_needs_a_finished_run_and_its_own_table(tmp_path: Path) -> None:
    file = write_csv(make_table(), tmp_path / "table.csv")
    run = begin(tmp_path / "run", file)
    with pytest.raises(ConfigError, match="not finished"):
        call("analyse", "importance", run)
    runs.finish_run(run, SILENT)
    write_csv(make_table(seed=3), file)
    with pytest.raises(ConfigError, match="has changed"):
        call("analyse", "importance", run)
    with pytest.raises(ConfigError, match="is no training run"):
        call("analyse", "importance", tmp_path)


def test_shap_values_add_up_to_what_a_linear_model_says() -> None:
    # With features that are independent, a linear model's SHAP value is w (z - mean z).
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(200, 4)).astype(np.float32)
    weight = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-2.0, 0.0], [0.0, 3.0]])
    tensors = {
        "mean": torch.zeros(4), "deviation": torch.ones(4), "weight": weight, "bias": torch.ones(2),
    }  # fmt: skip
    found = shap_values(Model("logistic", tensors), rows, rows[:50])
    expected = np.abs((rows - rows[:50].mean(0))[:, :, None] * weight.numpy()).mean(0)
    assert found == pytest.approx(expected, abs=1e-4)
    assert gain(Model("logistic", tensors), 4) is None


# --- the card of a model of tags


def test_a_model_of_tags_has_a_card(tmp_path: Path) -> None:
    run = begin(tmp_path / "run", write_csv(make_table(tags=True), tmp_path / "t.csv"), "fma-mlp")
    figures = runs.finish_run(run, SILENT)
    card = load_tagger_card(run)
    assert card is not None
    assert (card.tags, card.kind, card.features, card.dims) == (GENRES, "kernel", "fma518", 6)
    assert (card.licence, card.date, card.recordings) == ("CC0-1.0", "2026-11-22", 90)
    assert card.roc_auc.value == figures["roc_auc"]["value"]
    assert card.average_precision["Jazz"] == figures["labels"][1]["average_precision"]
    assert card.rests_on["Metal"] == "30 recordings of t"
    shown = inspect_model(run)
    assert shown.problems == ()
    assert shown.facts["kind"] == "tags, kernel"
    assert shown.facts["parameters"] == str(90 * 3)
    assert "90 recordings" in shown.facts["measured ROC-AUC"]
    other = begin(tmp_path / "other", tmp_path / "t.csv")
    runs.finish_run(other, SILENT)
    os.replace(other / "tagger.safetensors", run / "tagger.safetensors")
    with pytest.raises(ModelError, match=r"tagger\.safetensors is not the file"):
        inspect_model(run)
    text = json.loads((run / "tagger.json").read_text())
    (run / "tagger.json").write_text(json.dumps(text | {"rests_on": {}}))
    with pytest.raises(ModelError, match="rests_on must name exactly the tags"):
        inspect_model(run)
    (run / "tagger.json").unlink()
    assert inspect_model(run).facts["kind"] == "tags, without a card"


# --- GPUs


SMI = """NVIDIA GeForce RTX 5090, 1024, 32607, 37, 54, 212.50
NVIDIA H100 80GB HBM3, MIG, 0, 81559, [N/A], 30, [N/A]
Orin (nvgpu), [N/A], [N/A], [N/A], [N/A], [N/A]
"""


def test_nvidia_smis_lines_are_read() -> None:
    first, second, third = parse_smi(SMI)
    assert (first.name, first.used, first.total, first.use) == (
        "NVIDIA GeForce RTX 5090", 1024, 32607, 37,
    )  # fmt: skip
    assert (first.celsius, first.watts) == (54, 212.5)
    assert (second.name, second.use, second.total) == ("NVIDIA H100 80GB HBM3, MIG", None, 81559)
    assert (third.used, third.total) == (None, None)
    assert parse_smi("\n\n") == ()


def test_a_gpu_is_watched_and_its_absence_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'Made up, 512, 1024, 25, 40, 11.5'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    told = call("analyse", "gpu").stdout
    assert told == ("Made up  [##########..........] 512 of 1,024 MiB  25 % busy  40 °C  12 W\n")
    assert json.loads(call("analyse", "gpu", "--json").stdout)["use"] == 25
    smi.write_text(
        "#!/bin/sh\necho 'Failed to initialize NVML: Driver/library mismatch'\nexit 18\n"
    )
    if torch.cuda.is_available():
        assert read_gpus()[0].told_by == "torch"
        return
    with pytest.raises(DeviceError, match=r"Driver/library mismatch; torch .* finds none"):
        read_gpus()
    with pytest.raises(DeviceError, match="no-such-smi is not installed; torch"):
        read_gpus("no-such-smi")


def test_a_jetsons_kernel_tells_of_the_memory_that_all_share() -> None:
    files = {
        JETSON_LOAD[1]: "370\n",
        "/proc/meminfo": "MemTotal: 8388608 kB\nMemAvailable: 2097152 kB\nHugePages_Total: 0\n",
    }

    def read(path: str) -> str:
        if path not in files:
            raise FileNotFoundError(path)
        return files[path]

    (state,) = _ask_kernel(read)
    assert (state.used, state.total, state.use) == (6144, 8192, 37)
    del files[JETSON_LOAD[1]]
    assert _ask_kernel(read) == ()


# --- sets of features


def test_sets_of_features_are_compared_on_the_same_folds(tmp_path: Path) -> None:
    # the second table lacks some recordings, and lists the others backwards
    other = keep(make_table(name="musicnn", seed=4), [f"song {i}" for i in range(80, -1, -1)])
    object.__setattr__(other, "rows", np.random.default_rng(1).normal(size=(81, 6)).astype("f4"))
    tables = [
        write_folder(make_table(), tmp_path / "fma518"), write_folder(other, tmp_path / "musicnn"),
    ]  # fmt: skip
    given = [word for one in tables for word in ("--table", one)]
    command = ("analyse", "features", "--approach", "baseline", *given, "--joined", "--folds", 3,
               "--out", tmp_path / "out")  # fmt: skip
    told = call(*command, "--json").stdout
    first, second, both = map(json.loads, told.splitlines())
    assert [one["name"] for one in (first, second, both)] == ["fma518", "musicnn", "fma518+musicnn"]
    assert {one["recordings"] for one in (first, second, both)} == {81}
    assert (first["columns"], both["columns"]) == (6, 12)
    assert first["gain"] is None
    assert second["gain_high"] < 0  # noise
    assert second["p"] < 1e-6
    assert second["gain"] == pytest.approx(second["value"] - first["value"])
    assert "81 recordings" in call(*command).stdout  # all is there: nothing is trained again
    with (tmp_path / "out" / "comparison.csv").open() as file:
        assert [line["name"] for line in csv.DictReader(file)][2] == "fma518+musicnn"
    assert (tmp_path / "out" / "comparison.svg").stat().st_size > 1000
    with pytest.raises(ConfigError, match="was begun with other options"):
        call(*command[:-3], 2, *command[-2:])
    with pytest.raises(ConfigError, match="is none of these sets"):
        call(*(word for word in command if word != "--joined"))


def test_parts_of_one_table_are_sets_too(tmp_path: Path) -> None:
    file = blind_csv(tmp_path)
    command = ("analyse", "features", "--approach", "baseline", "--csv", file, "--folds", 2,
               "--out", tmp_path / "out", "--json")  # fmt: skip
    told = call(*command, "--columns", "f0,f1", "--columns", "f4", "--without", "f0,f1").stdout
    whole, useful, one, rest = map(json.loads, told.splitlines())
    assert [each["columns"] for each in (whole, useful, one, rest)] == [6, 2, 1, 4]
    assert useful["value"] > 0.6 > max(one["value"], rest["value"])
    assert rest["name"] == "without f0,f1"
    with pytest.raises(ConfigError, match="one set is no comparison"):
        call(*command[:-2], tmp_path / "other")
    with pytest.raises(ConfigError, match="--without f9: table table has f0, f1"):
        call(*command[:-2], tmp_path / "other", "--without", "f9")
    with pytest.raises(ConfigError, match="are called f0"):
        call(*command[:-2], tmp_path / "other", "--columns", "f0", "--columns", "f0")
