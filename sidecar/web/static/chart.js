// One instance over time: a band of response times, marks of decisions, a strip of states. SVG, made of elements and attributes alone.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 1000;
const HEIGHT = 84;
const STRIP = 7;
const FOOT = 12;

// All charts of a service share one scale, so that the slow one looks slow.
export function scaleOf(columns) {
  const values = columns.flatMap((c) => [...c.min, ...c.max]).filter((v) => v !== null && v > 0);
  if (!values.length) return null;
  const low = Math.log10(Math.min(...values)) - 0.05;
  const high = Math.log10(Math.max(...values)) + 0.05;
  return { low, high, least: Math.min(...values), most: Math.max(...values) };
}

export function makeChart() {
  const svg = svgElement("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT + FOOT}`, preserveAspectRatio: "none", role: "img", tabindex: "0" });
  svg.classList.add("chart");
  return svg;
}

// `range`: {since, until, step} in seconds. `marks`: [{at, kind}]. `told(text)`: says what stands under the cursor.
export function drawChart(svg, column, scale, range, marks, label, told) {
  const x = (at) => Math.round((((at - range.since) / (range.until - range.since)) * WIDTH) * 10) / 10;
  const y = (v) => Math.round((HEIGHT - 4 - ((Math.log10(v) - scale.low) / (scale.high - scale.low || 1)) * (HEIGHT - 8)) * 10) / 10;
  const step = range.step;
  // The edge of a row of values over each of its steps, from left to right.
  const edge = (run, values) => run.flatMap((p) => [`${x(column.at[p])},${y(values[p])}`, `${x(column.at[p] + step)},${y(values[p])}`]);
  const runs = (...rows) => (scale ? runsOf(column, step, (p) => rows.every((values) => values[p] > 0)) : []);
  const area = (low, high, name) => runs(low, high).map((run) =>
    svgElement("polygon", { points: [...edge(run, high), ...edge(run, low).reverse()].join(" "), class: name }));
  const line = (values, name) => runs(values).map((run) => svgElement("polyline", { points: edge(run, values).join(" "), class: name }));
  const parts = [
    ...area(column.min, column.max, "spread"), ...area(column.p50, column.p90, "middle"), ...line(column.p99, "p99"), ...line(column.p50, "median"),
    ...failures(column, x, step), ...strip(column, x, step),
    ...marks.map((m) => svgElement("line", { x1: x(m.at), x2: x(m.at), y1: 0, y2: HEIGHT, class: `mark ${m.kind === "ejected" ? "out" : "back"}` })),
    svgElement("line", { class: "cursor", x1: -9, x2: -9, y1: 0, y2: HEIGHT + FOOT }),
  ];
  svg.replaceChildren(...parts.filter(Boolean));
  svg.setAttribute("aria-label", label);
  svg.reading = { column, range, x, told, marks, place: -1 };
  if (!svg.listens) listenTo(svg);
}

function svgElement(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

// Steps that follow one another without a gap and have what is wanted, as places in the column.
function runsOf(column, step, has) {
  const runs = [];
  column.at.forEach((at, place) => {
    if (!has(place)) return;
    const last = runs.at(-1);
    if (last && last.at(-1) === place - 1 && at - column.at[place - 1] <= step * 1.5) last.push(place);
    else runs.push([place]);
  });
  return runs;
}

function failures(column, x, step) {
  return column.at.map((at, p) => {
    const all = column.failures[p] + column.count[p];
    if (!column.failures[p]) return null;
    const height = 4 + (column.failures[p] / all) * 26;
    return svgElement("rect", { x: x(at), y: HEIGHT - height, width: Math.max(2, x(at + step) - x(at)), height, class: "failed" });
  });
}

// What it was judged, with an operator's word before ours, and whether it got traffic.
function strip(column, x, step) {
  return column.at.map((at, p) => {
    const word = column.operator[p] !== null && column.operator[p] !== "ready" ? column.operator[p] : column.judgement[p];
    if (word === null) return null;
    const state = svgElement("rect", { x: x(at), y: HEIGHT + FOOT - STRIP, width: Math.max(1, x(at + step) - x(at)), height: STRIP, class: `state ${word}` });
    if (column.serving[p] === "none") state.classList.add("unserved");
    return state;
  });
}

function listenTo(svg) {
  svg.listens = true;
  const show = (place) => {
    const { column, range, x, told, marks } = svg.reading;
    svg.reading.place = place;
    const cursor = svg.querySelector(".cursor");
    const at = place < 0 ? -9 : x(column.at[place] + range.step / 2);
    cursor.setAttribute("x1", at);
    cursor.setAttribute("x2", at);
    told(place < 0 ? "" : place, column, range, marks);
  };
  svg.addEventListener("pointermove", (event) => {
    const { column, range } = svg.reading;
    const box = svg.getBoundingClientRect();
    const at = range.since + ((event.clientX - box.left) / box.width) * (range.until - range.since);
    let best = -1;
    column.at.forEach((each, place) => {
      if (best < 0 || Math.abs(each + range.step / 2 - at) < Math.abs(column.at[best] + range.step / 2 - at)) best = place;
    });
    show(best);
  });
  svg.addEventListener("pointerleave", () => show(-1));
  svg.addEventListener("blur", () => show(-1));
  svg.addEventListener("keydown", (event) => {
    const { column, place } = svg.reading;
    const last = column.at.length - 1;
    const to = { ArrowLeft: place < 0 ? last : Math.max(0, place - 1), ArrowRight: place < 0 ? last : Math.min(last, place + 1), Home: 0, End: last }[event.key];
    if (to === undefined || last < 0) return;
    event.preventDefault();
    show(to);
  });
}
