"""One round: what is due -> its tracks in Plex -> albums and artists vote -> only differences.

Nothing is lost when the process is killed or the server goes away at any point: rows stay due
until all of their edits were read back, and edits are kept before they are applied.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reclass_plex.config import PolicyOptions
from reclass_plex.plex import Field, Kind, Plex, PlexItem, apply_edits, plan_edits
from reclass_plex.store import Store
from reclass_plex.sync.known import taken_back
from reclass_plex.sync.ledger import Ledger, NewEdit, PlexEdit
from reclass_plex.sync.places import Places
from reclass_plex.sync.targets import (
    Target,
    choose_genres,
    choose_labels,
    fields_of,
    find_targets,
)
from reclass_plex.sync.wanted import Wanted, WantedRow

SYNC_LIMIT = 10_000  # files of one round: the more together, the fewer requests
UNKNOWN_FILE = "Plex does not know this file yet"


@dataclass(frozen=True)
class SyncResult:
    """What one round did: files that are done, unknown to Plex, or refused; and items written."""

    done: int = 0
    unknown: int = 0
    failed: int = 0
    written: Mapping[Kind, int] = field(default_factory=dict)


@dataclass
class _Findings:
    """By rating key: why items are left as they are, or must be looked after again."""

    left: dict[int, str] = field(default_factory=dict)
    trouble: dict[int, str] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)
    written: dict[int, Kind] = field(default_factory=dict)

    def leave(self, key: int, of: Field, reason: str) -> None:
        """Note why a field is left as it is."""
        _note(self.left, key, of, reason)

    def fail(self, key: int, of: Field, reason: str) -> None:
        """Note why a field must be looked after again."""
        _note(self.trouble, key, of, reason)


def _note(notes: dict[int, str], key: int, of: Field, reason: str) -> None:
    said = reason if of == "genre" else f"{of}: {reason}"
    notes[key] = f"{notes[key]}; {said}" if key in notes else said


def sync_once(
    plex: Plex, store: Store, policy: PolicyOptions, now: float, *, limit: int = SYNC_LIMIT
) -> SyncResult:
    """Make Plex agree with what is due by `now`. Raises PlexError and StoreError: call again.

    Files that Plex does not know, and items that it refused to change, come again after a pause.
    Raises StoreBusy at once while another process changes Plex: an undo.
    """
    with store.writing_plex():
        return _sync_once(plex, store, policy, now, limit)


def _sync_once(
    plex: Plex, store: Store, policy: PolicyOptions, now: float, limit: int
) -> SyncResult:
    wanted = Wanted(store)
    places = Places(store, plex)
    if places.complete(now):
        wanted.hasten(now)
    rows = wanted.due(now, limit)
    undone = taken_back(store, [row.path for row in rows])
    wanted.forget(undone)
    places_of = places.find({row.path for row in rows} - undone, now)
    unknown = [row for row in rows if row.path not in undone and row.path not in places_of]
    wanted.later(unknown, now, UNKNOWN_FILE)
    rows = [row for row in rows if row.path in places_of]

    found = [(place, row) for row in rows for place in places_of[row.path]]
    targets = find_targets(plex, store, places, found, policy)
    items = plex.read_items(targets)
    findings = _Findings(gone={key for key in targets if key not in items})
    for of in fields_of(policy):
        ledger = Ledger(store, plex.uuid, of)
        piles, items = ledger.settle(plex, ledger.piles(targets), items)
        edits = _plan(plex, of, targets, items, piles, policy, findings)
        _apply(plex, ledger, ledger.plan(edits, now), findings)
    if findings.gone:
        places.look_again({track for key in findings.gone for track in targets[key].tracks}, now)
    failed = _close(wanted, rows, targets, items, findings, now)
    written = Counter(findings.written.values())
    return SyncResult(len(rows) - failed, len(unknown), failed, dict(written))


def _plan(
    plex: Plex,
    of: Field,
    targets: Mapping[int, Target],
    items: Mapping[int, PlexItem],
    piles: Mapping[int, Sequence[PlexEdit]],
    policy: PolicyOptions,
    findings: _Findings,
) -> list[NewEdit]:
    """Decide in which items a field is to be written."""
    former = {key: pile[-1] for key, pile in piles.items()}
    wanted: dict[int, tuple[str, ...]] = {}
    for key, item in items.items():
        tags = targets[key].tags(of)
        if key in findings.gone or (of != "genre" and not tags):
            continue
        top = former.get(key)
        if top is not None and top.state == "planned":
            findings.fail(key, of, f"Plex did not take {', '.join(top.record.after)}")
            continue
        record = top.record if top else None
        if of == "genre":
            chosen = choose_genres(item, tags, record, policy, decided=targets[key].decided)
        else:
            chosen = choose_labels(item, of, tags, record)
        if isinstance(chosen, str):
            findings.leave(key, of, chosen)
        elif chosen:
            wanted[key] = chosen
    records = {key: edit.record for key, edit in former.items()}
    plan = plan_edits(plex, wanted, records, items, field=of)
    for one in plan.skipped:
        findings.leave(one.rating_key, of, one.reason)
    edits = []
    for record in plan.records:
        item, target = items[record.rating_key], targets[record.rating_key]
        top = former.get(record.rating_key)
        over = top.id if top is not None and top.record.is_ours(item.tags(of)) else None
        path = target.rows[0].path if item.kind == "track" else None
        edits.append(NewEdit(record, target.run_id, over, path))
    return edits


def _apply(plex: Plex, ledger: Ledger, edits: Sequence[PlexEdit], findings: _Findings) -> None:
    """Write what is planned, and keep what became of it; what was refused stays planned."""
    done, gone = [], []
    for edit, outcome in zip(edits, apply_edits(plex, [e.record for e in edits]), strict=True):
        key = edit.record.rating_key
        if outcome.status == "done":
            done.append(edit.id)
            findings.written[key] = edit.record.kind
        elif outcome.status == "gone":
            gone.append(edit.id)
            findings.gone.add(key)
        else:
            findings.fail(key, edit.record.field, outcome.reason)
    ledger.mark(done, "done")
    ledger.mark(gone, "gone")


def _close(
    wanted: Wanted,
    rows: Sequence[WantedRow],
    targets: Mapping[int, Target],
    items: Mapping[int, PlexItem],
    findings: _Findings,
    now: float,
) -> int:
    """Close the rows all of whose items are as they shall be; return how many are not."""
    trouble: dict[Path, list[str]] = defaultdict(list)
    left: dict[Path, list[str]] = defaultdict(list)
    for key, target in targets.items():
        for reasons, found in ((trouble, findings.trouble), (left, findings.left)):
            for row in target.rows if key in found else ():
                reasons[row.path].append(f"{items[key].kind}: {found[key]}")
        for row in target.rows if key in findings.gone else ():
            trouble[row.path].append("its item in Plex is gone, and looked for again")
    wanted.done(
        [row for row in rows if row.path not in trouble],
        {path: "; ".join(reasons) for path, reasons in left.items()},
    )
    again: dict[str, list[WantedRow]] = defaultdict(list)
    for row in rows:
        if row.path in trouble:
            again["; ".join(trouble[row.path])].append(row)
    for message, rows_of in again.items():
        wanted.later(rows_of, now, message)
    return len(trouble)
