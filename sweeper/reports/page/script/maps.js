// The figures: the grid, the curves, and the maps of one cell.
// the grid
const MOST_ACROSS = 16; // places in a row of the grid that have room for a word
const GRID_FIGURES = {
  end: "verdict",
  rel_l2: "rel. L2",
  max_abs: "max |Δ|",
  unequal: "share of elements that differ",
  distance: "1 − cosine of the worst embedding",
  kl: "KL a token",
};

function gridRows(x, y, key) {
  const groups = new Map();
  const [xs, ys] = [cells.axes[x], cells.axes[y]];
  for (let row = 0; row < count; row++) {
    const place = `${xs.of[row]} ${ys.of[row]}`;
    if (!groups.has(place)) groups.set(place, []);
    groups.get(place).push(row);
  }
  const rows = [];
  ys.values.forEach((yValue, j) => xs.values.forEach((xValue, i) => {
    const members = groups.get(`${i} ${j}`) ?? [];
    if (!members.length) return;
    // the rows come worst first, what could not run last
    const worth = (row) => { const value = asNumber(cells[key][row]); return Number.isNaN(value) ? Infinity : value; };
    const known = key === "end" ? members : members.filter((row) => cells[key][row] !== null);
    const worst = key === "end" ? members[0] : known.reduce((a, b) => (worth(b) > worth(a) ? b : a), known[0]);
    const ends = [...new Set(members.map(endOf))].map((end) => `${members.filter((row) => endOf(row) === end).length} ${end}`);
    const value = worst === undefined || key === "end" ? null : asNumber(cells[key][worst]);
    if (worst === undefined) return;
    const figure = key === "end" ? "" : `${GRID_FIGURES[key]} ${number(value)}, the worst: ${cells.id[worst].slice(0, data.letters)} ${labelOf(worst)}`;
    const said = [`${x}=${xValue}, ${y}=${yValue}`, ends.join(", "), figure].filter(Boolean).join("\n");
    const same = ends.length === 1 ? "" : ` ${members.filter((row) => endOf(row) === endOf(worst)).length}/${members.length}`;
    rows.push({ x: xValue, y: yValue, key: members.length, value, end: endOf(worst), mixed: same, said });
  }));
  return rows;
}

function grid() {
  const [x, y, key] = ["grid-x", "grid-y", "grid-figure"].map((id) => byId(id).value);
  const clicked = (datum) => {
    table.axes = { [x]: datum.x, [y]: datum.y };
    showCells();
    byId("cells-heading").scrollIntoView({ behavior: "smooth" });
  };
  const given = gridRows(x, y, key);
  const readable = cells.axes[x].values.length <= MOST_ACROSS;
  byId("grid").style.minWidth = `${5 + (readable ? 7 : 1.2) * cells.axes[x].values.length}rem`;
  const wide = { size: { height: { step: readable ? 34 : 20 } }, x: { title: x, axis: { labelAngle: readable ? 0 : -90, labelOverlap: false, orient: "top" } }, yTitle: y, clicked };
  if (key !== "end") return { ...heated(given, readable), ...wide };
  const rows = given.map((one) => {
    const colour = theme().ends[one.end];
    return { ...one, colour, text: readable ? `${one.end}${one.mixed}` : "", ink: contrast(colour) };
  });
  return { spec: "named", rows, ...wide };
}

function startGrid() {
  if (!byId("grid")) return;
  for (const [key, title] of Object.entries(GRID_FIGURES))
    if (key === "end" || cells[key].some((value) => value !== null))
      byId("grid-figure").append(element("option", { value: key }, title));
  const drawn = new Figure("grid", grid);
  for (const id of ["grid-x", "grid-y", "grid-figure"]) byId(id).addEventListener("change", () => drawn.draw());
  drawn.drawSoon();
}

// layer by layer
const LEGEND_LABELS = 2; // of cells that share a curve, in a file
const hidden = new Set();

function curves() {
  const key = byId("curves-figure").value;
  const shown = data.curves.filter((_, i) => !hidden.has(i));
  const values = shown.flatMap((curve) => curve[key].map(Number)).filter((value) => Number.isFinite(value) && value > 0);
  const low = Math.floor(Math.log10(values.length ? Math.min(...values) : 1));
  const high = Math.max(Math.ceil(Math.log10(values.length ? Math.max(...values) : 1)), low + 1);
  const floor = 10 ** (low - 0.06 * (high - low + 1) - 0.2);
  const ceiling = 10 ** high;
  const step = Math.ceil((high - low) / 8);
  const ticks = [floor];
  for (let exponent = low; exponent <= high; exponent += step) ticks.push(10 ** exponent);
  const rows = [];
  data.curves.map((curve, i) => [curve, i]).reverse().forEach(([curve, i]) => {
    if (hidden.has(i)) return;
    const own = curve.style !== null;
    const palette = theme().curves;
    const colour = own ? palette[curve.style % palette.length] : theme().ends[curve.end] ?? theme().soft;
    curve[key].map(Number).forEach((value, layer) => {
      const bad = !Number.isFinite(value);
      rows.push({
        curve: i, layer, bad, colour, key: i,
        height: bad ? ceiling : value === 0 ? floor : value,
        dashed: own && curve.style >= palette.length,
        opacity: own ? 1 : 0.75,
        said: `layer ${layer}: ${bad ? "not finite" : number(value)}\n${curve.labels.join("\n")}`,
      });
    });
  });
  const most = rows.filter((row) => !row.bad).sort((a, b) => b.height - a.height)[0];
  return {
    spec: "curves",
    rows,
    params: { floor, ceiling, ticks },
    x: { axis: { grid: false, tickMinStep: 1, format: "d" } },
    legend: legendOf(rows),
    says: most ? `largest: ${most.said.replace("\n", ", ").replaceAll("\n", " = ")}` : "",
  };
}

