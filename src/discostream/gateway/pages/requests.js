// The list of settled requests, newest first.

import { $, element, renew, table } from "./dom.js";
import { NONE, count, fully, joules, seconds, usd, when } from "./format.js";
import { named } from "./looks.js";
import { pageOf, short } from "./timeline.js";
import { rangeInWords } from "./view.js";

const COLUMNS = [["Request"], ["Settled"], ["Policy"], ["Outcome"], ["Winner"], ["Moved"],
  ...["TTFT", "Longest gap", "Prompt tokens", "Answer tokens", "Cost", "Energy"].map((text) => [text, "figure"])];

/** Show the newest, with those that were asked for beyond them. */
export function showRequests(requests) {
  const empty = element("p", { className: "empty", text: `No request was settled ${rangeInWords()}, or none that fits the filters.` });
  renew($("requests"), requests.length ? table("Settled requests, newest first", COLUMNS, requests.map(row)) : empty);
}

function row(request) {
  return [
    element("a", { href: pageOf(request.request_id), text: short(request.request_id), title: request.request_id }),
    element("time", { dateTime: request.recorded_at, title: fully(request.recorded_at), text: when(request.recorded_at) }),
    request.policy,
    element("span", { className: `outcome ${request.outcome}`, text: request.outcome }),
    request.winner === null ? NONE : element("span", {}, named(request.winner), request.raced ? " raced" : ""),
    moved(request),
    seconds(request.ttft_s), seconds(request.max_tbt_s), count(request.prompt_tokens), count(request.completion_tokens),
    usd(request.usd), joules(request.joules),
  ];
}

export function moved({ migrations, rescues }) {
  const counts = [[migrations - rescues, "cost"], [rescues, "rescue"]].filter(([many]) => many);
  return counts.map(([many, why]) => (many > 1 ? `${many} ${why}` : why)).join(", ") || NONE;
}
