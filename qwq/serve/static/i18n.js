// The page's languages. Elements carry the key of their text (data-i18n) or accessible name (data-i18n-label), so a
// change of language changes them in place.

import en from './lang/en.js';
import zh from './lang/zh.js';

export const LANGUAGES = { en, zh };

let current = 'en';

/** The language that `wish` ("auto", "en", "zh") stands for in this browser. */
export function resolveLanguage(wish) {
  if (wish in LANGUAGES) return wish;
  const preferred = navigator.languages ?? [navigator.language];
  return preferred.map((tag) => tag.toLowerCase().split('-')[0]).find((tag) => tag in LANGUAGES) ?? 'en';
}

/** The text of a key, with {name} taken from `vars`. */
export function t(key, vars = {}) {
  const text = LANGUAGES[current][key];
  if (text === undefined) throw new Error(`no text has the key ${key}`);
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in vars ? String(vars[name]) : whole));
}

/** Numbers, sizes and dates in the language of the page. */
export const format = {
  number: (value, digits = 0) =>
    new Intl.NumberFormat(current, { maximumFractionDigits: digits, minimumFractionDigits: digits }).format(value),
  parameters: (value) =>
    value >= 1e9
      ? `${(value / 1e9).toPrecision(3).replace(/\.?0+$/, '')}B`
      : value >= 1e6
        ? `${Math.round(value / 1e6)}M`
        : new Intl.NumberFormat(current).format(value),
  seconds: (ms) => {
    const seconds = ms / 1000;
    if (seconds < 60) return t('time.seconds', { n: format.number(seconds, seconds < 10 ? 1 : 0) });
    return t('time.minutes', { m: Math.floor(seconds / 60), s: Math.floor(seconds % 60) });
  },
};

function translateOne(node) {
  const { i18n, i18nLabel, i18nPlaceholder, i18nVars } = node.dataset;
  const vars = i18nVars === undefined ? {} : JSON.parse(i18nVars);
  if (i18n !== undefined) node.textContent = t(i18n, vars);
  if (i18nPlaceholder !== undefined) node.placeholder = t(i18nPlaceholder, vars);
  if (i18nLabel !== undefined) {
    node.setAttribute('aria-label', t(i18nLabel, vars));
    node.title = t(i18nLabel, vars);
  }
}

/** Brings an element and everything below it into the language of the page. */
export function translate(root) {
  const marked = '[data-i18n], [data-i18n-label], [data-i18n-placeholder]';
  if (root.matches?.(marked)) translateOne(root);
  root.querySelectorAll(marked).forEach(translateOne);
}

/** Changes the language of the whole page and says so with a "languagechange" event on the document. */
export function setLanguage(wish) {
  current = resolveLanguage(wish);
  document.documentElement.lang = current === 'zh' ? 'zh-CN' : current;
  translate(document);
  document.dispatchEvent(new Event('languagechange'));
}

/** The two-letter name of the language now shown. */
export function language() {
  return current;
}
