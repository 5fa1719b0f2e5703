// From overviews to elements. Everything that comes from the server is text: nothing here makes markup of it.

export const by = (id) => document.getElementById(id);

/** An element with attributes and children; strings become text. */
export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(key, "");
    else if (value !== undefined && value !== null && value !== false) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const FOCUSABLE = "button, summary, [tabindex]";

/** Puts children into an element where they differ from what is there, so that focus and selections stay. */
export function fill(element, ...children) {
  const fresh = document.createElement(element.nodeName);
  fresh.append(...children.filter((child) => child !== null && child !== undefined));
  if (fresh.isEqualNode(shallow(element))) return false;
  const all = (what) => [...element.querySelectorAll(what)];
  const open = all("details").map((details) => details.open);
  const scrolled = all(".scroll").map((box) => box.scrollLeft);
  const focus = all(FOCUSABLE).indexOf(document.activeElement);
  element.replaceChildren(...fresh.childNodes);
  all("details").forEach((details, at) => { if (open[at] !== undefined) details.open = open[at]; });
  all(".scroll").forEach((box, at) => { box.scrollLeft = scrolled[at] ?? 0; });
  if (focus >= 0) all(FOCUSABLE)[focus]?.focus({ preventScroll: true });
  return true;
}

/** A copy without what the user has opened. */
function shallow(element) {
  const copy = document.createElement(element.nodeName);
  copy.append(...[...element.childNodes].map((child) => child.cloneNode(true)));
  copy.querySelectorAll("details").forEach((details) => details.removeAttribute("open"));
  return copy;
}

export function number(value, digits = 0) {
  if (value === null || value === undefined) return "–";
  return value.toLocaleString("en", { maximumFractionDigits: digits });
}
export function time(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 1000) return `${number(ms, ms < 10 ? 2 : ms < 100 ? 1 : 0)} ms`;
  if (ms < 120_000) return `${number(ms / 1000, 1)} s`;
  return `${number(ms / 60_000, 1)} min`;
}
export function size(bytes) {
  if (bytes === null || bytes === undefined) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  for (; bytes >= 1000 && at < units.length - 1; at += 1) bytes /= 1000;
  return `${number(bytes, bytes < 10 && at ? 1 : 0)} ${units[at]}`;
}
export const percent = (share) => (share === null || share === undefined ? "–" : `${number(share * 100, 1)} %`);
export const clock = (ms) => new Date(ms).toLocaleTimeString("en-GB");

const facts = (...pairs) => pairs.filter(Boolean).flatMap(([what, value, kind]) => [make("div", {}, make("dt", {}, what), make("dd", kind ? { class: kind } : {}, value))]);

// --- versions

export function cards(model, memory) {
  const places = [["live", model.live], ["candidate", model.candidate], ["previous", model.previous]];
  return places.map(([role, place]) => {
    const called = { live: "Live", candidate: "Candidate", previous: "Previous" }[role];
    if (!place) return make("li", { class: `card ${role}` }, make("span", { class: "role" }, called), make("p", { class: "muted" }, "none"));
    const now = model.generations.find((generation) => generation.generation === place.generation);
    const held = memory?.generations.find((generation) => generation.generation === place.generation);
    const errors = now ? now.blamed + now.unexplained : 0;
    const share = shareOf(model, role);
    // An answer that is written takes as long as it is.
    const each = model.task === "generate" ? " a token" : "";
    const list = now ? facts(
      ["requests/s", number(now.per_second, 1)],
      [`median${each}`, time(now.p50_ms)],
      [`p99${each}`, time(now.p99_ms)],
      ["errors", `${number(errors)} of ${number(now.answered + errors)}`, errors ? "bad" : null],
      now.failovers ? ["rescued", number(now.failovers)] : null,
      now.nonfinite ? ["not finite", number(now.nonfinite), "bad"] : null,
      ["waiting", number(now.waiting)],
      ["memory", held ? size(held.exclusive + held.shared) : "–"],
      share === null ? null : ["share", `${number(share, 1)} %`],
    ) : facts(["phase", place.phase]);
    return make("li", { class: `card ${role}` },
      make("span", { class: "role" }, `${called} · ${place.phase}`), make("h3", {}, place.version), make("dl", {}, ...list));
  });
}

