// The plan table in force: who starts when, by length of the prompt, and what that rests on.

import { $, element, facts, renew, table } from "./dom.js";
import { NONE, ago, count, fully, percent, plural, seconds, tokens, usd } from "./format.js";
import { named } from "./looks.js";
import { drawPlan } from "./plan-strip.js";

const FIGURE = "figure";
let shown = null;

export function showPlan(plan) {
  const share = plan.share === null ? "" : `, with ${percent(plan.share)} of prompt tokens on the ${plan.of}`;
  $("plan-basis").replaceChildren(`Policy ${plan.policy}${share}. Rebuilt `, element("time", { dateTime: plan.made_at, title: fully(plan.made_at), text: ago(plan.made_at) }), `; ${plural(plan.requests_since, "request")} planned by it since.`);
  const fresh = JSON.stringify([plan.rows, plan.endpoints, plan.prompt_tokens]);
  if (fresh !== shown) drawPlan($("plan-strip"), plan);
  shown = fresh;
  renew($("plan-forecast"), ...facts(forecast(plan)));
  renew($("profiles"), profiles(plan.profiles));
}

function forecast({ forecast: expected, prompt_tokens: prompts, answer_tokens: answers }) {
  const spread = (lengths) => `half up to ${tokens(lengths.p50)}, 99\u00a0% up to ${count(lengths.p99)}`;
  return [
    ["Expected TTFT", `mean ${seconds(expected?.mean_ttft_s)}, P99 ${seconds(expected?.p99_ttft_s)}`],
    ["Prompts", spread(prompts)],
    ["Answers", spread(answers)],
  ];
}

// Profiles

function profiles(rows) {
  const price = (value) => (value ? `${usd(value)}` : NONE);
  const burn = (value) => (value ? `${Number(value.toPrecision(3))}\u00a0J` : NONE);
  const figures = ["Attempts seen", "TTFT P50", "P90", "P99", "Reads a token in", "Writes", "Prompt, $ per 1M tokens", "Answer, $ per 1M tokens", "Energy, prompt token", "Energy, answer token", "Slots"];
  return table("TTFT is for a prompt of median length", [["Endpoint"], ["Kind"], ["Newest"], ...figures.map((text) => [text, FIGURE])], rows.map((row) => [
    named(row.endpoint), row.kind, row.newest_at ? ago(row.newest_at) : row.attempts_seen ? NONE : "built-in",
    count(row.attempts_seen), ...["p50", "p90", "p99"].map((part) => seconds(row.ttft_s?.[part])),
    seconds(row.s_per_prompt_token), row.decode_tokens_per_s === null ? NONE : `${Number(row.decode_tokens_per_s.toPrecision(3))} tokens/s`,
    price(row.prompt_usd_per_mtok), price(row.completion_usd_per_mtok), burn(row.prefill_joules_per_token), burn(row.decode_joules_per_token), count(row.slots),
  ]));
}
