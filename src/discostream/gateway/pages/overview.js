// What was settled in the time range: totals, charts, endpoints.

import { Chart } from "./charts.js";
import { $, element, renew, table } from "./dom.js";
import { NONE, above, below, count, countTick, energy, joules, joulesTick, percent, percentTick, plural, seconds, secondsTick, usd, usdTick, wattHours, when } from "./format.js";
import { look, named } from "./looks.js";
import { isFiltered, rangeInWords } from "./view.js";

const FIGURES = "figure";
const NOTHING = "Nothing was answered.";
const PARTS = ["p50", "p90", "p99"];
const charts = {};

export function showOverview(told) {
  showTotals(told.totals);
  const none = !told.totals.requests;
  $("empty").hidden = !none;
  $("empty").textContent = none ? emptyWords() : "";
  $("settled").hidden = none;
  if (none) return;
  const over = { ...told.over_time, x: told.over_time.starts.map((moment) => new Date(moment) / 1000) };
  const span = { from: over.x[0], to: Math.max(new Date(told.until) / 1000, over.x[0] + over.bucket_s), step: over.bucket_s, x: over.x };
  draw("ttft", ttftOverTime(told, over, span));
  draw("cdf", distribution(told));
  draw("outcomes", outcomes(told, over, span));
  draw("wins", wins(told, over, span));
  draw("spend", spend(told, over, span));
  draw("burn", burn(told, over, span));
  renew($("endpoints"), endpointTable(told.endpoints));
}

function emptyWords() {
  const range = rangeInWords();
  if (isFiltered()) return `No request ${range} fits the filters; change them, or widen the range.`;
  return `No requests ${range}; widen the range, or ask something in the playground.`;
}

function draw(id, what) {
  charts[id] ??= new Chart($(id));
  charts[id].show(what);
}

function showTotals(totals) {
  const { ttft_s: ttft, max_tbt_s: gap } = totals;
  const share = (many) => (totals.requests && many !== null ? percent(many / totals.requests) : NONE);
  const tiles = [
    ["Requests", count(totals.requests), `${count(totals.ok)} ok, ${count(totals.failed)} failed, ${count(totals.cancelled)} cancelled`],
    ["TTFT", seconds(ttft?.p50), ttft ? `median; P90 ${seconds(ttft.p90)}, P99 ${seconds(ttft.p99)}, mean ${seconds(ttft.mean)}` : "nothing was answered"],
    ["Longest gap", seconds(gap?.p50), gap ? `of a median answer; P99 ${seconds(gap.p99)}` : "no answer had two tokens"],
    ["Raced", count(totals.raced), `${share(totals.raced)} of requests`],
    ["Migrations", count(totals.migrations - totals.rescues), `to save cost; and ${plural(totals.rescues, "rescue")}`],
    ["Spent", usd(totals.usd), totals.requests ? `${usd(totals.usd / totals.requests)} a request` : ""],
    ["Energy", wattHours(totals.joules), joules(totals.joules)],
    ["Tokens", count(totals.prompt_tokens + totals.completion_tokens), `${count(totals.prompt_tokens)} prompt, ${count(totals.completion_tokens)} answer`],
  ];
  renew($("totals"), ...tiles.map(([term, value, more]) => element("div", {}, element("dt", { text: term }),
    element("dd", { className: "value", text: value }), element("dd", { className: "more", text: more }))));
}

// Over time

const last = (values) => values.findLast((value) => value !== null) ?? null;
const sum = (values) => values.reduce((all, value) => all + value, 0);
const per = ({ bucket_s }) => `per ${{ 1: "second", 60: "minute", 3600: "hour", 86400: "day" }[bucket_s] ?? (bucket_s < 60 ? `${bucket_s}\u00a0s` : seconds(bucket_s))}`;
const rowsOf = (over, values, say) => () => over.starts.map((moment, at) => [when(moment), ...values.map((each) => say(each[at]))]);
const first = ["From"];
const figures = (labels) => labels.map((label) => [label, FIGURES]);

function ttftOverTime(told, over, span) {
  const lines = PARTS.map((part) => ({ label: part.toUpperCase(), look: part, values: over.ttft_s[part], width: part === "p50" ? 2.5 : 1.8 }));
  const { ttft_s: all } = told.totals;
  const lately = last(over.ttft_s.p50);
  return {
    ...span, lines, tick: secondsTick, say: seconds,
    said: all ? `As delivered, ${per(over)}: median ${seconds(all.p50)} over the whole range, ${seconds(lately)} lately; P99 ${seconds(all.p99)}.` : NOTHING,
    columns: [first, ...figures(lines.map(({ label }) => label))],
    rows: rowsOf(over, lines.map(({ values }) => values), seconds),
  };
}

