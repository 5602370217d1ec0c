// Budgets: what is spent of each, and what more of it would buy. And what a joule is worth.

import { $, element, facts, renew } from "./dom.js";
import { NONE, fully, joules, percent, seconds, usd } from "./format.js";

const SAY = { usd, joules, share: percent };
/** The step in which more of a budget is told, so that its worth is a figure people can read. */
const STEP = { usd: [0.001, "$0.001 more a request"], joules: [1, "1\u00a0J more a request"], share: [0.01, "One more per cent of prompt tokens"] };
const WINDOW = { hour: "this hour", day: "today", month: "this month" };

export function showBudgets({ budgets, usd_per_joule, battery_charge }) {
  const none = element("li", { className: "card empty", text: "No budget is set; add a [[budget]] to the settings file, and policies plan by it." });
  renew($("budgets"), ...(budgets.length ? budgets.map(card) : [none]));
  $("rate").textContent = rateInWords(usd_per_joule, battery_charge);
}

function card(budget) {
  const say = SAY[budget.resource];
  const of = budget.of ? ` on the ${budget.of}` : "";
  const what = { usd: "dollars", joules: "energy", share: `share of prompt tokens${of}` }[budget.resource];
  const meter = element("div", { className: "meter", role: "img", ariaLabel: inWords(budget, say) }, element("span", { className: "spent" }), element("span", { className: "held" }));
  const part = (value) => `${Math.min(100, (100 * (value ?? 0)) / budget.amount || 0)}%`;
  meter.style.setProperty("--spent", part(budget.spent));
  meter.style.setProperty("--held", part(budget.held));
  meter.classList.toggle("over", budget.spent > budget.amount);
  return element("li", { className: "card budget" },
    element("h3", {}, `${budget.name} `, element("small", { text: `${what}, ${budget.hard ? "hard" : "soft"}` })),
    meter,
    element("p", { className: "spending", text: inWords(budget, say) }),
    element("dl", { className: "facts" }, ...facts([
      ["Renews", budget.renews_at ? fully(budget.renews_at) : budget.per ? NONE : "never: it is an average over time"],
      ["Allowance", budget.allowance_per_request === null ? NONE : `${say(budget.allowance_per_request)} a request`],
      ["Multiplier", multiplierInWords(budget.multiplier)],
      ["Shadow price", priceInWords(budget)],
    ])));
}

function inWords({ spent, held, amount, per }, say) {
  const when = per ? ` ${WINDOW[per]}` : "";
  const kept = held ? `, ${say(held)} held for running requests` : "";
  return `${say(spent)} of ${say(amount)} spent${when}${kept}`;
}

function multiplierInWords(multiplier) {
  if (multiplier === null) return NONE;
  const how = multiplier > 1.005 ? "plans may use more than the even pace" : multiplier < 0.995 ? "plans save" : "on course";
  return `${multiplier.toFixed(2)}, ${how}`;
}

function priceInWords({ shadow_price_s_per_unit: price, resource }) {
  if (price === null) return NONE;
  const [step, more] = STEP[resource];
  return price * step < 0.00005 ? "0: more of it would not help" : `${more} would save ${seconds(price * step)} of mean TTFT`;
}

function rateInWords(usdPerJoule, charge) {
  const worth = usdPerJoule === null ? "" : `Exchange rate: a joule is worth ${usd(usdPerJoule)}, a watt-hour ${usd(3600 * usdPerJoule)}.`;
  const battery = charge === null ? "" : ` The battery is ${percent(charge)} full.`;
  return worth + battery;
}
