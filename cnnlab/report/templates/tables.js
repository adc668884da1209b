"use strict";
// Makes tables sortable, filterable and searchable, and adds copy buttons to commands.

function create(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const SHOWN_ROWS = 200;
const number = (text) => (/^[-+]?(\d|\.\d)/.test(text) ? parseFloat(text) : NaN);

for (const block of document.querySelectorAll(".table")) {
  const filters = JSON.parse(block.dataset.filters);
  const more = block.querySelector("script.more");
  if (filters.length === 0 && !more) continue;
  const table = block.querySelector("table");
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const rows = [...body.rows].map((element) => ({ element, cells: [...element.cells].map((cell) => cell.textContent) }));
  for (const line of more ? JSON.parse(more.textContent) : []) {
    rows.push({ element: null, line, cells: line.map((cell) => (Array.isArray(cell) ? cell[0] : cell)) });
  }
  for (const row of rows) row.text = row.cells.join(" ").toLowerCase();

  const element = (row) => {
    row.element ??= create("tr", {}, ...row.line.map((cell) =>
      create("td", {}, Array.isArray(cell) ? create("a", { href: cell[1] }, cell[0]) : cell)));
    return row.element;
  };
  let order = rows;
  let all = false;
  const search = create("input", { type: "search", placeholder: "search", "aria-label": "Search the table", oninput: show });
  const chosen = new Map();
  const count = create("output", { "aria-live": "polite" });
  const tools = create("div", { class: "tools" }, search);
  for (const name of filters) {
    const column = heads.findIndex((head) => head.textContent === name);
    const values = [...new Set(rows.map((row) => row.cells[column]))].filter((value) => value !== "");
    if (column < 0 || values.length < 2 || values.length > 30) continue;
    const select = create("select", { onchange: show }, create("option", { value: "" }, "all"),
      ...values.sort((a, b) => number(a) - number(b) || a.localeCompare(b)).map((value) => create("option", {}, value)));
    chosen.set(column, select);
    tools.append(create("label", {}, name, select));
  }
  tools.append(count);
  const button = create("button", { type: "button", class: "more-rows", onclick: () => { all = true; show(); } });
  block.prepend(tools);
  block.append(button);

  function show() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const kept = order.filter((row) => words.every((word) => row.text.includes(word))
      && [...chosen].every(([column, select]) => select.selectedIndex === 0 || row.cells[column] === select.value));
    const shown = all ? kept : kept.slice(0, SHOWN_ROWS);
    body.replaceChildren(...shown.map(element));
    count.textContent = kept.length === rows.length ? `${rows.length} rows` : `${kept.length} of ${rows.length} rows`;
    button.hidden = shown.length === kept.length;
    button.textContent = `${shown.length} rows are shown. Show all ${kept.length}`;
  }

  function sort(column) {
    const up = heads[column].getAttribute("aria-sort") !== "ascending";
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[column].setAttribute("aria-sort", up ? "ascending" : "descending");
    const sign = up ? 1 : -1;
    order = [...rows].sort((first, second) => {
      const [a, b] = [first.cells[column], second.cells[column]];
      if (a === "" || b === "") return (a === "") - (b === ""); // missing values come last in both directions
      const [left, right] = [number(a), number(b)];
      if (Number.isNaN(left) !== Number.isNaN(right)) return Number.isNaN(left) - Number.isNaN(right);
      return sign * (Number.isNaN(left) ? a.localeCompare(b) : left - right);
    });
    show();
  }

  heads.forEach((head, column) => {
    const text = head.textContent;
    head.replaceChildren(create("button", { type: "button", onclick: () => sort(column) }, text));
  });
  show();
}

for (const code of document.querySelectorAll(".commands code")) {
  const button = create("button", { type: "button", class: "copy" }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch { // no clipboard API for local files: select the text and use the deprecated command
      getSelection().selectAllChildren(code);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  code.after(button);
}