function outcomes(told, over, span) {
  const ok = over.requests.map((all, at) => all - over.failed[at] - over.cancelled[at]);
  const { totals } = told;
  const lines = [
    { label: "failed", look: "bad", values: over.failed, upTo: over.requests, bars: true },
    { label: "cancelled", look: "cancelled", values: over.cancelled, upTo: over.requests.map((all, at) => all - over.failed[at]), bars: true },
    { label: "ok", look: "ok", values: ok, upTo: ok, bars: true },
  ];
  return {
    ...span, lines, tick: countTick, say: count,
    said: `${plural(totals.requests, "request")}, ${per(over)}: ${count(totals.ok)} ok, ${count(totals.failed)} failed, ${count(totals.cancelled)} cancelled by the client.`,
    columns: [first, ...figures(["Requests", "Failed", "Cancelled"])],
    rows: rowsOf(over, [over.requests, over.failed, over.cancelled], count),
  };
}

function byEndpoint(told, over, what) {
  return told.endpoints.map(({ endpoint }) => endpoint).filter((name) => over.endpoints[name])
    .map((name) => ({ label: name, look: look(name), values: over.endpoints[name][what] }));
}

function wins(told, over, span) {
  const moved = over.migrations.map((all, at) => all - over.rescues[at]);
  const lines = [
    ...byEndpoint(told, over, "wins"),
    { label: "moved for cost", look: "ink", values: moved, width: 1 },
    { label: "rescued", look: "bad", values: over.rescues, width: 1 },
  ];
  const won = told.endpoints.filter((each) => each.wins).map(({ endpoint, wins: many }) => `${endpoint} ${count(many)}`);
  return {
    ...span, lines, tick: countTick, say: count,
    said: `Wins, ${per(over)}: ${won.join(", ") || "none"}. ${plural(sum(moved), "answer moved", "answers moved")} to save cost, ${plural(sum(over.rescues), "was rescued", "were rescued")}.`,
    columns: [first, ...figures(lines.map(({ label }) => label))],
    rows: rowsOf(over, lines.map(({ values }) => values), count),
  };
}

function spend(told, over, span) {
  return spent(told, over, span, "usd", usd, usdTick, `${usd(told.totals.usd)} in all`);
}

function burn(told, over, span) {
  return spent(told, over, span, "joules", joules, joulesTick, `${energy(told.totals.joules)} in all`);
}

function spent(told, over, span, what, say, tick, inAll) {
  const lines = byEndpoint(told, over, what).filter(({ values }) => values.some(Boolean));
  const each = told.endpoints.filter((one) => one[what]).map((one) => `${one.endpoint} ${say(one[what])}`);
  return {
    ...span, lines, tick, say,
    said: `${inAll}, ${per(over)}${each.length ? `: ${each.join(", ")}` : ""}. Cancelled attempts are included.`,
    columns: [first, ["All", FIGURES], ...figures(lines.map(({ label }) => label))],
    rows: rowsOf(over, [over[what], ...lines.map(({ values }) => values)], say),
  };
}

// The distribution of TTFT

function distribution({ ttft_cdf: { delivered, endpoints }, totals, endpoints: rows }) {
  const curves = [
    ...Object.entries(endpoints).map(([name, curve]) => ({ label: name, look: look(name), curve })),
    { label: "as delivered", look: "ink", width: 3.5, curve: delivered },
  ].filter(({ curve }) => curve.count);
  const x = [...new Set(curves.flatMap(({ curve }) => curve.s))].sort((one, other) => one - other).filter((at) => at > 0);
  const known = [["As delivered", delivered.count, totals.ttft_s], ...rows.map((row) => [row.endpoint, endpoints[row.endpoint]?.count ?? 0, row.ttft_s])].filter(([, , ttft]) => ttft);
  return {
    x, spans: true, from: below(x[0] * 0.95), to: above(x.at(-1) * 1.05), tick: percentTick, tickX: secondsTick, sayX: seconds, say: percent,
    lines: curves.map(({ curve, ...more }) => ({ ...more, values: shares(curve, x) })),
    said: known.length ? known.map(([name, many, ttft]) => `${name}: half within ${seconds(ttft.p50)}, 99\u00a0% within ${seconds(ttft.p99)} (${count(many)})`).join("; ") + ". An endpoint’s count from the start of an attempt." : NOTHING,
    columns: [["Of"], ...figures(["Count", "Mean", "P50", "P90", "P99"])],
    rows: () => known.map(([name, many, ttft]) => [name, count(many), ...["mean", "p50", "p90", "p99"].map((part) => seconds(ttft[part]))]),
  };
}

/** Which share of a curve lies at each of these or before it. */
function shares({ s, share }, x) {
  let at = -1;
  return x.map((value) => {
    while (at + 1 < s.length && s[at + 1] <= value) at += 1;
    return at < 0 ? 0 : share[at];
  });
}

// Endpoints

function endpointTable(endpoints) {
  const columns = [["Endpoint"], ["Kind"], ...figures(["Attempts", "Wins", "Lost", "Failed", "Moved from", "Moved to", "Prompt tokens", "Answer tokens", "Cost", "Energy", "TTFT P50", "P90", "P99"])];
  return table("Every attempt counts, cancelled ones too. TTFT is from the start of the attempt.", columns, endpoints.map((each) => [
    named(each.endpoint), each.kind,
    ...[each.attempts, each.wins, each.lost, each.failed, each.migrated_from, each.migrated_to, each.prompt_tokens, each.completion_tokens].map(count),
    usd(each.usd), joules(each.joules),
    ...PARTS.map((part) => seconds(each.ttft_s?.[part])),
  ]));
}
