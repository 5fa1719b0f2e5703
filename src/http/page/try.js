// A place to try a model: a form by its task, and the answer with the version that gave it.

import { ask, events, json, words } from "./ask.js";
import { make, number } from "./show.js";

/** Puts the form for a model's task into `place`. */
export function tryModel(place, model) {
  const form = { "image-classify": picture, generate: chat, rerank, classify: text, embed: text }[model.task];
  place.replaceChildren(...(form ? form(model) : [make("p", { class: "muted" }, "This model's task is not known yet.")]));
}

const inferPath = (model) => `/models/${encodeURIComponent(model.name)}/infer`;
const answerBox = () => make("div", { class: "answer", role: "status" });
const by = (headers) => `answered by ${headers.get("x-cutover-version") ?? "an unknown version"}`;

async function infer(box, model, options, shown) {
  box.textContent = "asking…";
  try {
    const { body, headers } = await json(inferPath(model), { kind: "model", method: "POST", ...options });
    box.replaceChildren(make("p", { class: "muted" }, by(headers)), ...shown(body.outputs));
  } catch (error) {
    box.replaceChildren(make("p", { class: "bad" }, error.message));
  }
}

const asJson = (inputs) => ({ headers: { "content-type": "application/json" }, body: JSON.stringify({ inputs }) });

/** Bars of scores, as a table. */
function bars(rows, heads = ["Label", "Score"]) {
  const scores = rows.map(([, score]) => score);
  const most = Math.max(1, ...scores);
  const least = Math.min(0, ...scores);
  return make("table", {}, make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))),
    make("tbody", {}, ...rows.map(([name, score]) => make("tr", {}, make("td", {}, name),
      make("td", {}, make("meter", { min: least, max: most, value: score, "aria-label": `${heads[1]} of ${name}` }), ` ${number(score, 4)}`)))));
}

const labels = (output) => bars(output.labels.slice(0, 10).map(({ label, score }) => [label, score]));

// --- texts

function text(model) {
  const [first, second, box] = [make("textarea", { id: "try-text", rows: 3, required: true }), make("textarea", { id: "try-other", rows: 2 }), answerBox()];
  const form = make("form", {}, make("label", { for: "try-text" }, "Text"), first,
    model.task === "embed" ? make("label", { for: "try-other" }, "Another text, to compare with (optional)") : null,
    model.task === "embed" ? second : null, make("div", { class: "row" }, make("button", {}, "Ask")));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const inputs = [first.value, second.value].filter((value, at) => at === 0 || value.trim());
    infer(box, model, asJson(inputs), (outputs) => (model.task === "embed" ? embeddings(outputs) : [labels(outputs[0])]));
  });
  return [form, box];
}

function embeddings(outputs) {
  const vectors = outputs.map((output) => output.embedding);
  const dot = (a, b) => a.reduce((sum, value, at) => sum + value * b[at], 0);
  const norm = (vector) => Math.sqrt(dot(vector, vector));
  const told = vectors.map((vector) => make("p", {}, `${vector.length} numbers, norm ${number(norm(vector), 4)}: ${vector.slice(0, 6).map((value) => value.toFixed(4)).join(", ")}…`));
  if (vectors.length === 2) told.unshift(bars([["cosine", dot(...vectors) / (norm(vectors[0]) * norm(vectors[1]))]], ["Measure", "Value"]));
  return told;
}

function rerank(model) {
  const [query, texts, box] = [make("input", { id: "try-query", type: "text", required: true }), make("textarea", { id: "try-texts", rows: 5, required: true }), answerBox()];
  const form = make("form", {}, make("label", { for: "try-query" }, "Query"), query, make("label", { for: "try-texts" }, "Texts, one a line"), texts, make("div", { class: "row" }, make("button", {}, "Order them")));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const lines = texts.value.split("\n").filter((line) => line.trim());
    infer(box, model, asJson(lines.map((line) => [query.value, line])), (outputs) => {
      const rows = outputs.map((output, at) => [lines[at], output.score ?? output.labels?.[0]?.score]);
      return [bars(rows.sort((a, b) => b[1] - a[1]), ["Text", "Score"])];
    });
  });
  return [form, box];
}

// --- pictures

const SIDE = 224;

