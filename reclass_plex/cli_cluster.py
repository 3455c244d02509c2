"""`reclassify --cluster`: this process is the one writer, and the machines of a cluster hear.

It works on the queue in the store, as the daemon does, and in its place: it holds the daemon's
lock, because the daemon takes whatever is held by others for lost. What it was killed over comes
back to the line when it, or the daemon, starts again.
"""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from reclass_plex import console
from reclass_plex.errors import StoreBusy
from reclass_plex.jobs import IN_LINE, Jobs

if TYPE_CHECKING:
    from reclass_plex.config import Config

SAMPLES = 16  # files that a machine must see before it is used, of as many folders
SAMPLED = 1000  # jobs that they are chosen from
BATCH_A_PLACE = 16  # tracks claimed for each that is heard at once: the end of a batch is idle


def work_on_cluster(config: Config, address: str, *, as_json: bool) -> bool:
    """Do what is in line; return False if it was stopped or some tracks failed.

    Raises ConfigError, ClusterError, ModelError, and StoreBusy while a daemon runs.
    """
    from reclass_plex.cluster import Cluster
    from reclass_plex.ensemble import Ensemble
    from reclass_plex.store import Store
    from reclass_plex.store_guard import hold_daemon_lock
    from reclass_plex.sync import Wanted
    from reclass_plex.worker import Worker

    ensemble = Ensemble.from_config(config)
    for note in ensemble.notes:
        console.warn(note)
    path = config.store.resolve()
    with Store.open(path, check=True) as store, hold_daemon_lock(path):
        jobs = Jobs(store)
        jobs.release(jobs.owners(), time.time())  # who holds is dead: see above
        counts = jobs.counts()
        total = sum(counts[state] for state in IN_LINE)
        with (
            contextlib.redirect_stdout(sys.stderr),  # Ray prints there who died
            Cluster(address, config, ensemble.fingerprint, _samples(jobs), console.warn) as cluster,
            console.stopping_politely() as should_stop,
            console.showing_progress(total, "tagging") as advance,
        ):
            console.say(f"heard by {', '.join(cluster.machines)}", to=console.err)
            since = time.time()
            worker = Worker(
                store,
                config,
                ensemble,
                threads=cluster.places,
                hear=cluster.hear,
                examine=cluster.examine,
                batch=_batch(cluster.places),
                command="reclassify --cluster",
                wanted=Wanted(store) if config.plex.url else None,
                should_stop=should_stop,
                settled=advance,
            )
            try:
                while not should_stop() and worker.step(time.time()):
                    worker.resize(cluster.places, _batch(cluster.places))
            finally:
                worker.close()
            stopped = should_stop()
            heard = dict(cluster.heard)
        counts = jobs.counts()
        done = jobs.count_since(since)
    failed = counts["failed"]
    left = sum(counts[state] for state in IN_LINE)
    if as_json:
        console.print_json({"done": done, "in_line": left, "failed": failed, "heard": heard})
    else:
        for name, count in sorted(heard.items()):
            console.say(f"{name} heard {count} tracks")
        more = f", {left} in line (give the command again)" if left else ""
        console.say(f"{done} tracks done, {failed} failed{more}")
    return not (stopped or failed or left)


def refuse_daemon(config: Config) -> None:
    """Raise StoreBusy if the daemon runs: it would take our tracks for lost."""
    from reclass_plex.remote import find_daemon

    if find_daemon(config.store.resolve()) is not None:
        raise StoreBusy(
            "the daemon is running, and only one may work on its queue: stop it (systemctl stop"
            " reclass-plex), give this command, and start it again afterwards"
        )


def _batch(places: int) -> int:
    from reclass_plex.worker import BATCH

    return max(BATCH, BATCH_A_PLACE * places)


def _samples(jobs: Jobs) -> list[Path]:
    """Return files in line, of many folders."""
    found: dict[Path, Path] = {}
    for job in jobs.list_jobs(*IN_LINE, limit=SAMPLED):
        found.setdefault(job.path.parent, job.path)
    return list(found.values())[:SAMPLES]
