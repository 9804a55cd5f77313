// The page of lb-sidecar. Everything from outside becomes text by textContent, never markup.
"use strict";

import { drawChart, makeChart, scaleOf } from "./chart.js";

const HISTORY_MS = 10000;
const LEAST_STEP_S = 30; // below it a probe a second is too few for a median
const CHARTS = 24;
const REFRESH_MS = 2000;
const LOG_KEPT = 200;
const TONES = {
  pass: "good", warn: "warn", fail: "bad",
  healthy: "good", suspect: "warn", ejected: "bad", probation: "info", unknown: "quiet",
  ready: "good", draining: "warn", maintenance: "info",
  full: "good", reduced: "warn", none: "bad",
  returned: "good", held: "warn", refused: "warn", operator: "info", pool_event: "bad", drift: "warn", balancer: "warn", self: "warn", adopted: "info",
};
const byId = (id) => document.getElementById(id);
const state = { services: {}, chosen: "", alone: "", open: new Set(), log: [], lastId: 0, cursor: null, shown: LOG_KEPT, ahead: 0, series: null, marks: [], token: sessionStorage.getItem("token") || "" };

// ---- small tools ----

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function say(node, text) {
  const value = text === null || text === undefined ? "" : String(text);
  if (node.textContent !== value) node.textContent = value;
}

function tone(node, word, text) {
  say(node, text === undefined ? word : text);
  const wanted = TONES[word] || "quiet";
  if (node.dataset.tone !== wanted) node.dataset.tone = wanted;
}

// Make the children of `parent` follow `items`: nodes are kept by key, so that focus and open rows survive a refresh.
function follow(parent, items, keyOf, make, update) {
  const known = new Map();
  for (const child of parent.children) known.set(child.dataset.key, child);
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = String(keyOf(item));
    let node = known.get(key);
    if (node) known.delete(key);
    else { node = make(item); node.dataset.key = key; }
    update(node, item);
    if (node === place) place = place.nextElementSibling;
    else parent.insertBefore(node, place);
  }
  for (const node of known.values()) node.remove();
}

function seconds(value) {
  if (value === null || value === undefined) return "n/a";
  if (value < 0.001) return `${(value * 1e6).toFixed(0)} µs`;
  if (value < 0.01) return `${(value * 1000).toFixed(2)} ms`;
  if (value < 0.1) return `${(value * 1000).toFixed(1)} ms`;
  if (value < 1) return `${(value * 1000).toFixed(0)} ms`;
  return `${value.toFixed(2)} s`;
}

function span(value) {
  if (value < 120) return `${Math.round(value)} s`;
  if (value < 7200) return `${Math.round(value / 60)} min`;
  return value < 172800 ? `${(value / 3600).toFixed(1)} h` : `${Math.round(value / 86400)} days`;
}

const clock = (when) => new Date(when).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });

function quantile(node, q) {
  const has = q && q.value !== null;
  say(node, has ? seconds(q.value) : "n/a");
  node.classList.toggle("q-na", !has);
  const samples = q ? `${q.samples} of ${q.needed} samples needed` : "no samples";
  const hint = has ? `${q.samples} samples` : samples;
  if (node.title !== hint) node.title = hint;
}

async function ask(path, more) {
  const headers = state.token ? { Authorization: `Bearer ${state.token}` } : {};
  const answer = await fetch(path, { ...more, headers: { ...headers, ...(more && more.headers) } });
  if (answer.status === 401) byId("token-form").hidden = false;
  if (!answer.ok) {
    let told = `${answer.status} ${answer.statusText}`;
    try { const body = await answer.json(); told = `${body.error}: ${body.cure}`; } catch { /* not ours: the status has to do */ }
    throw new Error(told);
  }
  return answer;
}

// ---- the sidecar and the services ----

