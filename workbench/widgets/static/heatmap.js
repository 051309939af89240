// ---- heatmap: one measure over all blocks, drawn at its size on the screen, so that text keeps its own

const EDGE = { left: 40, right: 68, top: 8, bottom: 36 };

function step(count, room, each) {
  return [1, 2, 5, 10, 20, 50].find((one) => (count / one) * each <= room) ?? 100;
}

// Returns {svg, draw(metric, view), choose(layers), hover(cell), cellAt(event)}.
function heatmap(blocks, name) {
  const { layers, sizes, starts } = blocks;
  const svg = draw("svg", { tabindex: 0, role: "application", "aria-roledescription": "heatmap" });
  const mark = (kind) => {
    // dark, light, and the inner line: one of them stands out from any colour beneath
    const parts = ["bp-rim", "bp-outer", "bp-inner"].map((tone) => draw("rect", { class: `${kind} ${tone}`, rx: 1 }));
    const group = draw("g", { visibility: "hidden" });
    group.append(...parts);
    return { group, parts };
  };
  const hovered = mark("bp-hover");
  const marks = draw("g");
  const drawing = draw("g", { "aria-hidden": true }); // what it shows is said by the label and the readout
  svg.append(drawing);
  let at0 = { wide: 1, high: 1, bottom: 1, from: 0, to: 0, top: 0 };
  let chosen = [];
  const left = (at) => EDGE.left + (at - at0.from) * at0.wide;
  const top = (row) => at0.bottom - (row + 1) * at0.high;
  const shown = (cell) => cell && inView(blocks, at0, ...cell);

  // around the cell, so that its colour is seen; never smaller than the eye finds
  function place({ group, parts }, cell) {
    group.setAttribute("visibility", shown(cell) ? "visible" : "hidden");
    if (!shown(cell)) return;
    const [wide, high] = [Math.max(at0.wide, 5), Math.max(at0.high, 5)];
    const x = left(cell[0]) + (at0.wide - wide) / 2;
    const y = top(cell[1]) + (at0.high - high) / 2;
    parts.forEach((part, i) => {
      const out = [4, 2.5, 1][i];
      const box = { x: x - out, y: y - out, width: wide + 2 * out, height: high + 2 * out };
      for (const [key, value] of Object.entries(box)) part.setAttribute(key, value);
    });
  }
  function choose(removed) {
    chosen = removed;
    marks.replaceChildren(...blocks.cellsOf(removed).map((cell) => {
      const one = mark("bp-chosen");
      place(one, cell);
      return one.group;
    }));
  }
  function render(metric, view, width, height) {
    const rows = view.top + 1;
    at0 = {
      from: view.from, to: view.to, top: view.top,
      wide: (width - EDGE.left - EDGE.right) / (view.to - view.from + 1),
      high: Math.min((height - EDGE.top - EDGE.bottom) / rows, 40),
      bottom: height - EDGE.bottom,
    };
    for (const [key, value] of Object.entries({ width, height, viewBox: `0 0 ${width} ${height}` }))
      svg.setAttribute(key, value);
    svg.setAttribute("aria-label", `${metric.label}: ${layers.length} layers, ${sizes.length} block sizes. ` +
      `Arrow keys choose. ${name}`);
    const colours = colouring(blocks, metric, view);
    drawing.replaceChildren(
      cellsOf(blocks, metric, colours, left, top, at0), bestMarks(blocks, metric, left, top, at0),
      ...axes(blocks, left, top, at0), ...colourBar(colours, view, metric, width, height), marks, hovered.group,
    );
    choose(chosen);
  }
  return {
    svg, render, choose,
    hover: (cell) => place(hovered, cell),
    cellAt(event) {
      const frame = svg.getBoundingClientRect();
      const scale = svg.viewBox.baseVal.width / frame.width; // browser zoom and CSS transforms
      const at = at0.from + Math.floor(((event.clientX - frame.left) * scale - EDGE.left) / at0.wide);
      const row = Math.floor((at0.bottom - (event.clientY - frame.top) * scale) / at0.high);
      return at >= 0 && at < (starts[row] ?? 0) && blocks.there(at, row) && shown([at, row]) ? [at, row] : null;
    },
  };
}

