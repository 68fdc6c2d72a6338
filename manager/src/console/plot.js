// A plot over time: drawn with axes, read out under the pointer or with the arrow keys, and the same again as a table.

import { h, s, say } from "./dom.js";
import { moment, timeOfDay } from "./words.js";

// How many points there is room for. The manager has no more.
const SLOTS = 120;

const HEIGHT = 168;
const MARGIN = { top: 10, right: 10, bottom: 24, left: 52 };

// A plot's parts:
//   title    what it is of
//   kind     `bars`, each series on top of the one before, or `lines`
//   series   [{ field, name, look }]: `look` is its class
//   format   a value as text
//   whole    whether values are whole numbers
//   summary  the points as a sentence
//   nothing  what stands there instead of no points
//   picked   is told the time that the reader looks at, in milliseconds, or null
export class Plot {
  constructor(figure, options) {
    Object.assign(this, options);
    this.points = [];
    this.chosen = null;

    const id = figure.id;
    this.summaryText = h("p", { class: "quiet summary" });
    this.when = h("span", { class: "when quiet" });
    this.values = this.series.map(() => h("span", { class: "value" }));
    const legend = this.series.map(({ name, look }, i) =>
      h("span", { class: "entry" }, key(this.kind, look), h("span", {}, name), this.values[i]),
    );
    this.drawing = s("svg", { "aria-hidden": "true", height: HEIGHT });
    this.slider = h(
      "div",
      {
        class: "plot",
        role: "slider",
        tabindex: 0,
        "aria-labelledby": `${id}-title`,
        "aria-describedby": `${id}-summary`,
        "aria-valuemin": 0,
        onpointermove: (event) => this.point(event),
        onpointerdown: (event) => this.point(event),
        onpointerleave: () => this.pick(null),
        onblur: () => this.pick(null),
        onkeydown: (event) => this.step(event),
      },
      this.drawing,
    );
    this.summaryText.id = `${id}-summary`;
    this.body = h("tbody");
    this.table = h("details", { ontoggle: () => this.tabulate() }, h("summary", {}, "As a table"), this.sheet());
    figure.setAttribute("aria-labelledby", `${id}-title`);
    figure.replaceChildren(
      h("figcaption", { class: "panel-head" }, h("h2", { id: `${id}-title` }, this.title), this.when),
      h("div", { class: "legend" }, legend),
      this.slider,
      this.summaryText,
      this.table,
    );
    new ResizeObserver(() => this.draw()).observe(this.slider);
  }

  sheet() {
    const head = [h("th", { scope: "col" }, "Time")];
    for (const { name } of this.series) head.push(h("th", { scope: "col", class: "number" }, name));
    return h(
      "div",
      { class: "sheet", tabindex: 0, role: "region", "aria-label": `${this.title}, as a table` },
      h("table", {}, h("thead", {}, h("tr", {}, head)), this.body),
    );
  }

  show(points, step) {
    this.span = step * 1000;
    const timed = points.map((point) => ({ ...point, time: Date.parse(point.at) }));
    const newest = timed.at(-1)?.time;
    this.points = timed.filter(({ time }) => time > newest - SLOTS * this.span);
    say(this.summaryText, points.length > 0 ? this.summary(points, step) : this.nothing);
    this.draw();
    this.tabulate();
  }

  // ---- What is read out. ----

  // Looks at a time, or at the newest again.
  choose(time) {
    this.chosen = time;
    this.draw();
  }

  pick(time) {
    this.picked(time);
  }

  index() {
    const index = this.points.findIndex(({ time }) => time === this.chosen);
    return index < 0 ? this.points.length - 1 : index;
  }

  point(event) {
    if (this.points.length === 0) return;
    const left = event.clientX - this.slider.getBoundingClientRect().left - MARGIN.left;
    const time = this.points.at(-1).time - (SLOTS - 0.5 - (left / this.room()) * SLOTS) * this.span;
    const distance = (point) => Math.abs(point.time - time);
    this.pick(this.points.reduce((best, point) => (distance(point) < distance(best) ? point : best)).time);
  }

  step(event) {
    const last = this.points.length - 1;
    const to = {
      ArrowLeft: this.index() - 1,
      ArrowDown: this.index() - 1,
      ArrowRight: this.index() + 1,
      ArrowUp: this.index() + 1,
      PageDown: this.index() - 12,
      PageUp: this.index() + 12,
      Home: 0,
      End: last,
    }[event.key];
    if (to === undefined || last < 0) return;
    event.preventDefault();
    this.pick(this.points[Math.min(Math.max(to, 0), last)].time);
  }

  text({ field }, point) {
    return point[field] === null ? "–" : this.format(point[field]);
  }

  readOut() {
    const index = this.index();
    const point = this.points[index];
    if (!point) {
      say(this.when, "");
      for (const value of this.values) say(value, "");
      this.slider.setAttribute("aria-valuetext", this.nothing);
      return;
    }
    say(this.when, moment(point.time));
    this.series.forEach((series, i) => say(this.values[i], this.text(series, point)));
    const words = this.series.map((series) => `${series.name} ${this.text(series, point)}`);
    this.slider.setAttribute("aria-valuemax", this.points.length - 1);
    this.slider.setAttribute("aria-valuenow", index);
    this.slider.setAttribute("aria-valuetext", `${moment(point.time)}: ${words.join(", ")}`);
  }

  // Newest first, as one looks for it. Only while it can be seen.
  tabulate() {
    if (!this.table.open) return;
    const rows = this.points.toReversed().map((point) =>
      h(
        "tr",
        {},
        h("th", { scope: "row" }, h("time", { datetime: point.at, title: point.at }, moment(point.time))),
        this.series.map((series) => h("td", { class: "number" }, this.text(series, point))),
      ),
    );
    this.body.replaceChildren(...rows);
  }

