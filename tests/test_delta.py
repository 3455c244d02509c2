from __future__ import annotations

import io
import random
import resource
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reclass_plex.delta import DeltaError, apply_delta, make_delta

NOISE = random.Random(0).randbytes(3_000_000)


def restore(new: Path, delta: bytes) -> bytes:
    out = io.BytesIO()
    apply_delta(new, delta, out)
    return out.getvalue()


def round_trip(folder: Path, old: bytes, new: bytes) -> int:
    (folder / "old").write_bytes(old)
    (folder / "new").write_bytes(new)
    delta = make_delta(folder / "old", folder / "new")
    assert restore(folder / "new", delta) == old
    return len(delta)


# A file is a row of pieces: noise that both versions may share, zeros, and small texts.
pieces = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 100_000), st.integers(0, 70_000)).map(
            lambda span: NOISE[span[0] : span[0] + span[1]]
        ),
        st.integers(0, 70_000).map(bytes),
        st.binary(max_size=300),
    ),
    max_size=6,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(pieces, pieces)
def test_any_file_is_restored_from_any_other(
    tmp_path: Path, old: list[bytes], new: list[bytes]
) -> None:
    round_trip(tmp_path, b"".join(old), b"".join(new))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.integers(0, 500_000), st.integers(0, 900), st.binary(max_size=900))))
def test_edits_cost_about_what_they_replaced(
    tmp_path: Path, edits: list[tuple[int, int, bytes]]
) -> None:
    old = NOISE[:500_000]
    new = old
    for place, removed, added in edits:
        new = new[:place] + added + new[place + removed :]
    size = round_trip(tmp_path, old, new)
    assert size < 200 + sum(removed + 300 for _, removed, _ in edits)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"", b""),
        (b"", b"x"),
        (b"x", b""),
        (bytes(100_000), bytes(99_999)),
        (NOISE, NOISE + b"tag"),
        (b"tag" + NOISE, NOISE),
    ],
)
def test_edges(tmp_path: Path, old: bytes, new: bytes) -> None:
    assert round_trip(tmp_path, old, new) < 150


def test_identical_files_need_next_to_nothing(tmp_path: Path) -> None:
    assert round_trip(tmp_path, NOISE, NOISE) < 80


def test_a_tag_that_grew_in_front_and_a_byte_that_changed_behind(tmp_path: Path) -> None:
    old = b"ID3" + bytes(2000) + NOISE + b"TAG" + bytes(125)
    new = b"ID3" + b"Rock" + bytes(4000) + NOISE + b"TAG" + bytes(124) + b"\x11"
    assert round_trip(tmp_path, old, new) < 200


def test_numbers_changed_on_every_page_stay_compact(tmp_path: Path) -> None:
    def pages(step: int) -> bytes:
        mix = random.Random(step)
        return b"".join(
            b"OggS" + (i + step).to_bytes(4, "little") + mix.randbytes(4) + NOISE[at : at + 4400]
            for i, at in enumerate(range(0, len(NOISE), 4400))
        )

    count = -(-len(NOISE) // 4400)
    assert round_trip(tmp_path, pages(0), b"new" + pages(1)) < 16 * count


def test_memory_is_bounded_for_large_files(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    size = 300 << 20
    for path, tag in ((old, b"ID3 old"), (new, b"ID3 newer" + bytes(3000))):
        with path.open("wb") as file:
            file.write(tag + NOISE)
            file.seek(size, io.SEEK_CUR)  # a hole: no disk space is taken
            file.write(NOISE + tag)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    delta = make_delta(old, new)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40 << 10  # KiB
    assert len(delta) < 300


def test_damaged_and_foreign_deltas_are_refused(tmp_path: Path) -> None:
    old, new, other = (tmp_path / name for name in ("old", "new", "other"))
    old.write_bytes(NOISE[:5000] + b"old" + NOISE[5000:9000])
    new.write_bytes(NOISE[:9000])
    other.write_bytes(NOISE[1:9001])
    delta = make_delta(old, new)
    for wrong in (b"", b"RPD2" + delta[4:], delta[:4], delta[:20]):
        with pytest.raises(DeltaError):
            restore(new, wrong)
    for place in range(len(delta)):  # of damage, some hits only a checksum: never a wrong result
        for wrong in (
            delta[:place],
            delta[:place] + bytes([delta[place] ^ 1]) + delta[place + 1 :],
        ):
            try:
                assert restore(new, wrong) == old.read_bytes()
            except DeltaError:
                continue
    with pytest.raises(DeltaError, match="not for this file"):
        restore(other, delta)
    with pytest.raises(DeltaError, match="not for this file"):
        restore(old, delta)
