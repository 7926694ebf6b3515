"use strict";
// Curves as SVG, drawn anew at each width so that letters keep their size. Text is set as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";
const DASHES = ["", "", "", "", "7 3", "7 3", "7 3", "2 3"];

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function draw(parent, tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

function number(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size < 1e-3 || size >= 1e5 ? value.toExponential(2).replace(/\.?0*e\+?/, "e") : String(Number(value.toPrecision(4)));
}

function linearTicks(low, high, count) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= raw);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) ticks.push(i * step);
  return ticks;
}

function logTicks(low, high) {
  const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
  const skip = Math.max(1, Math.ceil((last - first) / 7));
  const factors = last - first <= 1 ? [1, 2, 5] : [1];
  const ticks = [];
  for (let power = first; power <= last; power += skip) {
    for (const factor of factors) ticks.push(factor * 10 ** power);
  }
  return ticks.filter((tick) => tick >= low * (1 - 1e-9) && tick <= high * (1 + 1e-9));
}

// A scale from values to pixels: {at, ticks}.
function scaleOf(low, high, from, to, isLog, count) {
  const turn = isLog ? Math.log10 : (value) => value;
  const [a, b] = [turn(low), turn(high)];
  return {
    at: (value) => from + ((turn(value) - a) / (b - a || 1)) * (to - from),
    ticks: isLog ? logTicks(low, high) : linearTicks(low, high, count),
  };
}

function drawable(value, isLog) {
  return Number.isFinite(value) && (!isLog || value > 0);
}

function extent(values) {
  return values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
}

// spec: series [{name, x, y, low, high, colour, dash}], xLabel, yLabel, xLog, yLog, bars, reference {value, text}, floor.
// `colour` is 0 to 7, "grey" or "ink".
function limitsOf(spec) {
  const xs = spec.series.flatMap((s) => s.x).filter((v) => drawable(v, spec.xLog));
  const ys = spec.series.flatMap((s) => [s.y, s.low, s.high].filter(Boolean).flatMap((values) => values.filter((v, i) => drawable(s.x[i], spec.xLog) && drawable(v, spec.yLog))));
  if (!xs.length || !ys.length) return null;
  let [left, right] = extent(xs), [low, high] = extent(ys);
  if (spec.bars) [left, right] = [left - 0.5, right + 0.5];
  else if (left === right) [left, right] = spec.xLog ? [left / 2, right * 2] : [left - 1, right + 1];
  if (spec.yLog) return { left, right, low: Math.max(low, spec.floor ? high * spec.floor : 0) / 1.25, high: high * 1.25 };
  if (low >= 0 && (low < 0.5 * high || spec.bars)) low = 0;
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  return { left, right, low: low === 0 ? 0 : low - room, high: high + room };
}

function chart(container, spec) {
  const legend = make("ul", { className: "legend" });
  const holder = make("div", { className: "chart", tabIndex: 0 });
  holder.setAttribute("role", "img");
  holder.setAttribute("aria-label", `${spec.label}. Arrow keys read values.`);
  const values = spec.series.map((series) => {
    const item = make("li"), value = make("b");
    const swatch = draw(item, "svg", { viewBox: "0 0 32 10", "aria-hidden": "true" });
    draw(swatch, "line", { x1: 0, x2: 32, y1: 5, y2: 5, "stroke-width": 3, ...stroke(series) });
    item.append(series.name, " ", value);
    legend.append(item);
    return value;
  });
  container.replaceChildren(holder, legend);
  const limits = limitsOf(spec);
  if (!limits) {
    holder.replaceChildren(make("p", { className: "hint", textContent: "No value to show." }));
    return;
  }
  const places = [...new Set(spec.series.flatMap((s) => s.x))].filter((x) => drawable(x, spec.xLog)).sort((a, b) => a - b);
  let drawn = null, chosen = null;
  const read = (index) => {
    chosen = Math.max(0, Math.min(places.length - 1, index));
    const x = drawn.x.at(places[chosen]);
    for (const [name, value] of Object.entries({ x1: x, x2: x, visibility: "visible" })) drawn.cursor.setAttribute(name, value);
    spec.series.forEach((series, i) => {
      const at = series.x.indexOf(places[chosen]);
      values[i].textContent = at < 0 ? "" : number(series.y[at]);
    });
    drawn.place.textContent = spec.placeText ? spec.placeText(places[chosen]) : number(places[chosen]);
  };
  const redraw = () => {
    drawn = paint(holder, spec, limits);
    if (chosen !== null) read(chosen);
  };
  holder.addEventListener("pointermove", (event) => {
    const offset = event.clientX - holder.getBoundingClientRect().left;
    const away = places.map((x) => Math.abs(drawn.x.at(x) - offset));
    read(away.indexOf(Math.min(...away)));
  });
  holder.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    read(chosen === null ? 0 : chosen + step);
  });
  redraw();
  new ResizeObserver(() => { if (drawn.width !== holder.clientWidth && holder.clientWidth) redraw(); }).observe(holder);
}

