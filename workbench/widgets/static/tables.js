// ---- tables: the best of each size, the kept ones, the look

// A value and its interval, which may take a line of its own but is not broken.
function spread(text) {
  const at = text.indexOf(" [");
  if (at < 0) return [text];
  return [make("span", { class: "bp-one" }, text.slice(0, at)), " ", make("span", { class: "bp-one" }, text.slice(at + 1))];
}

// One row a size, one column a measure that is drawn; a click chooses.
function bestTable(blocks, metrics, view, choose) {
  const head = make("tr", {}, make("th", { scope: "col" }, "size"),
    ...metrics.map((metric) => make("th", { scope: "col", title: metric.label }, metric.name)));
  const body = [];
  blocks.sizes.slice(0, view.top + 1).forEach((size, row) => {
    const cells = metrics.map((metric) => {
      const best = metric.best[row];
      if (!best || !blocks.there(best.at, row)) return make("td", { class: "bp-soft" }, "–");
      const removed = blocks.removed(best.at, row);
      const pick = button(runs(removed), () => choose(removed), { title: `choose ${named(removed)}` });
      pick.dataset.layers = runs(removed);
      const cell = make("td", {}, pick, " ", ...spread(metric.text(best.at, row)));
      const ties = [[best.equal, "=", "as low as this, to the last digit shown"],
        [best.near, "≈", "within the interval of this one"]];
      for (const [count, sign, words] of ties) {
        if (!count) continue;
        const title = `${count} other block${count > 1 ? "s" : ""} of size ${size}: ${words}`;
        cell.append(" ", make("span", { class: "bp-tie", role: "note", title, "aria-label": title }, `${sign}${count}`));
      }
      return cell;
    });
    if (metrics.some((metric) => metric.best[row])) body.push(make("tr", {}, make("td", {}, `${size}`), ...cells));
  });
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...body));
}

const KEPT = "Keep puts a choice here, to compare.";

// The kept choices with the measures that are drawn, what they save and what they cost on the same texts.
function keptTable(model, blocks, metrics, order, { choose, drop, sort }) {
  const rows = model.get("_kept").map((kept) => keptRow(model, blocks, metrics, kept));
  if (!rows.length) return make("div", { class: "bp-soft" }, KEPT);
  const titles = ["layers", ...metrics.map((metric) => metric.name), "loss added", "parameters"];
  const head = titles.map((title, i) => {
    const node = button(title, () => sort(i), { title: `sort by ${title}` });
    const sorted = order.column !== i ? "none" : order.down ? "descending" : "ascending";
    return make("th", { scope: "col", "aria-sort": sorted }, node, sorted === "none" ? "" : order.down ? " ↓" : " ↑");
  });
  if (order.column !== null) rows.sort((a, b) => compared(a.keys[order.column], b.keys[order.column]));
  if (order.down) rows.reverse();
  const costs = rows.map((row) => row.added).filter(Number.isFinite);
  const least = costs.length > 1 ? Math.min(...costs) : null;
  const body = rows.map(({ layers, texts, added }) => {
    const back = button(texts[0], () => choose(layers), { title: "choose these layers again" });
    back.dataset.layers = runs(layers);
    const gone = button("×", () => drop(layers), { title: `drop ${texts[0]}` });
    gone.setAttribute("aria-label", `drop ${texts[0]}`);
    const cells = texts.slice(1).map((text) => make("td", {}, ...spread(text)));
    if (least !== null && added === least) cells.at(-2).append(make("strong", {}, " least"));
    return make("tr", {}, make("td", { class: "bp-one" }, gone, " ", back), ...cells);
  });
  return make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body));
}

const compared = (a, b) => (typeof a === "number" ? (Number.isFinite(a) ? a : 1e99) - (Number.isFinite(b) ? b : 1e99) : 0);

function keptRow(model, blocks, metrics, { layers, base_loss: base, loss, added_low: low, added_high: high }) {
  const cell = blocks.cellOf(layers);
  const share = blocks.saved(model.get("_parameters"), layers);
  const saves = share === null ? NaN : share / model.get("_totals")[0];
  const added = loss === undefined ? NaN : loss - base;
  const interval = low === undefined ? "" : ` [${signed(low)}, ${signed(high)}]`;
  const measured = metrics.map((metric) => measure(blocks, metric, layers, cell));
  return {
    layers,
    added,
    keys: [blocks.place.get(layers[0]), ...measured.map(([key]) => key), added, saves],
    texts: [
      runs(layers), ...measured.map(([, text]) => text),
      Number.isFinite(added) ? `${signed(added)}${interval}` : "not looked at",
      Number.isFinite(saves) ? `−${percent(saves)}` : "–",
    ],
  };
}

// Value and text of a measure for any set of layers; that of single layers adds up, others know blocks only.
function measure(blocks, metric, layers, cell) {
  if (metric.single) {
    const sum = layers.reduce((total, layer) => total + metric.value(blocks.place.get(layer), 0), 0);
    return [sum, cell ? metric.text(...cell) : fixed(sum, metric.digits)];
  }
  return cell ? [metric.value(...cell), metric.text(...cell)] : [NaN, "no single block"];
}

// What one look shows.
function lookPanel(found, current, able) {
  const note = (...parts) => make("div", { class: "bp-note" }, ...parts);
  const soft = (words) => [make("div", { class: "bp-soft" }, words)];
  if (!able) return soft("Looking needs a model: picker.look_with(wb.looking(model, tokenizer, texts, prompt)).");
  if (!found.state) return soft("Look: the loss on held-out texts and an answer, with and without the layers.");
  const part = found.of ? ` (${found.number} of ${found.of})` : "";
  const words = {
    running: `looking at the model without ${found.removed}${part} … `,
    cancelled: `the look at ${found.removed} was cancelled`,
    failed: `the look at ${found.removed} failed: ${found.error}`,
  };
  if (found.state !== "done") {
    const seconds = make("span", { class: "bp-seconds" });
    return [note(words[found.state] ?? "", found.state === "running" ? seconds : "")];
  }
  const interval = found.added_low === undefined ? "" : ` [${signed(found.added_low)}, ${signed(found.added_high)}]`;
  const on = found.n_texts ? ` on ${found.n_texts} texts` : "";
  const stale = found.removed !== current;
  const loss = `held-out loss ${found.base_loss.toFixed(3)} → ${found.loss.toFixed(3)} nats per token ` +
    `(${signed(found.loss - found.base_loss)}${interval}${on}; ${found.seconds.toFixed(1)} s)`;
  const said = (title, text) => make("figure", {}, make("figcaption", {}, title),
    text.trim() ? make("pre", {}, text) : make("pre", { class: "bp-soft" }, "(no answer: it ends at once)"));
  const panel = make("div", { class: stale ? "bp-stale" : "" },
    note(make("strong", {}, `without ${found.removed}`), stale ? ", which is not the present choice: " : ": ", loss),
    make("div", { class: "bp-pair" }, said("whole model", found.base_text),
      said(`without ${found.removed}`, found.text)),
    make("div", { class: "bp-prompt" }, "question: ", make("code", {}, found.prompt)));
  return [panel];
}
