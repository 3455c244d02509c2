"""The dashboard as people use it: a real daemon, a Plex stand-in, a real Chromium.

make browser-test
"""

from __future__ import annotations

import re
import shutil

import pytest
from daemon_tools import DEMO, wait_until
from playwright.sync_api import expect
from radio import make_station

from browser.conftest import PASSWORD, Home, Visit
from reclass_plex.tags import read_tags

pytestmark = pytest.mark.browser

PAGES = ("/", "/library", "/duplicates", "/review", "/statistics", "/listen", "/settings", "/log")
HOSTILE_TITLE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'


def test_first_visit_and_login(stranger: Visit) -> None:
    page = stranger.open("/library?q=x")
    expect(page).to_have_url(re.compile(r"/login\?next="))
    assert stranger.faults() == []
    page.get_by_label("Password").fill("not the password")
    page.keyboard.press("Enter")
    expect(page.locator(".problem-text")).to_contain_text("wrong")
    refused = stranger.complaints.pop()  # the browser's own word on a 403
    assert "403" in refused
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(page).to_have_url(re.compile(r"/library\?q=x$"))
    page.get_by_role("button", name="Sign out").click()
    expect(page).to_have_url(re.compile("/login$"))
    page.goto(stranger.url)
    expect(page).to_have_url(re.compile("/login$"))


# Nothing that waits for a second or longer happens: the page cannot ask by the clock.
NO_CLOCK = """
const later = window.setTimeout;
window.setTimeout = (what, ms, ...more) => ms >= 1000 ? 0 : later(what, ms, ...more);
window.setInterval = () => 0;
"""


def test_new_files_appear_as_the_daemon_tells_of_them(visit: Visit, home: Home) -> None:
    visit.page.add_init_script(NO_CLOCK)
    page = visit.open("/")
    home.drop("told of.mp3")
    row = page.locator("#recent li", has_text="told of.mp3")
    expect(row).to_contain_text("for review", timeout=60_000)


def test_new_files_appear_where_no_events_come_through(visit: Visit, home: Home) -> None:
    visit.page.route("**/api/events", lambda route: route.abort())
    page = visit.open("/")
    home.drop("asked for.mp3")
    row = page.locator("#recent li", has_text="asked for.mp3")
    expect(row).to_contain_text("for review", timeout=60_000)
    # Chromium's word, and that of HTMX, on what was cut off here.
    page.goto("about:blank")
    assert visit.complaints
    assert all(re.search(r"ERR_FAILED|\[object Event\]", one) for one in visit.complaints)
    visit.complaints.clear()


def test_new_files_appear_by_themselves(visit: Visit, home: Home) -> None:
    page = visit.open("/")
    expect(page.locator("#state")).to_have_text(re.compile("Idle|Working"))
    home.drop("live one.mp3")
    row = page.locator("#recent li", has_text="live one.mp3")
    expect(row).to_contain_text("for review", timeout=60_000)
    page.get_by_role("link", name="live one.mp3").first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("live one.mp3")


def test_a_correction_reaches_file_and_plex_and_is_undone(visit: Visit, home: Home) -> None:
    path = home.drop("to correct.mp3")
    home.settled(path)
    before = path.read_bytes()
    page = visit.open("/library")
    page.get_by_label("Search").fill("to correct")
    expect(page.locator("#results tbody tr")).to_have_count(1)
    expect(page).to_have_url(re.compile("q=to"))
    page.get_by_role("link", name="to correct.mp3").click()
    expect(page.locator("#votes")).to_contain_text("musicnn")
    page.locator("#genre").select_option("Jazz")
    page.get_by_role("button", name="Correct").click()
    expect(page.locator("#tags")).to_have_text("Jazz")
    assert read_tags(path).genres == ("Jazz",)
    wait_until(lambda: home.in_plex(path) == ["Jazz"], "Plex shows the correction")
    page.reload()
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_text("Taken back.", exact=True)).to_be_visible()
    assert path.read_bytes() == before
    wait_until(lambda: home.in_plex(path) == [], "Plex is as before")


def test_review_by_keys_alone(visit: Visit, home: Home) -> None:
    paths = [home.drop(f"by key {n}.mp3") for n in (1, 2)]
    numbers = [home.settled(path) for path in paths]
    page = visit.open("/review")
    card = page.locator(f"#card-{numbers[0]}")
    card.focus()
    heard = card.locator("[data-key='1']").get_attribute("value")
    second = page.locator(f"#card-{numbers[1]} [data-key='2']").get_attribute("value")
    page.keyboard.press("1")
    expect(page.locator(".decided", has_text="by key 1.mp3")).to_contain_text(str(heard))
    assert read_tags(paths[0]).genres == (heard,)
    page.locator(f"#card-{numbers[1]}").focus()
    page.keyboard.press("2")
    done = page.locator(".decided", has_text="by key 2.mp3")
    expect(done).to_contain_text(str(second))
    assert read_tags(paths[1]).genres == (second,)
    done.get_by_role("button", name="Undo").click()
    expect(page.get_by_text("Taken back.")).to_be_visible()
    assert read_tags(paths[1]).genres == ()


