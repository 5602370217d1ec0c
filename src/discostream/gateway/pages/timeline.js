// One request over time: its attempts, the answer as it was delivered, seams and stalls.

import { $, element } from "./dom.js";
import { drawLanes } from "./lanes.js";
import { plural, seconds, tokens } from "./format.js";

/** How many live requests are drawn, at most. */
const MOST_LIVE = 20;

/** How bars and marks are read. */
export const KEY = "Thin: waiting for the first content. Thick: writing. Hatched: let go. ‖ seam, ✕ failed, ○ planned start; in the answer, red is a stall.";

/**
 * A live request as a story: `lanes` of its attempts, when the answer `began` and with whom, `seams`, `stalls`, and when it
 * `ends`, which is now.
 */
function ofLive({ age_s, attempts, seams, stalls }) {
  const spoke = attempts.filter(({ endpoint, ttft_s }) => ttft_s !== null && (!seams.length || endpoint === seams[0].source));
  const [writer] = spoke.sort((one, other) => one.ttft_s - other.ttft_s);
  const lanes = attempts.map((attempt) => liveLane(attempt, age_s, writer?.ttft_s ?? null));
  return { lanes, ends: age_s, began: writer?.ttft_s ?? null, winner: writer?.endpoint, seams: timed(seams), stalls };
}

function liveLane({ endpoint: who, start_offset_s: start, ttft_s, ended_s, state }, age_s, began) {
  const end = ended_s ?? age_s;
  const spoke = ttft_s === null ? "" : `first content after ${seconds(ttft_s)}`;
  const said = {
    waiting: `waiting for ${seconds(Math.max(0, end - start))}`,
    delivering: `${spoke}, writing`,
    lost: began === null || start < began ? "let go when another spoke" : "let go before it took over",
    failed: [spoke, "failed"].filter(Boolean).join(", then "),
    target: spoke ? `${spoke}, ready to go on` : "gets ready to go on",
    done: spoke || "ended",
  }[state];
  return { who, start, first: ttft_s, end, said: started(start) + said, letGo: state === "lost", failed: state === "failed", racing: ended_s === null };
}

const started = (start) => (start >= 0.005 ? `started at ${seconds(start)}, ` : "");

/** A settled request as such a story. */
export function ofSettled({ attempts, migrations, ttft_s, winner, ended_s, longest_gaps }) {
  const lanes = attempts.map((attempt) => settledLane(attempt, ttft_s));
  return {
    lanes, winner: migrations[0]?.source ?? winner, began: ttft_s, ends: ended_s ?? Math.max(...lanes.map(({ end }) => end)),
    seams: timed(migrations), stalls: longest_gaps ?? [],
  };
}

/** Those of which it is known when they were. */
const timed = (seams) => seams.filter(({ at_s }) => at_s !== null);

function settledLane({ endpoint: who, start_offset_s: start, ttft_s: first, ran_s, outcome, error, dropped }, won) {
  const after = first === null ? "" : `first content after ${seconds(first)}`;
  const said = {
    won: ["won", after].filter(Boolean).join(", "),
    lost: "let go when another spoke",
    failed: `${after && `${after}, then `}failed: ${error}`,
    migrated_from: `${first === won ? "won" : "took over"}, ${after}, then handed over`,
    migrated_to: `took over, ${after}`,
    not_started: error ? `not started: ${error}` : `not started: planned for ${seconds(start)}`,
  }[outcome];
  const idle = outcome === "not_started";
  const end = idle ? start : start + (ran_s ?? Math.max(0, (first ?? start) - start));
  return { who, start, first, end, idle, letGo: outcome === "lost" || Boolean(dropped), failed: outcome === "failed", said: (idle ? "" : started(start)) + (dropped ? `let go: ${dropped}` : said) };
}

/** Draw a story into a list, with a scale below or without. */
export function drawStory(list, story, scaled = false) {
  const ends = story.lanes.filter(({ idle }) => !idle).map(({ end }) => end);
  const until = Math.max(0.05, story.ends, ...ends);
  const axis = 1.02 * until;
  const answer = story.began === null ? [] : [answerLane(story)];
  const scale = scaled ? [scaleLane(until)] : [];
  drawLanes(list, [...story.lanes.map((lane) => attemptLane(lane, axis)), ...answer, ...scale], axis);
}

