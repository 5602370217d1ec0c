// The dashboard: what was settled, what runs, and by which plan and budgets. It asks, and changes nothing.

import { get, keepKey } from "./api.js";
import { showBudgets } from "./balance.js";
import { $ } from "./dom.js";
import { fully, zone } from "./format.js";
import { know, showLegend } from "./looks.js";
import { showOverview } from "./overview.js";
import { showPlan } from "./plan.js";
import { showRequests } from "./requests.js";
import { KEY, showLive } from "./timeline.js";
import { offer, query, steer } from "./view.js";
import { again, every, pause, tried } from "./watch.js";

const [LIVE_S, SETTLED_S] = [1, 10];
const board = { endpoints: [], policies: [], running: new Set(), older: [], cursor: null };

const legend = once(async () => {
  const { endpoints, policies } = await get("/playground.json");
  showLegend(endpoints);
  Object.assign(board, { endpoints: endpoints.map(({ name }) => name), policies });
});

/** Does a task until it has gone well. */
function once(task) {
  let done = null;
  return () => (done ??= task().catch((error) => {
    done = null;
    throw error;
  }));
}

async function overview(signal) {
  const [told] = await Promise.all([get(`/dashboard/api/overview?${query()}`, { signal }), legend()]);
  know(told.endpoints.map(({ endpoint }) => endpoint));
  offer({ policies: [...new Set([...told.policies, ...board.policies])], endpoints: [...new Set([...board.endpoints, ...told.endpoints.map(({ endpoint }) => endpoint)])] });
  showOverview(told);
  $("updated").textContent = `Updated ${fully(new Date().toISOString()).split(", ")[1]}, ${zone()} time`;
  board.shown ??= performance.mark("figures-shown");
}

async function settled(signal) {
  const [told] = await Promise.all([get(`/dashboard/api/requests?${query({ limit: 50 })}`, { signal }), legend()]);
  board.newest = told.requests;
  if (!board.older.length) board.cursor = told.next;
  listRequests();
}

async function older() {
  const asked = query({ limit: 50, before: board.cursor });
  const told = await get(`/dashboard/api/requests?${asked}`);
  if (asked !== query({ limit: 50, before: board.cursor })) return; // something else is shown by now
  board.older.push(...told.requests);
  board.cursor = told.next;
  listRequests();
}

/** The newest, and those beyond them that were asked for, each once. */
function listRequests() {
  const listed = new Set();
  const fresh = (request) => !listed.has(keyOf(request)) && listed.add(keyOf(request));
  showRequests([...board.newest, ...board.older].filter(fresh));
  $("older").hidden = !board.cursor;
}

const keyOf = ({ request_id, recorded_at }) => `${request_id} ${recorded_at}`;

async function live(signal) {
  const [told] = await Promise.all([get("/dashboard/api/live", { signal }), legend()]);
  showLive(told);
  const running = new Set(told.requests.map(({ request_id }) => request_id));
  if ([...board.running].some((id) => !running.has(id))) listAnew();
  board.running = running;
}

async function standing(signal) {
  const ask = (path) => get(`/dashboard/api/${path}`, { signal });
  const [budgets, plan] = await Promise.all([ask("budgets"), ask("plan"), legend()]);
  showBudgets(budgets);
  showPlan(plan);
}

function changed() {
  Object.assign(board, { older: [], cursor: null });
  offer({ policies: board.policies, endpoints: board.endpoints });
  lookAnew();
  listAnew();
}

$("live-key").textContent = KEY;
offer({ policies: [], endpoints: [] });
const lookAnew = every(SETTLED_S, overview);
const listAnew = every(SETTLED_S, settled);
every(LIVE_S, live);
every(SETTLED_S, standing);
keepKey(again);
steer(changed);
$("older").addEventListener("click", () => tried(older));
$("pause").addEventListener("click", () => {
  const paused = $("pause").getAttribute("aria-pressed") !== "true";
  $("pause").setAttribute("aria-pressed", paused);
  pause(paused);
});