/** Percent of the requests, where they are shared. */
function shareOf(model, role) {
  const rollout = model.rollout;
  if (!rollout || !["canary", "experiment"].includes(rollout.phase)) return null;
  const experiment = rollout.figures.experiment;
  const candidate = rollout.phase === "canary" ? rollout.figures.canary?.percent : experiment?.arms?.find((arm) => arm.version === rollout.to)?.weight;
  if (typeof candidate !== "number") return null;
  return role === "candidate" ? candidate : role === "live" ? 100 - candidate : null;
}

// --- a rollout

const COURSE = ["reserving", "loading", "warming", "validating", "ready", "observing", "reclaiming", "settled"];
const ILL = ["refused", "failed", "aborted", "rolled_back", "interrupted"];

export function rollout(view, now) {
  const ill = ILL.includes(view.phase);
  const title = `${view.from ?? "nothing"} → ${view.to}`;
  const shown = view.phases.map((phase, at) => {
    const last = at === view.phases.length - 1;
    const kind = ILL.includes(phase.phase) ? "ill" : last && !view.ended_ms ? "now" : "";
    const took = last ? (view.ended_ms ? "" : time(Math.max(0, Math.floor((now - Date.parse(phase.at)) / 1000) * 1000))) : time(phase.ms);
    return make("li", { class: kind, "aria-current": kind === "now" ? "step" : null }, phase.phase.replace("_", " "), make("small", {}, took));
  });
  const at = COURSE.indexOf(["canary", "experiment"].includes(view.phase) ? "ready" : view.phase);
  const ahead = view.ended_ms || at < 0 ? [] : COURSE.slice(at + 1).map((phase) => make("li", { class: "ahead" }, phase));
  const parts = [
    make("h3", {}, title),
    make("p", { class: "muted" }, `${view.id}, since ${clock(view.started_ms)}${view.actor ? `, by ${view.actor}` : ""}`),
    make("ol", { class: "phases", "aria-label": "Phases" }, ...shown, ...ahead),
  ];
  if (view.progress) {
    const { done, total } = view.progress;
    parts.push(make("progress", { max: total, value: done, "aria-label": "Bytes loaded" }), make("p", { class: "muted" }, `${size(done)} of ${size(total)}`));
  }
  if (view.error) parts.push(make("p", { class: "bad" }, view.error.message));
  if (view.reason && !view.error?.message.includes(view.reason)) parts.push(make("p", { class: ill ? "bad" : "" }, `Reason: ${view.reason}`));
  for (const warning of view.warnings ?? []) parts.push(make("p", {}, `Warning: ${warning}`));
  const { canary, shadow, shadow_after: after } = view.figures;
  if (canary && view.phase === "canary") parts.push(...canaryOf(canary));
  else if (canary) parts.push(make("p", {}, `Canary: it came to ${number(canary.reached, 1)} % of requests, step ${canary.step} of ${canary.steps?.length ?? 0}`));
  const experiment = view.figures.experiment;
  if (experiment) {
    parts.push(make("p", {}, `Experiment “${experiment.name}”`));
    for (const arm of experiment.arms ?? []) {
      parts.push(make("p", { class: "muted" }, `${arm.version} (${number(arm.weight, 1)} %): ${number(arm.answered)} answered, ${number(arm.failed)} failed, feedback ${number(arm.feedback?.mean, 3)} of ${number(arm.feedback?.count)}, p99 ${time(arm.p99_ms)}`));
    }
    for (const [name, found, digits] of [["Feedback", experiment.feedback, 3], ["Latency, ms", experiment.latency_ms, 2]]) {
      if (!found) continue;
      const interval = found.interval ? `${number(found.difference, digits)} apart, within ${number(found.interval[0], digits)} to ${number(found.interval[1], digits)}: ` : "";
      parts.push(make("p", {}, `${name}: ${interval}${found.better ? `${found.better} is better` : "too early to tell"}`));
    }
    if (view.phase === "experiment") parts.push(make("button", { type: "button", class: "quiet", "data-experiment": experiment.name }, "Stop the experiment…"));
  }
  for (const [name, seen] of [["before the switch", shadow], ["after the switch", after]]) {
    if (seen) parts.push(make("p", {}, `Shadow ${name}: ${number(seen.samples)} answers compared, agreement ${number(seen.mean, 4)} on average, ${number(seen.lowest, 4)} at worst${seen.passes ? `; computing ${number(seen.passes)} of them took ${seen.live} ${time(seen.live_pass_ms.p50)} and ${seen.other} ${time(seen.other_pass_ms.p50)} each (median)` : ""}`));
  }
  if (view.figures.verdicts?.length) parts.push(verdicts(view.figures.verdicts));
  return parts;
}

