// What is shown, kept in the address, so that it can be shared and survives a reload.

const FILTERS = ["policy", "endpoint", "outcome"];
const KEPT = ["since", "until", ...FILTERS];
const USUAL = "1h";
const OUTCOMES = ["ok", "failed", "cancelled"];

const form = () => document.getElementById("view");

/** What the address says, as the query of the JSON: the last hour where it says nothing. */
export function query(more = {}) {
  const said = new URLSearchParams(location.search);
  const kept = KEPT.filter((name) => said.get(name)).map((name) => [name, said.get(name)]);
  return new URLSearchParams({ since: USUAL, ...Object.fromEntries(kept), ...more }).toString();
}

/** The range in words, for sentences. */
export function rangeInWords() {
  const asked = new URLSearchParams(query());
  const chosen = form().querySelector(`input[value="${CSS.escape(asked.get("since"))}"]`);
  if (asked.get("until")) return `from ${moment(asked.get("since"))} to ${moment(asked.get("until"))}`;
  if (!chosen) return `since ${moment(asked.get("since"))}`;
  return asked.get("since") === "all" ? "so far" : `in the last ${chosen.nextSibling.textContent}`;
}

const moment = (said) => (/^[\d.]+[smhd]$/.test(said) ? `${said} ago` : said);

export const isFiltered = () => FILTERS.some((name) => new URLSearchParams(location.search).get(name));

/** What can be chosen, and what is. */
export function offer({ policies, endpoints }) {
  const asked = new URLSearchParams(query());
  for (const [name, known] of Object.entries({ policy: policies, endpoint: endpoints, outcome: OUTCOMES })) {
    const chosen = asked.get(name) ?? "";
    const names = [...new Set([...known, chosen])].filter(Boolean);
    const select = form().elements[name];
    const options = [new Option("Any", ""), ...names.map((each) => new Option(each))];
    if ([...select.options].map(({ value }) => value).join("\n") !== options.map(({ value }) => value).join("\n")) {
      select.replaceChildren(...options);
    }
    select.value = chosen;
  }
  for (const range of form().elements.since) range.checked = range.value === asked.get("since");
}

/** The controls change the address, and `then` shows what it says; so do Back and Forward. */
export function steer(then) {
  form().addEventListener("change", ({ target }) => {
    const said = new URLSearchParams(location.search);
    said.set(target.name, target.value);
    if (target.name === "since") said.delete("until");
    for (const name of FILTERS) if (!said.get(name)) said.delete(name);
    history.pushState(null, "", `?${said}`);
    then();
  });
  form().addEventListener("submit", (event) => event.preventDefault());
  window.addEventListener("popstate", then);
}