function showSidecar(own) {
  tone(byId("overall"), own.status, { pass: "all well", warn: "look closer", fail: "failing" }[own.status]);
  const mode = byId("mode");
  mode.hidden = !own.mode;
  say(mode, own.mode === "observe" ? "observe: nothing is written" : own.mode);
  mode.dataset.tone = own.mode === "observe" ? "info" : "quiet";
  const facts = [["version", own.version], ["up", own.uptime_s === null ? "" : span(own.uptime_s)],
    ["loop lag", own.loop_lag_s === null ? "" : seconds(own.loop_lag_s)],
    ["memory", own.rss_bytes ? `${(own.rss_bytes / 1048576).toFixed(0)} MiB` : ""], ["configuration", (own.config_hash || "").slice(0, 8)]];
  follow(byId("own"), facts.filter(([, value]) => value), ([name]) => name, ([name]) => {
    const row = element("div");
    row.append(element("dt", "", name), element("dd"));
    return row;
  }, (row, [, value]) => say(row.lastElementChild, value));
  showLines(byId("notes"), own.notes);
  byId("notes").hidden = own.notes.length === 0;
}

function showLines(list, lines) {
  follow(list, lines.map((text, place) => ({ text, place })), (line) => line.place, () => element("li"), (node, line) => say(node, line.text));
}

const QUANTS = ["p50", "p90", "p99"];

function quants() {
  const box = element("div", "quants");
  box.append(element("span", "q-name q-head", "last minute"), ...QUANTS.map((name) => element("span", "q-head", name)));
  for (const source of ["probe", "traffic"]) {
    box.append(element("span", "q-name", source));
    for (const name of QUANTS) { const cell = element("span"); cell.dataset.q = `${source} ${name}`; box.append(cell); }
  }
  return box;
}

function makeCard(service) {
  const card = element("a", "card");
  const head = element("div", "card-head");
  head.append(element("span", "card-name", service.service), element("span", "pill"));
  card.append(head, element("div", "card-line"), element("div", "strip"), quants(), element("div", "card-why"));
  card.querySelector(".strip").setAttribute("aria-hidden", "true");
  return card;
}

function updateCard(card, service) {
  card.href = `#${encodeURIComponent(service.service)}`;
  card.setAttribute("aria-current", String(service.service === state.chosen));
  tone(card.querySelector(".pill"), service.status);
  const c = service.counts;
  const extras = [service.mode === "observe" ? "observe" : "", service.cold_start ? "cold start" : "", service.freeze ? "frozen" : ""];
  say(card.querySelector(".card-line"),
    [`${c.in_rotation} of ${c.instances} in rotation`, `${c.healthy} healthy`, ...extras.filter(Boolean)].join(" · "));
  const shown = Object.values(service.instances).slice(0, 80);
  follow(card.querySelector(".strip"), shown, (i) => i.instance, () => element("span"), (node, i) => {
    node.dataset.tone = TONES[i.judgement] || "quiet";
    node.toggleAttribute("data-out", i.serving === "none");
    node.title = `${i.name}: ${i.judgement}, serving ${i.serving}`;
  });
  for (const cell of card.querySelectorAll("[data-q]")) {
    const [source, name] = cell.dataset.q.split(" ");
    quantile(cell, service.latency[source] && service.latency[source][name]);
  }
  const why = card.querySelector(".card-why");
  say(why, service.why[0] || "");
  why.hidden = service.why.length === 0;
}

const worse = (a, b) => ["fail", "warn", "pass"].indexOf(a.status) - ["fail", "warn", "pass"].indexOf(b.status);

function showServices() {
  const services = Object.values(state.services).sort((a, b) => worse(a, b) || a.service.localeCompare(b.service));
  if (!state.services[state.chosen]) choose(services[0] ? services[0].service : "");
  byId("none").hidden = services.length > 0;
  follow(byId("cards"), services, (s) => s.service, makeCard, updateCard);
  showDetail(state.services[state.chosen]);
}

// `#SERVICE`, or `#SERVICE/INSTANCE` for one instance alone.
function choose(otherwise) {
  let name = "";
  try { name = decodeURIComponent(location.hash.slice(1)); } catch { /* not ours */ }
  const slash = name.indexOf("/");
  const service = slash < 0 ? name : name.slice(0, slash);
  const isKnown = Object.hasOwn(state.services, service);
  const before = `${state.chosen}/${state.alone}`;
  state.chosen = isKnown ? service : otherwise;
  state.alone = isKnown && slash >= 0 ? name.slice(slash + 1) : "";
  if (`${state.chosen}/${state.alone}` !== before) { state.series = null; refreshSeries(); }
  return isKnown;
}