function stroke(series) {
  const colour = typeof series.colour === "number" ? `var(--c${series.colour % 8})` : `var(--${series.colour})`;
  return { stroke: colour, ...(series.dash ? { "stroke-dasharray": series.dash } : {}) };
}

function paint(holder, spec, limits) {
  const width = Math.max(holder.clientWidth, 260), height = Math.round(Math.min(360, Math.max(240, width * 0.62)));
  const box = { left: 62, right: width - 12, top: 22, bottom: height - 44 };
  const x = scaleOf(limits.left, limits.right, box.left, box.right, spec.xLog, Math.max(3, Math.round(width / 90)));
  const y = scaleOf(limits.low, limits.high, box.bottom, box.top, spec.yLog, 5);
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("height", height);
  holder.replaceChildren(svg);
  for (const tick of y.ticks) {
    draw(svg, "line", { class: "rule", x1: box.left, x2: box.right, y1: y.at(tick), y2: y.at(tick) });
    draw(svg, "text", { x: box.left - 6, y: y.at(tick) + 4, "text-anchor": "end" }, number(tick));
  }
  for (const tick of spec.bars ? x.ticks.filter(Number.isInteger) : x.ticks) {
    draw(svg, "line", { class: "axis", x1: x.at(tick), x2: x.at(tick), y1: box.bottom, y2: box.bottom + 4 });
    draw(svg, "text", { x: x.at(tick), y: box.bottom + 17, "text-anchor": "middle" }, number(tick));
  }
  draw(svg, "line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom });
  draw(svg, "text", { x: (box.left + box.right) / 2, y: height - 6, "text-anchor": "middle" }, spec.xLabel);
  draw(svg, "text", { x: 4, y: 12 }, spec.yLabel);
  spec.series.forEach((series, i) => (spec.bars ? paintBars : paintLine)(svg, spec, series, i, x, y, box));
  const shown = spec.reference && spec.reference.value >= limits.low && spec.reference.value <= limits.high;
  if (shown) {
    const at = y.at(spec.reference.value);
    draw(svg, "line", { class: "reference", x1: box.left, x2: box.right, y1: at, y2: at });
    draw(svg, "text", { x: box.left + 4, y: at - 4 }, spec.reference.text);
  }
  const cursor = draw(svg, "line", { class: "cursor", y1: box.top, y2: box.bottom, visibility: "hidden" });
  const place = draw(svg, "text", { x: box.right, y: 12, "text-anchor": "end" }, "");
  return { x, cursor, place, width: holder.clientWidth };
}

function paintLine(svg, spec, series, _, x, y, box) {
  const inside = (value) => Math.max(box.top, Math.min(box.bottom, y.at(value)));
  const known = series.x.map((place, i) => ({ place, i })).filter(({ place }) => drawable(place, spec.xLog));
  if (series.low) {
    const both = known.filter(({ i }) => drawable(series.low[i], spec.yLog) && drawable(series.high[i], spec.yLog));
    const ends = [...both.map(({ place, i }) => [place, series.high[i]]), ...both.reverse().map(({ place, i }) => [place, series.low[i]])];
    const points = ends.map(([place, value]) => `${x.at(place).toFixed(1)},${inside(value).toFixed(1)}`).join(" ");
    draw(svg, "polygon", { class: "band", points, fill: stroke(series).stroke });
  }
  let path = "", before = false;
  for (const { place, i } of known) {
    const there = drawable(series.y[i], spec.yLog);
    if (there) path += `${before ? "L" : "M"}${x.at(place).toFixed(1)} ${inside(series.y[i]).toFixed(1)}`;
    before = there;
  }
  draw(svg, "path", { class: "series", d: path, ...stroke(series) });
  if (known.length > 12) return;
  for (const { place, i } of known) {
    if (drawable(series.y[i], spec.yLog)) draw(svg, "circle", { cx: x.at(place), cy: inside(series.y[i]), r: 3, fill: stroke(series).stroke });
  }
}

function paintBars(svg, spec, series, index, x, y, box) {
  const slot = (x.at(1) - x.at(0)) * 0.8, width = slot / spec.series.length;
  series.x.forEach((place, i) => {
    if (!drawable(series.y[i], false)) return;
    const left = x.at(place) - slot / 2 + index * width, top = y.at(series.y[i]);
    draw(svg, "rect", { class: "bar", x: left, y: top, width, height: box.bottom - top, fill: stroke(series).stroke });
  });
}
