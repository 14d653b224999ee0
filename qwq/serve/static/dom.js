// Small helpers to make and change elements.

import { translate } from './i18n.js';

const SVG = 'http://www.w3.org/2000/svg';

/**
 * Makes an element: `h('button.primary', {type: 'button', i18n: 'send'}, child, ...)`.
 *
 * `i18n` names the text, `label` the accessible name and tooltip (both keys of lang/*.js), `vars` what they interpolate;
 * `on` is a map of listeners; other properties become attributes, where true is "" and false, null or undefined is none.
 */
export function h(name, props = {}, ...children) {
  const [tag, ...classes] = name.split('.');
  const node = document.createElement(tag);
  if (classes.length) node.className = classes.join(' ');
  const { i18n, label, vars, on, ...attributes } = props;
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== false && value !== null && value !== undefined) node.setAttribute(key, value === true ? '' : value);
  }
  for (const [event, listener] of Object.entries(on ?? {})) node.addEventListener(event, listener);
  setText(node, { i18n, label, vars });
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Binds an element's text or label to keys of lang/*.js, so that it follows a change of language. */
export function setText(node, { i18n, label, vars }) {
  if (i18n !== undefined) node.dataset.i18n = i18n;
  if (label !== undefined) node.dataset.i18nLabel = label;
  if (vars !== undefined) node.dataset.i18nVars = JSON.stringify(vars);
  if (i18n !== undefined || label !== undefined) translate(node);
}

/** An icon of index.html's sprite. */
export function icon(name) {
  const svg = document.createElementNS(SVG, 'svg');
  svg.setAttribute('class', 'icon');
  svg.setAttribute('aria-hidden', 'true');
  const use = document.createElementNS(SVG, 'use');
  use.setAttribute('href', `#i-${name}`);
  svg.append(use);
  return svg;
}

/** A button with an icon, and a text or only an accessible name. */
export function button(symbol, { text, label, vars, name = 'button.ghost', onclick, ...rest }) {
  const inner = text === undefined ? null : h('span', { i18n: text, vars });
  return h(name, { type: 'button', label, vars, on: onclick ? { click: onclick } : {}, ...rest }, icon(symbol), inner);
}

/** Turns `old` into `fresh` with as few changes as can be, so that selections and focus in what is equal survive. */
export function morph(old, fresh) {
  if (old.isEqualNode(fresh)) return old;
  if (old.nodeType === Node.TEXT_NODE && fresh.nodeType === Node.TEXT_NODE) {
    if (fresh.data.startsWith(old.data)) old.appendData(fresh.data.slice(old.data.length));
    else old.data = fresh.data;
    return old;
  }
  const atomic = old.nodeType !== Node.ELEMENT_NODE || old.nodeName !== fresh.nodeName || fresh.closest('.math') !== null;
  if (atomic || !sameAttributes(old, fresh)) {
    old.replaceWith(fresh);
    return fresh;
  }
  const [before, after] = [[...old.childNodes], [...fresh.childNodes]];
  after.forEach((child, i) => (i < before.length ? morph(before[i], child) : old.append(child)));
  before.slice(after.length).forEach((child) => child.remove());
  return old;
}

function sameAttributes(a, b) {
  return (
    a.attributes.length === b.attributes.length &&
    [...a.attributes].every((item) => b.getAttribute(item.name) === item.value)
  );
}

/** Puts text on the clipboard; also where the page is not a secure context. Resolves to whether it worked. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = h('textarea', { class: 'offscreen', 'aria-hidden': 'true' });
    area.value = text;
    document.body.append(area);
    area.select();
    const copied = document.execCommand('copy');
    area.remove();
    return copied;
  }
}

/** Shows for a moment that a button did its work. */
export function flash(node, key) {
  const text = node.querySelector('[data-i18n]');
  const use = node.querySelector('use');
  const before = { key: text?.dataset.i18n, href: use?.getAttribute('href') };
  if (node.classList.contains('done')) return;
  node.classList.add('done');
  use?.setAttribute('href', '#i-check');
  if (text) setText(text, { i18n: key });
  setTimeout(() => {
    node.classList.remove('done');
    use?.setAttribute('href', before.href);
    if (text) setText(text, { i18n: before.key });
  }, 1500);
}
