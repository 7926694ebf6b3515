// The page: menus, tables, curves and films of the JSON object that stands in it.

const data = JSON.parse(document.getElementById("data").textContent);
const MEAN = "mean of fields";
const byId = (id) => document.getElementById(id);
const names = Object.keys(data.scenarios);
const words = (name) => name.replaceAll("_", " ");

function options(select, entries, keep) {
  const before = keep ? select.value : null;
  select.replaceChildren(...entries.map(([value, text]) => make("option", { value, textContent: text })));
  if (entries.some(([value]) => value === before)) select.value = before;
}

const scenario = () => data.scenarios[byId("scenario").value];
const field = () => byId("field").value;
const statistic = () => byId("statistic").value;

// --- tables ---------------------------------------------------------------------------------------------------------

// columns: [{title, text}]; rows: [{cells: [{text, value, interval, best, press}], className}]. Empty values go last.
function table(container, caption, columns, rows) {
  const body = make("tbody"), head = make("tr");
  const fill = (ordered) => body.replaceChildren(...ordered.map((row) => {
    const line = make("tr", { className: row.className ?? "" });
    row.cells.forEach((cell, i) => {
      const td = make("td", { className: [columns[i].text && "text", cell.best && "best"].filter(Boolean).join(" ") });
      td.append(cell.press ? make("button", { type: "button", className: "link", textContent: cell.text, onclick: cell.press }) : cell.text);
      if (cell.interval) td.append(make("span", { className: "interval", textContent: cell.interval }));
      line.append(td);
    });
    return line;
  }));
  columns.forEach((column, i) => {
    const th = make("th", { scope: "col", className: column.text ? "text" : "" });
    const button = make("button", { type: "button", textContent: column.title, title: column.hint ?? "" });
    button.addEventListener("click", () => {
      const ascending = th.getAttribute("aria-sort") !== "ascending";
      for (const other of head.children) other.removeAttribute("aria-sort");
      th.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      fill(sorted(rows, i, ascending));
    });
    th.append(button);
    head.append(th);
  });
  fill(rows);
  const scroller = make("div", { className: "scroller", tabIndex: 0 }, make("table", {}, make("thead", {}, head), body));
  scroller.setAttribute("role", "region");
  scroller.setAttribute("aria-label", caption);
  container.replaceChildren(scroller);
}

function sorted(rows, column, ascending) {
  const value = (row) => row.cells[column].value;
  const isEmpty = (row) => value(row) === null || value(row) === undefined;
  const compare = (a, b) => (typeof value(a) === "string" ? value(a).localeCompare(value(b), undefined, { numeric: true }) : value(a) - value(b));
  const full = rows.filter((row) => !isEmpty(row)).sort((a, b) => (ascending ? compare(a, b) : compare(b, a)));
  return [...full, ...rows.filter(isEmpty)];
}

function errorCell(found, kind) {
  if (!found) return { text: "–", value: null };
  const value = found[kind] ?? null;
  const [low, high] = [found[`${kind}_low`] ?? null, found[`${kind}_high`] ?? null];
  const failed = found.failed ? `${found.failed} of ${found.count} failed` : "";
  if (value === null) return { text: "∞", value: found.failed ? Infinity : null, interval: failed };
  const interval = low === null ? "" : `[${number(low)}, ${number(high)}]`;
  return { text: number(value), value, interval: [interval, failed].filter(Boolean).join(" ") };
}

// Published numbers are means over all fields.
const isWhole = (entry, name) => name === MEAN || entry.fields.length === 1;

// Rows of own forecasters, the lowest of each column marked.
function errorRows(entry, name, kind) {
  const rows = Object.entries(entry.forecasters).map(([who, found]) => ({
    who, failures: found.failures?.length ?? 0, className: "",
    cells: data.windows.map((window) => errorCell(found.windows[window]?.[name], kind)),
    time: found.physics?.correlation_time?.[name],
  }));
  data.windows.forEach((_, i) => {
    const lowest = Math.min(...rows.map((row) => row.cells[i].value ?? Infinity));
    for (const row of rows) row.cells[i].best = rows.length > 1 && Number.isFinite(lowest) && row.cells[i].text === number(lowest);
  });
  return rows;
}

