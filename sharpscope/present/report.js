"use strict";
// Tables sort by a column where its head is clicked; without this script they stay in their own order.
const numberIn = (text) => {
  const found = text.replace(/[−–]/g, "-").match(/[-+]?\d[\d,]*\.?\d*(e[-+]?\d+)?/i);
  return found ? Number(found[0].replace(/,/g, "")) : NaN;
};
const compare = (down) => (a, b) => {
  const x = numberIn(a), y = numberIn(b);
  if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1; // what has no number always comes last
  return (Number.isNaN(x) || x === y ? a.localeCompare(b) : x - y) * (down ? -1 : 1);
};
for (const head of document.querySelectorAll("thead th")) {
  const table = head.closest("table"), body = table.tBodies[0];
  if (body.rows.length < 2 || !head.textContent.trim()) continue;
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending", column = head.cellIndex;
    for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const text = (row) => row.cells[column].textContent.trim();
    const inOrder = compare(down), rows = [...body.rows].sort((a, b) => inOrder(text(a), text(b)));
    body.append(...rows);
  });
}
addEventListener("beforeprint", () => {
  for (const fold of document.querySelectorAll("details")) fold.open = true;
});

// The layer map: colours of one measure and pair, every cell answering to the pointer and the arrow keys.
const VIRIDIS = [[68, 1, 84], [65, 68, 135], [42, 120, 142], [34, 168, 132], [122, 209, 81], [253, 231, 37]];
const colour = (share) => {
  const at = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1), low = Math.min(Math.floor(at), VIRIDIS.length - 2);
  return `rgb(${VIRIDIS[low].map((v, i) => Math.round(v + (at - low) * (VIRIDIS[low + 1][i] - v)))})`;
};
const short = (v) => (v === null ? "no value" : Math.abs(v) >= 1e4 || (v && Math.abs(v) < 1e-2) ? v.toExponential(2) : String(Number(v.toPrecision(3))));
const choice = (label, options) => {
  const select = document.createElement("select"), wrap = document.createElement("label");
  for (const option of options) select.add(new Option(option, option));
  wrap.append(`${label} `, select);
  return [wrap, select];
};
const drawMap = (host) => {
  const data = JSON.parse(host.dataset.map);
  const [measureBox, measure] = choice("measure", Object.keys(data.values));
  const [pairBox, pair] = choice("pair", data.pairs);
  const [orderBox, order] = choice("sorted by", ["depth", "largest value"]);
  const told = document.createElement("output"), scale = document.createElement("p"), table = document.createElement("table");
  told.textContent = "Point at a cell, or walk with the arrow keys.";
  scale.className = "more";
  table.setAttribute("role", "grid");
  table.setAttribute("aria-label", "Sharpness of every layer along the path");
  host.append(measureBox, pairBox, orderBox, scale, table, told);
  const tell = (cell) => {
    const { layer, point } = cell.dataset, [value, error, n, status] = cells()[layer][point];
    const parts = [`${data.layers[layer]}, ${data.points[point]}: ${measure.value} ${short(value)}`];
    if (error !== null) parts.push(`± ${short(error)}`);
    told.textContent = `${parts.join(" ")}${n === null ? "" : `, ${n} images`}, ${status}`;
  };
  const cells = () => data.values[measure.value][pair.value] ?? data.layers.map(() => data.points.map(() => [null, null, null, "not measured"]));
  const draw = () => {
    const rows = cells(), values = rows.flat().map((c) => c[0]).filter((v) => v !== null);
    const log = values.length > 0 && Math.min(...values) > 0 && Math.max(...values) > 8 * Math.min(...values);
    const size = Math.max(...values.map(Math.abs), Number.MIN_VALUE), to = log ? Math.log : (v) => Math.sign(v) * Math.sqrt(Math.abs(v) / size);
    const low = Math.min(...values.map(to)), high = Math.max(...values.map(to));
    const kind = log ? "logarithmic" : "the square root of the magnitude, with its sign";
    scale.textContent = values.length ? `Colour: ${kind}, from ${short(Math.min(...values))} (dark) to ${short(Math.max(...values))} (bright). A dot: not converged.` : "Not measured for this pair.";
    const places = data.layers.map((_, i) => i);
    const largest = (i) => Math.max(-Infinity, ...rows[i].map((c) => c[0] ?? -Infinity));
    if (order.value !== "depth") places.sort((a, b) => largest(b) - largest(a));
    const head = table.createTHead();
    head.replaceChildren();
    const names = head.insertRow();
    for (const name of [`layer \\ ${data.symbol}`, ...data.heads]) {
      const th = document.createElement("th");
      th.scope = "col";
      th.textContent = name;
      names.append(th);
    }
    const body = document.createElement("tbody");
    for (const i of places) {
      const row = body.insertRow(), th = document.createElement("th");
      th.scope = "row";
      th.textContent = data.names[i];
      row.append(th);
      rows[i].forEach(([value, , , status], k) => {
        const cell = row.insertCell();
        cell.tabIndex = -1;
        cell.dataset.layer = i;
        cell.dataset.point = k;
        cell.setAttribute("aria-label", `${short(value)}, ${status}`);
        if (value !== null) cell.style.background = colour(high > low ? (to(value) - low) / (high - low) : 0.5);
        if (status === "not converged") cell.textContent = "●";
      });
    }
    table.replaceChildren(head, body);
    const first = body.querySelector("td");
    if (first) first.tabIndex = 0;
  };
  const reach = (event) => {
    const cell = event.target.closest("td");
    if (cell) tell(cell);
  };
  table.addEventListener("pointerover", reach);
  table.addEventListener("focusin", reach);
  table.addEventListener("keydown", (event) => {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key], cell = event.target.closest("td");
    if (!step || !cell) return;
    const next = table.tBodies[0].rows[cell.parentElement.sectionRowIndex + step[0]]?.cells[cell.cellIndex + step[1]];
    event.preventDefault();
    if (next?.tagName !== "TD") return;
    cell.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
  for (const select of [measure, pair, order]) select.addEventListener("change", draw);
  draw();
};
for (const host of document.querySelectorAll("[data-map]")) drawMap(host);
