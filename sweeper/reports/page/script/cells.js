// The page's data, how figures are written, and the table of cells: sorted, filtered, a part at a time.
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const data = read("page-data");
const drawing = read("page-specs");
const { cells, columns } = data;
const count = cells.id.length;
const dark = matchMedia("(prefers-color-scheme: dark)");
const theme = () => drawing.themes[dark.matches ? "dark" : "light"];
const byId = (id) => document.getElementById(id);

// figures as Python writes them (reports/cells_table.py)
const asNumber = (value) => (value === null ? null : Number(value));
const trimmed = (text) => text.replace(/(\.\d*?)0+(e|$)/, "$1$2").replace(/\.(e|$)/, "$1");
function number(value) {
  if (value === null) return "";
  if (!Number.isFinite(Number(value))) return String(value);
  const exponent = value === 0 ? 0 : Math.floor(Math.log10(Math.abs(value)));
  const text = exponent < -4 || exponent >= 4 ? value.toExponential(3) : value.toPrecision(4);
  return trimmed(text).replace(/e([+-])(\d)$/, "e$10$2");
}
function share(lost) {
  if (lost === null) return "";
  if (typeof lost === "string") return lost;
  if (lost === 0 || lost === 1) return String(1 - lost);
  return Math.min(Math.max(1 - lost, 0.0001), 0.9999).toFixed(4);
}
function cosine(distance) {
  if (distance === null) return "";
  if (typeof distance === "string") return distance;
  if (Math.abs(distance) < 1e-15) return "1";
  if (distance > 0 && distance < 5e-7) return `1-${distance.toExponential(0)}`;
  return (1 - distance).toFixed(6);
}
const FORMATS = { number, share, cosine };
const rough = (value) => (Number.isFinite(value) ? trimmed(value.toPrecision(2)) : String(value));

const words = (column) => (column.axis ? cells.axes[column.key] : cells[column.key]);
const word = (column, row) => words(column).values[words(column).of[row]];
const text = (column, row) => {
  if (column.kind === "id") return cells.id[row].slice(0, data.letters);
  if (column.kind === "word") return word(column, row);
  return FORMATS[column.kind](cells[column.key][row]);
};
const endOf = (row) => cells.end.values[cells.end.of[row]];
const labelOf = (row) =>
  columns.filter((column) => column.axis).map((column) => {
    const value = word(column, row);
    return value === "True" || value === "False" ? `${column.key}=${value}` : value;
  }).join(" ");
const searched = Array.from({ length: count }, (_, row) => columns.map((column) => text(column, row)).join(" ").toLowerCase());
const MOST_ROWS = 200;
const table = { ends: new Set(), words: "", axes: {}, sort: null, down: true, most: MOST_ROWS };

function matching() {
  const asked = table.words.toLowerCase().split(/\s+/).filter(Boolean);
  const found = [];
  for (let row = 0; row < count; row++) {
    if (table.ends.size && !table.ends.has(endOf(row))) continue;
    if (!asked.every((one) => searched[row].includes(one))) continue;
    const elsewhere = Object.entries(table.axes).some(([axis, value]) => {
      const { values, of } = cells.axes[axis];
      return values[of[row]] !== value;
    });
    if (!elsewhere) found.push(row);
  }
  return table.sort === null ? found : found.sort(order(columns[table.sort]));
}

function order(column) {
  const sign = table.down ? -1 : 1;
  if (column.kind === "word" || column.kind === "id")
    return (a, b) => sign * text(column, a).localeCompare(text(column, b), "en", { numeric: true }) || a - b;
  // what was not measured is last in both directions; what is no number is worse than any
  const worth = (row) => {
    const value = asNumber(cells[column.key][row]);
    return value === null ? null : Number.isNaN(value) ? Infinity : column.kind === "number" ? value : -value;
  };
  return (a, b) => {
    const [left, right] = [worth(a), worth(b)];
    if (left === null || right === null) return (left === null) - (right === null) || a - b;
    return left === right ? a - b : left > right ? sign : -sign;
  };
}

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

function rowElement(row) {
  const end = endOf(row);
  const made = element("tr", { class: `is-${end.replace(" ", "-")}` });
  for (const column of columns) {
    const content = text(column, row);
    const wide = column.wide ? " wide" : "";
    if (column.kind === "id") {
      const whole = cells.id[row];
      const name = byId(`cell-${whole}`) ? element("a", { href: `#cell-${whole}` }, content) : content;
      made.append(element("th", { scope: "row", class: `id${wide}` }, name));
    } else if (column.key === "end") {
      made.append(element("td", {}, element("span", { class: `end end-${end.replace(" ", "-")}` }, end)));
    } else {
      const flag = content === "True" || content === "False" ? " flag" : "";
      const kind = column.kind === "word" ? `word${flag}` : "figure";
      made.append(element("td", { class: `${kind}${wide}`, "data-title": column.title }, content));
    }
  }
  return made;
}

function showCells() {
  const found = matching();
  const shown = found.slice(0, table.most);
  byId("cells-body").replaceChildren(...shown.map(rowElement));
  const limits = Object.entries(table.axes).map(([axis, value]) => `${axis}=${value}`).join(", ");
  byId("cells-count").textContent =
    `${found.length} of ${count} cells${limits ? ` with ${limits}` : ""}` +
    (shown.length < found.length ? `, the first ${shown.length} are shown` : "");
  byId("cells-more").hidden = shown.length === found.length;
  byId("cells-all").hidden = found.length === count;
  byId("cells-table").querySelectorAll("th[scope=col]").forEach((heading, i) => {
    const direction = table.down ? "descending" : "ascending";
    heading.setAttribute("aria-sort", table.sort === i ? direction : "none");
  });
}

function startCells() {
  byId("cells-table").querySelectorAll("th[scope=col]").forEach((heading, i) => {
    const sort = () => {
      const first = columns[i].kind === "number";
      table.down = table.sort === i ? !table.down : first;
      table.sort = i;
      showCells();
    };
    heading.replaceChildren(element("button", { type: "button", onclick: sort }, heading.textContent));
  });
  for (const end of cells.end.values) {
    const number = cells.end.of.filter((place) => cells.end.values[place] === end).length;
    const chip = element("button", { type: "button", class: "chip", "aria-pressed": "false" });
    chip.append(element("span", { class: `end end-${end.replace(" ", "-")}` }, end), ` ${number}`);
    chip.addEventListener("click", () => {
      if (!table.ends.delete(end)) table.ends.add(end);
      chip.setAttribute("aria-pressed", String(table.ends.has(end)));
      showCells();
    });
    byId("cells-ends").append(chip);
  }
  byId("cells-words").addEventListener("input", (event) => {
    table.words = event.target.value;
    showCells();
  });
  byId("cells-more").addEventListener("click", () => {
    table.most += MOST_ROWS;
    showCells();
  });
  byId("cells-all").addEventListener("click", () => {
    Object.assign(table, { ends: new Set(), words: "", axes: {} });
    byId("cells-words").value = "";
    byId("cells-ends").querySelectorAll("button").forEach((chip) => chip.setAttribute("aria-pressed", "false"));
    showCells();
  });
  showCells();
}