// Rows of published numbers that fit a column; `keep` chooses among the models.
function publishedRows(entry, name, kind, keep = () => true) {
  if (kind !== "median" || !isWhole(entry, name)) return [];
  const items = entry.published.filter((item) => data.windows.includes(item.window) && item.value !== null && keep(item));
  return [...new Set(items.map((item) => `${item.model}, ${item.table}`))].map((source) => ({
    who: `${source} (published)`, failures: null, className: "published",
    cells: data.windows.map((window) => {
      const item = items.find((candidate) => candidate.window === window && `${candidate.model}, ${candidate.table}` === source);
      return item ? { text: number(item.value), value: item.value, interval: item.note ? "see note" : "" } : { text: "–", value: null };
    }),
  }));
}

const windowColumns = () => data.windows.map((window) => ({
  title: window.includes(":") ? `steps ${window}` : `step ${window}`, hint: "mean over these lead times",
}));

function showOverview() {
  const nothing = { who: "no forecast, see its notes", failures: null, cells: data.windows.map(() => errorCell(null)) };
  const rowsOf = (entry) => [
    ...(entry.facts.trajectories ? errorRows(entry, MEAN, statistic()) : [nothing]),
    ...publishedRows(entry, MEAN, statistic(), (item) => item.model === "Walrus"),
  ];
  const rows = names.flatMap((name) => rowsOf(data.scenarios[name]).map((row) => ({
    className: row.className,
    cells: [
      { text: words(name), value: name, press: () => { byId("scenario").value = name; showScenario(); byId("choice").scrollIntoView(); } },
      { text: words(row.who), value: row.who }, ...row.cells,
      { text: row.failures === null ? "–" : String(row.failures), value: row.failures },
    ],
  })));
  const columns = [{ title: "scenario", text: true }, { title: "forecast", text: true }, ...windowColumns(), { title: "failed", hint: "forecasts with NaN or overflow" }];
  table(byId("overview"), "VRMSE of all scenarios", columns, rows);
}

function showTable() {
  const entry = scenario(), name = field(), kind = statistic(), n = entry.facts.trajectories;
  byId("table-title").textContent = `${kind === "median" ? "Median" : "Mean"} VRMSE of ${name} over ${n} ${n === 1 ? "trajectory" : "trajectories"}`;
  const found = [...errorRows(entry, name, kind), ...publishedRows(entry, name, kind)], times = found.some((row) => row.time);
  const rows = found.map((row) => ({
    className: row.className,
    cells: [
      { text: words(row.who), value: row.who }, ...row.cells, ...(times ? [timeCell(row.time)] : []),
      { text: row.failures === null ? "–" : String(row.failures), value: row.failures },
    ],
  }));
  const correlation = times ? [{ title: "correlation time", hint: "steps that a forecast stays correlated with the truth" }] : [];
  table(byId("table"), byId("table-title").textContent, [{ title: "forecast", text: true }, ...windowColumns(), ...correlation, { title: "failed", hint: "forecasts with NaN or overflow" }], rows);
  const threshold = found.map((row) => row.time?.threshold).find(Boolean);
  byId("remarks").replaceChildren(...remarks(entry, name, kind, threshold).map((text) => make("li", { textContent: text })));
}

function timeCell(time) {
  if (!time || time.median === null) return { text: "–", value: null };
  const late = time.not_reached ? `${time.not_reached} of ${time.count} never` : "";
  const interval = time.low === null ? "" : `[${number(time.low)}, ${number(time.high)}]`;
  return { text: number(time.median), value: time.median, interval: [interval, late].filter(Boolean).join(" ") };
}

