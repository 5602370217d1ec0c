// Asking the gateway, with the key that the reader gave for this tab.

import { $ } from "./dom.js";

const KEY = "discostream-key";

const ADVICE = {
  all_endpoints_failed: "`disco doctor` says what is wrong with an endpoint.",
  budget_spent: "Wait until the budget renews, or raise it in the settings file.",
  context_length_exceeded: "Begin a new conversation, or shorten the prompt.",
  interrupted: "The gateway was stopped; start it again, then regenerate.",
  invalid_api_key: "Enter it on this page.",
};

/** What went wrong, in words that say what to do. */
export class Problem extends Error {
  constructor(message, status = null) {
    super(message);
    this.status = status;
  }
}

export const hasKey = () => Boolean(sessionStorage.getItem(KEY));

/** A response that is good; else a `Problem`. */
export async function ask(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  const response = await fetch(path, { ...options, headers }).catch(as("The gateway cannot be reached. Is `disco serve` still running? Start it, then try again."));
  if (response.ok) return response;
  if (response.status === 401) wantKey();
  const told = await response.json().catch(() => null);
  throw new Problem(advised(told?.error ?? { message: `The gateway answered with status ${response.status}` }), response.status);
}

/** What a path's JSON holds. */
export async function get(path, options) {
  const response = await ask(path, options);
  return response.json().catch(as("The gateway’s answer broke off. Is it being restarted?"));
}

/** Makes what went wrong on the way a `Problem`, but for what was given up here. */
const as = (message) => (error) => {
  throw error.name === "AbortError" ? error : new Problem(message);
};

export function advised({ message, code }) {
  return [message.replace(/([^.!?])$/, "$1."), ADVICE[code]].filter(Boolean).join(" ");
}

/** The page's form for the key keeps it until the tab is closed, and `then` goes on. */
export function keepKey(then) {
  $("key-form").hidden = !hasKey();
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const key = $("key").value.trim();
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
    then();
  });
}

function wantKey() {
  const settings = $("key-form").closest("details");
  if (settings) settings.open = true;
  $("key-form").hidden = false;
  $("key").focus();
}
