"use strict";
// The table of the trials, their details, and the colours of the page. Text from the data is only ever set as textContent.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const onDark = JSON.parse(document.getElementById("on-dark").textContent);
  const onLight = Object.fromEntries(Object.entries(onDark).map(([light, dark]) => [dark, light]));
  const byTrial = new Map(data.rows.map((row) => [row.trial, row]));
  const AT_ONCE = 100;

  const element = (name, text, className) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  };
  const shown = (value) => (value === null || value === undefined ? "" : String(value));
  const place = (row) => (row.origin === "confirmation" ? data.rows.length - row.trial : row.trial); // after the others
  const cells = (row) => [place(row), row.state + (row.origin ? ` (${row.origin})` : ""), ...row.cells];
  const named = (row) => cells(row).map((value, i) => [data.columns[i], shown(value)]).filter(([, value]) => value !== "");

  // ------------------------------------------------------------------------------------ what is under the pointer
  const TIP_ROWS = 14;
  window.reportTip = (trial) => {
    const row = byTrial.get(trial);
    if (!row) return String(trial);
    const lines = named(row).slice(1).map(([name, value]) => `${name}: ${value.slice(0, 60)}`);
    const more = lines.length > TIP_ROWS ? ["…"] : [];
    const error = row.error ? [row.error.split("\n")[0].slice(0, 120)] : [];
    return [row.label, ...lines.slice(0, TIP_ROWS), ...more, ...error].join("\n");
  };

  // ------------------------------------------------------------------------------------------ the details of a trial
  const dialog = document.getElementById("details");
  window.reportShow = (trial) => {
    const row = byTrial.get(trial);
    if (!row) return;
    const close = element("button", "Close", "close");
    close.addEventListener("click", () => dialog.close());
    const list = element("dl");
    for (const [name, value] of named(row).slice(1)) list.append(element("dt", name), element("dd", value));
    const parts = [close, element("h3", row.label), list];
    if (row.error) parts.push(element("h4", "Error"), element("pre", row.error));
    if (row.attempts.length) parts.push(element("h4", "Attempts"), element("pre", row.attempts.join("\n")));
    if (row.log) parts.push(element("h4", "The end of its log"), element("pre", row.log, "log"));
    dialog.replaceChildren(...parts);
    if (!dialog.open) dialog.showModal();
  };
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

  // -------------------------------------------------------------------------------------------------------- the table
  const [head, body] = document.getElementById("table").children;
  const filter = document.getElementById("filter"), more = document.getElementById("more");
  let sorted = { column: 0, down: false }, limit = AT_ONCE;

  const compare = (a, b) => {
    if (a === b) return 0;
    if (a === null || a === undefined) return 1; // what is missing comes last in both directions
    if (b === null || b === undefined) return -1;
    const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
    return sorted.down ? -order : order;
  };
  const fill = () => {
    const rows = data.rows.filter((row) => !filter.value || row.state === filter.value);
    rows.sort((a, b) => compare(cells(a)[sorted.column], cells(b)[sorted.column]) || place(a) - place(b));
    body.replaceChildren(...rows.slice(0, limit).map((row) => {
      const line = element("tr", undefined, row.trial === data.best ? "best" : "");
      line.tabIndex = 0;
      line.dataset.trial = row.trial;
      cells(row).forEach((value, i) => line.append(element("td", i ? shown(value) : row.label, typeof value === "number" ? "number" : "")));
      line.addEventListener("click", () => window.reportShow(row.trial));
      line.addEventListener("keydown", (event) => { if (event.key === "Enter") window.reportShow(row.trial); });
      return line;
    }));
    document.getElementById("count").textContent = `${Math.min(limit, rows.length)} of ${rows.length} trials`;
    more.hidden = rows.length <= limit;
    [...head.firstChild.children].forEach((cell, i) => {
      if (i === sorted.column) cell.setAttribute("aria-sort", sorted.down ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    });
  };
  const titles = element("tr");
  data.columns.forEach((name, column) => {
    const cell = element("th", name);
    cell.addEventListener("click", () => {
      sorted = { column, down: sorted.column === column && !sorted.down };
      fill();
    });
    titles.append(cell);
  });
  head.append(titles);
  const counts = new Map();
  for (const row of data.rows) counts.set(row.state, (counts.get(row.state) || 0) + 1);
  const option = (value, text) => { const made = element("option", text); made.value = value; return made; };
  filter.append(option("", `all (${data.rows.length})`), ...[...counts].map(([state, count]) => option(state, `${state} (${count})`)));
  filter.addEventListener("change", () => { limit = AT_ONCE; fill(); });
  more.addEventListener("click", () => { limit += 5 * AT_ONCE; fill(); });
  fill();

  // ------------------------------------------------------------------------------------------------ light and dark
  const root = document.documentElement;
  const PARTS = ["line_color", "fill_color", "text_color", "hatch_color"];
  const recolour = (dark) => {
    const colours = dark ? onDark : onLight;
    const ink = dark ? "#d5d8dc" : "#333333", edge = dark ? "#4a5159" : "#dddddd";
    for (const view of (window.Bokeh ? Bokeh.documents : [])) {
      for (const model of view.all_models) {
        if (model.type.endsWith("Axis")) {
          model.setv({ axis_label_text_color: ink, major_label_text_color: ink, axis_line_color: ink, major_tick_line_color: ink });
        } else if (model.type === "Grid") {
          model.grid_line_color = edge;
        } else if (model.type === "Title") {
          model.text_color = ink;
        } else if (model.type.endsWith("ColorBar")) {
          model.major_label_text_color = ink;
        }
        for (const part of PARTS) {
          const now = model[part] && (typeof model[part] === "string" ? model[part] : model[part].value);
          if (typeof now === "string" && colours[now]) model[part] = typeof model[part] === "string" ? colours[now] : { value: colours[now] };
        }
      }
    }
  };
  const setTheme = (dark) => { root.classList.toggle("dark", dark); recolour(dark); };
  const preferred = window.matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  const isDark = () => (chosen === null ? preferred.matches : chosen);
  document.getElementById("theme").addEventListener("click", () => { chosen = !isDark(); setTheme(isDark()); });
  preferred.addEventListener("change", () => setTheme(isDark()));
  // Figures are painted later than the printer looks, so those of a dark page are inverted by their style.
  window.addEventListener("beforeprint", () => {
    root.classList.toggle("inverted", isDark());
    root.classList.remove("dark");
  });
  window.addEventListener("afterprint", () => {
    root.classList.remove("inverted");
    root.classList.toggle("dark", isDark());
  });
  root.classList.toggle("dark", isDark());
  const whenDrawn = () => {
    if (Bokeh.documents.length < Number(document.body.dataset.figures)) requestAnimationFrame(whenDrawn);
    else { setTheme(isDark()); document.body.dataset.drawn = "yes"; }
  };
  whenDrawn();
})();
