// The page of a review. All texts are set as text, never as HTML. The server holds the rows; this holds one page of lines.
"use strict";

const LINES = 50;
const KEYS = { a: "accepted", r: "rejected", u: "unsure" };
const state = { queue: 0, total: 0, position: 0, offset: 0, row: null, ahead: null, busy: false };
const $ = (id) => document.getElementById(id);

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

async function ask(path, fields) {
  const options = fields === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(fields),
  };
  let reply;
  try {
    reply = await fetch(`api/${path}`, options);
  } catch {
    throw new Error("smallr review does not answer: nothing was stored since. Start it again and load the page.");
  }
  const body = await reply.json();
  if (!reply.ok) throw Object.assign(new Error(body.error ? body.error.message : reply.statusText), { status: reply.status });
  return body;
}

function say(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

// Runs one thing at a time, so that a key held down decides on no row that is not shown yet.
async function once(work) {
  if (state.busy) return;
  state.busy = true;
  try {
    await work();
  } catch (error) {
    say(error.message);
    if (error.status === 409) { state.ahead = null; await show(state.position).catch(() => {}); say(error.message); }
  } finally {
    state.busy = false;
  }
}

function progress(counts) {
  const by = Object.entries(counts.by_reviewer).map(([name, count]) => `${name} ${count}`).join(", ");
  const outdated = counts.outdated ? ` · ${counts.outdated} changed since their review` : "";
  $("progress").textContent = `${counts.open} of ${counts.rows} rows open · decided: ${by}${outdated}`;
}

function fill(select, choices) {
  select.replaceChildren(...choices.map(([value, text]) => Object.assign(element("option", text), { value })));
}

async function start() {
  const found = await ask("state");
  $("kind").textContent = `${found.kind}, reviewed as ${found.reviewer}${found.twice ? " (each row twice)" : ""}`;
  $("path").textContent = found.path;
  $("asks").textContent = found.asks;
  document.title = `review: ${found.kind}`;
  const form = $("filter").elements;
  const counted = (pairs) => [["", "any"], ...pairs.map(([name, count]) => [name, `${name || "(none)"} (${count})`])];
  fill(form.status, found.statuses.map((name) => [name, name]));
  fill(form.order, found.orders.map((name) => [name, name]));
  fill(form.source, counted(found.sources));
  fill(form.verdict, counted(found.verdicts));
  for (const [name, value] of Object.entries(found.start)) form[name].value = value;
  progress(found);
  await makeQueue();
}

async function makeQueue() {
  const form = $("filter").elements;
  const wanted = { sample: Number(form.sample.value || 0), seed: Number(form.seed.value || 0) };
  for (const name of ["status", "source", "verdict", "order"]) wanted[name] = form[name].value;
  const made = await ask("queues", wanted);
  Object.assign(state, { queue: made.queue, total: made.total, ahead: null });
  progress(made);
  await list(0);
  await show(0);
}

async function list(offset) {
  state.offset = Math.max(0, offset);
  const page = await ask(`queues/${state.queue}?offset=${state.offset}&limit=${LINES}`);
  $("range").textContent = page.total ? `${state.offset + 1}–${state.offset + page.rows.length} of ${page.total}` : "no rows";
  $("rows").replaceChildren(...page.rows.map((row, index) => {
    const button = element("button", `${state.offset + index + 1} ${row.title}`, `status-${row.status}`);
    button.dataset.position = state.offset + index;
    const item = element("li");
    item.append(button);
    return item;
  }));
}

function fetchRow(position) {
  return ask(`queues/${state.queue}/${position}`);
}

async function show(position) {
  if (!state.total) {
    state.row = null;
    for (const id of ["top", "side", "more", "banners"]) $(id).replaceChildren();
    $("title").textContent = "No row is left with this filter.";
    $("facts").textContent = "";
    return;
  }
  position = Math.min(Math.max(position, 0), state.total - 1);
  const ahead = state.ahead && state.ahead.position === position ? state.ahead.reply : fetchRow(position);
  state.ahead = null;
  const row = await ahead;
  Object.assign(state, { row, position });
  draw(row);
  if (position < state.offset || position >= state.offset + LINES) await list(position - (position % LINES));
  for (const button of $("rows").querySelectorAll("button")) {
    button.setAttribute("aria-current", String(Number(button.dataset.position) === position));
  }
  if (position + 1 < state.total) {
    state.ahead = { position: position + 1, reply: fetchRow(position + 1) };
    state.ahead.reply.catch(() => { state.ahead = null; });
  }
}

function panel(shown) {
  const section = element("section", undefined, "panel");
  const text = element("pre");
  for (const [mark, part] of shown.parts) {
    text.append(mark ? element(mark === "new" ? "ins" : "del", part) : document.createTextNode(part));
  }
  section.append(element("h2", shown.title), text);
  return section;
}

function draw(row) {
  closeEditor();
  $("title").textContent = row.title;
  const numbers = Object.entries(row.numbers).map(([name, value]) => `${name} ${value.toFixed(2)}`);
  const source = row.source ? [`source ${row.source}`] : [];
  $("facts").textContent = [`${row.position + 1} of ${state.total}`, `${row.split} row ${row.number}`, ...source,
    ...numbers, row.status].join(" · ");
  $("facts").className = `status-${row.status}`;
  for (const place of ["top", "side", "more"]) {
    $(place).replaceChildren(...row.panels.filter((each) => each.place === place).map(panel));
  }
  $("banners").replaceChildren(
    ...row.outdated.map((name) => element("p", `This row has changed since ${name} decided on it.`, "banner")),
    ...(row.own && row.own.text ? [element("p", `Your edit: ${row.own.text}`, "banner")] : []),
    ...row.others.map((each) => element("p", told(each), "banner")));
  window.scrollTo(0, 0);
}

function told(other) {
  const text = other.text ? `: ${other.text}` : "";
  return `${other.reviewer} ${other.decision === "unsure" ? "is unsure" : `has ${other.decision} this row`}${text}`;
}

async function decide(decision, text = "") {
  const row = state.row;
  if (!row) return;
  const reply = await ask("decisions",
    { queue: state.queue, position: row.position, digest: row.digest, decision, text });
  progress(reply);
  const button = $("rows").querySelector(`button[data-position="${row.position}"]`);
  if (button) button.className = `status-${reply.row.status}`;
  const others = reply.row.others.map(told).join("; ");
  say(others ? `${others}. Both decisions are kept: the row is ${reply.row.status}.` : "");
  if (row.position + 1 < state.total) await show(row.position + 1);
  else { await show(row.position); say(`${others ? `${others}. ` : ""}That was the last row of this queue.`); }
}

async function undo() {
  const reply = await ask("undo", {});
  progress(reply);
  if (reply.key === null) return say("There is nothing to undo since smallr review was started.");
  state.ahead = null;
  await list(state.offset);
  await show(reply.position === null ? state.position : reply.position);
  say("Undone.");
}

function openEditor() {
  if (!state.row) return;
  $("editor").hidden = false;
  $("text").value = state.row.own && state.row.own.text ? state.row.own.text : state.row.text;
  $("text").focus();
}

function closeEditor() {
  $("editor").hidden = true;
  $("row").focus({ preventScroll: true });
}

function press(key) {
  if (key === "e") return openEditor();
  if (key === "?") return $("help").showModal();
  once(async () => {
    if (key in KEYS) await decide(KEYS[key]);
    else if (key === "n" || key === "ArrowRight") await show(state.position + 1);
    else if (key === "p" || key === "ArrowLeft") await show(state.position - 1);
    else if (key === "z") await undo();
  });
}

document.addEventListener("keydown", (event) => {
  const inEditor = event.target === $("text");
  if (inEditor && event.key === "Escape") return closeEditor();
  if (inEditor && event.key === "Enter" && (event.ctrlKey || event.metaKey)) return keep();
  const typing = inEditor || event.target.closest("input, select, textarea, dialog");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.key in KEYS || "enpz?".includes(event.key) || event.key === "ArrowRight" || event.key === "ArrowLeft") {
    event.preventDefault();
    press(event.key);
  }
});

function keep() {
  once(() => decide("edited", $("text").value));
}

$("actions").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) press(button.dataset.key);
});
$("rows").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) once(() => show(Number(button.dataset.position)));
});
$("filter").addEventListener("submit", (event) => { event.preventDefault(); once(makeQueue); });
$("keep").addEventListener("click", keep);
$("leave").addEventListener("click", closeEditor);
$("back").addEventListener("click", () => once(() => list(state.offset - LINES)));
$("forward").addEventListener("click", () => once(async () => {
  if (state.offset + LINES < state.total) await list(state.offset + LINES);
}));
once(start);
