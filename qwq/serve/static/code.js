// Code blocks: a figure with the language, a copy button, and colours from highlight.js.

import hljs from './vendor/highlight/highlight.min.js';
import { button, h } from './dom.js';
import { sanitize } from './sanitize.js';

const LONGEST_COLOURED = 60_000; // characters

const NAMES = {
  bash: 'Bash', c: 'C', cpp: 'C++', csharp: 'C#', css: 'CSS', html: 'HTML', ini: 'INI', java: 'Java',
  javascript: 'JavaScript', js: 'JavaScript', json: 'JSON', jsx: 'JSX', py: 'Python', python: 'Python', sh: 'Shell',
  shell: 'Shell', sql: 'SQL', ts: 'TypeScript', tsx: 'TSX', typescript: 'TypeScript', xml: 'XML', yaml: 'YAML',
};

function languageOf(code) {
  const name = [...code.classList].find((c) => c.startsWith('language-'));
  return name === undefined ? '' : name.slice('language-'.length).toLowerCase();
}

function labelOf(language) {
  return NAMES[language] ?? hljs.getLanguage(language)?.name ?? language;
}

/** Colours a <code> element in place. */
function colour(code, language) {
  const text = code.textContent;
  if (!hljs.getLanguage(language) || text.length > LONGEST_COLOURED) return;
  code.replaceChildren(sanitize(hljs.highlight(text, { language, ignoreIllegals: true }).value));
}

/** Wraps every <pre> below `root` in a figure. The copy button works through a listener of the log. */
export function dressCode(root) {
  for (const pre of [...root.querySelectorAll('pre')]) {
    const code = pre.querySelector('code');
    if (code === null) continue;
    const language = languageOf(code);
    const copy = button('copy', { text: 'code.copy', name: 'button.copy-code' });
    const figure = h('figure.code', {}, h('figcaption', {}, h('span.language', {}, labelOf(language)), copy));
    pre.replaceWith(figure);
    pre.tabIndex = 0; // wide code is scrolled with the arrow keys
    figure.append(pre);
    colour(code, language);
  }
}
