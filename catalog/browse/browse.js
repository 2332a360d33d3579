// Keys, layers and decisions. Everything shown is set as text, never as markup.
"use strict";
const all = (selector, at = document) => [...at.querySelectorAll(selector)];
const one = (selector, at = document) => at.querySelector(selector);
const make = (name, attributes = {}, text = "") => {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.textContent = text;
  return node;
};
const items = () => all("[data-item]");
const readOnly = document.body.hasAttribute("data-read-only");
let clock = 0;

function say(words) {
  const box = one("#said");
  box.textContent = words;
  box.classList.add("on");
  clearTimeout(clock);
  clock = setTimeout(() => box.classList.remove("on"), 3500);
}

function columns() {
  const tiles = all(".tile");
  return tiles.length ? tiles.filter(t => t.offsetTop === tiles[0].offsetTop).length : 1;
}

function move(step) {
  const list = items();
  if (!list.length) return;
  const at = list.indexOf(document.activeElement.closest("[data-item]"));
  const to = at < 0 ? (step > 0 ? 0 : list.length - 1) : Math.min(list.length - 1, Math.max(0, at + step));
  list[to].focus({ preventScroll: true });
  list[to].scrollIntoView({ block: "nearest" });
}

function light(item, on) {
  if (item.dataset.path) one("#" + item.dataset.path)?.classList.toggle("lit", on);
}

async function post(page, value) {
  const answer = await fetch(page, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(value),
  });
  const told = answer.headers.get("Content-Type").startsWith("application/json") ? await answer.json() : { problem: await answer.text() };
  return { ok: answer.ok, ...told };
}

// The reviewer's name, asked for once; true when there is one.
function known() {
  if (document.body.dataset.reviewer) return Promise.resolve(true);
  const dialog = one("#name");
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise(done => dialog.addEventListener("close", async () => {
    const name = one("input", dialog).value;
    if (dialog.returnValue !== "ok" || !name.trim()) return done(false);
    const told = await post("reviewer", { name });
    if (!told.ok) { say(told.problem); return done(false); }
    document.body.dataset.reviewer = told.reviewer;
    one("#who").textContent = "you are " + told.reviewer;
    done(true);
  }, { once: true }));
}

async function send(item, verdict, change = {}) {
  if (!await known()) return false;
  const { sample, about, seen } = item.dataset;
  const told = await post("decide", { sample_id: sample, about, seen, verdict, ...change });
  if (!told.ok) { say(told.problem); return false; }
  const words = { accept: "accepted", correct: "corrected", reject: "rejected" }[verdict];
  const note = make("p", { class: "decided " + verdict });
  note.append(make("b", {}, words), " by you");
  if (change.text || change.label) note.append(": " + (change.text || change.label));
  all(".decided.now", item).forEach(old => old.remove());
  note.classList.add("now");
  (one(".words", item) || one(".small", item)).after(note);
  item.classList.add("done");
  say(words + ", decision " + told.number);
  const list = items(), next = list[list.indexOf(item) + 1];
  (next || item).focus();
  return true;
}

function edit(item) {
  if (one(".edit", item)) return one(".edit textarea, .edit input", item).focus();
  const form = make("form", { class: "edit" });
  const isText = item.dataset.about.startsWith("text:");
  const field = (name, words, value, kind = "input") => {
    const label = make("label", {}, words), input = make(kind, { name, autocomplete: "off" });
    if (kind === "textarea") input.rows = 4;
    input.value = value;
    label.append(input);
    form.append(label);
    return input;
  };
  const first = isText ? field("text", "What it should say", item.dataset.text, "textarea")
    : field("label", "What it shows", item.dataset.label);
  const box = isText ? null : field("box", "Box: x0, y0, x1, y1 in pixels; drag in the picture to draw it", item.dataset.box);
  const note = field("note", "Why (may stay empty)", "");
  const row = make("p", { class: "row" });
  const cancel = make("button", { type: "button" }, "Cancel");
  row.append(make("button", { class: "main" }, "Keep (Ctrl+Enter)"), cancel);
  form.append(row);
  const close = () => { form.remove(); draw(null); item.focus(); };
  cancel.addEventListener("click", close);
  form.addEventListener("keydown", event => {
    if (event.key === "Escape") { event.stopPropagation(); close(); }
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); form.requestSubmit(); }
  });
  form.addEventListener("submit", async event => {
    event.preventDefault();
    const change = {};
    if (note.value.trim()) change.note = note.value;
    if (isText) change.text = first.value;
    else {
      if (first.value.trim() !== item.dataset.label) change.label = first.value;
      if (box.value.replace(/\s/g, "") !== item.dataset.box) {
        change.box = box.value.split(",").map(Number);
        if (change.box.length !== 4 || !change.box.every(Number.isInteger)) return say("A box is four whole numbers.");
      }
    }
    if (await send(item, "correct", change)) { form.remove(); draw(null); }
  });
  (item.classList.contains("queued") ? item.lastElementChild : item).append(form);
  if (box) draw(box);
  first.focus();
}

