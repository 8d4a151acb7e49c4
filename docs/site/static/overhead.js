// The table of docs/overhead.md that can be sorted and searched, over `overheadData`, which the page brings along.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const place = document.getElementById("overhead-table");
  if (!place) return;

  const KINDS = { delta_percent: 3, delta: 2, attnres: 1, plain: 0 }; // where a row keeps each of its values
  const KIND_NAMES = {
    delta_percent: "difference in percent",
    delta: "difference",
    attnres: "with AttnRes",
    plain: "plain",
  };
  const known = (row) => row.values.some((value) => value !== null);

  const element = (name, attributes = {}, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };

  // A table whose headings sort it: cells are {text, value}, and a value that is missing comes last, either way.
  const sortable = (id, headings, rows) => {
    const body = element("tbody");
    const show = () => body.replaceChildren(...rows.map((row) => row.line));
    const buttons = headings.map((heading) => element("button", { type: "button" }, heading));
    const heads = buttons.map((button) => element("th", { scope: "col" }, button));
    buttons.forEach((button, column) => {
      button.addEventListener("click", () => {
        const sign = heads[column].getAttribute("aria-sort") === "ascending" ? -1 : 1;
        heads.forEach((head) => head.removeAttribute("aria-sort"));
        heads[column].setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
        rows.sort((one, other) => {
          const [a, b] = [one.cells[column].value, other.cells[column].value];
          if (a === null || b === null) return (a === null) - (b === null);
          return sign * (typeof a === "string" ? a.localeCompare(b) : a - b);
        });
        show();
      });
    });
    for (const row of rows) {
      row.line = element("tr", {}, ...row.cells.map((cell) => element("td", cell.attributes || {}, cell.shown || cell.text)));
      if (row.name) row.line.dataset.name = row.name;
    }
    show();
    return element("table", { id, class: "docutils" }, element("thead", {}, element("tr", {}, ...heads)), body);
  };

  const details = element("div", { id: "overhead-preset", "aria-live": "polite" });
  const every = element("input", { type: "checkbox", id: "overhead-every" });
  let chosen = null;

  const showPreset = (preset) => {
    chosen = preset;
    const rows = preset.rows.filter((row) => every.checked || !row.detail);
    const notes = [...new Set(rows.map((row) => overheadData.notes[row.note]).filter(Boolean))];
    const lines = rows.map((row) => {
      const note = notes.indexOf(overheadData.notes[row.note]) + 1;
      const metric = note ? `${row.metric} (${note})` : row.metric;
      const numbers = row.texts.map((text, kind) => ({ text, value: row.values[kind], attributes: { class: "number" } }));
      return { cells: [{ text: metric, value: row.metric }, ...numbers, { text: row.how, value: row.how }] };
    });
    details.replaceChildren(
      element("h3", {}, preset.name),
      element("ul", {}, ...preset.shape.map((line) => element("li", {}, line))),
      element("div", { class: "table-wrapper" },
        sortable("overhead-rows", ["metric", "plain", "attnres", "delta", "delta %", "how"], lines)),
      element("ol", { class: "overhead-notes" }, ...notes.map((note) => element("li", {}, note))),
    );
  };

  const search = element("input", { type: "search", id: "overhead-search", placeholder: "preset", "aria-label": "search presets" });
  const kind = element("select", { id: "overhead-kind", "aria-label": "what is shown" });
  for (const [name, text] of Object.entries(KIND_NAMES)) kind.append(element("option", { value: name }, text));
  const holder = element("div", { class: "table-wrapper" });

  const filter = () => {
    for (const line of holder.querySelectorAll("tbody tr")) line.hidden = !line.dataset.name.includes(search.value.trim().toLowerCase());
  };
  const showPresets = () => {
    const shown = (row) => known(row) && (every.checked || !row.detail);
    const metrics = [...new Set(overheadData.presets.flatMap((preset) => preset.rows.filter(shown).map((row) => row.metric)))];
    const rows = overheadData.presets.map((preset) => {
      const button = element("button", { type: "button", class: "preset" }, preset.name);
      button.addEventListener("click", () => {
        showPreset(preset);
        details.scrollIntoView({ block: "nearest" });
      });
      const numbers = metrics.map((metric) => {
        const row = preset.rows.find((one) => one.metric === metric);
        const at = KINDS[kind.value];
        const cell = row ? { text: row.texts[at], value: row.values[at] } : { text: "", value: null };
        return { ...cell, attributes: { class: "number" } };
      });
      return { name: preset.name, cells: [{ shown: button, text: preset.name, value: preset.name }, ...numbers] };
    });
    holder.replaceChildren(sortable("overhead-presets", ["preset", ...metrics], rows));
    filter();
  };

  search.addEventListener("input", filter);
  kind.addEventListener("change", showPresets);
  every.addEventListener("change", () => {
    showPresets();
    if (chosen) showPreset(chosen);
  });
  place.append(
    element("p", { class: "overhead-controls" }, search, kind, element("label", { for: "overhead-every" }, every, " every row")),
    holder,
    details,
  );
  showPresets();
});
