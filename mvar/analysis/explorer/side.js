// One side of the explorer: its controls, and a panel for each scale, used by pointer and by keys. Part of the
// explorer's module, joined by page.py.

// Args: number: 0 or 1; acts: `later()` draws soon, `refresh()` fetches what was chosen and draws.
function sideView(look, number, acts) {
  const { data, schedule, state } = look;
  const controls = make("div", { class: "controls" }), title = make("h2", { class: "side-title" });
  const head = make("div", { class: "side-head" }, title, controls);
  const panels = schedule.sides.map((_, scale) => scalePanel(look, scale, acts));
  const figures = make("div", { class: "panels" }, ...panels.map((panel) => panel.figure));
  const box = make("section", { class: "side", "data-side": String(number) }, head, figures);

  function chooseRun(side, changed) {
    const runs = data.subjects.map((subject, i) => [i, subject.name]);
    return choose("Run", runs, side.subject, (value) => {
      side.subject = Number(value);
      side.part = Math.min(side.part, look.subject(side).parts.length - 1);
      changed();
    });
  }

  function chooseLayer(side, changed) {
    const held = (part) => look.headsOf(side, part).some((head) => look.has(side, part, head));
    const parts = look.subject(side).parts.map((part, i) => [i, partName(part), !held(i)]);
    return choose("Layer", parts, side.part, (value) => {
      side.part = Number(value);
      changed();
    });
  }

  function chooseHead(side, changed) {
    const heads = look.headsOf(side, side.part).map((head) => [head, head, !look.has(side, side.part, head)]);
    return choose("Head", heads, side.head, (value) => {
      side.head = value === "mean" ? value : Number(value);
      changed();
    });
  }

  // Title and controls, as the side is now.
  function fill(side) {
    const told = look.told(side);
    title.textContent = state.sides.length > 1 ? `${"AB"[number]}: ${told}` : told.replace("l", "L");
    const changed = () => {
      look.settle(side);
      acts.refresh();
    };
    const focused = [...controls.children].findIndex((label) => label.contains(document.activeElement));
    controls.replaceChildren(
      ...(data.subjects.length > 1 ? [chooseRun(side, changed)] : []),
      chooseLayer(side, changed),
      ...(look.isReach(side) ? [] : [chooseHead(side, changed)]),
    );
    controls.children[focused]?.querySelector("select").focus(); // who chose by keys goes on
  }

  return { box, fill, draw: (side) => panels.forEach((panel) => panel.draw(side)) };
}

// The panel of one scale: canvas, share of the scale and the bar of it.
function scalePanel(look, scale, acts) {
  const { schedule, state } = look, sides = schedule.sides[scale];
  const canvas = make("canvas", {
    tabindex: "0", role: "application", "aria-roledescription": "token map", "data-scale": String(scale),
  });
  const name = make("span", { class: "scale" }, times(sides)), share = make("strong");
  const filled = make("i"), tick = make("b"), bar = make("span", { class: "bar" }, filled, tick);
  const most = make("span", { class: "most" });
  const caption = make("figcaption", {}, make("span", { class: "line" }, name, share), bar, most);
  const figure = make("figure", { "data-scale": String(scale) }, canvas, caption);

  const token = (event) => {
    const area = canvas.getBoundingClientRect();
    const [x, y] = [(event.clientX - area.left) / area.width, (event.clientY - area.top) / area.height];
    return schedule.token(scale, Math.floor(y * sides), Math.floor(x * sides));
  };
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerType === "touch") return;
    if (!state.pinned) state.query = token(event);
    else state.probe = scale <= schedule.level(state.query) ? token(event) : null;
    acts.later();
  });
  canvas.addEventListener("pointerleave", () => {
    state.probe = null;
    acts.later();
  });
  canvas.addEventListener("click", (event) => {
    const clicked = token(event);
    state.pinned = !(state.pinned && clicked === state.query);
    state.query = clicked;
    state.probe = null;
    acts.later();
  });
  canvas.addEventListener("keydown", (event) => {
    if (!look.key(event, scale)) return;
    event.preventDefault();
    acts.later();
  });

  // The panel of a side, whose map is there or not.
  function draw(side) {
    const { query } = state, level = schedule.level(query), finer = scale > level, seen = !finer && side.map !== null;
    const size = Math.round((canvas.clientWidth || 200) * (window.devicePixelRatio || 1));
    if (canvas.width !== size) canvas.width = canvas.height = size;
    drawPanel(canvas.getContext("2d"), size, look.panel(side, scale));
    figure.classList.toggle("unseen", finer);
    name.textContent = times(sides) + (scale === level ? " own" : "");
    const mass = seen ? side.map.mass(query, scale) : 0;
    figure.dataset.mass = seen ? String(mass) : "";
    share.textContent = seen ? percent(mass) : "";
    most.textContent = finer ? "finer: not seen" : seen ? look.mostOf(side, scale) : "no map here";
    filled.style.width = `${100 * mass}%`;
    tick.style.left = `${finer ? 0 : 100 * look.sight(side).evenShare(query, scale)}%`;
    bar.hidden = !seen;
    const told = seen ? `${percent(mass)} ${look.of(side)}` : "not seen";
    canvas.setAttribute("aria-label", `Scale ${times(sides)}: ${told}. Arrow keys move the token that looks.`);
  }

  return { figure, draw };
}
