// Pictures, panels and files of the explorer. Part of its module, joined by page.py.

// Pictures ------------------------------------------------------------------------------------------------------------

async function loadPicture(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  const width = Math.min(image.naturalWidth, SAMPLE), height = Math.min(image.naturalHeight, SAMPLE);
  const plain = make("canvas", { width, height }), grey = make("canvas", { width, height });
  const context = plain.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height), values = pixels.data;
  for (let i = 0; i < values.length; i += 4) {
    const light = 0.2126 * values[i] + 0.7152 * values[i + 1] + 0.0722 * values[i + 2];
    values[i] = values[i + 1] = values[i + 2] = GROUND[0] + ((GROUND[1] - GROUND[0]) * light) / 255;
  }
  grey.getContext("2d").putImageData(pixels, 0, 0);
  return { plain, grey };
}

// Heat ----------------------------------------------------------------------------------------------------------------

const GROUND = [60, 140]; // what black and white of a picture are under heat: a quiet grey that leaves colour to it
const KEY = {
  width: 130, height: 16,
  told: "Colours from no weight, left, to the most, right: above over dark places of a picture, below over bright ones",
};

// A share of the most, as it is laid over the picture.
function heatOf(share, heat) {
  return `rgba(${colour(MAGMA, share)},${((0.1 + 0.85 * share) * heat) / 100})`;
}

// What the colours mean: from 0 to the most, over black and over white of a picture, as panels have them.
function drawKey(canvas, heat) {
  const { width, height } = canvas, context = canvas.getContext("2d");
  GROUND.forEach((grey, row) => {
    context.fillStyle = `rgb(${grey},${grey},${grey})`;
    context.fillRect(0, (row * height) / 2, width, height / 2);
  });
  for (let x = 0; x < width && heat > 0; x++) {
    context.fillStyle = heatOf(x / (width - 1), heat);
    context.fillRect(x, 0, 1, height);
  }
}

// One panel: the picture after a scale, and on it where the query looks in that scale.
function drawPanel(context, size, look) {
  const { picture, schedule, scale, query, seen, map, probe, state } = look;
  const at = schedule.place(query), side = schedule.sides[scale], cell = size / side;
  const image = !seen || state.heat === 0 ? picture.plain : picture.grey;
  context.clearRect(0, 0, size, size);
  context.imageSmoothingEnabled = image.width > 64;
  context.globalAlpha = seen ? 1 : 0.35;
  context.drawImage(image, 0, 0, size, size);
  context.globalAlpha = 1;
  if (seen && map && state.heat > 0) {
    const first = schedule.offsets[scale];
    const tops = Array.from({ length: at.scale + 1 }, (_, k) => map.top(query, k));
    const most = state.range === "all" ? Math.max(...tops) : tops[scale];
    for (let i = 0; i < side * side; i++) {
      const share = most > 0 ? map.weight(query, first + i) / most : 0;
      context.fillStyle = heatOf(share, state.heat);
      const x = Math.round((i % side) * cell), y = Math.round(Math.floor(i / side) * cell);
      context.fillRect(x, y, Math.round(((i % side) + 1) * cell) - x, Math.round((Math.floor(i / side) + 1) * cell) - y);
    }
  }
  const frame = (row, column, sides, stroke, width, dash = []) => {
    const step = size / sides;
    for (const [ink, extra] of [["#fff", 2], [stroke, 0]]) {
      context.setLineDash(extra ? [] : dash);
      context.strokeStyle = ink;
      context.lineWidth = width + extra;
      const inset = (width + 2) / 2;
      context.strokeRect(column * step + inset, row * step + inset, step - 2 * inset, step - 2 * inset);
    }
    context.setLineDash([]);
  };
  const thin = size / 110;
  frame(at.row, at.column, at.side, "#0a6ebd", scale === at.scale ? 1.6 * thin : thin, scale === at.scale ? [] : [2 * thin, 2 * thin]);
  if (probe !== null && schedule.level(probe) === scale) {
    const { row, column } = schedule.place(probe);
    frame(row, column, side, "#000", 1.4 * thin);
  }
}

// A canvas as a PDF of one page, its pixels without loss: 2 of them to a point of 1/72 inch.
async function pdfOf(canvas) {
  const { width, height } = canvas, pixels = canvas.getContext("2d").getImageData(0, 0, width, height).data;
  const rgb = new Uint8Array(3 * width * height);
  for (let i = 0, j = 0; j < rgb.length; i += 4, j += 3) [rgb[j], rgb[j + 1], rgb[j + 2]] = [pixels[i], pixels[i + 1], pixels[i + 2]];
  const packed = await new Response(new Blob([rgb]).stream().pipeThrough(new CompressionStream("deflate"))).arrayBuffer();
  const draw = `q ${width / 2} 0 0 ${height / 2} 0 0 cm /I Do Q`;
  const objects = [
    ["<</Type/Catalog/Pages 2 0 R>>"],
    ["<</Type/Pages/Kids[3 0 R]/Count 1>>"],
    [`<</Type/Page/Parent 2 0 R/MediaBox[0 0 ${width / 2} ${height / 2}]/Contents 4 0 R/Resources<</XObject<</I 5 0 R>>>>>>`],
    [`<</Length ${draw.length}>>stream\n${draw}\nendstream`],
    [
      `<</Type/XObject/Subtype/Image/Width ${width}/Height ${height}/ColorSpace/DeviceRGB/BitsPerComponent 8/Filter/FlateDecode/Length ${packed.byteLength}>>stream\n`,
      packed, "\nendstream",
    ],
  ];
  const parts = ["%PDF-1.4\n"], offsets = [];
  const length = () => parts.reduce((sum, part) => sum + (part.length ?? part.byteLength), 0); // texts are ASCII
  objects.forEach((object, i) => {
    offsets.push(length());
    parts.push(`${i + 1} 0 obj\n`, ...object, "\nendobj\n");
  });
  const start = length(), count = objects.length + 1;
  const table = offsets.map((offset) => `${String(offset).padStart(10, "0")} 00000 n \n`).join("");
  parts.push(`xref\n0 ${count}\n0000000000 65535 f \n${table}trailer<</Size ${count}/Root 1 0 R>>\nstartxref\n${start}\n%%EOF\n`);
  return new Blob(parts, { type: "application/pdf" });
}