  // ---- What is drawn. ----

  // How wide the place for the points is.
  room() {
    return Math.max(this.slider.clientWidth - MARGIN.left - MARGIN.right, 1);
  }

  draw() {
    if (this.slider.clientWidth === 0) return;
    this.readOut();
    const width = this.slider.clientWidth;
    this.drawing.setAttribute("width", width);
    this.drawing.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    const values = this.points.map((point) => this.top(point));
    const ticks = niceTicks(Math.max(...values, 0), this.whole);
    const newest = this.points.at(-1)?.time;
    const scale = {
      // The middle of the slot of a time. The newest is at the right edge.
      x: (time) => MARGIN.left + ((SLOTS - 0.5 - (newest - time) / this.span) / SLOTS) * this.room(),
      y: (value) => HEIGHT - MARGIN.bottom - (value / ticks.at(-1)) * (HEIGHT - MARGIN.top - MARGIN.bottom),
      slot: this.room() / SLOTS,
    };
    this.drawing.replaceChildren(
      ...this.axis(ticks, scale, width),
      ...this.times(scale),
      ...this.cursor(scale),
      ...(this.kind === "bars" ? this.bars(scale) : this.lines(scale)),
    );
  }

  top(point) {
    const values = this.series.map(({ field }) => point[field] ?? 0);
    return this.kind === "bars" ? values.reduce((sum, value) => sum + value, 0) : Math.max(...values);
  }

  axis(ticks, { y }, width) {
    return ticks.flatMap((tick) => [
      s("line", { class: tick === 0 ? "base" : "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(tick), y2: y(tick) }),
      s("text", { class: "tick", x: MARGIN.left - 8, y: y(tick) + 4, "text-anchor": "end" }, this.format(tick)),
    ]);
  }

  // Round times, as many as there is room for.
  times({ x }) {
    const newest = this.points.at(-1)?.time;
    if (newest === undefined) return [];
    const first = newest - (SLOTS - 1) * this.span;
    const most = Math.max(Math.floor(this.room() / 62), 1);
    const every = [15, 30, 60, 120, 180, 300, 600, 900, 1800, 3600, 7200, 21_600, 86_400]
      .map((seconds) => seconds * 1000)
      .find((step) => (SLOTS * this.span) / step <= most);
    const ticks = [];
    for (let time = Math.ceil(first / every) * every; time <= newest; time += every) {
      const place = x(time);
      if (place > MARGIN.left + this.room() - 16) continue; // it would be cut off
      ticks.push(
        s("line", { class: "base", x1: place, x2: place, y1: HEIGHT - MARGIN.bottom, y2: HEIGHT - MARGIN.bottom + 4 }),
        s("text", { class: "tick", x: place, y: HEIGHT - 6, "text-anchor": "middle" }, timeOfDay(time, every < 60_000)),
      );
    }
    return ticks;
  }

  bars({ x, y, slot }) {
    const gap = slot > 3 ? 1 : 0.5;
    const below = this.points.map(() => 0);
    return this.series.map(({ field, look }) => {
      const path = this.points.map((point, i) => {
        const from = below[i];
        below[i] += point[field];
        if (point[field] === 0) return "";
        // Even one failure among many is seen.
        const height = Math.max(y(from) - y(below[i]), 2);
        const left = x(point.time) - slot / 2 + gap / 2;
        return `M${round(left)} ${round(y(from))}v${round(-height)}h${round(slot - gap)}v${round(height)}z`;
      });
      return s("path", { class: `column ${look}`, d: path.join("") });
    });
  }

  // Where nothing was measured, a line has a gap.
  lines({ x, y }) {
    const chosen = this.points[this.index()];
    return this.series.flatMap(({ field, look }) => {
      let path = "";
      let last = -Infinity;
      for (const { time, [field]: value } of this.points) {
        if (value === null) continue;
        const place = `${round(x(time))} ${round(y(value))}`;
        path += time - last < 1.5 * this.span ? `L${place}` : `M${place}h0`;
        last = time;
      }
      const line = s("path", { class: `line ${look}`, d: path });
      if (this.chosen === null || !chosen || chosen[field] === null) return [line];
      return [line, s("circle", { class: `dot ${look}`, cx: x(chosen.time), cy: y(chosen[field]), r: 3.5 })];
    });
  }

  cursor({ x, slot }) {
    if (this.chosen === null || this.points.length === 0) return [];
    const width = Math.max(slot, 1);
    const left = x(this.points[this.index()].time) - width / 2;
    return [s("rect", { class: "cursor", x: left, y: MARGIN.top, width, height: HEIGHT - MARGIN.top - MARGIN.bottom })];
  }
}

function key(kind, look) {
  const mark =
    kind === "bars"
      ? s("rect", { class: `column ${look}`, x: 3, y: 2, width: 10, height: 10, rx: 2 })
      : s("path", { class: `line ${look}`, d: "M1 7H15" });
  return s("svg", { class: "key", width: 16, height: 14, "aria-hidden": "true" }, mark);
}

// From 0 to a round number that is not below `most`, in three to five round steps.
function niceTicks(most, whole) {
  if (most <= 0) return whole ? [0, 1] : [0, 0.1];
  const rough = most / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough * 0.999);
  if (whole) step = Math.max(Math.round(step), 1);
  const ticks = [];
  for (let i = 0; i < Math.ceil((most / step) * 0.999) + 1; i += 1) ticks.push(Number((i * step).toPrecision(6)));
  return ticks;
}

function round(number) {
  return Math.round(number * 10) / 10;
}
