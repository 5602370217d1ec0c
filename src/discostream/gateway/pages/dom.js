// What every page needs of the document.

export const $ = (id) => document.getElementById(id);

/** An element with its properties and children; `text` is what it says. */
export function element(name, { text, ...more } = {}, ...children) {
  const made = Object.assign(document.createElement(name), more);
  if (text !== undefined) made.textContent = text;
  made.append(...children);
  return made;
}

/** A table that scrolls by itself where it is too wide: a column is its heading, and "figure" if it holds figures. */
export function table(caption, columns, rows) {
  const heads = columns.map(([text, kind = ""]) => element("th", { scope: "col", className: kind, text }));
  const cell = (value, index) => element(index ? "td" : "th", { ...(!index && { scope: "row" }), className: columns[index][1] ?? "" }, value);
  const made = element("table", {},
    element("caption", { text: caption }),
    element("thead", {}, element("tr", {}, ...heads)),
    element("tbody", {}, ...rows.map((cells) => element("tr", {}, ...cells.map(cell)))));
  return element("div", { className: "scrolls", tabIndex: 0, role: "region", ariaLabel: caption }, made);
}

/** Terms and what is said of each. */
export function facts(rows) {
  return rows.flatMap(([term, value]) => [element("dt", { text: term }), element("dd", {}, value)]);
}

/** Replace what an element holds, unless it says the same already; a reader's place in it stays. */
export function renew(holder, ...children) {
  const fresh = element("div", {}, ...children);
  if (holder.innerHTML === fresh.innerHTML) return;
  const { scrollLeft = 0, scrollTop = 0 } = holder.firstElementChild ?? {};
  const held = holder.contains(document.activeElement) ? document.activeElement.getAttribute("href") : undefined;
  holder.replaceChildren(...fresh.childNodes);
  Object.assign(holder.firstElementChild ?? {}, { scrollLeft, scrollTop });
  const again = [...holder.querySelectorAll("a, [tabindex]")].find((one) => one.getAttribute("href") === held);
  again?.focus({ preventScroll: true });
}
