// The page: which conversation is shown, what is asked, and the answer that is under way. One answer at a time.

import { AnswerTurn, trouble, userTurn } from "./view.js";
import { Refusal, answer, models } from "./stream.js";
import { chats, key, settings } from "./store.js";
import { renderList } from "./list.js";
import { openSettings, served, setUpSettings, setUpTheme } from "./settings.js";

const $ = (id) => document.getElementById(id);
const state = {
  chat: chats.create(),
  running: null, // {chat, message, turn, live, controller}
  problem: null, // {chat, message}: why a question has no answer
  editing: null, // index of the message that what is written replaces
};
const turns = new WeakMap(); // of answers: what the reader opened stays open
let stuck = true; // to the end of the conversation, which then moves with the answer

// ---- showing

function show() {
  const { messages } = state.chat;
  const running = state.running?.chat.id === state.chat.id ? state.running : null;
  const lastUser = messages.findLastIndex((message) => message.role === "user");
  const nodes = messages.map((message, i) => {
    if (message.role === "user") return userTurn(message, i === lastUser && !state.running ? () => edit(i) : null);
    const turn = turnOf(message);
    turn.offer(i === messages.length - 1 && !state.running ? () => again(i) : null);
    return turn.node;
  });
  if (!running) nodes.push(...unanswered());
  $("log").replaceChildren(...nodes);
  $("log").ariaBusy = String(Boolean(running));
  $("welcome").hidden = messages.length > 0;
  $("title").textContent = state.chat.title || "New conversation";
  document.title = state.chat.title ? `${state.chat.title} · mull` : "mull";
  $("editing").hidden = state.editing === null;
  showButton();
  list();
  if (stuck) toEnd();
}

function turnOf(message, live = null) {
  if (!turns.has(message)) turns.set(message, new AnswerTurn(message, live));
  return turns.get(message);
}

// What went wrong with the last answer, and a way to ask once more.
function unanswered() {
  const { messages } = state.chat;
  const last = messages.at(-1);
  const problem = state.problem?.chat === state.chat.id ? state.problem.message : null;
  if (last?.broken) return [trouble(last.broken, "Try again", () => again(messages.length - 1))];
  if (last?.role !== "user") return [];
  return [trouble(problem ?? "This question has no answer yet.", problem ? "Try again" : "Answer it", () => again(messages.length))];
}

function showButton() {
  const stop = Boolean(state.running);
  $("send").ariaLabel = $("send").title = stop ? "Stop" : "Send";
  $("send").classList.toggle("stop", stop);
  $("send").querySelector("use").setAttribute("href", stop ? "#i-stop" : "#i-send");
  $("send").disabled = !stop && !$("text").value.trim();
}

function list() {
  renderList($("chats"), chats.all(), state.chat.id, { go, rename, remove });
}

function toEnd() {
  stuck = true;
  $("scroll").scrollTop = $("scroll").scrollHeight;
}

function say(words) {
  $("status").textContent = words; // for those who listen
}

let toastTimer;
function toast(words, label, action) {
  clearTimeout(toastTimer);
  const close = () => { $("toast").hidden = true; };
  $("toast").replaceChildren(words);
  if (label) {
    const undo = document.createElement("button");
    undo.type = "button";
    undo.className = "link";
    undo.textContent = label;
    undo.onclick = () => { close(); action(); };
    $("toast").append(" ", undo);
  }
  $("toast").hidden = false;
  toastTimer = setTimeout(close, 8000);
}

// ---- conversations

function keep(chat, now = true) {
  if (now) chat.changed = Date.now();
  if (!chats.write(chat)) toast("This browser has no room for more; export and delete conversations.");
}

function go(id) {
  const running = state.running?.chat.id === id ? state.running.chat : null;
  state.chat = running ?? ((id && chats.read(id)) || chats.create());
  state.editing = null;
  history.replaceState(null, "", state.chat.messages.length ? `#${state.chat.id}` : location.pathname + location.search);
  stuck = true;
  closeSide();
  show();
  if (matchMedia("(hover: hover)").matches) $("text").focus();
}

