// Loads the page again when the console says that something has changed, and puts the new parts in place.
// Without this file every page is still whole; only the reader has to load it again.
"use strict";

const live = document.getElementById("live");

async function renew() {
  const answer = await fetch(location.href, { credentials: "same-origin" });
  if (answer.redirected) { location.reload(); return; } // logged out
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of document.querySelectorAll("[data-live]")) {
    const other = page.getElementById(part.id);
    // A person who types or has a button under the finger keeps what is there.
    if (other && other.innerHTML !== part.innerHTML && !part.contains(document.activeElement)) {
      part.replaceChildren(...other.childNodes);
    }
  }
  const footer = page.querySelector("footer");
  if (footer) document.querySelector("footer").firstChild.textContent = footer.firstChild.textContent;
}

if (document.querySelector("[data-live]")) {
  let again = false, busy = false;
  const events = new EventSource("/events");
  events.onopen = () => { live.textContent = "Live."; renew(); };
  events.onerror = () => { live.textContent = "The console does not answer; this page may be old."; };
  events.addEventListener("changed", async () => {
    again = true;
    if (busy) return;
    busy = true;
    while (again) {
      again = false;
      try { await renew(); } catch { live.textContent = "The console does not answer; this page may be old."; }
    }
    busy = false;
  });
}
