"""Genre names: taxonomies, other spellings, names that say nothing, numbers of ID3.

Conventions
-----------
A genre is a text for people, such as "Hip-Hop". Two texts name the same genre when `genre_key`
gives the same key: case, diacritics, punctuation and "&"/"and"/"'n'" make no difference, nor do
the aliases ("Rap", "RnB"). Everything here is pure and rests on the standard library.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Taxonomy:
    """A closed set of genres in a fixed order; `parents` has each one's broader genre or None."""

    name: str
    genres: tuple[str, ...]
    parents: Mapping[str, str | None] = field(hash=False)


def _taxonomy(name: str, genres: str, parents: Mapping[str, str]) -> Taxonomy:
    names = tuple(genres.split(", "))
    return Taxonomy(name, names, {genre: parents.get(genre) for genre in names})


DEFAULT = _taxonomy(
    "default",
    "Blues, Classical, Country, Disco, Hip-Hop, Jazz, Metal, Pop, Reggae, Rock, Electronic, Folk, "
    "Soul/R&B, Funk, Punk, Ambient, International, Easy Listening, Experimental",
    # As in the genre tree of the FMA dataset. Reggae, there under International, stands alone.
    {"Metal": "Rock", "Punk": "Rock", "Disco": "Soul/R&B", "Funk": "Soul/R&B"},
)
"""For real libraries: GTZAN's ten and what they miss. Ambient includes New Age. International has a
place for what files say, but no model hears it yet: too little evidence (docs/accuracy.md)."""

GTZAN = _taxonomy(
    "gtzan",
    "Blues, Classical, Country, Disco, Hip-Hop, Jazz, Metal, Pop, Reggae, Rock",
    {"Metal": "Rock"},
)
"""Tzanetakis and Cook, 2002, in their order; "hiphop" is shown as Hip-Hop."""

FMA16 = _taxonomy(
    "fma16",
    "Blues, Classical, Country, Easy Listening, Electronic, Experimental, Folk, Hip-Hop, "
    "Instrumental, International, Jazz, Old-Time / Historic, Pop, Rock, Soul-RnB, Spoken",
    {},
)
"""The top level of Defferrard et al., *FMA: a dataset for music analysis*, 2017."""

MSD13 = _taxonomy(
    "msd13",
    "Blues, Country, Electronic, Folk, International, Jazz, Latin, New Age, Pop/Rock, Rap, Reggae, "
    "R&B, Vocal",
    {},
)
"""Top-MAGD of Schindler et al., *Facilitating comprehensive benchmarking on the MSD*, 2012."""

TAXONOMIES: Mapping[str, Taxonomy] = {t.name: t for t in (DEFAULT, GTZAN, FMA16, MSD13)}

# Other names of the same genre. Only these and other spellings make two genres "the same".
_ALIASES = {
    "Blues": "blues music",
    "Classical": "classic, classical music, klassik, classique, clasica, classica",
    "Country": "country music, country and western",
    "Easy Listening": "easylistening",
    "Electronic": "electronica, edm, electronic music, electronic dance music, elektronik, "
    "electronique, dance/electronic, electronic/dance",
    "Experimental": "experimental music",
    "Folk": "folk music, folkmusik",
    "Hip-Hop": "rap, hip-hop/rap, rap/hip-hop, rap & hip-hop, hip-hop & rap, hip hop music",
    "International": "world, world music, worldmusic, weltmusik, musique du monde",
    "Jazz": "jazz music",
    "Metal": "metal music",
    "New Age": "newage, new age music",
    "Pop": "pop music",
    "Pop/Rock": "rock/pop",
    "Punk": "punk rock, punkrock",
    "Reggae": "reggae music",
    "Rock": "rock music, rock & roll",
    "Soul/R&B": "soul, r&b, rnb, soul-rnb, soul and rnb, r&b/soul, rhythm & blues, soul music",
    "Spoken": "spoken word, speech",
}

# Narrower genre -> broader ones, nearest first; the first that a taxonomy has is taken.
_BROADER = {
    "Ambient": "New Age, Instrumental",
    "New Age": "Ambient",
    "Disco": "Soul/R&B",
    "Funk": "Soul/R&B",
    "Easy Listening": "Vocal",
    "Vocal": "Easy Listening",
    "Latin": "International",
    "Metal": "Rock",
    "Pop": "Pop/Rock",
    "Punk": "Rock",
    "Reggae": "International",
    "Rock": "Pop/Rock",
    "Bossa Nova": "Latin, Jazz",
    "Celtic": "Folk, International",
    "Gospel": "Soul/R&B, Blues",
}

