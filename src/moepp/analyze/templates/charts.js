// Charts as SVG, drawn at the width they are shown at, and matrices as tables.
const MARGIN = { top: 8, right: 10, bottom: 38, left: 46 };
const DASHES = ["", "7 4", "2 3", "9 3 2 3"];

function ticks(low, high, wanted) {
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, at) => (first + at) * step);
}
const short = (value) => String(Number(value.toPrecision(6)));
const place = (low, high, from, to) => (value) => from + ((value - low) / (high - low)) * (to - from);

// {x: {title, low, high, whole?}, y: {title, low?, high?}, series: [{name, hue, dash, points: [[x, y]], dots?, area?, aim?}]}
function chart(host, description, { x, y, series, say }) {
  const values = series.flatMap((one) => [...one.points.map(([, value]) => value), ...(one.aim ? [one.aim] : [])]);
  const low = y.low ?? Math.min(...values), top = y.high ?? Math.max(...values);
  const high = top > low ? top + (y.high === undefined ? (top - low) * 0.06 : 0) : low + 1;
  onWidth(host, (width) => {
    const height = Math.round(clamp(width * 0.55, 190, 300));
    const [right, bottom] = [width - MARGIN.right, height - MARGIN.bottom];
    const px = place(x.low, x.high, MARGIN.left, right), py = place(low, high, bottom, MARGIN.top);
    const xs = ticks(x.low, x.high, x.whole ? Math.min(x.high - x.low || 1, width / 45) : width / 75);
    const axes = [
      ...ticks(low, high, height / 50).map((value) => svg("g", {},
        svg("line", { x1: MARGIN.left, x2: right, y1: py(value), y2: py(value), class: "grid" }),
        svg("text", { x: MARGIN.left - 6, y: py(value) + 4, "text-anchor": "end" }, short(value)))),
      ...xs.filter((value) => !x.whole || Number.isInteger(value)).map((value) =>
        svg("text", { x: px(value), y: bottom + 16, "text-anchor": "middle" }, short(value))),
      svg("text", { x: (MARGIN.left + right) / 2, y: height - 4, "text-anchor": "middle", class: "title" }, x.title),
      svg("text", { transform: `translate(11 ${(MARGIN.top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle",
        class: "title" }, y.title),
    ];
    const guide = svg("line", { y1: MARGIN.top, y2: bottom, class: "guide", visibility: "hidden" });
    return svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${description}. ${spoken(series)}`,
      onpointermove: (event) => {
        const at = nearest(series, event.offsetX, px);
        guide.setAttribute("visibility", "visible");
        guide.setAttribute("x1", px(at));
        guide.setAttribute("x2", px(at));
        tip(event, say(at));
      },
      onpointerleave: () => { guide.setAttribute("visibility", "hidden"); tip(null, null); },
    }, ...axes, guide, ...series.map((one) => draw(one, px, py, [MARGIN.left, right, bottom])));
  });
}

function draw({ points, hue, dash = 0, dots, area, aim }, px, py, [left, right, bottom]) {
  const path = points.map(([x, y], at) => `${at ? "L" : "M"}${px(x).toFixed(1)} ${py(y).toFixed(1)}`).join("");
  const group = svg("g", { class: `line-${hue}` });
  if (area && points.length)
    group.append(svg("path", { d: `${path}L${px(points.at(-1)[0])} ${bottom}L${px(points[0][0])} ${bottom}Z`, class: "area" }));
  group.append(svg("path", { d: path, class: "curve", "stroke-dasharray": DASHES[dash % DASHES.length] }));
  for (const [x, y] of dots ? points : []) group.append(svg("circle", { cx: px(x), cy: py(y), r: 3.5 }));
  if (aim !== undefined && aim !== null)
    group.append(svg("path", { d: `M${left} ${py(aim)}H${right}`, class: "aim" }));
  return group;
}

function nearest(series, offset, px) {
  const places = series.flatMap(({ points }) => points.map(([x]) => x));
  return places.reduce((best, x) => (Math.abs(px(x) - offset) < Math.abs(px(best) - offset) ? x : best), places[0]);
}
const spoken = (series) => series.map(({ name, points }) => points.length > 40 ? name
  : `${name}: ${points.map(([x, y]) => `${short(x)}: ${number(y)}`).join(", ")}`).join(". ");

// Rows of groups with one dot per model: names of any length stay readable on a phone.
function dots(host, { rows, low, high, title, unit }) {
  const place = (value) => `${clamp((value - low) / (high - low), 0, 1) * 100}%`;
  host.replaceChildren(
    ...rows.map(({ name, values }) => el("div", { class: "dots" }, el("span", {}, name),
      svg("svg", { role: "img", class: "track",
        "aria-label": `${name}: ${values.map((one) => `${one.name}: ${number(one.value)} ${unit}`).join(", ")}`,
        onpointermove: (event) => tip(event, [name, ...values.map((one) => `${one.name}: ${number(one.value)}`)]),
        onpointerleave: () => tip(null, null) },
        svg("line", { x1: 0, x2: "100%", y1: "50%", y2: "50%", class: "grid" }),
        ...values.map((one) => svg("g", { class: `line-${one.hue}` },
          svg("circle", { cx: place(one.value), cy: "50%", r: 5 })))),
      el("span", { class: "values" }, values.length > 3 ? "" : values.map((one) => number(one.value)).join(" · ")))),
    el("div", { class: "dots caption" }, el("span", {}), el("span", { class: "ends" }, el("span", {}, short(low)),
      el("span", {}, title), el("span", {}, short(high))), el("span", {})));
}

// A table whose cells are coloured by value; readable as a table, too.
function matrix({ caption, corner, head, rows, colour, write, say }) {
  const cell = (value, row, column) => {
    const shade = colour(value);
    const node = el("td", { onpointermove: (event) => tip(event, say(value, row, column)),
      onpointerleave: () => tip(null, null) }, write(value));
    node.style.background = css(shade);
    node.style.color = inkOn(shade);
    return node;
  };
  return el("table", { class: `matrix${head.length > 14 ? " small" : ""}${head.length > 32 ? " tiny" : ""}` },
    el("caption", { class: "hidden" }, caption),
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, corner),
      ...head.map(({ text, name, kind }) => el("th", { scope: "col", class: kind ? `head-${kind}` : null, "aria-label": name }, text)))),
    el("tbody", {}, ...rows.map(({ text, values }, row) => el("tr", {}, el("th", { scope: "row" }, text),
      ...values.map((value, column) => cell(value, row, column))))));
}

function key(names) {
  return el("div", { class: "key" }, ...names.map(({ name, hue, dash = 0 }) =>
    el("span", {}, svg("svg", { viewBox: "0 0 26 8", class: `line-${hue}`, "aria-hidden": "true" },
      svg("path", { d: "M0 4H26", class: "curve", "stroke-dasharray": DASHES[dash % DASHES.length] })), name)));
}
