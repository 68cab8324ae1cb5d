// The page's state and its switches.
const DATA = JSON.parse($("data").textContent);
const state = { model: 0, document: 0, by: "ffn", layer: "all", query: "" };

function drawModel(previous) {
  const model = DATA.models[state.model];
  const text = DATA.texts[model.text];
  if (previous === undefined || DATA.models[previous].text !== model.text) state.document = 0;
  options($("document"), text.documents.map(({ name, source }, at) => [at, name.includes(source) ? name : `${source}: ${name}`]), state.document);
  if (state.layer !== "all" && Number(state.layer) >= model.layers) state.layer = "all";
  options($("layer"), [["all", "all layers"], ...Array.from({ length: model.layers }, (_, at) => [at, `layer ${at}`])],
    state.layer);
  const source = $("source").value;
  const names = model.load.map(([name]) => name);
  options($("source"), names.map((name) => [name, name]), names.includes(source) ? source : names[0]);
  for (const card of document.querySelectorAll("[data-model]")) card.hidden = Number(card.dataset.model) !== state.model;
  $("plain").hidden = !model.vanilla;
  $("types").classList.toggle("alone", model.vanilla);
  for (const kind of KINDS.slice(1))
    document.querySelector(`input[name=by][value=${kind}]`).parentNode.hidden = !model.experts.includes(kind);
  if (model.vanilla || (state.by !== "loss" && !model.experts.includes(state.by))) setBy(model.vanilla ? "loss" : "ffn");
  if (model.vanilla && $("rank").value !== "count") $("rank").value = "loss";
  if (!model.vanilla && DATA.models[previous]?.vanilla) { setBy("ffn"); $("rank").value = "ffn"; }
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
  on("by", (value) => { state.by = value; colourText(); });
  $("document").addEventListener("change", () => { state.document = Number($("document").value); drawText(); });
  $("layer").addEventListener("change", () => { state.layer = $("layer").value; colourText(); });
  $("source").addEventListener("change", drawLoad);
  $("relation").addEventListener("change", drawCorrelation);
  $("rank").addEventListener("change", drawTypes);
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
