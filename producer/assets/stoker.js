// Keeps a page as the server would render it now: when something changed, the page is fetched again
// and only what differs is put in, so that scroll, focus, open details and ticked rows stay.
(() => {
  "use strict";
  const quiet = 1000; // ms between two looks, however much happens
  let paused = sessionStorage.getItem("paused") === "1";
  let source, timer, last = 0, busy = false, wanted = false;

  const root = document.documentElement;
  const button = document.getElementById("live");
  const say = (word, cut) => {
    if (button) { button.textContent = word; button.setAttribute("aria-pressed", String(paused)); }
    root.classList.toggle("stale", cut);
  };

  // Times: local, with UTC on hover; recent ones relative.
  const relative = (ms) => {
    const s = Math.round(Math.abs(ms) / 1000);
    const text = s < 60 ? `${s} s` : s < 3600 ? `${Math.floor(s / 60)} min ${s % 60} s`
      : s < 86400 ? `${Math.floor(s / 3600)} h ${Math.floor(s / 60) % 60} min` : `${Math.floor(s / 86400)} d`;
    return ms > 0 ? `in ${text}` : `${text} ago`;
  };
  const times = () => {
    for (const t of document.querySelectorAll("time[datetime]")) {
      const at = new Date(t.getAttribute("datetime"));
      if (Number.isNaN(at.valueOf())) continue;
      const delta = at - Date.now();
      t.title = at.toISOString().replace("T", " ").replace("Z", " UTC");
      const due = t.hasAttribute("data-due");
      const text = due && delta <= 0 ? "now"
        : due || Math.abs(delta) < 86400000 && t.hasAttribute("data-relative") ? relative(delta)
        : at.toLocaleString(undefined, { dateStyle: "short", timeStyle: "medium" });
      if (t.textContent !== text) t.textContent = text;
    }
  };

  // Puts `to` in the place of `from`, keeping every node that is the same.
  const keyOf = (node) => node.nodeType === 1 ? node.id || node.getAttribute("data-key") : null;
  const morph = (from, to) => {
    if (from.nodeType !== to.nodeType || from.nodeName !== to.nodeName) { from.replaceWith(to.cloneNode(true)); return; }
    if (from.nodeType === 3) { if (from.data !== to.data) from.data = to.data; return; }
    if (from.nodeType !== 1 || from.isEqualNode(to)) return;
    if (from.matches("input, select, textarea, [data-keep]")) return;
    for (const { name, value } of [...to.attributes]) {
      if (name === "open" && from.nodeName === "DETAILS") continue;
      if (from.getAttribute(name) !== value) from.setAttribute(name, value);
    }
    for (const { name } of [...from.attributes]) {
      if (!to.hasAttribute(name) && !(name === "open" && from.nodeName === "DETAILS")) from.removeAttribute(name);
    }
    if (from.nodeName === "TIME") return;
    const known = new Map();
    for (const child of from.childNodes) { const key = keyOf(child); if (key) known.set(key, child); }
    let at = from.firstChild;
    for (const wantedChild of [...to.childNodes]) {
      const key = keyOf(wantedChild);
      let match = key ? known.get(key) : at && !keyOf(at) ? at : null;
      if (match) {
        if (match !== at) from.insertBefore(match, at); else at = at.nextSibling;
        morph(match, wantedChild);
        if (!match.isConnected) at = at ?? null;
      } else {
        from.insertBefore(wantedChild.cloneNode(true), at);
      }
    }
    while (at) { const next = at.nextSibling; at.remove(); at = next; }
  };

  const refresh = async () => {
    clearTimeout(timer);
    timer = undefined;
    if (busy) { wanted = true; return; }
    busy = true;
    last = Date.now();
    try {
      const answer = await fetch(location.href, { headers: { accept: "text/html" } });
      if (answer.redirected) { location.reload(); return; }
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const id of ["main", "nav", "asof"]) {
        const [from, to] = [document.getElementById(id), page.getElementById(id)];
        if (from && to) morph(from, to);
      }
      times();
      picked();
      say("● live", false);
    } catch {
      say("○ cut", true);
    } finally {
      busy = false;
      if (wanted) { wanted = false; soon(); }
    }
  };
  const soon = () => {
    if (paused || timer !== undefined || document.hidden) { wanted = wanted || document.hidden; return; }
    timer = setTimeout(refresh, Math.max(0, last + quiet - Date.now()));
  };

  const listen = () => {
    if (!button || !window.EventSource) return;
    source?.close();
    if (paused) { say("▮▮ paused", false); return; }
    source = new EventSource("/live" + (root.dataset.job ? `?job=${encodeURIComponent(root.dataset.job)}` : ""));
    // Something may have happened between the making of the page and this moment.
    source.onopen = () => { say("● live", false); soon(); };
    source.onmessage = soon;
    source.onerror = () => say("○ cut", true);
  };
  button?.addEventListener("click", () => {
    paused = !paused;
    sessionStorage.setItem("paused", paused ? "1" : "0");
    listen();
    if (!paused) refresh();
  });
  document.addEventListener("visibilitychange", () => { if (!document.hidden && wanted) { wanted = false; soon(); } });

  // A page that was left may live on in the browser's cache; six of them listening would use up all
  // the connections that a browser makes to one server.
  addEventListener("pagehide", () => source?.close());
  addEventListener("pageshow", (event) => { if (event.persisted) { listen(); if (!paused) refresh(); } });

  // Ticked rows: how many, and what may be done with them.
  const rows = () => [...document.querySelectorAll("input[name=id]")];
  const picked = () => {
    const n = rows().filter((box) => box.checked).length;
    for (const out of document.querySelectorAll("[data-picked]")) out.textContent = String(n);
    for (const act of document.querySelectorAll("[data-needs-picked]")) act.disabled = n === 0;
  };
  document.addEventListener("change", (event) => {
    if (event.target.matches?.("[data-all]")) for (const box of rows()) box.checked = event.target.checked;
    picked();
  });

  // Keys; never while somebody writes.
  const current = () => document.querySelector("tr.here");
  const step = (by) => {
    const all = [...document.querySelectorAll("tr[data-href]")];
    if (!all.length) return;
    const at = all.indexOf(current());
    const next = all[Math.min(all.length - 1, Math.max(0, at + by))] ?? all[0];
    current()?.classList.remove("here");
    next.classList.add("here");
    next.querySelector("a")?.focus();
  };
  let pending = "";
  const go = { o: "/", j: "/jobs", r: "/retries", d: "/dead", h: "/hosts", w: "/webhooks", l: "/log" };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches?.("input, textarea, select")) return;
    const key = event.key;
    if (pending === "g" && go[key]) { location.assign(go[key]); return; }
    pending = key === "g" ? "g" : "";
    if (key === "/") { document.getElementById("search")?.focus(); event.preventDefault(); }
    else if (key === "j") step(1);
    else if (key === "k") step(-1);
    else if (key === "x") { const box = current()?.querySelector("input[name=id]"); if (box) { box.checked = !box.checked; picked(); } }
    else if (key === "r") document.querySelector("[data-key-r]")?.click();
    else if (key === "?") document.getElementById("keys")?.showModal();
  });
  document.addEventListener("click", (event) => {
    const copy = event.target.closest?.("[data-copy]");
    if (copy) navigator.clipboard?.writeText(document.getElementById(copy.dataset.copy)?.textContent ?? "");
  });

  times();
  picked();
  setInterval(times, 1000);
  listen();
})();