const addressOf = (i) => `#${encodeURIComponent(`${i.service}/${i.instance}`)}`;

// ---- one service ----

function showDetail(service) {
  byId("detail").hidden = !service;
  say(byId("only-text"), service ? `${service.service} only` : "this service only");
  if (!service) return;
  say(byId("detail-title"), service.service);
  tone(byId("detail-status"), service.status);
  say(byId("detail-mode"), service.mode);
  byId("detail-mode").dataset.tone = service.mode === "observe" ? "info" : "quiet";
  const labels = [...Object.entries(service.labels).map(([k, v]) => `${k}: ${v}`), ...service.pools.map((p) => `pool ${p}`)];
  follow(byId("detail-labels"), labels, (l) => l, (l) => element("span", "tag", l), () => {});
  showRunbook(service.runbook);
  showLines(byId("why"), whyLines(service));
  showFigures(service);
  byId("holds-box").hidden = service.holds.length === 0;
  follow(byId("holds"), grouped(service), (h) => `${h.name} ${h.why}`, makeHold, updateHold);
  showRoom(service);
  const all = byId("all-instances");
  all.hidden = !state.alone;
  all.setAttribute("href", `#${encodeURIComponent(service.service)}`);
  showCharts(service);
  const instances = Object.values(service.instances).filter((i) => !state.alone || i.instance === state.alone || i.name === state.alone);
  if (state.alone) for (const i of instances) state.open.add(`${i.service} ${i.instance}`);
  say(byId("instances-count"), state.alone ? `(1 of ${Object.keys(service.instances).length})` : `(${instances.length})`);
  const top = Math.max(...instances.map(widest), 0);
  follow(byId("instances"), instances, (i) => `${i.service} ${i.instance}`, makeInstance, (node, i) => updateInstance(node, i, top));
}

// Without the holds, which have a list of their own, and with one line for all instances of one judgement.
function whyLines(service) {
  const about = new Map(Object.values(service.instances).map((i) => [`${i.name} is ${i.judgement}`, i]));
  const lines = service.why.filter((line) => !line.startsWith("held by ") && !about.has(line));
  const names = {};
  for (const line of service.why) if (about.has(line)) (names[about.get(line).judgement] ||= []).push(about.get(line).name);
  return [...lines, ...Object.entries(names).map(([judgement, who]) => `${several(who)} ${who.length === 1 ? "is" : "are"} ${judgement}`)];
}

function several(names) {
  const shown = [...names].sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
  return shown.length <= 6 ? shown.join(", ") : `${shown.slice(0, 5).join(", ")} and ${shown.length - 5} more`;
}

// Each hold once for all whom it holds with the same arithmetic.
function grouped(service) {
  const found = new Map();
  for (const { name, why, instance } of service.holds) {
    const key = `${name} ${why}`;
    if (!found.has(key)) found.set(key, { name, why, who: [] });
    found.get(key).who.push(instance ? nameOf(service, instance) : "the whole service");
  }
  return [...found.values()];
}

function showRunbook(address) {
  const link = byId("runbook");
  // Only what is plainly a web address becomes a link: `javascript:` from a configuration must stay text
  const usable = /^https?:\/\//i.test(address);
  link.hidden = !usable;
  if (usable) link.href = address;
  else link.removeAttribute("href");
}

function showFigures(service) {
  const c = service.counts;
  const probe = service.latency.probe;
  const figures = [[`${c.in_rotation} / ${c.instances}`, "in rotation"], [c.healthy, "of these healthy"], [c.ejected, "ejected by us"],
    [c.instances - c.counted, "with an operator"], [probe ? `${probe.failures} of ${probe.failures + probe.count}` : "n/a", "probes failed, last minute"]];
  follow(byId("figures"), figures, ([, name]) => name, ([, name]) => {
    const box = element("div", "figure");
    box.append(element("b"), element("span", "", name));
    return box;
  }, (box, [value]) => say(box.firstElementChild, value));
}

