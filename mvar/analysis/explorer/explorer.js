// The explorer itself: its controls, and what happens when they are used. One module with maps.js and drawing.js.

// The explorer --------------------------------------------------------------------------------------------------------

export function mount(root, source, options = {}) {
  const { data } = source, schedule = new Schedule(data.sides);
  const first = data.view.sides.map((side) => ({ ...side }));
  const state = {
    picture: data.view.picture, query: data.view.query, pinned: false, probe: null, heat: 60, range: "each", measure: "own",
    sides: first.length > 1 ? first : [first[0]], active: 0,
  };
  const pictures = new Map(), maps = new Map(), means = new Map();
  const once = (kept, key, begin) => {
    if (!kept.has(key)) {
      kept.set(key, begin());
      kept.get(key).catch(() => kept.delete(key)); // asked again the next time
    }
    return kept.get(key);
  };
  const subject = (side) => data.subjects[side.subject], part = (side) => subject(side).parts[side.part];
  const headName = (head) => (head === "mean" ? "mean over heads" : `head ${head}`);
  const partName = ({ layer, mixer, kind }) => `${layer} · ${mixer}${kind === "reach" ? " (reach)" : ""}`;
  const isReach = (side) => part(side).kind === "reach";
  const told = (side) => `layer ${part(side).layer}, ${part(side).mixer}, ${isReach(side) ? "reach" : headName(side.head)}`;
  const of = (side) => (isReach(side) ? "of its reach" : "of its mass");

  root.classList.add("mvar-explorer");
  root.style.setProperty("--panel", schedule.sides.length > MAX_COLUMNS ? "13rem" : "9.2rem"); // few fit beside each other
  const themes = window.matchMedia("(prefers-color-scheme: dark)");
  const setTheme = () => {
    const { jpThemeLight } = document.body.dataset;
    const dark = jpThemeLight !== undefined ? jpThemeLight === "false" : document.body.classList.contains("vscode-dark") || themes.matches;
    root.dataset.theme = dark ? "dark" : "light";
  };
  themes.addEventListener("change", setTheme);
  setTheme();

  const heading = make(options.heading ?? "h1", { class: "title" }, "Where attention goes");
  const names = make("p", { class: "names" }, data.subjects.map((s) => `${s.name} (${s.pattern})`).join(" · "));
  const readout = make("p", { class: "readout", role: "status", "aria-live": "polite" });
  const sidesBox = make("div", { class: "sides" });
  const matrixBox = make("section", { class: "matrix", "aria-label": "Layers and heads" });
  const code = make("pre", { class: "code", tabindex: "0", "aria-label": "Python that makes this view" });
  const message = make("span", { class: "message", role: "status" });
  const views = [];

  const choose = (label, values, value, changed) => {
    const select = make("select");
    select.append(...values.map(([key, text, off]) => make("option", { value: String(key), disabled: Boolean(off) }, text)));
    select.value = String(value);
    select.addEventListener("change", () => changed(select.value));
    return make("label", {}, make("span", {}, label), select);
  };
  const button = (text, act, attributes = {}) => {
    const made = make("button", { type: "button", ...attributes }, text);
    made.addEventListener("click", act);
    return made;
  };
  const has = (side, p, head) => source.has(side.subject, state.picture, p, head);
  const headsOf = (side, p) => ["mean", ...Array(subject(side).parts[p].heads).keys()];
  const settle = (side) => {
    // a head that the mixer has and the file holds, the nearest to what was asked for
    if (!has(side, side.part, side.head) || !headsOf(side, side.part).includes(side.head)) {
      side.head = headsOf(side, side.part).find((head) => has(side, side.part, head)) ?? "mean";
    }
  };

  // Pictures to choose from
  const chooser = make("fieldset", { class: "chooser" }, make("legend", {}, "Image"));
  const group = `picture-${Math.random().toString(36).slice(2)}`;
  data.subjects[0].pictures.forEach((picture, number) => {
    const input = make("input", { type: "radio", name: group, value: String(number), checked: number === state.picture });
    input.addEventListener("change", () => {
      state.picture = number;
      refresh();
    });
    const image = make("img", { alt: "", width: 56, height: 56 });
    once(pictures, `urls/0/${number}`, () => source.pictures(0, number)).then((urls) => (image.src = urls.at(-1)));
    chooser.append(make("label", { class: "picture" }, input, image, make("span", {}, picture.class), make("small", {}, picture.name)));
  });

  // One side: its controls and a panel for each scale
  function addView(number) {
    const controls = make("div", { class: "controls" }), panels = make("div", { class: "panels" });
    const title = make("h2", { class: "side-title" });
    const box = make("section", { class: "side", "data-side": String(number) }, make("div", { class: "side-head" }, title, controls), panels);
    const figures = schedule.sides.map((side, scale) => {
      const canvas = make("canvas", { tabindex: "0", role: "application", "aria-roledescription": "token map", "data-scale": String(scale) });
      const mass = make("strong", {}), most = make("span", { class: "most" }), bar = make("span", { class: "bar" }, make("i"), make("b"));
      const name = make("span", { class: "scale" }, times(side));
      const figure = make("figure", { "data-scale": String(scale) }, canvas, make("figcaption", {}, make("span", { class: "line" }, name, mass), bar, most));
      const token = (event) => {
        const area = canvas.getBoundingClientRect();
        const [x, y] = [(event.clientX - area.left) / area.width, (event.clientY - area.top) / area.height];
        return schedule.token(scale, Math.floor(y * side), Math.floor(x * side));
      };
      canvas.addEventListener("pointermove", (event) => {
        if (event.pointerType === "touch") return;
        if (!state.pinned) state.query = token(event);
        else state.probe = scale <= schedule.level(state.query) ? token(event) : null;
        later();
      });
      canvas.addEventListener("pointerleave", () => {
        state.probe = null;
        later();
      });
      canvas.addEventListener("click", (event) => {
        const clicked = token(event);
        state.pinned = !(state.pinned && clicked === state.query);
        state.query = clicked;
        state.probe = null;
        later();
      });
      canvas.addEventListener("keydown", (event) => onKey(event, scale));
      return { canvas, figure, mass, most, bar, name };
    });
    panels.append(...figures.map((f) => f.figure));
    sidesBox.append(box);
    views.push({ box, title, controls, figures });
  }

  function onKey(event, scale) {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (event.key === "Enter" || event.key === " ") state.pinned = !state.pinned;
    else if (event.key === "Escape") [state.pinned, state.probe] = [true, null];
    else if (event.key in moves) {
      const [down, right] = moves[event.key];
      const from = event.shiftKey ? state.probe : state.query;
      let to = null;
      if (from !== null && schedule.level(from) === scale) {
        const { row, column } = schedule.place(from);
        to = schedule.token(scale, row + down, column + right);
      } else {
        const { side, row, column } = schedule.place(state.query);
        const ratio = schedule.sides[scale] / side;
        to = schedule.token(scale, Math.floor((row + 0.5) * ratio), Math.floor((column + 0.5) * ratio));
      }
      if (!event.shiftKey) [state.query, state.pinned, state.probe] = [to, true, null];
      else if (scale <= schedule.level(state.query)) state.probe = to;
    } else return;
    event.preventDefault();
    later();
  }

  function fillControls(view, side, number) {
    view.title.textContent = state.sides.length > 1 ? `${"AB"[number]}: ${told(side)}` : `Layer ${told(side).slice(6)}`;
    const changed = () => {
      settle(side);
      refresh();
    };
    const heads = headsOf(side, side.part);
    view.controls.replaceChildren(
      ...(data.subjects.length > 1
        ? [choose("Run", data.subjects.map((s, i) => [i, s.name]), side.subject, (value) => {
            side.subject = Number(value);
            side.part = Math.min(side.part, subject(side).parts.length - 1);
            changed();
          })]
        : []),
      choose("Layer", subject(side).parts.map((p, i) => [i, partName(p), !headsOf(side, i).some((head) => has(side, i, head))]), side.part, (value) => {
        side.part = Number(value);
        changed();
      }),
      ...(isReach(side)
        ? []
        : [choose("Head", heads.map((head) => [head, head === "mean" ? "mean" : head, !has(side, side.part, head)]), side.head, (value) => {
            side.head = value === "mean" ? value : Number(value);
            changed();
          })]),
    );
  }

  // Maps and pictures are fetched, then everything is drawn; what was asked for last counts.
  let asked = 0;
  async function refresh() {
    const turn = ++asked;
    while (views.length < state.sides.length) addView(views.length);
    views.forEach((view, number) => {
      view.box.hidden = number >= state.sides.length;
      if (!view.box.hidden) fillControls(view, state.sides[number], number);
    });
    root.classList.toggle("two", state.sides.length > 1);
    root.setAttribute("aria-busy", "true");
    try {
      const p = state.picture;
      await Promise.all(
        state.sides.map(async (side) => {
          const key = `${side.subject}/${p}`;
          const [urls, packed, found] = await Promise.all([
            once(pictures, `urls/${key}`, () => source.pictures(side.subject, p)),
            once(maps, `${key}/${side.part}/${side.head}`, async () => {
              const bytes = await source.map(side.subject, p, side.part, side.head);
              return bytes && new PackedMap(await inflate(bytes), schedule);
            }),
            once(means, key, () => source.means(side.subject, p)),
          ]);
          const stages = await once(pictures, key, () => Promise.all(urls.map(loadPicture)));
          if (turn === asked) Object.assign(side, { map: packed, stages, means: found });
        }),
      );
      if (turn !== asked) return;
      fillMatrix();
      draw();
    } catch (error) {
      say(String(error.message ?? error));
    }
    root.removeAttribute("aria-busy");
  }

  let drawing = 0;
  function later() {
    if (!drawing) drawing = requestAnimationFrame(draw);
  }

  function draw() {
    drawing = 0;
    const level = schedule.level(state.query), visible = schedule.offsets[level + 1];
    state.sides.forEach((side, number) => {
      if (!side.stages) return;
      views[number].figures.forEach((figure, scale) => {
        const { canvas } = figure, seen = scale <= level && side.map !== null;
        const size = Math.round((canvas.clientWidth || 200) * (window.devicePixelRatio || 1));
        if (canvas.width !== size) canvas.width = canvas.height = size;
        const { query, probe } = state;
        drawPanel(canvas.getContext("2d"), size, { picture: side.stages[scale], schedule, scale, query, map: side.map, probe, state });
        figure.figure.classList.toggle("unseen", scale > level);
        figure.name.textContent = times(schedule.sides[scale]) + (scale === level ? " own" : "");
        const mass = seen ? side.map.mass(query, scale) : 0;
        figure.figure.dataset.mass = seen ? String(mass) : "";
        figure.mass.textContent = seen ? percent(mass) : "";
        figure.most.textContent = scale > level ? "finer: not seen" : seen ? `most ${percent(side.map.top(query, scale))}` : "no map here";
        figure.bar.firstChild.style.width = `${100 * mass}%`;
        figure.bar.lastChild.style.left = `${(100 * schedule.sides[scale] ** 2) / visible}%`;
        figure.bar.hidden = !seen;
        canvas.setAttribute("aria-label", `Scale ${times(schedule.sides[scale])}: ${seen ? `${percent(mass)} ${of(side)}` : "not seen"}. Arrow keys move the token that looks.`);
      });
    });
    readout.replaceChildren(...sentence());
    code.textContent = python();
    source.looked?.(viewed());
  }

  function sentence() {
    const { query, probe } = state, visible = schedule.offsets[schedule.level(query) + 1];
    const parts = [`${schedule.told(query)}${state.pinned ? "" : " (moving)"}`.replace("t", "T")];
    readout.dataset.weight = readout.dataset.step = "";
    if (probe !== null) parts.push(` looks at ${schedule.told(probe)}: `);
    else parts.push(": ");
    state.sides.forEach((side, number) => {
      if (state.sides.length > 1) parts.push(`${number ? "; " : ""}${"AB"[number]} `);
      if (!side.map) return parts.push("no map in this file");
      if (probe === null) {
        const own = side.map.mass(query, schedule.level(query)), entropy = side.map.entropies[query];
        parts.push(make("strong", {}, percent(own)), ` ${of(side)} in its own scale, entropy ${entropy.toFixed(2)} of at most ${Math.log(visible).toFixed(2)} nats`);
      } else {
        const weight = side.map.weight(query, probe), half = side.map.step(query, probe) / 2;
        if (!number) Object.assign(readout.dataset, { weight: String(weight), step: String(2 * half) });
        parts.push(make("strong", {}, percent(weight)), ` ${of(side)} (± ${(100 * half).toPrecision(1)}: 8 bits), ${(weight * visible).toFixed(2)} times even`);
      }
    });
    return [...parts, "."];
  }

  function viewed() {
    const sides = state.sides.map(({ subject, part, head }) => ({ subject, part, head }));
    return { picture: state.picture, query: state.query, sides };
  }

  function python() {
    const [a, b] = state.sides;
    const where = (side) => {
      const { layer, mixer, kind } = part(side), several = subject(side).parts.filter((p) => p.layer === layer).length > 1;
      return [["layer", layer], ...(several ? [["mixer", `"${mixer}"`]] : []), ...(kind === "reach" || side.head === "mean" ? [] : [["head", side.head]])];
    };
    const subjects = b && b.subject !== a.subject ? [a, b].map(subject) : [subject(a)];
    const load = subjects.length > 1 ? `runs = ${subjects.map((s) => s.load).join(", ")}` : `run = ${subjects[0].load}`;
    const beside = b ? [...(subjects.length > 1 ? [["run", 1]] : []), ...where(b)].map(([name, value]) => `"${name}": ${value}`) : [];
    const options = [
      subject(a).pictures[state.picture].arguments,
      ...where(a).map(([name, value]) => `${name}=${value}`),
      `query=${state.query}`,
      ...(b ? [`beside={${beside.join(", ")}}`] : []),
    ];
    return `import mvar\n${load}\nmvar.explore(${subjects.length > 1 ? "*runs" : "run"}, ${options.join(", ")})`;
  }

  // Layers x heads
  const measured = MEASURES.filter((m) => !m.cut || data.subjects.some((s) => m.cut in s.effects.changes));
  const measureSelect = choose("Colour", measured.map((m) => [m.key, m.name]), state.measure, (value) => {
    state.measure = value;
    fillMatrix();
  });
  const activeBox = make("fieldset", { class: "active" }, make("legend", {}, "A cell sets"));
  for (const number of [0, 1]) {
    const input = make("input", { type: "radio", name: `${group}-side`, checked: number === 0 });
    input.addEventListener("change", () => {
      state.active = number;
      fillMatrix();
    });
    activeBox.append(make("label", {}, input, ` ${"AB"[number]}`));
  }
  const scroll = make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Matrix of layers and heads" });
  const legend = make("p", { class: "legend" });
  matrixBox.append(make("h2", {}, "Layers and heads"), make("div", { class: "controls" }, measureSelect, activeBox), scroll, legend);

  function fillMatrix() {
    const side = state.sides[Math.min(state.active, state.sides.length - 1)];
    activeBox.hidden = state.sides.length < 2;
    if (!side.means) return;
    const measure = MEASURES.find((m) => m.key === state.measure), parts = subject(side).parts;
    const effects = subject(side).effects;
    const rows = measure.cut ? (effects.changes[measure.cut] ?? []) : side.means;
    const values = new Map(rows.map((row) => [`${row[0]}/${row[1]}`, row[measure.column ?? 2]]));
    const uniform = schedule.sides.map((s, k) => s * s * Math.log(schedule.offsets[k + 1])).reduce((x, y) => x + y) / schedule.count;
    const range = measure.cut ? spanOf(values) : rangeOf(values, measure.unit === "%" ? 1 : uniform), width = Math.max(...parts.map((p) => p.heads));
    matrixBox.parentElement.classList.toggle("slim", width <= 4);
    const heads = ["mean", ...Array(width).keys()];
    const table = make("table", {}, make("caption", {}, captionOf(measure, effects.images)));
    table.append(make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "layer"), ...heads.map((h) => make("th", { scope: "col" }, h === "mean" ? "mean" : `head ${h}`)))));
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
    const current = scroll.querySelector(`[data-cell="${focused ?? `${side.part}/${side.head}`}"]`) ?? scroll.querySelector("button");
    if (current) current.tabIndex = 0;
    if (focused) current?.focus();
    const missing = scroll.querySelector("button.absent") ? " Striped cells have no map in this file." : "";
    const [low, high] = range.map((x) => `${measure.unit === "nats" ? x.toFixed(2) : measure.digits(x)} ${measure.unit}`);
    const even = measure.unit === "nats" ? ` Looking everywhere alike: ${uniform.toFixed(2)} nats.` : measure.cut ? " More than 0: worse. A dash: not measured." : "";
    legend.textContent = `Light: ${low}; dark: ${high}.${even}${missing}`;
  }

  function captionOf(measure, images) {
    if (!measure.cut) return `${measure.name}, mean over the ${schedule.count} tokens of the image (${measure.unit})`;
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

  function matrixButton(side, p, number, head, value, measure, [low, high]) {
    const there = has(side, number, head), shown = value === undefined ? "–" : measure.digits(value);
    const chosen = state.sides.map((s, i) => (s.subject === side.subject && s.part === number && s.head === head ? "AB"[i] : "")).join("");
    const text = state.sides.length > 1 && chosen ? `${chosen} ${shown}` : shown;
    const name = `layer ${p.layer}, ${p.mixer}, ${p.kind === "reach" ? "reach" : headName(head)}: ${measure.name} ${shown}${value === undefined ? "" : ` ${measure.unit}`}`;
    const made = make("button", {
      type: "button", tabindex: "-1", "data-cell": `${number}/${head}`, "data-value": String(value ?? ""), title: there ? name : `${name} (no map in this file)`,
      "aria-label": there ? name : `${name}, no map in this file`, "aria-pressed": String(Boolean(chosen)), "aria-disabled": String(!there),
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
      refresh();
    });
    return made;
  }

  scroll.addEventListener("keydown", (event) => {
    const at = event.target.closest("[data-cell]");
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (!at || !(event.key in moves)) return;
    event.preventDefault();
    const [down, right] = moves[event.key], cell = at.parentElement, row = cell.parentElement;
    const rows = [...row.parentElement.children], target = rows[rows.indexOf(row) + down]?.children[[...row.children].indexOf(cell) + right];
    const next = target?.querySelector("button");
    if (!next) return;
    at.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });

  // What can be done with the view
  function say(text) {
    message.textContent = text;
  }

  function exported() {
    const columns = Math.min(MAX_COLUMNS, schedule.sides.length), level = schedule.level(state.query);
    const rows = Math.ceil((level + 1) / columns), size = 220, gap = 16, caption = 44, top = 34;
    const height = state.sides.length * (top + rows * (size + caption)) + gap + 24;
    const canvas = make("canvas", { width: 2 * (columns * (size + gap) + gap), height: 2 * height }), context = canvas.getContext("2d");
    context.scale(2, 2);
    context.fillStyle = "#fff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    const write = (text, x, y, font, ink = "#1c1e21", room = size) => {
      [context.font, context.fillStyle] = [`${font} system-ui, sans-serif`, ink];
      context.fillText(text, x, y, room);
    };
    state.sides.forEach((side, number) => {
      const begin = gap + number * (top + rows * (size + caption)), wide = columns * (size + gap);
      write(`${subject(side).name}: ${told(side)}`, gap, begin + 14, "600 15px", undefined, wide);
      for (let scale = 0; side.map && scale <= level; scale++) {
        const tile = make("canvas", { width: 2 * size, height: 2 * size });
        drawPanel(tile.getContext("2d"), 2 * size, { picture: side.stages[scale], schedule, scale, query: state.query, map: side.map, probe: state.probe, state });
        const x = gap + (scale % columns) * (size + gap), y = begin + top - 8 + Math.floor(scale / columns) * (size + caption);
        context.drawImage(tile, x, y, size, size);
        write(`${times(schedule.sides[scale])}${scale === level ? " own" : ""}: ${percent(side.map.mass(state.query, scale))} ${of(side)}`, x, y + size + 16, "600 13px");
        write(`most ${percent(side.map.top(state.query, scale))}`, x, y + size + 32, "12px", "#5d646b");
      }
    });
    const { name, class: label } = subject(state.sides[0]).pictures[state.picture];
    write(`${name}, class ${label}; ${schedule.told(state.query)}`, gap, height - 10, "12px", "#5d646b", columns * (size + gap));
    return canvas;
  }

  const exportedPng = () => new Promise((resolve) => exported().toBlob(resolve, "image/png"));

  async function save(kind) {
    const blob = await (kind === "pdf" ? pdfOf(exported()) : exportedPng());
    const url = URL.createObjectURL(blob);
    make("a", { href: url, download: `attention.${kind}` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
    say(`Saved as attention.${kind}.`);
  }

  async function copy(what, begin) {
    try {
      await begin();
      say(`${what} copied.`);
    } catch {
      say(`${what}: this browser lets no page copy it; ${what === "Picture" ? "save it instead" : "select it"}.`);
    }
  }

  const compare = button("Compare", () => {
    if (state.sides.length > 1) state.sides.pop();
    else {
      const [a] = state.sides, other = data.subjects.length > 1 ? (a.subject + 1) % data.subjects.length : a.subject;
      state.sides.push({ subject: other, part: Math.min(a.part, data.subjects[other].parts.length - 1), head: a.head });
      settle(state.sides[1]);
    }
    compare.setAttribute("aria-pressed", String(state.sides.length > 1));
    state.active = state.sides.length - 1;
    activeBox.querySelectorAll("input")[state.active].checked = true;
    refresh();
  }, { "aria-pressed": String(state.sides.length > 1), "data-act": "compare" });
  const heat = make("input", { type: "range", min: "0", max: "100", step: "5", value: String(state.heat) });
  heat.addEventListener("input", () => {
    state.heat = Number(heat.value);
    later();
  });
  const tools = make(
    "div", { class: "controls tools" }, compare,
    make("label", {}, make("span", {}, "Heat"), heat),
    choose("Colours up to", [["each", "the most of each scale"], ["all", "the most of all scales"]], state.range, (value) => {
      state.range = value;
      later();
    }),
  );
  const exports = make(
    "div", { class: "controls exports" },
    button("Save PNG", () => save("png"), { "data-act": "png" }),
    button("Save PDF", () => save("pdf"), { "data-act": "pdf" }),
    button("Copy picture", () => copy("Picture", async () => navigator.clipboard.write([new ClipboardItem({ "image/png": exportedPng() })])), { "data-act": "picture" }),
    button("Copy Python", () => copy("Python", () => navigator.clipboard.writeText(python())), { "data-act": "python" }),
    message,
  );
  const help = make("p", { class: "help" }, "Point at a token: every panel shows where it looks. Click to hold it, then point at others to read its weight on them; click it again to let go. Keys: arrows move the token, with Shift the one that is read, Enter holds or lets go. Blue frame: the token that looks. Tick under a panel: what looking everywhere alike would put there.");
  const left = make("ul", { class: "left-out" }, ...source.leftOut.map((text) => make("li", {}, text)));
  root.append(
    make("header", {}, heading, names), chooser, tools, readout, make("div", { class: "work" }, make("div", {}, sidesBox, help), matrixBox),
    make("section", { class: "export", "aria-label": "Export" }, make("h2", {}, "This view"), exports, code),
    ...(source.leftOut.length ? [make("section", { "aria-label": "Left out" }, make("h2", {}, "Not in this file"), left)] : []),
  );
  const resized = new ResizeObserver(later);
  resized.observe(sidesBox);
  state.sides.forEach(settle);
  const ready = refresh();
  return {
    ready,
    destroy() {
      resized.disconnect();
      themes.removeEventListener("change", setTheme);
    },
  };
}

const widget = {
  render({ model, el }) {
    const mounted = mount(el.appendChild(make("div")), widgetSource(model), { heading: "h2" });
    return () => mounted.destroy();
  },
};
export default widget;