/** Where each rule stands; whether that has ended is told above. */
function verdicts(list) {
  const of = (verdict, value) => (verdict.unit === "ms" ? time(value) : verdict.unit === "share" && typeof value === "number" ? `${number(value * 100, 3)} %` : plain(value));
  const kind = { pass: "good", breaking: "bad", breach: "bad" };
  const rows = list.map((verdict) => make("tr", {},
    make("th", { scope: "row" }, verdict.since_s ? `${verdict.rule}, from ${time(verdict.since_s * 1000)} on` : verdict.rule), make("td", {}, of(verdict, verdict.seen)), make("td", {}, of(verdict, verdict.limit)),
    make("td", {}, number(verdict.samples)), make("td", { class: kind[verdict.decided] }, verdict.decided)));
  return scrolled("Rules", ["Rule", "Seen", "Limit", "Samples", "Verdict"], rows);
}

/** A table that scrolls sideways where it finds no room. */
function scrolled(name, heads, rows) {
  return make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": name }, make("table", {}, make("caption", { class: "unseen" }, name),
    make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))),
    make("tbody", {}, ...rows)));
}

function canaryOf(canary) {
  const share = canary.percent ?? 0;
  const meter = make("meter", { min: 0, max: 100, value: share, "aria-label": "Share of the requests that the candidate answers" });
  const told = (name, seen) => seen && `${name}: ${number(seen.samples)} answered, ${number(seen.blamed)} failed, p99 ${time(seen.p99_ms)}`;
  return [
    make("p", {}, `Canary: ${number(share, 1)} % of requests, step ${canary.step} of ${canary.steps?.length ?? 0} (${(canary.steps ?? []).join(", ")} %)`), meter,
    make("p", { class: "muted" }, [told("candidate", canary.candidate), told("live", canary.live)].filter(Boolean).join(" · ")),
  ];
}

const plain = (value) => (value === null || value === undefined ? "–" : typeof value === "number" ? number(value, 5) : typeof value === "string" ? value : JSON.stringify(value));

/** The gate's checks, those that failed first. */
export function gate(checks) {
  if (!checks.length) return null;
  const failed = checks.filter((check) => !check.passed);
  const rows = (list) => list.map((check) => make("tr", {},
    make("th", { scope: "row" }, check.check), make("td", {}, check.case ?? ""), make("td", { class: check.passed ? "good" : "bad" }, check.passed ? "passed" : "failed"),
    make("td", {}, plain(check.measure)), make("td", {}, plain(check.limit)), make("td", {}, check.message ?? "")));
  const table = (name, list) => scrolled(name, ["Check", "Case", "Verdict", "Measured", "Expected", "In words"], rows(list));
  return make("div", {},
    make("p", { class: failed.length ? "bad" : "good" }, failed.length ? `Gate: ${failed.length} of ${checks.length} checks failed` : `Gate: all ${checks.length} checks passed`),
    failed.length ? table("Failed checks", failed) : null,
    failed.length < checks.length ? make("details", {}, make("summary", {}, `${checks.length - failed.length} checks that passed`), table("Passed checks", checks.filter((check) => check.passed))) : null);
}

// --- memory

const NAMESPACE = "http://www.w3.org/2000/svg";

