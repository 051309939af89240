// The page of the block picker. The files base, blocks, kernel, heatmap, strip, tables and block_picker are put
// together in this order as one module; nothing is built and nothing is loaded from a network. Text from models
// and data is only ever set as text, never as markup.

// ---- base: nodes, colours, numbers as text

const SVG = "http://www.w3.org/2000/svg";
// viridis from its light end: light = low = removable, as in the static figures
const SCALE = ["#fde725", "#a0da39", "#4ac16d", "#1fa187", "#277f8e", "#365c8d", "#46327e", "#440154"];
const SHADES = 64;

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

function button(text, action, { key = "", title = "" } = {}) {
  const node = make("button", { type: "button", title: key ? `${title || text} (key: ${key})` : title || text }, text);
  node.addEventListener("click", action);
  return node;
}

function choice(label, options, change) {
  const node = make("select", { "aria-label": label });
  for (const [value, text] of options) node.append(make("option", { value }, text));
  node.addEventListener("change", () => change(node.value));
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
// a number with a real minus, and no minus before zero
function fixed(value, digits) {
  const text = Math.abs(value).toFixed(digits);
  return value < 0 && Number(text) ? `−${text}` : text;
}
const rough = (value) => fixed(value, value && Math.abs(value) < 10 ? Math.min(3, Math.max(1, 1 - Math.floor(Math.log10(Math.abs(value))))) : 0);
const signed = (value, digits = 3) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`;

function amount(count) {
  const unit = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]].find(([size]) => count >= size);
  return unit ? `${(count / unit[0]).toFixed(2)}${unit[1]}` : `${count}`;
}

// layers as text with each run joined: 3,9-10
function runs(layers) {
  const parts = [];
  for (const layer of layers) {
    const last = parts.at(-1);
    if (last && layer === last[1] + 1) last[1] = layer;
    else parts.push([layer, layer]);
  }
  return parts.map(([low, high]) => (low === high ? `${low}` : `${low}-${high}`)).join(",");
}

// the layers that such a text names, or null where it names none
function parsed(text) {
  const found = [];
  for (const part of text.split(",").map((one) => one.trim())) {
    const ends = part.match(/^(\d+)(?:\s*[-–]\s*(\d+))?$/);
    if (!ends) return null;
    const [low, high] = [Number(ends[1]), Number(ends[2] ?? ends[1])];
    if (high < low || high - low > 9999) return null;
    for (let layer = low; layer <= high; layer++) found.push(layer);
  }
  return [...new Set(found)].sort((a, b) => a - b);
}

const named = (layers) => `${layers.length > 1 ? "layers" : "layer"} ${runs(layers)}`;
const same = (a, b) => a.length === b.length && a.every((value, i) => value === b[i]);

// what was typed counts when it is typed to the end: on Enter, or when the field is left
function onEntry(input, action) {
  input.addEventListener("change", action);
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    event.stopPropagation();
    action();
  });
}