function picture(model) {
  const box = answerBox();
  const canvas = make("canvas", { width: SIDE, height: SIDE, tabindex: 0, role: "img", "aria-label": "A place to draw. With a keyboard: arrows move the pen, Space puts it down or lifts it, Enter asks, Delete wipes; or choose a digit below." });
  const pen = canvas.getContext("2d");
  const at = { x: SIDE / 2, y: SIDE / 2, down: false };
  const wipe = () => { pen.fillStyle = "#000"; pen.fillRect(0, 0, SIDE, SIDE); };
  const line = (x, y) => {
    Object.assign(pen, { strokeStyle: "#fff", lineWidth: 18, lineCap: "round", lineJoin: "round" });
    pen.beginPath();
    pen.moveTo(at.x, at.y);
    pen.lineTo(x, y);
    pen.stroke();
    Object.assign(at, { x, y });
  };
  const send = (blob, kind) => infer(box, model, { headers: { "content-type": kind }, body: blob }, (outputs) => [labels(outputs[0])]);
  const drawn = () => shrunk(canvas).toBlob((blob) => send(blob, "image/png"), "image/png");
  const place = (event) => {
    const seen = canvas.getBoundingClientRect();
    return [(event.clientX - seen.left) * (SIDE / seen.width), (event.clientY - seen.top) * (SIDE / seen.height)];
  };
  wipe();
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    [at.x, at.y] = place(event);
    line(at.x, at.y);
  });
  canvas.addEventListener("pointermove", (event) => { if (event.buttons) line(...place(event)); });
  canvas.addEventListener("pointerup", drawn);
  canvas.addEventListener("keydown", (event) => {
    const [x, y] = { ArrowLeft: [-8, 0], ArrowRight: [8, 0], ArrowUp: [0, -8], ArrowDown: [0, 8] }[event.key] ?? [0, 0];
    const inside = (value) => Math.min(SIDE - 8, Math.max(8, value));
    if (x || y) {
      if (at.down) line(inside(at.x + x), inside(at.y + y));
      else Object.assign(at, { x: inside(at.x + x), y: inside(at.y + y) });
    } else if (event.key === " ") at.down = !at.down;
    else if (event.key === "Enter") drawn();
    else if (event.key === "Delete" || event.key === "Backspace") wipe();
    else return;
    event.preventDefault();
  });
  const button = (name, act, more = {}) => {
    const made = make("button", { type: "button", class: "quiet", ...more }, name);
    made.addEventListener("click", act);
    return made;
  };
  const digits = Array.from({ length: 10 }, (_, digit) => button(String(digit), () => {
    wipe();
    Object.assign(pen, { fillStyle: "#fff", font: "190px sans-serif", textAlign: "center", textBaseline: "alphabetic" });
    pen.fillText(String(digit), SIDE / 2, 180);
    drawn();
  }, { "aria-label": `Write a ${digit} and ask` }));
  const file = make("input", { type: "file", id: "try-file", accept: "image/png,image/jpeg" });
  file.addEventListener("change", () => { if (file.files[0]) send(file.files[0], file.files[0].type); });
  return [
    make("p", { class: "muted" }, "Draw a digit, choose one, or send a picture."), canvas,
    make("div", { class: "row keys", role: "group", "aria-label": "Digits" }, ...digits),
    make("div", { class: "row" }, button("Ask", drawn), button("Wipe", wipe)),
    make("label", { for: "try-file" }, "A PNG or JPEG file"), file, box,
  ];
}

/** At the size that the digits were learned from. */
function shrunk(canvas) {
  const small = make("canvas", { width: 28, height: 28 });
  const pen = small.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.drawImage(canvas, 0, 0, 28, 28);
  return small;
}

// --- chat

function chat(model) {
  const messages = [];
  const log = make("div", { role: "log", "aria-label": "The chat" });
  const [said, box] = [make("textarea", { id: "try-said", rows: 2, required: true }), answerBox()];
  const form = make("form", {}, make("label", { for: "try-said" }, "Message"), said, make("div", { class: "row" }, make("button", {}, "Send")));
  const turn = (who) => {
    const content = document.createTextNode("");
    log.append(make("div", { class: "turn" }, make("b", {}, who), content));
    return content;
  };
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    messages.push({ role: "user", content: said.value });
    turn("you").data = said.value;
    said.value = "";
    // Read out once, when it is whole.
    log.setAttribute("aria-busy", "true");
    const content = turn(model.name);
    try {
      const response = await ask("/v1/chat/completions", {
        kind: "model", method: "POST", headers: { "content-type": "application/json" },
        body: JSON.stringify({ model: model.name, messages, stream: true, max_tokens: 256 }),
      });
      if (!response.ok) throw new Error(await words(response));
      box.textContent = by(response.headers);
      for await (const data of events(response)) {
        if (data === "[DONE]") break;
        const part = JSON.parse(data);
        if (part.error) throw new Error(part.error.message);
        content.data += part.choices?.[0]?.delta?.content ?? "";
      }
      messages.push({ role: "assistant", content: content.data });
    } catch (error) {
      messages.pop();
      box.replaceChildren(make("p", { class: "bad" }, error.message));
    }
    log.removeAttribute("aria-busy");
  });
  return [log, form, box];
}
