"""Verdicts and what the files say now -> what to write into which file, and why.

Pure: reads and writes nothing. Planning again after a plan was carried out plans nothing.

The rules, in the order in which they are asked:
1. What the user did by hand stays: genres edited since our last write, and a write that was taken
   back, are left alone unless `overwrite_user_genres`.
2. What a person decided of the recording (`decisions`) is written as it is: no verdict, name,
   album or confidence counts beside it. In mode fill a copy keeps a genre of the user's own.
3. `mode` fill leaves every file alone that has a genre which says something (see
   `is_junk_genre`); append adds to such genres; replace puts ours in their place.
4. `allow` and `ignore` strike genres, by our name or by the user's own (`names`), as if they had
   never been heard.
5. An album that agrees gets one answer, see `_find_consensus`.
6. An unsure verdict writes nothing, unless a clear majority of the album agrees and the reason
   is not that there was no music to hear, see `INHERITABLE`.
7. The most probable genre that is left needs `min_confidence`. Up to `max_genres` in all are
   written, the further ones if they have at least half of the first one's probability: as
   probabilities add up to one, a second genre can hardly reach 0.5, yet 0.55 and 0.40 say that
   both are heard. `add_parents` adds the broader genres after them, beyond `max_genres`.
8. `moods` and `styles` (off by default) are the track's own, whatever its album says, and only of
   music that was heard surely. Moods go to a file that has none, beside a genre or alone; the
   user's own, and ours that the user changed or removed, stay. Both go to Plex.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import fsum

from reclass_plex.config import PolicyOptions
from reclass_plex.genres import Taxonomy, genre_key, is_junk_genre, split_genres
from reclass_plex.records import GenreScore, TagPlan, Track, Verdict

CLEAR_MAJORITY = Fraction(3, 5)  # of an album's tracks; exact, for 3 of 5 is enough
FEWEST_VOTERS = 2  # one track is no album
FURTHER_SHARE = 0.5  # of the first genre's probability, for a further one
DECIDED = "decided by a person"
INHERITABLE = frozenset({"too close to call", "unlike any known genre"})
"""Reasons to be unsure of music. Silence, speech and noise are no music of the album's kind."""


@dataclass(frozen=True)
class _Consensus:
    """An album's one answer: ranked genres, and how many of its `tracks` have it as their first.

    `inherited` says whether its unsure tracks get it too.
    """

    genres: tuple[GenreScore, ...]
    agreeing: int
    tracks: int
    inherited: bool

    @property
    def reason(self) -> str:
        return f"album consensus: {self.agreeing} of {self.tracks} tracks"


def plan_tags(
    items: Sequence[tuple[Track, Verdict]], options: PolicyOptions, taxonomy: Taxonomy
) -> list[TagPlan]:
    """Return one plan a track, in the order of `items`.

    Tracks of one album must be passed in one call, in any order.
    """
    namer = _Namer(options, taxonomy)
    heard = [namer.strike(verdict) for _, verdict in items]
    albums: dict[str | None, list[Verdict]] = defaultdict(list)
    for (track, _), verdict in zip(items, heard, strict=True):
        if options.album_consensus and track.album is not None and track.decided is None:
            albums[track.album].append(verdict)
    consensus = {
        album: _find_consensus(verdicts, options, taxonomy) for album, verdicts in albums.items()
    }
    plans = []
    for (track, _), verdict in zip(items, heard, strict=True):
        plan = _plan_track(track, verdict, consensus.get(track.album), options, namer)
        if options.moods or options.styles:
            plan = _add_labels(plan, track, verdict, options)
        plans.append(plan)
    return plans


def suggest_genres(verdict: Verdict, options: PolicyOptions, taxonomy: Taxonomy) -> tuple[str, ...]:
    """Return what is written if a person says yes to a verdict, however unsure: its first genre."""
    namer = _Namer(options, taxonomy)
    first = namer.strike(verdict).genres[:1]
    return namer.name_genres([score.name for score in first])


