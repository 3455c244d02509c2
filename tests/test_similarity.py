"""Similar music: which tracks, which of them are wanted, and an index that is never wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from similar_store import clustered, digest_of, fill, touch

from reclass_plex import similarity
from reclass_plex.errors import NotHeard, StoreError
from reclass_plex.learned_genres import DIMS, ENCODER
from reclass_plex.records import Embedding, GenreScore, Verdict
from reclass_plex.similarity import FEW, Neighbour, SimilarMusic, Wish, index_path
from reclass_plex.store import Store

MANY = FEW + 500
ANY = Wish(existing=False)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store.sqlite") as opened:
        yield opened


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return clustered(MANY + 3000)[1]


def exactly(vectors: np.ndarray, number: int, count: int) -> list[str]:
    units = vectors.astype(np.float32)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    order = np.argsort(-(units @ units[number]), kind="stable")
    return [digest_of(one) for one in order if one != number][:count]


def digests(found: tuple[Neighbour, ...]) -> list[str]:
    return [one.digest for one in found]


def verdict(genre: str, unsure: str | None = None) -> Verdict:
    return Verdict("default", (GenreScore(genre, 0.9),), "musicnn-few", (), 0.1, unsure)


def hear(
    store: Store,
    path: Path,
    vector: np.ndarray,
    *,
    digest: str | None = None,
    genres: tuple[str, ...] = (),
    album: str | None = None,
    said: Verdict | None = None,
) -> str:
    """Do what the pipeline does with a track that it has heard."""
    touch([path])
    digest = digest or path.stem.rjust(32, "0")
    embedding = Embedding(ENCODER, vector.astype(np.float32))
    store.save_verdict(digest, "m", said or verdict("Rock"), [embedding])
    store.save_track(path, 1, 1, digest=digest, genres=genres, album=album)
    return digest


def at(angle: float) -> np.ndarray:
    """A direction, so many degrees away from the first."""
    vector = np.zeros(DIMS, np.float32)
    vector[0], vector[1] = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    return 7 * vector


def test_a_small_library_needs_no_index(store: Store, tmp_path: Path) -> None:
    paths = [tmp_path / "a" / f"{number}.mp3" for number in range(4)]
    for path, angle in zip(paths, (0, 60, 20, 40), strict=True):
        hear(store, path, at(angle), genres=("Jazz",), album="x")
    music = SimilarMusic.open(store)
    found = music.near(paths[0])
    assert [one.path for one in found] == [paths[2], paths[3], paths[1]]
    angles = np.degrees(np.arccos([one.similarity for one in found]))
    assert angles == pytest.approx([20, 40, 60], abs=0.2)
    first = found[0]
    assert (first.genres, first.album, first.heard) == (("Jazz",), "x", GenreScore("Rock", 0.9))
    assert {one.path for one in music.near(first.digest, 2)} == {paths[0], paths[3]}
    assert [one.path for one in music.near(at(50), 2)] == [paths[1], paths[3]]
    assert not music.needs_update()
    assert music.update().count == 0
    assert not index_path(store).exists()


def test_a_track_counts_as_soon_as_it_was_heard(store: Store, tmp_path: Path) -> None:
    hear(store, tmp_path / "1.mp3", at(0))
    music = SimilarMusic.open(store)
    assert music.near(at(0), 5)[0].path.name == "1.mp3"
    hear(store, tmp_path / "2.mp3", at(1))
    assert digests(music.near(tmp_path / "1.mp3")) == ["2".rjust(32, "0")]
    hear(store, tmp_path / "2.mp3", at(90), digest="2".rjust(32, "0"))  # heard anew, differently
    (only,) = music.near(tmp_path / "1.mp3")
    assert only.similarity == pytest.approx(0, abs=0.01)


def test_one_result_a_recording_at_a_path_that_is_there(store: Store, tmp_path: Path) -> None:
    hear(store, tmp_path / "1.mp3", at(0))
    for name in ("gone.mp3", "here.mp3", "copy.mp3"):
        hear(store, tmp_path / name, at(5), digest="d" * 32)
    hear(store, tmp_path / "lost.mp3", at(1))
    (tmp_path / "gone.mp3").unlink()
    (tmp_path / "lost.mp3").unlink()
    music = SimilarMusic.open(store)
    assert [one.path.name for one in music.near(tmp_path / "1.mp3")] == ["here.mp3"]
    names = [one.path.name for one in music.near(tmp_path / "1.mp3", 10, ANY)]
    assert names == ["lost.mp3", "gone.mp3"]


def test_wishes(store: Store, tmp_path: Path) -> None:
    def add(name: str, angle: float, *genres: str, said: Verdict | None = None) -> None:
        path = tmp_path / name
        hear(store, path, at(angle), digest=f"{angle:032}", genres=genres, said=said)

    add("A/One/0.mp3", 0, "Rock")
    add("A/One/1.mp3", 1, "Rock")
    add("A/Two/2.mp3", 2, "hip hop")
    add("A/Two/3.mp3", 3, "Rock", "Jazz")
    add("B/Three/4.mp3", 4, said=verdict("Hip-Hop"))
    add("B/Three/5.mp3", 5, said=verdict("Hip-Hop", "too close to call"))
    add("B/Four/6.mp3", 6, "Jazz", said=verdict("Hip-Hop"))
    music = SimilarMusic.open(store)

    def near(**wish: object) -> str:
        found = music.near(tmp_path / "A/One/0.mp3", 10, Wish(**wish))  # type: ignore[arg-type]
        return "".join(one.path.stem for one in found)

    assert near() == "123456"
    assert near(genres=("Hip-Hop",)) == "24"
    assert near(genres=("Jazz", "HipHop")) == "2346"
    assert near(genres=("Polka",)) == ""
    assert near(per_album=1) == "1246"
    assert near(per_artist=1) == "14"
    assert near(per_artist=2, per_album=1) == "1246"
    assert near(other_albums=True) == "23456"
    assert near(least=float(np.cos(np.radians(3.5)))) == "123"
    assert near(per_album=0) == ""


def test_the_index_finds_what_is_nearest(store: Store, vectors: np.ndarray) -> None:
    fill(store, vectors[:MANY])
    music = SimilarMusic.open(store)
    assert music.needs_update()
    before = [digests(music.near(digest_of(number), 10, ANY)) for number in range(0, MANY, 50)]
    assert before[0] == exactly(vectors[:MANY], 0, 10)
    done = music.update()
    assert (done.count, done.added) == (MANY, MANY)
    assert not music.needs_update()
    assert music._known.base is not None
    assert len(music._known.ids) == 0  # nothing is compared one by one now
    after = [digests(music.near(digest_of(number), 10, ANY)) for number in range(0, MANY, 50)]
    assert sum(len(set(a) & set(b)) for a, b in zip(before, after, strict=True)) > 490  # of 500
    again = SimilarMusic.open(store)
    assert digests(again.near(digest_of(7), 10, ANY)) == digests(music.near(digest_of(7), 10, ANY))


def test_new_tracks_are_found_beside_the_index_then_in_it(
    store: Store, vectors: np.ndarray
) -> None:
    fill(store, vectors[:MANY])
    music, other = SimilarMusic.open(store), SimilarMusic.open(store)
    music.update()
    assert other.near(digest_of(0), 1, ANY)
    late = MANY + 2500
    fill(store, vectors[MANY:late], first=MANY)
    assert digests(other.near(digest_of(MANY), 5, ANY)) == exactly(vectors[:late], MANY, 5)
    assert digests(other.near(digest_of(5), 5, ANY)) == exactly(vectors[:late], 5, 5)
    done = music.update()
    assert (done.count, done.added) == (late, 2500)
    assert digests(other.near(digest_of(5), 5, ANY)) == exactly(vectors[:late], 5, 5)
    assert other._known.base is not None
    assert other._known.base.card.count == late  # the other one has taken it up
    assert len(other._known.ids) == 0


def test_what_is_rare_near_a_track_is_found(
    store: Store, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(similarity, "MOST_ASKED", 200)
    genres = [("Rock",)] * MANY
    rare = (17, 1234, 2400)
    for number in rare:
        genres[number] = ("Zydeco",)
    fill(store, vectors[:MANY], genres)
    music = SimilarMusic.open(store)
    music.update()
    fill(store, vectors[MANY : MANY + 20], [("Zydeco",)] + [("Rock",)] * 19, first=MANY)
    found = digests(music.near(digest_of(0), 10, Wish(genres=("zydeco",), existing=False)))
    order = exactly(vectors[: MANY + 20], 0, MANY + 20)
    expected = sorted(map(digest_of, (*rare, MANY)), key=order.index)
    assert found == expected
    spread = music.near(digest_of(0), 100, Wish(per_album=1, existing=False))
    assert len({one.album for one in spread}) == len(spread) == 100
    everyone = music.near(digest_of(0), MANY * 2, ANY)
    assert len(set(digests(everyone))) == len(everyone) == MANY + 19


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "noise", "folder", "end"])
def test_a_damaged_index_is_not_used_and_made_anew(
    store: Store, vectors: np.ndarray, damage: str
) -> None:
    fill(store, vectors[:MANY])
    SimilarMusic.open(store).update()
    path = index_path(store)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 3] ^= 0x40
        path.write_bytes(content)
    elif damage == "end":
        path.write_bytes(content + b"\0")
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(b"" if damage == "empty" else os.urandom(5000))
    music = SimilarMusic.open(store)
    assert digests(music.near(digest_of(3), 5, ANY)) == exactly(vectors[:MANY], 3, 5)
    assert music.needs_update()
    if damage == "folder":
        with pytest.raises(StoreError, match="cannot be written"):
            music.update()
        path.rmdir()
    assert music.update().added == MANY
    assert digests(music.near(digest_of(3), 5, ANY)) == exactly(vectors[:MANY], 3, 5)
    assert not path.with_name(path.name + ".tmp").exists()


def test_an_index_of_another_encoder_or_store_is_not_used(
    store: Store, vectors: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, vectors[:MANY])
    SimilarMusic.open(store).update()
    with Store.open(tmp_path / "other" / "store.sqlite") as other:
        fill(other, vectors[MANY : MANY * 2], first=MANY)  # the same ids
        shutil.copy(index_path(store), index_path(other))
        music = SimilarMusic.open(other)
        assert music.near(vectors[MANY], 1, ANY)[0].digest == digest_of(MANY)
        assert music.needs_update()
    with Store.open(tmp_path / "fewer" / "store.sqlite") as fewer:  # an old backup
        fill(fewer, vectors[:100])
        shutil.copy(index_path(store), index_path(fewer))
        music = SimilarMusic.open(fewer)
        assert digests(music.near(digest_of(3), 5, ANY)) == exactly(vectors[:100], 3, 5)
    monkeypatch.setattr(similarity, "ENCODER", "mert-95m")
    assert SimilarMusic.open(store).near(vectors[0], 5, ANY) == ()


def test_what_the_store_dropped_is_no_answer_and_leaves_the_index(
    store: Store, vectors: np.ndarray
) -> None:
    fill(store, vectors[:MANY])
    music = SimilarMusic.open(store)
    music.update()
    gone = exactly(vectors[:MANY], 0, 600)
    with store.transaction() as connection:
        connection.exec_driver_sql(
            f"DELETE FROM embeddings WHERE digest IN ({','.join('?' * len(gone))})", tuple(gone)
        )
    found = digests(music.near(digest_of(0), 5, ANY))
    assert len(found) == 5
    assert set(found) <= set(exactly(vectors[:MANY], 0, 620)[600:])
    music.update()
    assert music._known.base is not None
    assert music._known.base.card.count == MANY - 600


def test_vectors_that_are_none_are_left_out(store: Store, tmp_path: Path) -> None:
    hear(store, tmp_path / "1.mp3", at(0))
    hear(store, tmp_path / "2.mp3", np.zeros(DIMS))
    hear(store, tmp_path / "3.mp3", np.full(DIMS, np.nan))
    hear(store, tmp_path / "4.mp3", np.full(DIMS, np.inf))
    hear(store, tmp_path / "5.mp3", at(3)[:50])
    hear(store, tmp_path / "6.mp3", at(3))
    music = SimilarMusic.open(store)
    assert [one.path.name for one in music.near(tmp_path / "1.mp3")] == ["6.mp3"]
    for name in ("2.mp3", "3.mp3", "5.mp3", "never.mp3"):
        with pytest.raises(NotHeard, match=name):
            music.near(tmp_path / name)
    with pytest.raises(NotHeard, match="' or 1=1"):
        music.near("' or 1=1")
    for vector in (np.zeros(DIMS), np.full(DIMS, np.nan), np.ones(3), np.ones((2, DIMS))):
        with pytest.raises(NotHeard):
            music.near(vector.astype(np.float32))
    assert music.near(tmp_path / "1.mp3", 0) == ()


def test_many_threads_and_a_new_index_meanwhile(store: Store, vectors: np.ndarray) -> None:
    fill(store, vectors[:MANY])
    music = SimilarMusic.open(store)
    expected = {n: digests(music.near(digest_of(n), 3, ANY))[0] for n in range(20)}
    wrong: list[object] = []

    def ask() -> None:
        try:
            for n, first in expected.items():
                if digests(music.near(digest_of(n), 3, ANY))[0] != first:
                    wrong.append(n)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    SimilarMusic.open(store).update()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_it_asks_for_no_torch() -> None:
    code = (
        "import sys; from reclass_plex.similarity import SimilarMusic;"
        " print([m for m in ('torch', 'usearch', 'numpy', 'av') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
