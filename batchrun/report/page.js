"use strict";
const ROWS_ON_A_PAGE = 50;
const STATUS = 1;
const ORDER = ["ok", "failed", "pending", "skipped"];
const collator = new Intl.Collator("en", { numeric: true });
const byId = (id) => document.getElementById(id);

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const lines = (await new Response(stream).text()).split("\n");
  return lines.filter(Boolean).map((line) => JSON.parse(line));
}

// What a bar or a cell asks of a value: to be equal, to be in a range of which null is no end, or just to be there.
function fits(value, [first, ...below]) {
  if (first === undefined) return value !== null;
  if (Array.isArray(value)) return value.some((item) => fits(item, [first, ...below]));
  if (below.length) return value !== null && value >= first && (below[0] === null || value < below[0]);
  return first === null ? value === null : value !== null && String(value) === first;
}

function shown(value) {
  if (value === null) return "";
  return Array.isArray(value) ? value.join(", ") : String(value);
}

function start(data, rows) {
  const { fields, inputs, behind, hidden } = data;
  const firstAnswer = 2 + inputs;
  const differs = hidden[0];
  const boxes = [...document.querySelectorAll("input[data-wanted]")];
  // One of the last five columns without a value in any row would only take room.
  const columns = fields.map((_, place) => place).filter((place) => !hidden.includes(place)
    && (place < fields.length - 5 || rows.some((row) => row[place] !== null)));
  const filters = new Map();
  let texts = null;
  let sorted = null;
  let page = 0;

  rows.sort((one, other) => ORDER.indexOf(one[STATUS]) - ORDER.indexOf(other[STATUS]) || one[0] - other[0]);

  function matching() {
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    if (words.length) texts ??= new Map(rows.map((row) => [row, row.map(shown).join(" ").toLowerCase()]));
    const checked = boxes.filter((box) => box.checked).map((box) => JSON.parse(box.dataset.wanted));
    const tests = [...filters.values(), ...checked].flat();
    return rows.filter((row) => (!byId("status").value || row[STATUS] === byId("status").value)
      && tests.every(([place, ...wanted]) => fits(row[place], wanted))
      && words.every((word) => texts.get(row).includes(word)));
  }

  function sort(found) {
    if (!sorted) return;
    const { place, down } = sorted;
    const compare = (one, other) => typeof one === "number" && typeof other === "number"
      ? one - other : collator.compare(shown(one), shown(other));
    found.sort((one, other) => {
      const [first, second] = [one[place], other[place]];
      // Empty cells come last in both directions.
      if (first === null || second === null) return (first === null) - (second === null);
      return down ? compare(second, first) : compare(first, second);
    });
  }

  function line(row) {
    const made = element("tr", "", { id: `row-${row[0]}` });
    if (row[differs] === true) made.className = "differs";
    for (const place of columns) {
      const cell = element("td", "", { "data-name": fields[place], class: typeof row[place] === "number" ? "number" : "" });
      if (place === 0) {
        cell.append(element("a", row[0], { href: `#row-${row[0]}` }), element("button", "copy", { class: "copy" }));
      } else {
        cell.append(element("div", shown(row[place]), { class: place === STATUS ? row[STATUS] : "text", dir: "auto" }));
      }
      made.append(cell);
    }
    made.querySelector(".copy").onclick = () => {
      const record = Object.fromEntries(columns.map((place) => [fields[place], row[place]]));
      navigator.clipboard.writeText(JSON.stringify(record, null, 2));
    };
    return made;
  }

  function show() {
    const found = matching();
    sort(found);
    page = Math.max(0, Math.min(page, Math.ceil(found.length / ROWS_ON_A_PAGE) - 1));
    const first = page * ROWS_ON_A_PAGE;
    const visible = found.slice(first, first + ROWS_ON_A_PAGE);
    byId("rows").tBodies[0].replaceChildren(...visible.map(line));
    const number = (value) => value.toLocaleString("en");
    byId("shown").textContent = found.length
      ? `${number(first + 1)} to ${number(first + visible.length)} of ${number(found.length)}` : "no row";
    byId("previous").disabled = page === 0;
    byId("next").disabled = first + visible.length >= found.length;
    byId("chips").replaceChildren(...[...filters.keys()].map((name) => {
      const chip = element("button", `${name} ×`, { class: "chip" });
      chip.onclick = () => { filters.delete(name); again(); };
      return chip;
    }));
    byId("rows").tHead.replaceChildren(element("tr", ""));
    byId("rows").tHead.rows[0].append(...columns.map(heading));
  }

  function again() {
    page = 0;
    show();
  }

  function heading(place) {
    const mark = sorted?.place === place ? (sorted.down ? " ↓" : " ↑") : "";
    const cell = element("th", "", { scope: "col", class: place >= firstAnswer && place < behind ? "answer" : "" });
    const button = element("button", fields[place] + mark);
    button.onclick = () => {
      sorted = sorted?.place === place && sorted.down ? null : { place, down: sorted?.place === place };
      again();
    };
    cell.append(button);
    return cell;
  }

  // A link to a row shows that row alone.
  function follow() {
    const number = /^#row-(\d+)$/.exec(location.hash)?.[1];
    if (!number) return;
    filters.clear();
    for (const id of ["search", "status"]) byId(id).value = "";
    for (const box of boxes) box.checked = false;
    filters.set(`row ${number}`, [[0, number]]);
    again();
  }

  for (const button of document.querySelectorAll("button[data-wanted]")) {
    button.onclick = () => {
      const wanted = JSON.parse(button.dataset.wanted);
      const name = wanted.map(([place, ...values]) => `${fields[place]}: ${values.map((value) => value ?? "…").join(" to ") || "any"}`);
      filters.clear();
      filters.set(name.join(", "), wanted);
      again();
      byId("table").scrollIntoView();
    };
  }
  for (const filter of [byId("search"), byId("status"), ...boxes]) filter.addEventListener("input", again);
  byId("previous").onclick = () => { page -= 1; show(); };
  byId("next").onclick = () => { page += 1; show(); };
  addEventListener("hashchange", follow);
  byId("filters").hidden = false;
  again();
  follow();
}

if (byId("data")) {
  const data = JSON.parse(byId("data").textContent);
  unpack(data.rows).then((rows) => start(data, rows));
}
