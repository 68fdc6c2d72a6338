// Elements, made one by one: what the manager says is only ever text in them, never markup.

const SVG = "http://www.w3.org/2000/svg";

// An element with attributes, listeners (functions, named `onclick`) and children. What is null or false is left out.
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

// The same, of a drawing.
export function s(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function byId(id) {
  return document.getElementById(id);
}

// Sets the text if it is another one: what has not changed keeps its selection, and is not read out again.
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Makes `parent` hold one element for each item, in this order. Elements of items that stay are kept, and with them
// focus and selection; `make` makes those of new ones, `update` brings each up to date.
export function keyed(parent, items, keyOf, make, update) {
  const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = String(keyOf(item));
    let element = old.get(key);
    old.delete(key);
    if (!element) {
      element = make(item);
      element.dataset.key = key;
    }
    update(element, item);
    if (element === place) {
      place = place.nextElementSibling;
    } else {
      parent.insertBefore(element, place);
    }
  }
  for (const element of old.values()) element.remove();
}