function cellsOf(blocks, metric, colours, left, top, view) {
  const paths = new Map();
  const unknown = [];
  blocks.sizes.forEach((_, row) => {
    for (let at = 0; at < blocks.starts[row]; at++) {
      if (!blocks.there(at, row) || !inView(blocks, view, at, row)) continue;
      // edges that two cells share are the same numbers, or a line of the page shows between them
      const [x, y, right, under] = [left(at), top(row), left(at + 1), top(row - 1)].map((one) => one.toFixed(2));
      const cell = `M${x},${y}H${right}V${under}H${x}z`;
      if (!metric.known(at, row)) {
        if (metric.best[row]) unknown.push(cell); // of a size that was measured
        continue;
      }
      const level = Math.round(Math.min(Math.max(colours.share(at, row), 0), 1) * (SHADES - 1));
      paths.set(level, (paths.get(level) ?? "") + cell);
    }
  });
  const cells = draw("g", { class: "bp-cells", "shape-rendering": "crispEdges" });
  const { from, to, top: most, bottom } = view;
  const count = (row) => Math.max(Math.min(to - from + 2 - blocks.sizes[row], to - from + 1), 0);
  const edge = blocks.sizes.slice(0, most + 1).map((_, row) => `H${left(from + count(row))}V${top(row)}`).join("");
  cells.append(draw("path", { class: "bp-edge", d: `M${left(from)},${bottom}${edge}H${left(from)}z` }));
  if (unknown.length) cells.append(draw("path", { class: "bp-unknown", d: unknown.join("") }));
  for (const [level, path] of paths) cells.append(draw("path", { d: path, fill: shade(level / (SHADES - 1)) }));
  return cells;
}

function bestMarks(blocks, metric, left, top, view) {
  const radius = Math.min(Math.max(0.22 * Math.min(view.wide, view.high), 1.3), 4.5);
  const group = draw("g", { class: "bp-best" });
  metric.best.forEach((best, row) => {
    if (best && blocks.there(best.at, row) && inView(blocks, view, best.at, row))
      group.append(draw("circle", { cx: left(best.at) + view.wide / 2, cy: top(row) + view.high / 2, r: radius }));
  });
  return group;
}

function axes({ layers, sizes }, left, top, { wide, high, bottom, from, to, top: most }) {
  const text = (x, y, words, more = {}) => draw("text", { x, y, "text-anchor": "middle", ...more }, words);
  const ticks = [];
  const across = step(to - from + 1, wide * (to - from + 1), 24);
  for (let at = from; at <= to; at++)
    if (layers[at] % across === 0 || (layers.length < 2 * across && at === from))
      ticks.push(text(left(at) + wide / 2, bottom + 14, layers[at]));
  const up = step(most + 1, high * (most + 1), 15);
  sizes.slice(0, most + 1).forEach((size, row) => {
    if (up === 1 || size % up === 0 || row === 0)
      ticks.push(text(EDGE.left - 6, top(row) + high / 2 + 4, size, { "text-anchor": "end" }));
  });
  const middle = bottom - (high * (most + 1)) / 2;
  return [
    ...ticks,
    text(left((from + to + 1) / 2), bottom + 30, "first removed layer"),
    text(11, middle, "block size", { transform: `rotate(-90 11 ${middle})` }),
  ];
}

// The bar with the ends of the colours; what is beyond them is named and counted.
function colourBar(colours, view, metric, width, height) {
  const x = width - EDGE.right + 10;
  const high = height - EDGE.top - EDGE.bottom;
  const steps = 40;
  const nodes = Array.from({ length: steps }, (_, i) =>
    draw("rect", {
      x, y: EDGE.top + (high * i) / steps, width: 10, height: high / steps + 0.5, fill: shade(1 - i / (steps - 1)),
    }));
  const label = (y, words) => draw("text", { x: x + 14, y }, words);
  if (view.colours === "size") return [...nodes, label(EDGE.top + 10, "most"), label(EDGE.top + high, "least")];
  const clip = colours.clipped > 0;
  const ends = [colours.top, (colours.least + colours.top) / 2, colours.least].map(rough);
  nodes.push(
    label(EDGE.top + 10, `${clip ? "≥" : ""}${ends[0]}`), label(EDGE.top + high / 2 + 4, ends[1]),
    label(EDGE.top + high, ends[2]),
  );
  if (clip) {
    const mark = draw("path", { class: "bp-clip", d: `M${x},${EDGE.top}l5,-7l5,7z` });
    const share = Math.round((100 * colours.clipped) / colours.count);
    const words = `${colours.clipped} of ${colours.count} blocks (${share} %) lie above ${ends[0]}, ` +
      `up to ${rough(colours.most)}; they have the darkest colour`;
    mark.append(draw("title", {}, words));
    nodes.push(mark, label(EDGE.top + 24, `${share} %`), label(EDGE.top + 37, "above"));
  }
  return nodes;
}
