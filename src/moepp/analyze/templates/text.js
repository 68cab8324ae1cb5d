// The coloured text and what one of its tokens says when pointed at, tapped or reached with the arrow keys.
const KINDS = ["ffn", "constant", "copy", "zero"];
const NAMES = { ffn: "FFN", constant: "constant", copy: "copy", zero: "zero" };
const HUES = { ffn: "ffn", constant: "constant", copy: "copy", zero: "zero", loss: "loss" };
let pinned = null;

// A model's choices in the sample, unpacked once.
function sampleOf(model) {
  if (model.unpacked) return model.unpacked;
  const { experts, sample } = model;
  const expert = unpack(sample.expert, experts.length > 255);
  const kept = sample.kept && unpack(sample.kept);
  // One more type for "nobody": a study may have taken the choice away.
  const kind = Array.from(expert, (id, at) => (id < experts.length && (!kept || kept[at]) ? experts[id] : null));
  return (model.unpacked = {
    expert, kept, kind,
    weight: unpack(sample.weight), entropy: unpack(sample.entropy), loss: unpack(sample.loss, true),
  });
}
const lossAt = (sample, token) => (sample.loss[token] === 65535 ? NaN : sample.loss[token] / 1000);

// Experts of one type that a token went through: in one layer, or the mean over all.
function active(model, token, kind, layer) {
  const { kind: kinds } = sampleOf(model);
  const [first, last] = layer === "all" ? [0, model.layers] : [Number(layer), Number(layer) + 1];
  let found = 0;
  for (let at = (token * model.layers + first) * model.slots; at < (token * model.layers + last) * model.slots; at++)
    found += kinds[at] === kind;
  return found / (last - first);
}
const valueOf = (model, token) =>
  state.by === "loss" ? lossAt(sampleOf(model), token) : active(model, token, state.by, state.layer);

// Blank and deepest colour: the whole range for one layer; for the mean over layers what nearly all tokens have, in any
// of the models, so that colours mean the same in each.
function scale() {
  const slots = Math.max(...DATA.models.map((model) => model.slots));
  if (state.by !== "loss" && state.layer !== "all") return [0, slots];
  const values = DATA.models
    .filter((model) => !model.vanilla || state.by === "loss" || DATA.models.every((other) => other.vanilla))
    .flatMap((model) => model.range[state.by]);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return high > low ? [low, high] : [0, Math.max(slots, high)];
}

function drawText() {
  const model = DATA.models[state.model];
  const text = DATA.texts[model.text];
  const { start, end } = text.documents[state.document];
  const spans = [];
  for (let token = start; token < end; token++) {
    const written = text.vocabulary[text.token[token]];
    const span = el("span", { "data-token": token, tabindex: token === start ? 0 : -1 }, written === "" ? "∅" : controls(written.replaceAll("\r\n", "\n")));
    spans.push(span);
  }
  $("text").replaceChildren(...spans);
  pinned = null;
  colourText();
  showNothing();
}

function colourText() {
  const model = DATA.models[state.model];
  const text = DATA.texts[model.text];
  const [low, high] = scale();
  let hits = 0;
  for (const span of $("text").children) {
    const token = Number(span.dataset.token);
    const written = text.vocabulary[text.token[token]];
    const value = valueOf(model, token);
    const level = Math.round(clamp((value - low) / (high - low), 0, 1) * (LEVELS - 1));
    const hit = matches(written, state.query);
    hits += hit;
    span.className = (Number.isNaN(value) ? "none" : `q${level}`) + (written.includes("\n") ? " break" : "") +
      (hit ? " hit" : "") + (pinned === token ? " pinned" : "");
  }
  $("text").classList.toggle("searching", hits > 0);
  const found = hits === 1 ? "1 occurrence" : `${count(hits)} occurrences`;
  $("hits").textContent = state.query === "" ? "" : `${found} in the text shown above`;
  legend(low, high);
}

function legend(low, high) {
  const unit = state.by === "loss" ? "nats to predict the token" : `${NAMES[state.by]} experts`;
  const where = state.by === "loss" ? "" : state.layer === "all" ? ", mean over layers" : ` in layer ${state.layer}`;
  const cut = state.by === "loss" || state.layer === "all";
  paint($("reader"), HUES[state.by]);
  const steps = Array.from({ length: LEVELS }, (_, level) => el("i", { class: `q${level}` }));
  const digits = Number.isInteger(low) && Number.isInteger(high) ? 0 : 2;
  $("legend").replaceChildren(
    el("span", {}, (cut ? "≤ " : "") + number(low, digits)), el("span", { class: "ramp", "aria-hidden": "true" }, ...steps),
    el("span", {}, (cut ? "≥ " : "") + number(high, digits)), el("span", { class: "unit" }, unit + where));
}