// The guards' arithmetic before anything is held: how many may be out, and how many are.
function showRoom(service) {
  const r = service.room;
  byId("room").hidden = !r;
  if (r) {
    say(byId("room"), `Guards: ${r.out} of ${r.counted} ${r.out === 1 ? "gets" : "get"} no traffic now, whoever took ${r.out === 1 ? "it" : "them"} out; at most ${r.hard} may by hard evidence, `
      + `${r.soft} by soft; ${r.sound} ${r.sound === 1 ? "is" : "are"} sound, at least ${r.min_healthy} must stay so.`);
  }
}

function makeHold() {
  const item = element("li");
  item.append(element("span", "tag"), element("b"), element("span"));
  item.firstElementChild.dataset.tone = "warn";
  return item;
}

function updateHold(item, hold) {
  const [name, who, why] = item.children;
  say(name, hold.name.replaceAll("_", " "));
  say(who, several(hold.who));
  say(why, hold.why);
}

function nameOf(service, address) {
  const found = Object.values(service.instances).find((i) => i.instance === address);
  return found ? found.name : address;
}

const own = (i) => i.latency.probe || {};
const widest = (i) => Math.max(...QUANTS.map((q) => (own(i)[q] && own(i)[q].value) || 0));

function makeInstance(instance) {
  const item = element("div", "item");
  const row = element("div", "row");
  row.setAttribute("role", "row");
  const who = cell("cell-who");
  const button = element("button", "who");
  button.type = "button";
  const text = element("span");
  text.append(element("span", "name"), element("small"));
  button.append(text);
  who.append(button);
  row.append(who);
  for (const label of ["Judgement", "Operator", "Serving"]) {
    const box = cell("cell-state", label);
    box.append(element("span", "pill"));
    row.append(box);
  }
  for (const name of QUANTS) {
    const box = cell("cell-q num", name);
    box.append(element("span", "q-probe"), element("span", "q-traffic"));
    row.append(box);
  }
  const why = cell("cell-why reason");
  why.append(element("span", "because"), element("span", "next"));
  row.append(why);
  const bar = element("div", "bar");
  bar.setAttribute("aria-hidden", "true");
  bar.append(element("i"));
  row.append(bar);
  const more = element("div", "more");
  more.hidden = true;
  item.append(row, more);
  const alone = element("a", "alone", "alone");
  alone.setAttribute("href", addressOf(instance));
  alone.setAttribute("aria-label", `${instance.name} alone`);
  who.append(alone);
  const key = `${instance.service} ${instance.instance}`;
  button.addEventListener("click", () => {
    if (state.open.has(key)) state.open.delete(key);
    else state.open.add(key);
    showDetail(state.services[state.chosen]);
  });
  return item;
}

function cell(className, label) {
  const box = element("div", className);
  box.setAttribute("role", "cell");
  if (label) box.dataset.label = label;
  return box;
}

function updateInstance(item, i, top) {
  const part = (selector) => item.querySelector(selector);
  say(part(".name"), i.name);
  say(part("small"), i.name === i.instance ? "" : i.instance);
  const [judgement, operator, serving] = item.querySelectorAll(".cell-state .pill");
  tone(judgement, i.judgement, i.stale ? `${i.judgement}, stale` : i.judgement);
  tone(operator, i.operator);
  tone(serving, i.serving);
  if (i.serving === "none" && i.operator !== "ready") serving.dataset.tone = "quiet"; // as an operator wants it
  item.querySelectorAll(".cell-q").forEach((box, place) => {
    quantile(box.firstElementChild, own(i)[QUANTS[place]]);
    const traffic = i.latency.traffic && i.latency.traffic[QUANTS[place]];
    say(box.lastElementChild, traffic ? `traffic ${seconds(traffic.value)}` : "");
  });
  const out = i.ejection && !i.ejection.enforced ? " (observed only: it still gets traffic)" : "";
  say(part(".because"), because(i) + out);
  say(part(".next"), `Next: ${i.next}`);
  showBar(part(".bar"), i, top);
  const isOpen = state.open.has(`${i.service} ${i.instance}`);
  part(".who").setAttribute("aria-expanded", String(isOpen));
  const more = part(".more");
  more.hidden = !isOpen;
  if (isOpen) showMore(more, i);
}