function scaleLane(until) {
  const marks = [0, until / 2, until].map((at) => ({ sign: at ? seconds(at) : "0", at, kind: "tick" }));
  return { who: "", said: "", plain: true, parts: [], marks };
}

function attemptLane({ who, start, first, end, said, letGo, failed, idle, racing }, axis) {
  if (idle) return { who, said, parts: [], marks: [{ sign: "○", at: Math.min(start, 0.98 * axis), kind: "planned" }] };
  const hatched = letGo ? " let-go" : "";
  const wait = { from: start, to: Math.max(start, first ?? end), kind: `wait${hatched}` };
  const parts = first === null || first >= end ? [wait] : [wait, { from: first, to: end, kind: hatched.trim() }];
  return { who, said, parts, racing: racing && first === null, marks: failed ? [{ sign: "✕", at: end, kind: "broke" }] : [] };
}

/** The answer as its reader got it: who wrote which part, and where nothing came. */
function answerLane({ began, ends, winner, seams, stalls }) {
  const cuts = [{ at: began, who: winner }, ...seams.map(({ at_s, target }) => ({ at: at_s, who: target }))];
  const parts = cuts.map(({ at, who }, index) => ({ from: at, to: cuts[index + 1]?.at ?? ends, who, kind: "own" }));
  return {
    who: "answer", plain: true, said: seamWords(seams, stalls),
    parts: [...parts, ...stalls.map(({ at_s, for_s }) => ({ from: at_s, to: at_s + for_s, kind: "stall" }))],
    marks: seams.map(({ at_s }) => ({ sign: "‖", at: at_s, kind: "seam" })),
  };
}

function seamWords(seams, stalls) {
  const moved = seams.map(({ source, target, at_s, reason, gap_s }) => `‖ ${source} to ${target} at ${seconds(at_s)}${reason === "rescue" ? " as a rescue" : " to save cost"}, gap ${seconds(gap_s)}`);
  const stood = stalls.length ? [`${plural(stalls.length, "stall")}, the longest ${seconds(Math.max(...stalls.map(({ for_s }) => for_s)))}`] : [];
  return [...moved, ...stood].join("; ") || "no seam, no stall";
}

// Live requests

export function showLive({ requests }) {
  const list = $("live");
  const drawn = [...list.children];
  const rows = requests.slice(0, MOST_LIVE).map((request) => drawLive(taken(drawn, request) ?? liveRow(request), request));
  for (const row of drawn) row.remove();
  rows.forEach((row, index) => { if (list.children[index] !== row) list.insertBefore(row, list.children[index] ?? null); });
  $("live-count").textContent = requests.length > MOST_LIVE ? `${requests.length}, the oldest ${MOST_LIVE} shown` : requests.length || "";
  $("live-empty").hidden = requests.length > 0;
  if (requests.length) $("live-box").className = "used";
  $("live-key").hidden = !$("live-box").className;
}

/** A request's row out of those that are drawn already; each is taken once, as clients may use an ID twice. */
function taken(drawn, { request_id }) {
  const place = drawn.findIndex(({ dataset }) => dataset.id === request_id);
  return place < 0 ? null : drawn.splice(place, 1)[0];
}

export function liveRow({ request_id }) {
  const row = element("li", { className: "card story" }, element("p", { className: "head" }), element("ol", { className: "bars" }));
  row.dataset.id = request_id;
  row.firstElementChild.append(
    element("a", { href: pageOf(request_id), text: short(request_id) }),
    element("span", { className: "state" }), element("span", { className: "about" }));
  return row;
}

export function drawLive(row, request) {
  const { state, policy, age_s, prompt_tokens, delivered_tokens, unread_tokens } = request;
  const [, stands, about] = row.firstElementChild.children;
  stands.textContent = state;
  stands.className = `state ${state.replace(" ", "-")}`;
  about.textContent = `${policy}; ${seconds(age_s)} so far; prompt of about ${tokens(prompt_tokens)}; ${tokens(delivered_tokens)} delivered, ${Math.round(unread_tokens)} unread`;
  drawStory(row.lastElementChild, ofLive(request));
  return row;
}

export const short = (id) => id.slice(0, 8);
export const pageOf = (id) => `/dashboard/request?id=${encodeURIComponent(id)}`;
