// Warm-up: start, watch, pause, resume, stop.

import { getJson, postJson } from "./api.js";
import { byId, figures, say } from "./elements.js";
import { count, duration, moment } from "./format.js";
import { refreshStores } from "./stores.js";

const PATH = "v1/chunkcache/warm_up";
const POLL_MS = 1000;
const WORDS = {
  running: "Running",
  paused: "Paused",
  done: "Done: everything is warm",
  stopped: "Stopped",
  failed: "Failed",
};
let timer = null;

export async function show() {
  await guarded(async () => {
    await refreshStores();
    await watch();
  });
}

export function hide() {
  clearTimeout(timer);
  timer = null;
}

for (const action of ["start", "pause", "resume", "stop"]) {
  byId(`warm-${action}`).addEventListener("click", () => guarded(() => change(action)));
}

async function guarded(task) {
  try {
    await task();
  } catch (error) {
    byId("warm-panel").hidden = false;
    say(byId("warm-state"), error.message);
  }
}

async function change(action) {
  const body = { action, vector_store_id: byId("warm-store").value || "default" };
  draw(await (await postJson(PATH, body)).json());
  focusNext(); // before anything is waited for: the button that was pressed may be gone
  await watch();
  const focused = document.activeElement;
  if (!focused || focused === document.body || focused.hidden) focusNext();
}

function focusNext() {
  const next = ["warm-pause", "warm-resume", "warm-start"].find((id) => !byId(id).hidden);
  byId(next)?.focus();
}

async function watch() {
  hide();
  const state = await getJson(PATH);
  draw(state);
  if (state.state === "running" && !byId("warm-up").hidden) {
    timer = setTimeout(() => guarded(watch), POLL_MS);
  }
}

function notKept(state) {
  return state.refused + state.failed;
}

function draw(state) {
  const running = state.state === "running";
  const paused = state.state === "paused";
  byId("warm-start").hidden = running || paused;
  byId("warm-pause").hidden = !running;
  byId("warm-resume").hidden = !paused;
  byId("warm-stop").hidden = !running && !paused;
  byId("warm-panel").hidden = state.state === "idle";
  if (state.state === "idle") return;
  const isShort = state.state === "done" && (notKept(state) || state.evicted || state.left_out);
  const words = (isShort ? "Done: not everything is warm" : WORDS[state.state]) + (state.message ? `: ${state.message}` : "");
  if (byId("warm-state").textContent !== words) say(byId("warm-state"), words); // read out once
  byId("warm-bar").max = state.total ?? 1;
  byId("warm-bar").value = state.total === null ? 0 : state.done;
  figures(byId("warm-figures"), [
    ["Documents of", state.vector_store_id],
    ["Chunks warm", state.total === null ? "counting" : `${count(state.done)} of ${count(state.total)}`],
    ["Computed and not kept", notKept(state) ? count(notKept(state)) : null],
    ["Not computed: no room", state.left_out ? count(state.left_out) : null],
    ["Evicted again", state.evicted ? count(state.evicted) : null],
    ["Why", state.not_kept_reason],
    ["Kept as warmed, not pinned", state.warmed_only ? count(state.warmed_only) : null],
    ["Tokens computed", count(state.tokens)],
    ["Tokens a second", state.tokens_per_s === null ? null : count(Math.round(state.tokens_per_s))],
    ["Time left", state.eta_s === null ? null : `about ${duration(state.eta_s)}`],
    ["Began", moment(state.began_at)],
    ["Ended", state.ended_at === null ? null : moment(state.ended_at)],
  ]);
}
