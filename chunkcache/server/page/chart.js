// Charts over time in the page's colours, which follow the reader's scheme. Drawn by uPlot.

import { el } from "./elements.js";

const HEIGHT = 170;
const FONT = '12px system-ui, "DejaVu Sans", sans-serif';
const MINUTES_WITH_SECONDS = 300;
const drawn = new Map(); // by the element a chart is in

const token = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/**
 * Draw or redraw a chart.
 * `lines`: `{name, kind, color, values}`, `color` a token's name; `x`: one value for each point.
 * `words` says what a reader would see who cannot; `stacked` puts the lines on top of each other.
 */
export function drawChart(place, x, lines, { words, max = null, xText = null, stacked = false }) {
  drawn.get(place)?.destroy();
  drawn.delete(place);
  if (x.length < 2) {
    place.replaceChildren(el("p", { class: "empty" }, "Nothing to show yet."));
    return;
  }
  const picture = el("div", { role: "img", "aria-label": words });
  place.replaceChildren(legend(lines), picture);
  const shown = stacked ? piled(lines) : lines;
  const chart = new globalThis.uPlot(
    {
      width: place.clientWidth,
      height: HEIGHT,
      legend: { show: false },
      cursor: { show: false },
      padding: [6, 10, 0, 0],
      scales: { x: { time: xText === null }, y: { range: (_, low, high) => limits(max, high) } },
      axes: [axis(xText ?? clock(x), 80, 26), axis(String, 30, 44)],
      series: [{}, ...shown.map((line) => series(line, stacked))],
    },
    [x, ...shown.map((line) => line.values)],
    picture,
  );
  drawn.set(place, chart);
}

const limits = (max, high) => [0, max ?? (high > 0 ? 1.08 * high : 1)];

/** The sums from the bottom up, the topmost first, so that each is drawn over the one above it. */
function piled(lines) {
  let below = lines[0].values.map(() => 0);
  const sums = lines.map((line) => {
    below = line.values.map((value, i) => value + below[i]);
    return { ...line, values: below };
  });
  return sums.reverse();
}

function axis(text, space, size) {
  return {
    stroke: () => token("--soft"),
    grid: { stroke: () => token("--line"), width: 1 },
    ticks: { show: false },
    font: FONT,
    space,
    size,
    values: (_, values) => values.map((value) => (value === null ? "" : text(value))),
  };
}

/** Times of day in one line, as fine as the chart needs. */
function clock(x) {
  const seconds = x.at(-1) - x[0] < MINUTES_WITH_SECONDS ? { second: "2-digit" } : {};
  const fields = { hour: "2-digit", minute: "2-digit", ...seconds, hourCycle: "h23" };
  const format = new Intl.DateTimeFormat([], fields);
  return (value) => format.format(new Date(1000 * value));
}

function series({ name, color }, stacked) {
  return {
    label: name,
    stroke: () => token(color),
    ...(stacked ? filledSteps(color) : {}),
    width: 2,
    points: { show: false },
    spanGaps: true,
  };
}

/** A share is of what happened since the point before, so it holds for that whole time. */
const filledSteps = (color) => ({
  fill: () => token(color),
  paths: globalThis.uPlot.paths.stepped({ align: -1 }),
});

const legend = (lines) =>
  el("ul", { class: "legend" }, ...lines.map(({ name, kind }) => el("li", { class: kind }, name)));

new ResizeObserver(() => {
  for (const [place, chart] of drawn) {
    if (place.clientWidth > 0 && place.clientWidth !== chart.width) {
      chart.setSize({ width: place.clientWidth, height: HEIGHT });
    }
  }
}).observe(document.body);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const chart of drawn.values()) chart.redraw(false);
});
