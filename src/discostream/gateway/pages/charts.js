// Curves over time and distributions, drawn by uPlot; every one of them is also a sentence and a table.

import { renew, table } from "./dom.js";
import { NONE, tick } from "./format.js";

const { uPlot } = window;
const HEIGHT = 190;
const DASHES = { e1: [2, 3], e2: [7, 4], e3: [10, 3, 2, 3], e4: [14, 4], p90: [7, 4], p99: [2, 3] };
const BORDERS = { e1: "dotted", e2: "dashed", e3: "double", e4: "dashed", p90: "dashed", p99: "dotted" };
const dark = matchMedia("(prefers-color-scheme: dark)");

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const font = () => `12px ${getComputedStyle(document.body).fontFamily}`;

/**
 * One figure of the page. What it shows is an object with
 * `x`: its values, seconds since 1970, or of a span where `spans` is true (then on a logarithmic axis);
 * `from`, `to`: what its axis spans;
 * `step`: seconds from one `x` to the next, for axes of time;
 * `tick`: what stands at the vertical axis, and `say`: how a value is told;
 * `lines`: each a `label`, its `values`, its `look` (a colour of the style sheet), and perhaps a `width`, `bars: true`, or
 * `upTo`, the heights that are drawn where others are stacked below;
 * `said`: the sentence; `columns`, `rows`: the table.
 */
export class Chart {
  constructor(figure) {
    this.figure = figure;
    this.plot = figure.querySelector(".plot");
    this.details = figure.querySelector("details");
    this.details.addEventListener("toggle", () => this.tabulate());
    dark.addEventListener("change", () => this.draw());
    new ResizeObserver(() => this.fit()).observe(this.plot);
  }

  show(what) {
    const same = this.what && shape(this.what) === shape(what);
    this.what = what;
    this.figure.querySelector(".said").textContent = what.said;
    this.plot.ariaLabel = what.said;
    this.tabulate();
    if (same && this.drawn) this.drawn.setData(dataOf(what));
    else this.draw();
  }

  draw() {
    this.drawn?.destroy();
    this.drawn = null;
    this.fit();
  }

  fit() {
    const width = this.plot.clientWidth;
    if (!width || !this.what) return;
    if (!this.drawn) this.drawn = new uPlot(options(this, width), dataOf(this.what), this.plot);
    else if (this.drawn.width !== width) this.drawn.setSize({ width, height: HEIGHT });
  }

  tabulate() {
    if (!this.details.open || !this.what) return;
    const { columns, rows } = this.what;
    const title = this.figure.querySelector("h3").textContent;
    renew(this.figure.querySelector(".figures"), table(title, columns, rows()));
  }
}

const shape = ({ lines }) => lines.map(({ label, look, bars }) => `${label}\t${look}\t${bars}`).join("\n");
const dataOf = ({ x, lines }) => [x, ...lines.map(({ values, upTo }) => upTo ?? values)];

function options(chart, width) {
  const [ink, line] = [colour("soft"), colour("line")];
  const grid = { stroke: line, width: 1 };
  const axis = { stroke: ink, font: font(), grid, ticks: { ...grid, size: 4 } };
  const { spans } = chart.what;
  return {
    width,
    height: HEIGHT,
    padding: [10, spans ? 24 : 14, 0, 0],
    scales: {
      x: { time: !spans, distr: spans ? 3 : 1, range: () => [chart.what.from, chart.what.to] },
      y: { range: (_, __, most) => [0, spans ? 1 : (most || 1) * 1.08] },
    },
    axes: [
      { ...axis, size: 26, space: 62, ...(spans ? logarithmic(chart) : { values: (_, splits, __, ___, apart) => splits.map((at) => tick(at, apart)) }) },
      { ...axis, space: 34, size: (_, values) => 16 + 7 * Math.max(3, ...(values ?? []).map((value) => value?.length ?? 0)), values: (_, splits) => splits.map(chart.what.tick) },
    ],
    cursor: { y: false, drag: { x: false, y: false }, points: { size: 6 } },
    legend: { markers: { width: 3, stroke: (plot, index) => plot.series[index].stroke?.(plot, index), fill: (plot, index) => plot.series[index].fill?.(plot, index), dash: (_, index) => BORDERS[chart.what.lines[index - 1].look] ?? "solid" } },
    series: [
      { label: spans ? "within" : "from", value: (_, at) => (at === null ? NONE : spans ? chart.what.sayX(at) : tick(at, chart.what.step)) },
      ...chart.what.lines.map((drawn, index) => series(chart, drawn, index)),
    ],
  };
}

/** Ticks at 1, 2 and 5 of each power of ten, or at fewer where there is no room for these. */
function logarithmic(chart) {
  const first = (split) => Number((split / 10 ** Math.floor(Math.log10(split) + 1e-9)).toPrecision(4));
  const shown = (plot) => {
    const room = plot.bbox.width / devicePixelRatio / Math.log10(chart.what.to / chart.what.from);
    return room > 180 ? [1, 2, 5] : room > 110 ? [1, 3] : [1];
  };
  return {
    filter: (plot, splits) => splits.map((split) => (shown(plot).includes(first(split)) ? split : null)),
    values: (_, splits) => splits.map((split) => (split === null ? "" : chart.what.tickX(split))),
  };
}

function series(chart, { label, look, width = 2, bars = false }, index) {
  const own = () => colour(look);
  return {
    label,
    width: bars ? 0 : width,
    stroke: own,
    fill: bars ? own : undefined,
    dash: DASHES[look] ?? [],
    paths: bars ? uPlot.paths.bars({ size: [0.86, 64], align: 1, gap: 0 }) : chart.what.spans ? uPlot.paths.stepped({ align: 1 }) : uPlot.paths.linear(),
    points: { show: !bars && !chart.what.spans, size: 5, width: 0, fill: own, filter: alone },
    value: (_, __, ___, at) => (at === null || at === undefined ? NONE : chart.what.say(chart.what.lines[index].values[at])),
  };
}

/** The values without a neighbour, which no line would show. */
function alone(plot, index) {
  const values = plot.data[index];
  const none = (at) => values[at] === null || values[at] === undefined;
  return [...values.keys()].filter((at) => !none(at) && none(at - 1) && none(at + 1));
}