function showNothing() {
  $("detail").classList.remove("open");
  $("token").replaceChildren(
    el("p", { class: "caption" }, "Point at a token, tap it, or move with the arrow keys: here you see which experts " +
      "it chose in each layer. A click holds it."));
}

function show(token) {
  const model = DATA.models[state.model];
  const text = DATA.texts[model.text];
  const type = text.token[token];
  const sample = sampleOf(model);
  const rows = Array.from({ length: model.layers }, (_, layer) =>
    el("div", { class: "layer" }, el("span", { class: "caption" }, `${layer}`), ...chips(model, sample, token, layer)));
  const twins = DATA.models.filter((other) => other !== model && other.text === model.text);
  const seen = text.count[type];
  $("token").replaceChildren(
    el("div", { class: "written" }, visible(text.vocabulary[type])),
    el("dl", {},
      el("dt", {}, "FFN experts"), el("dd", {}, `${number(active(model, token, "ffn", "all"))} of ${model.slots}`),
      el("dt", {}, "Loss"), el("dd", {}, nats(lossAt(sample, token))),
      el("dt", {}, "Router entropy"), el("dd", {}, nats(entropyOf(model, sample, token))),
      el("dt", {}, "This type"), el("dd", {}, `${number(model.types.ffn[type])} FFN · ${count(seen)}×`),
      ...twins.flatMap((other) => [el("dt", {}, other.name), el("dd", {},
        `${number(active(other, token, "ffn", "all"))} FFN, loss ${number(lossAt(sampleOf(other), token))}`)])),
    el("div", { class: model.layers > 12 ? "layers dense" : "layers" },
      el("div", { class: "caption" }, "Layer: expert and its weight"), ...rows));
  $("detail").classList.add("open");
}
const nats = (value) => (Number.isNaN(value) ? "not predicted" : `${number(value)} nats`);

function entropyOf(model, sample, token) {
  const layers = Array.from({ length: model.layers }, (_, layer) => sample.entropy[token * model.layers + layer]);
  return (layers.reduce((sum, value) => sum + value, 0) / model.layers / 255) * Math.log(model.experts.length);
}

function chips(model, sample, token, layer) {
  return Array.from({ length: model.slots }, (_, slot) => {
    const at = (token * model.layers + layer) * model.slots + slot;
    const id = sample.expert[at];
    if (id >= model.experts.length) return el("span", { class: "chip dropped" }, "nobody");
    const kind = model.experts[id];
    const dropped = sample.kind[at] === null;
    return el("span", { class: dropped ? "chip dropped" : `chip ${kind}` }, `${kind === "constant" ? "const." : NAMES[kind]} ${id}`,
      el("b", {}, dropped ? "dropped" : number(sample.weight[at] / 255)));
  });
}

// Arrow keys: the neighbour, or the nearest token of the line above or below.
function neighbour(span, key) {
  if (key === "ArrowRight") return span.nextElementSibling;
  if (key === "ArrowLeft") return span.previousElementSibling;
  if (key === "Home") return span.parentNode.firstElementChild;
  if (key === "End") return span.parentNode.lastElementChild;
  if (key !== "ArrowUp" && key !== "ArrowDown") return null;
  const step = key === "ArrowDown" ? "nextElementSibling" : "previousElementSibling";
  let best = null;
  for (let other = span[step]; other; other = other[step]) {
    if (other.offsetTop === span.offsetTop) continue;
    if (best && other.offsetTop !== best.offsetTop) break;
    const nearer = !best || Math.abs(other.offsetLeft - span.offsetLeft) < Math.abs(best.offsetLeft - span.offsetLeft);
    if (nearer) best = other;
  }
  return best;
}

function listenToText() {
  const text = $("text");
  const tokenOf = (event) => event.target.closest?.("[data-token]");
  text.addEventListener("pointerover", (event) => {
    const span = tokenOf(event);
    if (span && pinned === null && event.pointerType !== "touch") show(Number(span.dataset.token));
  });
  text.addEventListener("focusin", (event) => {
    const span = tokenOf(event);
    text.querySelector("[tabindex='0']")?.setAttribute("tabindex", -1);
    span.setAttribute("tabindex", 0);
    if (pinned === null) show(Number(span.dataset.token));
  });
  text.addEventListener("click", (event) => {
    const span = tokenOf(event);
    if (!span) return;
    const token = Number(span.dataset.token);
    pinned = pinned === token ? null : token;
    show(token);
    colourText();
  });
  text.addEventListener("keydown", (event) => {
    const next = event.target.dataset.token && neighbour(event.target, event.key);
    if (!next) return;
    event.preventDefault();
    if (pinned !== null) release();
    next.focus();
  });
  $("close").addEventListener("click", release);
  document.addEventListener("keydown", (event) => event.key === "Escape" && release());
}

function release() {
  pinned = null;
  showNothing();
  colourText();
}
