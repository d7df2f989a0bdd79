"use strict";
// Without this script the page is whole; with it tables sort and are searched, trials write out
// their recipes, marks tell their figures, and the colours can be chosen.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const byId = (id) => document.getElementById(id);

  // ---- Colours: the system's, or the reader's choice, which is kept where storage is allowed.
  const THEME = "octavo-theme";
  const remembered = (value) => {
    try {
      if (value === undefined) return localStorage.getItem(THEME) ?? "auto";
      localStorage.setItem(THEME, value);
    } catch { /* a page in a sandbox has no storage */ }
    return "auto";
  };
  const dress = (theme) => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    for (const button of all(".theme button")) {
      button.setAttribute("aria-pressed", String(button.dataset.theme === theme));
    }
  };
  dress(remembered());
  for (const group of all(".theme")) {
    group.hidden = false;
    group.addEventListener("click", ({ target }) => {
      const theme = target.closest("button")?.dataset.theme;
      if (!theme) return;
      remembered(theme);
      dress(theme);
    });
  }

  // ---- Tables. A unit is what is sorted and hidden as one: a row, or a trial's group of rows.
  const units = (table) => (table.tBodies.length > 1 ? [...table.tBodies] : [...table.tBodies[0].rows]);
  const cellsOf = (unit) => (unit.rows ? unit.rows[0] : unit).cells;
  const keyOf = (cell, isNumber) => {
    const text = cell.dataset.v ?? cell.textContent.trim();
    if (!isNumber) return text.toLowerCase();
    const value = parseFloat(text.replace(/[,#]/g, ""));
    return Number.isFinite(value) ? value : null;
  };
  const sortBy = (table, order, column, direction) => {
    const isNumber = table.tHead.rows[0].cells[column].classList.contains("n");
    const keyed = order.map((unit, place) => ({ unit, place, key: keyOf(cellsOf(unit)[column], isNumber) }));
    const isBlank = ({ key }) => key === null || key === "";
    const compare = (a, b) => {
      if (isBlank(a) || isBlank(b)) return isBlank(a) - isBlank(b) || a.place - b.place;
      const more = isNumber ? a.key - b.key : a.key.localeCompare(b.key, undefined, { numeric: true });
      return more * direction || a.place - b.place;
    };
    if (direction) keyed.sort(compare);
    const parent = order[0].parentNode;
    parent.append(...keyed.map(({ unit }) => unit));
  };
  for (const table of all("table[data-sortable]")) {
    const order = units(table);
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      // Figures begin with the largest, names with the first; the third press brings the model's own order.
      const steps = head.classList.contains("n") && column ? ["descending", "ascending"] : ["ascending", "descending"];
      button.addEventListener("click", () => {
        const now = steps[steps.indexOf(head.getAttribute("aria-sort")) + 1];
        for (const other of heads) other.removeAttribute("aria-sort");
        if (now) head.setAttribute("aria-sort", now);
        sortBy(table, order, column, { ascending: 1, descending: -1 }[now] ?? 0);
      });
    });
  }

  // ---- Search: every word must occur in the row; "column:word" looks in that column alone.
  const FEW = 6;
  const filters = new Map();
  for (const input of all("[data-filter]")) {
    const table = byId(input.dataset.filter);
    const rows = units(table).map((unit) => ({ unit, text: unit.textContent.toLowerCase() }));
    const heads = [...table.tHead.rows[0].cells].map((head) => head.textContent.trim().toLowerCase());
    const status = input.closest("p").querySelector("[role=status]");
    input.closest("p").hidden = rows.length < FEW;
    const has = ({ unit, text }, word) => {
      const [name, ...rest] = word.split(":");
      const column = rest.length ? heads.findIndex((head) => head.startsWith(name)) : -1;
      if (column < 0) return text.includes(word);
      return cellsOf(unit)[column].textContent.toLowerCase().includes(rest.join(":"));
    };
    const apply = () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        row.unit.hidden = !words.every((word) => has(row, word));
        shown += !row.unit.hidden;
      }
      status.textContent = words.length ? `${shown} of ${rows.length}` : "";
    };
    input.addEventListener("input", apply);
    filters.set(table, () => { input.value = ""; apply(); });
  }

  // ---- Schemes: a short name tells on hover what it stands for.
  const written = new Map(all("#schemes tr").map(({ cells }) => [cells[0].textContent, cells[1].textContent]));
  for (const cell of all("td.s")) {
    const full = written.get(cell.textContent);
    if (full) cell.title = full;
  }

  // ---- Recipes: a letter an op in the page's data, written out when a trial is opened.
  const recipes = JSON.parse(byId("recipes").textContent);
  const opNames = new Map(Object.entries(recipes.ops));
  if (recipes.table !== null) {
    // Rows are taken by their ids: sorting moves them.
    const rows = all("#op-table tbody tr").sort((a, b) => a.id.slice(3) - b.id.slice(3));
    opNames.set(recipes.table, rows.map((row) => row.cells[0].textContent));
  }
  const breakable = (text) => {
    const name = document.createElement("bdi");
    text.split(/(?<=[^/._:-][/._:-])(?=[^/._:-])/).forEach((part, place) => {
      name.append(...(place ? [document.createElement("wbr"), part] : [part]));
    });
    return name;
  };
  const link = (backend, index) => {
    const name = breakable(opNames.get(backend)[index]);
    if (backend !== recipes.table) return name;
    const anchor = document.createElement("a");
    anchor.href = `#op-${index}`;
    anchor.append(name);
    return anchor;
  };
  const grouped = (list, groups, backend) => {
    const sorted = [...groups].sort((a, b) => b[1].length - a[1].length);
    list.replaceChildren(...sorted.map(([told, ops]) => {
      const item = document.createElement("li");
      const title = document.createElement("strong");
      title.textContent = told;
      item.append(title, `, ${ops.length}: `);
      ops.forEach((index, place) => item.append(place ? ", " : "", link(backend, index)));
      return item;
    }));
  };
  const collect = (count, tell) => {
    const groups = new Map();
    for (let index = 0; index < count; index += 1) {
      const told = tell(index);
      if (told === null) continue;
      if (!groups.has(told)) groups.set(told, []);
      groups.get(told).push(index);
    }
    return groups;
  };
  const writeOut = (details) => {
    const [backend, codes] = recipes.trials[details.dataset.trial] ?? [];
    const names = opNames.get(backend);
    if (!names || names.length !== [...codes].length || details.dataset.whole) return;
    details.dataset.whole = "yes";
    const own = [...codes];
    const recipe = details.querySelector(".recipe");
    if (recipe) grouped(recipe, collect(own.length, (i) => recipes.schemes[own[i]]), backend);
    const list = details.querySelector(".differences");
    const [bestBackend, bestCodes] = recipes.trials[recipes.best] ?? [];
    if (!list || !bestCodes) return;
    const best = new Map([...bestCodes].map((code, i) => [opNames.get(bestBackend)?.[i], code]));
    const differs = (i) => {
      const there = best.get(names[i]);
      if (there === undefined || there === own[i]) return null;
      return `${recipes.schemes[own[i]]}, in the best ${recipes.schemes[there]}`;
    };
    grouped(list, collect(own.length, differs), backend);
  };
  for (const details of all("details[data-trial]")) {
    details.addEventListener("toggle", () => { if (details.open) writeOut(details); });
  }

  // ---- Marks: a tip on hover and focus; one of a chart is in the tab order, arrows reach the others.
  const tip = byId("tip");
  let told = null;
  const place = () => {
    const box = told.getBoundingClientRect();
    const left = Math.min(Math.max(8, box.left + box.width / 2 - tip.offsetWidth / 2), innerWidth - tip.offsetWidth - 8);
    const above = box.top - tip.offsetHeight - 8;
    tip.style.left = `${left}px`;
    tip.style.top = `${above < 4 ? box.bottom + 8 : above}px`;
  };
  const show = (mark) => {
    const title = mark.querySelector("title");
    if (title.textContent) {
      mark.dataset.told = title.textContent;
      mark.setAttribute("aria-label", title.textContent);
    }
    title.textContent = ""; // else the browser shows a second tip
    tip.textContent = mark.dataset.told;
    tip.hidden = false;
    told = mark;
    place();
  };
  const hide = (mark) => {
    tip.hidden = true;
    if (mark.dataset.told) mark.querySelector("title").textContent = mark.dataset.told;
  };
  const STEP = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  for (const chart of all(".plot")) {
    const across = (mark) => parseFloat(mark.querySelector("use").getAttribute("x"));
    const marks = all(".mark", chart).sort((a, b) => across(a) - across(b));
    marks.forEach((mark, place) => {
      mark.setAttribute("tabindex", place ? "-1" : "0");
      mark.addEventListener("pointerenter", () => show(mark));
      mark.addEventListener("pointerleave", () => hide(mark));
      mark.addEventListener("focus", () => show(mark));
      mark.addEventListener("blur", () => hide(mark));
      mark.addEventListener("keydown", (event) => {
        if (event.key === "Escape") tip.hidden = true;
        const next = marks[place + (STEP[event.key] ?? 0)];
        if (!STEP[event.key] || !next) return;
        event.preventDefault();
        mark.setAttribute("tabindex", "-1");
        next.setAttribute("tabindex", "0");
        next.focus();
      });
    });
  }
  // The tip goes with its mark: a focus scrolls the mark into view after the tip was shown.
  addEventListener("scroll", () => { if (!tip.hidden) place(); }, { passive: true, capture: true });

  // ---- Links into the page open what they lead to, also where a search has hidden it.
  const arrive = () => {
    const target = byId(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    if (target.hidden) filters.get(target.closest("table"))?.();
    for (const details of [target.closest("details"), ...all("details", target)]) {
      if (details) details.open = true;
    }
    if (target.matches("tr, li")) target.scrollIntoView({ block: "center" });
    else target.scrollIntoView();
  };
  addEventListener("hashchange", arrive);
  // The same link pressed again changes no hash.
  document.addEventListener("click", ({ target }) => {
    const link = target.closest?.("a[href^='#']");
    if (link && link.getAttribute("href") === location.hash) arrive();
  });
  if (location.hash) arrive();
})();