// The colours of a file's curves, whose legend on the page is a list beside the drawing.
function legendOf(rows) {
  const shown = [...new Set(rows.map((row) => row.curve))].sort((a, b) => a - b);
  const labels = shown.map((i) => {
    const all = data.curves[i].labels;
    return all.slice(0, LEGEND_LABELS).join(" = ") + (all.length > LEGEND_LABELS ? ` and ${all.length - LEGEND_LABELS} more` : "");
  });
  const range = shown.map((i) => rows.find((row) => row.curve === i).colour);
  const labelExpr = `${JSON.stringify(labels)}[datum.index]`;
  const legend = { orient: "bottom", columns: 1, title: null, labelLimit: 0, labelExpr, symbolOpacity: 1 };
  return { field: "curve", type: "nominal", scale: { domain: shown, range }, legend };
}

function startCurves() {
  if (!byId("curves")) return;
  const drawn = new Figure("curves", curves);
  const items = [...byId("curves-key").children];
  const show = () => {
    items.forEach((item, i) => item.firstElementChild.setAttribute("aria-pressed", String(!hidden.has(i))));
    drawn.draw();
  };
  items.forEach((item, i) => {
    const toggle = element("button", { type: "button", "aria-pressed": "true" }, ...item.childNodes);
    toggle.addEventListener("click", () => { if (!hidden.delete(i)) hidden.add(i); show(); });
    const light = (which) => drawn.view?.signal("lit", which).runAsync();
    toggle.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && !hidden.has(i) && light(i));
    toggle.addEventListener("pointerleave", () => light(null));
    item.replaceChildren(toggle);
  });
  byId("curves-none").addEventListener("click", () => { items.forEach((_, i) => hidden.add(i)); show(); });
  byId("curves-every").addEventListener("click", () => { hidden.clear(); show(); });
  byId("curves-figure").addEventListener("change", () => drawn.draw());
  drawn.drawSoon();
}

// inside a cell
const mapOf = () => data.maps.maps[data.maps.of[byId("inside-cell").selectedIndex][1]];
const MODULE_FIGURES = { rel_l2: "rel. L2", max_abs: "max |Δ|", grown: "times the layer before" };

function moduleValue(map, key, kind, layer) {
  if (key !== "grown") return map[key][kind][layer];
  const [now, before] = [map.rel_l2[kind][layer], layer ? map.rel_l2[kind][layer - 1] : null];
  return now === null || !before ? (now === null ? null : 0) : now / before;
}

function modules() {
  const map = mapOf();
  const key = byId("modules-figure").value;
  const given = [];
  map.kinds.forEach((kind, i) => map.layers.forEach((layer, j) => {
    const value = moduleValue(map, key, i, j);
    if (value === null) return;
    const name = kind === "layer" ? "the whole layer" : kind;
    const worth = Number(value) === 0 && key !== "grown" ? "equal" : `${MODULE_FIGURES[key]} ${number(value)}`;
    given.push({ x: layer, y: name, key: kind, value: Number(value), said: `layer ${layer}, ${name}\n${worth}` });
  }));
  const largest = given.reduce((a, b) => (b.value > a.value || Number.isNaN(b.value) ? b : a), given[0]);
  const first = map.layers.flatMap((_, j) => map.kinds.map((kind, i) => [i, j])).find(([i, j]) => map.rel_l2[i][j] || map.max_abs[i][j]);
  const says = (first ? `first to differ: layer ${map.layers[first[1]]}, ${map.kinds[first[0]]}; ` : "") + `largest: ${largest.said.replace("\n", ", ")}`;
  return { ...heated(given, false), x: { title: "layer", axis: { labelAngle: 0, labelOverlap: true } }, says };
}

function tokens() {
  const map = mapOf();
  const shown = map.texts?.[byId("tokens-text").selectedIndex];
  byId("tokens-words").textContent = shown ? shown.words ?? "the record has the token ids of this text, not the text" : "";
  if (!shown) return { spec: "heat", rows: [], says: "no figures by token were kept of this cell" };
  const given = shown.rel_l2.flatMap((figures, j) => figures.map((value, token) => (
    { x: token, y: `layer ${shown.layers[j]}`, key: token, value: Number(value), said: `layer ${shown.layers[j]}, token ${token}\nrel. L2 ${number(value)}` })));
  const largest = given.reduce((a, b) => (b.value > a.value || Number.isNaN(b.value) ? b : a), given[0]);
  return { ...heated(given, false), x: { title: "token", axis: { labelAngle: 0, labelOverlap: true } },
    says: `largest: ${largest.said.replace("\n", ", ")}` };
}

function startInside() {
  if (!byId("modules")) return;
  const [moduleMap, tokenMap] = [new Figure("modules", modules), new Figure("tokens", tokens)];
  const choose = (draw) => {
    const texts = mapOf().texts ?? [];
    byId("tokens-text").replaceChildren(...texts.map((one) => element("option", {}, `text ${one.text}`)));
    byId("tokens-figure").hidden = !texts.length;
    byId("tokens-left-out").hidden = !mapOf().texts_left_out;
    moduleMap[draw]();
    if (texts.length) tokenMap[draw]();
  };
  byId("inside-cell").addEventListener("change", () => choose("draw"));
  byId("modules-figure").addEventListener("change", () => moduleMap.draw());
  byId("tokens-text").addEventListener("change", () => tokenMap.draw());
  choose("drawSoon");
}
