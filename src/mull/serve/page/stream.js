// The server's side of the conversation: OpenAI's protocol, read from a fetch as it arrives.

export class Refusal extends Error {
  constructor(message, status = 0, wait = 0) {
    super(message);
    this.status = status;
    this.wait = wait; // seconds after which the server wants to be asked again
  }
}

// The data of server-sent events, however the bytes are cut.
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      const lines = (held + (value ?? "")).split(/\r\n|\n|\r(?=[^])/);
      held = done ? "" : lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (!line && data.length) { yield data.join("\n"); data = []; }
      }
      if (done) break;
    }
    if (data.length) yield data.join("\n");
  } finally {
    reader.cancel().catch(() => {}); // who stops reading frees the server
  }
}

async function call(path, options, key) {
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers, credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (error instanceof TypeError && key && /[^\x20-\x7e]/.test(key)) throw new Refusal("An API key has no such characters.", 401);
    throw new Refusal("The server cannot be reached.");
  }
  if (response.ok) return response;
  let told = null;
  try { told = (await response.json()).error; } catch { /* no JSON: the status alone */ }
  const message = told?.message || `The server answered with status ${response.status}.`;
  throw new Refusal(message, response.status, Number(response.headers.get("Retry-After")) || 0);
}

// What the server serves: [{id, ...}].
export async function models(key) {
  return (await (await call("v1/models", {}, key)).json()).data ?? [];
}

// Pieces of an answer: {reasoning, text, finish, usage, seed}, each where there is something new. Throws Refusal.
export async function* answer(request, key, signal) {
  const body = JSON.stringify({
    ...request, stream: true, stream_options: { include_usage: true, continuous_usage_stats: true },
  });
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body, signal };
  const response = await call("v1/chat/completions", options, key);
  let finished = false;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Refusal(chunk.error.message || "The server broke the answer off.", 500);
    const choice = chunk.choices?.[0];
    const delta = choice?.delta ?? {};
    finished ||= Boolean(choice?.finish_reason);
    yield {
      reasoning: delta.reasoning_content ?? delta.reasoning ?? "", text: delta.content ?? "",
      finish: choice?.finish_reason ?? null, usage: chunk.usage ?? null, seed: chunk.seed,
    };
  }
  if (!finished) throw new Refusal("The connection broke before the answer ended.");
}