def test_listening_again(visit: Visit, home: Home) -> None:
    path = home.drop("again.mp3")
    number = home.settled(path)
    page = visit.open(f"/tracks/{number}")
    page.get_by_role("button", name="Listen again").click()
    expect(page.get_by_text("It is in line to be listened to again.")).to_be_visible()
    home.settled(path)


def test_pause_holds_and_lets_go(visit: Visit, home: Home) -> None:
    page = visit.open("/")
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#state")).to_have_text("Paused")
    path = home.drop("patient.mp3")
    expect(page.locator(".tiles .ready dd")).to_have_text("1", timeout=30_000)
    assert home.track_id(path) is None
    page.get_by_role("button", name="Go on").click()
    home.settled(path)
    expect(page.locator("#recent li", has_text="patient.mp3")).to_be_visible(timeout=30_000)


def test_a_track_is_seen_and_heard(visit: Visit, home: Home) -> None:
    number = home.settled(home.drop("seen.mp3"))
    page = visit.open(f"/tracks/{number}")
    audio = page.locator("audio")
    audio.evaluate("a => { a.preload = 'auto'; a.load() }")
    wait_until(lambda: audio.evaluate("a => a.readyState") >= 2, "it can be played")
    assert 7 < audio.evaluate("a => a.duration") < 9
    image = page.locator("img.spectrogram")
    image.scroll_into_view_if_needed()
    wait_until(lambda: image.evaluate("i => i.complete && i.naturalWidth") == 900, "it is drawn")
    page.get_by_role("link", name="Listen window by window").click()
    expect(page.locator("#over-time-shown svg").first).to_be_visible(timeout=60_000)
    assert visit.faults() == []


def test_every_page_on_a_phone(phone: Visit) -> None:
    for path in PAGES:
        page = phone.open(path)
        wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert wide <= 0, path
        box = page.get_by_role("navigation").bounding_box()
        assert box is not None and box["y"] + box["height"] == 740, path
        assert box["height"] >= 48
        assert phone.faults() == [], path


def test_every_page_is_accessible(visit: Visit) -> None:
    for path in PAGES:
        visit.open(path)
        assert visit.faults() == [], path


def test_the_keyboard_alone_is_enough(visit: Visit) -> None:
    page = visit.open("/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    focused = "document.activeElement.closest('main') !== null"
    assert page.evaluate(focused)
    seen = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(seen) != "none"
    page.goto(visit.url)
    for _ in range(4):  # skip, name, Now, Library
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("/library$"))


def test_the_appearance_is_chosen_and_kept(visit: Visit) -> None:
    page = visit.open("/")
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)
    with page.expect_navigation():
        page.locator("#theme").select_option("dark")
    assert page.evaluate(colour) != light
    page.goto(visit.url + "/log")
    assert page.evaluate(colour) != light


def test_without_scripts_it_works_as_well(home: Home, visit: Visit) -> None:
    browser = visit.page.context.browser
    assert browser is not None
    context = browser.new_context(
        java_script_enabled=False, storage_state=visit.page.context.storage_state()
    )
    page = context.new_page()
    page.goto(home.url)
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#state")).to_have_text("Paused")
    page.get_by_role("button", name="Go on").click()
    expect(page.locator("#state")).not_to_have_text("Paused")
    context.close()


def test_a_station_is_heard_and_its_title_is_only_text(visit: Visit) -> None:
    station = make_station([DEMO / "Muldjord - Mutilated Mime.mp3"], "mp3", 8.0)
    station.titles = [(0.0, HOSTILE_TITLE)]
    page = visit.open("/listen")
    with station.on_air() as url:
        page.get_by_label("Address").fill(url)
        page.keyboard.press("Enter")
        expect(page.locator("#heard .genre").first).to_have_text("Metal", timeout=60_000)
        expect(page.locator("#station-title")).to_have_text(HOSTILE_TITLE)
        assert page.evaluate("window.hacked") is None
        assert visit.faults() == []
        page.locator("#stop").focus()
        page.wait_for_timeout(2500)  # in which the part is put in anew twice
        expect(page.locator("#stop")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("#stop")).to_have_count(0)


def test_duplicates_are_found_and_a_playlist_is_downloaded(visit: Visit, home: Home) -> None:
    path = home.drop("twice.mp3")
    home.settled(home.drop("once.mp3"))  # something that a playlist can hold
    home.settled(path)
    copy = path.with_name("twice again.mp3")
    shutil.copy(path, copy)
    number = home.settled(copy)
    page = visit.open("/duplicates")
    page.get_by_role("main").get_by_role("button").first.click()
    expect(page.locator("#found")).to_be_visible(timeout=60_000)
    expect(page.get_by_role("main")).to_contain_text("twice again.mp3")
    assert visit.faults() == []
    page = visit.open(f"/tracks/{number}")
    link = page.locator("a[href$='similar.m3u8']")
    with page.expect_download() as download:
        link.click()
    content = download.value.path().read_text(encoding="utf-8")
    assert content.startswith("#EXTM3U")
    assert str(copy) in content
