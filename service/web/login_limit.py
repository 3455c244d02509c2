"""How often passwords may be tried: few times for each address, and not too often in total.

Buckets that fill up again by the clock, so that nobody is locked out for long. Who tries from many
addresses empties the bucket of all strangers; addresses from which somebody signed in before, and
this machine's own, have none but their own, so their owner is not kept out.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass

TRIES = 5.0  # that an address has at first,
SECONDS_A_TRY = 30.0  # and one more each time these passed
TOTAL_TRIES = 30.0  # of all strangers together
TOTAL_SECONDS_A_TRY = 2.0
MAX_ADDRESSES = 10_000  # remembered; the longest unused are forgotten first


@dataclass
class _Bucket:
    left: float
    at: float

    def refill(self, now: float, capacity: float, seconds: float) -> None:
        self.left = min(capacity, self.left + max(0.0, now - self.at) / seconds)
        self.at = now


class LoginLimit:
    """Counts tries. `now` is always given, in seconds of a steady clock."""

    def __init__(self) -> None:
        self._addresses: OrderedDict[str, _Bucket] = OrderedDict()
        self._known: OrderedDict[str, None] = OrderedDict()
        self._total = _Bucket(TOTAL_TRIES, 0.0)

    def take(self, address: str, now: float) -> float:
        """Take a try; return 0.0, or if there is none in how many seconds there will be one."""
        group = _group(address)
        own = self._addresses.setdefault(group, _Bucket(TRIES, now))
        self._addresses.move_to_end(group)
        while len(self._addresses) > MAX_ADDRESSES:
            self._addresses.popitem(last=False)
        own.refill(now, TRIES, SECONDS_A_TRY)
        self._total.refill(now, TOTAL_TRIES, TOTAL_SECONDS_A_TRY)
        if own.left < 1:
            return (1 - own.left) * SECONDS_A_TRY
        if not self._is_known(group):
            if self._total.left < 1:
                return (1 - self._total.left) * TOTAL_SECONDS_A_TRY
            self._total.left -= 1
        own.left -= 1
        return 0.0

    def succeeded(self, address: str) -> None:
        """The password was right: give the tries of this address back, and know it."""
        group = _group(address)
        self._addresses.pop(group, None)
        self._known[group] = None
        self._known.move_to_end(group)
        while len(self._known) > MAX_ADDRESSES:
            self._known.popitem(last=False)

    def _is_known(self, group: str) -> bool:
        return group in self._known or group in {"127.0.0.1", "::1"}


def _group(address: str) -> str:
    """Return what counts as one address: of IPv6 the /64, which one customer has at least."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        if not found.is_loopback:
            return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)
