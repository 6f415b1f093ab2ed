// The list of conversations: go to one, rename it, export it, delete it.

import { button, el } from "./view.js";

export function download(name, value) {
  const address = URL.createObjectURL(new Blob([JSON.stringify(value, null, 1)], { type: "application/json" }));
  el("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

function fileName(title) {
  return `${title.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 40) || "conversation"}.json`;
}

function asInput(item, chat, rename) {
  let done = false;
  const end = (title) => { if (!done) { done = true; rename(chat.id, title); } };
  const input = el("input", { value: chat.title, ariaLabel: "Name of the conversation", maxLength: 200 });
  input.onkeydown = (event) => {
    if (event.key === "Enter") end(input.value);
    if (event.key !== "Escape") return;
    event.preventDefault();
    end("");
  };
  input.onblur = () => end(input.value);
  item.replaceChildren(input);
  input.select();
}

export function renderList(box, chats, current, { go, rename, remove }) {
  if (box.querySelector("input")) return; // a name is being written
  box.replaceChildren(...chats.map((chat) => {
    const item = el("li", { className: chat.id === current ? "current" : "" });
    const name = el("button", { type: "button", className: "name", onclick: () => go(chat.id) }, chat.title);
    if (chat.id === current) name.ariaCurrent = "page";
    const edit = button("edit", `Rename “${chat.title}”`, () => asInput(item, chat, (id, title) => {
      item.replaceChildren();
      rename(id, title);
    }));
    const save = button("export", `Export “${chat.title}”`, () => download(fileName(chat.title), chat));
    item.append(name, el("span", { className: "actions" }, edit, save,
      button("delete", `Delete “${chat.title}”`, () => remove(chat.id))));
    return item;
  }));
}