// Let the next drag in the picture fill this field; null ends it.
let target = null;
function draw(field) {
  target = field;
  const overlay = one("#overlay");
  overlay?.classList.toggle("drawing", field !== null);
  if (!field) one("#drawn")?.remove();
}

function drawing(overlay) {
  let start = null;
  const at = event => {
    const size = overlay.viewBox.baseVal;
    const there = new DOMPoint(event.clientX, event.clientY).matrixTransform(overlay.getScreenCTM().inverse());
    const clip = (value, most) => Math.min(most, Math.max(0, Math.round(value)));
    return [clip(there.x, size.width), clip(there.y, size.height)];
  };
  overlay.addEventListener("pointerdown", event => {
    if (!target) return;
    start = at(event);
    overlay.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  overlay.addEventListener("pointermove", event => {
    if (!start) return;
    const [x, y] = at(event), [x0, y0] = [Math.min(x, start[0]), Math.min(y, start[1])];
    const [x1, y1] = [Math.max(x, start[0]), Math.max(y, start[1])];
    let shape = one("#drawn");
    if (!shape) {
      shape = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      shape.id = "drawn";
      overlay.append(shape);
    }
    for (const [key, value] of Object.entries({ x: x0, y: y0, width: x1 - x0, height: y1 - y0 })) shape.setAttribute(key, value);
    target.value = [x0, y0, x1, y1].join(",");
  });
  overlay.addEventListener("pointerup", () => { start = null; });
}

function layers() {
  const off = { label: new Set(), expert: new Set() };
  for (const box of all("[data-hide]")) if (!box.checked) off[box.dataset.hide].add(box.value);
  one("#overlay").classList.toggle("hidden", !one("#all").checked);
  for (const path of all("#overlay path"))
    path.classList.toggle("hidden", off.label.has(path.dataset.label) || off.expert.has(path.dataset.expert));
}

function decide(item, verdict) {
  if (readOnly) return say("This dataset is shown read-only.");
  if (!item?.dataset.about) return say("Mark a text or a region first (j, k).");
  return verdict === "correct" ? edit(item) : send(item, verdict);
}

async function trace(button) {
  const answer = await fetch("lineage?id=" + encodeURIComponent(button.dataset.lineage));
  if (!answer.ok) return say("Its lineage is not to be had.");
  const list = make("ol", { class: "steps" });
  for (const step of await answer.json()) {
    const line = make("li", { class: "d" + Math.min(step.depth, 3) });
    line.append(make("b", {}, step.what), " ", make("span", { class: "id" }, step.id), " " + step.said);
    if (step.by) line.append(make("br"), make("span", { class: "quiet small" }, step.by));
    list.append(line);
  }
  button.replaceWith(list);
}

document.addEventListener("click", event => {
  const verdict = event.target.closest("[data-verdict]");
  if (verdict) return decide(verdict.closest("[data-item]"), verdict.dataset.verdict);
  const lineage = event.target.closest("[data-lineage]");
  if (lineage) return trace(lineage);
  if (event.target.closest("#help-button")) one("#help").showModal();
});

document.addEventListener("focusin", event => { const item = event.target.closest("[data-item]"); if (item) light(item, true); });
document.addEventListener("focusout", event => { const item = event.target.closest("[data-item]"); if (item) light(item, false); });
for (const item of all("[data-path]")) {
  item.addEventListener("mouseenter", () => light(item, true));
  item.addEventListener("mouseleave", () => light(item, false));
}
if (one("#all")) {
  all("#all, [data-hide]").forEach(box => box.addEventListener("change", layers));
  layers();
}
if (one("#overlay")) drawing(one("#overlay"));

document.addEventListener("keydown", event => {
  const inField = event.target.matches("input:not([type=checkbox]), textarea");
  if (event.key === "Escape" && inField && !event.target.closest("dialog")) return event.target.blur();
  if (event.target.id === "q" && event.key === "Enter" && (event.ctrlKey || event.metaKey)) return event.target.form.requestSubmit();
  if (inField || event.ctrlKey || event.metaKey || event.altKey || one("dialog[open]")) return;
  const item = document.activeElement.closest("[data-item]");
  const wide = columns();
  const does = {
    j: () => move(1), k: () => move(-1), ArrowRight: () => move(1), ArrowLeft: () => move(-1),
    ArrowDown: () => move(wide), ArrowUp: () => move(-wide),
    "/": () => { const field = one("[data-slash]"); if (field) { field.focus(); field.select(); } else location.href = "./"; },
    "?": () => one("#help").showModal(),
    a: () => decide(item, "accept"), c: () => decide(item, "correct"), x: () => decide(item, "reject"),
    o: () => { const box = one("#all"); if (box) { box.checked = !box.checked; layers(); } },
    z: () => document.body.classList.toggle("large"),
    n: () => one("[data-key=n]")?.click(), p: () => one("[data-key=p]")?.click(),
    g: () => { location.href = one("[data-key=g]")?.href || "./"; },
    Enter: () => { location.href = item.dataset.open; },
  }[event.key];
  if (!does) return;
  // a link, a button or a summary within an item keeps its own Enter
  if (event.key === "Enter" && !(item && event.target === item && item.dataset.open)) return;
  event.preventDefault();
  does();
});
