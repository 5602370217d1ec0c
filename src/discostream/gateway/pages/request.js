// A request's own page: everything settled about it, or its race while it runs.

import { get, keepKey, Problem } from "./api.js";
import { $, element, facts, table } from "./dom.js";
import { NONE, count, energy, fully, joules, seconds, tokens, usd } from "./format.js";
import { named, showLegend } from "./looks.js";
import { drawLive, drawStory, KEY, liveRow, ofSettled } from "./timeline.js";
import { again, every } from "./watch.js";

const ID = new URLSearchParams(location.search).get("id") ?? "";
const FIGURE = "figure";
const RUNNING_S = 1;
let settled = false;

async function show(signal) {
  if (settled) return;
  const [{ endpoints }, live] = await Promise.all(["/playground.json", "/dashboard/api/live"].map((path) => get(path, { signal })));
  showLegend(endpoints);
  const running = live.requests.find(({ request_id }) => request_id === ID);
  if (running) showRunning(running);
  else await showSettled(signal);
}

async function showSettled(signal) {
  const told = await get(`/dashboard/api/requests/${encodeURIComponent(ID)}`, { signal }).catch((error) => {
    throw error.status === 404 ? new Problem(`No request ${ID || "without an id"} runs here or is in the ledger. Is the link an old one, or another gateway’s?`, 404) : error;
  });
  settled = true;
  $("stories").replaceChildren(...told.requests.map(story));
}

function showRunning(request) {
  if (!$("stories").querySelector(".story")) $("stories").replaceChildren(element("h2", { text: `Request ${ID} runs` }), element("ul", { className: "stories" }, liveRow(request)), element("p", { className: "key", text: KEY }));
  drawLive($("stories").querySelector(".story"), request);
}

function story(request) {
  const bars = element("ol", { className: "bars" });
  drawStory(bars, ofSettled(request), true);
  return element("article", {},
    element("h2", {}, "Request ", element("code", { text: request.request_id })),
    element("section", { className: "card" }, element("h3", { text: "What became of it" }), element("dl", { className: "facts wide" }, ...facts(about(request)))),
    element("section", { className: "card" }, element("h3", { text: "Timeline, from its arrival" }), bars, element("p", { className: "key", text: KEY })),
    ...handoffs(request),
    element("section", { className: "card" }, element("h3", { text: "Attempts" }), attempts(request)),
    ...gaps(request));
}

function about(request) {
  const { mean_tbt_s: mean, p99_tbt_s: p99, max_tbt_s: most } = request;
  const chars = request.prompt_chars === null ? "" : ` (${count(request.prompt_chars)} characters)`;
  return [
    ["Settled", fully(request.recorded_at)],
    ["Policy", request.policy],
    ["Outcome", request.outcome + (request.finish_reason ? ` (${request.finish_reason})` : "")],
    ["Winner", request.winner === null ? NONE : named(request.winner)],
    ["TTFT", seconds(request.ttft_s)],
    ["Gaps between tokens", mean === null ? NONE : `mean ${seconds(mean)}, P99 ${seconds(p99)}, longest ${seconds(most)}`],
    ["Prompt", `${tokens(request.prompt_tokens)}${chars}`],
    ["Answer", tokens(request.completion_tokens)],
    ["Cost", usd(request.usd)],
    ["Energy", energy(request.joules)],
    ...(request.stayed ? [["Stayed", request.stayed]] : []),
    ...(request.error ? [["Error", request.error]] : []),
  ];
}

function handoffs({ migrations }) {
  if (!migrations.length) return [];
  const items = migrations.map((move) => element("li", {},
    element("span", { className: "seam", text: "‖ " }), named(move.source), " to ", named(move.target),
    ` after ${tokens(move.at_token)}${move.at_s === null ? "" : `, at ${seconds(move.at_s)}`}, ${move.reason === "rescue" ? "as a rescue" : "to save cost"}, by ${move.by === "tokens" ? "token IDs" : "text"}; gap ${seconds(move.gap_s)}`,
    element("div", { className: "why", text: move.why ?? "" })));
  return [element("section", { className: "card" }, element("h3", { text: "Handoffs" }), element("ul", { className: "moves" }, ...items))];
}

function attempts({ attempts: rows }) {
  const columns = [["Endpoint"], ["Became"], ...["Start", "First content", "End", "Prompt tokens", "Cached", "Answer tokens", "Before it", "Cost", "Energy"].map((text) => [text, FIGURE]), ["Remarks"]];
  return table("Each attempt, cancelled ones too; times from the request’s arrival", columns, rows.map((each) => [
    named(each.endpoint), each.outcome.replaceAll("_", " "),
    seconds(each.start_offset_s), seconds(each.ttft_s), seconds(each.ran_s === null ? null : each.start_offset_s + each.ran_s),
    count(each.prompt_tokens), count(each.cached_tokens), count(each.completion_tokens), count(each.ahead),
    usd(each.usd), joules(each.joules),
    [each.error, each.dropped && `let go: ${each.dropped}`].filter(Boolean).join("; ") || NONE,
  ]));
}

function gaps({ longest_gaps: rows }) {
  if (!rows?.length) return [];
  const shown = rows.map(({ at_s, for_s }) => [seconds(at_s), seconds(for_s)]);
  return [element("section", { className: "card narrow" }, element("h3", { text: "Longest gaps" }),
    table("When the reader got nothing, longest first", [["After"], ["For", FIGURE]], shown))];
}

document.title = `Request ${ID.slice(0, 8)} · discostream`;
every(RUNNING_S, show);
keepKey(again);