function remarks(entry, name, kind, threshold) {
  const lines = [`In brackets: ${100 * (data.runs[0].protocol.bootstrap?.level ?? 0.95)} % bootstrap intervals over trajectories; the lowest own value of a column is bold.`];
  if (threshold) lines.push(`Correlation time: steps until the correlation with the truth falls below ${threshold}; "never" within the steps counts as one step more.`);
  if (entry.published.length && !(isWhole(entry, name) && kind === "median")) lines.push(`Published numbers are medians of the mean of the fields: choose "${MEAN}" and "median" to see them.`);
  for (const item of entry.published) {
    const place = item.window.includes(":") ? `steps ${item.window}` : item.window === "1" ? "step 1" : item.window;
    if (item.note || !data.windows.includes(item.window)) {
      lines.push(`Published: ${item.model}, ${item.table}, ${place}: ${number(item.value)}${item.note ? ` (${item.note})` : ""}`);
    }
  }
  return [...new Set(lines)];
}

// --- curves ---------------------------------------------------------------------------------------------------------

function styleOf(who, entry) {
  const others = Object.keys(entry.forecasters).filter((name) => !name.startsWith("persistence"));
  const index = others.indexOf(who);
  return index < 0 ? { colour: "grey", dash: "5 4" } : { colour: index % 8, dash: DASHES[index % 8] };
}

const stepLabel = (entry) => `lead time (steps of ${number(entry.facts.dt)} simulation units)`;
const placeText = (entry) => (step) => `step ${step}, lead time ${number(step * entry.facts.dt)}`;

// One forecast that leaves the physics would press all others onto the axis.
const hasLargeErrors = (entry) => Object.values(entry.forecasters).some((found) =>
  Object.values(found.lead_time).some((curve) => Math.max(...curve.median.filter(Number.isFinite)) > 10));

function showErrors() {
  const entry = scenario(), name = field();
  const series = Object.entries(entry.forecasters).filter(([, found]) => found.lead_time[name]).map(([who, found]) => {
    const curve = found.lead_time[name];
    return { name: words(who), x: curve.step, y: curve.median, low: curve.low, high: curve.high, ...styleOf(who, entry) };
  });
  chart(byId("error-chart"), {
    series, label: `Median VRMSE of ${name} against lead time`, xLabel: stepLabel(entry), yLabel: `VRMSE of ${name}, median and interval`,
    yLog: byId("log").checked, placeText: placeText(entry), reference: { value: 1, text: "spatial mean" },
  });
}

// What else was measured of the field: [title, spec of the chart].
function quantities(entry, name) {
  const each = (pick) => Object.entries(entry.forecasters).map(([who, found]) => [who, pick(found)]).filter(([, value]) => value);
  const overTime = { xLabel: stepLabel(entry), placeText: placeText(entry) };
  const found = [...spectra(entry, name, each)];
  for (const [key, title, yLabel] of [["totals", "change of the total", "change of the mean over its RMS"], ["divergence", "divergence", "RMS of the divergence over RMS of the gradient"]]) {
    const curves = each((forecaster) => forecaster.physics?.[key]?.[name]);
    if (!curves.length) continue;
    const truth = { name: "truth", x: curves[0][1].step, y: curves[0][1].truth, colour: "ink" };
    const series = curves.map(([who, curve]) => ({ name: words(who), x: curve.step, y: curve.forecast, ...styleOf(who, entry) }));
    found.push([title, { ...overTime, series: [truth, ...series], yLabel }]);
  }
  const ensemble = each((forecaster) => forecaster.ensemble?.fields?.[name]);
  for (const [key, title, yLabel] of [["crps", "ensemble: CRPS", "CRPS over the truth's standard deviation"], ["spread", "ensemble: spread", "spread over the truth's standard deviation"], ["spread_skill", "ensemble: spread-skill ratio", "spread over skill; 1 is calibrated"]]) {
    const series = ensemble.map(([who, values]) => ({ name: words(who), x: values.step, y: values[key], ...styleOf(who, entry) }));
    if (series.length) found.push([title, { ...overTime, series, yLabel, reference: key === "spread_skill" ? { value: 1, text: "calibrated" } : undefined }]);
  }
  for (const window of data.windows) {
    const series = ensemble.filter(([, values]) => values.rank_histogram?.[window]).map(([who, values]) => ({
      name: words(who), x: values.rank_histogram[window].map((_, i) => i), y: values.rank_histogram[window], ...styleOf(who, entry), dash: "",
    }));
    if (series.length) found.push([`ensemble: rank histogram, steps ${window}`, {
      series, bars: true, xLabel: "rank of the truth among the members", yLabel: "frequency",
      reference: { value: 1 / series[0].x.length, text: "calibrated" }, placeText: (rank) => `rank ${rank}`,
    }]);
  }
  return found;
}

