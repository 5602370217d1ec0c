// A plan as a strip by prompt length and in words, from nothing but what /dashboard/api/plan says.

import { element } from "./dom.js";
import { count, percent, seconds, tokens } from "./format.js";
import { look } from "./looks.js";

const ROOM_FOR_WORDS = 0.24;
const SOON_S = 0.005;

/**
 * Draws who starts when, in place of what was drawn before. Needs plan-strip.css.
 *
 * @param holder Where to; it is emptied.
 * @param plan As /dashboard/api/plan has it.
 * @param promptTokens The length of a prompt to mark and to tell of; none if left out.
 * @returns What happens to that prompt, or to a prompt of median length, in a sentence.
 */
export function drawPlan(holder, plan, { promptTokens } = {}) {
  const open = holder.querySelector("details")?.open ?? false;
  const rows = withBounds(plan.rows);
  const here = rows.find(({ longest_tokens: longest }) => longest === null || (promptTokens ?? plan.prompt_tokens.p50) <= longest);
  const longest = Math.max(10, plan.prompt_tokens.p99, 1.3 * (promptTokens ?? 1), ...rows.map((row) => 1.3 * (row.longest_tokens ?? 1)));
  const at = (tokens) => Math.log1p(Math.min(tokens, longest)) / Math.log1p(longest);
  const sentence = `${told(plan, promptTokens)}: ${inWords(here)}.`;
  holder.replaceChildren(
    element("p", { className: "plan-here", text: sentence }),
    strip(plan, rows, at, longest, promptTokens),
    element("p", { className: "plan-hint", text: "Across: the prompt’s length in tokens; the line below has eight in ten prompts. Filled: starts at once. Striped: later. Empty: stands by. A bar’s height: how many do." }),
    allOf(rows, here, open),
  );
  return sentence;
}

function told(plan, promptTokens) {
  if (promptTokens !== undefined) return `A prompt of about ${tokens(promptTokens)}`;
  return `A prompt of median length (${tokens(Math.round(plan.prompt_tokens.p50))})`;
}

/** The rows, each with its shortest prompt. */
function withBounds(rows) {
  return rows.map((row, index) => ({ ...row, shortest: index ? rows[index - 1].longest_tokens + 1 : 1 }));
}

function strip(plan, rows, at, longest, promptTokens) {
  const whole = element("div", { className: "plan-lanes" });
  whole.ariaHidden = "true"; // the words say the same
  const lanes = plan.endpoints.map((name) => lane(name, look(name), rows, at));
  whole.append(...lanes.flat(), axis(plan, at, longest));
  if (promptTokens !== undefined) {
    const mark = element("div", { className: "plan-mark" });
    mark.append(placed(element("span"), at(promptTokens), 0));
    whole.append(mark);
  }
  return whole;
}

function lane(name, look, rows, at) {
  const track = element("div", { className: `plan-track ${look}` });
  track.append(...rows.map((row) => segment(name, row, at)));
  return [element("span", { className: "plan-who", text: name }), track];
}

/** How many of a row's prompts start an endpoint at once, how many later, and when that is. */
function segment(name, row, at) {
  const first = row.actions.map(({ weight, starts }) => ({ weight, at: starts.find(({ endpoint }) => endpoint === name)?.offset_s ?? null }));
  const soon = sum(first.filter((one) => one.at !== null && one.at < SOON_S));
  const later = first.filter((one) => one.at !== null && one.at >= SOON_S);
  const [from, to] = [at(row.shortest - 1), row.longest_tokens === null ? 1 : at(row.longest_tokens)];
  const drawn = placed(element("div", { className: "plan-segment" }), from, to - from);
  drawn.style.setProperty("--soon", `${100 * soon}%`);
  drawn.style.setProperty("--later", `${100 * sum(later)}%`);
  if (later.length === 1 && to - from >= ROOM_FOR_WORDS) drawn.append(element("span", { className: "plan-after", text: seconds(later[0].at) }));
  return drawn;
}

function axis(plan, at, longest) {
  const line = element("div", { className: "plan-axis" });
  const { p10, p90 } = plan.prompt_tokens;
  line.append(placed(element("div", { className: "plan-most" }), at(p10), at(p90) - at(p10)));
  for (let tick = 10; tick <= longest; tick *= 10) line.append(placed(element("span", { className: "plan-tick", text: count(tick) }), at(tick), 0));
  return line;
}

function allOf(rows, here, open) {
  const every = element("details", { className: "plan-all" });
  const list = element("ol", { className: "plan-rows" });
  for (const row of rows) {
    const line = element("li", { text: `${lengths(row)}: ${inWords(row)}.` });
    if (row === here) line.ariaCurrent = "true";
    list.append(line);
  }
  every.open = open;
  every.append(element("summary", { text: rows.length === 1 ? "All prompts alike" : `All lengths (${rows.length} rows)` }), list);
  return every;
}

function lengths({ shortest, longest_tokens: longest }) {
  if (longest === null) return shortest === 1 ? "Any length" : `${count(shortest)} tokens and more`;
  return longest === shortest ? tokens(longest) : `${count(shortest)} to ${tokens(longest)}`;
}

function inWords({ actions }) {
  if (actions.length === 1) return startsInWords(actions[0].starts);
  return actions.map(({ weight, starts }) => `${percent(weight)} of them: ${startsInWords(starts)}`).join("; ");
}

/** Starts come in order of time, so those of one moment are neighbours. */
function startsInWords(starts) {
  const moments = new Map();
  starts.forEach(({ endpoint, offset_s: after }, index) => {
    const again = starts.findIndex((one) => one.endpoint === endpoint) < index ? `${endpoint} again` : endpoint;
    moments.set(when(after), [...(moments.get(when(after)) ?? []), again]);
  });
  const clauses = [...moments].map(([moment, names]) => `${listed(names)} ${moment === STANDS_BY && names.length > 1 ? "stand by" : moment}`);
  return clauses.join(", ");
}

const STANDS_BY = "stands by";
const when = (after) => (after === null ? STANDS_BY : after < SOON_S ? "at once" : `after ${seconds(after)}`);
const listed = (names) => [names.slice(0, -1).join(", "), names.at(-1)].filter(Boolean).join(" and ");
const sum = (parts) => parts.reduce((total, { weight }) => total + weight, 0);

function placed(node, from, long) {
  node.style.setProperty("--from", `${100 * from}%`);
  node.style.setProperty("--long", `${100 * long}%`);
  return node;
}
