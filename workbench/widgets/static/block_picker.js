// A heatmap of blocks that can be chosen from: traits in, traits out, and the page mirrors them.
// Whatever a click does a key does. Text from models and data is only ever set as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";
// viridis from its light end: light = near = removable, as in the static figures
const SCALE = ["#fde725", "#a0da39", "#4ac16d", "#1fa187", "#277f8e", "#365c8d", "#46327e", "#440154"];
const SHADES = 64;
const WIDTH = 760;
const EDGE = { left: 52, right: 92, top: 12, bottom: 74 };

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function draw(tag, attributes = {}, text = null) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== null) node.textContent = text;
  return node;
}

function shade(share) {
  const at = Math.min(Math.max(share, 0), 1) * (SCALE.length - 1);
  const low = Math.min(Math.floor(at), SCALE.length - 2);
  const part = (hex, i) => parseInt(hex.slice(1 + 2 * i, 3 + 2 * i), 16);
  const mix = [0, 1, 2].map((i) => part(SCALE[low], i) * (1 - at + low) + part(SCALE[low + 1], i) * (at - low));
  return `rgb(${mix.map(Math.round).join(",")})`;
}

const percent = (share) => `${(100 * share).toFixed(2)} %`;
function amount(count) {
  const unit = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]].find(([size]) => count >= size);
  return unit ? `${(count / unit[0]).toFixed(2)}${unit[1]}` : `${count}`;
}
function runs(layers) {
  const parts = [];
  for (const layer of layers) {
    const last = parts.at(-1);
    if (last && layer === last[1] + 1) last[1] = layer;
    else parts.push([layer, layer]);
  }
  return parts.map(([low, high]) => (low === high ? `${low}` : `${low}-${high}`)).join(",");
}
const tickStep = (count) => [1, 2, 5, 10, 20].find((step) => count / step <= 20) ?? 50;

// What the picker knows of its blocks. A block is [position of its first layer, row of its size].
function readBlocks(model) {
  const layers = model.get("_layers");
  const sizes = model.get("_sizes");
  const bytes = model.get("_cells");
  const values = new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
  const starts = sizes.map((size) => layers.length - size + 1);
  const offsets = starts.map((_, row) => starts.slice(0, row).reduce((sum, n) => sum + n, 0));
  const count = starts.reduce((sum, n) => sum + n, 0);
  const field = (number) => (at, row) => values[number * count + offsets[row] + at];
  const distance = field(0);
  const there = (at, row) => at >= 0 && at < starts[row] && Number.isFinite(distance(at, row));
  const best = sizes.map((_, row) => {
    let found = -1;
    for (let at = 0; at < starts[row]; at++)
      if (there(at, row) && (found < 0 || distance(at, row) < distance(found, row))) found = at;
    return found;
  });
  const saved = (costs, at, row) =>
    costs.length ? costs.slice(at, at + sizes[row]).reduce((sum, n) => sum + n, 0) : null;
  return {
    layers, sizes, starts, best, distance, there, saved,
    low: field(1),
    high: field(2),
    zmax: values.subarray(0, count).reduce((most, value) => (value > most ? value : most), 0) || 1,
    removed: (at, row) => layers.slice(at, at + sizes[row]),
  };
}

function describe(model, blocks, at, row) {
  const { sizes, layers } = blocks;
  const removed = blocks.removed(at, row);
  const interval = Number.isFinite(blocks.low(at, row))
    ? ` [${blocks.low(at, row).toFixed(4)}, ${blocks.high(at, row).toFixed(4)}]`
    : "";
  const lines = [
    `removes ${removed.length > 1 ? "layers" : "layer"} ${runs(removed)} (start ${layers[at]}, size ${sizes[row]})`,
    `angular distance ${blocks.distance(at, row).toFixed(4)}${interval}`,
  ];
  for (const [name, costs, whole] of [
    ["parameters", model.get("_parameters"), model.get("_totals")[0]],
    ["FLOPs per token", model.get("_flops"), model.get("_totals")[1]],
  ]) {
    const count = blocks.saved(costs, at, row);
    if (count !== null) lines.push(`saves ${percent(count / whole)} of the ${name} (${amount(whole - count)} left)`);
  }
  return lines;
}

