// The explorer of attention: one module, joined of these files by page.py, of the page (`mount` with `pageSource`) and
// of the notebook's widget (the default export, anywidget's contract). Draws what it is given; every number comes from
// Python.
//
// A source has `data` (scales, models, first view) and answers, with promises: `pictures(s, p)` addresses of a picture
// after every scale; `means(s, p)` rows [mixer, head, own, entropy]; `map(s, p, mixer, head)` `{ bytes, means }`, bytes as
// mvar/analysis/explorer/packed.py writes them and [own, entropy] where `means` has them not, or null; `has(...)` whether
// there is one. It may have a `note` on where the view can be made again; `measures` says that a map is made when it is
// asked for. Texts of users are only ever set as text.

const MAGMA = [
  [59, 15, 112], [100, 26, 128], [140, 41, 129], [183, 55, 121], [222, 73, 104], [247, 112, 92], [254, 159, 109],
  [254, 207, 146], [252, 253, 191],
];
const BLUES = [[240, 246, 252], [202, 221, 240], [148, 190, 223], [85, 150, 200], [36, 107, 171], [16, 66, 124], [8, 35, 72]];
const MAX_COLUMNS = 5;
const SAMPLE = 512; // pixels: pictures are held at most so large
const MEASURES = [
  { key: "own", name: "share in the own scale", unit: "%", column: 0, digits: (x) => (100 * x).toFixed(0) },
  { key: "entropy", name: "entropy", unit: "nats", column: 1, digits: (x) => x.toFixed(1) },
];
const RANGES = { each: "most of each scale", all: "most of all scales" }; // what the colours go up to
const CUTS = { own: "own scale cut", coarser: "coarser scales cut", state: "state emptied" }; // as `mvar knockout` says them
for (const [key, name] of Object.entries(CUTS)) {
  MEASURES.push({ key: `cut-${key}`, cut: key, name: `harm, ${name}`, unit: "bits/token", digits: (x) => `${x < 0 ? "" : "+"}${x.toFixed(3)}` });
}

const percent = (x) => `${x >= 0.9995 ? "100" : (100 * x).toPrecision(3)} %`;
const times = (side) => `${side}×${side}`;

function colour(stops, share) {
  const at = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  return stops[low].map((value, i) => Math.round(value + (stops[low + 1][i] - value) * (at - low)));
}

function luminance([r, g, b]) {
  const [x, y, z] = [r, g, b].map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
}

// Scales and maps -----------------------------------------------------------------------------------------------------

class Schedule {
  constructor(sides) {
    this.sides = sides;
    this.offsets = [0];
    for (const side of sides) this.offsets.push(this.offsets.at(-1) + side * side);
    this.count = this.offsets.at(-1);
  }
  level(token) {
    return this.offsets.findIndex((end) => token < end) - 1;
  }
  place(token) {
    const scale = this.level(token), side = this.sides[scale], inside = token - this.offsets[scale];
    return { scale, side, row: Math.floor(inside / side), column: inside % side };
  }
  token(scale, row, column) {
    const last = this.sides[scale] - 1, clamp = (x) => Math.min(Math.max(x, 0), last);
    return this.offsets[scale] + clamp(row) * this.sides[scale] + clamp(column);
  }
  told(token) {
    const { side, row, column } = this.place(token);
    return `token ${token} (${times(side)}, row ${row}, column ${column})`;
  }
}

// What a mixer lets every token see, and what looking at all of that alike would be. rows: for each token how many it
// sees of each scale, coarse to fine.
class Sight {
  constructor(rows) {
    this.rows = rows;
    this.totals = rows.map((row) => row.reduce((sum, count) => sum + count, 0));
  }
  blind(query, scale) {
    return !this.rows[query][scale];
  }
  evenShare(query, scale) {
    return this.blind(query, scale) ? 0 : this.rows[query][scale] / this.totals[query];
  }
  evenEntropy(query) {
    return Math.log(Math.max(this.totals[query], 1));
  }
  meanEvenEntropy() {
    return this.rows.reduce((sum, _, query) => sum + this.evenEntropy(query), 0) / this.rows.length;
  }
}

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

class PackedMap {
  constructor(buffer, schedule) {
    this.schedule = schedule;
    this.perKey = [0];
    this.perCell = [0];
    for (let token = 0; token < schedule.count; token++) {
      const scale = schedule.level(token);
      this.perKey.push(this.perKey.at(-1) + scale + 1);
      this.perCell.push(this.perCell.at(-1) + schedule.offsets[scale + 1]);
    }
    const total = this.perKey.at(-1), floats = new Float32Array(buffer, 0, 2 * total + schedule.count);
    this.tops = floats.subarray(0, total);
    this.masses = floats.subarray(total, 2 * total);
    this.entropies = floats.subarray(2 * total);
    this.cells = new Uint8Array(buffer, floats.byteLength);
  }
  top(query, scale) {
    return this.tops[this.perKey[query] + scale];
  }
  mass(query, scale) {
    return this.masses[this.perKey[query] + scale];
  }
  step(query, key) {
    return this.top(query, this.schedule.level(key)) / 255;
  }
  weight(query, key) {
    return this.cells[this.perCell[query] + key] * this.step(query, key);
  }
}

// Sources -------------------------------------------------------------------------------------------------------------

const bytesOf = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

export function pageSource(data) {
  const key = (...parts) => parts.join("/");
  return {
    data,
    leftOut: data.leftOut,
    note: data.note,
    has: (s, p, part, head) => key(s, p, part, head) in data.maps,
    pictures: async (s, p) => data.pictures[key(s, p)],
    means: async (s, p) => data.means[key(s, p)] ?? [],
    map: async (s, p, part, head) => {
      const text = data.maps[key(s, p, part, head)];
      return text === undefined ? null : { bytes: bytesOf(text) };
    },
  };
}

export function widgetSource(model) {
  const waiting = new Map();
  let number = 0, telling;
  model.on("msg:custom", (message, buffers) => {
    const answer = waiting.get(message.id);
    waiting.delete(message.id);
    answer?.(message, buffers);
  });
  const ask = (question) =>
    new Promise((resolve, reject) => {
      const id = ++number;
      waiting.set(id, (message, buffers) => (message.error ? reject(new Error(message.error)) : resolve({ message, buffers })));
      model.send({ id, ...question });
    });
  return {
    data: model.get("data"),
    leftOut: [],
    measures: true,
    has: () => true,
    pictures: async (subject, picture) => (await ask({ ask: "pictures", subject, picture })).message.urls,
    means: async (subject, picture) => (await ask({ ask: "means", subject, picture })).message.means,
    map: async (subject, picture, part, head) => {
      const { message, buffers } = await ask({ ask: "map", subject, picture, part, head });
      const { buffer, byteOffset, byteLength } = buffers[0];
      return { bytes: new Uint8Array(buffer.slice(byteOffset, byteOffset + byteLength)), means: message.means };
    },
    looked: (view) => {
      clearTimeout(telling); // while the pointer moves only now and then
      telling = setTimeout(() => {
        model.set("view", view);
        model.save_changes();
      }, 150);
    },
  };
}
