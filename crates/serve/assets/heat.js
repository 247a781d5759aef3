// Heat maps: a grid of attention as a smooth, coloured layer over a picture, and in words.

import { decode, drawCentreSquare } from "./pictures.js";

const SIZE = 256;

// Inferno (Matplotlib, CC0) at ten points: its lightness rises evenly, so it reads without colour vision and in print.
const COLOURS = ["#000004", "#1b0c41", "#4a0c6b", "#781c6d", "#a52c60", "#cf4446", "#ed6925", "#fb9b06", "#f7d13d", "#fcffa4"]
  .map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));

/** The centre square of the picture, as the model saw it. */
export async function drawPicture(canvas, url) {
  const image = await decode(url);
  canvas.width = canvas.height = SIZE;
  drawCentreSquare(canvas.getContext("2d"), image, SIZE);
}

/** The same square in grey under the map; `top` is the value that gets the brightest colour. */
export async function drawHeat(canvas, url, map, [rows, columns], top) {
  await drawPicture(canvas, url);
  const context = canvas.getContext("2d");
  const pixels = context.getImageData(0, 0, SIZE, SIZE);
  const heat = upsample(map, rows, columns, SIZE);
  for (let at = 0; at < heat.length; at++) {
    const [red, green, blue] = pixels.data.subarray(4 * at, 4 * at + 3);
    const grey = 0.3 * red + 0.59 * green + 0.11 * blue;
    const level = Math.min(1, heat[at] / top);
    // The picture stays visible everywhere: the colour's own lightness says how much, the grey what is there.
    const cover = 0.5 + 0.3 * level;
    colour(level).forEach((value, channel) => {
      pixels.data[4 * at + channel] = (1 - cover) * grey + cover * value;
    });
  }
  context.putImageData(pixels, 0, 0);
}

export function drawLegend(canvas) {
  const context = canvas.getContext("2d");
  for (let x = 0; x < canvas.width; x++) {
    context.fillStyle = `rgb(${colour(x / (canvas.width - 1)).join(" ")})`;
    context.fillRect(x, 0, 1, canvas.height);
  }
}

/**
 * The value that gets the brightest colour: the largest one, but at least twice an even look, so that a look that is spread
 * evenly does not seem to burn everywhere. `times` is that value in even looks.
 */
export function heatScale(maps) {
  const even = sum(maps.flat()) / maps.flat().length;
  const top = Math.max(...maps.flat(), 2 * even) || 1;
  return { top, times: even ? top / even : 1 };
}

const ROWS = ["upper", "middle", "lower"];
const COLUMNS = ["left", "centre", "right"];

/** Names of the thirds of the picture that were looked at most with their shares of the look: `[["upper left", 0.34], …]`. */
export function regions(map, [rows, columns]) {
  const total = sum(map) || 1;
  const shares = new Map();
  map.forEach((value, at) => {
    for (const [row, inRow] of thirds(Math.floor(at / columns), rows)) {
      for (const [column, inColumn] of thirds(at % columns, columns)) {
        const name = regionName(row, column);
        shares.set(name, (shares.get(name) ?? 0) + (value / total) * inRow * inColumn);
      }
    }
  });
  return [...shares].sort(([, a], [, b]) => b - a);
}

function regionName(row, column) {
  if (row === 1) return column === 1 ? "centre" : COLUMNS[column];
  return column === 1 ? (row === 0 ? "top" : "bottom") : `${ROWS[row]} ${COLUMNS[column]}`;
}

/** Which thirds a cell lies in, and with how much of it: eight cells do not divide by three. */
function thirds(cell, cells) {
  const shares = [];
  for (let third = 0; third < 3; third++) {
    const from = Math.max(cell / cells, third / 3);
    const to = Math.min((cell + 1) / cells, (third + 1) / 3);
    if (to > from) shares.push([third, (to - from) * cells]);
  }
  return shares;
}

function colour(level) {
  const at = level * (COLOURS.length - 1);
  const low = COLOURS[Math.floor(at)];
  const high = COLOURS[Math.ceil(at)];
  return low.map((value, channel) => value + (high[channel] - value) * (at % 1));
}

/** Catmull-Rom between the cells' centres: smooth, and at each centre the cell's own value. */
function upsample(map, rows, columns, size) {
  const across = taps(columns, size);
  const down = taps(rows, size);
  const wide = Array.from({ length: rows }, (_, row) =>
    across.map(({ cells, weights }) => sum(cells.map((cell, i) => weights[i] * map[row * columns + cell]))),
  );
  const heat = new Float32Array(size * size);
  down.forEach(({ cells, weights }, y) => {
    for (let x = 0; x < size; x++) {
      heat[y * size + x] = Math.max(0, sum(cells.map((cell, i) => weights[i] * wide[cell][x])));
    }
  });
  return heat;
}

/** For each pixel of a side the four cells nearest to it and their weights. */
function taps(cells, size) {
  return Array.from({ length: size }, (_, pixel) => {
    const at = ((pixel + 0.5) / size) * cells - 0.5;
    const first = Math.floor(at);
    const t = at - first;
    return {
      cells: [-1, 0, 1, 2].map((step) => Math.min(cells - 1, Math.max(0, first + step))),
      weights: [
        -0.5 * t + t ** 2 - 0.5 * t ** 3,
        1 - 2.5 * t ** 2 + 1.5 * t ** 3,
        0.5 * t + 2 * t ** 2 - 1.5 * t ** 3,
        -0.5 * t ** 2 + 0.5 * t ** 3,
      ],
    };
  });
}

function sum(values) {
  return values.reduce((total, value) => total + value, 0);
}
