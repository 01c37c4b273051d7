// Elements of the explorer, and its controls. Part of the explorer's module, joined by page.py.

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in element && typeof value !== "string") element[name] = value;
    else if (value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

// A select with its label. values: [key, text, whether it cannot be chosen] each; changed: called with the key.
function choose(label, values, value, changed) {
  const select = make("select");
  select.append(...values.map(([key, text, off]) => make("option", { value: String(key), disabled: Boolean(off) }, text)));
  select.value = String(value);
  select.addEventListener("change", () => changed(select.value));
  return make("label", {}, make("span", {}, label), select);
}

function button(text, act, attributes = {}) {
  const made = make("button", { type: "button", ...attributes }, text);
  made.addEventListener("click", act);
  return made;
}
