// Doing things over and over while somebody looks.

import { $ } from "./dom.js";
import { Problem } from "./api.js";

/** Without a key, and where there is nothing, asking again does not help. */
const FINAL = [401, 404];

const troubles = new Map();
const watches = [];
let paused = false;

/**
 * Do a task now, and again some seconds after each time it is done: not while the page is hidden, and not without a key.
 * What goes wrong is told in `#trouble` until it goes well. Returns what does it at once, and drops what is under way.
 */
export function every(seconds, task) {
  let timer = null;
  let current = null;
  const resting = () => document.hidden || paused;
  async function turn() {
    clearTimeout(timer);
    current?.abort();
    const { signal } = current = new AbortController();
    const again = await tried(task, signal);
    if (!signal.aborted && again && !resting()) timer = setTimeout(turn, 1000 * seconds);
  }
  const watch = { turn, rest: () => clearTimeout(timer) };
  watches.push(watch);
  turn();
  return turn;
}

/** Do a task; whether it makes sense to do it again. */
async function tried(task, signal) {
  try {
    await task(signal);
    tell(task, null);
    return true;
  } catch (error) {
    if (error.name === "AbortError") return false; // by what asks anew
    if (!(error instanceof Problem)) throw error;
    tell(task, error.message);
    return !FINAL.includes(error.status);
  }
}

function tell(task, message) {
  if (message) troubles.set(task, message);
  else troubles.delete(task);
  const told = [...new Set(troubles.values())].join(" ");
  if ($("trouble").textContent !== told) $("trouble").textContent = told;
  $("trouble").hidden = !told;
}

const each = (what) => () => watches.forEach((watch) => watch[what]());

/** Do everything again, now. */
export const again = each("turn");

export function pause(yes) {
  paused = yes;
  each(yes ? "rest" : "turn")();
}

document.addEventListener("visibilitychange", () => { if (!paused) each(document.hidden ? "rest" : "turn")(); });
