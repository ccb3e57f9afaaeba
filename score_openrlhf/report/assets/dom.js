// Small helpers for elements, numbers and the page's data. Text only ever becomes text nodes.

function append(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function el(tag, attributes = {}, ...children) {
  return append(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return append(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function formatNumber(value, unit = "number") {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && unit !== "fraction" && (size < 0.001 || size >= 1e6)) return value.toExponential(1).replace("-", "−");
  const digits = size >= 100 ? 0 : size >= 10 ? 1 : 3;
  const rounded = Number.isInteger(value) && unit !== "fraction" ? value.toLocaleString("en") : value.toFixed(digits);
  return rounded.replace("-", "−");
}

// base64 of gzip of JSON, as page.py packs it.
async function unpackData(id) {
  const binary = atob(document.getElementById(id).textContent);
  const bytes = Uint8Array.from(binary, (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}
