// Token types: the search, and the tables of those that use the most and the fewest experts.
const RANKS = {
  ffn: "FFN experts", loss: "loss", count: "count", constant: "constant experts", copy: "copy experts",
  zero: "zero experts",
};
const SHOWN = 12;
const FOUND = 60;

// In any case; white space is found as itself and by its sign.
const matches = (written, query) =>
  query !== "" && visible(written).toLowerCase().includes(visible(query).toLowerCase());

function drawTypes() {
  const model = DATA.models[state.model];
  const text = DATA.texts[model.text];
  const rank = $("rank").value;
  const value = (type) => (rank === "count" ? text.count : model.types[rank])[type];
  const all = text.vocabulary.map((_, type) => type).filter((type) => value(type) !== null);
  const order = (types) => types.sort((a, b) => value(b) - value(a) || text.count[b] - text.count[a]);
  const name = RANKS[rank];
  if (state.query !== "") {
    const found = order(all.filter((type) => matches(text.vocabulary[type], state.query)));
    const more = found.length > FOUND ? `, the ${FOUND} with the most ${name} shown` : "";
    const title = found.length === 1 ? "1 token type" : `${count(found.length)} token types`;
    $("types").replaceChildren(
      found.length ? typeTable(model, text, found.slice(0, FOUND), title + more)
                   : el("p", {}, `No token type contains “${state.query}”.`));
    return;
  }
  // A rare token's mean says little: the tables without a search ask for some occurrences.
  const ranked = order(all.filter((type) => text.count[type] >= model.least));
  const half = Math.min(SHOWN, Math.ceil(ranked.length / 2));
  const least = ranked.slice(half).slice(-SHOWN).reverse();
  $("types").replaceChildren(
    typeTable(model, text, ranked.slice(0, half), `Most ${name}`),
    ...(least.length ? [typeTable(model, text, least, rank === "count" ? "Lowest count" : `Least ${name}`)] : []));
}

function typeTable(model, text, types, title) {
  const head = ["token", "experts by type", "FFN", "const.", "copy", "zero", "loss", "count"];
  const classes = ["", "wide", "", "more", "more", "more", "", ""];
  return el("table", { class: "types" },
    el("caption", {}, title),
    el("thead", {}, el("tr", {}, ...head.map((name, at) => el("th", { scope: "col", class: classes[at] }, name)))),
    el("tbody", {}, ...types.map((type) => typeRow(model, text, type))));
}

function typeRow(model, text, type) {
  const { types } = model;
  const written = text.vocabulary[type];
  const error = types.low[type] === null ? null : (types.high[type] - types.low[type]) / 2;
  const cells = ["constant", "copy", "zero"].map((kind) => el("td", { class: "more" }, number(types[kind][type])));
  return el("tr", {},
    el("td", {}, el("button", { class: "written", onclick: () => search(written), "aria-label": `Find ${written}` },
      visible(written))),
    el("td", { class: "wide" }, share(model, type)),
    el("td", {}, number(types.ffn[type]), el("small", {}, error === null ? "" : ` ±${number(error)}`)),
    ...cells, el("td", {}, number(types.loss[type])), el("td", {}, count(text.count[type])));
}

// Where a token's K choices go, as one bar; the line at the end of the FFN part is its 95 % confidence interval.
function share(model, type) {
  let x = 0;
  const unit = 100 / model.slots;
  const parts = KINDS.map((kind) => {
    const width = model.types[kind][type] * unit;
    const part = svg("rect", { x, y: 2, width, height: 12, class: `fill-${kind}` });
    x += width;
    return part;
  });
  const [low, high] = [model.types.low[type] * unit, model.types.high[type] * unit];
  const line = svg("path", { d: `M${low} 8H${high}M${low} 5V11M${high} 5V11`, class: "error" });
  const label = KINDS.map((kind) => `${number(model.types[kind][type])} ${NAMES[kind]}`).join(", ");
  return svg("svg", { viewBox: "0 0 100 16", preserveAspectRatio: "none", class: "share", role: "img", "aria-label": label },
    ...parts, high > low ? line : null);
}

function search(written) {
  $("search").value = visible(written);
  setQuery();
  if (!$("text").querySelector(".hit")) turnTo(written);
  $("text").querySelector(".hit")?.scrollIntoView({ block: "center" });
}

// To the first document of the sample that has the token, if there is one.
function turnTo(written) {
  const text = DATA.texts[DATA.models[state.model].text];
  const at = text.token.findIndex((type) => text.vocabulary[type] === written);
  if (at < 0) return;
  state.document = text.documents.findIndex(({ end }) => at < end);
  $("document").value = state.document;
  drawText();
}

function setQuery() {
  state.query = $("search").value;
  drawTypes();
  colourText();
}
