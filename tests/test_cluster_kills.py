"""What may be lost while a cluster hears is lost on purpose; what comes of it is one machine's."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cluster_tools import (
    ALBUM,
    ENDS,
    Command,
    copy_site,
    count_verdicts,
    make_site,
    outcome,
    start,
    tag_here,
    wait_for_verdicts,
)
from daemon_tools import Site, wait_until
from ray_cluster import HEARING, ROOT, Node, RayCluster
from test_watch import needs_name_spaces

from reclass_plex.cluster import TRIES
from reclass_plex.jobs import IN_LINE, Jobs
from reclass_plex.store import Store

pytest.importorskip("ray")
pytestmark = pytest.mark.nightly

TRACKS = 120  # more than a batch
AT_WORK = {".examine", ".hear"}
MINUTES = float(os.environ.get("CLUSTER_KILLS_MINUTES", "3"))
SEED = int(os.environ.get("CLUSTER_KILLS_SEED", "7"))


@dataclass(frozen=True)
class Music:
    """Music that was not tagged, and what one machine makes of it."""

    site: Site
    expected: dict[str, tuple[Any, ...]]

    def copy(self, folder: Path, tracks: int = 24) -> Site:
        return copy_site(self.site, folder, tracks // ALBUM)

    def check(self, site: Site, *, waited: bool = False) -> None:
        """Every track is done once, as one machine does it, and no other file is left.

        If tracks had `waited`, their albums voted without them: then only what was heard is equal.
        """
        found = outcome(site)
        expected = {name: self.expected[name] for name in found}
        if not waited:
            assert found == expected
        for name, (verdict, _, _, _, changes, heard) in found.items():
            assert (verdict, heard) == (expected[name][0], expected[name][5])
            assert len(changes) <= 1


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> Music:
    folder = tmp_path_factory.mktemp("music")
    site = make_site(folder / "new", TRACKS, seconds=10)
    reference = copy_site(site, folder / "one")
    tag_here(reference)
    return Music(site, outcome(reference))


def give(site: Site, cluster: RayCluster, address: str | None = None) -> Command:
    return start(
        site, [str(site.music), "--cluster", address or cluster.address], cluster.environment
    )


def go_on(site: Site, cluster: RayCluster, tracks: int = 24) -> None:
    """Give the command again: what was heard is not heard again."""
    known = count_verdicts(site)
    ended = start(site, ["--cluster", cluster.address], cluster.environment).end()
    assert ended.status == 0, ended
    assert (ended.counts["in_line"], ended.counts["failed"]) == (0, 0)
    assert ended.heard() == tracks - known


def wait_until_due(site: Site) -> None:
    """Wait until all that is in line may be tried again."""
    with Store.open(site.store) as store:
        due = [job.due for job in Jobs(store).list_jobs(*IN_LINE, limit=TRACKS)]
    time.sleep(max(0.0, max(due, default=0.0) - time.time()))


@pytest.mark.parametrize("client", [False, True])
def test_a_process_that_is_killed_is_started_again(
    tmp_path: Path, music: Music, client: bool
) -> None:
    site = music.copy(tmp_path)
    with RayCluster(client=client) as cluster:
        node = cluster.add_node("second")
        cluster.wait_for(node)
        given = give(site, cluster, cluster.client_address if client else None)
        wait_for_verdicts(site, 2)
        for process in node.hearing():
            process.kill()
        ended = given.end()
    assert ended.status == 0, ended
    assert "second (127.0.0.1): was lost" in ended.err
    assert (ended.counts["done"], ended.heard()) == (24, 24)
    music.check(site)


def test_the_command_may_be_killed_and_given_again(tmp_path: Path, music: Music) -> None:
    site = music.copy(tmp_path)
    with RayCluster(cpus=2) as cluster:
        given = give(site, cluster)
        wait_for_verdicts(site, 5)
        given.kill()
        go_on(site, cluster)
    music.check(site)


def test_without_its_head_the_command_ends_and_goes_on_with_another(
    tmp_path: Path, music: Music
) -> None:
    site = music.copy(tmp_path)
    with RayCluster(cpus=0) as cluster:
        nodes = [cluster.add_node(name) for name in ("second", "third")]
        cluster.wait_for(*nodes)
        given = give(site, cluster)
        wait_for_verdicts(site, 3)
        stop(nodes[0])  # else all may be heard before anybody misses the head
        cluster.head.kill()
        ended = given.end()
    assert ended.status != 0, ended
    with RayCluster(cpus=2) as cluster:
        go_on(site, cluster)
    music.check(site)


@pytest.mark.parametrize("local", [False, True])
def test_ctrl_c_stops_after_the_file_in_hand(tmp_path: Path, music: Music, local: bool) -> None:
    site = music.copy(tmp_path)
    with RayCluster(cpus=2) as cluster:
        given = give(site, cluster, "local" if local else None)
        wait_for_verdicts(site, 3)
        os.killpg(given.process.pid, signal.SIGINT)
        ended = given.end()
        assert ended.status == 1
        assert "stopping after the file in hand" in ended.err
        counts = ended.counts
        assert counts["in_line"] + counts["done"] == 24
        assert counts["in_line"] > 0
        assert ended.heard() == count_verdicts(site)
        go_on(site, cluster)
    music.check(site)


@needs_name_spaces
def test_a_machine_without_the_storage_is_named_and_costs_no_track(
    tmp_path: Path, music: Music
) -> None:
    site = music.copy(tmp_path)
    apart = ["unshare", "-Urm"]
    hidden = [*apart, "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(site.music)]
    with RayCluster() as cluster:
        blind = cluster.add_node("blind", inside=hidden)
        later = cluster.add_node("later", inside=apart)
        cluster.wait_for(blind, later)
        given = give(site, cluster)
        wait_for_verdicts(site, 3)
        inside = ["nsenter", "-t", str(later.pid), "-U", "--preserve-credentials", "-m"]
        subprocess.run([*inside, "mount", "-t", "tmpfs", "none", str(site.music)], check=True)
        ended = given.end()
    assert ended.status == 0, ended
    assert "blind (127.0.0.1) is not used: does not see" in ended.err
    assert "later (127.0.0.1): does not see" in ended.err
    assert set(ended.counts["heard"]) <= {"head (127.0.0.1)", "later (127.0.0.1)"}
    music.check(site)


def test_a_machine_with_other_code_is_not_used(tmp_path: Path, music: Music) -> None:
    site = music.copy(tmp_path / "site", 4)
    package = tmp_path / "code" / "reclass_plex"
    shutil.copytree(ROOT / "reclass_plex", package)
    with (package / "listening.py").open("a") as file:
        file.write("# another grouping of sums, say\n")
    with RayCluster() as cluster:
        cluster.wait_for(cluster.add_node("other", path=package.parent))
        ended = give(site, cluster).end()
    assert "other (127.0.0.1) is not used: its code is another" in ended.err
    assert ended.counts["heard"] == {"head (127.0.0.1)": 4}
    music.check(site)


def test_a_machine_that_joins_late_is_used(tmp_path: Path, music: Music) -> None:
    site = music.copy(tmp_path, TRACKS)
    with RayCluster() as cluster:
        given = give(site, cluster)
        wait_for_verdicts(site, 2)
        cluster.add_node("late")
        ended = given.end()
    assert ended.status == 0, ended
    assert ended.counts["heard"].get("late (127.0.0.1)", 0) > 0, ended
    music.check(site)


def test_lost_machines_are_not_held_against_the_track_that_they_had(
    tmp_path: Path, music: Music
) -> None:
    """One machine after another is lost over the same track; Ray says so some seconds later."""
    site = music.copy(tmp_path, ALBUM)
    for path in sorted(site.music.rglob("*.*"))[1:]:
        path.unlink()
    with RayCluster(cpus=0) as cluster:
        node = cluster.add_node("0")
        cluster.wait_for(node)
        given = give(site, cluster)
        wait_until(lambda: titles(node) & AT_WORK, "a track to be asked for", ENDS, 0.01)
        stop(node)
        for number in range(1, TRIES + 2):
            another = cluster.add_node(str(number))
            wait_until(partial(rests, another), "the next machine to be used", ENDS)
            if number <= TRIES:
                stop(another)  # it gets the track and keeps it
            node.kill()
            node = another
        ended = given.end()
    assert ended.status == 0, ended
    assert ended.err.count(": was lost") == TRIES + 1
    assert (ended.counts["done"], ended.counts["heard"]) == (1, {f"{TRIES + 1} (127.0.0.1)": 1})
    music.check(site, waited=True)  # the rest of its album is not there


def titles(node: Node) -> set[str]:
    """What Ray says that the processes do."""
    return {process.cmdline()[0].removeprefix(HEARING) for process in node.hearing()}


def rests(node: Node) -> bool:
    """Say whether its process has introduced itself, and is asked for nothing."""
    for _ in range(10):
        if titles(node) != {""}:
            return False
        time.sleep(0.1)
    return True


def stop(node: Node) -> None:
    for process in node.hearing():
        process.suspend()


def test_machines_that_come_and_go_at_random(tmp_path: Path, music: Music) -> None:
    """Nodes and processes are killed, and nodes added, for some minutes."""
    chance = random.Random(SEED)
    until = time.monotonic() + 60 * MINUTES
    rounds = killed = lost = added = stopped = 0
    with RayCluster() as cluster:
        nodes: list[Node] = []
        while time.monotonic() < until:
            rounds += 1
            site = music.copy(tmp_path / str(rounds), TRACKS)
            given = give(site, cluster)
            while given.process.poll() is None:
                time.sleep(chance.uniform(1, 5))
                what = chance.choice(["add", "kill", "lose"])
                hearing = [one for node in (*nodes, cluster.head) for one in node.hearing()]
                if what == "add" and len(nodes) < 3:
                    added += 1
                    nodes.append(cluster.add_node(f"node{added}"))
                elif what == "kill" and hearing:
                    killed += 1
                    chance.choice(hearing).kill()
                elif what == "lose" and nodes:
                    lost += 1
                    nodes.pop(chance.randrange(len(nodes))).kill()
            ended = given.end()
            left = "no machine of the cluster" in ended.err
            if ended.status == 0:
                assert (ended.counts["done"], ended.heard()) == (TRACKS, TRACKS), ended
            else:  # at one time there was no machine, or three processes died over one track
                stopped += 1
                assert left or ended.counts["in_line"] > 0, ended
                wait_until_due(site)
                go_on(site, cluster, TRACKS)
            music.check(
                site, waited=" was not heard: " in ended.err or (ended.status != 0 and not left)
            )
            shutil.rmtree(site.root)
    said = f"{rounds} rounds, {killed} processes and {lost} nodes killed, {added} added, "
    print(f"{said}{stopped} rounds went on in a second command")
    assert killed + lost > 0
