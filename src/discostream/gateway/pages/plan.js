// The plan table in force: who starts when, by length of the prompt, and what that rests on.

import { $, element, facts, table } from "./dom.js";
import { NONE, ago, count, fully, percent, plural, seconds, tokens, usd } from "./format.js";
import { look, named } from "./looks.js";

const listed = (words) => [words.slice(0, -1).join(", "), ...words.slice(-1)].filter(Boolean).join(" and ");
const FIGURE = "figure";
let shown = null;

export function showPlan(plan) {
  const fresh = JSON.stringify(plan);
  if (fresh === shown) return renewAge(plan);
  shown = fresh;
  const share = plan.share === null ? "" : `, ${percent(plan.share)} of prompt tokens on the kind that is held back`;
  const open = $("plan").querySelector("details")?.open ?? false;
  $("plan").replaceChildren(element("div", { className: "card" },
    element("p", { className: "said" }, `Policy ${plan.policy}${share}. Rebuilt `, element("time", { dateTime: plan.made_at, title: fully(plan.made_at) }), `; ${plural(plan.requests_since, "request")} planned by it since.`),
    strip(plan),
    element("dl", { className: "facts" }, ...facts(forecast(plan))),
    element("details", { open }, element("summary", { text: "Who starts when, in words" }), rowsTable(plan))),
  element("div", { className: "card" }, element("h3", { text: "Profiles behind it" }), profiles(plan.profiles)));
  renewAge(plan);
}

const renewAge = ({ made_at }) => { $("plan").querySelector("time").textContent = ago(made_at); };

function forecast({ forecast: expected, prompt_tokens: prompts, answer_tokens: answers }) {
  const spread = (lengths) => `half up to ${tokens(lengths.p50)}, 99\u00a0% up to ${count(lengths.p99)}`;
  return [
    ["Expected TTFT", `mean ${seconds(expected?.mean_ttft_s)}, P99 ${seconds(expected?.p99_ttft_s)}`],
    ["Prompts", spread(prompts)],
    ["Answers", spread(answers)],
  ];
}

// The strip chart: prompt lengths on a logarithmic axis, a row for each endpoint

function strip({ rows, endpoints, prompt_tokens: prompts }) {
  const limits = rows.map(({ longest_tokens }) => longest_tokens ?? Infinity);
  const most = Math.max(2 * prompts.p99, ...limits.filter(Number.isFinite).map((limit) => 1.5 * limit), 100);
  const place = (length) => (100 * Math.log(Math.min(Math.max(length, 1), most))) / Math.log(most);
  const spans = rows.map(({ actions }, index) => ({ actions, from: place(limits[index - 1] ?? 1), to: place(limits[index]) }));
  const lanes = endpoints.map((endpoint) => lane(named(endpoint), spans.flatMap((span) => cells(span, endpoint))));
  const half = { from: place(prompts.p10), to: place(prompts.p90), kind: "usual" };
  return element("div", { className: "plan-strip", ariaHidden: "true" }, ...lanes,
    lane("most prompts", [half]), axis(most, place));
}

function lane(who, bars) {
  const track = element("div", { className: "cells" });
  for (const { from, to, top = 0, tall = 100, kind, text = "", look: own = "" } of bars) {
    const bar = element("span", { className: `cell ${kind} ${own}`, text });
    for (const [name, value] of Object.entries({ left: from, width: to - from, top, height: tall })) bar.style[name] = `${value}%`;
    track.append(bar);
  }
  return element("div", { className: "lane" }, element("span", { className: "who" }, who), track);
}

/** What an endpoint does for these prompts: a cell for each action, as tall as the action is likely. */
function cells({ actions, from, to }, endpoint) {
  let top = 0;
  return actions.flatMap(({ weight, starts }) => {
    const above = top;
    top += 100 * weight;
    const earliest = starts.filter((start) => start.endpoint === endpoint)[0];
    if (!earliest) return [];
    const { offset_s } = earliest;
    const kind = offset_s === null ? "stands-by" : offset_s === 0 ? "at-once" : "later";
    const words = offset_s === null ? "stands by" : offset_s === 0 ? "at once" : `+${seconds(offset_s)}`;
    return [{ from, to, top: above, tall: 100 * weight, kind, text: actions.length === 1 && to - from > 14 ? words : "", look: look(endpoint) }];
  });
}

function axis(most, place) {
  const powers = [1, 10, 100, 1000, 10000, 100000, 1e6].filter((at) => at < 0.7 * most);
  const marks = powers.map((at) => {
    const mark = element("span", { text: at === 1 ? "1" : count(at) });
    mark.style.left = `${place(at)}%`;
    return mark;
  });
  return element("div", { className: "lane axis" }, element("span", { className: "who", text: "prompt tokens" }), element("div", { className: "marks" }, ...marks));
}

// In words

function rowsTable({ rows }) {
  const lengths = ({ longest_tokens: longest }, index) => {
    const shortest = index ? Math.floor(rows[index - 1].longest_tokens) + 1 : 1;
    return longest === null ? `${count(shortest)} and more` : `${count(shortest)} to ${count(Math.floor(longest))}`;
  };
  return table("Who starts when, by the prompt’s tokens", [["Prompt tokens"], ["Starts"]],
    rows.map((row, index) => [lengths(row, index), actionsInWords(row.actions)]));
}

function actionsInWords(actions) {
  return actions.map(({ weight, starts }) => (actions.length > 1 ? `${percent(weight)}: ` : "") + startsInWords(starts)).join("; ");
}

function startsInWords(starts) {
  const groups = new Map();
  const later = ({ offset_s }) => offset_s ?? Infinity;
  for (const start of [...starts].sort((one, other) => later(one) - later(other))) {
    const when = start.offset_s === null ? "only when others fail" : start.offset_s ? `after ${seconds(start.offset_s)}` : "at once";
    groups.set(when, [...(groups.get(when) ?? []), start.endpoint]);
  }
  return [...groups].map(([when, names]) => `${listed(names)} ${when}`).join(", ");
}

// Profiles

function profiles(rows) {
  const price = (value) => (value ? `${usd(value)}` : NONE);
  const burn = (value) => (value ? `${Number(value.toPrecision(3))}\u00a0J` : NONE);
  const figures = ["Attempts seen", "TTFT P50", "P90", "P99", "A prompt token", "Writes", "Prompt, 1M tokens", "Answer, 1M tokens", "A prompt token", "An answer token", "Slots"];
  return table("TTFT is for a prompt of median length", [["Endpoint"], ["Kind"], ["Newest"], ...figures.map((text) => [text, FIGURE])], rows.map((row) => [
    named(row.endpoint), row.kind, row.newest_at ? ago(row.newest_at) : row.attempts_seen ? NONE : "built-in",
    count(row.attempts_seen), ...["p50", "p90", "p99"].map((part) => seconds(row.ttft_s?.[part])),
    seconds(row.s_per_prompt_token), row.decode_tokens_per_s === null ? NONE : `${Number(row.decode_tokens_per_s.toPrecision(3))} tokens/s`,
    price(row.prompt_usd_per_mtok), price(row.completion_usd_per_mtok), burn(row.prefill_joules_per_token), burn(row.decode_joules_per_token), count(row.slots),
  ]));
}
