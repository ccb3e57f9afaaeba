// Curves: one small SVG per chart. All charts share the step under the cursor and the smoothing.

const NUM_COLOURS = 10;
const DASHES = ["", "5 3", "1.5 3", "8 3 2 3"];
const HEIGHT = 190;
const MARGIN = { left: 46, right: 12, top: 16, bottom: 22 };

const curveState = { smoothing: 0, cursor: null, hidden: new Set(), charts: [] };

// Exponential moving average without the pull towards zero at its start; gaps stay gaps.
function smooth(values, weight) {
  if (weight === 0) return values;
  let sum = 0, norm = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    norm = weight * norm + (1 - weight);
    return sum / norm;
  });
}

// Round ticks that cover [low, high]: 1, 2 or 5 times a power of ten apart.
function niceTicks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const ticks = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-9; tick += step) ticks.push(tick);
  return { ticks, step };
}

function tickLabel(value, step) {
  if (Math.abs(value) < step / 1e6) return "0";
  if (Math.abs(step) < 0.001 || Math.abs(value) >= 1e6) {
    return value.toExponential(step < Math.abs(value) / 10 ? 1 : 0).replaceAll("-", "−");
  }
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }).replace("-", "−");
}

// The step at which stage II begins, for a run that had a stage I.
function stageBoundary(run) {
  const index = run.stages.findIndex((stage, i) => i > 0 && stage === 2 && run.stages[i - 1] === 1);
  return index < 0 ? null : run.steps[index];
}

// Points as a path; above two points a pixel only each pixel's extremes are drawn.
function linePath(xs, ys, x, y, width) {
  const parts = [];
  let pen = "M", column = null, low = null, high = null;
  const put = (index) => { parts.push(`${pen}${x(xs[index]).toFixed(1)} ${y(ys[index]).toFixed(1)}`); pen = "L"; };
  const flush = () => {
    if (low === null) return;
    for (const index of [...new Set([low, high])].sort((a, b) => a - b)) put(index);
    low = high = null;
  };
  const dense = xs.length > 2 * width;
  for (let index = 0; index < xs.length; index++) {
    if (ys[index] === null || ys[index] === undefined) { flush(); column = null; pen = "M"; continue; }
    if (!dense) { put(index); continue; }
    const pixel = Math.floor(x(xs[index]));
    if (pixel !== column) { flush(); column = pixel; }
    if (low === null || ys[index] < ys[low]) low = index;
    if (high === null || ys[index] > ys[high]) high = index;
  }
  flush();
  return parts.join("");
}

class Chart {
  constructor(spec, runs) {
    this.spec = spec;
    this.runs = runs;
    // A single run gives each metric a colour; several runs have a colour each and the metrics differ by dashes.
    this.lines = runs.flatMap((run, runIndex) => {
      const data = spec.source === "evaluations" ? run.evaluations : run;
      return spec.series.map(([metric, label], index) => ({
        run, runIndex, label, metric, xs: data.steps, raw: data.series[metric],
        colour: `var(--c${(runs.length > 1 ? runIndex : index) % NUM_COLOURS})`,
        dash: runs.length > 1 ? DASHES[index % DASHES.length] : "",
      })).filter((line) => line.raw && line.raw.some((value) => value !== null));
    });
    this.steps = [...new Set(this.lines.flatMap((line) => line.xs))].sort((a, b) => a - b);
  }

  get empty() { return this.lines.length === 0; }
  get shown() { return this.lines.filter((line) => !curveState.hidden.has(line.runIndex)); }

  build() {
    this.when = el("span", { class: "when" });
    this.readout = el("div", { class: "readout" });
    this.plot = el("div", { class: "plot", tabindex: "0", role: "img", onkeydown: (event) => this.key(event),
      "aria-label": `${this.spec.title}; arrow keys read the steps` });
    this.plot.addEventListener("pointermove", (event) => this.point(event));
    this.plot.addEventListener("pointerdown", (event) => this.point(event));
    this.plot.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") setCursor(null); });
    this.plot.addEventListener("focus", () => this.readout.setAttribute("aria-live", "polite"));
    this.plot.addEventListener("blur", () => this.readout.removeAttribute("aria-live"));
    return el("figure", { class: "chart", "data-title": this.spec.title },
      el("figcaption", {}, el("b", {}, this.spec.title), this.when),
      this.spec.note ? el("p", { class: "muted small" }, this.spec.note) : null, this.readout, this.plot);
  }

