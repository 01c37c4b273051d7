// The explorer itself: its controls, its sides, and what happens when they are used; the last of the files that page.py
// joins to one module.

const HELP =
  "Point at a token: every panel shows where it looks. Click to hold it, then point at others to read its weight on them; " +
  "click it again to let go. Keys: arrows move the token, with Shift the one that is read, Enter holds or lets go. Blue " +
  "frame: the token that looks. Tick under a panel: what looking alike at all that the mixer sees would put there.";

export function mount(root, source, options = {}) {
  const look = new Look(source), fetched = new Fetched(source, look.schedule), { data, schedule, state } = look;
  root.classList.add("mvar-explorer");
  root.style.setProperty("--panel", schedule.sides.length > MAX_COLUMNS ? "13rem" : "9.2rem"); // few fit beside each other
  const forgetTheme = followTheme(root);

  const heading = make(options.heading ?? "h1", { class: "title" }, "Where attention goes");
  const names = make("p", { class: "names" }, data.subjects.map((s) => `${s.name} (${s.pattern})`).join(" · "));
  const readout = make("p", { class: "readout", role: "status", "aria-live": "polite" });
  const sidesBox = make("div", { class: "sides" });
  const code = make("pre", { class: "code", tabindex: "0", "aria-label": "Python that makes this view" });
  const group = `picture-${Math.random().toString(36).slice(2)}`;
  const views = [];

  // Maps and pictures are fetched, then everything is drawn; what was asked for last counts. The matrix comes after: the
  // means of all layers and heads can take long.
  let asked = 0;
  async function refresh() {
    const turn = ++asked, { picture } = state;
    while (views.length < state.sides.length) {
      views.push(sideView(look, views.length, { later, refresh }));
      sidesBox.append(views.at(-1).box);
    }
    views.forEach(({ box, fill }, number) => {
      box.hidden = number >= state.sides.length;
      if (!box.hidden) fill(state.sides[number]);
    });
    root.classList.toggle("two", state.sides.length > 1);
    root.setAttribute("aria-busy", "true");
    try {
      const found = await Promise.all(state.sides.map((side) => fetched.side(picture, side)));
      if (turn !== asked) return;
      state.sides.forEach((side, number) => Object.assign(side, found[number]));
      draw();
      const means = Promise.all(state.sides.map((side) => fetched.allMeans(picture, side)));
      matrix.fill();
      root.removeAttribute("aria-busy");
      await means;
      if (turn === asked) matrix.fill();
    } catch (error) {
      exports.say(String(error.message ?? error));
      root.removeAttribute("aria-busy");
    }
  }

  let drawing = 0;
  function later() {
    if (!drawing) drawing = requestAnimationFrame(draw);
  }

  function draw() {
    drawing = 0;
    state.sides.forEach((side, number) => {
      if (side.stages) views[number].draw(side);
    });
    drawKey(key, state.heat);
    rangeTold.textContent = RANGES[state.range].replace("most", "");
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
    look.compare();
    compare.setAttribute("aria-pressed", String(state.sides.length > 1));
    matrix.activate(state.sides.length - 1);
    refresh();
  }, { "aria-pressed": String(state.sides.length > 1), "data-act": "compare" });
  const heat = make("input", { type: "range", min: "0", max: "100", step: "5", value: String(state.heat) });
  heat.addEventListener("input", () => {
    state.heat = Number(heat.value);
    later();
  });
  const kinds = Object.entries(RANGES).map(([range, told]) => [range, `the ${told}`]);
  const ranges = choose("Colours up to", kinds, state.range, (value) => {
    state.range = value;
    later();
  });
  const rangeTold = make("span", { class: "printed" }); // what is chosen beside it, where that is not seen
  const key = make("canvas", { width: 2 * KEY.width, height: 2 * KEY.height, role: "img", "aria-label": KEY.told });
  const legend = make("div", { class: "key" }, make("span", {}, "0"), key, make("span", {}, "most", rangeTold));
  const heated = make("label", {}, make("span", {}, "Heat"), heat);
  const tools = make("div", { class: "controls tools" }, compare, heated, ranges, legend);
  const left = make("ul", { class: "left-out" }, ...source.leftOut.map((text) => make("li", {}, text)));
  const chooser = imageChooser(look, group, (number) => fetched.urls(0, number), refresh);
  const note = source.note ? make("p", { class: "help" }, source.note) : null;
  root.append(
    make("header", {}, heading, names), chooser, tools, readout,
    make(
      "div", { class: "work" },
      make("div", { class: "seen" }, sidesBox, make("p", { class: "help" }, HELP)),
      matrix.box,
      make("section", { class: "export", "aria-label": "Export" }, make("h2", {}, "This view"), exports.box, code, note),
    ),
  );
  if (source.leftOut.length) {
    root.append(make("section", { "aria-label": "Left out" }, make("h2", {}, "Not in this file"), left));
  }
  const resized = new ResizeObserver(later);
  resized.observe(sidesBox);
  state.sides.forEach((side) => look.settle(side));
  const ready = refresh();
  return {
    ready,
    destroy() {
      resized.disconnect();
      forgetTheme();
    },
  };
}

// Light or dark, as the notebook or the reader's system has it; returns what ends it.
function followTheme(root) {
  const themes = window.matchMedia("(prefers-color-scheme: dark)"), { body } = document;
  const set = () => {
    const { jpThemeLight } = body.dataset, has = (theme) => body.classList.contains(theme);
    const isDark = () => has("vscode-dark") || (themes.matches && !has("vscode-light"));
    const dark = jpThemeLight !== undefined ? jpThemeLight === "false" : isDark();
    root.dataset.theme = dark ? "dark" : "light";
  };
  const notebook = new MutationObserver(set);
  notebook.observe(body, { attributeFilter: ["class", "data-jp-theme-light"] });
  themes.addEventListener("change", set);
  set();
  return () => {
    notebook.disconnect();
    themes.removeEventListener("change", set);
  };
}

// The pictures to choose from. urls: promises of a picture's addresses; changed: called when one was chosen.
function imageChooser({ data, state }, group, urls, changed) {
  const pictures = data.subjects[0].pictures.map((picture, number) => {
    const input = make("input", { type: "radio", name: group, value: String(number), checked: number === state.picture });
    input.addEventListener("change", () => {
      state.picture = number;
      changed();
    });
    const image = make("img", { alt: "", width: 56, height: 56 });
    urls(number).then((found) => (image.src = found.at(-1)));
    return make("label", { class: "picture" }, input, image, make("span", {}, picture.class), make("small", {}, picture.name));
  });
  return make("fieldset", { class: "chooser" }, make("legend", {}, "Image"), ...pictures);
}

const widget = {
  render({ model, el }) {
    const root = el.appendChild(make("div"));
    // JupyterLab takes arrows and letters of what has the focus, unless that element itself is marked so.
    root.addEventListener("focusin", ({ target }) => (target.dataset.lmSuppressShortcuts = "true"));
    const mounted = mount(root, widgetSource(model), { heading: "h2" });
    return () => mounted.destroy();
  },
};
export default widget;