def _find_consensus(
    verdicts: Sequence[Verdict], options: PolicyOptions, taxonomy: Taxonomy
) -> _Consensus | None:
    """Return what the tracks of one album agree on, or None where they do not.

    Every track that is sure votes with all its probabilities, weighted by its highest one, so
    that clear tracks count for more than doubtful ones; the weighted mean is the album's
    probability of each genre. There is no consensus where fewer than `CLEAR_MAJORITY` of the
    voters have the album's first genre as their own first (a compilation), nor where its
    probability is below `min_confidence`: then each track keeps its own answer.
    """
    voters = [v.genres for v in verdicts if v.unsure is None and v.genres]
    if len(voters) < FEWEST_VOTERS:
        return None
    weights = [genres[0].confidence for genres in voters]
    total = fsum(weights)
    if total <= 0:
        return None
    parts: dict[str, list[float]] = defaultdict(list)
    for genres, weight in zip(voters, weights, strict=True):
        for score in genres:
            parts[score.name].append(weight * score.confidence)
    # fsum is exact, and equals are ranked by the taxonomy: the tracks' order cannot matter.
    ranks = {name: rank for rank, name in enumerate(taxonomy.genres)}
    ranked = sorted(
        (GenreScore(name, fsum(products) / total) for name, products in parts.items()),
        key=lambda score: (-score.confidence, ranks.get(score.name, len(ranks)), score.name),
    )
    first = ranked[0]
    agreeing = sum(genres[0].name == first.name for genres in voters)
    if Fraction(agreeing, len(voters)) < CLEAR_MAJORITY:
        return None
    if first.confidence < options.min_confidence:
        return None
    inherited = Fraction(agreeing, len(verdicts)) >= CLEAR_MAJORITY
    return _Consensus(tuple(ranked), agreeing, len(verdicts), inherited)


def _plan_track(
    track: Track,
    verdict: Verdict,
    consensus: _Consensus | None,
    options: PolicyOptions,
    namer: _Namer,
) -> TagPlan:
    if verdict.unsure is not None and not (
        consensus and consensus.inherited and verdict.unsure in INHERITABLE
    ):
        consensus = None
    ranked = consensus.genres if consensus else verdict.genres
    confidence = ranked[0].confidence if ranked else 0.0

    def leave(reason: str, *, undecided: bool = False) -> TagPlan:
        return TagPlan(track.path, track.genres, None, confidence, reason, undecided)

    if not options.overwrite_user_genres:
        if track.undone:
            return leave("taken back by undo since")
        if track.written is not None and track.genres != track.written:
            return leave("edited by hand since")
    kept = tuple(genre for genre in track.genres if not _is_junk(genre))
    if track.decided is not None:
        if kept and track.genres not in (track.written, track.decided) and options.mode == "fill":
            return leave(f"already has {', '.join(kept)}")
        after = None if track.genres == track.decided else track.decided
        reason = DECIDED if after else f"already has {', '.join(track.decided)}, as was decided"
        return TagPlan(track.path, track.genres, after, 1.0, reason, decided=True)
    # What we added before, and what still stands as we wrote it, may give way to a better answer.
    ours = track.added if track.genres == track.written and not track.undone else ()
    theirs = tuple(genre for genre in kept if genre not in ours)
    if theirs and options.mode == "fill":
        return leave(f"already has {', '.join(kept)}")
    if verdict.unsure is not None and consensus is None:
        return leave(verdict.unsure, undecided=not kept)

    if not ranked:
        return leave("no allowed genre was heard", undecided=not kept)
    first, *others = ranked
    said = f"{first.name} {first.confidence:.2f}"
    if first.confidence < options.min_confidence:
        return leave(f"below {options.min_confidence:.2f} ({said})", undecided=not kept)
    further = [s for s in others if s.confidence >= FURTHER_SHARE * first.confidence]
    chosen = [first, *further][: options.max_genres]
    names_to_write = namer.name_genres([score.name for score in chosen])

    after = names_to_write
    if options.mode == "append":
        present = {genre_key(part) for genre in theirs for part in (genre, *split_genres(genre))}
        added = tuple(name for name in names_to_write if genre_key(name) not in present)
        after = theirs + added if added else track.genres
    if after == track.genres:
        return leave(f"already has {', '.join(names_to_write)}")
    reason = said
    if consensus:
        reason = consensus.reason
        if verdict.unsure is not None:
            reason = f"{verdict.unsure}; {reason}"
    return TagPlan(track.path, track.genres, after, confidence, reason)