/** One bar of all that is promised, and a table of it. */
export function memory(told) {
  const full = Math.max(told.capacity, told.reserved, 1);
  const bar = document.createElementNS(NAMESPACE, "svg");
  bar.setAttribute("class", "stack");
  bar.setAttribute("viewBox", "0 0 1000 20");
  bar.setAttribute("preserveAspectRatio", "none");
  bar.setAttribute("aria-hidden", "true");
  const rect = (kind, from, width) => {
    const part = document.createElementNS(NAMESPACE, "rect");
    for (const [key, value] of [["class", kind], ["x", from], ["y", 0], ["width", width], ["height", 20]]) part.setAttribute(key, value);
    bar.append(part);
  };
  rect("free", 0, 1000);
  let from = 0;
  const reserved = [...told.reservations].sort((a, b) => b.bytes - a.bytes);
  reserved.forEach(({ bytes }, at) => {
    const width = Math.max((bytes / full) * 1000, 3);
    rect(`m${at % 5}`, from, width);
    from += width;
  });
  const rows = reserved.map(({ holder, bytes }, at) => make("tr", {}, make("th", { scope: "row" }, swatch(at), holder), make("td", {}, size(bytes))));
  const held = told.generations.map((generation) => make("tr", {},
    make("th", { scope: "row" }, generation.model ? `${generation.model}@${generation.version}` : `generation ${generation.generation}`),
    make("td", {}, `${size(generation.exclusive)} alone${generation.shared ? `, ${size(generation.shared)} shared` : ""}`)));
  const parked = told.parked.map(({ model, version, bytes }) => make("tr", {}, make("th", { scope: "row" }, `${model}@${version}, in host memory`), make("td", {}, size(bytes))));
  const table = (name, heads, list) => list.length ? make("table", {}, make("caption", { class: "unseen" }, name),
    make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))), make("tbody", {}, ...list)) : null;
  return [
    make("p", {}, `${told.device}: ${size(told.reserved)} of ${size(told.capacity)} promised`), bar,
    table("Reservations", ["Reserved for", "Bytes"], rows), table("Held", ["Held by", "Bytes"], [...held, ...parked]),
    make("p", { class: "muted" }, [`process ${size(told.process_resident)}`, told.abandoned ? `abandoned ${size(told.abandoned)}` : null, told.vram ? `GPU ${size(told.vram.free)} free of ${size(told.vram.total)}` : null].filter(Boolean).join(" · ")),
  ];
}

function swatch(at) {
  const svg = document.createElementNS(NAMESPACE, "svg");
  svg.setAttribute("class", "swatch");
  svg.setAttribute("viewBox", "0 0 1 1");
  svg.setAttribute("aria-hidden", "true");
  const part = document.createElementNS(NAMESPACE, "rect");
  for (const [key, value] of [["class", `m${at % 5}`], ["width", 1], ["height", 1]]) part.setAttribute(key, value);
  svg.append(part);
  return svg;
}

// --- history

export const history = (rollouts) => rollouts.map((past) => make("tr", {},
  make("td", {}, new Date(past.started_ms).toLocaleString("en-GB")), make("td", {}, past.from ?? "–"), make("td", {}, past.to),
  make("td", { class: past.phase === "settled" ? "good" : ILL.includes(past.phase) ? "bad" : "" }, past.phase.replace("_", " ")),
  make("td", {}, past.reason ?? "")));

export const figures = (told) => facts(
  ["deployments", number(told.deployments)],
  ["success rate", percent(told.success_rate)],
  ["downtime, median", time(told.downtime_ms?.median)],
  ["downtime, most", time(told.downtime_ms?.max)],
  ["rollbacks", number(told.rollbacks)],
  ["rollback, median", time(told.rollback_ms?.median)],
);

/** A plot of the server's, as elements of this page: its colours are this page's. */
export function plot(text, label) {
  const svg = new DOMParser().parseFromString(text, "image/svg+xml").documentElement;
  if (svg.nodeName !== "svg") return null;
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", label);
  return document.importNode(svg, true);
}
