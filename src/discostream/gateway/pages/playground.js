// The playground: asks this gateway, and shows who made what. Nothing is loaded from or sent to anywhere else.

import { advised, ask, get, hasKey, keepKey, Problem } from "./api.js";
import { $, element } from "./dom.js";
import { joules, seconds, tokens, usd } from "./format.js";
import { drawLanes } from "./lanes.js";
import { look, showLegend } from "./looks.js";
import { drawPlan } from "./plan-strip.js";

const calm = matchMedia("(prefers-reduced-motion: reduce)");
const page = document.documentElement;
const pad = { config: null, share: null, plan: null, planning: null, turns: [], abort: null, follows: true, scrollTop: 0 };

const endpoint = (name) => pad.config.endpoints.find((one) => one.name === name);
const say = (text) => { $("status").textContent = text; };

// Asking the gateway

async function* chunksOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const broke = "The stream broke off before its end. Regenerate to ask again.";
  for (let held = ""; ;) {
    const { value, done } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new Problem(broke);
    });
    if (done) throw new Problem(broke);
    const events = (held + value).split("\n\n");
    held = events.pop();
    for (const data of events.filter((event) => event.startsWith("data: ")).map((event) => event.slice(6))) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Problem(advised(chunk.error));
      yield chunk;
    }
  }
}

function messages(prompt) {
  const said = pad.turns.map(({ role, content }) => ({ role, content }));
  return prompt ? [...said, { role: "user", content: prompt }] : said;
}

function body(asked) {
  const limit = $("max-tokens").valueAsNumber;
  return { model: $("model").value, messages: asked, ...(limit >= 1 && { max_tokens: Math.round(limit) }), stream: true };
}

const policyHeader = () => ({
  ...($("policy").value && { "x-disco-policy": $("policy").value }),
  ...(askedShare() !== null && { "x-disco-share": String(askedShare()) }),
});

// One answer

class View {
  constructor() {
    this.node = $("answer").content.cloneNode(true).firstElementChild;
    this.part = (name) => this.node.querySelector(`.${name}`);
    this.asked = performance.now();
    this.text = "";
    this.account = null;
    this.seams = [];
    this.lanes = [];
    this.runs = [];
    this.delivered = 0;
    this.read = 0;
    this.usd = 0;
    this.joules = 0;
    this.part("handoff").hidden = true;
    this.node.classList.add("silent");
    this.node.setAttribute("aria-busy", "true");
    this.ticker = setInterval(() => this.tick(), calm.matches ? 500 : 100);
  }

  get waited() { return (performance.now() - this.asked) / 1000; }

  /** A piece, with the endpoint that made it. */
  add(text, thought, { endpoint: who, at_s, tokens: count }) {
    const last = this.runs.at(-1);
    if (last?.who !== who) this.turn(last?.who, who, at_s);
    if (thought) this.part("text").append(element("span", { className: "token thought " + look(who), text: thought }));
    if (text) this.part("text").append(element("span", { className: "token " + look(who), text, title: `${who}, after ${seconds(at_s)}` }));
    this.text += text;
    this.delivered += count;
    this.runs.at(-1).count += count;
    this.runs.at(-1).bar.style.setProperty("--tokens", this.runs.at(-1).count);
    this.usd += count * endpoint(who).completion_usd_per_mtok / 1e6;
    this.joules += count * endpoint(who).decode_joules_per_token;
  }

  /** An attempt that has begun: in the race, or to take the answer over. */
  begin({ endpoint: who, at_s: from }) {
    this.lanes.push({ who, from, to: null, said: this.runs.length ? "gets ready to go on" : "is asked" });
    this.drawRace();
  }

  /** Another endpoint speaks from here on. */
  turn(from, who, at_s) {
    if (from) this.cut(from, who);
    else this.first(who, at_s);
    const speaking = this.lanes.findLast((lane) => lane.who === who);
    if (speaking) Object.assign(speaking, { to: at_s, letGo: false, said: `${from ? "took over" : "spoke first"}, after ${seconds(at_s)}` });
    this.drawRace();
    const bar = element("span", { className: look(who) });
    this.part("runs").append(bar);
    this.runs.push({ who, count: 0, bar });
    this.tick();
  }

  first(who, at_s) {
    this.started = performance.now();
    this.node.classList.remove("silent");
    for (const lane of this.lanes) Object.assign(lane, { to: at_s, letGo: true, said: "let go when another spoke" });
    say(`${who} spoke first, after ${seconds(at_s)}.`);
  }

