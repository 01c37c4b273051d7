// What is looked at: image, token and sides (one map, or two beside each other), and what they are called in words and
// in Python. Part of the explorer's module, joined by page.py.

const headName = (head) => (head === "mean" ? "mean over heads" : `head ${head}`);
const partName = ({ layer, mixer, kind }) => `${layer} · ${mixer}${kind === "reach" ? " (reach)" : ""}`;

const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

class Look {
  constructor(source) {
    const { view, sides } = source.data;
    this.source = source;
    this.data = source.data;
    this.schedule = new Schedule(sides);
    this.sights = source.data.subjects.map(({ sees }) => sees.map((rows) => new Sight(rows)));
    this.state = {
      picture: view.picture, query: view.query, pinned: false, probe: null, heat: 80, range: "each", measure: "own",
      sides: view.sides.map((side) => ({ ...side })), active: 0,
    };
  }
  subject(side) {
    return this.data.subjects[side.subject];
  }
  part(side) {
    return this.subject(side).parts[side.part];
  }
  sight(side, part = side.part) {
    return this.sights[side.subject][this.subject(side).parts[part].sees];
  }
  isReach(side) {
    return this.part(side).kind === "reach";
  }
  told(side) {
    const { layer, mixer } = this.part(side);
    return `layer ${layer}, ${mixer}, ${this.isReach(side) ? "reach" : headName(side.head)}`;
  }
  of(side) {
    return this.isReach(side) ? "of its reach" : "of its mass";
  }
  // The largest weight on a scale that is not finer than the query's, in words.
  mostOf(side, scale) {
    const { query } = this.state;
    if (this.sight(side).blind(query, scale)) return `not seen by ${this.part(side).mixer}`;
    return `most ${percent(side.map.top(query, scale))}`;
  }
  has(side, part, head) {
    return this.source.has(side.subject, this.state.picture, part, head);
  }
  headsOf(side, part) {
    return ["mean", ...Array(this.subject(side).parts[part].heads).keys()];
  }
  // A head that the mixer has and the file holds, where there is one.
  settle(side) {
    const heads = this.headsOf(side, side.part);
    if (this.has(side, side.part, side.head) && heads.includes(side.head)) return;
    side.head = heads.find((head) => this.has(side, side.part, head)) ?? "mean";
  }
  // Another side is seen beside the one, or no longer.
  compare() {
    const { sides } = this.state, { subjects } = this.data;
    if (sides.length > 1) return sides.pop();
    const [a] = sides, subject = subjects.length > 1 ? (a.subject + 1) % subjects.length : a.subject;
    sides.push({ subject, part: Math.min(a.part, subjects[subject].parts.length - 1), head: a.head });
    this.settle(sides[1]);
  }
  // A key on the panel of a scale; whether it did anything.
  key({ key, shiftKey }, scale) {
    const { state, schedule } = this;
    if (key === "Enter" || key === " ") state.pinned = !state.pinned;
    else if (key === "Escape") [state.pinned, state.probe] = [true, null];
    else if (!(key in MOVES)) return false;
    else {
      const to = this.moved(shiftKey ? state.probe : state.query, scale, MOVES[key]);
      if (!shiftKey) [state.query, state.pinned, state.probe] = [to, true, null];
      else if (scale <= schedule.level(state.query)) state.probe = to;
    }
    return true;
  }
  // The token beside one; from another scale, or none, the one at the query's place.
  moved(from, scale, [down, right]) {
    const { schedule } = this;
    if (from !== null && schedule.level(from) === scale) {
      const { row, column } = schedule.place(from);
      return schedule.token(scale, row + down, column + right);
    }
    const { side, row, column } = schedule.place(this.state.query), ratio = schedule.sides[scale] / side;
    return schedule.token(scale, Math.floor((row + 0.5) * ratio), Math.floor((column + 0.5) * ratio));
  }
  panel(side, scale) {
    const { schedule, state } = this;
    const { query, probe } = state, seen = scale <= schedule.level(query) && !this.sight(side).blind(query, scale);
    return { picture: side.stages[scale], schedule, scale, query, seen, map: side.map, probe, state };
  }
  viewed() {
    const sides = this.state.sides.map(({ subject, part, head }) => ({ subject, part, head }));
    return { picture: this.state.picture, query: this.state.query, sides };
  }
}

// The line above the panels: its text and elements, and what it reads as numbers.
function sentence(look) {
  const { schedule, state } = look, { query, probe } = state;
  const parts = [schedule.told(query).replace("t", "T")];
  const numbers = { weight: "", step: "" };
  parts.push(probe !== null ? ` looks at ${schedule.told(probe)}: ` : state.pinned ? ", held: " : ": ");
  state.sides.forEach((side, number) => {
    if (state.sides.length > 1) parts.push(`${number ? "; " : ""}${"AB"[number]} `);
    if (!side.map) return parts.push("no map in this file");
    const sight = look.sight(side);
    if (probe === null) {
      const own = side.map.mass(query, schedule.level(query)), entropy = side.map.entropies[query].toFixed(2);
      const most = sight.evenEntropy(query).toFixed(2);
      parts.push(make("strong", {}, percent(own)), ` ${look.of(side)} in its own scale, entropy ${entropy} of at most ${most} nats`);
    } else {
      const weight = side.map.weight(query, probe), step = side.map.step(query, probe);
      if (!number) Object.assign(numbers, { weight: String(weight), step: String(step) });
      const even = sight.blind(query, schedule.level(probe))
        ? `${look.part(side).mixer} does not see that scale`
        : `${(weight * sight.totals[query]).toFixed(2)} times even`;
      parts.push(make("strong", {}, percent(weight)), ` ${look.of(side)} (± ${(50 * step).toPrecision(1)}: 8 bits), ${even}`);
    }
  });
  return { parts: [...parts, "."], numbers };
}

// The three lines that make the view in Python.
function python(look) {
  const { state } = look, [a, b] = state.sides;
  const where = (side) => {
    const { layer, mixer } = look.part(side), several = look.subject(side).parts.filter((p) => p.layer === layer).length > 1;
    const head = look.isReach(side) || side.head === "mean" ? [] : [["head", side.head]];
    return [["layer", layer], ...(several ? [["mixer", `"${mixer}"`]] : []), ...head];
  };
  const subjects = (b && b.subject !== a.subject ? [a, b] : [a]).map((side) => look.subject(side));
  const load = subjects.length > 1 ? `runs = ${subjects.map((s) => s.load).join(", ")}` : `run = ${subjects[0].load}`;
  const beside = b ? [...(subjects.length > 1 ? [["run", 1]] : []), ...where(b)].map(([name, value]) => `"${name}": ${value}`) : [];
  const options = [
    look.subject(a).pictures[state.picture].arguments,
    ...where(a).map(([name, value]) => `${name}=${value}`),
    `query=${state.query}`,
    ...(b ? [`beside={${beside.join(", ")}}`] : []),
  ];
  return `import mvar\n${load}\nmvar.explore(${subjects.length > 1 ? "*runs" : "run"}, ${options.join(", ")})`;
}
