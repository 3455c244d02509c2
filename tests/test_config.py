"""Configuration files: the example is the truth, and every mistake is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from reclass_plex import config
from reclass_plex.config import CONFIG_VARIABLE, Config, load_config
from reclass_plex.errors import ConfigError

EXAMPLE = Path(__file__).parent.parent / "config.example.yaml"


def test_the_example_shows_every_key_with_its_default() -> None:
    shown = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    assert shown == Config().model_dump(mode="json")
    assert load_config(EXAMPLE) == Config()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("policy: {mode: overwrite}", r"policy\.mode: has value 'overwrite'"),
        ("policy: {min_confidence: 2}", r"policy\.min_confidence: has value 2"),
        ("polcy: {}", r"polcy: there is no such key"),
        ("tags: {join: {mp3: ','}}", r"tags\.join\.mp3"),
        ("- a list", "must hold keys"),
        ("policy: [", "is not valid YAML"),
        ("policy: {max_genres: 0}\ntags: {hardlinks: x}", r"(?s)max_genres.*hardlinks"),
    ],
)
def test_a_mistake_names_file_key_and_value(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert str(caught.value).startswith(str(path))


def test_a_missing_file_is_an_error_only_when_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv(CONFIG_VARIABLE, raising=False)
    assert load_config() == Config()
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config()


def test_the_users_own_file_comes_before_that_of_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(CONFIG_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(config, "SYSTEM_CONFIG", tmp_path / "etc.yaml")
    own = tmp_path / "reclass-plex" / "config.yaml"
    assert config.config_path() == own
    (tmp_path / "etc.yaml").write_text("policy: {max_genres: 2}")
    assert load_config().policy.max_genres == 2
    own.parent.mkdir()
    own.write_text("policy: {max_genres: 3}")
    assert load_config().policy.max_genres == 3


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert load_config(tmp_path / "empty.yaml") == Config()


def test_every_key_that_ever_was_is_there_or_explained() -> None:
    """A key that is renamed or removed goes into CHANGED_KEYS, a new one into the list."""
    path = Path(__file__).parent / "data" / "config_keys.txt"
    ever = {line for line in path.read_text().splitlines() if not line.startswith("#")}
    now = {key for key in config.known_keys() if "." in key}
    assert now - ever == set()
    assert ever - now == set(config.CHANGED_KEYS)


def test_a_key_that_changed_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = {
        "policy.least": config.ChangedKey("0.2.0", "policy.min_confidence", "rename it"),
        "tags.backup": config.ChangedKey("0.3.0", None, "remove it; undo needs no copies"),
    }
    monkeypatch.setattr(config, "CHANGED_KEYS", changed)
    path = tmp_path / "old.yaml"
    path.write_text("policy: {least: 0.5, min_confidense: 0.4}\ntags: {backup: {to: x}}\nx: 1\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).splitlines() == [
        f"{path}: policy.least: is policy.min_confidence now, since version 0.2.0: rename it",
        f"{path}: policy.min_confidense: there is no such key; is policy.min_confidence meant?",
        f"{path}: tags.backup: is gone, since version 0.3.0: remove it; undo needs no copies",
        f"{path}: x: there is no such key; see config.example.yaml",
    ]