function spectra(entry, name, each) {
  const having = each((forecaster) => forecaster.spectra?.fields?.[name] && forecaster.spectra);
  const steps = [...new Set(having.flatMap(([, found]) => Object.keys(found.fields[name])))].sort((a, b) => a - b);
  const common = { xLabel: "wavenumber (waves along the longest axis)", xLog: true, yLog: true, floor: 1e-12 };
  const middle = (bands) => bands.map(([low, high]) => Math.sqrt(low * (high - 1 > low ? high - 1 : low)));
  const curve = (found, step, kind) => ({ x: middle(found.bands), y: found.fields[name][step][kind] });
  return ["power", "power of the error"].flatMap((what) => steps.map((step) => {
    const there = having.filter(([, found]) => found.fields[name][step]);
    const truth = { name: "truth", ...curve(there[0][1], step, "truth"), colour: "ink" };
    const series = there.map(([who, found]) => ({ name: words(who), ...curve(found, step, what === "power" ? "forecast" : "error"), ...styleOf(who, entry) }));
    return [`${what} by wavenumber, step ${step}`, { ...common, series: [truth, ...series], yLabel: `${what} per band, field units squared`, placeText: (k) => `wavenumber about ${number(k)}` }];
  }));
}

function showQuantities() {
  const entry = scenario(), name = field() === MEAN ? entry.fields[0] : field();
  const found = quantities(entry, name);
  options(byId("quantity"), found.map(([title]) => [title, title]), true);
  const spec = found.find(([title]) => title === byId("quantity").value);
  if (spec) chart(byId("quantity-chart"), { ...spec[1], label: `${spec[0]} of ${name}`, yLabel: `${name}: ${spec[1].yLabel}` });
  else byId("quantity-chart").replaceChildren(make("p", { className: "hint", textContent: "Nothing else was measured." }));
}

// --- films ----------------------------------------------------------------------------------------------------------

const player = { film: null, view: null, pictures: [], timer: null };

function filmField() {
  const wanted = field();
  return player.film.fields[wanted] ? wanted : Object.keys(player.film.fields)[0];
}

function showFilm() {
  const films = scenario().films;
  byId("film-section").hidden = !films.length;
  stop();
  if (!films.length) return;
  options(byId("trajectory"), films.map((film, i) => [String(i), `${film.trajectory} of ${film.forecaster}`]), true);
  byId("trajectory-label").hidden = films.length < 2;
  player.film = films[Number(byId("trajectory").value)];
  const views = Object.keys(player.film.fields[filmField()]);
  options(byId("view"), views.map((view) => [view, view]), true);
  byId("view-label").hidden = views.length < 2;
  const name = filmField(), seen = player.film.fields[name][byId("view").value];
  byId("film-title").textContent = `Truth, forecast and error: ${seen.label}, trajectory ${player.film.trajectory}`;
  byId("film-hint").textContent = [
    player.film.every > 1 ? `One cell in ${player.film.every} along each axis is shown.` : "",
    `${player.film.steps.length} frames.`,
    data.first_only ? "The page shows the first trajectory of each scenario." : "",
    seen.strips[0].limits ? "Truth and forecast share their colours; grey cells are obstacles or not finite." : "",
    seen.strips[0].limits ? "First axis to the right, second one up." : "",
  ].filter(Boolean).join(" ");
  byId("frame").max = player.film.steps.length - 1;
  byId("frame").value = Math.min(byId("frame").value, byId("frame").max);
  byId("panels").classList.toggle("plots", !seen.strips[0].limits);
  player.pictures = seen.strips.map((strip) => panel(strip, seen));
  byId("panels").replaceChildren(...player.pictures.map((picture) => picture.holder));
  showFrame();
}

