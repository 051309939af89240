// ---- blocks: what the picker knows of its blocks. A block is [position of its first layer, row of its size].

function readBlocks(model) {
  const layers = model.get("_layers");
  const sizes = model.get("_sizes");
  const place = new Map(layers.map((layer, at) => [layer, at]));
  const starts = sizes.map((size) => layers.length - size + 1);
  const metrics = readMetrics(model, layers, sizes, starts);
  const there = (at, row) => row >= 0 && row < sizes.length && at >= 0 && at < starts[row] && metrics[0].known(at, row);
  return {
    layers, sizes, starts, metrics, place, there,
    removed: (at, row) => layers.slice(at, at + sizes[row]),
    // the cell of a set of layers, null where the layers are not one block of the heatmap
    cellOf(chosen) {
      const [at, row] = [place.get(chosen[0]), sizes.indexOf(chosen.length)];
      const whole = place.get(chosen.at(-1)) - at === chosen.length - 1;
      return whole && there(at, row) ? [at, row] : null;
    },
    // the blocks, runs of the model's layers, that a choice is made of
    cellsOf(chosen) {
      const parts = [];
      for (const at of chosen.map((layer) => place.get(layer))) {
        if (parts.length && at === parts.at(-1)[0] + parts.at(-1)[1]) parts.at(-1)[1]++;
        else parts.push([at, 1]);
      }
      return parts.map(([at, size]) => [at, sizes.indexOf(size)]).filter(([at, row]) => there(at, row));
    },
    saved(costs, chosen) {
      return costs.length ? chosen.reduce((sum, layer) => sum + costs[place.get(layer)], 0) : null;
    },
  };
}

// Each measure: float32 values, then the ends of their intervals as int16 steps from the value (Metric.packed).
function readMetrics(model, layers, sizes, starts) {
  const bytes = model.get("_cells");
  const buffer = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
  const before = starts.map((_, row) => starts.slice(0, row).reduce((sum, n) => sum + n, 0));
  const whole = starts.reduce((sum, n) => sum + n, 0);
  let offset = 0;
  return model.get("_metrics").map(({ name, label, single, step, texts }) => {
    const count = single ? layers.length : whole;
    const values = new Float32Array(buffer, offset, count);
    const steps = step ? new Int16Array(buffer, offset + 4 * count, 2 * count) : null;
    offset += 4 * Math.ceil((step ? 8 * count : 4 * count) / 4);
    const index = (at, row) => (single ? at : before[row] + at);
    const value = (at, row) => {
      if (!single) return values[index(at, row)];
      let sum = 0;
      for (let i = at; i < at + sizes[row]; i++) sum += values[i];
      return sum;
    };
    const end = (which) => (at, row) => {
      if (!steps || (single && sizes[row] > 1)) return NaN;
      const away = steps[which * count + index(at, row)];
      return away === -32768 ? NaN : value(at, row) + away * step;
    };
    const digits = name === "damage" ? 3 : 4;
    const metric = { name, label, single, texts, value, low: end(0), high: end(1), digits };
    metric.known = (at, row) => Number.isFinite(value(at, row));
    metric.text = (at, row) => {
      if (!metric.known(at, row)) return "not measured";
      const ends = [metric.low(at, row), metric.high(at, row)];
      const interval = Number.isFinite(ends[0]) ? ` [${ends.map((one) => fixed(one, digits)).join(", ")}]` : "";
      return `${fixed(value(at, row), digits)}${interval}`;
    };
    const one = starts.map((count, row) => Array.from({ length: count }, (_, at) => at).some((at) => metric.known(at, row)));
    metric.sizes = sizes.filter((_, row) => one[row]);
    metric.best = sizes.map((_, row) => bestOf(metric, starts[row], row));
    return metric;
  });
}

// The least block of a size, how many are equal to it in what is shown, how many lie within its interval.
function bestOf(metric, count, row) {
  let at = -1;
  for (let i = 0; i < count; i++)
    if (metric.known(i, row) && (at < 0 || metric.value(i, row) < metric.value(at, row))) at = i;
  if (at < 0) return null;
  const shown = metric.value(at, row).toFixed(metric.digits);
  const limit = metric.high(at, row);
  let [equal, near] = [0, 0];
  for (let i = 0; i < count; i++) {
    if (i === at || !metric.known(i, row)) continue;
    if (metric.value(i, row).toFixed(metric.digits) === shown) equal++;
    else if (metric.value(i, row) <= limit) near++;
  }
  return { at, equal, near };
}

// The largest size to draw at first: all, or twice what the damage was measured for.
function firstTop({ sizes, metrics }, chosen) {
  const damage = metrics.find((metric) => metric.name === "damage");
  const most = damage ? Math.max(2 * Math.max(...damage.sizes), chosen, 6) : sizes.at(-1);
  return Math.max(sizes.findLastIndex((size) => size <= most), 0);
}

// What is drawn: a range of layers and of sizes, and how values become colours.
const COLOURS = [["useful", "useful range"], ["whole", "whole range"], ["size", "each size by itself"]];
const USEFUL = 0.75;

function inView(blocks, view, at, row) {
  return row <= view.top && at >= view.from && at + blocks.sizes[row] - 1 <= view.to;
}

function colouring(blocks, metric, view) {
  const bySize = blocks.sizes.map(() => []);
  const all = [];
  blocks.sizes.forEach((_, row) => {
    for (let at = 0; at < blocks.starts[row]; at++) {
      if (!blocks.there(at, row) || !metric.known(at, row) || !inView(blocks, view, at, row)) continue;
      bySize[row].push(metric.value(at, row));
      all.push(metric.value(at, row));
    }
  });
  all.sort((a, b) => a - b);
  const [least, most] = [all[0] ?? 0, all.at(-1) ?? 1];
  const quartile = all[Math.min(all.length - 1, Math.round(USEFUL * (all.length - 1)))] ?? 1;
  const top = view.colours === "useful" && quartile > least ? quartile : most;
  const clipped = all.filter((value) => value > top).length;
  const ranges = bySize.map((values) => [Math.min(...values), Math.max(...values)]);
  const share = (at, row) => {
    const [low, high] = view.colours === "size" ? ranges[row] : [least, top];
    return high > low ? (metric.value(at, row) - low) / (high - low) : 0;
  };
  return { least, most, top, clipped, count: all.length, share };
}
