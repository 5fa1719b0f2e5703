// The page: an overview comes each second, what it says is shown, and buttons order changes.

import { ask, follow, json, post, unlock } from "./ask.js";
import { by, cards, clock, figures, fill, gate, history, make, memory, plot, rollout } from "./show.js";
import { tryModel } from "./try.js";

const PLOT_EVERY_MS = 2000;
const ORDERS = ["promote", "stage", "rollback", "settle", "abort"];

let overview = null;
// Whether overviews come.
let linked = false;
let lastMemory = null;
let shown = { model: null, phase: null, history: null, plot: 0 };
let wanted = null;

const model = () => overview?.models.find((one) => one.name === wanted) ?? overview?.models[0];
const say = (text) => { by("said").textContent = text; };

function complain(text) {
  by("wrong").textContent = text;
  by("wrong").hidden = !text;
}

// --- showing

function show(fresh) {
  overview = fresh;
  lastMemory = fresh.memory ?? lastMemory;
  const now = model();
  options(by("model"), fresh.models.map((one) => one.name), now?.name);
  if (!now) return;
  const changed = shown.model !== now.name;
  if (changed) {
    shown = { model: now.name, phase: null, history: null, plot: 0 };
    by("latency").replaceChildren();
    tryModel(by("try"), now);
  }
  by("down").textContent = now.not_serving ?? "";
  by("down").hidden = !now.not_serving;
  fill(by("cards"), ...cards(now, lastMemory));
  if (lastMemory) fill(by("memory"), ...memory(lastMemory));
  const versions = now.versions.filter((version) => version !== now.live?.version);
  options(by("version"), versions, by("version").value || versions[0]);
  const view = now.rollout;
  if (view) fill(by("rollout"), ...rollout(view, fresh.at_ms));
  else fill(by("rollout"), make("p", { class: "muted" }, "None since the server started."));
  fill(by("gate"), view ? gate(view.gate) : null);
  buttons(now, view);
  news(now, view);
  plots(now, view);
}

/** Options of a select, changed only where they are others: a list that is open stays open. */
function options(select, names, chosen) {
  const before = [...select.options].map((option) => option.value);
  if (before.length !== names.length || before.some((name, at) => name !== names[at])) {
    select.replaceChildren(...names.map((name) => make("option", { value: name }, name)));
  }
  if (chosen !== undefined && names.includes(chosen) && select.value !== chosen) select.value = chosen;
}

function buttons(now, view) {
  const open = view && !view.ended_ms;
  const switched = open && ["observing", "reclaiming"].includes(view.phase);
  const set = (id, on) => { by(id).disabled = !on || !linked; };
  set("promote", now.versions.length > 0 && by("version").value);
  set("stage", by("version").value);
  set("rollback", now.live && (now.previous || now.candidate || view));
  set("settle", open && view.phase === "observing");
  set("abort", open && !switched);
}

/** What is read out: phases as they change, and nothing each second. */
function news(now, view) {
  const phase = view ? `${view.id} ${view.phase} ${view.ended_ms ?? ""}` : "";
  // A server that was started again knows of no rollout.
  if (view && shown.phase !== null && shown.phase !== phase) {
    say(`${now.name}@${view.to}: ${view.phase.replace("_", " ")}; live is ${now.live?.version ?? "nothing"}`);
  }
  if (shown.phase !== phase) past(now.name);
  shown.phase = phase;
}

async function past(name) {
  try {
    const { body } = await json(`/admin/rollouts?limit=30&model=${encodeURIComponent(name)}`);
    if (name !== model()?.name) return;
    fill(by("history"), ...history(body.rollouts));
    fill(by("figures"), ...figures(body.figures));
  } catch (error) {
    complain(error.message);
  }
}

async function plots(now, view) {
  if (document.hidden || Date.now() - shown.plot < PLOT_EVERY_MS) return;
  shown.plot = Date.now();
  const draw = async (place, path, label) => {
    const response = await ask(`${path}&width=${by(place).clientWidth}`);
    const drawn = response.ok ? plot(await response.text(), label) : null;
    if (now.name === model()?.name) by(place).replaceChildren(...(drawn ? [drawn] : []));
  };
  try {
    const live = now.generations.find((generation) => generation.role === "live");
    const label = `Latency of ${now.name} over the last ten minutes; now the median is ${live?.p50_ms?.toFixed(1) ?? "unknown"} ms`;
    await draw("latency", `/admin/plots/latency?model=${encodeURIComponent(now.name)}`, label);
    if (view?.figures.shadow || view?.figures.shadow_after) {
      await draw("agreement", `/admin/plots/agreement?rollout=${encodeURIComponent(view.id)}`, "How much answers of both versions agree: a histogram from 0 to 1");
    } else {
      by("agreement").replaceChildren();
    }
  } catch (error) {
    // The stream says that the server is away.
    console.debug(error.message);
  }
}

// --- ordering

const field = (id, label, attributes = {}) => [make("label", { for: id }, label), make("input", { id, autocomplete: "off", ...attributes })];