# Narrower genres by their broader one. What ends (or begins) in a known name needs no entry:
# "Melodic Death Metal", "Acid Jazz", "Rock Latino".
_NARROWER = {
    "Ambient": "drone, dark ambient, meditation, meditative, relaxation, healing, psybient",
    "Blues": "delta blues, boogie woogie",
    "Classical": "baroque, chamber music, choral, choral music, concerto, contemporary classical, "
    "modern composition, neoclassical, opera, operetta, orchestral, renaissance, romantic, sonata, "
    "string quartet, symphonic, symphony, early music, medieval, gregorian chant, oratorio, "
    "composed music",
    "Country": "americana, bluegrass, honky tonk, western swing, nashville, outlaw, rockabilly",
    "Disco": "nu disco, italo disco",
    "Easy Listening": "lounge, exotica, muzak, elevator music, light music",
    "Electronic": "acid, acid house, bass, big beat, bigbeat, breakbeat, breakcore, breaks, "
    "chill out, chillout, chillwave, chip music, chiptune, club, dance, darkwave, deep house, "
    "downtempo, drum & bass, dnb, d&b, dubstep, ebm, electro, electroclash, eurodance, footwork, "
    "future bass, gabber, garage house, glitch, goa, goa trance, hardstyle, house, idm, "
    "industrial, jungle, leftfield, minimal, progressive house, progressive trance, psytrance, "
    "rave, synthwave, tech house, techno, trance, trip hop, triphop, uk garage, vaporwave, "
    "witch house, 2 step",
    "Experimental": "abstract, avant garde, avantgarde, audio collage, electroacoustic, "
    "field recordings, free improvisation, improv, musique concrete, noise, sound art",
    "Folk": "acoustic, folk, world, & country, folklore, singer/songwriter, traditional, "
    "traditional folk, sea shanty",
    "Funk": "p-funk, go-go",
    "Hip-Hop": "boom bap, crunk, drill, g-funk, gangsta, grime, trap, turntablism, lo-fi beats",
    "International": "african, afrobeat, afrobeats, arabic, asian, balkan, bhangra, bollywood, "
    "brazilian, cumbia, ethnic, fado, flamenco, gamelan, global, indian, klezmer, middle eastern, "
    "polka, rai, tribal, turkish",
    "Jazz": "bebop, be bop, big band, bop, dixieland, fusion, hard bop, nu jazz, ragtime, "
    "stride, swing",
    "Latin": "bachata, bolero, latin american, mambo, mariachi, merengue, mpb, ranchera, "
    "reggaeton, salsa, samba, tango, tejano, tropical",
    "Metal": "black metal, death metal, deathcore, djent, doom, grindcore, metalcore, nwobhm, "
    "sludge, thrash",
    "Pop": "ballad, boy band, britpop, chanson, city pop, dream pop, europop, j-pop, jpop, k-pop, "
    "kpop, schlager, synthpop, synth pop, teen pop, top 40",
    "Punk": "emo, hardcore, hardcore punk, oi, post punk, pop punk, riot grrrl, screamo, "
    "skate punk",
    "Reggae": "dancehall, dance hall, dub, lovers rock, ragga, roots reggae, ska, rocksteady",
    "Rock": "alternative, alt rock, aor, alternative/indie, beat, garage, goth, gothic, grunge, "
    "hard rock, indie, jam band, krautrock, lo-fi, new wave, oldies, post rock, progressive, prog, "
    "psychedelic, shoegaze, singer rock, southern rock, surf, classic rock",
    "Soul/R&B": "doo wop, motown, neo soul, new jack swing, northern soul, quiet storm, "
    "contemporary r&b",
    "Vocal": "a cappella, acappella, crooner, standards, traditional pop",
    "Instrumental": "soundtrack, score, film score, original soundtrack, ost, film music",
    "Old-Time / Historic": "old time, historic",
    "Spoken": "audiobook, audio book, audio theatre, comedy, interview, podcast, poetry, radio, "
    "radio play",
}
_COMMA_NAMES = ("folk, world, & country",)  # Discogs' genre, one name in spite of its commas


