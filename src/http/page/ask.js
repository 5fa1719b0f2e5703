// Asking the server: one door for every request, secrets that this tab keeps, and the stream of overviews.
// It must not know what the answers are shown as.

const SECRETS = {
  admin: { key: "cutover-admin-token", title: "Admin token" },
  model: { key: "cutover-api-key", title: "API key" },
};

const by = (id) => document.getElementById(id);
let asking = null;
// Kinds that nobody wanted to say: not asked for again until somebody does.
const declined = new Set();
let wake = () => {};

/** Asks for secrets again that nobody wanted to say. */
export function unlock() {
  declined.clear();
  by("unlock").hidden = true;
  wake();
}

/** One dialog at a time; an empty answer means that nobody wants to say it. */
function askSecret(kind, refused) {
  asking ??= new Promise((done) => {
    const dialog = by("secret");
    by("secret-title").textContent = SECRETS[kind].title;
    by("secret-why").textContent = refused ? "The server does not take the one that was given." : "";
    const value = by("secret-value");
    value.value = "";
    dialog.returnValue = "no";
    dialog.addEventListener("close", () => {
      asking = null;
      done(dialog.returnValue === "yes" ? value.value.trim() : "");
    }, { once: true });
    dialog.showModal();
    value.focus();
  });
  return asking;
}

/** A request; on 401 the secret is asked for, and the request made again. `silence` times the server, and nobody who types. */
export async function ask(path, { kind = "admin", silence, ...options } = {}) {
  for (;;) {
    const secret = sessionStorage.getItem(SECRETS[kind].key);
    const headers = new Headers(options.headers);
    if (secret) headers.set("authorization", `Bearer ${secret}`);
    silence?.begin();
    const response = await fetch(path, { cache: "no-store", ...options, headers });
    if (response.status !== 401) return response;
    silence?.end();
    if (sessionStorage.getItem(SECRETS[kind].key) !== secret) continue;
    if (declined.has(kind)) return response;
    sessionStorage.removeItem(SECRETS[kind].key);
    const given = await askSecret(kind, secret !== null);
    if (!given) {
      declined.add(kind);
      by("unlock").hidden = false;
      return response;
    }
    sessionStorage.setItem(SECRETS[kind].key, given);
  }
}

/** A failed answer in words, whatever dialect it speaks. */
export async function words(response) {
  const text = await response.text();
  try {
    const error = JSON.parse(text).error;
    return (typeof error === "string" ? error : error.message) || text;
  } catch {
    return text || `status ${response.status}`;
  }
}

/** JSON, or an exception with the server's words. */
export async function json(path, options) {
  const response = await ask(path, options);
  if (!response.ok) throw new Error(await words(response));
  return { body: await response.json(), headers: response.headers };
}

export const post = (path, body, options = {}) => json(path, {
  method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), ...options,
});

/** The data of each server-sent event of a response (WHATWG HTML, "Server-sent events"; what the server writes of it). */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
      if (data.length) yield data.join("\n");
    }
  }
}

// An overview comes each second. Without one for so long what is shown is old; after the longer time the connection is taken
// for dead, whatever the system says of it: where a cable was pulled it says nothing for hours.
const STALE_MS = 4000;
const DEAD_MS = 12000;

/** Calls `stale` and then `dead`, unless it begins anew before. */
class Silence {
  #timers = [];
  #calls;

  constructor(stale, dead) {
    this.#calls = [[stale, STALE_MS], [dead, DEAD_MS]];
  }

  begin() {
    this.end();
    this.#timers = this.#calls.map(([call, ms]) => setTimeout(call, ms));
  }

  end() {
    this.#timers.forEach(clearTimeout);
  }
}

/** Overviews for ever: a connection that is lost is made again. A header is needed, so this is no EventSource. */
export async function follow(show, tell) {
  let pause = 500;
  for (;;) {
    let why = "the server ended the stream";
    const line = new AbortController();
    const seconds = (ms) => `nothing came for ${ms / 1000} s`;
    const silence = new Silence(() => tell(false, `stale: ${seconds(STALE_MS)}`), () => line.abort(seconds(DEAD_MS)));
    try {
      const response = await ask("/admin/live", { silence, signal: line.signal });
      if (!response.ok) throw new Error(await words(response));
      for await (const data of events(response)) {
        pause = 500;
        silence.begin();
        tell(true, "live");
        show(JSON.parse(data));
      }
    } catch (error) {
      why = line.signal.aborted ? line.signal.reason : error.message;
    }
    silence.end();
    tell(false, `not connected: ${why}`);
    await new Promise((done) => {
      wake = done;
      setTimeout(done, pause);
    });
    pause = Math.min(pause * 2, 8000);
  }
}
