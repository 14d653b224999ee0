// Markdown, one block at a time: text to tokens, and one token to one element.

import { dressCode } from './code.js';
import { h } from './dom.js';
import { mathExtension } from './math.js';
import { escapeHtml, sanitize } from './sanitize.js';
import { Lexer, Marked, Parser } from './vendor/marked/marked.esm.js';

// Tags that models write inside text and that carry no attribute; all others are shown as they were written.
const PLAIN_TAG = /^<\/?(?:br|sub|sup|kbd|mark|b|i|u|s|small)\s*\/?>/i;
const CJK = /[\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\u2018-\u201d]/;

/** Whether a model may link there: an address of its own, never one relative to this page. */
function mayLink(href, protocols = ['http:', 'https:', 'mailto:']) {
  return URL.canParse(href) && protocols.includes(new URL(href).protocol);
}

const marked = new Marked({ gfm: true, breaks: true });

marked.use(mathExtension, {
  tokenizer: {
    html: () => undefined,
    tag(src) {
      const match = PLAIN_TAG.exec(src);
      return match ? { type: 'html', raw: match[0], text: match[0], block: false } : undefined;
    },
    del(src) {
      const match = /^~~(?=\S)([^]*?\S)~~(?!~)/.exec(src); // one tilde means "about"
      return match && { type: 'del', raw: match[0], text: match[1], tokens: this.lexer.inlineTokens(match[1]) };
    },
  },
  renderer: {
    code: ({ text, lang }) => {
      const name = /^[\w+#.-]{1,30}/.exec(lang ?? '')?.[0];
      return `<pre><code${name ? ` class="language-${escapeHtml(name)}"` : ''}>${escapeHtml(text)}</code></pre>`;
    },
    link({ href, title, tokens }) {
      const inner = this.parser.parseInline(tokens);
      if (!mayLink(href)) return inner;
      return `<a href="${escapeHtml(href)}"${title ? ` title="${escapeHtml(title)}"` : ''}>${inner}</a>`;
    },
    // A picture's address tells its server who reads this, so it is a link that one may follow.
    image: ({ href, text }) => {
      const name = escapeHtml(text || href);
      return mayLink(href, ['http:', 'https:']) ? `<a class="picture" href="${escapeHtml(href)}">${name}</a>` : name;
    },
    checkbox: ({ checked }) => `<span class="check">${checked ? '☑' : '☐'}</span> `,
  },
  extensions: [
    {
      // CommonMark leaves **“词”**后 alone, because the asterisks stand between punctuation and a letter.
      name: 'cjkStrong',
      level: 'inline',
      start: (src) => {
        const at = src.indexOf('**');
        return at < 0 ? undefined : at;
      },
      tokenizer(src) {
        const match = /^\*\*([^\s*](?:[^*\n]*[^\s*])?)\*\*(?!\*)/.exec(src);
        if (!match || !(CJK.test(match[1][0]) || CJK.test(match[1].at(-1)))) return undefined;
        return { type: 'cjkStrong', raw: match[0], tokens: this.lexer.inlineTokens(match[1]) };
      },
      renderer(token) {
        return `<strong>${this.parser.parseInline(token.tokens)}</strong>`;
      },
    },
  ],
});

/**
 * Text to block tokens, whose `raw` add up to the text.
 *
 * `links` holds the link definitions of earlier blocks. `live` says that the text goes on, so that a formula which is
 * not closed yet is not taken for prose.
 */
export function lexBlocks(text, links, live) {
  const lexer = new Lexer({ ...marked.defaults, live });
  Object.assign(lexer.tokens.links, links);
  return lexer.lex(text);
}

/** One block token as one element, or null where it shows nothing (blank lines, link definitions). */
export function renderBlock(token) {
  if (token.type === 'space' || token.type === 'def') return null;
  const block = token.type === 'text' ? { ...token, type: 'paragraph' } : token;
  const fragment = sanitize(Parser.parse([block], marked.defaults));
  dressCode(fragment);
  for (const table of [...fragment.querySelectorAll('table')]) {
    const scroller = h('div.table', { tabindex: '0' });
    table.replaceWith(scroller);
    scroller.append(table);
  }
  const nodes = [...fragment.childNodes].filter((node) => node.nodeType === Node.ELEMENT_NODE || node.data.trim());
  if (nodes.length === 0) return null;
  return nodes.length === 1 && nodes[0].nodeType === Node.ELEMENT_NODE ? nodes[0] : h('div', {}, ...nodes);
}