function rename(id, title) {
  const chat = state.chat.id === id ? state.chat : state.running?.chat.id === id ? state.running.chat : chats.read(id);
  if (chat && title.trim()) {
    chat.title = title.trim().slice(0, 200);
    keep(chat, false);
  }
  show();
}

function remove(id) {
  const chat = chats.read(id);
  if (state.running?.chat.id === id) stop();
  chats.remove(id);
  if (state.chat.id === id) go(null);
  else show();
  if (chat) toast(`Deleted “${chat.title}”.`, "Undo", () => { keep(chat, false); go(id); });
}

// ---- asking

function edit(index) {
  state.editing = index;
  $("text").value = state.chat.messages[index].content;
  fit();
  show();
  $("text").focus();
}

function cancelEdit() {
  state.editing = null;
  $("text").value = "";
  fit();
  show();
}

function again(index) {
  if (state.running) return;
  state.chat.messages.length = Math.min(index, state.chat.messages.length);
  ask();
}

function send() {
  const text = $("text").value.trim();
  if (!text || state.running) return;
  const { chat } = state;
  if (state.editing !== null) chat.messages.length = state.editing;
  if (!chat.title) chat.title = text.replace(/\s+/g, " ").slice(0, 80);
  chat.messages.push({ role: "user", content: text });
  state.editing = null;
  $("text").value = "";
  fit();
  history.replaceState(null, "", `#${chat.id}`);
  ask();
}

function request(chat) {
  const chosen = settings.read();
  const number = (value) => (value === "" ? undefined : Number(value));
  const messages = chat.messages.map(({ role, content, reasoning }) => ({ role, content, reasoning_content: reasoning || undefined }));
  if (chosen.system.trim()) messages.unshift({ role: "system", content: chosen.system });
  return {
    model: served.pick()?.id ?? "", messages,
    reasoning_effort: served.pick()?.thinks === false ? undefined : chosen.effort || undefined,
    temperature: number(chosen.temperature), seed: number(chosen.seed), max_tokens: number(chosen.tokens),
  };
}

async function ask() {
  const { chat } = state;
  const asked = request(chat);
  const message = { role: "assistant", content: "", reasoning: "", model: asked.model, stats: {} };
  const live = { since: performance.now(), state: "waiting", first: null };
  const running = { chat, message, live, turn: turnOf(message, live), controller: new AbortController() };
  state.running = running;
  state.problem = null;
  keep(chat);
  chat.messages.push(message);
  stuck = true;
  show();
  say("The answer is under way.");
  const clock = setInterval(() => draw(running), 200);
  try {
    for await (const piece of answer(asked, key.read(), running.controller.signal)) {
      take(running, piece);
      draw(running);
    }
  } catch (error) {
    failed(running, error);
  }
  clearInterval(clock);
  ended(running);
}

// Once a frame at most.
function draw(running) {
  running.frame ??= requestAnimationFrame(() => {
    running.frame = null;
    if (state.running !== running) return;
    running.turn.show(running.live);
    if (stuck && state.chat.id === running.chat.id) toEnd();
  });
}

function take({ chat, message, live }, piece) {
  const now = performance.now();
  const { stats } = message;
  if (piece.reasoning || piece.text) live.first ??= now;
  if (piece.reasoning) {
    live.state = "thinking";
    live.thinkingSince ??= now;
    message.reasoning = (message.reasoning + piece.reasoning).trimStart();
  }
  if (piece.text) message.content = (message.content + piece.text).trimStart();
  if (live.state === "thinking") stats.thinkSeconds = (now - live.thinkingSince) / 1000;
  if (message.content && live.state !== "answering") {
    live.state = "answering";
    say("The answer begins.");
  }
  if (piece.finish) message.finish = piece.finish;
  if (Number.isSafeInteger(piece.seed)) stats.seed = piece.seed;
  if (piece.usage) {
    stats.tokens = piece.usage.completion_tokens;
    const thought = piece.usage.completion_tokens_details?.reasoning_tokens; // some servers tell it only at the end
    stats.thinking = thought || (live.state === "thinking" ? stats.tokens : stats.thinking);
    stats.prompt = piece.usage.prompt_tokens;
    stats.cached = piece.usage.prompt_tokens_details?.cached_tokens;
    if (piece.usage.cost_usd !== undefined && piece.usage.cost_usd !== null) stats.cost = piece.usage.cost_usd;
  }
  live.last = now;
  if (now - (live.kept ?? live.since) > 1000) {
    live.kept = now;
    keep(chat);
  }
}