// An operator's word first, for it explains what it gets; then what the balancer says where it gets nothing and nobody of us wants it so.
function because(i) {
  const words = i.overrides.filter((o) => o.state !== "ready");
  if (words.length) {
    const [word] = words.filter((o) => o.state === "maintenance").concat(words);
    return `${word.state} by ${word.actor}${word.until ? `, until ${clock(word.until)}` : ""}${word.reason ? `: ${word.reason}` : ""}`;
  }
  const out = i.servers.filter((s) => s.serving === false && s.ours === "full" && s.operator === "ready" && s.remark);
  const remarks = [...new Set(out.map((s) => `${s.balancer}: ${s.remark}`))];
  return [...(i.judgement === "healthy" && remarks.length ? [] : [i.reason || "no conclusive answer yet"]), ...remarks].join("; ");
}

function showBar(bar, i, top) {
  const from = (own(i).p50 && own(i).p50.value) || 0;
  const to = widest(i);
  bar.hidden = !to || !top;
  if (bar.hidden) return;
  bar.title = "p50 to the highest known percentile, against the slowest instance";
  bar.firstElementChild.style.left = `${(from / top) * 100}%`;
  bar.firstElementChild.style.width = `${Math.max(2, ((to - from) / top) * 100)}%`;
}

// ---- over time ----

let asking = 0;
async function refreshSeries() {
  if (!state.chosen || document.hidden) return;
  const [service, range, source] = [state.chosen, Number(byId("range").value), byId("source").value];
  const until = Math.floor((Date.now() + state.ahead) / 1000);
  const since = new Date((until - range) * 1000).toISOString();
  const step = Math.max(LEAST_STEP_S, Math.ceil(range / 1200) * 10);
  const mine = ++asking;
  const path = `/api/v1/services/${encodeURIComponent(service)}/series?since=${since}&until=${new Date(until * 1000).toISOString()}&step=${step}s&source=${source}`;
  const about = `/api/v1/decisions?service=${encodeURIComponent(service)}&since=${since}&limit=1000`;
  try {
    const [series, decisions] = await Promise.all([ask(path).then((a) => a.json()), ask(about).then((a) => a.json())]);
    if (mine !== asking) return;
    state.series = { ...series, range: { since: until - range, until, step: series.step_s } };
    state.marks = decisions.decisions.filter((d) => (d.kind === "ejected" || d.kind === "returned") && d.enforced)
      .map((d) => ({ at: new Date(d.when) / 1000, kind: d.kind, instance: d.instance, sentence: d.sentence }));
    if (state.services[service]) showCharts(state.services[service]);
  } catch { /* the next refresh tells what is wrong */ }
}

function showCharts(service) {
  const series = state.series;
  const columns = series ? Object.entries(series.instances) : [];
  const total = Object.values(service.instances).reduce((sum, i) => sum + lately(i), 0);
  const gone = (address) => !Object.values(service.instances).some((i) => i.instance === address);
  const rank = (address) => (service.instances && Object.values(service.instances).find((i) => i.instance === address && i.serving === "none") ? 0 : gone(address) ? 2 : 1);
  const rows = columns.map(([address, column]) => ({ address, column, name: nameOf(service, address), gone: gone(address) }))
    .filter((r) => !state.alone || r.address === state.alone || r.name === state.alone)
    .sort((a, b) => rank(a.address) - rank(b.address) || a.name.localeCompare(b.name, undefined, { numeric: true }));
  const scale = scaleOf(rows.map((r) => r.column));
  byId("charts-none").hidden = rows.length > 0;
  say(byId("charts-none"), series ? "Nothing is kept of this time yet; ten seconds after a start the first is." : "Asking what is kept …");
  byId("charts-more").hidden = rows.length <= CHARTS;
  say(byId("charts-more"), `${rows.length - CHARTS} more are not drawn; choose one in the list below.`);
  byId("charts").classList.toggle("alone", Boolean(state.alone));
  follow(byId("charts"), rows.slice(0, CHARTS), (r) => `${service.service} ${r.address}`, makeRow, (node, r) => updateRow(node, r, service, series, scale, total));
}

