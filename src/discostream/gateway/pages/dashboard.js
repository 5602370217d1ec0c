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
import { again, every, pause } from "./watch.js";

const [LIVE_S, SETTLED_S] = [1, 10];
const [PAGE, MOST_LISTED] = [50, 500];
const board = { endpoints: [], policies: [], running: new Set(), listed: PAGE };

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
  const [told] = await Promise.all([get(`/dashboard/api/requests?${query({ limit: board.listed })}`, { signal }), legend()]);
  showRequests(told.requests);
  $("older").hidden = !told.next || board.listed === MOST_LISTED;
}

/** List more of them, for as long as this is shown; all anew, so that none is missing in between. */
function older() {
  board.listed += PAGE;
  listAnew();
}

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
  board.listed = PAGE;
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
$("older").addEventListener("click", older);
$("pause").addEventListener("click", () => {
  const paused = $("pause").getAttribute("aria-pressed") !== "true";
  $("pause").setAttribute("aria-pressed", paused);
  pause(paused);
});
