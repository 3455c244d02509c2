"""The command, on real files: every test runs what a user runs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mutagen
import pytest
from audio_files import encode, make_audio, synthesize
from daemon_tools import cut_track
from timing import timed

from reclass_plex.cli import main
from reclass_plex.store import Store

DEMO = Path(__file__).parent.parent / "demo"
COMMAND = Path(sys.executable).with_name("reclass-plex")
METAL = "Muldjord - Mutilated Mime.mp3"
CELTIC = "0zone0ne and Krobonil - Scottish Bagpipes.ogg"  # its owner gave it a genre
OTHER = "HSR - Rock.mp3"  # its genre is "Other"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh state and no configuration."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("RECLASS_PLEX_CONFIG", raising=False)
    return tmp_path


@pytest.fixture
def music(tmp_path: Path) -> Path:
    """Copies of the demo music."""
    folder = tmp_path / "music"
    folder.mkdir()
    for source in DEMO.iterdir():
        if source.suffix not in {".py", ".md"} and source.is_file():
            shutil.copy(source, folder)
    return folder


class Result:
    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    def by_name(self) -> dict[str, dict[str, Any]]:
        return {Path(line["path"]).name: line for line in self.lines}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(*arguments: str | Path) -> Result:
        monkeypatch.setattr(sys, "argv", ["reclass-plex", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return Result(int(stop.value.code or 0), captured.out, captured.err)

    return run


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.is_file()
    }


def genres_of(path: Path) -> list[str]:
    file = mutagen.File(path, easy=True)
    return [str(value) for value in (file.get("genre") or file.get("Genre") or [])]


def test_classify_gives_a_verdict_for_every_demo_file_and_changes_none(
    run: Any, music: Path, home: Path
) -> None:
    before = hashes(music)
    result = run("classify", music, "--json")
    assert result.status == 0
    assert len(result.lines) == len(before)
    for line in result.lines:
        assert line["genres"], line
        assert all(0 <= genre["confidence"] <= 1 for genre in line["genres"])
        assert line["decided_by"] in [stage["name"] for stage in line["stages"]]
        assert line["seconds"] > 0
    assert result.by_name()[METAL]["genres"][0]["name"] == "Metal"
    assert hashes(music) == before
    assert not (home / "state").exists(), "classify remembers nothing"


def test_classify_for_people_shows_stages_and_the_published_ten(run: Any, music: Path) -> None:
    result = run("classify", music / METAL, "--stages", "--top", "2", "--taxonomy", "gtzan")
    assert result.status == 0
    assert METAL in result.out.splitlines()[0]
    assert len(result.out.splitlines()) >= 2
    assert "metal" in result.out.lower()


def test_tag_then_undo_gives_every_file_back_byte_for_byte(run: Any, music: Path) -> None:
    before = hashes(music)
    result = run("tag", music, "--yes", "--json")
    assert result.status == 0
    lines = result.by_name()
    assert lines[CELTIC]["written"] is False
    assert genres_of(music / CELTIC) == ["Celtic"]
    assert lines[OTHER]["before"] == ["Other"]
    written = [name for name, line in lines.items() if line["written"]]
    assert len(written) >= 5
    for name in written:
        assert hashes(music)[name] != before[name]
        if not name.endswith((".wma", ".wv")):
            assert genres_of(music / name) == lines[name]["after"]
    undone = run("undo", "--yes", "--json")
    assert undone.status == 0
    assert {Path(line["path"]).name for line in undone.lines} == set(written)
    assert hashes(music) == before
    assert run("undo", "--yes").err.strip() == "there is nothing to undo"


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(run: Any, music: Path) -> None:
    before = hashes(music)
    result = run("tag", music / METAL, music / OTHER, "--dry-run")
    assert result.status == 0
    assert "none -> Metal" in result.out
    assert "would change" in result.out
    assert hashes(music) == before
    assert run("history").out.strip() == "no run has changed a file yet"


def test_a_second_run_reads_no_audio_and_a_changed_file_is_read_again(
    run: Any, music: Path
) -> None:
    run("tag", music / METAL, "--dry-run")
    status = (music / METAL).stat()
    good = (music / METAL).read_bytes()
    (music / METAL).write_bytes(bytes(len(good)))  # not audio any more, but nobody will look
    os.utime(music / METAL, ns=(status.st_atime_ns, status.st_mtime_ns))
    again = run("tag", music / METAL, "--dry-run", "--json")
    assert again.lines[0]["after"] == ["Metal"]
    os.utime(music / METAL, ns=(0, 0))
    assert run("tag", music / METAL, "--dry-run").status == 1


def test_a_moved_file_is_known_again_and_undone_where_it_is(run: Any, music: Path) -> None:
    before = (music / METAL).read_bytes()
    run("tag", music / METAL, "--yes")
    (music / "new folder").mkdir()
    moved = music / "new folder" / "other name.mp3"
    (music / METAL).rename(moved)
    result = run("tag", moved, "--yes", "--json")
    assert result.lines[0]["reason"] == "already has Metal"
    assert run("undo", "--yes").status == 0
    assert moved.read_bytes() == before


def test_what_the_user_does_afterwards_is_respected(run: Any, music: Path) -> None:
    run("tag", music / METAL, music / OTHER, "--yes")
    edited = mutagen.File(music / METAL, easy=True)
    edited["genre"] = ["Death Metal"]
    edited.save()
    commented = mutagen.File(music / OTHER, easy=True)
    commented["title"] = ["Another title"]
    commented.save()
    kept = run("tag", music / METAL, "--mode", "replace", "--yes", "--json").lines[0]
    assert kept["after"] is None
    assert "edited" in kept["reason"]
    undone = run("undo", "--yes", "--json")
    assert undone.status == 1
    by_name = undone.by_name()
    assert by_name[METAL]["restored"] is False
    assert genres_of(music / METAL) == ["Death Metal"]
    assert by_name[OTHER]["restored"] is True
    assert genres_of(music / OTHER) == ["Other"]
    assert mutagen.File(music / OTHER, easy=True)["title"] == ["Another title"]


def test_an_undone_file_is_left_alone_until_asked(run: Any, music: Path) -> None:
    run("tag", music / METAL, "--yes")
    run("undo", "--yes")
    assert run("tag", music / METAL, "--yes", "--json").lines[0]["written"] is False
    again = run("tag", music / METAL, "--yes", "--json", "--overwrite-user-genres")
    assert again.lines[0]["written"] is True


def test_undo_by_path_and_by_time(run: Any, music: Path) -> None:
    before = hashes(music)
    run("tag", music / METAL, music / OTHER, "--yes")
    assert run("undo", "--path", music / METAL, "--yes").status == 0
    assert hashes(music)[METAL] == before[METAL]
    assert hashes(music) != before
    assert run("undo", "--since", "2h", "--yes").status == 0
    assert hashes(music) == before
    assert run("undo", "--since", "yesterday", "--yes").status == 2
    assert run("undo", "--run", "99", "--yes").status == 2


@pytest.fixture
def bad_files(tmp_path: Path, music: Path) -> Iterator[Path]:
    """A folder with one good file and all that goes wrong in real libraries."""
    folder = tmp_path / "bad"
    folder.mkdir()
    good = (music / METAL).read_bytes()
    (folder / "empty.mp3").touch()
    (folder / "truncated.flac").write_bytes(next(music.glob("*.flac")).read_bytes()[:200])
    (folder / "random.ogg").write_bytes(os.urandom(50_000))
    (folder / "text.mp3").write_text("this is a text file\n" * 100)
    (folder / "misnamed.flac").write_bytes(good)  # an MP3: fine for the decoder
    (folder / "broken link.mp3").symlink_to(folder / "nothing.mp3")
    (folder / "loop").symlink_to(folder)
    (folder / "notes.txt").write_text("not looked at")
    os.mkfifo(folder / "fifo.mp3")
    (folder / "e\u0301 \u97f3\u697d \U0001f3b5.mp3").write_bytes(good)
    Path(os.fsdecode(os.fsencode(folder) + b"/latin-1 \xe9.mp3")).write_bytes(good)
    yield folder


def test_bad_files_are_named_the_rest_goes_on_and_nothing_bad_is_altered(
    run: Any, bad_files: Path
) -> None:
    names = set(os.listdir(bad_files))
    bad = ["empty.mp3", "truncated.flac", "random.ogg", "text.mp3"]
    before = {name: (bad_files / name).read_bytes() for name in bad}
    result = run("tag", bad_files, "--yes", "--json")
    assert result.status == 1
    lines = result.by_name()
    for name in [*bad, "broken link.mp3", "fifo.mp3"]:
        assert lines[name]["error"]["message"], name
    assert lines["empty.mp3"]["error"]["kind"] == "not-audio"
    assert lines["broken link.mp3"]["error"]["kind"] == "unreadable"
    assert "notes.txt" not in lines
    good = [name for name, line in lines.items() if line.get("written")]
    assert {name.encode("utf-8", "surrogateescape")[-4:] for name in good} == {b".mp3"}
    assert len(good) == 2
    assert {name: (bad_files / name).read_bytes() for name in bad} == before
    assert set(os.listdir(bad_files)) == names, "a temporary file stayed"
    people = run("tag", bad_files, "--dry-run")
    assert people.status == 1
    assert "text.mp3: " in people.err
    assert "Traceback" not in people.err


def test_a_video_is_refused(run: Any, tmp_path: Path) -> None:
    import av
    import numpy as np

    path = tmp_path / "film.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        video = container.add_stream("mpeg4", rate=25)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        for _ in range(25):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    result = run("classify", path, "--json")
    assert result.status == 1
    assert result.lines[0]["error"]["kind"] == "not-audio"


def test_silence_is_unsure_and_gets_no_genre(run: Any, tmp_path: Path) -> None:
    import numpy as np

    encode(tmp_path / "silence.flac", "flac", "flac", np.zeros((2, 44100 * 5), np.float32), 44100)
    line = run("tag", tmp_path / "silence.flac", "--yes", "--json").lines[0]
    assert line["unsure"] == "silence"
    assert line["written"] is False


def test_wrong_use_is_status_2(run: Any, music: Path, tmp_path: Path) -> None:
    assert run("classify", tmp_path / "nowhere").status == 1  # named like any other failing path
    assert run("tag", music).status == 2, "there is no terminal to ask on"
    assert run("classify", music, "--taxonomy", "mine").status == 2
    assert run("tag", music, "--mode", "destroy", "--yes").status == 2
    assert run("features", music / METAL, "--excerpt", "first30").status == 2
    (tmp_path / "bad.yaml").write_text("policy: {mode: destroy}")
    result = run("tag", music, "--yes", "--config", tmp_path / "bad.yaml")
    assert result.status == 2
    assert "bad.yaml: policy.mode: has value 'destroy'" in result.err


def test_the_genres_of_a_trained_ensemble_may_be_in_the_configuration(
    run: Any, music: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.yaml").write_text("ensemble: {taxonomy: own, profile: mine}")
    config = ("--config", tmp_path / "own.yaml")
    assert run("history", *config).status == 0
    result = run("classify", music / METAL, "--json", *config)
    assert result.lines[0]["genres"][0]["name"] == "Metal"
    assert "profile mine is not trained here; cpu decides" in result.err
    wrong = run("classify", music / METAL, "--profile", "My Own")
    assert (wrong.status, wrong.err.startswith("error: --profile My Own: string")) == (2, True)


def test_features_are_the_518_named_columns_in_the_published_order(run: Any, music: Path) -> None:
    result = run("features", music / METAL, "--json").lines[0]
    names = list(result["features"])
    assert len(names) == 518
    assert names[0] == "chroma_cens_kurtosis_01"
    assert names[-1] == "zcr_std_01"
    assert result["excerpt"] == "middle30"
    full = run("features", music / METAL, "--excerpt", "full", "--json").lines[0]
    assert full["excerpt"] == "full"


def test_doctor_models_and_history_have_something_to_say(run: Any, music: Path) -> None:
    run("tag", music / METAL, "--yes")
    doctor = run("doctor", "--json")
    assert doctor.status == 0
    assert {line["level"] for line in doctor.lines} <= {"ok", "warning"}
    assert "musicnn" in run("models", "list").out.lower()
    assert [line["done"] for line in run("history", "--json").lines] == [1]
    assert "tag" in run("history").out


def test_the_history_is_read_in_pages(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"store: {{path: {tmp_path / 'store.sqlite'}}}\n")
    with Store.open(tmp_path / "store.sqlite") as store:
        ids = [store.start_run("tag") for _ in range(6)]
    monkeypatch.setattr("reclass_plex.cli_history._PAGE", 2)
    for limit in (1, 2, 3, 5, 6, 7):
        lines = run("history", "--json", "-n", str(limit), "--config", str(config)).lines
        assert [line["id"] for line in lines] == ids[::-1][:limit]


def test_ctrl_c_leaves_nothing_half_done_and_the_next_run_goes_on(
    tmp_path: Path, music: Path, run: Any
) -> None:
    pieces = tmp_path / "pieces"
    pieces.mkdir()
    for number in range(12):  # enough to be interrupted in
        cut_track(music / METAL, pieces / f"{number:02}.mp3", 50 * number, 6.0)
    music, names = pieces, set(os.listdir(pieces))
    process = subprocess.Popen(
        [COMMAND, "tag", str(music), "--yes", "--json", "--jobs", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "stopping after the file in hand" in err
    assert "Traceback" not in err
    assert set(os.listdir(music)) == names
    assert len(out.splitlines()) < len(names) - 3
    rest = run("tag", music, "--yes", "--json")
    assert len(rest.lines) == len(names)


@timed
def test_a_known_library_is_passed_without_loading_the_models(run: Any, music: Path) -> None:
    for path in music.glob("[CHKLMS]*"):  # what listening to all ten would show is no more
        path.unlink()
    assert run("tag", music, "--dry-run").status == 0
    script = (
        "import sys; sys.argv = ['reclass-plex', 'tag', sys.argv[1], '--dry-run']\n"
        "from reclass_plex.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules, 'librosa' in sys.modules)"
    )
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", script, str(music)], check=True, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "False False"
    assert time.perf_counter() - started < 10


def test_synthetic_music_of_any_kind_gets_an_answer(run: Any, tmp_path: Path) -> None:
    rates = {"192 kHz": (192_000, 2), "7.1": (48_000, 8), "mono 8 kHz": (8_000, 1)}
    for name, (rate, channels) in rates.items():
        samples = synthesize(4.0, rate, channels, 3)
        encode(tmp_path / f"{name}.wav", "wav", "pcm_s16le", samples, rate)
    one_sided = synthesize(4.0, 44_100, 2, 3).copy()
    one_sided[1] = 0
    encode(tmp_path / "one side.flac", "flac", "flac", one_sided, 44_100)
    clipped = (synthesize(4.0, 44_100, 2, 3) * 30).clip(-1, 1)
    encode(tmp_path / "clipped.flac", "flac", "flac", clipped, 44_100)
    make_audio(tmp_path, "flac", seconds=0.4, name="short.flac")
    result = run("classify", tmp_path, "--json")
    assert result.status == 0, result.err
    assert len(result.lines) == 6
    for line in result.lines:
        total = sum(genre["confidence"] for genre in line["genres"])
        assert 0 < total <= 1.001, line


# What a hostile user found


def test_undo_restores_the_file_that_was_changed_not_another_with_the_same_song(
    run: Any, music: Path
) -> None:
    drive, local = music / "drive", music / "local"
    drive.mkdir()
    local.mkdir()
    good = (music / OTHER).read_bytes()
    (drive / "a.mp3").write_bytes(good)
    (local / "b.mp3").write_bytes(good)
    run("tag", drive, "--yes")
    drive.rename(music / "away")
    assert "written" in run("tag", local, "--yes", "--json").lines[0]
    (music / "away").rename(drive)
    assert run("undo", "--run", "1", "--yes").status == 0
    assert (drive / "a.mp3").read_bytes() == good
    assert run("undo", "--yes").status == 0
    assert (local / "b.mp3").read_bytes() == good


def test_of_copies_that_moved_each_is_undone_by_itself(run: Any, music: Path) -> None:
    good = (music / OTHER).read_bytes()
    folder = music / "copies"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.mp3").write_bytes(good)
    assert run("tag", folder, "--yes").status == 0
    for name in "ab":
        (folder / f"{name}.mp3").rename(folder / f"{name}{name}.mp3")
    written = (folder / "aa.mp3").read_bytes()
    assert written != good
    result = run("undo", "--yes")  # nobody saw where they are: c.mp3 is none of them
    assert (result.status, result.out.count("vanished")) == (1, 2)
    assert (folder / "c.mp3").read_bytes() == good
    assert [(folder / f"{name}.mp3").read_bytes() for name in ("aa", "bb")] == [written] * 2
    assert run("tag", folder, "--yes").status == 0
    assert run("undo", "--yes").status == 0
    assert {path.read_bytes() for path in folder.iterdir()} == {good}


def test_another_recording_under_the_same_name_is_left_alone(run: Any, music: Path) -> None:
    path = music / OTHER
    run("tag", path, "--yes")
    shutil.copy(music / METAL, path)
    file = mutagen.File(path, easy=True)
    file["genre"] = ["Metal"]  # as ours
    file.save()
    put_there = path.read_bytes()
    result = run("undo", "--yes")
    assert result.status == 1
    assert "another recording" in result.out
    assert path.read_bytes() == put_there


def test_an_interrupted_change_is_undone_wherever_its_file_went(
    run: Any, music: Path, home: Path
) -> None:
    before = (music / METAL).read_bytes()
    run("tag", music / METAL, "--yes")
    store = sqlite3.connect(home / "state" / "reclass-plex" / "store.sqlite")
    store.execute("UPDATE journal SET state = 'pending'")  # as a kill after the rename leaves it
    store.commit()
    store.close()
    (music / "new").mkdir()
    (music / METAL).rename(music / "new" / METAL)
    run("tag", music / "new", "--yes")
    assert run("undo", "--path", music / "new", "--yes").status == 0
    assert (music / "new" / METAL).read_bytes() == before


def test_a_link_is_followed_to_its_file_for_tag_and_undo(run: Any, music: Path) -> None:
    before = (music / METAL).read_bytes()
    (music / "links").mkdir()
    link = music / "links" / "song.mp3"
    link.symlink_to(music / METAL)
    run("tag", music / "links", "--yes")
    assert link.is_symlink()
    assert (music / METAL).read_bytes() != before
    link.unlink()
    assert run("undo", "--yes").status == 0
    assert (music / METAL).read_bytes() == before


def test_dot_dot_goes_up_from_where_a_link_leads(run: Any, music: Path, tmp_path: Path) -> None:
    (tmp_path / "far" / "in").mkdir(parents=True)
    shutil.copy(music / METAL, tmp_path / "far")
    (music / "link").symlink_to(tmp_path / "far" / "in")
    lines = run("tag", f"{music}/link/..", "--dry-run", "--json").lines
    assert [Path(line["path"]).parent for line in lines] == [tmp_path / "far"]
    assert run("tag", "", "--dry-run").status == 2


def test_our_joined_genres_are_not_taken_for_the_users(run: Any, music: Path) -> None:
    config = music / "mine.yaml"
    config.write_text(
        'policy: {max_genres: 3, min_confidence: 0}\ntags: {join: {mp4: ", ", vorbis: "/"}}\n'
    )
    paths = sorted(music.glob("*.m4a")) + sorted(music.glob("*.ogg"))
    options = ("--mode", "replace", "--yes", "--json", "--config", config)
    assert any(line["written"] for line in run("tag", *paths, *options).lines)
    for path in paths:
        os.utime(path, ns=(0, 0))
    reasons = [line["reason"] for line in run("tag", *paths, *options).lines]
    assert not [reason for reason in reasons if "edited by hand" in reason]


def test_names_cannot_act_on_the_terminal(run: Any, music: Path) -> None:
    nasty = music / "a\x1b[31m\nred\x07.mp3"
    (music / METAL).rename(nasty)
    (music / "b\x1b]0;title.mp3").write_text("no music")
    result = run("tag", nasty, music / "b\x1b]0;title.mp3", "--yes")
    assert "\\x1b[31m\\nred\\x07.mp3: none -> Metal" in result.out
    assert "\x1b" not in result.out + result.err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_any_name_can_be_printed_anywhere(run: Any, music: Path, encoding: str) -> None:
    song = music / "\u97f3\u697d.mp3"
    (music / METAL).rename(song)
    run("tag", song, "--dry-run")  # the store knows it from here on
    done = subprocess.run(
        [COMMAND, "tag", song, "--dry-run"],
        env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True,
        check=True,
    )
    assert b"\\u97f3\\u697d.mp3: none -> Metal" in done.stdout


def test_closed_and_full_outputs_give_no_traceback(music: Path) -> None:
    for redirection in ("> /dev/full", ">&-", "<&-", "| head -c 1"):
        done = subprocess.run(
            f"'{COMMAND}' history --json {redirection}; '{COMMAND}' tag '{music}' {redirection}",
            shell=True,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stderr, redirection


def test_a_service_user_without_a_home_can_classify(music: Path) -> None:
    names = ("XDG_CACHE_HOME", "HOME", "NUMBA_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [COMMAND, "classify", music / METAL],
        env=environment | {"HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Metal" in done.stdout


def test_a_date_beyond_the_stores_does_not_end_the_run(run: Any, music: Path) -> None:
    os.utime(music / METAL, (10_413_792_000, 10_413_792_000))  # the year 2300
    result = run("tag", music / METAL, music / OTHER, "--yes", "--json")
    assert result.status == 0
    assert [line["written"] for line in result.lines] == [True, True]
    assert run("history", "-n", "99999999999999999999").status == 2
