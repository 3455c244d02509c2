// What HTMX alone does not do: the appearance at once, a word when the daemon is away, and keys.
"use strict";

document.documentElement.classList.add("with-script");

const theme = document.getElementById("theme");
if (theme) {
  theme.addEventListener("change", () => {
    document.documentElement.dataset.theme = theme.value;
    theme.form.requestSubmit();
  });
}

// The daemon is away: say so, and take it back once it answers.
const offline = document.getElementById("offline");
document.addEventListener("htmx:sendError", () => { offline.hidden = false; });
document.addEventListener("htmx:afterOnLoad", () => { offline.hidden = true; });

// A session that ended while a part was asked for: the whole page goes to the login.
document.addEventListener("htmx:responseError", (event) => {
  if (event.detail.xhr.status === 401) window.location.reload();
});

// The daemon's events say when there is news (now_live.html). Without them it is asked more often.
let told = false;
document.addEventListener("htmx:sseOpen", () => { told = true; });
for (const lost of ["htmx:sseError", "htmx:sseClose"]) document.addEventListener(lost, () => { told = false; });
function ask() {
  const live = document.getElementById("live");
  if (live) htmx.trigger(live, "poll");
}
setInterval(() => { if (!told) ask(); }, 2000);
document.addEventListener("visibilitychange", () => { if (!document.hidden) ask(); });

// What asks for itself, by the clock or when there is news, asks for nothing while nobody looks.
const asksForItself = (elt) => elt.id === "live" || /every/.test(elt.getAttribute("hx-trigger") || "");
document.addEventListener("htmx:beforeRequest", (event) => {
  if (document.hidden && asksForItself(event.detail.elt)) event.preventDefault();
});

// What went wrong is shown until something else is asked for.
document.addEventListener("htmx:beforeRequest", (event) => {
  const problem = document.getElementById("problem");
  if (problem && !asksForItself(event.detail.elt)) problem.replaceChildren();
});

// Review by keys: 1 to 9 choose, a is the whole album, j and k go on and back, p plays.
const cards = document.getElementById("cards");
const open = () => [...document.querySelectorAll("#cards > .review")];
const card = () => document.activeElement.closest("#cards > .review") || open()[0];

function go(step) {
  const all = open();
  const at = all.indexOf(document.activeElement.closest("#cards > .review"));
  const next = all[Math.min(all.length - 1, Math.max(0, at + step))];
  if (next) { next.focus(); next.scrollIntoView({ block: "nearest" }); }
}

if (cards) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
    if (event.target.matches("input:not([type=checkbox]), textarea, select")) return;
    const here = card();
    if (!here) return;
    if (/^[1-9]$/.test(event.key)) here.querySelector(`[data-key="${event.key}"]`)?.click();
    else if (event.key === "a") here.querySelector("[data-album]")?.click();
    else if (event.key === "j") go(1);
    else if (event.key === "k") go(-1);
    else if (event.key === "p") {
      const player = here.querySelector("audio");
      if (player.paused) player.play(); else player.pause();
    } else return;
    event.preventDefault();
  });
  // The card that was decided gives the focus to the next one.
  document.addEventListener("htmx:beforeSwap", (event) => {
    const done = event.detail.target.closest && event.detail.target.closest("#cards > .review");
    if (done && event.detail.xhr.status < 400) {
      const all = open();
      const next = all[all.indexOf(done) + 1] || all[all.indexOf(done) - 1] || document.getElementById("next");
      setTimeout(() => { if (next) next.focus(); }, 0);
    }
  });
}
