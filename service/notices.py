"""Tells the user what needs them, and each day what was done: a thread, so that nothing waits.

Every `STEP_SECONDS`: look what is wrong, note it in the store, make the daily summary when it is
time, and send what is due, in a process of its own. The addresses are read again each time, so that
a new one counts at once; while there are none nothing is looked at.
"""

from __future__ import annotations

import logging
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from reclass_plex.config import NotifyOptions
from reclass_plex.credentials import read_notify_urls
from reclass_plex.errors import ConfigError, ReclassError, StoreError
from reclass_plex.hours import next_time
from reclass_plex.messages import Delivery, address_key, send_in_child
from reclass_plex.notices import Message, Notices, Problem

log = logging.getLogger(__name__)

STEP_SECONDS = 20.0
STOP_SECONDS = 3.0
DAY = 86400.0  # seconds
LONGEST_SUMMARY = 7 * DAY  # of a machine that was off
MOST_AT_ONCE = 10  # messages a step

Addresses = Callable[[], Sequence[str]]
Look = Callable[[], Collection[Problem]]


def tell_at_once(options: NotifyOptions, config_file: Path, text: str) -> None:
    """Tell the user why the daemon ends, without a store to note it in. Never raises."""
    try:
        urls = read_notify_urls(options, config_file if config_file.exists() else None, log.debug)
        if urls and options.errors:
            send_in_child(urls, "reclass-plex needs you", text)
    except (ReclassError, OSError) as error:
        log.warning("nobody could be told: %s", error)


class Notifier:
    """Notes problems and sends messages until it is stopped. `step` is for one thread."""

    def __init__(
        self, book: Notices, options: NotifyOptions, read_urls: Addresses, look: Look
    ) -> None:
        """`read_urls` may raise ConfigError, `look` any error of ours."""
        self._book = book
        self._options = options
        self._read_urls = read_urls
        self._look = look
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._said = ""  # what was logged last, so that it is not logged again
        self._store_fault_told = False
        self._thread = threading.Thread(target=self._run, name="notices", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def reload(self, options: NotifyOptions) -> None:
        """Take other options."""
        self._options = options
        self._wake.set()

    def stop(self, timeout: float = STOP_SECONDS) -> None:
        """End; a message on its way is broken off, and sent again at the next start."""
        self._stopping.set()
        self._wake.set()
        with self._lock:
            if self._child is not None:
                self._child.kill()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def step(self, now: float) -> None:
        """Do once what is to be done at a time."""
        try:
            urls = self._read_urls()
        except ConfigError as error:
            self._say(str(error))
            return
        if not urls:
            return
        found: Collection[Problem] = ()
        try:
            if self._options.errors:
                found = self._look()
                hours = self._options.repeat_hours
                self._book.observe(found, now, repeat_seconds=hours * 3600)
            self._summarise(now)
            self._send_due(urls, now)
        except StoreError as error:
            self._tell_of_store(urls, error, found)
        else:
            self._store_is_well(urls)

    def _summarise(self, now: float) -> None:
        """Put the daily summary in line if its time has passed since the last one."""
        if self._options.daily is None:
            return
        last = self._book.last_daily(now)
        if last is None:
            self._book.put("daily", "", "", now)  # from here on
            return
        if next_time(last, self._options.daily) > now:
            return
        summary = self._book.summarise(max(last, now - LONGEST_SUMMARY), now)
        total = sum(summary.genres.values())
        title = f"reclass-plex: {total} tracks tagged" if total else "reclass-plex: what waits"
        self._book.put("daily", title, "" if summary.is_empty else summary.text(), now)

    def _send_due(self, urls: Sequence[str], now: float) -> None:
        for _ in range(MOST_AT_ONCE):
            message = self._book.next_message(now)
            if message is None or self._stopping.is_set():
                return
            deliveries = self._deliver(message, urls)
            if self._stopping.is_set() and any(one.error for one in deliveries):
                return  # broken off
            self._book.finish(message, deliveries, now)
            faults = [f"{one.name}: {one.error}" for one in deliveries if one.error]
            if faults:
                self._say(f"a notification was not taken, tried again: {'; '.join(faults)}")
            else:
                self._said = ""
                log.info("told the user: %s", message.title)

    def _deliver(self, message: Message, urls: Sequence[str]) -> list[Delivery]:
        open_urls = [url for url in urls if address_key(url) not in message.reached]
        return self._send(open_urls, message.title, message.body) if open_urls else []

    def _send(self, urls: Sequence[str], title: str, body: str) -> list[Delivery]:
        def started(process: subprocess.Popen[bytes]) -> None:
            with self._lock:
                self._child = process
                if self._stopping.is_set():
                    process.kill()

        try:
            return send_in_child(urls, title, body, on_start=started)
        except OSError as error:  # no process can be had
            return [Delivery(address_key(url), "all", error.strerror or "") for url in urls]
        finally:
            with self._lock:
                self._child = None

    def _tell_of_store(
        self, urls: Sequence[str], error: StoreError, found: Collection[Problem]
    ) -> None:
        """Tell at once, and once, of a store in which nothing can be noted: its disk is full."""
        self._say(str(error))
        if self._options.errors and not self._store_fault_told:
            text = "\n\n".join([str(error), *(one.text for one in found)])
            deliveries = self._send(urls, "reclass-plex needs you", text)
            self._store_fault_told = any(one.error is None for one in deliveries)

    def _store_is_well(self, urls: Sequence[str]) -> None:
        if self._store_fault_told:
            self._store_fault_told = False
            self._send(urls, "All is well again", "The store can be written again.")

    def _say(self, text: str) -> None:
        if text != self._said:
            log.warning("%s", text)
            self._said = text

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.step(time.time())
            except ReclassError as error:
                self._say(str(error))
            except Exception:  # telling must not end because one look failed
                log.exception("looking for what the user must know failed")
            self._wake.wait(STEP_SECONDS)
            self._wake.clear()
