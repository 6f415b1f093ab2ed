// The settings' dialog, the theme, and which models the server has.

import { chats, key, settings, theme } from "./store.js";
import { download } from "./list.js";
import { el } from "./view.js";

const $ = (id) => document.getElementById(id);
const FIELDS = { "set-model": "model", "set-system": "system", "set-temperature": "temperature", "set-seed": "seed", "set-tokens": "tokens" };

export const served = {
  models: [], // as the server lists them
  learn(models) {
    served.models = models;
    $("set-model").replaceChildren(...models.map((one) => el("option", { value: one.id }, one.id)));
    $("set-model").value = served.pick()?.id ?? "";
  },
  // The model to ask: the chosen one where the server has it, or else its first.
  pick() {
    const chosen = settings.read().model;
    return served.models.find((one) => one.id === chosen) ?? served.models[0];
  },
};

export function openSettings(why = "") {
  const kept = settings.read();
  for (const [id, name] of Object.entries(FIELDS)) $(id).value = name === "model" ? (served.pick()?.id ?? "") : kept[name];
  $("set-key").value = key.read();
  $("set-remember").checked = key.remembered();
  $("settings-why").textContent = why;
  $("settings-why").hidden = !why;
  if (!$("settings").open) $("settings").showModal();
  if (why) $("set-key").focus();
}

// True where something changed that the server is to be asked about again.
function store() {
  const before = [key.read(), settings.read().model];
  settings.change(Object.fromEntries(Object.entries(FIELDS).map(([id, name]) => [name, $(id).value])));
  key.write($("set-key").value.trim(), $("set-remember").checked);
  return key.read() !== before[0] || settings.read().model !== before[1];
}

export function setUpSettings(onChange) {
  $("open-settings").onclick = () => openSettings();
  $("close-settings").onclick = () => $("fields").requestSubmit();
  $("settings").onclick = (event) => { if (event.target === $("settings")) $("fields").requestSubmit(); };
  $("fields").onsubmit = (event) => { event.preventDefault(); $("settings").close(); };
  $("settings").onclose = () => { if (store()) onChange(); };
  $("export-all").onclick = () => download("conversations.json", chats.all());
}

export function setUpTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const now = () => theme.read() ?? (dark.matches ? "dark" : "light");
  const label = () => { $("theme").ariaLabel = $("theme").title = now() === "dark" ? "Light colours" : "Dark colours"; };
  $("theme").onclick = () => {
    const next = now() === "dark" ? "light" : "dark";
    const system = next === (dark.matches ? "dark" : "light"); // then follow the system again
    theme.write(system ? "" : next);
    if (system) delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    label();
  };
  dark.addEventListener("change", label);
  label();
}
