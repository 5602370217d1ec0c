// How endpoints look: the same colour and line on every page.

import { $, element } from "./dom.js";

const LOOKS = 5;
const known = [];

/** Endpoints in the order of the settings; others, which only the ledger knows, look like those that come next. */
export function know(names) {
  for (const name of names) if (!known.includes(name)) known.push(name);
}

export function look(name) {
  know([name]);
  return `e${known.indexOf(name) % LOOKS}`;
}

/** An endpoint's name as it looks. */
export const named = (name) => element("span", { className: `token ${look(name)}`, text: name });

export function showLegend(endpoints) {
  know(endpoints.map(({ name }) => name));
  $("legend").replaceChildren(...endpoints.map(({ name, kind, model }) => {
    const about = [kind === name ? "" : kind, model].filter(Boolean).join(", ");
    return element("li", {}, named(name), " ", element("small", { text: about }));
  }));
}