function render({ model, el }) {
  const blocks = readBlocks(model);
  const { layers, sizes, starts } = blocks;
  const listeners = [];
  const on = (names, handler) => {
    for (const name of names) {
      model.on(name, handler);
      listeners.push([name, handler]);
    }
  };
  const chosen = () => [layers.indexOf(model.get("start")), sizes.indexOf(model.get("size"))];

  function choose(at, row) {
    row = Math.min(Math.max(row, 0), sizes.length - 1);
    at = Math.min(Math.max(at, 0), starts[row] - 1);
    if (!blocks.there(at, row)) return;
    if (layers[at] === model.get("start") && sizes[row] === model.get("size")) return;
    model.set("start", layers[at]);
    model.set("size", sizes[row]);
    model.save_changes();
  }

  // the parts, top to bottom
  const id = `bp-${Math.random().toString(36).slice(2)}`;
  const field = (name, least, most) => make("input", { type: "number", name, min: least, max: most, step: 1 });
  const start = field("start", layers[0], layers.at(-1));
  const size = field("size", sizes[0], sizes.at(-1));
  const button = (text, action, key) => {
    const node = make("button", { type: "button", title: key ? `key: ${key}` : text }, text);
    node.addEventListener("click", action);
    return node;
  };
  const best = () => {
    const row = chosen()[1];
    choose(blocks.best[row], row);
  };
  // changes of state wait while the kernel is busy and messages do not, so a message says which block is meant
  const ask = (what) => () => model.send({ do: what, start: model.get("start"), size: model.get("size") });
  const keep = ask("keep");
  const seeIt = ask("look");
  const look = button("Look", seeIt, "l");
  const auto = make("input", { type: "checkbox" });
  const autoLabel = make("label", { class: "bp-auto" }, auto, "look at every choice");
  const bar = make(
    "div", { class: "bp-bar" },
    make("label", {}, "start ", start), make("label", {}, "size ", size),
    button("Nearest of this size", best, "b"), button("Keep", keep, "k"), look, autoLabel,
  );
  const readout = make("div", { class: "bp-readout", role: "status", "aria-live": "polite", id: `${id}-now` });
  const tip = make("div", { class: "bp-tip", "aria-hidden": "true", hidden: "" });
  const plot = drawPlot(model, blocks, `${id}-now`);
  const kept = make("div", { class: "bp-kept" });
  const looked = make("div", { class: "bp-look", "aria-live": "polite" });
  const help = make(
    "div", { class: "bp-help" },
    "Click a cell, or use the arrow keys: ← → start, ↑ ↓ size, Home and End first and last, B nearest, K keep, L look.",
  );
  const root = make(
    "div", { class: "bp", "data-lm-suppress-shortcuts": "true" },
    make("div", { class: "bp-title" }, model.get("_title")), bar,
    make("div", { class: "bp-plot" }, plot.svg, tip), readout, help, kept, looked,
  );
  el.append(root);

  // state -> page
  function showChoice() {
    const [at, row] = chosen();
    plot.choose(at, row);
    if (Number(start.value) !== model.get("start")) start.value = model.get("start");
    if (Number(size.value) !== model.get("size")) size.value = model.get("size");
    const lines = describe(model, blocks, at, row);
    const nearest = blocks.best[row];
    const rank = nearest === at ? `the nearest block of size ${sizes[row]}`
      : `nearest of this size: start ${layers[nearest]}, ${blocks.distance(nearest, row).toFixed(4)}`;
    readout.replaceChildren(make("strong", {}, lines[0]), ...lines.slice(1).map((line) => make("span", {}, line)),
      make("span", {}, rank));
    showLook();
  }
  const showKept = () => kept.replaceChildren(...keptTable(model, blocks, choose));
  function showLook() {
    const able = model.get("_can_look");
    look.hidden = autoLabel.hidden = !able;
    auto.checked = model.get("auto_look");
    looked.replaceChildren(...(able ? lookPanel(model.get("_look"), runs(blocks.removed(...chosen()))) : []));
  }
  on(["change:start", "change:size"], showChoice);
  on(["change:_kept"], showKept);
  on(["change:_look", "change:_can_look", "change:auto_look"], showLook);

  // page -> state
  const typed = () => {
    if (!start.value || !size.value) return;
    const row = sizes.findIndex((n) => n >= Number(size.value));
    const at = layers.findIndex((n) => n >= Number(start.value));
    choose(at < 0 ? layers.length - 1 : at, row < 0 ? sizes.length - 1 : row);
  };
  for (const input of [start, size]) {
    input.addEventListener("input", typed);
    // a number that does not fit was brought into range: show what was chosen
    input.addEventListener("change", () => {
      start.value = model.get("start");
      size.value = model.get("size");
    });
  }
  auto.addEventListener("change", () => {
    model.set("auto_look", auto.checked);
    model.save_changes();
  });
  plot.svg.addEventListener("click", (event) => {
    plot.svg.focus();
    const cell = plot.cellAt(event);
    if (cell) choose(...cell);
  });
  plot.svg.addEventListener("pointermove", (event) => {
    const cell = plot.cellAt(event);
    plot.hover(cell);
    tip.hidden = !cell;
    if (!cell) return;
    tip.replaceChildren(...describe(model, blocks, ...cell).map((line) => make("div", {}, line)));
    const frame = plot.svg.getBoundingClientRect();
    const x = event.clientX - frame.left;
    const right = x > frame.width / 2;
    tip.style.left = right ? "" : `${x + 14}px`;
    tip.style.right = right ? `${frame.width - x + 14}px` : "";
    tip.style.top = `${event.clientY - frame.top + 14}px`;
  });
  plot.svg.addEventListener("pointerleave", () => {
    plot.hover(null);
    tip.hidden = true;
  });
  plot.svg.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const [at, row] = chosen();
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const action = {
      ArrowLeft: () => choose(at - 1, row), ArrowRight: () => choose(at + 1, row),
      ArrowUp: () => choose(at, row + 1), ArrowDown: () => choose(at, row - 1),
      Home: () => choose(0, row), End: () => choose(starts[row] - 1, row),
      b: best, k: keep, l: () => model.get("_can_look") && seeIt(),
    }[key];
    if (!action) return;
    event.preventDefault();
    event.stopPropagation();
    action();
  });

  showChoice();
  showKept();
  return () => listeners.forEach(([name, handler]) => model.off(name, handler));
}

