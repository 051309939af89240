// ---- strip: one box a layer. Click one to add or take it, drag over several to choose these.

// `take(layers, how)` gets the layers and "drag", "add" or "toggle"; `look(layers)` those under the pointer.
function layerStrip(blocks, take, point) {
  const { layers } = blocks;
  const boxes = layers.map((layer) =>
    make("div", { class: "bp-box", role: "checkbox", "aria-label": `layer ${layer}`, tabindex: -1 }));
  const numbers = make("div", { class: "bp-numbers", "aria-hidden": "true" });
  const row = make("div", {
    class: "bp-strip", role: "group",
    "aria-label": "layers: arrow keys move, space takes one or puts it back, shift and arrows choose a range",
  }, ...boxes);
  let [from, to, cursor, anchor] = [null, null, 0, 0];
  const at = (event) => {
    const frame = row.getBoundingClientRect();
    const share = (event.clientX - frame.left) / frame.width;
    return Math.min(Math.max(Math.floor(share * layers.length), 0), layers.length - 1);
  };
  const range = (a, b) => layers.slice(Math.min(a, b), Math.max(a, b) + 1);
  const paint = (over) => boxes.forEach((box, i) => box.classList.toggle("bp-over", over.includes(layers[i])));
  function focus(place) {
    boxes[cursor].tabIndex = -1;
    cursor = Math.min(Math.max(place, 0), layers.length - 1);
    boxes[cursor].tabIndex = 0;
    boxes[cursor].focus();
  }
  row.addEventListener("focusin", (event) => {
    const place = boxes.indexOf(event.target);
    if (place >= 0 && place !== cursor) focus(place);
  });
  row.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    event.preventDefault();
    row.setPointerCapture(event.pointerId);
    from = to = at(event);
    focus(from);
    paint([layers[from]]);
  });
  row.addEventListener("pointermove", (event) => {
    const place = at(event);
    if (from === null) return point([layers[place]]);
    to = place;
    const over = range(from, to);
    paint(over);
    point(over);
  });
  const end = (event) => {
    if (from === null) return;
    const over = range(from, to);
    const add = event.shiftKey || event.ctrlKey || event.metaKey;
    from = to = null;
    paint([]);
    if (event.type === "pointercancel") return;
    take(over, over.length === 1 ? "toggle" : add ? "add" : "drag");
  };
  row.addEventListener("pointerup", end);
  row.addEventListener("pointercancel", end);
  row.addEventListener("pointerleave", () => from === null && point(null));
  row.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: cursor - 1, ArrowRight: cursor + 1, Home: 0, End: layers.length - 1 };
    const isSpace = event.key === " " || event.key === "Enter";
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in moves || isSpace)) return;
    event.preventDefault();
    event.stopPropagation();
    if (isSpace) return take([layers[cursor]], "toggle");
    focus(moves[event.key]);
    if (event.shiftKey) take(range(anchor, cursor), "drag");
    else anchor = cursor;
    point([layers[cursor]]);
  });
  boxes[0].tabIndex = 0;
  return {
    node: make("div", { class: "bp-layers" }, row, numbers),
    choose(chosen) {
      boxes.forEach((box, i) => {
        const gone = chosen.includes(layers[i]);
        box.classList.toggle("bp-gone", gone);
        box.setAttribute("aria-checked", gone);
      });
    },
    // what a screen reader says of each layer
    describe: (words) => boxes.forEach((box, i) => box.setAttribute("aria-label", words(layers[i]))),
    point: (over) => boxes.forEach((box, i) => box.classList.toggle("bp-pointed", over.includes(layers[i]))),
    resize(width) {
      const every = step(layers.length, width, 22);
      numbers.replaceChildren(...layers.map((layer) => make("span", {}, layer % every ? "" : `${layer}`)));
    },
  };
}