// Real requests of the last minute, as far as the balancer tells us of them.
const lately = (i) => (i.latency.traffic ? i.latency.traffic.count + i.latency.traffic.failures : 0);
const requests = (column) => column.count.reduce((sum, n) => sum + n, 0) + column.failures.reduce((sum, n) => sum + n, 0);

function makeRow() {
  const row = element("div", "over");
  const head = element("div", "over-head");
  head.append(element("a", "name"), element("span", "pill"), element("span", "share"), element("span", "scale"));
  row.append(head, makeChart(), element("div", "over-why"));
  return row;
}

function updateRow(row, r, service, series, scale, total) {
  const [link, pill, share, top] = row.firstElementChild.children;
  const i = Object.values(service.instances).find((each) => each.instance === r.address);
  say(link, r.name);
  link.setAttribute("href", addressOf({ service: service.service, instance: r.address }));
  const word = !i ? "unknown" : i.operator === "ready" ? i.judgement : i.operator;
  tone(pill, word, i ? word : "gone");
  say(share, total && i ? `${((lately(i) / total) * 100).toFixed(0)} % of the last minute's traffic` : "");
  say(top, scale ? `${seconds(scale.least)} to ${seconds(scale.most)}` : "");
  const mine = state.marks.filter((m) => m.instance === r.address && m.at >= series.range.since);
  const label = `${r.name}: ${requests(r.column)} ${series.source === "traffic" ? "requests" : "probes"}, ${mine.filter((m) => m.kind === "ejected").length} ejections`;
  showWhy(row.lastElementChild, i);
  drawChart(row.querySelector("svg"), r.column, scale, series.range, mine, label, (place, column, range, marks) => read(r.name, place, column, range, marks));
}

// Which is out, why, by whom, and what happens next: beside its chart, so that nobody has to look further.
function showWhy(box, i) {
  box.hidden = !i || (i.judgement === "healthy" && i.operator === "ready" && i.serving === "full");
  if (box.hidden) return;
  const by = i.ejection ? ` (by rule:${i.ejection.rule.replace("rule:", "")})` : "";
  follow(box, [`${because(i)}${by}`, `Next: ${i.next}`], (line) => line.startsWith("Next: "), () => element("p"), (node, line) => say(node, line));
}

function read(name, place, column, range, marks) {
  if (place === "") return;
  const at = column.at[place];
  const near = marks.filter((m) => m.at >= at && m.at < at + range.step).map((m) => m.sentence);
  const stood = [column.judgement[place], column.operator[place] === "ready" ? "" : column.operator[place], column.serving[place] ? `serving ${column.serving[place]}` : ""];
  const times = column.count[place] ? `p50 ${seconds(column.p50[place])}, p99 ${seconds(column.p99[place])}, ${seconds(column.min[place])} to ${seconds(column.max[place])}` : "no good answer";
  say(byId("reading"), `${name} · ${new Date(at * 1000).toLocaleTimeString()} · ${times} · ${column.count[place]} good, ${column.failures[place]} failed · `
    + [...stood.filter(Boolean), ...near].join(", "));
}

function showMore(box, i) {
  const groups = [
    ["Checks", Object.entries(i.checks).map(([spec, c]) => checkLine(spec, c))],
    ["Servers", i.servers.map(serverLine)],
    ["Ejection", i.ejection ? [ejectionLine(i.ejection)] : []],
    ["Overrides", i.overrides.map((o) => `${o.state} for owner ${o.owner} by ${o.actor}${o.until ? ` until ${clock(o.until)}` : ""}${o.reason ? `: ${o.reason}` : ""}`)],
    ["Holds", i.holds.map((h) => `${h.name.replaceAll("_", " ")}: ${h.why}`)],
    ["Asking", [askLine(i)]],
    ["Labels", Object.entries(i.labels).map(([k, v]) => `${k}: ${v}`)],
  ];
  follow(box, groups.filter(([, lines]) => lines.length), ([name]) => name, ([name]) => {
    const group = element("div");
    group.append(element("h4", "", name), element("ul"));
    return group;
  }, (group, [, lines]) => showLines(group.lastElementChild, lines));
}