function drawPlot(model, blocks, describedBy) {
  const { layers, sizes, starts } = blocks;
  const inner = WIDTH - EDGE.left - EDGE.right;
  const wide = inner / layers.length;
  const high = Math.min(Math.max(400 / sizes.length, 4.6), 26);
  const bottom = EDGE.top + high * sizes.length;
  const height = bottom + EDGE.bottom;
  const left = (at) => EDGE.left + at * wide;
  const top = (row) => bottom - (row + 1) * high;
  const svg = draw("svg", {
    viewBox: `0 0 ${WIDTH} ${height}`, tabindex: 0, role: "application", "aria-roledescription": "heatmap",
    "aria-label": `${model.get("_title")}: ${layers.length} layers, ${sizes.length} block sizes. Arrow keys choose.`,
    "aria-describedby": describedBy,
  });

  const paths = new Map();
  sizes.forEach((_, row) => {
    for (let at = 0; at < starts[row]; at++) {
      if (!blocks.there(at, row)) continue;
      const level = Math.round((blocks.distance(at, row) / blocks.zmax) * (SHADES - 1));
      const cell = `M${left(at)},${top(row)}h${wide}v${high}h${-wide}z`;
      paths.set(level, (paths.get(level) ?? "") + cell);
    }
  });
  const cells = draw("g", { class: "bp-cells", "shape-rendering": "crispEdges" });
  for (const [level, path] of paths) cells.append(draw("path", { d: path, fill: shade(level / (SHADES - 1)) }));
  const radius = Math.min(Math.max(0.22 * Math.min(wide, high), 1.4), 4.5);
  const marks = draw("g", { class: "bp-best" });
  blocks.best.forEach((at, row) => {
    if (at >= 0) marks.append(draw("circle", { cx: left(at) + wide / 2, cy: top(row) + high / 2, r: radius }));
  });
  // the edge of the triangle, for dark cells on a dark page
  const steps = sizes.map((_, row) => `H${left(starts[row])}V${top(row)}`).join("");
  const edge = draw("path", { class: "bp-edge", d: `M${left(0)},${bottom}${steps}H${left(0)}z` });
  svg.append(cells, edge, marks, ...axes(blocks, { left, top, wide, high, bottom }), ...legend(blocks, bottom));

  // the strip under the cells: one box a layer, the removed ones filled
  const strip = layers.map((_, at) =>
    draw("rect", { class: "bp-layer", x: left(at) + 0.5, y: bottom + 6, width: Math.max(wide - 1, 1), height: 10 }));
  const outline = (name) => draw("rect", { class: name, width: wide, height: high, rx: 1, visibility: "hidden" });
  const [under, chosenMark, hovered] = ["bp-chosen-under", "bp-chosen", "bp-hover"].map(outline);
  svg.append(...strip, hovered, under, chosenMark);
  const place = (mark, at, row) => {
    mark.setAttribute("x", left(at));
    mark.setAttribute("y", top(row));
    mark.setAttribute("visibility", "visible");
  };
  return {
    svg,
    choose(at, row) {
      for (const mark of [under, chosenMark]) place(mark, at, row);
      strip.forEach((box, i) => box.classList.toggle("bp-gone", i >= at && i < at + sizes[row]));
    },
    hover(cell) {
      if (cell) place(hovered, ...cell);
      else hovered.setAttribute("visibility", "hidden");
    },
    cellAt(event) {
      const frame = svg.getBoundingClientRect();
      const scale = WIDTH / frame.width;
      const at = Math.floor(((event.clientX - frame.left) * scale - EDGE.left) / wide);
      const row = Math.floor((bottom - (event.clientY - frame.top) * scale) / high);
      return row >= 0 && row < sizes.length && blocks.there(at, row) ? [at, row] : null;
    },
  };
}