function failed({ chat, message, controller }, error) {
  if (controller.signal.aborted) {
    message.stopped = true;
    return;
  }
  const told = error instanceof Refusal ? error : new Refusal("The answer could not be read.");
  const wait = told.wait ? ` Try again in ${told.wait} s.` : "";
  if (message.content || message.reasoning) message.broken = told.message + wait;
  state.problem = { chat: chat.id, message: told.message + wait };
  if (told.status === 401) openSettings("This server asks for an API key, or does not know the one given.");
}

function ended(running) {
  const { chat, message, live, turn } = running;
  const { stats } = message;
  stats.seconds = (performance.now() - live.since) / 1000;
  if (live.first !== null) {
    stats.first = (live.first - live.since) / 1000;
    if (stats.tokens > 1 && live.last > live.first) stats.rate = (stats.tokens - 1) / ((live.last - live.first) / 1000);
  }
  message.content = message.content.trimEnd();
  message.reasoning = message.reasoning.trimEnd();
  if ((message.stopped || state.problem) && !message.content && !message.reasoning) chat.messages.pop();
  state.running = null;
  turn.show(null);
  if (chats.read(chat.id)) keep(chat); // unless it was deleted meanwhile
  say(state.problem ? state.problem.message : message.stopped ? "Stopped." : "The answer is complete.");
  show();
}

function stop() {
  state.running?.controller.abort();
}

// ---- the page itself

function fit() {
  $("text").style.height = "auto";
  $("text").style.height = `${$("text").scrollHeight}px`;
  showButton();
}

function openSide() {
  document.body.classList.add("side");
  $("menu").ariaExpanded = "true";
  $("close-side").focus();
}

function closeSide() {
  if (!document.body.classList.contains("side")) return;
  document.body.classList.remove("side");
  $("menu").ariaExpanded = "false";
  $("menu").focus();
}

function onKey(event) {
  if (event.key !== "Escape" || $("settings").open || event.defaultPrevented) return;
  if (document.body.classList.contains("side")) closeSide();
  else if (state.running) stop();
  else if (state.editing !== null) cancelEdit();
}

async function meet() {
  try {
    const found = await models(key.read());
    served.learn(found);
    const name = served.pick()?.id;
    $("model").textContent = name ? `Model: ${name}.` : "";
    document.querySelector("#welcome .greeting").textContent = name ? `Ask ${name}` : "Ask something";
    $("effort").closest("label").hidden = served.pick()?.thinks === false;
  } catch (error) {
    document.querySelector("#welcome .greeting").textContent = "Ask something";
    if (error.status === 401) openSettings("This server asks for an API key.");
    else toast(error instanceof Refusal ? error.message : "The server's models could not be read.", "Try again", meet);
  }
}

function setUp() {
  $("composer").onsubmit = (event) => { event.preventDefault(); if (state.running) stop(); else send(); };
  $("text").oninput = fit;
  $("text").onkeydown = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  };
  $("new").onclick = () => go(null);
  $("menu").onclick = openSide;
  $("close-side").onclick = $("shade").onclick = closeSide;
  $("cancel-edit").onclick = cancelEdit;
  $("effort").value = settings.read().effort;
  $("effort").onchange = () => settings.change({ effort: $("effort").value });
  $("latest").onclick = toEnd;
  $("scroll").onscroll = () => {
    const rest = $("scroll").scrollHeight - $("scroll").scrollTop - $("scroll").clientHeight;
    stuck = rest < 40;
    $("latest").hidden = rest < 200;
  };
  document.addEventListener("keydown", onKey);
  addEventListener("storage", list); // another tab changed something
  addEventListener("pagehide", () => { if (state.running) keep(state.running.chat); });
  addEventListener("hashchange", () => go(location.hash.slice(1)));
  setUpTheme();
  setUpSettings(meet);
  go(location.hash.slice(1));
  meet();
}

setUp();