function panel(strip, seen) {
  const canvas = make("canvas", { width: strip.width, height: strip.height });
  canvas.setAttribute("role", "img");
  const holder = make("div", {}, make("h3", { textContent: strip.title }), canvas);
  if (strip.limits) {
    const ramp = make("div", { className: "ramp" });
    ramp.style.background = `linear-gradient(to right, ${strip.colours.join(", ")})`;
    const ends = strip.limits.map((value) => make("span", { textContent: number(value) }));
    const unit = strip.title === "error" ? seen.error : seen.label;
    holder.append(ramp, make("div", { className: "ends" }, ...ends), make("div", { className: "unit", textContent: `${unit} [${seen.unit}]` }));
  }
  const picture = { holder, canvas, strip, image: new Image() };
  picture.image.addEventListener("load", showFrame);
  picture.image.src = strip.image;
  return picture;
}

function showFrame() {
  const frame = Number(byId("frame").value), step = player.film.steps[frame];
  const text = `lead time ${number(step * player.film.dt)} simulation units (step ${step})`;
  byId("frame-text").textContent = text;
  byId("frame").setAttribute("aria-valuetext", text);
  for (const { canvas, strip, image } of player.pictures) {
    canvas.setAttribute("aria-label", `${strip.title} at ${text}`);
    if (!image.complete || !image.naturalWidth) continue;
    canvas.getContext("2d").drawImage(image, 0, frame * strip.height, strip.width, strip.height, 0, 0, strip.width, strip.height);
  }
}

function stop() {
  clearInterval(player.timer);
  player.timer = null;
  byId("play").textContent = "Play";
  byId("play").setAttribute("aria-pressed", "false");
}

function play() {
  if (player.timer) return stop();
  byId("play").textContent = "Pause";
  byId("play").setAttribute("aria-pressed", "true");
  player.timer = setInterval(() => {
    const slider = byId("frame");
    slider.value = Number(slider.value) < Number(slider.max) ? Number(slider.value) + 1 : 0;
    showFrame();
  }, 160);
}

// --- training, facts, and the whole -----------------------------------------------------------------------------------

function showTraining() {
  const runs = Object.keys(data.training);
  byId("training-section").hidden = !runs.length;
  if (!runs.length) return;
  options(byId("training-run"), runs.map((run) => [run, run]), true);
  const panels = data.training[byId("training-run").value];
  options(byId("training-panel"), Object.keys(panels).map((name) => [name, name]), true);
  const title = byId("training-panel").value, found = Object.entries(panels[title]);
  const groups = [...new Set(found.map(([name]) => name.replace(/, persistence$/, "")))];
  const series = found.map(([name, [x, y]]) => {
    const group = name.replace(/, persistence$/, "");
    return { name, x, y, colour: name === "mean" ? "ink" : groups.filter((other) => other !== "mean").indexOf(group), dash: group === name ? "" : "5 4" };
  });
  const values = series.flatMap((s) => s.y), [low, high] = extent(values);
  chart(byId("training-chart"), { series, label: `${title} against step`, xLabel: "step", yLabel: title, yLog: low > 0 && high > 20 * low && title !== "learning rate", placeText: (step) => `step ${number(step)}` });
}

