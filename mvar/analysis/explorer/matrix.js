// Layers x heads of one side, coloured by a measure; a cell sets what the side shows. Part of the explorer's module,
// joined by page.py.

function captionOf(measure, images, tokens) {
  if (!measure.cut) return `${measure.name}, mean over the ${tokens} tokens of the image (${measure.unit})`;
  const told = images ? `${images.toLocaleString("en")} held-out images` : "not measured of this run";
  return `How much worse images are predicted, ${CUTS[measure.cut]} (${measure.unit}; ${told})`;
}

function spanOf(values) {
  const found = [...values.values(), 0];
  return [Math.min(...found), Math.max(...found, 1e-3)];
}

// What the colours span: all values, but never less than a fifth of what there can be.
function rangeOf(values, most) {
  const found = [...values.values()], [low, high] = [Math.min(...found, most), Math.max(...found, 0)];
  const spare = Math.max(0, most / 5 - (high - low)) / 2, start = Math.max(0, low - spare);
  return [start, Math.max(high + spare, start + most / 5)];
}

// Args: group: a name of the page's own; changed: called when a cell was chosen; say: tells the user a line.
function layersByHeads(look, group, { changed, say }) {
  const { data, schedule, state } = look;
  const box = make("section", { class: "matrix", "aria-label": "Layers and heads" });
  const measured = MEASURES.filter((m) => !m.cut || data.subjects.some((s) => m.cut in s.effects.changes));
  const measureSelect = choose("Colour", measured.map((m) => [m.key, m.name]), state.measure, (value) => {
    state.measure = value;
    fill();
  });
  const activeBox = make("fieldset", { class: "active" }, make("legend", {}, "A cell sets"));
  for (const number of [0, 1]) {
    const input = make("input", { type: "radio", name: `${group}-side`, checked: number === 0 });
    input.addEventListener("change", () => {
      state.active = number;
      fill();
    });
    activeBox.append(make("label", {}, input, ` ${"AB"[number]}`));
  }
  const scroll = make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Matrix of layers and heads" });
  const legend = make("p", { class: "legend" });
  box.append(make("h2", {}, "Layers and heads"), make("div", { class: "controls" }, measureSelect, activeBox), scroll, legend);

  function fill() {
    const side = state.sides[Math.min(state.active, state.sides.length - 1)];
    activeBox.hidden = state.sides.length < 2;
    if (!side.matrix) return;
    const measure = MEASURES.find((m) => m.key === state.measure), { parts, effects } = look.subject(side);
    const values = measure.cut
      ? new Map((effects.changes[measure.cut] ?? []).map(([part, head, change]) => [`${part}/${head}`, change]))
      : new Map([...side.matrix.cells].map(([cell, means]) => [cell, means[measure.column]]));
    const evens = parts.map((_, number) => look.sight(side, number).meanEvenEntropy());
    const range = measure.cut ? spanOf(values) : rangeOf(values, measure.unit === "%" ? 1 : Math.max(...evens));
    const width = Math.max(...parts.map((p) => p.heads));
    box.parentElement.classList.toggle("slim", width <= 4);
    const heads = ["mean", ...Array(width).keys()];
    const table = make("table", {}, make("caption", {}, captionOf(measure, effects.images, schedule.count)));
    const titles = ["layer", ...heads.map((head) => (head === "mean" ? head : `head ${head}`))];
    table.append(make("thead", {}, make("tr", {}, ...titles.map((title) => make("th", { scope: "col" }, title)))));
    const body = make("tbody");
    parts.forEach((p, number) => {
      const row = make("tr", {}, make("th", { scope: "row" }, partName(p)));
      for (const head of heads) {
        const cell = make("td"), value = values.get(`${number}/${head}`);
        if (head === "mean" || head < p.heads) cell.append(matrixButton(side, p, number, head, value, measure, range));
        row.append(cell);
      }
      body.append(row);
    });
    table.append(body);
    const focused = scroll.contains(document.activeElement) ? document.activeElement.dataset.cell : null;
    scroll.replaceChildren(table);
    const wanted = focused ?? `${side.part}/${side.head}`;
    const current = scroll.querySelector(`[data-cell="${wanted}"]`) ?? scroll.querySelector("button");
    if (current) current.tabIndex = 0;
    if (focused) current?.focus();
    legend.textContent = legendOf(side, measure, values, range, evens);
  }

  // What the colours and the dashes mean.
  function legendOf(side, measure, values, range, evens) {
    const { parts } = look.subject(side), said = [];
    const [low, high] = range.map((x) => `${measure.unit === "nats" ? x.toFixed(2) : measure.digits(x)} ${measure.unit}`);
    if (values.size) said.push(`Light: ${low}; dark: ${high}.`);
    if (measure.unit === "nats") {
      const alike = new Set(parts.map((p, number) => `${p.mixer} ${evens[number].toFixed(2)}`));
      said.push(`Looking alike at all that it sees: ${[...alike].join(", ")} nats.`);
    }
    const dashes = parts.some((_, number) => look.headsOf(side, number).some((head) => !values.has(`${number}/${head}`)));
    if (measure.cut) said.push("More than 0: worse. A dash: not measured.");
    else if (!side.matrix.whole) said.push("A dash: not there yet.");
    else if (dashes) said.push(`A dash: ${look.source.measures ? "a reach is measured when it is looked at" : "its reach is not in this file"}.`);
    if (scroll.querySelector("button.absent")) said.push("Striped cells have no map in this file.");
    return said.join(" ");
  }

  function matrixButton(side, p, number, head, value, measure, [low, high]) {
    const there = look.has(side, number, head), shown = value === undefined ? "–" : measure.digits(value);
    const isHere = (s) => s.subject === side.subject && s.part === number && s.head === head;
    const chosen = state.sides.map((s, i) => (isHere(s) ? "AB"[i] : "")).join("");
    const text = state.sides.length > 1 && chosen ? `${chosen} ${shown}` : shown;
    const unit = value === undefined ? "" : ` ${measure.unit}`, map = p.kind === "reach" ? "reach" : headName(head);
    const name = `layer ${p.layer}, ${p.mixer}, ${map}: ${measure.name} ${shown}${unit}`;
    const made = make("button", {
      type: "button", tabindex: "-1", "data-cell": `${number}/${head}`, "data-value": String(value ?? ""),
      title: there ? name : `${name} (no map in this file)`, "aria-label": there ? name : `${name}, no map in this file`,
      "aria-pressed": String(Boolean(chosen)), "aria-disabled": String(!there),
    }, text);
    if (!there) made.classList.add("absent");
    if (value !== undefined) {
      const paint = colour(BLUES, (value - low) / (high - low));
      made.style.backgroundColor = `rgb(${paint})`;
      made.style.color = luminance(paint) > 0.18 ? "#000" : "#fff";
    }
    made.addEventListener("click", () => {
      if (!there) return say("That map is not in this file.");
      Object.assign(side, { part: number, head });
      changed();
    });
    return made;
  }

  scroll.addEventListener("keydown", (event) => {
    const at = event.target.closest("[data-cell]");
    if (!at || !(event.key in MOVES)) return;
    event.preventDefault();
    const [down, right] = MOVES[event.key], cell = at.parentElement, row = cell.parentElement;
    const rows = [...row.parentElement.children], column = [...row.children].indexOf(cell) + right;
    const target = rows[rows.indexOf(row) + down]?.children[column];
    const next = target?.querySelector("button");
    if (!next) return;
    at.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });

  function activate(number) {
    state.active = number;
    activeBox.querySelectorAll("input")[number].checked = true;
  }
  return { box, fill, activate };
}