  cut(from, to) {
    const seam = element("span", { className: "seam " + look(to), text: `‖ ${to}` });
    this.part("text").append(seam);
    this.seams.push({ seam, to });
    say(`The answer moved from ${from} to ${to}.`);
  }

  /** The attempts so far; those that still run grow. */
  drawRace() {
    const waited = this.waited;
    const lanes = this.lanes.map((lane) => (lane.to === null ? running(lane, waited) : lane));
    this.race(lanes, Math.max(1, ...lanes.map(({ to }) => to * 1.1)));
  }

  race(lanes, axis) {
    drawLanes(this.part("bars"), lanes.map(waited), axis);
  }

  tick() {
    if (!this.account && this.lanes.some(({ to }) => to === null)) this.drawRace();
    if (!this.runs.length) return;
    this.reads();
    if (!this.account) this.costSoFar();
    if (this.node.ariaBusy !== "true" && this.read >= this.delivered) clearInterval(this.ticker);
  }

  /** The reader goes on at the pace of the settings, and waits where there is nothing to read. */
  reads() {
    const now = performance.now();
    const pace = pad.config.consumption_tokens_per_s;
    this.read = Math.min(this.delivered, this.read + pace * (now - (this.looked ?? this.started ?? now)) / 1000);
    this.looked = now;
    const unread = Math.round(this.delivered - this.read);
    this.part("read").style.setProperty("--read", `${(100 * this.read) / Math.max(1, this.delivered)}%`);
    this.part("unread").textContent = `${tokens(unread)} unread of ${this.delivered}: ${(unread / pace).toFixed(1)} s of reading at ${pace} tokens/s`;
  }

  costSoFar() {
    this.cost([["Written so far", `${usd(this.usd)} and ${joules(this.joules)}`]], "Prompt and cancelled attempts are added when the answer is settled.");
  }

  cost(rows, why) {
    const said = rows.flatMap(([term, value]) => [element("dt", { text: term }), element("dd", { text: value })]);
    this.part("cost").replaceChildren(...said, element("dd", { className: "why", text: why }));
  }

  /** The account of the whole answer. */
  settle(account, usage) {
    this.account = account;
    this.settleRace(account);
    this.settleMoves(account);
    const [alone, why] = serverOnly(account, usage);
    const rows = [["This answer", `${usd(account.usd)} and ${joules(account.joules)}`]];
    this.cost(alone === null ? rows : [...rows, ["Server only", `${usd(alone)} and 0 J`]], why);
    say(`Done: ${tokens(usage.completion_tokens)} by policy ${account.policy}.`);
  }

  settleRace({ attempts, ttft_s }) {
    const won = ttft_s ?? this.waited;
    const lanes = attempts.map((attempt) => lane(attempt, won));
    this.race(lanes, 1.04 * Math.max(...lanes.map(({ to }) => to), 0.01));
  }

  settleMoves({ migrations, stayed }) {
    const words = { cost: "to save cost", rescue: "as a rescue" };
    const shown = [...this.seams];
    for (const move of migrations) {
      if (shown[0]?.to !== move.to) continue; // it moved before anything was said there
      shown.shift().seam.textContent = `‖ ${move.to}, ${words[move.reason]}, gap ${seconds(move.gap_s)}`;
    }
    const moved = migrations.map((move) => element("li", {},
      element("span", { className: "seam", text: "‖ " }),
      `${move.from} to ${move.to} after ${tokens(move.at_token)}, ${words[move.reason]}, by ${move.by === "tokens" ? "token IDs" : "text"}; gap ${seconds(move.gap_s)} `,
      element("div", { className: "why", text: move.why })));
    const kept = stayed ? [element("li", { className: "why", text: `Did not move to save cost: ${stayed}` })] : [];
    this.part("moves").replaceChildren(...moved, ...kept);
    this.part("handoff").hidden = !moved.length && !kept.length;
  }

  trouble(message) {
    this.part("trouble").textContent = message;
    this.part("trouble").hidden = false;
    say("");
  }

  note(message) {
    this.part("text").after(element("p", { className: "note", text: message }));
    say(message);
  }

