// ---- picker: state in, state out. Whatever a click does a key does.

const HELP = [
  "Click a cell, or drag over the layers (a click on one adds it or takes it back; shift and drag adds several).",
  "Keys on a heatmap: ← → first layer, ↑ ↓ size, with shift five at once; Home and End first and last; B best of",
  "this size; K keep, L look, U use, Z undo, Y redo (or Ctrl+Z, Ctrl+Shift+Z). On the layers: ← → move, space takes",
  "one or puts it back, shift and arrows choose a range.",
].join(" ");

function render({ model, el }) {
  const blocks = readBlocks(model);
  const { layers, sizes, starts, metrics } = blocks;
  const listeners = [];
  const on = (names, handler) => {
    for (const name of names) {
      model.on(name, handler);
      listeners.push([name, handler]);
    }
  };
  const chosen = () => model.get("_chosen");
  const id = `bp-${Math.random().toString(36).slice(2)}`;
  const view = { from: 0, to: layers.length - 1, top: firstTop(blocks, chosen().length), colours: "useful" };
  const second = metrics.findIndex((metric) => metric.name === "damage");
  const drawn = metrics.length > 1 ? [0, second > 0 ? second : 1] : [0];
  const order = { column: null, down: false };
  let [began, pointed] = [0, null];

  // ---- choosing
  const why = make("div", { class: "bp-why", role: "status", "aria-live": "polite" });
  const refuse = (words) => (why.textContent = words);
  function choose(removed) {
    refuse("");
    if (same(removed, chosen())) return true;
    const strange = removed.find((layer) => !blocks.place.has(layer));
    if (strange !== undefined) return refuse(`layer ${strange} is not there: the layers are ${runs(layers)}`) && false;
    if (!removed.length) return refuse("one layer at least has to be chosen") && false;
    if (removed.length === layers.length) return refuse("not all layers can go: something has to stay") && false;
    model.set("_chosen", removed);
    model.save_changes(kernel.begun);
    kernel.pingSoon();
    return true;
  }
  // a block by number; one that is not there is refused in words
  function chooseBlock(start, size) {
    const [at, row] = [blocks.place.get(start), sizes.indexOf(size)];
    if (row < 0) return refuse(`no block of size ${size}: sizes are ${runs(sizes)}`) && false;
    if (at === undefined) return refuse(`no layer ${start}: the layers are ${runs(layers)}`) && false;
    if (at >= starts[row])
      return refuse(`size ${size} from layer ${start} on does not fit: the last start is ${layers[starts[row] - 1]}`) && false;
    if (!blocks.there(at, row)) return refuse(`the block of ${size} from layer ${start} on was not measured`) && false;
    return choose(blocks.removed(at, row));
  }
  function take(over, how) {
    if (how === "drag") return choose(over);
    const now = new Set(chosen());
    for (const layer of over) how === "toggle" && now.has(layer) ? now.delete(layer) : now.add(layer);
    return choose([...now].sort((a, b) => a - b));
  }
  // by key from the present cell; gaps between measured blocks are jumped over
  function move(across, up, steps = 1) {
    const cell = blocks.cellOf(chosen()) ?? [blocks.place.get(chosen()[0]), Math.max(sizes.indexOf(chosen().length), 0)];
    let [at, row] = cell;
    for (let i = 0; i < steps; i++) {
      let [x, y] = [at + across, row + up];
      while (y >= 0 && y < sizes.length && x >= 0 && x < starts[y] && !blocks.there(x, y)) [x, y] = [x + across, y + up];
      if (blocks.there(x, y)) [at, row] = [x, y];
      else if (i === 0) return refuse(edgeWords(cell, across, up));
      else break;
    }
    choose(blocks.removed(at, row));
  }
  function edgeWords([at, row], across, up) {
    if (up > 0 && row < sizes.length - 1)
      return `${sizes[row + 1]} layers from ${layers[at]} on do not fit: the model ends at layer ${layers.at(-1)}`;
    if (up) return up > 0 ? `${sizes[row]} is the largest size` : `${sizes[row]} is the smallest size`;
    return across < 0 ? "this is the first block of this size" : "this is the last block of this size";
  }
  const row = () => Math.max(sizes.indexOf(chosen().length), 0);
  function best(which = drawn[0]) {
    const found = metrics[which].best[row()];
    if (found && sizes.includes(chosen().length)) choose(blocks.removed(found.at, row()));
    else refuse(`${metrics[which].label} was not measured for ${chosen().length} layers`);
  }

  // ---- asking the kernel
  const status = make("div", { class: "bp-status", role: "status", "aria-live": "polite" });
  const kernel = listenTo(model, (state, words) => {
    status.textContent = words;
    status.dataset.state = state;
    el.querySelector(".bp")?.classList.toggle("bp-dead", state === "gone");
  });
  const ask = (what, words) => kernel.ask(what, { layers: chosen() }, { words });
  const keep = () => ask("keep", "keep");
  const seeIt = () => ask("look", "look");
  const useIt = () => ask("use", "use");
  const undo = () => (model.get("_steps")[0] ? kernel.ask("undo", {}) : refuse("nothing to undo"));
  const redo = () => (model.get("_steps")[1] ? kernel.ask("redo", {}) : refuse("nothing to redo"));

  // ---- the parts, top to bottom
  const field = (name, hint) => make("input", { type: "text", inputmode: "numeric", name, title: hint, autocomplete: "off" });
  const start = field("start", "first layer that goes");
  const size = field("size", "how many go");
  const set = field("layers", "any layers, such as 3,9-10");
  const undoIt = button("Undo", undo, { key: "Ctrl+Z" });
  const redoIt = button("Redo", redo, { key: "Ctrl+Shift+Z" });
  const look = button("Look", seeIt, { key: "L", title: "loss and an answer without these layers" });
  const stop = button("Cancel", () => kernel.ask("cancel", {}), { title: "cancel the look" });
  const use = button("Use this block", useIt, { key: "U" });
  use.classList.add("bp-use");
  const auto = make("input", { type: "checkbox" });
  const autoLabel = make("label", { class: "bp-auto" }, auto, "look at every choice");
  const presets = choice("ready choices", [["", "ready choices …"], ...model.get("_presets").map((name) => [name, name])],
    (name) => {
      presets.value = "";
      if (name) kernel.ask("preset", { name, size: chosen().length }, { words: name });
    });
  const lookKept = button("Look at all kept", () => kernel.ask("look_kept", {}, { words: "look at all kept" }));
  const bar = make("div", { class: "bp-bar" },
    make("label", {}, "start ", start), make("label", {}, "size ", size), make("label", {}, "layers ", set),
    presets, undoIt, redoIt, button("Keep", keep, { key: "K" }), look, stop, autoLabel);
  const used = make("div", { class: "bp-used" });
  const strip = layerStrip(blocks, take, point);
  const maps = drawn.map((which, i) => panel(which, i));
  const now = make("div", { class: "bp-now", role: "status", "aria-live": "polite", id: `${id}-now` });
  const under = make("div", { class: "bp-under", "aria-hidden": "true" });
  const bestBox = box("Best of each size (click chooses)");
  const keptBox = box("Kept", lookKept);
  const lookBox = box("Look");
  lookBox.body.setAttribute("aria-live", "polite");
  const zoom = zoomFields();
  const root = make("div", { class: "bp", role: "group", "aria-label": model.get("_title"), "data-lm-suppress-shortcuts": "true" },
    make("div", { class: "bp-head" }, make("div", { class: "bp-title" }, model.get("_title")), status),
    bar, strip.node, make("div", { class: "bp-maps" }, ...maps.map((one) => one.node)),
    make("div", { class: "bp-foot" }, zoom, exports()),
    make("div", { class: "bp-readout" }, now, under), make("div", { class: "bp-last" }, use, used, why),
    make("div", { class: "bp-boxes" }, bestBox.node, keptBox.node, lookBox.node),
    make("details", { class: "bp-help" }, make("summary", {}, "Keys and clicks"), HELP));
  el.append(root, hidden(model.get("_still_name")));

  function box(title, ...more) {
    const body = make("div", { class: "bp-body", tabindex: 0, role: "region", "aria-label": title });
    return { body, node: make("div", { class: "bp-box-of" }, make("div", { class: "bp-box-head" }, title, ...more), body) };
  }
  function panel(which, i) {
    const map = heatmap(blocks, i ? "" : "Home, End, B, K, L, U work too.");
    map.svg.setAttribute("aria-describedby", `${id}-now`);
    const pick = choice(`measure of heatmap ${i + 1}`, metrics.map((metric, n) => [n, metric.label]), (n) => {
      drawn[i] = Number(n);
      redraw();
      showTables();
    });
    pick.value = `${which}`;
    const note = make("span", { class: "bp-soft" });
    const node = make("div", { class: "bp-map" }, make("div", { class: "bp-map-head" }, pick, note), map.svg);
    map.svg.addEventListener("click", (event) => {
      map.svg.focus({ preventScroll: true });
      const cell = map.cellAt(event);
      if (cell) choose(blocks.removed(...cell));
    });
    map.svg.addEventListener("pointermove", (event) => {
      const cell = map.cellAt(event);
      point(cell && blocks.removed(...cell));
    });
    map.svg.addEventListener("pointerleave", () => point(null));
    map.svg.addEventListener("keydown", keys);
    return { map, node, note };
  }
  function zoomFields() {
    const [from, to, top] = [field("from", "first layer drawn"), field("to", "last layer drawn"), field("sizes", "largest size drawn")];
    const show = () => {
      [from.value, to.value, top.value] = [layers[view.from], layers[view.to], sizes[view.top]];
    };
    const change = () => {
      const [a, b] = [blocks.place.get(Number(from.value)), blocks.place.get(Number(to.value))];
      const most = sizes.findLastIndex((n) => n <= Number(top.value));
      if (a === undefined || b === undefined || a >= b) refuse(`draw from a layer to a later one of ${runs(layers)}`);
      else if (most < 0) refuse(`sizes are ${runs(sizes)}`);
      else {
        refuse("");
        const fits = sizes.findLastIndex((n) => n <= b - a + 1);
        Object.assign(view, { from: a, to: b, top: Math.max(Math.min(most, fits), 0) });
        redraw();
        showTables();
      }
      show();
    };
    for (const input of [from, to, top]) onEntry(input, change);
    const all = button("all", () => {
      Object.assign(view, { from: 0, to: layers.length - 1, top: sizes.length - 1 });
      refuse("");
      redraw();
      showTables();
      show();
    }, { title: "draw all layers and sizes" });
    const colours = choice("colours", COLOURS, (value) => {
      view.colours = value;
      redraw();
    });
    show();
    return make("div", { class: "bp-zoom" }, make("label", {}, "colours ", colours),
      make("span", {}, "draw ", make("label", {}, "layers ", from), make("label", {}, " to ", to),
        make("label", {}, " and sizes up to ", top), " ", all));
  }
  function exports() {
    const copied = make("span", { class: "bp-soft", role: "status", "aria-live": "polite" });
    const copy = (what, text) => () => copyText(text()).then((done) => {
      if (done) copied.replaceChildren(`${what} copied`);
      else copied.replaceChildren(`${what}: `, make("code", {}, text()));
    });
    const python = () => `layers = (${chosen().join(", ")}${chosen().length === 1 ? "," : ""})  # ${runs(chosen())}, ` +
      `${chosen().length} of ${layers.length} layers`;
    const json = () => JSON.stringify({ layers: chosen(), removed: runs(chosen()), n_layers: layers.length });
    const figure = () => kernel.ask("picture", {}, { words: "figure", then: ({ picture }) => download(picture) });
    return make("div", { class: "bp-export" }, "Export: ", button("Python", copy("Python", python)),
      button("JSON", copy("JSON", json)), button("Figure (SVG)", figure), " ", copied);
  }

  // ---- state -> page
  function saves(removed) {
    return [["parameters", "_parameters", 0], ["FLOPs per token", "_flops", 1]].flatMap(([name, costs, which]) => {
      const count = blocks.saved(model.get(costs), removed);
      const whole = model.get("_totals")[which];
      return count === null ? [] : [`saves ${percent(count / whole)} of the ${name} (${amount(whole - count)} left)`];
    });
  }
  function measures(removed) {
    const cell = blocks.cellOf(removed);
    return [...new Set(drawn)].map((which) => {
      const metric = metrics[which];
      return `${metric.label} ${measure(blocks, metric, removed, cell)[1]}`;
    });
  }
  function what(removed) {
    const cell = blocks.cellOf(removed);
    return cell ? `${named(removed)} (start ${removed[0]}, size ${removed.length})`
      : `${named(removed)} (${removed.length} layers, no block of the heatmap)`;
  }
  function point(removed) {
    if (removed === pointed || (removed && pointed && same(removed, pointed))) return;
    pointed = removed;
    const cell = removed && blocks.cellOf(removed);
    for (const { map } of maps) map.hover(cell);
    strip.point(removed ?? []);
    under.textContent = removed ? `under the pointer: ${[what(removed), ...measures(removed)].join(" · ")}` : "";
  }
  function showChoice() {
    const removed = chosen();
    const cell = blocks.cellOf(removed);
    for (const { map } of maps) map.choose(removed);
    strip.choose(removed);
    [start.value, size.value, set.value] = [cell ? removed[0] : "–", removed.length, runs(removed)];
    const away = cell && !inView(blocks, view, ...cell) ? ["outside of what is drawn"] : [];
    now.replaceChildren(make("strong", {}, `removes ${what(removed)}`),
      ...[...measures(removed), ...saves(removed), ...away].map((line) => make("span", {}, line)));
    for (const node of root.querySelectorAll("button[data-layers]")) {
      const it = node.dataset.layers === runs(removed);
      node.closest("td").classList.toggle("bp-it", it);
      node.setAttribute("aria-pressed", it);
    }
    showUsed();
    if (model.get("_look").state === "done") showLook();
  }
  function showUsed() {
    const found = model.get("_used");
    const mine = found.layers && same(found.layers, chosen());
    use.classList.toggle("bp-done", Boolean(mine));
    use.textContent = mine ? "In use" : "Use this block";
    used.textContent = !found.layers ? "Nothing is in use yet: press Use this block."
      : `In use: ${named(found.layers)}${found.where ? `, written to ${found.where}` : ", written nowhere"}` +
        (mine ? "." : ". What is chosen now is not.");
  }
  function showTables() {
    const measured = [...new Set(drawn)].map((which) => metrics[which]);
    bestBox.body.replaceChildren(bestTable(blocks, measured, view, choose));
    strip.describe((layer) => [`layer ${layer}`, ...measures([layer])].join(", "));
    showKept();
  }
  function showKept() {
    const measured = [...new Set(drawn)].map((which) => metrics[which]);
    const drop = (removed) => kernel.ask("drop", { layers: removed }, { words: "drop" });
    const sort = (column) => {
      order.down = order.column === column && !order.down;
      order.column = column;
      showKept();
    };
    keptBox.body.replaceChildren(keptTable(model, blocks, measured, order, { choose, drop, sort }));
    lookKept.hidden = !model.get("_can_look") || !model.get("_kept").length;
    showChoice();
  }
  function showLook() {
    const [able, found] = [model.get("_can_look"), model.get("_look")];
    const running = found.state === "running";
    look.disabled = auto.disabled = !able;
    stop.disabled = !running;
    auto.checked = model.get("auto_look");
    lookBox.body.replaceChildren(...lookPanel(found, runs(chosen()), able));
  }
  const clock = setInterval(() => {
    const node = lookBox.body.querySelector(".bp-seconds");
    if (node) node.textContent = `${((performance.now() - began) / 1000).toFixed(0)} s`;
  }, 500);
  const showSteps = () => {
    undoIt.disabled = !model.get("_steps")[0];
    redoIt.disabled = !model.get("_steps")[1];
  };
  on(["change:_chosen"], () => queueMicrotask(showChoice)); // the choice is sent first, then drawn
  on(["change:_steps"], showSteps);
  on(["change:_used"], showUsed);
  on(["change:_kept"], showKept);
  on(["change:_look"], () => {
    if (model.get("_look").state === "running") began = performance.now();
    showLook();
  });
  on(["change:_can_look", "change:auto_look"], showLook);

  // ---- page -> state
  const whole = (input) => (/^\s*-?\d+\s*$/.test(input.value) ? Number(input.value) : null);
  for (const input of [start, size]) {
    onEntry(input, () => {
      const [first, count] = [whole(start) ?? (input === size ? chosen()[0] : null), whole(size)];
      if (first === null || count === null) refuse(`${input.name} must be a whole number, got ${input.value || "nothing"}`);
      else chooseBlock(first, count);
      showFields();
    });
  }
  onEntry(set, () => {
    const removed = parsed(set.value);
    if (removed) choose(removed);
    else refuse(`layers must look like 24-25 or 3,9-10, got ${set.value || "nothing"}`);
    showFields();
  });
  function showFields() {
    const cell = blocks.cellOf(chosen());
    [start.value, size.value, set.value] = [cell ? chosen()[0] : "–", chosen().length, runs(chosen())];
  }
  auto.addEventListener("change", () => {
    model.set("auto_look", auto.checked);
    model.save_changes();
  });
  function keys(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const steps = event.shiftKey ? 5 : 1;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const action = {
      ArrowLeft: () => move(-1, 0, steps), ArrowRight: () => move(1, 0, steps),
      ArrowUp: () => move(0, 1, steps), ArrowDown: () => move(0, -1, steps),
      Home: () => move(-1, 0, layers.length), End: () => move(1, 0, layers.length),
      b: () => best(), k: keep, l: seeIt, u: useIt, z: undo, y: redo,
    }[key];
    if (!action) return;
    event.preventDefault();
    event.stopPropagation();
    if (key !== "l" || model.get("_can_look")) action();
    else refuse("there is nothing to look with: picker.look_with(...)");
  }
  root.addEventListener("keydown", (event) => {
    if (!(event.ctrlKey || event.metaKey) || event.altKey || event.target.tagName === "INPUT") return;
    const key = event.key.toLowerCase();
    if (key !== "z" && key !== "y") return;
    event.preventDefault();
    event.stopPropagation();
    key === "y" || event.shiftKey ? redo() : undo();
  });

  // ---- its size on the screen
  function redraw() {
    const width = root.clientWidth - 24;
    if (width <= 0) return;
    const beside = maps.length > 1 && width >= 540;
    root.classList.toggle("bp-beside", beside);
    root.classList.toggle("bp-wide", width >= 1000);
    root.classList.toggle("bp-tight", beside && width < 860);
    const each = beside ? (width - 16) / 2 : width;
    const rows = view.top + 1;
    const high = Math.min(Math.max(rows * (rows > 40 ? 4.5 : 16), 150), 300) + EDGE.top + EDGE.bottom;
    maps.forEach(({ map, note }, i) => {
      const metric = metrics[drawn[i]];
      map.render(metric, view, each, high);
      note.textContent = [
        metric.texts ? `on ${metric.texts} texts` : "", metric.single ? "single layers, added up over a block" : "",
        metric.sizes.length < sizes.length ? `sizes ${runs(metric.sizes)}` : "",
      ].filter((one) => one).join(", ");
    });
    strip.resize(width);
    showChoice();
  }
  const resized = new ResizeObserver(() => redraw());
  resized.observe(root);

  redraw();
  showTables();
  showLook();
  showSteps();
  return () => {
    resized.disconnect();
    clearInterval(clock);
    kernel.stop();
    listeners.forEach(([name, handler]) => model.off(name, handler));
  };
}

// A style that hides the picture for where no kernel answers, with the output that holds it, while this view is there.
function hidden(still) {
  const output = `.jp-OutputArea-child:has(.${still}):not(:has(.bp))`;
  return make("style", {}, `.${still}, ${output} { display: none; }`);
}

// The clipboard where the page may write to it.
async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}

function download(picture) {
  const link = make("a", { href: URL.createObjectURL(new Blob([picture], { type: "image/svg+xml" })), download: "picker.svg" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

export default { render };
