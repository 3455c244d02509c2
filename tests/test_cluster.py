"""Many machines: a Ray cluster of several nodes on this one, real files, real kills."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cluster_tools import (
    SURE,
    bits,
    copy_site,
    make_site,
    outcome,
    start,
    tag_here,
    timeless,
    wait_for_verdicts,
)
from ray_cluster import ROOT, RayCluster

from reclass_plex import pipeline
from reclass_plex.cli_cluster import work_on_cluster
from reclass_plex.cluster import Cluster
from reclass_plex.cluster_node import Node, code_digest
from reclass_plex.config import Config, load_config
from reclass_plex.ensemble import Ensemble
from reclass_plex.errors import ClusterError, ConfigError, FileChanged, StoreBusy
from reclass_plex.files import FoundFile
from reclass_plex.store import Store
from reclass_plex.store_guard import hold_daemon_lock


def found(path: Path) -> FoundFile:
    status = path.stat()
    return FoundFile(path, status.st_size, status.st_mtime_ns)


# What needs no Ray


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as Python itself notes what cannot be imported
    with pytest.raises(ConfigError, match=r"pip install 'reclass-plex\[cluster\]'"):
        Cluster("local", Config(), "models", (), print)


@pytest.mark.parametrize("address", ["nowhere", "http://127.0.0.1:1", "127.0.0.1:x", "ray://"])
def test_what_is_no_address_is_refused(address: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(ConfigError, match="must be ray://HOST:PORT"):
        Cluster(address, Config(), "models", (), print)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nobody_answers_is_named_at_once(scheme: str) -> None:
    pytest.importorskip("ray")
    began = time.monotonic()
    with pytest.raises(ClusterError, match=r"127\.0\.0\.1:1: no Ray answers there"):
        Cluster(f"{scheme}127.0.0.1:1", Config(), "models", (), print)
    assert time.monotonic() - began < 60  # Ray itself would try for minutes


def test_a_node_hears_as_one_machine_does_and_says_what_it_does_not_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # the node sets them: this puts them back
    track = Path(shutil.copy(SURE, tmp_path / "a.ogg"))
    broken = tmp_path / "b.ogg"
    broken.write_bytes(b"no music" * 100)
    config = Config()
    ensemble = Ensemble.from_config(config)
    node = Node(config.model_dump_json(), 1)
    try:
        said = node.introduce([track])
        assert (said.models, said.samples) == (ensemble.fingerprint, (found(track),))
        assert said.code == code_digest()
        answer = node.hear(found(track))
        verdict, embeddings = pipeline.classify_file(track, ensemble)
        assert timeless(answer.result[0]) == timeless(verdict)
        assert bits(answer.result[1]) == bits(embeddings)
        assert answer.result[0].genres[0].name == "Blues"
        assert node.examine(found(track)).result is not None
        assert getattr(node.examine(found(broken)).error, "kind", None) == "tags-unsupported"
        elsewhere = replace(found(track), path=tmp_path / "only here" / "a.ogg")
        assert "does not see" in str(node.hear(elsewhere).unfit)
        assert "no such file" in str(node.introduce([elsewhere.path]).samples[0])
        other = replace(found(track), mtime_ns=1)
        assert isinstance(node.examine(other).error, FileChanged)
    finally:
        node._decoders.close()


def test_code_that_is_another_has_another_digest(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "reclass_plex", tmp_path / "a", ignore=shutil.ignore_patterns("data"))
    assert code_digest(tmp_path / "a") == code_digest()
    (tmp_path / "a" / "new.py").write_bytes(b"")
    changed = code_digest(tmp_path / "a")
    assert changed != code_digest()
    (tmp_path / "a" / "new.py").write_bytes(b"\n")
    assert code_digest(tmp_path / "a") != changed


def test_while_a_daemon_holds_the_queue_the_command_is_refused(tmp_path: Path) -> None:
    site = make_site(tmp_path, 1)
    config = load_config(site.config)
    with (
        Store.open(site.store),
        hold_daemon_lock(site.store),
        pytest.raises(StoreBusy, match="stop it"),
    ):
        work_on_cluster(config, "local", as_json=True)


# With Ray


def test_a_lost_machine_costs_no_track_and_repeats_none(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    site = make_site(tmp_path / "many", 12, seconds=10)
    reference = copy_site(site, tmp_path / "one")
    with RayCluster() as cluster:
        node = cluster.add_node("second")
        tag_here(reference)  # meanwhile
        cluster.wait_for(node)
        given = start(site, [str(site.music), "--cluster", cluster.address], cluster.environment)
        wait_for_verdicts(site, 2)
        node.kill()
        ended = given.end()
    assert ended.status == 0, ended
    assert "second (127.0.0.1): was lost" in ended.err
    counts = ended.counts
    assert (counts["done"], counts["in_line"], counts["failed"]) == (12, 0, 0)
    assert ended.heard() == 12
    assert outcome(site) == outcome(reference)