  /** Nothing more will come. */
  end() {
    this.node.setAttribute("aria-busy", "false");
    for (const lane of this.lanes.filter(({ to }) => to === null)) Object.assign(lane, { to: this.waited, letGo: true, said: "ended here" });
    if (!this.account) this.drawRace();
    if (!this.runs.length) {
      clearInterval(this.ticker);
      for (const section of this.node.querySelectorAll(".later")) section.hidden = !this.account;
      this.part("account").hidden = !this.lanes.length;
      this.part("text").hidden = true;
    }
  }
}

/** An attempt as a bar, from its start until it spoke or was let go. */
function waited({ who, from, to, said, racing, letGo }) {
  return { who, said, racing, parts: [{ from, to, kind: letGo ? "let-go" : "" }] };
}

/** An attempt that has not spoken yet. */
function running(lane, waited) {
  const ran = Math.max(0, waited - lane.from);
  return { ...lane, to: lane.from + ran, said: `${lane.said}, ${ran.toFixed(1)} s`, racing: true };
}

/** What became of one attempt. An account says when attempts started and spoke; losers were let go when another did. */
function lane({ endpoint: who, start_offset_s: from, ttft_s, outcome, error, dropped }, won) {
  const after = ttft_s === null ? "" : ` after ${seconds(ttft_s)}`;
  const said = {
    won: `won${after}`,
    lost: "let go when another spoke",
    failed: `${after && `spoke${after}, then `}failed: ${error}`,
    migrated_from: `${ttft_s === won ? "won" : "took over"}${after}, then handed over`,
    migrated_to: `took over${after}`,
    not_started: error ? `not started: ${error}` : "not started: the race was over before its time",
  }[outcome];
  const started = from >= 0.005 && outcome !== "not_started" ? `started at ${seconds(from)}, ` : "";
  const to = outcome === "not_started" ? from : Math.max(from, ttft_s ?? won);
  return { who, from, to, said: started + (dropped ? `let go: ${dropped}` : said), letGo: outcome === "lost" || (ttft_s === null && outcome !== "won") };
}

/** What the first server, which is the one that policy `server-only` asks, would have charged for the same answer. */
function serverOnly({ attempts }, usage) {
  const server = pad.config.endpoints.find(({ kind }) => kind === "server");
  if (!server) return [null, "There is no server here to compare with."];
  if (!server.prompt_usd_per_mtok && !server.completion_usd_per_mtok) return [null, `${server.name} has no known price to compare with.`];
  const own = attempts.find(({ endpoint, outcome }) => endpoint === server.name && outcome !== "migrated_to" && outcome !== "not_started");
  const prompt = own?.prompt_tokens ?? usage.prompt_tokens;
  const alone = (prompt * server.prompt_usd_per_mtok + usage.completion_tokens * server.completion_usd_per_mtok) / 1e6;
  return [alone, `Every attempt is counted, cancelled ones too. Server only: the same ${prompt} prompt and ${usage.completion_tokens} answer tokens at ${server.name}’s prices.`];
}

// The conversation

function question(content) {
  const node = $("question").content.cloneNode(true).firstElementChild;
  node.querySelector("p").textContent = content;
  $("conversation").append(node);
  return { role: "user", content, node };
}

async function answer() {
  const view = new View();
  const asked = messages();
  const turn = { role: "assistant", content: "", node: view.node };
  $("conversation").append(view.node);
  pad.follows = true;
  page.scrollTop = page.scrollHeight;
  pad.abort = new AbortController();
  busy(true);
  say("Waiting for whoever speaks first.");
  try {
    await stream(asked, view);
    plan(); // it may have changed with what was learnt
  } catch (error) {
    if (error.name === "AbortError") view.note("Stopped. What it had cost by then is in the ledger.");
    else if (error instanceof Problem) view.trouble(error.message);
    else throw error;
  } finally {
    view.end();
    turn.content = view.text;
    pad.turns.push(turn);
    busy(false);
  }
}

async function stream(asked, view) {
  const response = await ask("/v1/chat/completions", {
    method: "POST",
    signal: pad.abort.signal,
    headers: { "Content-Type": "application/json", "x-disco-annotate": "true", ...policyHeader() },
    body: JSON.stringify({ ...body(asked), stream_options: { include_usage: true } }),
  });
  let account = null;
  for await (const { choices: [choice], disco, usage } of chunksOf(response)) {
    if (choice?.finish_reason) account = disco;
    else if (disco?.tokens === 0 && !choice.delta.reasoning_content && !choice.delta.content) view.begin(disco);
    else if (disco) follow(() => view.add(choice.delta.content ?? "", choice.delta.reasoning_content, disco));
    if (usage) follow(() => view.settle(account, usage));
  }
}

