// Turns of a conversation as DOM nodes. What people and models wrote goes in as text.

import { render } from "./markdown.js";

export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const use = document.createElementNS(space, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

export function button(name, label, onclick) {
  return el("button", { type: "button", className: "icon", title: label, ariaLabel: label, onclick }, icon(name));
}

async function toClipboard(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const box = el("textarea", { value: text, className: "unseen" }); // plain http on another machine has no clipboard
  document.body.append(box);
  box.select();
  document.execCommand("copy");
  box.remove();
}

export function copyButton(label, text) {
  const made = button("copy", label, async () => {
    try {
      await toClipboard(text());
    } catch { return; }
    made.replaceChildren(icon("done"));
    made.ariaLabel = made.title = "Copied";
    setTimeout(() => { made.replaceChildren(icon("copy")); made.ariaLabel = made.title = label; }, 1500);
  });
  return made;
}

export const seconds = (value) => (value < 9.95 ? `${value.toFixed(1)} s` : value < 120 ? `${Math.round(value)} s` : `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`);
export const tokens = (count) => `${count.toLocaleString("en")} token${count === 1 ? "" : "s"}`;
export const dollars = (value) => `$${value >= 0.1 || value === 0 ? value.toFixed(2) : value.toLocaleString("en", { maximumSignificantDigits: 2, maximumFractionDigits: 12 })}`;

export function userTurn(message, onEdit) {
  const tools = el("div", { className: "actions" }, copyButton("Copy the message", () => message.content));
  if (onEdit) tools.prepend(button("edit", "Edit the message", onEdit));
  return el("article", { className: "turn user", ariaLabel: "You" }, el("div", { className: "said" }, message.content), tools);
}

// A code block gets its language and a button to copy it.
function dress(node) {
  for (const box of [node, ...node.querySelectorAll(".code")].filter((one) => one.classList.contains("code"))) {
    const head = el("div", { className: "head" }, el("span", {}, box.dataset.language));
    head.append(copyButton("Copy the code", () => box.querySelector("code").textContent));
    box.prepend(head);
  }
}

function whatItTook({ stats = {}, stopped, finish }) {
  const said = [];
  if (stopped) said.push("stopped");
  else if (finish === "length") said.push("cut off at its longest");
  if (stats.tokens) said.push(tokens(stats.tokens));
  if (stats.rate) said.push(`${stats.rate < 9.95 ? stats.rate.toFixed(1) : Math.round(stats.rate)} tokens/s`);
  if (stats.seconds) said.push(seconds(stats.seconds));
  if (stats.cost !== undefined) said.push(dollars(stats.cost));
  return said.join(" · ");
}

function details({ stats = {}, model }) {
  const said = model ? [`Answered by ${model}`] : [];
  if (stats.prompt) said.push(`${tokens(stats.prompt)} of prompt${stats.cached ? `, ${stats.cached.toLocaleString("en")} of them cached` : ""}`);
  if (stats.first) said.push(`first token after ${seconds(stats.first)}`);
  if (stats.seed !== undefined) said.push(`seed ${stats.seed}`);
  return said.join("; ");
}

// An answer, growing or grown. `show` draws what the message now holds.
export class AnswerTurn {
  constructor(message, live = null) {
    this.message = message;
    this.shown = 0; // characters of the thoughts
    this.summary = el("summary", {});
    this.thoughts = el("div", { className: "thoughts", tabIndex: 0, role: "region", ariaLabel: "Thoughts" });
    this.thought = el("details", { className: "thought", hidden: true }, this.summary, this.thoughts);
    this.summary.onclick = () => { this.touched = true; };
    this.waiting = el("p", { className: "waiting", hidden: true }, el("span", { className: "pulse" }), el("span", {}));
    this.text = el("div", { className: "said" });
    this.took = el("span", { className: "took" });
    this.tools = el("div", { className: "actions", hidden: true }, copyButton("Copy the answer", () => message.content), this.took);
    this.again = button("again", "Answer again", () => {});
    this.tools.prepend(this.again);
    this.node = el("article", { className: "turn answer", ariaLabel: "Answer" }, this.thought, this.waiting, this.text, this.tools);
    this.show(live);
  }

  // Only the last answer can be drawn again.
  offer(onAgain) {
    this.again.hidden = !onAgain;
    this.again.onclick = onAgain;
  }

  // `live` is {since, state} while the answer comes: waiting, thinking or answering.
  show(live) {
    const { message } = this;
    this.waiting.hidden = live?.state !== "waiting";
    this.waiting.lastChild.textContent = live && performance.now() - live.since > 1500 ? `Reading the question, ${seconds((performance.now() - live.since) / 1000)}` : "";
    this.showThought(live);
    render(this.text, message.content, dress);
    this.tools.hidden = Boolean(live);
    this.node.classList.toggle("live", Boolean(live));
    if (!live) {
      this.took.textContent = whatItTook(message);
      this.took.title = details(message);
    }
  }

  showThought(live) {
    const { reasoning, content, stats = {} } = this.message;
    this.thought.hidden = !reasoning;
    if (!reasoning) return;
    const thinking = live?.state === "thinking";
    const took = [stats.thinkSeconds === undefined ? "" : seconds(stats.thinkSeconds), stats.thinking ? tokens(stats.thinking) : ""];
    const said = [thinking ? "Thinking" : "Thought", ...(took[0] ? [thinking ? took[0] : `for ${took[0]}`] : [])].join(" ");
    this.summary.textContent = [said, took[1]].filter(Boolean).join(" · ");
    this.thought.classList.toggle("live", thinking);
    if (!this.touched) this.thought.open = thinking || (!live && !content);
    const low = this.thoughts.scrollHeight - this.thoughts.scrollTop - this.thoughts.clientHeight < 30;
    if (live) this.thoughts.append(reasoning.slice(this.shown));
    else this.thoughts.textContent = reasoning;
    this.shown = reasoning.length;
    if (low && thinking) this.thoughts.scrollTop = this.thoughts.scrollHeight;
  }
}

export function trouble(message, label, onRetry) {
  return el("div", { className: "trouble", role: "alert" }, el("p", {}, message),
    el("button", { type: "button", className: "chief", onclick: onRetry }, label));
}
