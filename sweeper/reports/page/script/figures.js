// What every figure does: it is drawn, says what is under the pointer or at the arrow keys, and can be saved.
const tip = element("div", { class: "tip", role: "status", hidden: true });
document.body.append(tip);

function showTip(_, event, item, value) {
  const said = value && value.said;
  tip.hidden = !said;
  if (!said) return;
  tip.textContent = said;
  const box = tip.getBoundingClientRect();
  const left = Math.min(event.clientX + 14, document.documentElement.clientWidth - box.width - 8);
  const below = event.clientY + 18 + box.height < innerHeight;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${below ? event.clientY + 18 : event.clientY - box.height - 12}px`;
}

const figures = [];
const FILE_WIDTH = 1000;

class Figure {
  // Draws one specification; `make` gives its rows and parameters, anew for every theme and choice.
  constructor(id, make) {
    figures.push(this);
    this.place = byId(id);
    this.make = make;
    this.at = -1;
    const around = this.place.closest("figure");
    this.readout = around.querySelector(".readout");
    this.place.tabIndex = 0;
    this.place.addEventListener("keydown", (event) => this.step(event));
    for (const kind of ["svg", "png"])
      around.querySelector(`[data-save=${kind}]`).addEventListener("click", () => this.save(kind));
    dark.addEventListener("change", () => this.draw());
  }

  // A view of what `make` gave; in a file it has a legend, and paper behind it.
  viewOf(made, inFile) {
    const spec = structuredClone(drawing.specs[made.spec]);
    spec.data.values = made.rows;
    for (const one of spec.params) if (one.name in (made.params ?? {})) one.value = made.params[one.name];
    Object.assign(spec, made.size, inFile ? { width: FILE_WIDTH, background: theme().paper, padding: 12 } : {});
    Object.assign(spec.encoding.x, made.x);
    spec.encoding.y.title = made.yTitle ?? null;
    if (inFile && made.legend) spec.encoding.color = made.legend;
    const compiled = vegaLite.compile(spec, {
      config: drawing.config[dark.matches ? "dark" : "light"],
      logger: vega.logger(vega.Error),
    }).spec;
    return new vega.View(vega.parse(compiled, undefined, { ast: true }), {
      expr: vega.expressionInterpreter,
      logLevel: vega.Error,
      ...(inFile ? { renderer: "none" } : { renderer: "svg", container: this.place, hover: true }),
    });
  }

  // Draws once there is time, so that the page can be read and used meanwhile.
  drawSoon() {
    (globalThis.requestIdleCallback ?? setTimeout)(() => this.draw());
  }

  draw() {
    const made = this.make();
    this.rows = made.rows;
    this.at = -1;
    this.view?.finalize();
    this.view = this.viewOf(made, false).tooltip(showTip);
    this.view.addEventListener("click", (_, item) => item?.datum?.key !== undefined && made.clicked?.(item.datum));
    this.readout.textContent = made.says ?? "";
    return this.view.runAsync();
  }

  step(event) {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Enter" && this.at >= 0) return this.make().clicked?.(this.rows[this.at]);
    if (!by || !this.rows.length) return undefined;
    event.preventDefault();
    this.at = (this.at + by + this.rows.length) % this.rows.length;
    this.readout.textContent = this.rows[this.at].said;
    return undefined;
  }

  async pictures() {
    const view = await this.viewOf(this.make(), true).runAsync();
    return { name: this.place.id, svg: await view.toSVG(), png: await view.toImageURL("png", 2) };
  }

  async save(kind) {
    const made = (await this.pictures())[kind];
    const address = kind === "png" ? made : URL.createObjectURL(new Blob([made], { type: "image/svg+xml" }));
    element("a", { href: address, download: `${this.place.id}.${kind}` }).click();
  }
}

const contrast = (colour) => {
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  return 0.299 * red + 0.587 * green + 0.114 * blue > 140 ? "#10151d" : "#ffffff";
};

// Rows of a map that is coloured by a figure; `given` have x, y, value and what is said of them.
function heated(given, withText) {
  const finite = given.map((one) => one.value).filter((value) => Number.isFinite(value) && value > 0);
  const high = finite.length ? Math.max(...finite) : 1;
  // a factor of 50 at least, so that what is alike looks alike, and six decades at most
  const low = Math.min(Math.max(Math.min(...finite), high * 1e-6), high / 50);
  const middle = Math.sqrt(low * high);
  const rows = given.map((one) => {
    const kind = one.value === 0 ? "zero" : Number.isFinite(one.value) && one.value > 0 ? "value" : "bad";
    const strong = kind === "bad" || (kind === "value" && one.value > middle);
    const ink = strong ? theme().paper : kind === "zero" ? theme().soft : theme().ink;
    const shown = kind === "bad" ? "×" : !withText ? "" : kind === "zero" ? "0" : rough(one.value);
    return { ...one, kind, scaled: kind === "value" ? one.value : low, text: shown, ink };
  });
  return { spec: "heat", rows, params: { low, high, zero: theme().panel, bad: theme().bad } };
}