function plain(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "number") return Number.isInteger(value) ? value.toLocaleString("en") : number(value);
  if (Array.isArray(value)) return [...new Set(value.map(plain))].join(", ") || "none";
  if (typeof value === "object") return Object.entries(value).map(([name, item]) => `${words(name)}: ${plain(item)}`).join("; ") || "none";
  return String(value);
}

function facts(container, groups) {
  container.replaceChildren(...groups.flatMap(([title, entries]) => [
    ...(title ? [make("h3", { textContent: title })] : []),
    make("dl", {}, ...Object.entries(entries).flatMap(([name, value]) => [
      make("dt", { textContent: words(name) }),
      make("dd", { textContent: Array.isArray(value) && (name === "grid" || name === "axes") ? value.join(" × ") : plain(value) }),
    ])),
  ]));
}

function showScenario() {
  const entry = scenario(), name = byId("scenario").value;
  options(byId("field"), [...(entry.fields.length > 1 ? [MEAN] : []), ...entry.fields].map((item) => [item, item]), true);
  if (entry.fields.length === 1) byId("field").value = entry.fields[0];
  byId("scenario-title").textContent = entry.facts.title ? `${words(name)} (${entry.facts.title})` : words(name);
  byId("summary").textContent = summary(entry.facts);
  byId("notes").replaceChildren(...[...entry.notes, ...failures(entry)].map((text) => make("li", { textContent: text })));
  facts(byId("facts"), [["", { scenario: name, ...entry.facts }]]);
  showField();
}

function summary(found) {
  if (!found.trajectories) return "No trajectory could be forecast.";
  const n = found.trajectories, sides = Object.entries(found.boundary_conditions ?? {}).map(([axis, kinds]) => `${axis} ${plain(kinds)}`);
  return `${found.grid.join(" × ")} cells (${sides.join(", ")}), ${n} ${n === 1 ? "trajectory" : "trajectories"}, forecast from frame ${plain(found.start)}, ${plain(found.steps)} steps of ${plain(found.dt)} simulation units.`;
}

function failures(entry) {
  return Object.entries(entry.forecasters).flatMap(([who, found]) => (found.failures ?? []).map(
    (failure) => `${who}, trajectory ${failure.trajectory}: failed at step ${failure.step}, ${failure.reason}`,
  )).slice(0, 50);
}

function showField() {
  showTable();
  showErrors();
  showQuantities();
  showFilm();
}

function start() {
  const models = data.runs.map((run) => `${run.name ? `${run.name}: ` : ""}${run.model.name}`);
  byId("lead").textContent = `${models.join("; ")}. Protocol ${[...new Set(data.runs.map((run) => run.protocol.name))].join(", ")}, ${names.length} ${names.length === 1 ? "scenario" : "scenarios"}.`;
  options(byId("scenario"), names.map((name) => [name, words(name)]));
  facts(byId("protocol"), data.runs.flatMap((run) => [
    [run.name ? `${run.name}: protocol` : "Protocol", { ...run.protocol, windows: Object.keys(run.protocol.windows) }],
    ["Model", { ...run.model, device: run.device }], ["Versions", run.versions],
    ...(run.notes.length || data.unreadable.length ? [["Notes", { notes: [...run.notes, ...data.unreadable].join("; ") }]] : []),
  ]));
  byId("log").checked = names.some((name) => hasLargeErrors(data.scenarios[name]));
  showOverview();
  showScenario();
  showTraining();
  byId("scenario").addEventListener("change", showScenario);
  byId("field").addEventListener("change", showField);
  byId("statistic").addEventListener("change", () => { showOverview(); showTable(); });
  byId("log").addEventListener("change", showErrors);
  byId("quantity").addEventListener("change", showQuantities);
  for (const id of ["trajectory", "view"]) byId(id).addEventListener("change", showFilm);
  byId("frame").addEventListener("input", () => { stop(); showFrame(); });
  byId("play").addEventListener("click", play);
  for (const id of ["training-run", "training-panel"]) byId(id).addEventListener("change", showTraining);
}

start();
