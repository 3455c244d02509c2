"""Genre names against tables of what people, players and shops write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutagen.id3 import TCON

from reclass_plex.genres import (
    DEFAULT,
    FMA16,
    GTZAN,
    ID3V1_GENRES,
    MSD13,
    TAXONOMIES,
    Taxonomy,
    canonical_genre,
    genre_key,
    is_junk_genre,
    resolve_id3_reference,
    split_genres,
)


def test_the_taxonomies_are_the_published_ones() -> None:
    assert {name: len(taxonomy.genres) for name, taxonomy in TAXONOMIES.items()} == {
        "default": 19,
        "gtzan": 10,
        "fma16": 16,
        "msd13": 13,
    }
    assert set(GTZAN.genres) < set(DEFAULT.genres)


@pytest.mark.parametrize("taxonomy", TAXONOMIES.values(), ids=TAXONOMIES)
def test_a_taxonomy_is_consistent(taxonomy: Taxonomy) -> None:
    assert TAXONOMIES[taxonomy.name] is taxonomy
    assert tuple(taxonomy.parents) == taxonomy.genres
    assert {parent for parent in taxonomy.parents.values() if parent} <= set(taxonomy.genres)
    assert len({genre_key(genre) for genre in taxonomy.genres}) == len(taxonomy.genres)
    for genre in taxonomy.genres:
        assert canonical_genre(genre, taxonomy) == genre
        assert not is_junk_genre(genre)
        assert split_genres(genre) == (genre,)


def test_parents_of_the_default() -> None:
    parents = {genre: parent for genre, parent in DEFAULT.parents.items() if parent}
    assert parents == {
        "Disco": "Soul/R&B",
        "Funk": "Soul/R&B",
        "Metal": "Rock",
        "Punk": "Rock",
    }


@pytest.mark.parametrize(
    "names",
    [
        "Hip-Hop|hip hop|HipHop|HIP_HOP|hiphop|Rap|Hip-Hop/Rap|Rap & Hip-Hop",
        "Soul/R&B|R&B|RnB|R'n'B|R and B|r & b|Rhythm & Blues|Rhythm and Blues|Soul|Soul-RnB",
        "Electronic|electronica|EDM|Électronique",
        "Drum & Bass|Drum and Bass|Drum'n'Bass|drum n bass|DRUM+BASS",
        "Rock|rock|ROCK |Rock & Roll|Rock 'n' Roll|rock and roll",
        "International|World|World Music",
        "Bossa Nova|bossa-nova|Bossanova",
        "Música Popular|musica popular",
    ],
)
def test_names_of_one_genre(names: str) -> None:
    assert len({genre_key(name) for name in names.split("|")}) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Rock", "Metal"),
        ("Metal", "Death Metal"),
        ("Electronic", "House"),
        ("Ambient", "New Age"),
        ("???", "!!!"),
        ("ロック", "ジャズ"),
    ],
)
def test_names_of_two_genres(one: str, other: str) -> None:
    assert genre_key(one) != genre_key(other)


@pytest.mark.parametrize(
    ("text", "default", "gtzan", "fma16", "msd13"),
    [
        ("rock", "Rock", "Rock", "Rock", "Pop/Rock"),
        ("hiphop", "Hip-Hop", "Hip-Hop", "Hip-Hop", "Rap"),
        ("Melodic Death Metal", "Metal", "Metal", "Rock", "Pop/Rock"),
        ("Deep House", "Electronic", None, "Electronic", "Electronic"),
        ("Drum'n'Bass", "Electronic", None, "Electronic", "Electronic"),
        ("R&B", "Soul/R&B", None, "Soul-RnB", "R&B"),
        ("Disco", "Disco", "Disco", "Soul-RnB", "R&B"),
        ("Punk Rock", "Punk", "Rock", "Rock", "Pop/Rock"),
        ("New Age", "Ambient", None, "Instrumental", "New Age"),
        ("Dub", "Reggae", "Reggae", "International", "Reggae"),
        ("Salsa", "International", None, "International", "Latin"),
        ("Bossa Nova", "Jazz", "Jazz", "Jazz", "Latin"),
        ("Folk, World, & Country", "Folk", "Country", "Folk", "Folk"),
        ("Singer/Songwriter", "Folk", None, "Folk", "Folk"),
        ("Trip-Hop", "Electronic", None, "Electronic", "Electronic"),
        ("Rock Español", "Rock", "Rock", "Rock", "Pop/Rock"),
        ("Soundtrack", None, None, "Instrumental", None),
        ("Spoken Word", None, None, "Spoken", None),
        ("Christmas", None, None, None, None),
        ("Other", None, None, None, None),
        ("17", None, None, None, None),
        ("", None, None, None, None),
    ],
)
def test_canonical_genre(
    text: str, default: str | None, gtzan: str | None, fma16: str | None, msd13: str | None
) -> None:
    found = tuple(canonical_genre(text, taxonomy) for taxonomy in (DEFAULT, GTZAN, FMA16, MSD13))
    assert found == (default, gtzan, fma16, msd13)


def test_most_genres_of_id3_have_a_place_in_the_default() -> None:
    homeless = [genre for genre in ID3V1_GENRES if canonical_genre(genre, DEFAULT) is None]
    assert len(homeless) < 0.2 * len(ID3V1_GENRES), homeless


@given(st.text())
def test_canonical_genre_takes_any_text(text: str) -> None:
    for taxonomy in TAXONOMIES.values():
        found = canonical_genre(text, taxonomy)
        assert found is None or found in taxonomy.genres


@given(st.sampled_from(ID3V1_GENRES), st.sampled_from((" ", "-", "_", ".", " / ")))
def test_case_and_punctuation_make_no_difference(genre: str, between: str) -> None:
    other = genre.upper().replace(" ", between)
    assert genre_key(other) == genre_key(genre)
    assert canonical_genre(other, DEFAULT) == canonical_genre(genre, DEFAULT)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "Other",
        "OTHER",
        "other ",
        "<Unknown>",
        "Unknown",
        "Unknown Genre",
        "Misc",
        "Misc.",
        "Genre",
        "None",
        "(none)",
        "n/a",
        "N.A.",
        "Unclassifiable",
        "General Unclassifiable",
        "Default",
        "Audio",
        "Music",
        "???",
        "-",
        "17",
        "(17)",
        "255",
        "1984",
        "Unbekannt",
        "Sonstiges",
        "Otros",
        "Övrigt",
        "Другое",
        "その他",
        "http://example.com/x",
        "www.example.org",
        "music.example.net",
        "Various",
    ],
)
def test_junk(text: str) -> None:
    assert is_junk_genre(text)


@pytest.mark.parametrize(
    "text",
    [
        "Rock",
        "80s",
        "90's",
        "Top 40",
        "2-Step",
        "Soundtrack",
        "Game",
        "Instrumental",
        "Another Genre",
        "Nonet",
        "Musical",
        "ロック",
        "Alternative",
        "R&B",
        "Metal.Core",
        "Unknown Mortal Orchestra",
        "Others Like It",
    ],
)
def test_not_junk(text: str) -> None:
    assert not is_junk_genre(text)


@pytest.mark.parametrize(
    ("text", "genres"),
    [
        ("Rock", ["Rock"]),
        ("Rock; Pop", ["Rock", "Pop"]),
        ("Rock;Pop;", ["Rock", "Pop"]),
        ("Rock, Pop", ["Rock", "Pop"]),
        ("Rock / Pop", ["Rock", "Pop"]),
        ("Rock|Pop\0Jazz\nFolk", ["Rock", "Pop", "Jazz", "Folk"]),
        ("Rock; rock; ROCK", ["Rock"]),
        ("Hip-Hop; Rap", ["Hip-Hop", "Rap"]),
        ("Rock/Pop", ["Rock/Pop"]),
        ("R&B/Soul", ["R&B/Soul"]),
        ("Hip-Hop/Rap", ["Hip-Hop/Rap"]),
        ("Singer/Songwriter", ["Singer/Songwriter"]),
        ("Drum & Bass", ["Drum & Bass"]),
        ("Jazz+Funk", ["Jazz+Funk"]),
        ("Rock and Roll", ["Rock and Roll"]),
        ("Folk, World, & Country", ["Folk, World, & Country"]),
        ("Jazz; Folk, World, & Country", ["Jazz", "Folk, World, & Country"]),
        ("Old-Time / Historic", ["Old-Time / Historic"]),
        ("???; !!!", ["???", "!!!"]),
        (" ; ,", []),
        ("", []),
    ],
)
def test_split_genres(text: str, genres: list[str]) -> None:
    assert list(split_genres(text)) == genres


@given(
    st.lists(st.sampled_from(ID3V1_GENRES), unique_by=genre_key),
    st.sampled_from(["; ", ";", ", "]),
)
def test_split_inverts_join(genres: list[str], between: str) -> None:
    assert list(split_genres(between.join(genres))) == genres


@pytest.mark.parametrize(
    ("text", "genres"),
    [
        ("Rock", ["Rock"]),
        ("(17)", ["Rock"]),
        ("17", ["Rock"]),
        (" 17 ", ["Rock"]),
        ("(17)Rock", ["Rock"]),
        ("(17)(8)Jazz+Funk", ["Rock", "Jazz", "Jazz+Funk"]),
        ("(4)Eurodisco", ["Disco", "Eurodisco"]),
        ("(8)(17)(8)", ["Jazz", "Rock"]),
        ("(RX)", ["Remix"]),
        ("CR", ["Cover"]),
        ("(17)(RX)", ["Rock", "Remix"]),
        ("((foo", ["(foo"]),
        ("((17)", ["(17)"]),
        ("(17)((foo)", ["Rock", "(foo)"]),
        ("(foo)", ["(foo)"]),
        ("(17", ["(17"]),
        ("80s", ["80s"]),
        ("(192)", []),
        ("255", []),
        ("9" * 5000, []),
        ("²", ["²"]),
        ("", []),
    ],
)
def test_resolve_id3_reference(text: str, genres: list[str]) -> None:
    assert list(resolve_id3_reference(text)) == genres


def test_numbers_are_those_of_mutagen() -> None:
    for number in range(192):
        expected = TCON(encoding=3, text=[str(number)]).genres
        assert list(resolve_id3_reference(str(number))) == expected
        assert list(resolve_id3_reference(f"({number:03})")) == expected


@given(st.lists(st.integers(0, 191), unique=True), st.sampled_from(["", "Gothic Polka", "(foo)"]))
def test_references_and_refinement_come_in_order(numbers: list[int], words: str) -> None:
    text = "".join(f"({number})" for number in numbers) + words.replace("(", "((")
    names = [ID3V1_GENRES[number] for number in numbers]
    assert list(resolve_id3_reference(text)) == names + [words] * bool(words)


@given(st.text(alphabet="()0123456789RXC ab"))
def test_references_take_any_text(text: str) -> None:
    names = resolve_id3_reference(text)
    assert len(set(names)) == len(names)
    assert all(name == name.strip() != "" for name in names)
