// The explorer itself: its controls, its panels, and what happens when they are used; the last of the files that
// page.py joins to one module.

export function mount(root, source, options = {}) {
  const look = new Look(source), { data, schedule, state } = look;
  const pictures = new Map(), maps = new Map(), means = new Map();
  const once = (kept, key, begin) => {
    if (!kept.has(key)) {
      kept.set(key, begin());
      kept.get(key).catch(() => kept.delete(key)); // asked again the next time
    }
    return kept.get(key);
  };

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
  const code = make("pre", { class: "code", tabindex: "0", "aria-label": "Python that makes this view" });
  const views = [];

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
    view.title.textContent = state.sides.length > 1 ? `${"AB"[number]}: ${look.told(side)}` : `Layer ${look.told(side).slice(6)}`;
    const changed = () => {
      look.settle(side);
      refresh();
    };
    const heads = look.headsOf(side, side.part);
    view.controls.replaceChildren(
      ...(data.subjects.length > 1
        ? [choose("Run", data.subjects.map((s, i) => [i, s.name]), side.subject, (value) => {
            side.subject = Number(value);
            side.part = Math.min(side.part, look.subject(side).parts.length - 1);
            changed();
          })]
        : []),
      choose("Layer", look.subject(side).parts.map((p, i) => [i, partName(p), !look.headsOf(side, i).some((head) => look.has(side, i, head))]), side.part, (value) => {
        side.part = Number(value);
        changed();
      }),
      ...(look.isReach(side)
        ? []
        : [choose("Head", heads.map((head) => [head, head === "mean" ? "mean" : head, !look.has(side, side.part, head)]), side.head, (value) => {
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
      matrix.fill();
      draw();
    } catch (error) {
      exports.say(String(error.message ?? error));
    }
    root.removeAttribute("aria-busy");
  }

  let drawing = 0;
  function later() {
    if (!drawing) drawing = requestAnimationFrame(draw);
  }

  function draw() {
    drawing = 0;
    const level = schedule.level(state.query);
    state.sides.forEach((side, number) => {
      if (!side.stages) return;
      const sight = look.sight(side);
      views[number].figures.forEach((figure, scale) => {
        const { canvas } = figure, seen = scale <= level && side.map !== null;
        const size = Math.round((canvas.clientWidth || 200) * (window.devicePixelRatio || 1));
        if (canvas.width !== size) canvas.width = canvas.height = size;
        const { query } = state;
        drawPanel(canvas.getContext("2d"), size, look.panel(side, scale));
        figure.figure.classList.toggle("unseen", scale > level);
        figure.name.textContent = times(schedule.sides[scale]) + (scale === level ? " own" : "");
        const mass = seen ? side.map.mass(query, scale) : 0;
        figure.figure.dataset.mass = seen ? String(mass) : "";
        figure.mass.textContent = seen ? percent(mass) : "";
        figure.most.textContent = scale > level ? "finer: not seen" : seen ? `most ${percent(side.map.top(query, scale))}` : "no map here";
        if (seen && sight.blind(query, scale)) figure.most.textContent = `not seen by ${look.part(side).mixer}`;
        figure.bar.firstChild.style.width = `${100 * mass}%`;
        figure.bar.lastChild.style.left = `${100 * sight.evenShare(query, scale)}%`;
        figure.bar.hidden = !seen;
        canvas.setAttribute("aria-label", `Scale ${times(schedule.sides[scale])}: ${seen ? `${percent(mass)} ${look.of(side)}` : "not seen"}. Arrow keys move the token that looks.`);
      });
    });
    const { parts, numbers } = sentence(look);
    readout.replaceChildren(...parts);
    Object.assign(readout.dataset, numbers);
    code.textContent = python(look);
    source.looked?.(look.viewed());
  }

  // What can be done with the view
  const exports = exportControls(look);
  const matrix = layersByHeads(look, group, { changed: refresh, say: exports.say });
  const compare = button("Compare", () => {
    if (state.sides.length > 1) state.sides.pop();
    else {
      const [a] = state.sides, other = data.subjects.length > 1 ? (a.subject + 1) % data.subjects.length : a.subject;
      state.sides.push({ subject: other, part: Math.min(a.part, data.subjects[other].parts.length - 1), head: a.head });
      look.settle(state.sides[1]);
    }
    compare.setAttribute("aria-pressed", String(state.sides.length > 1));
    matrix.activate(state.sides.length - 1);
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
  const help = make("p", { class: "help" }, "Point at a token: every panel shows where it looks. Click to hold it, then point at others to read its weight on them; click it again to let go. Keys: arrows move the token, with Shift the one that is read, Enter holds or lets go. Blue frame: the token that looks. Tick under a panel: what looking alike at all that the mixer sees would put there.");
  const left = make("ul", { class: "left-out" }, ...source.leftOut.map((text) => make("li", {}, text)));
  root.append(
    make("header", {}, heading, names), chooser, tools, readout, make("div", { class: "work" }, make("div", {}, sidesBox, help), matrix.box),
    make("section", { class: "export", "aria-label": "Export" }, make("h2", {}, "This view"), exports.box, code),
    ...(source.leftOut.length ? [make("section", { "aria-label": "Left out" }, make("h2", {}, "Not in this file"), left)] : []),
  );
  const resized = new ResizeObserver(later);
  resized.observe(sidesBox);
  state.sides.forEach((side) => look.settle(side));
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
