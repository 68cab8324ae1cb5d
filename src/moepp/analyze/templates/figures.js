// What is drawn, from the numbers over all tokens.
const HUE_OF_MODEL = 5;
const lineOf = (at) => ({ name: DATA.models[at].name, hue: `m${at % HUE_OF_MODEL}`, dash: Math.floor(at / HUE_OF_MODEL) });
const models = () => DATA.models.map((model, at) => ({ ...lineOf(at), model }));

function drawLoad() {
  const model = DATA.models[state.model];
  const load = (model.load.find(([name]) => name === $("source").value) ?? model.load[0])[1];
  const most = Math.max(...load.flat());
  const percent = (value) => `${number(100 * value, 1)} %`;
  $("load").replaceChildren(matrix({
    caption: "Share of each layer's choices by expert", corner: "layer",
    head: model.experts.map((kind, id) => ({ text: id, name: `${NAMES[kind]} ${id}`, kind })),
    rows: load.map((values, layer) => ({ text: layer, values })),
    colour: (value) => viridis(value / most), write: (value) => number(100 * value, value < 0.0995 ? 1 : 0),
    say: (value, layer, id) => [`layer ${layer}, ${NAMES[model.experts[id]]} ${id}`, `${percent(value)} of the choices`,
      `${model.vanilla ? "even would be" : "tau aims at"} ${percent(model.load_aim[id])}`],
  }));
  const steps = Array.from({ length: LEVELS }, (_, level) => el("i"));
  steps.forEach((step, level) => (step.style.background = css(viridis(level / (LEVELS - 1)))));
  $("load-key").replaceChildren(el("span", {}, "0"), el("span", { class: "ramp", "aria-hidden": "true" }, ...steps),
    el("span", {}, `${percent(most)} of a layer's choices`),
    ...KINDS.filter((kind) => model.experts.includes(kind)).map((kind) =>
      el("span", { class: `kind head-${kind}` }, NAMES[kind])));
}

function drawCorrelation() {
  const model = DATA.models[state.model];
  const values = model.correlation[$("relation").value];
  $("correlation").replaceChildren(matrix({
    caption: $("relation").selectedOptions[0].text, corner: "",
    head: values.map((_, layer) => ({ text: layer, name: `layer ${layer}` })),
    rows: values.map((row, layer) => ({ text: layer, values: row })),
    colour: (value) => diverging(value ?? 0), write: (value) => number(value),
    say: (value, a, b) => [`layers ${a} and ${b}: ${number(value)}`],
  }));
}

function drawCharts() {
  const layers = Math.max(...DATA.models.map((model) => model.layers));
  const slots = Math.max(...DATA.models.map((model) => model.slots));
  const all = models();
  if (all.length > 1) for (const host of document.querySelectorAll(".keys")) host.append(key(all));
  const values = (series) => (at) => series.flatMap(({ name, points }) => {
    const point = points.find(([x]) => x === at);
    return point ? [`${all.length > 1 ? `${name}: ` : ""}${number(point[1])}`] : [];
  });
  const byLayer = all.map(({ model, ...line }) => ({
    ...line, dots: true, aim: model.vanilla ? null : model.aim, points: model.ffn_by_layer.map((value, layer) => [layer, value]),
  }));
  chart($("by-layer"), "FFN experts per token by layer", {
    x: { title: "layer", low: 0, high: Math.max(1, layers - 1), whole: true },
    y: { title: "FFN experts per token", low: 0, high: slots }, series: byLayer,
    say: (layer) => [`layer ${layer}`, ...values(byLayer)(layer)],
  });
  const names = [...new Set(DATA.models.flatMap((model) => model.ffn_by_source.map(([name]) => name)))];
  dots($("by-source"), {
    low: 0, high: slots, title: "per token", unit: "FFN experts per token",
    rows: names.map((name) => ({ name, values: all.flatMap(({ model, ...line }) => {
      const found = model.ffn_by_source.find(([source]) => source === name);
      return found ? [{ ...line, value: found[1] }] : [];
    }) })),
  });
  for (let slot = 0; slot < Math.min(2, slots); slot++) drawScores($(`scores-${slot}`), all, slot);
  drawLoss(all);
}

function drawScores(host, all, slot) {
  const series = all.filter(({ model }) => model.scores[slot]).map(({ model, ...line }) => ({
    ...line, area: true,
    points: model.scores[slot].density.map((value, bin, { length }) => [(bin + 0.5) / length, value]),
  }));
  chart(host, `Density of the top-${slot + 1} score`, {
    x: { title: `top-${slot + 1} score`, low: 0, high: 1 }, y: { title: "density", low: 0 }, series,
    say: (at) => [`score ${number(at)}`, ...series.map(({ name, points }) =>
      `${name}: ${number(points.find(([x]) => x === at)?.[1] ?? 0)}`)],
  });
  $(`moments-${slot}`).replaceChildren(...all.filter(({ model }) => model.scores[slot]).map(({ model }) =>
    el("div", {}, `${model.name}: mean ${number(model.scores[slot].mean, 3)}, variance ${number(model.scores[slot].variance, 4)}`)));
}

function drawLoss(all) {
  const shown = all.filter(({ model }) => model.loss_by_ffn.length > 1);
  const host = $("loss-by-ffn");
  if (!shown.length)
    return host.replaceChildren(el("p", { class: "caption" }, "Every token uses as many FFN experts as any other."));
  const series = shown.map(({ model, ...line }) => ({
    ...line, dots: true, points: model.loss_by_ffn.map(([ffn, loss]) => [ffn, loss]),
  }));
  const places = series.flatMap(({ points }) => points.map(([x]) => x));
  chart(host, "Mean loss by the token's FFN experts", {
    x: { title: "FFN experts of the token, mean over layers", low: Math.min(...places), high: Math.max(...places) },
    y: { title: "loss (nats)" }, series,
    say: (at) => [`${number(at)} FFN experts`, ...shown.flatMap(({ model }) => model.loss_by_ffn
      .filter(([ffn]) => ffn === at).map(([, loss, tokens]) =>
        `${model.name}: ${number(loss)} nats, ${count(tokens)} tokens`))],
  });
}