def _words(text: str) -> list[str]:
    """Return the words of `text`, without case, diacritics and punctuation."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    words = re.findall(r"[^\W_]+", re.sub(r"[&+]", " and ", plain.casefold()))
    return [
        "and" if word == "n" and 0 < i < len(words) - 1 else word for i, word in enumerate(words)
    ]


@functools.lru_cache(maxsize=10_000)  # a library repeats few genres, very often
def _spelling(text: str) -> str:
    # Joined, so that "Hip Hop", "Hip-Hop" and "HipHop" are one.
    return "".join(_words(text))


def _listed(names: str) -> Iterator[str]:
    """Yield the spelling of each of `names`, which commas separate."""
    for whole in _COMMA_NAMES:
        if whole in names:
            yield _spelling(whole)
            names = names.replace(whole + ", ", "")
    yield from map(_spelling, names.split(", "))


_SAME = {alias: _spelling(name) for name, names in _ALIASES.items() for alias in _listed(names)}
_BROADER_KEYS: dict[str, tuple[str, ...]] = {
    narrow: (_spelling(name),) for name, names in _NARROWER.items() for narrow in _listed(names)
} | {_spelling(name): tuple(_listed(names)) for name, names in _BROADER.items()}


@functools.lru_cache(maxsize=4096)  # a library says few genres, very often
def genre_key(text: str) -> str:
    """Return a key that is equal for names of the same genre, in whatever spelling.

    Names without a letter or digit ("???") are their own key.
    """
    spelling = _spelling(text) or text.strip().casefold()
    return _SAME.get(spelling, spelling)


def canonical_genre(text: str, taxonomy: Taxonomy) -> str | None:
    """Return the genre of `taxonomy` that `text` names, or the nearest broader one, or None.

    The whole text is looked up first. An unknown name falls back on its longest known ending,
    since the noun stands last in most names ("Melodic Death Metal"), then on its longest known
    beginning ("Rock Español").
    """
    genres = {genre_key(genre): genre for genre in taxonomy.genres}
    words = _words(text)
    count = len(words)
    endings = ("".join(words[i:]) for i in range(count))
    beginnings = ("".join(words[:i]) for i in range(count - 1, 0, -1))
    for spelling in (*endings, *beginnings):
        if found := _nearest(_SAME.get(spelling, spelling), genres):
            return found
    return None


def _nearest(key: str, genres: Mapping[str, str]) -> str | None:
    """Search `genres` for `key`, then for what is broader, then for what is broader still."""
    queue = [key]
    for candidate in queue:  # grows as it is walked
        if candidate in genres:
            return genres[candidate]
        queue += [k for k in _BROADER_KEYS.get(candidate, ()) if k not in queue]
    return None


# What rippers, players and shops write where they know no genre, in several languages.
_JUNK = frozenset(
    _listed(
        "other, others, unknown, unknown genre, genre unknown, unclassifiable, unclassified, "
        "general unclassifiable, uncategorized, uncategorised, undefined, unspecified, "
        "undetermined, misc, miscellaneous, various, various genres, any, all, general, genre, "
        "genres, no genre, not set, none, null, nil, nan, na, n/a, default, audio, music, mp3, "
        "flac, track, song, songs, test, todo, tbd, untitled, blank, empty, unbekannt, sonstige, "
        "sonstiges, andere, inconnu, autre, autres, desconocido, otro, otros, sconosciuto, altro, "
        "desconhecido, outros, onbekend, overig, okänd, övrigt, ukjent, nieznany, inne, "
        "другое, неизвестно, прочее, その他"
    )
)
_URL = re.compile(
    r"[a-z][a-z0-9+.-]*://|www\.|.*\S\.(com|net|org|info|ru|de|fr|to|io|me|tv|co\.uk)$"
)


@functools.lru_cache(maxsize=4096)  # a library says few genres, very often
def is_junk_genre(text: str) -> bool:
    """Say whether `text` tells nothing about the music.

    Junk is: nothing but spaces and punctuation ("", "???"); a number, in brackets or not ("17",
    "(255)"), which players once showed in a name's place; a web address; and the words that stand
    for no answer, in several languages: Other, Unknown, <unknown>, Misc, None, Genre, Default,
    Audio, Unclassifiable and their like. "80s", "Soundtrack" and "Instrumental" are not junk.
    """
    spelling = _spelling(text)
    plain = text.strip().casefold()
    return (
        not spelling or spelling.isdecimal() or spelling in _JUNK or _URL.match(plain) is not None
    )


# One genre each, in spite of the comma or slash: Discogs' and the FMA's.
_INDIVISIBLE = {"folk, world, & country", "folk, world & country", "old-time / historic"}


@functools.lru_cache(maxsize=4096)  # a library says few genres, very often
def split_genres(text: str) -> tuple[str, ...]:
    """Split a text that joins several genres; keep the first of each spelling, in order.

    Semicolons, bars, NUL, line ends, commas and slashes with spaces around them separate, except
    in "Folk, World, & Country" (Discogs) and "Old-Time / Historic" (FMA). A slash without spaces
    does not separate (R&B/Soul, Singer/Songwriter, Hip-Hop/Rap are one genre each), nor do "&",
    "and" and "+" (Drum & Bass, Jazz+Funk).
    """
    parts: list[str] = []
    for part in re.split(r"[;|\0\r\n]", text):
        whole = part.strip().casefold() in _INDIVISIBLE
        parts += [part] if whole else re.split(r",|\s/\s", part)
    return _distinct(part.strip() for part in parts)


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    """Return the first name of each spelling, in order, without empty ones."""
    found: dict[str, str] = {}
    for name in filter(None, names):
        found.setdefault(_spelling(name) or name, name)
    return tuple(found.values())


_ID3V1_NAMES = (
    "Blues|Classic Rock|Country|Dance|Disco|Funk|Grunge|Hip-Hop|Jazz|Metal|New Age|Oldies|Other|Pop"
    "|R&B|Rap|Reggae|Rock|Techno|Industrial|Alternative|Ska|Death Metal|Pranks|Soundtrack"
    "|Euro-Techno|Ambient|Trip-Hop|Vocal|Jazz+Funk|Fusion|Trance|Classical|Instrumental|Acid|House"
    "|Game|Sound Clip|Gospel|Noise|Alt. Rock|Bass|Soul|Punk|Space|Meditative|Instrumental Pop"
    "|Instrumental Rock|Ethnic|Gothic|Darkwave|Techno-Industrial|Electronic|Pop-Folk|Eurodance"
    "|Dream|Southern Rock|Comedy|Cult|Gangsta Rap|Top 40|Christian Rap|Pop/Funk|Jungle"
    "|Native American|Cabaret|New Wave|Psychedelic|Rave|Showtunes|Trailer|Lo-Fi|Tribal|Acid Punk"
    "|Acid Jazz|Polka|Retro|Musical|Rock & Roll|Hard Rock|Folk|Folk-Rock|National Folk|Swing"
    "|Fast-Fusion|Bebop|Latin|Revival|Celtic|Bluegrass|Avantgarde|Gothic Rock|Progressive Rock"
    "|Psychedelic Rock|Symphonic Rock|Slow Rock|Big Band|Chorus|Easy Listening|Acoustic|Humour"
    "|Speech|Chanson|Opera|Chamber Music|Sonata|Symphony|Booty Bass|Primus|Porn Groove|Satire"
    "|Slow Jam|Club|Tango|Samba|Folklore|Ballad|Power Ballad|Rhythmic Soul|Freestyle|Duet|Punk Rock"
    "|Drum Solo|A Cappella|Euro-House|Dance Hall|Goa|Drum & Bass|Club-House|Hardcore|Terror|Indie"
    "|BritPop|Afro-Punk|Polsk Punk|Beat|Christian Gangsta Rap|Heavy Metal|Black Metal|Crossover"
    "|Contemporary Christian|Christian Rock|Merengue|Salsa|Thrash Metal|Anime|JPop|Synthpop"
    "|Abstract|Art Rock|Baroque|Bhangra|Big Beat|Breakbeat|Chillout|Downtempo|Dub|EBM|Eclectic"
    "|Electro|Electroclash|Emo|Experimental|Garage|Global|IDM|Illbient|Industro-Goth|Jam Band"
    "|Krautrock|Leftfield|Lounge|Math Rock|New Romantic|Nu-Breakz|Post-Punk|Post-Rock|Psytrance"
    "|Shoegaze|Space Rock|Trop Rock|World Music|Neoclassical|Audiobook|Audio Theatre"
    "|Neue Deutsche Welle|Podcast|Indie Rock|G-Funk|Dubstep|Garage Rock|Psybient"
)
ID3V1_GENRES = tuple(_ID3V1_NAMES.split("|"))
"""The genres of ID3v1 (0 to 79) and of Winamp (80 to 191), by number."""

_ID3_NAMES = {"RX": "Remix", "CR": "Cover"} | {str(i): n for i, n in enumerate(ID3V1_GENRES)}
_ID3_REFERENCE = re.compile(r"\(([0-9]+|RX|CR)\)")


def resolve_id3_reference(text: str) -> tuple[str, ...]:
    """Return the genres that the text of an ID3 TCON frame names.

    ID3v2.3, 4.2.1: references in brackets, then a refinement in words: "(17)" is Rock,
    "(4)Eurodisco" is Disco and Eurodisco, "(RX)" Remix, "(CR)" Cover; "((foo" stands for the text
    "(foo". ID3v2.4: the same without brackets, "17", "RX". A number that names no genre, such as
    255, gives none. Of equal names the first is kept. Anything else is returned as it is.
    """
    names: list[str] = []
    rest = text.strip()
    if re.fullmatch(r"[0-9]+|RX|CR", rest):
        rest = f"({rest})"
    while reference := _ID3_REFERENCE.match(rest):
        names.append(_ID3_NAMES.get(reference[1].lstrip("0") or "0", ""))
        rest = rest[reference.end() :].lstrip()
    names.append(rest.removeprefix("(") if rest.startswith("((") else rest)
    return _distinct(names)