  // Limits of the axes over the lines shown. Fractions keep within 0 and 1; zero is on the axis if it is near.
  limits() {
    const values = this.shown.flatMap((line) => line.raw.filter((value) => value !== null));
    let low = Math.min(...values), high = Math.max(...values);
    if (low > 0 && low < 0.5 * high) low = 0;
    if (high < 0 && high > 0.5 * low) high = 0;
    const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || (this.spec.unit === "fraction" ? 0.05 : 1);
    low = low === 0 ? 0 : low - room;
    high = high === 0 && low < 0 ? 0 : high + room;
    if (this.spec.unit === "fraction") { low = Math.max(low, 0); high = Math.min(high, 1); }
    return { low, high: high > low ? high : low + room, first: this.steps[0], last: this.steps.at(-1) };
  }

  draw() {
    const width = Math.max(this.plot.clientWidth, 200);
    const bottom = HEIGHT - MARGIN.bottom, right = width - MARGIN.right;
    if (this.shown.length === 0) { this.plot.replaceChildren(); this.readout.replaceChildren(); return; }
    const { low, high, first, last } = this.limits();
    this.x = (step) => first === last ? (MARGIN.left + right) / 2
      : MARGIN.left + (step - first) / (last - first) * (right - MARGIN.left);
    this.y = (value) => bottom - (value - low) / (high - low) * (bottom - MARGIN.top);
    const picture = svg("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, "aria-hidden": "true" });
    const { ticks, step } = niceTicks(low, high, 4);
    for (const tick of ticks) {
      picture.append(svg("line", { class: "grid", x1: MARGIN.left, x2: right, y1: this.y(tick), y2: this.y(tick) }),
        svg("text", { x: MARGIN.left - 7, y: this.y(tick) + 3.5, "text-anchor": "end" }, tickLabel(tick, step)));
    }
    const atSteps = first === last ? [first] : niceTicks(first, last, Math.min(6, width / 70)).ticks.filter(Number.isInteger);
    for (const tick of atSteps) {
      picture.append(svg("text", { x: this.x(tick), y: HEIGHT - 6, "text-anchor": "middle" }, tickLabel(tick, 1)));
    }
    this.boundaries(picture, bottom);
    for (const line of this.shown) picture.append(...this.marks(line, right - MARGIN.left));
    this.cursorLine = svg("line", { class: "cursor", y1: MARGIN.top, y2: bottom, visibility: "hidden" });
    this.dots = svg("g");
    picture.append(this.cursorLine, this.dots);
    this.plot.replaceChildren(picture);
    this.moveCursor();
  }

  boundaries(picture, bottom) {
    const visible = this.runs.filter((_, index) => !curveState.hidden.has(index));
    for (const step of new Set(visible.map(stageBoundary).filter((step) => step !== null))) {
      const at = this.x(step - 0.5);
      if (at < MARGIN.left) continue;
      picture.append(svg("line", { class: "boundary", x1: at, x2: at, y1: MARGIN.top, y2: bottom }),
        svg("text", { class: "boundary", x: at, y: MARGIN.top - 5, "text-anchor": "middle" }, "stage II"));
    }
  }

  marks(line, width) {
    const path = (values, extra) => svg("path", { d: linePath(line.xs, values, this.x, this.y, width), class: "line",
      style: `stroke:${line.colour}`, "stroke-dasharray": line.dash, ...extra });
    const isolated = this.spec.source === "evaluations" || line.xs.length < 3;
    const circles = isolated ? line.xs.flatMap((step, index) => line.raw[index] === null ? [] : [
      svg("circle", { cx: this.x(step), cy: this.y(line.raw[index]), r: 3.2, style: `fill:${line.colour}` })]) : [];
    const asIs = curveState.smoothing === 0 || this.spec.source === "evaluations" || this.spec.unit === "count";
    if (asIs) return [path(line.raw, {}), ...circles];
    return [path(line.raw, { opacity: 0.25, "stroke-dasharray": "" }), path(smooth(line.raw, curveState.smoothing), {}), ...circles];
  }

  // The read-out: the values at the cursor's step, or each line's last.
  moveCursor() {
    if (this.shown.length === 0) return;
    const wanted = curveState.cursor;
    const step = wanted === null ? null
      : this.steps.reduce((best, each) => Math.abs(each - wanted) < Math.abs(best - wanted) ? each : best);
    this.dots.replaceChildren();
    this.cursorLine.setAttribute("visibility", step === null ? "hidden" : "visible");
    if (step !== null) {
      this.cursorLine.setAttribute("x1", this.x(step));
      this.cursorLine.setAttribute("x2", this.x(step));
    }
    const values = this.shown.map((line) => {
      const index = step === null ? line.raw.findLastIndex((value) => value !== null) : line.xs.indexOf(step);
      const value = index < 0 ? null : line.raw[index];
      if (step !== null && value !== null) {
        this.dots.append(svg("circle", { cx: this.x(step), cy: this.y(value), r: 3.5, style: `fill:${line.colour}` }));
      }
      return value;
    });
    this.when.textContent = step === null ? "last" : `step ${step.toLocaleString("en")}`;
    this.readout.replaceChildren(...(this.runs.length > 1 ? this.byRun(values) : this.byMetric(values)));
  }

  byMetric(values) {
    return this.shown.map((line, index) => el("span", {}, swatch(line.colour, ""), `${line.label} `,
      el("b", {}, formatNumber(values[index], this.spec.unit))));
  }

  byRun(values) {
    const key = this.spec.series.length > 1 ? this.spec.series.filter(([metric]) =>
      this.shown.some((line) => line.metric === metric)).map(([, label], index) =>
      el("span", { class: "dash" }, swatch("var(--muted)", DASHES[index % DASHES.length]), label)) : [];
    const runs = [...new Set(this.shown.map((line) => line.runIndex))].map((runIndex) => {
      const own = this.shown.flatMap((line, index) => line.runIndex === runIndex ? [formatNumber(values[index], this.spec.unit)] : []);
      return el("span", { title: this.runs[runIndex].name }, swatch(`var(--c${runIndex % NUM_COLOURS})`, ""),
        el("b", {}, own.join(" / ")));
    });
    return [...key, ...runs];
  }

  point(event) {
    if (this.shown.length === 0) return;
    const at = event.clientX - this.plot.getBoundingClientRect().left;
    setCursor(this.steps.reduce((best, each) => Math.abs(this.x(each) - at) < Math.abs(this.x(best) - at) ? each : best));
  }

  key(event) {
    const now = curveState.cursor === null ? this.steps.length : this.steps.findIndex((step) => step >= curveState.cursor);
    const jump = event.shiftKey ? 10 : 1;
    const to = { ArrowLeft: now - jump, ArrowRight: now + jump, Home: 0, End: this.steps.length - 1 }[event.key];
    if (event.key === "Escape") setCursor(null);
    else if (to !== undefined) setCursor(this.steps[Math.min(Math.max(to, 0), this.steps.length - 1)]);
    else return;
    event.preventDefault();
  }
}

function swatch(colour, dash) {
  return svg("svg", { class: "key", width: 16, height: 8, "aria-hidden": "true" },
    svg("line", { x1: 0, x2: 16, y1: 4, y2: 4, "stroke-dasharray": dash, style: `stroke:${colour}` }));
}

function setCursor(step) {
  curveState.cursor = step;
  for (const chart of curveState.charts) chart.moveCursor();
}

function buildCurves(data, controls, container) {
  curveState.charts = data.charts.map((spec) => new Chart(spec, data.runs)).filter((chart) => !chart.empty);
  const longest = Math.max(0, ...data.runs.map((run) => run.steps.length));
  if (curveState.charts.length === 0) {
    container.append(el("p", { class: "empty" }, "No step is done yet."));
    return;
  }
  const redraw = () => curveState.charts.forEach((chart) => chart.draw());
  const levels = [["none", 0], ["light", 0.6], ["strong", 0.9]];
  curveState.smoothing = longest >= 30 ? 0.6 : 0;
  controls.append(el("fieldset", { class: "switch", id: "smoothing" }, el("legend", {}, "Smoothing"), ...levels.map(([name, weight]) =>
    el("label", {}, el("input", { type: "radio", name: "smoothing", value: name, checked: weight === curveState.smoothing,
      onchange: () => { curveState.smoothing = weight; redraw(); } }), name))));
  if (data.runs.length > 1) {
    controls.append(el("fieldset", { class: "switch", id: "runs-shown" }, el("legend", {}, "Runs"), ...data.runs.map((run, index) =>
      el("label", {}, el("input", { type: "checkbox", checked: true, onchange: (event) => {
        curveState.hidden[event.target.checked ? "delete" : "add"](index); redraw();
      } }), swatch(`var(--c${index % NUM_COLOURS})`, ""), run.name))));
  }
  for (const group of new Set(curveState.charts.map((chart) => chart.spec.group))) {
    const charts = curveState.charts.filter((chart) => chart.spec.group === group);
    const grid = el("div", { class: "grid-of-charts" }, ...charts.map((chart) => chart.build()));
    // metrics without a place of their own wait folded; a folded chart has no width to draw in
    if (group === "Everything else") {
      container.append(el("details", { ontoggle: redraw }, el("summary", {}, `${group} (${charts.length})`), grid));
    } else container.append(el("h3", {}, group), grid);
  }
  redraw();
  let width = container.clientWidth;
  new ResizeObserver(() => { if (container.clientWidth !== width) { width = container.clientWidth; redraw(); } }).observe(container);
}
