// The frame: one section at a time by the address's fragment, the server's health, the key.

import * as ask from "./ask.js";
import * as cache from "./cache.js";
import * as corpus from "./corpus.js";
import { byId } from "./elements.js";
import { forgetKey, storedKey } from "./key.js";
import * as requests from "./requests.js";
import * as warmUp from "./warmup.js";

const SECTIONS = { ask, corpus, "warm-up": warmUp, cache, requests };
const HEALTH_MS = 15000;
let current = null;

/** Show the section that the address names; an unknown fragment (the skip link's) changes nothing. */
function route() {
  const name = location.hash.slice(1) || "ask";
  if (!(name in SECTIONS) || name === current) return;
  SECTIONS[current]?.hide?.();
  const isFirst = current === null;
  current = name;
  for (const section of document.querySelectorAll("main > section")) {
    section.hidden = section.id !== name;
  }
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const heading = byId(`${name}-title`);
  document.title = `${heading.textContent} · chunkcache`;
  if (!isFirst) heading.focus(); // so that a screen reader says where one is
  SECTIONS[name].show();
}

async function checkHealth() {
  const line = byId("health");
  try {
    const state = await (await fetch(new URL("health", document.baseURI))).json();
    line.dataset.state = state.status;
    line.textContent = state.reuse === false ? "reuse is off" : state.status;
    byId("model").textContent = state.model ?? "";
  } catch (error) {
    line.dataset.state = "away";
    line.textContent = "not reachable";
    console.info(error.message);
  }
  setTimeout(checkHealth, HEALTH_MS);
}

byId("forget-key").hidden = storedKey() === null;
byId("forget-key").addEventListener("click", () => {
  forgetKey();
  location.reload();
});
addEventListener("hashchange", route);
route();
checkHealth();