function checkLine(spec, c) {
  const run = c.bad_run ? `${c.bad_run} bad in a row, last ${c.last_reason || "failure"}${c.detail ? ` (${c.detail})` : ""}` : `${c.good_run} good in a row`;
  return `${spec}: ${run}; ${c.answers} answers${c.failed ? "; the evidence is complete" : ""}`;
}

function serverLine(s) {
  const serving = s.serving === null ? "unknown" : s.serving ? "yes" : "no";
  const parts = [`${s.balancer}/${s.pool}/${s.server}: ours ${s.ours}, operator ${s.operator}, serving ${serving}, weight ${s.weight}`];
  if (s.weight_pct !== 100) parts.push(`cut to ${s.weight_pct} %`);
  if (s.in_flight !== null) parts.push(`${s.in_flight} in flight`);
  if (s.writable) parts.push(`not writable: ${s.writable}`);
  if (s.remark) parts.push(s.remark);
  return parts.join(", ");
}

function ejectionLine(e) {
  const parts = [`${e.rule} since ${clock(e.since)}: ${e.cause}`];
  if (e.witnesses.length) parts.push(`witnesses ${e.witnesses.join(", ")}`);
  if (e.repeat) parts.push(`repeat ${e.repeat}`);
  if (e.not_before) parts.push(`not back before ${clock(e.not_before)}`);
  if (!e.enforced) parts.push("observe mode: nothing was written");
  return parts.join("; ");
}

function askLine(i) {
  if (i.interval_s === null) return "nothing is asked";
  const age = i.last_probe_age_s === null ? "never answered" : `last answer ${seconds(i.last_probe_age_s)} ago`;
  return `${age}; every ${seconds(i.interval_s)}, patience ${seconds(i.timeout_s)}`;
}

// ---- decisions ----

function showLog() {
  const only = byId("only").checked;
  const kind = byId("kind").value;
  const words = byId("find").value.toLowerCase().split(/\s+/).filter(Boolean);
  const says = (d) => `${d.kind} ${d.service}/${d.instance} ${d.by} ${d.sentence}`.toLowerCase();
  const shown = state.log.filter((d) => (!only || d.service === state.chosen || d.service === "") && (!kind || d.kind === kind)
    && (!state.alone || !d.instance || d.service !== state.chosen || d.instance === state.alone || nameOf(state.services[d.service], d.instance) === state.alone)
    && words.every((w) => says(d).includes(w))).slice(0, state.shown);
  follow(byId("kind"), ["", ...[...new Set(state.log.map((d) => d.kind))].sort()], (k) => k || "all", (k) => {
    const option = element("option", "", k.replaceAll("_", " ") || "all");
    option.value = k;
    return option;
  }, () => {});
  byId("older").hidden = state.cursor === null;
  byId("log-none").hidden = shown.length > 0;
  byId("log").hidden = shown.length === 0;
  follow(byId("log"), shown, (d) => d.id, makeDecision, () => {});
}

function makeDecision(d) {
  const item = element("li");
  const when = element("time", "", clock(d.when));
  when.dateTime = d.when;
  when.title = new Date(d.when).toLocaleString();
  const kind = element("span", "tag", d.kind.replaceAll("_", " "));
  kind.dataset.tone = TONES[d.kind] || "quiet";
  const what = element("span", "what", d.sentence);
  const arithmetic = [...d.holds.map((h) => `${h.name.replaceAll("_", " ")}: ${h.why}`), ...d.evidence.map((e) => `${e.count} × ${e.kind}, ${e.strength}${e.detail ? `: ${e.detail}` : ""}`)];
  for (const line of arithmetic.filter((l) => !d.sentence.includes(l)).slice(0, 3)) what.append(element("span", "arith", line));
  item.append(when, kind, what, element("span", "by", `by ${d.by}`));
  if (d.live) item.classList.add("new");
  return item;
}