const SHADOW = () => field("shadow", "Shadow: share of answers that both versions compute, 0 to 1 (optional)", { type: "number", min: 0, max: 1, step: "any" });
const MORE = {
  promote: () => [
    ...field("observe", "Observation window, such as 30s or 5m (optional)"),
    ...field("canary", "Canary: percent of requests, step by step, such as 5,25,50 (optional)", { pattern: "[0-9., ]*" }),
    ...field("canary-step", "How long each step lasts (optional)"), ...SHADOW(),
    make("label", {}, make("input", { id: "accept", type: "checkbox" }), " Accept a changed contract"),
  ],
  stage: SHADOW,
};

const phase = (now) => (now.rollout && !now.rollout.ended_ms ? now.rollout.phase : null);
const compared = (now) => phase(now) === "experiment";
const shared = (now) => ["canary", "experiment"].includes(phase(now));

/** Asks once; the order's body, or nothing. */
function sure(order, title, text) {
  return new Promise((done) => {
    const dialog = by("sure");
    by("sure-title").textContent = title;
    by("sure-text").textContent = text;
    by("sure-yes").textContent = title.split(" ")[0] === "Roll" ? "Roll back" : title.split(" ")[0];
    by("reason").value = "";
    by("sure-more").replaceChildren(...(MORE[order]?.() ?? []));
    dialog.returnValue = "no";
    dialog.addEventListener("close", () => {
      if (dialog.returnValue !== "yes") return done(null);
      const value = (id) => by(id)?.value.trim() || undefined;
      const body = { actor: "page", reason: value("reason"), observe: value("observe"), canary_step: value("canary-step") };
      if (value("canary")) body.canary = value("canary").split(",").map(Number);
      if (value("shadow")) body.shadow = Number(value("shadow"));
      if (by("accept")?.checked) body.accept_contract_change = true;
      return done(body);
    }, { once: true });
    dialog.showModal();
    by("sure-yes").focus();
  });
}

async function order(path, body) {
  complain("");
  try {
    await post(path, body);
  } catch (error) {
    complain(error.message);
  }
}

by("change").addEventListener("submit", async (event) => {
  event.preventDefault();
  const [now, version, what] = [model(), by("version").value, event.submitter?.value ?? "promote"];
  const title = what === "stage" ? `Stage ${now.name}@${version}?` : `Promote ${now.name}@${version}?`;
  const text = what === "stage" ? "It is loaded and proved beside the live version; clients do not get it." : `${compared(now) ? "The experiment ends. " : ""}It is loaded, proved, and made live in place of ${now.live?.version ?? "nothing"}.`;
  const body = await sure(what, title, text);
  if (body) await order(`/models/${encodeURIComponent(`${now.name}@${version}`)}/${what}`, { ...body, wait: "none" });
});

by("rollback").addEventListener("click", async () => {
  const now = model();
  const text = shared(now) ? `${now.live?.version ?? "The live version"} answers everything again at once, and ${now.rollout.to} is dropped.` : now.previous ? `${now.previous.version} is live again at once.` : "The version before is live again; where its memory was given back, it is loaded first.";
  const body = await sure("rollback", `Roll back ${now.name}?`, text);
  if (body) await order("/admin/rollback", { ...body, model: now.name, wait: "none" });
});

by("settle").addEventListener("click", async () => {
  const now = model();
  const body = await sure("settle", `Settle ${now.name}?`, `The window ends, and the memory of ${now.previous?.version ?? "the version before"} is given back.`);
  if (body) await order("/admin/settle", { ...body, model: now.name, wait: "none" });
});

by("abort").addEventListener("click", async () => {
  const view = model().rollout;
  const body = await sure("abort", `Abort ${view.id}?`, `${view.to} is dropped; clients notice nothing.`);
  if (body) await order(`/admin/rollouts/${encodeURIComponent(view.id)}/abort`, body);
});

by("model").addEventListener("change", () => {
  wanted = by("model").value;
  if (overview) show(overview);
});

by("unlock").addEventListener("click", unlock);

// Plots are drawn as wide as they are shown, so that their letters are as large as others.
window.addEventListener("resize", () => { shown.plot = 0; });

// Not of a form's: what Enter presses is its first button.
for (const button of document.querySelectorAll("dialog .no")) {
  button.addEventListener("click", () => button.closest("dialog").close("no"));
}

by("rollout").addEventListener("click", async (event) => {
  const name = event.target.closest("[data-experiment]")?.dataset.experiment;
  if (!name) return;
  const body = await sure("stop", `Stop the experiment ${name}?`, "The live version answers everything again; the other one stays staged.");
  if (!body) return;
  complain("");
  try {
    await json(`/admin/experiments/${encodeURIComponent(name)}`, { method: "DELETE" });
  } catch (error) {
    complain(error.message);
  }
});

follow(show, (on, text) => {
  linked = on;
  // What is away takes no orders; an overview says which are possible.
  if (!on) for (const id of ORDERS) by(id).disabled = true;
  by("link").classList.toggle("on", on);
  by("main").classList.toggle("stale", !on && overview !== null);
  const told = on || !overview ? text : `${text}; shown as of ${clock(overview.at_ms)}`;
  if (by("link").textContent !== told) by("link").textContent = told;
});
