// Elements without HTML: text goes in as text nodes, whatever it holds.

/** An element. `props`: attributes; `on` holds listeners; false and null leave an attribute out. */
export function el(name, props = {}, ...children) {
  return filled(document.createElement(name), props, children);
}

/** An SVG element. */
export function svg(name, props = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", name), props, children);
}

function filled(node, { on = {}, ...attributes }, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value !== null && value !== undefined) {
      node.setAttribute(name, value === true ? "" : value);
    }
  }
  for (const [event, listener] of Object.entries(on)) node.addEventListener(event, listener);
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** The element with that id, which is in the page from its beginning. */
export const byId = (id) => document.getElementById(id);

/** A list of figures: `[name, value]` pairs, those without a value left out. */
export function figures(list, pairs) {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined);
  list.replaceChildren(
    ...shown.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
  );
}

/** Say something in a section's status line, which screen readers read out. */
export function say(line, text, kind = "") {
  line.textContent = text;
  line.dataset.kind = kind;
}

/** A stacked bar: `[class, amount]` pairs, to scale. Its words stand beside it. */
export function share(parts) {
  const bar = el("div", { class: "share", "aria-hidden": "true" });
  for (const [kind, amount] of parts) {
    if (amount <= 0) continue;
    const part = el("span", { class: kind });
    part.style.flexGrow = amount;
    bar.append(part);
  }
  return bar;
}