function take(decisions) {
  const known = new Set(state.log.map((d) => d.id));
  state.log = [...decisions.filter((d) => !known.has(d.id)), ...state.log].sort((a, b) => b.id - a.id).slice(0, state.shown * 2);
  if (state.log.length) state.lastId = Math.max(state.lastId, state.log[0].id);
  showLog();
}

// ---- keeping up ----

async function older() {
  const page = await (await ask(`/api/v1/decisions?limit=200&cursor=${state.cursor}`)).json();
  state.shown += 200;
  state.cursor = page.next_cursor;
  take(page.decisions);
}

function link(word, text) {
  byId("link").dataset.state = word;
  say(byId("link"), text);
}

let refreshing = false;
async function refresh() {
  if (refreshing || document.hidden) return;
  refreshing = true;
  try {
    const body = await (await ask("/api/v1/services")).json();
    byId("trouble").hidden = true;
    byId("token-form").hidden = true;
    state.services = body.services;
    state.ahead = new Date(body.sidecar.when) - Date.now(); // the sidecar's clock counts, not this one's
    showSidecar(body.sidecar);
    showServices();
  } catch (error) {
    say(byId("trouble"), `What you see may be old. ${error.message}`);
    byId("trouble").hidden = false;
  } finally {
    refreshing = false;
  }
}

let soon = 0;
function refreshSoon() {
  clearTimeout(soon);
  soon = setTimeout(refresh, 150);
}

// EventSource cannot send a token, so the stream is read by hand.
async function listen() {
  for (let wait = 1000; ; wait = Math.min(wait * 2, 15000)) {
    try {
      const page = await (await ask("/api/v1/decisions?limit=100")).json();
      const recent = page.decisions;
      if (!state.log.length) state.cursor = page.next_cursor;
      // ids that go back are another life of the sidecar, without a state folder: what is shown here is over
      if (!recent.length || recent[0].id < state.lastId) Object.assign(state, { log: [], lastId: 0 });
      take(recent);
      const answer = await ask("/api/v1/events", { headers: state.lastId ? { "Last-Event-ID": String(state.lastId) } : {} });
      link("live", "live");
      wait = 500;
      await readEvents(answer.body.getReader());
    } catch { /* told by the link below, and by refresh */ }
    link("lost", "reconnecting");
    await new Promise((go) => setTimeout(go, wait));
  }
}

async function readEvents(reader) {
  const decoder = new TextDecoder();
  for (let rest = ""; ;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (rest + decoder.decode(value, { stream: true })).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const line = event.split("\n").find((l) => l.startsWith("data: "));
      if (!line) continue;
      const decision = { ...JSON.parse(line.slice(6)), live: true };
      take([decision]);
      refreshSoon();
      if (decision.service === state.chosen && (decision.kind === "ejected" || decision.kind === "returned")) refreshSeries();
    }
  }
}

// ---- theme, choice, token ----

const THEMES = ["auto", "light", "dark"];
function applyTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  say(byId("theme"), theme[0].toUpperCase() + theme.slice(1));
  byId("theme").setAttribute("aria-label", `Colours: ${theme === "auto" ? "as the system has them" : theme}`);
}

byId("theme").addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(localStorage.getItem("theme") || "auto") + 1) % THEMES.length];
  localStorage.setItem("theme", next);
  applyTheme(next);
});
byId("only").addEventListener("change", showLog);
byId("kind").addEventListener("change", showLog);
byId("find").addEventListener("input", showLog);
byId("older").addEventListener("click", older);
byId("range").addEventListener("change", refreshSeries);
byId("source").addEventListener("change", refreshSeries);
byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.token = byId("token").value.trim();
  byId("token").value = "";
  sessionStorage.setItem("token", state.token);
  refresh();
});
addEventListener("hashchange", () => {
  if (!choose(state.chosen)) return;
  showServices();
  showLog();
});
document.addEventListener("visibilitychange", () => { refresh(); refreshSeries(); });

const stored = localStorage.getItem("theme");
applyTheme(THEMES.includes(stored) ? stored : "auto");
refresh();
setInterval(refresh, REFRESH_MS);
setInterval(refreshSeries, HISTORY_MS);
listen();
