"""The worker's process: reads its orders from standard input, works, and ends when idle.

It is a process of its own (`service.supervisor` starts it), because then the models leave the
memory, and the GPU, with it; because a GPU's context that is lost can only be had again by a new
process; and because whatever brings it down leaves the daemon alive, and the jobs in the store.

The first line of standard input is the order (`Order`, JSON). Every further line means that there
may be work; its end means that the daemon is gone, so that this process shall be, too. On standard
output it says which models it loaded, and what it logs (`service.worker_lines`).

Exit status: 0 idle for long enough, or asked to stop; EX_TEMPFAIL the GPU failed and a new process
may do better; EX_CONFIG what only the user can mend. Anything else is a crash.
"""

from __future__ import annotations

import gc
import io
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Literal

from pydantic import BaseModel

from reclass_plex import pipeline
from reclass_plex.config import Config
from reclass_plex.decoders import Decoders, Limits
from reclass_plex.errors import (
    ConfigError,
    DeviceError,
    ModelError,
    ReclassError,
    StoreBusy,
    StoreError,
)
from reclass_plex.store import Store
from reclass_plex.worker import Worker
from service.logs import set_up_log
from service.worker_lines import Report, ToDaemon

log = logging.getLogger(__name__)

LONGEST_WAIT = 2.0  # seconds between looks into the store: what other processes put there
REST_SECONDS = 0.2  # between looks whether to end
ERROR_PAUSE = 10.0  # seconds after an error that is nobody's fault (a full disk)


class Order(BaseModel):
    """What the daemon starts a worker with."""

    config: Config
    store: Path
    device: Literal["auto", "cpu", "cuda"]
    log_level: int = logging.INFO


class _Signals:
    """What came in from outside, until it is looked at."""

    def __init__(self) -> None:
        self.stopping = False
        self.woken = threading.Event()

    def stop(self, signum: int = 0, frame: FrameType | None = None) -> None:
        """End after the file in hand.

        A signal's handler: it interrupts the main thread, which may hold the event's lock just
        then, so it leaves the event alone. Who sends the signal wakes us by a line as well.
        """
        self.stopping = True

    def should_stop(self) -> bool:
        """Say whether to end."""
        return self.stopping

    def rest(self, seconds: float) -> None:
        """Wait, but not for long once it is to end."""
        until = time.monotonic() + seconds
        while not self.stopping and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, REST_SECONDS))

    def read(self, orders: io.FileIO) -> None:
        """Take lines until there is nobody any more to send them."""
        while orders.readline():
            self.woken.set()
        self.stopping = True
        self.woken.set()


def main() -> int:
    """Work as ordered; return the exit status."""
    signals = _Signals()
    signal.signal(signal.SIGTERM, signals.stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the daemon, which tells us
    orders = io.FileIO(0, closefd=False)  # a buffer would be locked by its reader at the end
    line = orders.readline()
    if not line:  # the daemon was killed before it said what to do
        return 0
    order = Order.model_validate_json(line)
    daemon = ToDaemon(os.dup(1))
    os.dup2(2, 1)  # what others may print is no line of ours
    set_up_log(order.log_level, daemon)
    threading.Thread(target=signals.read, args=(orders,), name="orders", daemon=True).start()
    gc.set_threshold(100_000)
    try:
        return _work(order, signals, daemon)
    except DeviceError as error:
        log.error("%s", error)
        return os.EX_TEMPFAIL
    except (ConfigError, ModelError) as error:
        log.error("%s", error)
        return os.EX_CONFIG
    except StoreError as error:  # damaged, on a disk that is full or fails: a crash with a name
        log.error("%s", error)
        return 1


def _work(order: Order, signals: _Signals, daemon: ToDaemon) -> int:
    from reclass_plex.device import choose_device
    from reclass_plex.ensemble import Ensemble
    from reclass_plex.sync import Wanted

    options = order.config.worker
    ensemble = Ensemble.from_config(order.config, choose_device(order.device))
    ensemble.load()
    daemon.report(Report(models=ensemble.fingerprint, left_out=ensemble.notes))
    decoders = Decoders(options.decoders or min(4, pipeline.count_cores()), Limits.of(options))
    with Store.open(order.store) as store:
        worker = Worker(
            store,
            order.config,
            ensemble,
            threads=pipeline.count_cores(),
            hear=pipeline.listener(ensemble, decoders.decode),
            examine=decoders.examine,
            wanted=Wanted(store) if order.config.plex.url else None,
            should_stop=signals.should_stop,
            sleep=signals.rest,
        )
        try:
            _loop(worker, signals, options.idle_minutes * 60)
        finally:
            decoders.close()
            worker.close()
    return 0


def _loop(worker: Worker, signals: _Signals, idle_seconds: float) -> None:
    """Work until there was nothing to do for `idle_seconds`, or asked to stop."""
    busy = time.monotonic()
    while not signals.stopping:
        signals.woken.clear()
        try:
            worked = worker.step(time.time())
        except (DeviceError, ConfigError, ModelError):
            raise
        except Exception as error:  # the only place where a track may not end the process
            if isinstance(error, StoreBusy):
                log.info("%s", error)
            elif isinstance(error, ReclassError):
                log.error("%s", error)
            else:
                log.exception("the worker failed; it goes on in %.0f s", ERROR_PAUSE)
            signals.rest(ERROR_PAUSE)
            continue
        if worked:
            busy = time.monotonic()
        elif time.monotonic() - busy > idle_seconds:
            return
        else:
            signals.woken.wait(LONGEST_WAIT)


if __name__ == "__main__":
    sys.exit(main())
