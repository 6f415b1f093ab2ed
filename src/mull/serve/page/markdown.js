// A model's Markdown as DOM nodes. What it wrote is only ever text in them: no markup of its own, no address but http(s).
// Formulas ($..$, \(..\), \[..\]) stay as they are written. Every pattern is bounded, so hostile text costs linear time.

const DEEPEST = 8; // lists within lists, quotes within quotes; beyond it is plain text
const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +|$)/;
const DASHES = /^ {0,3}\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

const INLINE = [
  ["code", /(`+)(?!`)([^]{0,2000}?[^`])\1(?!`)/y],
  ["math", /\$\$[^$]{1,2000}\$\$|\$(?=\S)[^$\n]{0,500}[^$\s]\$(?!\d)|\\\([^]{1,2000}?\\\)|\\\[[^]{1,2000}?\\\]/y],
  ["escape", /\\([!-/:-@[-`{-~])/y],
  ["link", /!?\[([^[\]\n]{1,500})\]\((https?:\/\/[^\s()<>]{1,2000}(?:\([^\s()<>]{0,500}\)[^\s()<>]{0,500})?)(?:\s"[^"\n]{0,200}")?\)/y],
  ["address", /https?:\/\/[^\s<>"'`]{0,1999}[^\s<>"'`.,;:!?)\]}*_~]/y],
  ["strong", /\*\*(?=\S)([^]{0,2000}?\S)\*\*|(?<!\w)__(?=\S)([^]{0,2000}?\S)__(?!\w)/y],
  ["em", /\*(?![\s*])([^*]{0,2000}?[^\s*])\*(?!\*)|(?<!\w)_(?![\s_])([^_]{0,2000}?[^\s_])_(?!\w)/y],
  ["del", /~~(?=\S)([^~]{0,2000}?\S)~~/y],
];
const STARTS = /[`$\\![h*_~]/g;

function element(tag, ...children) {
  const made = document.createElement(tag);
  made.append(...children);
  return made;
}

export function inline(text, depth = 0) {
  const nodes = [];
  let plain = "";
  let at = 0;
  const flush = () => { if (plain) nodes.push(plain); plain = ""; };
  while (at < text.length) {
    STARTS.lastIndex = at;
    const next = STARTS.exec(text);
    if (!next || depth > DEEPEST) { plain += text.slice(at); break; }
    plain += text.slice(at, next.index);
    at = next.index;
    const found = match(text, at);
    if (!found) { plain += text[at++]; continue; }
    at += found[1][0].length;
    if (found[0] === "escape") { plain += found[1][1]; continue; }
    flush();
    nodes.push(span(found[0], found[1], depth));
  }
  flush();
  return nodes;
}

function match(text, at) {
  for (const [kind, pattern] of INLINE) {
    pattern.lastIndex = at;
    const found = pattern.exec(text);
    if (found) return [kind, found];
  }
  return null;
}

function span(kind, found, depth) {
  if (kind === "code") return element("code", found[2].replace(/^ (.*\S.*) $/s, "$1"));
  if (kind === "math") { const made = element("span", found[0]); made.className = "math"; return made; }
  if (kind === "address") return link(found[0], [found[0]]);
  if (kind === "link") return link(found[2], inline(found[1], depth + 1));
  return element(kind, ...inline(found[1] ?? found[2], depth + 1));
}

function link(address, children) {
  const made = element("a", ...children);
  made.href = address;
  made.rel = "noopener noreferrer nofollow";
  made.target = "_blank";
  return made;
}

// Text as blocks {kind, source, ...}; two of the same source and kind look the same.
export function blocks(text, depth = 0) {
  const lines = text.split("\n");
  const found = [];
  for (let at = 0; at < lines.length;) {
    if (!lines[at].trim()) { at++; continue; }
    const [end, block] = next(lines, at, depth);
    found.push({ ...block, source: lines.slice(at, end).join("\n") });
    at = end;
  }
  return found;
}

function next(lines, at, depth) {
  const line = lines[at];
  let found;
  if ((found = FENCE.exec(line))) return fenced(lines, at, found);
  if ((found = HEADING.exec(line))) return [at + 1, { kind: "heading", level: found[1].length, text: found[2] }];
  if (RULE.test(line)) return [at + 1, { kind: "rule" }];
  if (depth < DEEPEST && QUOTE.test(line)) return quoted(lines, at, depth);
  if (depth < DEEPEST && ITEM.test(line)) return listed(lines, at, depth);
  if (line.includes("|") && at + 1 < lines.length && lines[at + 1].includes("-") && DASHES.test(lines[at + 1])) {
    return tabled(lines, at);
  }
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !begins(lines[end], depth)) end++;
  return [end, { kind: "paragraph", text: lines.slice(at, end).join("\n").trim() }];
}

function begins(line, depth) {
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || (depth < DEEPEST && (QUOTE.test(line) || ITEM.test(line)));
}

function fenced(lines, at, [, fence, language]) {
  let end = at + 1;
  const close = (line) => { const bare = line.trim(); return bare.length >= fence.length && bare === fence[0].repeat(bare.length); };
  while (end < lines.length && !close(lines[end])) end++;
  return [Math.min(end + 1, lines.length), { kind: "code", language: language.trim(), text: lines.slice(at + 1, end).join("\n") }];
}

function quoted(lines, at, depth) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end++;
  const inner = lines.slice(at, end).map((line) => line.replace(QUOTE, "")).join("\n");
  return [end, { kind: "quote", blocks: blocks(inner, depth + 1) }];
}

function listed(lines, at, depth) {
  const [, outer, mark] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(mark);
  const items = [];
  while (at < lines.length) {
    const found = ITEM.exec(lines[at]);
    if (!found || found[1].length > outer.length + 1 || /\d/.test(found[2]) !== ordered || RULE.test(lines[at])) break;
    const [end, item] = taken(lines, at, found);
    items.push(blocks(item, depth + 1));
    at = end;
    while (at + 1 < lines.length && !lines[at].trim() && ITEM.test(lines[at + 1])) at++; // a loose list
  }
  return [at, { kind: "list", ordered, start: ordered ? parseInt(mark, 10) : 1, items }];
}

// An item's own lines: its first, and those that follow and are indented under it, or go on with its paragraph.
function taken(lines, at, [whole, indent, mark]) {
  const inner = [lines[at].slice(whole.length)];
  let end = at + 1;
  for (; end < lines.length; end++) {
    const line = lines[end];
    const deep = line.length - line.trimStart().length;
    if (!line.trim()) {
      const after = lines[end + 1] ?? "";
      if (!after.trim() || after.length - after.trimStart().length < indent.length + 2) break;
      inner.push("");
    } else if (deep >= indent.length + 2 || (deep > indent.length && mark.length === 1)) {
      inner.push(line.slice(Math.min(deep, indent.length + mark.length + 1)));
    } else if (begins(line, 0)) break;
    else inner.push(line.trimStart());
  }
  return [end, inner.join("\n")];
}

function tabled(lines, at) {
  const cells = (line) => line.trim().replace(/^\||(?<!\\)\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
  const aligns = cells(lines[at + 1]).map((cell) => (/^:-+:$/.test(cell) ? "center" : /-:$/.test(cell) ? "right" : ""));
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) end++;
  const head = cells(lines[at]);
  const rows = lines.slice(at + 2, end).map((line) => {
    const found = cells(line);
    return [...found.slice(0, head.length - 1), found.slice(head.length - 1).join(" | ")];
  });
  return [end, { kind: "table", head, aligns, rows }];
}

const NODES = {
  heading: (block) => element(`h${Math.min(block.level + 2, 6)}`, ...inline(block.text)),
  rule: () => element("hr"),
  quote: (block) => element("blockquote", ...block.blocks.map(node)),
  paragraph: (block) => element("p", ...inline(block.text)),
  code(block) {
    const box = element("div", element("pre", element("code", block.text)));
    box.className = "code";
    box.dataset.language = block.language || "text";
    return box;
  },
  list(block) {
    const tight = block.items.every((item) => item.every((inner, i) => (inner.kind === "paragraph" ? i === 0 : inner.kind === "list")));
    const made = element(block.ordered ? "ol" : "ul", ...block.items.map((item) =>
      element("li", ...item.flatMap((inner) => (tight && inner.kind === "paragraph" ? inline(inner.text) : [node(inner)])))));
    if (block.ordered && block.start !== 1) made.start = block.start;
    return made;
  },
  table(block) {
    const row = (tag, cells) => element("tr", ...block.head.map((_, i) => {
      const cell = element(tag, ...inline(cells[i] ?? ""));
      if (block.aligns[i]) cell.className = block.aligns[i];
      return cell;
    }));
    const body = element("tbody", ...block.rows.map((cells) => row("td", cells)));
    const box = element("div", element("table", element("thead", row("th", block.head)), body));
    box.className = "table";
    return box;
  },
};

function node(block) {
  return NODES[block.kind](block);
}

const drawn = new WeakMap();

// Shows `text` in `box`. Called again with more, it leaves alone what has not changed. `made(node)` is told of new nodes.
export function render(box, text, made = () => {}) {
  const before = drawn.get(box) ?? [];
  const after = blocks(text);
  let same = 0;
  while (same < before.length && same < after.length && before[same].kind === after[same].kind && before[same].source === after[same].source) same++;
  while (box.children.length > same) box.lastElementChild.remove();
  for (const block of after.slice(same)) {
    const fresh = node(block);
    box.append(fresh);
    made(fresh);
  }
  drawn.set(box, after);
}