function axes({ layers, sizes }, { left, top, wide, high, bottom }) {
  const text = (x, y, words, more = {}) => draw("text", { x, y, "text-anchor": "middle", ...more }, words);
  const ticks = [];
  const across = tickStep(layers.length);
  layers.forEach((layer, at) => {
    if (at % across === 0) ticks.push(text(left(at) + wide / 2, bottom + 32, layer));
  });
  const up = tickStep(sizes.length);
  sizes.forEach((size, row) => {
    if (size % up && row) return;
    ticks.push(text(EDGE.left - 8, top(row) + high / 2 + 4, size, { "text-anchor": "end" }));
  });
  const middle = (bottom + EDGE.top) / 2;
  return [
    ...ticks,
    text(left(layers.length / 2), bottom + 56, "first removed layer (filled boxes: the layers that go)"),
    text(14, middle, "block size", { transform: `rotate(-90 14 ${middle})` }),
  ];
}

function legend({ zmax }, bottom) {
  const x = WIDTH - EDGE.right + 22;
  const high = bottom - EDGE.top;
  const steps = 48;
  const boxes = Array.from({ length: steps }, (_, i) =>
    draw("rect", {
      x, y: EDGE.top + (high * i) / steps, width: 12, height: high / steps + 0.5, fill: shade(1 - i / (steps - 1)),
    }));
  const labels = [0, 0.5, 1].map((share) =>
    draw("text", { x: x + 17, y: EDGE.top + high * (1 - share) + (share === 1 ? 9 : share ? 4 : 0) },
      (share * zmax).toFixed(2)));
  const middle = (bottom + EDGE.top) / 2;
  const name = draw("text", {
    x: x + 58, y: middle, "text-anchor": "middle", transform: `rotate(-90 ${x + 58} ${middle})`,
  }, "angular distance");
  return [...boxes, ...labels, name];
}

function keptTable(model, blocks, choose) {
  const rows = model.get("_kept");
  if (!rows.length) return [];
  const titles = ["kept", "distance", "parameters", "FLOPs", "loss whole", "loss without", ""];
  const head = make("tr", {}, ...titles.map((title) => make("th", { scope: "col" }, title)));
  const body = rows.map(({ start, size, base_loss: base, loss }) => {
    const [at, row] = [blocks.layers.indexOf(start), blocks.sizes.indexOf(size)];
    const name = runs(blocks.removed(at, row));
    const back = make("button", { type: "button", title: "choose this block again" }, name);
    back.addEventListener("click", () => choose(at, row));
    const drop = make("button", { type: "button", "aria-label": `drop ${name}`, title: "drop" }, "×");
    drop.addEventListener("click", () => model.send({ do: "drop", start, size }));
    const saves = (costs, whole) => {
      const count = blocks.saved(costs, at, row);
      return count === null ? "–" : `−${percent(count / whole)}`;
    };
    const [parameters, flops] = model.get("_totals");
    const cells = [
      back, blocks.distance(at, row).toFixed(4), saves(model.get("_parameters"), parameters),
      saves(model.get("_flops"), flops), base?.toFixed(3) ?? "–", loss?.toFixed(3) ?? "–", drop,
    ];
    return make("tr", {}, ...cells.map((cell) => make("td", {}, cell)));
  });
  return [make("table", {}, make("thead", {}, head), make("tbody", {}, ...body))];
}

function lookPanel(found, current) {
  const words = {
    running: `looking at the model without ${found.removed} …`,
    cancelled: `the look at ${found.removed} was cancelled`,
    failed: `the look at ${found.removed} failed: ${found.error}`,
  };
  if (!found.state) return [make("div", { class: "bp-note" }, "Look: loss and a generation, with and without the block.")];
  if (found.state !== "done") return [make("div", { class: "bp-note" }, words[found.state])];
  const change = found.loss - found.base_loss;
  const stale = found.removed !== current;
  const loss = `held-out loss ${found.base_loss.toFixed(3)} → ${found.loss.toFixed(3)} nats per token ` +
    `(${change < 0 ? "−" : "+"}${Math.abs(change).toFixed(3)}; ${found.seconds.toFixed(1)} s)`;
  const said = (title, text) => make("figure", {}, make("figcaption", {}, title), make("pre", {}, text));
  return [
    make("div", { class: "bp-note" }, make("strong", {}, `without ${found.removed}`), stale ? " (not the current choice): " : ": ", loss),
    make("div", { class: "bp-prompt" }, "prompt: ", make("code", {}, found.prompt)),
    make("div", { class: stale ? "bp-pair bp-stale" : "bp-pair" },
      said("whole model", found.base_text), said(`without ${found.removed}`, found.text)),
  ];
}

export default { render };