/** Keep the end in sight, unless the reader has scrolled up from it. */
function follow(change) {
  change();
  if (pad.follows) page.scrollTop = page.scrollHeight;
}

function scrolled() {
  const atEnd = page.scrollHeight - page.scrollTop - page.clientHeight < 80;
  if (page.scrollTop < pad.scrollTop) pad.follows = atEnd;
  else pad.follows ||= atEnd;
  pad.scrollTop = page.scrollTop;
}

function busy(yes) {
  if (yes) $("welcome").hidden = true;
  const held = document.activeElement;
  $("send").hidden = yes;
  $("stop").hidden = !yes;
  $("again").disabled = yes || !pad.turns.length;
  $("clear").disabled = yes;
  if (held === $("send") || held === $("stop") || held === $("again")) (yes ? $("stop") : $("prompt")).focus();
}

function send() {
  const prompt = $("prompt").value.trim();
  if (!prompt || !pad.config || !$("stop").hidden) return;
  if (pad.turns.length && !pad.turns.at(-1).content) pad.turns.splice(-2); // nobody answered that one
  pad.turns.push(question(prompt));
  $("prompt").value = "";
  answer();
}

function again() {
  if (pad.turns.at(-1)?.role === "assistant") pad.turns.pop().node.remove();
  answer();
}

function clear() {
  for (const node of document.querySelectorAll("#conversation article")) node.remove();
  pad.turns = [];
  $("welcome").hidden = false;
  $("again").disabled = true;
  say("");
  $("prompt").focus();
}

// The share, and the plan that it makes

const policyAsked = () => $("policy").value || pad.config.virtual_models[$("model").value]?.policy;

/** Why no share can be asked for; empty where one can. */
function shareless() {
  const [model, policy] = [$("model").value, policyAsked() || pad.config.policy];
  const kinds = new Set(pad.config.endpoints.map(({ kind }) => kind));
  if (!pad.config.virtual_models[model]) return `Model ${model} names who answers: there is nothing to plan.`;
  if (pad.config.virtual_models[model].private) return "A private request stays on the device, whatever the share.";
  if (kinds.size < 2) return "There is one kind of endpoint only: nothing is shared.";
  if (!pad.config.sharing_policies.includes(policy)) return `Policy ${policy} starts whom it names, whatever the share.`;
  return "";
}

/** The share to ask for; `null` leaves it to the settings. */
const askedShare = () => (pad.share === null || shareless() ? null : pad.share / 100);

function drawShare() {
  const why = shareless();
  const slider = $("share");
  const asSet = askedShare() === null;
  if (asSet && pad.plan?.share != null) slider.value = 100 * pad.plan.share;
  const said = why || (asSet ? `As set${pad.plan?.share == null ? "" : `: ${inTokens(pad.plan.share)}`}.` : `${inTokens(askedShare())}.`);
  $("share-said").textContent = said;
  slider.setAttribute("aria-valuetext", said);
  slider.disabled = Boolean(why);
  $("as-set").hidden = asSet;
  $("plan").hidden = pad.config.virtual_models[$("model").value]?.private ?? true;
}

const inTokens = (share) => `${Math.round(100 * share)} % of prompt tokens may go to the ${pad.plan?.of ?? "held-back kind"}`;

/** Draw the plan that the choices on this page make, once they rest; the sentence that tells of it, if it came to that. */
async function plan(rests_ms = 0) {
  pad.planning?.abort();
  const { signal } = (pad.planning = new AbortController());
  await new Promise((resolve) => setTimeout(resolve, rests_ms));
  if (signal.aborted) return;
  const choices = { policy: policyAsked(), share: askedShare() };
  const asked = new URLSearchParams(Object.entries(choices).filter(([, value]) => value != null && value !== ""));
  try {
    pad.plan = await (await ask(`/dashboard/api/plan?${asked}`, { signal })).json();
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof Problem)) throw error;
    $("plan").replaceChildren(element("p", { className: "hint", text: error.message }));
    return;
  }
  drawShare();
  return showPlan();
}

/** Draw the plan, with the prompt that would be sent now; the sentence that tells of it. */
function showPlan() {
  if (!pad.plan) return "";
  const chars = messages($("prompt").value.trim()).reduce((sum, { content }) => sum + [...content].length, 0);
  const promptTokens = chars ? Math.max(1, Math.round(chars / pad.plan.chars_per_token)) : undefined;
  return drawPlan($("plan"), pad.plan, { promptTokens });
}

