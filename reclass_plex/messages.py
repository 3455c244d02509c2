"""Sending a message to where the user reads it: Discord, ntfy, a webhook, e-mail, through Apprise.

The addresses bear passwords and tokens, so none is ever shown, logged or part of an error: a
destination is called by its service and its place in the file ("ntfy, address 2"). `send` works
here and now; `send_in_child` in a process of its own, which ends by force if it hangs and gives the
library's memory back. One destination that fails does not keep the others from being told.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from reclass_plex.errors import ConfigError

SEND_SECONDS = 120.0  # for all destinations together; each request has Apprise's own 4 s
LONGEST_TITLE = 200  # characters; Discord takes 256
LONGEST_BODY = 1800  # characters; Discord takes 2000
_MODULE = "reclass_plex.messages"
_STATUS = re.compile(r"error=(\d{3})\b")  # all that is taken from Apprise's own log


@dataclass(frozen=True)
class Delivery:
    """What became of a message at one destination. `error` is for people; None: it was taken."""

    key: str  # stands for the address, see `address_key`
    name: str
    error: str | None = None


Send = Callable[[Sequence[str], str, str], list[Delivery]]


def address_key(url: str) -> str:
    """Return what tells an address from the others: too short to guess what is in it."""
    return hashlib.blake2b(url.encode(), digest_size=4).hexdigest()


def send(urls: Sequence[str], title: str, body: str) -> list[Delivery]:
    """Send a message in plain text to each address; never raises for one that does not take it."""
    return [_send_one(url, number, title, body) for number, url in enumerate(urls, 1)]


def send_in_child(
    urls: Sequence[str],
    title: str,
    body: str,
    *,
    on_start: Callable[[subprocess.Popen[bytes]], object] = lambda process: None,
    seconds: float = SEND_SECONDS,
) -> list[Delivery]:
    """Do the same in another process, which may be killed; `on_start` is given it."""
    process = subprocess.Popen(
        [sys.executable, "-m", _MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # a traceback would show what it was given
    )
    with process:
        on_start(process)
        order = json.dumps({"urls": list(urls), "title": title, "body": body}).encode()
        try:
            answer, _ = process.communicate(order, timeout=seconds)
            return [Delivery(**one) for one in json.loads(answer)]
        except subprocess.TimeoutExpired:
            why = f"no answer within {seconds:g} s"
        except (ValueError, TypeError, OSError):
            why = "the process that sends ended before its time"
        finally:
            process.kill()
    return [
        Delivery(address_key(url), f"address {number}", why) for number, url in enumerate(urls, 1)
    ]


def _open(url: str, number: int) -> tuple[str, Any]:
    """Return a destination's name and Apprise's object for it. Raises ConfigError."""
    import apprise

    logging.getLogger("apprise").handlers[:] = [logging.NullHandler()]
    logging.getLogger("apprise").propagate = False  # its lines show addresses
    opened = apprise.Apprise()
    try:
        with warnings.catch_warnings():  # of a hundred plugins, some are old
            warnings.simplefilter("ignore")
            known = opened.add(url)
    except Exception:  # a plugin that stumbles over an address; what it says may show it
        known = False
    if not known or len(opened) != 1:
        raise ConfigError(
            f"address {number}: is none that Apprise knows, such as ntfy://ntfy.sh/topic,"
            " discord://ID/TOKEN, json://host/path or mailto://user:password@host"
        )
    return f"{opened[0].service_name}, address {number}", opened


def _send_one(url: str, number: int, title: str, body: str) -> Delivery:
    key = address_key(url)
    try:
        name, opened = _open(url, number)
    except ConfigError as error:
        return Delivery(key, f"address {number}", str(error).partition(": ")[2])
    said: list[str] = []
    handler = _Statuses(said)
    log = logging.getLogger("apprise")
    log.addHandler(handler)
    try:
        taken = opened.notify(
            title=title[:LONGEST_TITLE], body=body[:LONGEST_BODY], body_format="text"
        )
    except Exception as error:  # of a plugin: its text may show the address, its kind does not
        return Delivery(key, name, f"it could not be sent ({type(error).__name__})")
    finally:
        log.removeHandler(handler)
    if taken:
        return Delivery(key, name)
    why = f"it was refused with status {said[-1]}" if said else "it cannot be reached"
    return Delivery(key, name, why)


class _Statuses(logging.Handler):
    """Takes the HTTP statuses out of Apprise's log, and nothing else."""

    def __init__(self, said: list[str]) -> None:
        super().__init__()
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        if match := _STATUS.search(record.getMessage()):
            self._said.append(match[1])


def main() -> int:
    """Send what stands on standard input as JSON; say what became of it on standard output."""
    order = json.load(sys.stdin)
    out = [asdict(one) for one in send(order["urls"], order["title"], order["body"])]
    sys.stdout.write(json.dumps(out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