def _add_labels(plan: TagPlan, track: Track, verdict: Verdict, options: PolicyOptions) -> TagPlan:
    """Return the plan with the track's moods and styles."""
    again = options.overwrite_user_genres
    if verdict.unsure is not None or plan.undecided or (track.undone and not again):
        return plan
    struck = {genre_key(name) for name in options.ignore}
    genres = {genre_key(name) for name in plan.after or plan.before}
    genres |= {genre_key(score.name) for score in verdict.genres[:1]}  # a style is no repetition

    def choose(labels: tuple[GenreScore, ...], without: set[str]) -> tuple[GenreScore, ...]:
        left = [label for label in labels if genre_key(label.name) not in without]
        return tuple(left[: options.max_moods])

    moods = choose(verdict.moods, struck) if options.moods else ()
    styles = choose(verdict.styles, struck | genres) if options.styles else ()
    if track.moods_written is None or (again and not track.moods):
        theirs = bool(track.moods)
    else:
        theirs = track.moods != track.moods_written
    if theirs:
        moods = ()
    plan = replace(plan, plex_moods=moods, plex_styles=styles)
    if not moods or track.moods:
        return plan
    names = tuple(mood.name for mood in moods)
    after = track.genres if plan.after is None else plan.after
    reason = f"{plan.reason}; moods: {', '.join(names)}"
    return replace(plan, after=after, moods=names, reason=reason)


def _is_junk(genre: str) -> bool:
    """Say whether a value, which may join several genres, tells nothing."""
    return is_junk_genre(genre) or all(map(is_junk_genre, split_genres(genre)))


class _Namer:
    """Our genres -> the names that the user wants to see, without those that he does not."""

    def __init__(self, options: PolicyOptions, taxonomy: Taxonomy) -> None:
        self._names = {genre_key(ours): theirs for ours, theirs in options.names.items()}
        self._allow = {genre_key(name) for name in options.allow}
        self._ignore = {genre_key(name) for name in options.ignore}
        self._parents = taxonomy.parents if options.add_parents else {}
        self._found: dict[str, str | None] = {}  # a library asks for few genres, very often

    def strike(self, verdict: Verdict) -> Verdict:
        """Return the verdict without the genres that may not be written."""
        genres = tuple([score for score in verdict.genres if self.find_name(score.name)])
        return verdict if len(genres) == len(verdict.genres) else replace(verdict, genres=genres)

    def find_name(self, genre: str) -> str | None:
        """Return the name to write for one of our genres, or None if it may not be written."""
        try:
            return self._found[genre]
        except KeyError:
            return self._found.setdefault(genre, self._find_name(genre))

    def _find_name(self, genre: str) -> str | None:
        name = self._names.get(genre_key(genre), genre).strip()
        keys = {genre_key(genre), genre_key(name)}
        if _is_junk(name) or keys & self._ignore or (self._allow and not keys & self._allow):
            return None
        return name

    def name_genres(self, genres: Collection[str]) -> tuple[str, ...]:
        """Return the names to write for `genres` and, after them, for their parents."""
        parents = [parent for genre in genres if (parent := self._parents.get(genre))]
        names: dict[str, str] = {}
        for genre in (*genres, *parents):
            if name := self.find_name(genre):
                names.setdefault(genre_key(name), name)
        return tuple(names.values())