/** Another choice was made: draw it, and tell those who do not see it. */
async function chosen(rests_ms = 0) {
  drawShare();
  $("plan-said").textContent = (await plan(rests_ms)) || $("plan-said").textContent;
}

function slide() {
  pad.share = $("share").valueAsNumber;
  chosen(150);
}

function asSet() {
  pad.share = pad.plan = null; // what the settings' share comes to is yet to be asked
  $("share").focus();
  chosen();
}

// Copies

/** What would be asked now; after an answer, and with no new prompt, what was asked last. */
function asking() {
  const prompt = $("prompt").value.trim();
  const said = messages(prompt);
  const asked = prompt || said.at(-1)?.role !== "assistant" ? said : said.slice(0, -1);
  return body(asked.length ? asked : [{ role: "user", content: "Why is the sky blue?" }]);
}

function asCurl() {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const lines = [`curl -N ${location.origin}/v1/chat/completions`, "-H 'Content-Type: application/json'"];
  if (hasKey()) lines.push('-H "Authorization: Bearer $DISCO_KEY"');
  for (const [name, value] of Object.entries(policyHeader())) lines.push(`-H ${quoted(`${name}: ${value}`)}`);
  return [...lines, `-d ${quoted(JSON.stringify(asking(), null, 2))}`].join(" \\\n  ");
}

function asPython() {
  const { model, messages: asked, max_tokens } = asking();
  const keyed = hasKey();
  const header = Object.keys(policyHeader()).length ? [`    extra_headers=${JSON.stringify(policyHeader())},`] : [];
  return [
    ...(keyed ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url="${location.origin}/v1", api_key=${keyed ? 'os.environ["DISCO_KEY"]' : '"unused"'})`,
    "stream = client.chat.completions.create(",
    `    model=${JSON.stringify(model)},`,
    "    messages=[",
    ...asked.map(({ role, content }) => `        {"role": "${role}", "content": ${JSON.stringify(content)}},`),
    "    ],",
    ...(max_tokens ? [`    max_tokens=${max_tokens},`] : []),
    "    stream=True,",
    ...header,
    ")",
    "for chunk in stream:",
    '    print(chunk.choices[0].delta.content or "", end="", flush=True)',
    "",
  ].join("\n");
}

async function show(title, code) {
  $("code-title").textContent = title;
  $("code-text").value = code;
  $("code").showModal();
  $("code-text").select();
  const copied = await navigator.clipboard?.writeText(code).then(() => true, () => false);
  $("code-hint").textContent = copied ? "Copied." : "Selected; copy it with Ctrl+C.";
}

// Settings

async function load() {
  try {
    const [config, models] = await Promise.all(["/playground.json", "/v1/models"].map((path) => get(path)));
    pad.config = config;
    $("model").replaceChildren(...models.data.map(({ id }) => new Option(id)));
    $("policy").replaceChildren(new Option(`${config.policy} (the settings’)`, ""), ...config.policies.map((name) => new Option(name)));
    showLegend(config.endpoints);
    $("send").disabled = false;
    say("");
    drawShare();
    plan();
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    $("send").disabled = true;
    say(error.message);
  }
}

function typed(event) {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
}

document.addEventListener("scroll", scrolled, { passive: true });
$("composer").addEventListener("submit", (event) => { event.preventDefault(); send(); });
$("prompt").addEventListener("keydown", typed);
$("stop").addEventListener("click", () => pad.abort.abort());
$("share").addEventListener("input", slide);
$("as-set").addEventListener("click", asSet);
for (const choice of ["model", "policy"]) $(choice).addEventListener("change", () => chosen());
$("prompt").addEventListener("input", showPlan);
$("again").addEventListener("click", again);
$("clear").addEventListener("click", clear);
$("as-curl").addEventListener("click", () => show("As curl", asCurl()));
$("as-python").addEventListener("click", () => show("As Python", asPython()));
$("code-close").addEventListener("click", () => $("code").close());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !$("stop").hidden && !$("code").open) pad.abort.abort();
});
for (const example of document.querySelectorAll(".examples button")) {
  example.addEventListener("click", () => { $("prompt").value = example.textContent; send(); });
}

if (matchMedia("(max-width: 52rem)").matches) $("settings").open = false;
keepKey(load);
load();
