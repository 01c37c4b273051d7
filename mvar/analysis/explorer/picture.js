// The view as a picture of its own, saved or copied. Part of the explorer's module, joined by page.py.

function exported(look) {
  const { schedule, state } = look;
  const columns = Math.min(MAX_COLUMNS, schedule.sides.length), level = schedule.level(state.query);
  const rows = Math.ceil((level + 1) / columns), size = 220, gap = 16, caption = 44, top = 34;
  const height = state.sides.length * (top + rows * (size + caption)) + gap + 50;
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
    write(`${look.subject(side).name}: ${look.told(side)}`, gap, begin + 14, "600 15px", undefined, wide);
    for (let scale = 0; side.map && scale <= level; scale++) {
      const tile = make("canvas", { width: 2 * size, height: 2 * size });
      drawPanel(tile.getContext("2d"), 2 * size, look.panel(side, scale));
      const x = gap + (scale % columns) * (size + gap), y = begin + top - 8 + Math.floor(scale / columns) * (size + caption);
      context.drawImage(tile, x, y, size, size);
      const name = times(schedule.sides[scale]) + (scale === level ? " own" : "");
      write(`${name}: ${percent(side.map.mass(state.query, scale))} ${look.of(side)}`, x, y + size + 16, "600 13px");
      write(look.mostOf(side, scale), x, y + size + 32, "12px", "#5d646b");
    }
  });
  const { name, class: label } = look.subject(state.sides[0]).pictures[state.picture];
  write(`${name}, class ${label}; ${schedule.told(state.query)}`, gap, height - 36, "12px", "#5d646b", columns * (size + gap));
  const key = make("canvas", { width: 2 * KEY.width, height: 2 * KEY.height });
  drawKey(key, state.heat);
  write("0", gap, height - 12, "12px", "#5d646b");
  context.drawImage(key, gap + 12, height - 24, KEY.width, KEY.height);
  write(`the ${RANGES[state.range]}`, gap + KEY.width + 18, height - 12, "12px", "#5d646b");
  return canvas;
}

const exportedPng = (look) => new Promise((resolve) => exported(look).toBlob(resolve, "image/png"));

// The buttons that save and copy, and where they say what they did.
function exportControls(look) {
  const message = make("span", { class: "message", role: "status" });
  const say = (text) => (message.textContent = text);
  const save = async (kind) => {
    const blob = await (kind === "pdf" ? pdfOf(exported(look)) : exportedPng(look));
    const url = URL.createObjectURL(blob);
    make("a", { href: url, download: `attention.${kind}` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
    say(`Saved as attention.${kind}.`);
  };
  const writePicture = () => navigator.clipboard.write([new ClipboardItem({ "image/png": exportedPng(look) })]);
  const copy = async (what, begin) => {
    try {
      await begin();
      say(`${what} copied.`);
    } catch {
      say(`${what}: this browser lets no page copy it; ${what === "Picture" ? "save it instead" : "select it"}.`);
    }
  };
  const box = make(
    "div", { class: "controls exports" },
    button("Save PNG", () => save("png"), { "data-act": "png" }),
    button("Save PDF", () => save("pdf"), { "data-act": "pdf" }),
    button("Copy picture", () => copy("Picture", async () => writePicture()), { "data-act": "picture" }),
    button("Copy Python", () => copy("Python", () => navigator.clipboard.writeText(python(look))), { "data-act": "python" }),
    message,
  );
  return { box, say };
}
