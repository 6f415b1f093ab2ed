// What this browser keeps: conversations, settings, the key. Without storage it lasts as long as the page.

function open(kind) {
  try {
    const box = window[kind];
    box.setItem("mull.try", "1");
    box.removeItem("mull.try");
    return box;
  } catch {
    const kept = new Map();
    return {
      getItem: (name) => kept.get(name) ?? null, setItem: (name, value) => kept.set(name, value),
      removeItem: (name) => kept.delete(name), key: (i) => [...kept.keys()][i] ?? null, get length() { return kept.size; },
    };
  }
}

const lasting = open("localStorage");
const passing = open("sessionStorage");
const CHAT = "mull.chat.";

function read(name, otherwise) {
  try {
    return JSON.parse(lasting.getItem(name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

const text = (value) => typeof value === "string";

// What was kept may be of an older page, or edited.
function sound(chat) {
  return chat && text(chat.id) && text(chat.title) && Array.isArray(chat.messages)
    && chat.messages.every((message) => message && text(message.role) && text(message.content));
}

export const chats = {
  all() {
    const found = [];
    for (let i = 0; i < lasting.length; i++) {
      const name = lasting.key(i);
      const chat = name.startsWith(CHAT) ? read(name, null) : null;
      if (sound(chat)) found.push(chat);
    }
    return found.sort((a, b) => b.changed - a.changed);
  },
  read(id) {
    const chat = read(CHAT + id, null);
    return sound(chat) ? chat : null;
  },
  create() {
    const id = Date.now().toString(36) + Math.random().toString(36).slice(2, 8);
    return { id, title: "", changed: Date.now(), messages: [] };
  },
  // False where there is no room left.
  write(chat) {
    try {
      lasting.setItem(CHAT + chat.id, JSON.stringify(chat));
      return true;
    } catch {
      return false;
    }
  },
  remove(id) {
    lasting.removeItem(CHAT + id);
  },
};

export const settings = {
  read: () => ({ model: "", system: "", temperature: "", seed: "", tokens: "", effort: "", ...read("mull.settings", {}) }),
  change(changes) {
    try {
      lasting.setItem("mull.settings", JSON.stringify({ ...settings.read(), ...changes }));
    } catch { /* no room: they last as long as the page shows them */ }
  },
};

export const key = {
  read: () => passing.getItem("mull.key") ?? lasting.getItem("mull.key") ?? "",
  remembered: () => lasting.getItem("mull.key") !== null,
  write(value, remember) {
    passing.removeItem("mull.key");
    lasting.removeItem("mull.key");
    if (value) (remember ? lasting : passing).setItem("mull.key", value);
  },
};

export const theme = {
  read: () => lasting.getItem("mull.theme"),
  write(value) {
    if (value) lasting.setItem("mull.theme", value);
    else lasting.removeItem("mull.theme");
  },
};
