// Elements, numbers and tips. Text always enters the page as text, never as markup.
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}
const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

const number = (value, digits = 2) =>
  value === null || Number.isNaN(value)
    ? "–"
    : value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const count = (value) => value.toLocaleString("en");
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

// White space as signs: "␣return" and "↵" say more than a gap.
const controls = (text) =>
  text.replace(/[\x00-\x08\x0b-\x1f]/g, (sign) => String.fromCharCode(0x2400 + sign.charCodeAt()));
const visible = (text) =>
  text === "" ? "(empty)" : controls(text).replaceAll(" ", "␣").replaceAll("\t", "⇥").replaceAll("\n", "↵");

function unpack(base64, wide = false) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  return wide ? new Uint16Array(bytes.buffer) : bytes;
}

function options(select, entries, chosen) {
  select.replaceChildren(...entries.map(([value, text]) => el("option", { value }, text)));
  select.value = chosen;
}

// One small box follows the pointer over figures.
function tip(event, lines) {
  const box = $("tip");
  box.hidden = lines === null;
  if (lines === null) return;
  box.replaceChildren(...lines.map((line) => el("div", {}, line)));
  const x = clamp(event.clientX + 14, 8, window.innerWidth - box.offsetWidth - 8);
  const below = event.clientY + 18 + box.offsetHeight < window.innerHeight;
  box.style.left = `${x}px`;
  box.style.top = `${below ? event.clientY + 18 : event.clientY - box.offsetHeight - 12}px`;
}

// Draws now, and again whenever the width or the theme is another: figures keep their type size on every screen.
const drawings = [];
function onWidth(host, draw) {
  let width = 0;
  const again = (force) => {
    if (!host.clientWidth || (!force && host.clientWidth === width)) return;
    width = host.clientWidth;
    host.replaceChildren(draw(width));
  };
  new ResizeObserver(() => again(false)).observe(host);
  drawings.push(again);
}
const redraw = () => drawings.forEach((again) => again(true));
