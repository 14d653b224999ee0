// LaTeX in Markdown: $..$, $$..$$, \(..\), \[..\] as extensions of marked, so that Markdown's own escapes and emphasis
// never see what is inside, and code never becomes mathematics.

import './vendor/katex/katex.min.js';
import { escapeHtml } from './sanitize.js';

const LONGEST = 4000; // characters of one formula; what is longer is taken for text

const INLINE = [
  { pattern: /^\$\$((?:\\[^]|[^\\$])+?)\$\$/, display: true },
  { pattern: /^\\\[([^]+?)\\\]/, display: true },
  { pattern: /^\\\(([^]+?)\\\)/, display: false },
  // As pandoc: no space inside the dollars, no digit after the last, so that $5 and $10 stay money.
  { pattern: /^\$(?![\s$])((?:\\[^]|[^\\$`\n])*?(?:\\[^]|[^\\$`\s]))\$(?![\d$])/, display: false },
];
const INLINE_ANYWHERE =
  /`+[^`]*`+|\$\$(?:\\[^]|[^\\$])+?\$\$|\\\[[^]+?\\\]|\\\([^]+?\\\)|\$(?![\s$])(?:\\[^]|[^\\$`\n])*?(?:\\[^]|[^\\$`\s])\$(?![\d$])/g;

const BLOCK = /^ {0,3}(?:\$\$([^]+?)\$\$|\\\[([^]+?)\\\])[ \t]*(?:\n|$)/;
const BLOCK_OPEN = /^ {0,3}(?:\$\$(?!.*\$\$)|\\\[(?!.*\\\]))([^]*)$/;

/** One formula as HTML (with MathML for screen readers); what TeX cannot read is shown as it was written. */
export function renderMath(tex, display) {
  try {
    const options = { displayMode: display, strict: 'ignore', trust: false, maxExpand: 300, maxSize: 20 };
    const html = globalThis.katex
      .renderToString(tex.trim(), options)
      .replace(/<annotation[^]*?<\/annotation>|<\/?semantics>/g, '')
      .replaceAll(' style="', ' data-style="');
    return `<span class="math${display ? ' display' : ''}" data-tex="${escapeHtml(tex.trim())}">${html}</span>`;
  } catch (error) {
    if (!(error instanceof globalThis.katex.ParseError)) throw error;
    return `<code class="math-source">${escapeHtml(tex)}</code>`;
  }
}

const block = {
  name: 'blockMath',
  level: 'block',
  start: (src) => {
    const at = src.search(/\n {0,3}(?:\$\$|\\\[)/);
    return at < 0 ? undefined : at + 1;
  },
  tokenizer(src) {
    const closed = BLOCK.exec(src);
    if (closed && closed[0].length <= LONGEST) {
      return { type: 'blockMath', raw: closed[0], tex: closed[1] ?? closed[2], open: false };
    }
    const open = this.lexer.options.live && src.length <= LONGEST ? BLOCK_OPEN.exec(src) : null;
    return open ? { type: 'blockMath', raw: src, tex: open[1], open: true } : undefined;
  },
  renderer: (token) =>
    token.open
      ? `<div class="math-block"><code class="math-source">${escapeHtml(token.tex)}</code></div>`
      : `<div class="math-block">${renderMath(token.tex, true)}</div>`,
};

const inline = {
  name: 'inlineMath',
  level: 'inline',
  start: (src) => {
    const at = src.search(/\$|\\[([]/);
    return at < 0 ? undefined : at;
  },
  tokenizer(src) {
    for (const { pattern, display } of INLINE) {
      const match = pattern.exec(src);
      if (match && match[0].length <= LONGEST) return { type: 'inlineMath', raw: match[0], tex: match[1], display };
    }
    return undefined;
  },
  renderer: (token) => renderMath(token.tex, token.display),
};

/** For `marked.use`. */
export const mathExtension = {
  extensions: [block, inline],
  // Emphasis must not pair an asterisk outside with one inside a formula.
  hooks: { emStrongMask: (src) => src.replace(INLINE_ANYWHERE, (m) => (m[0] === '`' ? m : '+'.repeat(m.length))) },
};
