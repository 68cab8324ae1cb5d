// The page's state and its switches.
const DATA = JSON.parse($("data").textContent);
const state = { model: 0, document: 0, by: "ffn", layer: "all", query: "" };
// What was chosen, which is kept for the next model where this one cannot show it.
const wish = { by: "ffn", layer: "all", rank: "ffn", relation: "ffn", source: "" };

function drawModel(previous) {
  const model = DATA.models[state.model];
  const text = DATA.texts[model.text];
  if (previous === undefined || DATA.models[previous].text !== model.text) state.document = 0;
  options($("document"), text.documents.map(({ name, source }, at) => [at, name.includes(source) ? name : `${source}: ${name}`]), state.document);
  state.layer = wish.layer !== "all" && Number(wish.layer) >= model.layers ? "all" : wish.layer;
  options($("layer"), [["all", "all layers"], ...Array.from({ length: model.layers }, (_, at) => [at, `layer ${at}`])],
    state.layer);
  const names = model.load.map(([name]) => name);
  options($("source"), names.map((name) => [name, name]), names.includes(wish.source) ? wish.source : names[0]);
  for (const card of document.querySelectorAll("[data-model]")) card.hidden = Number(card.dataset.model) !== state.model;
  $("plain").hidden = !model.vanilla;
  $("types").classList.toggle("alone", model.vanilla);
  for (const kind of KINDS.slice(1))
    document.querySelector(`input[name=by][value=${kind}]`).parentNode.hidden = !model.experts.includes(kind);
  setBy(model.vanilla ? "loss" : wish.by === "loss" || model.experts.includes(wish.by) ? wish.by : "ffn");
  $("rank").value = model.vanilla && wish.rank !== "count" ? "loss" : wish.rank;
  $("relation").value = model.vanilla ? "first" : wish.relation;
  $("relation").disabled = model.vanilla;
  drawText();
  drawTypes();
  drawLoad();
  drawCorrelation();
}

function setBy(by) {
  state.by = by;
  document.querySelector(`input[name=by][value=${by}]`).checked = true;
}

function start() {
  options($("rank"), Object.entries(RANKS), "ffn");
  listenToText();
  on("model", (value) => {
    const previous = state.model;
    state.model = Number(value);
    drawModel(previous);
  });
  on("by", (value) => { state.by = wish.by = value; colourText(); });
  $("document").addEventListener("change", () => { state.document = Number($("document").value); drawText(); });
  $("layer").addEventListener("change", () => { state.layer = wish.layer = $("layer").value; colourText(); });
  const redraws = { source: drawLoad, relation: drawCorrelation, rank: drawTypes };
  for (const [name, draw] of Object.entries(redraws))
    $(name).addEventListener("change", () => { wish[name] = $(name).value; draw(); });
  $("search").addEventListener("input", setQuery);
  $("theme").addEventListener("click", () => setTheme(!isDark()));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
  drawModel();
  drawCharts();
  setTheme(null);
}
function on(name, act) {
  for (const input of document.querySelectorAll(`input[name=${name}]`))
    input.addEventListener("change", () => act(input.value));
}

const isDark = () => luminance(resolve("paper")) < 0.5;
function setTheme(dark) {
  if (dark !== null) document.documentElement.style.colorScheme = dark ? "dark" : "light";
  recolour();
}
function recolour() {
  $("theme").textContent = isDark() ? "Light" : "Dark";
  colourText();
  drawLoad();
  drawCorrelation();
  redraw();
}

start();
