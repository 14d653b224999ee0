// The last step before model text becomes DOM: rendered HTML goes through DOMPurify with a short list of what may stay.

import DOMPurify from './vendor/dompurify/purify.es.mjs';

const HTML = `p br hr h1 h2 h3 h4 h5 h6 ul ol li blockquote pre code a strong em b i u s del sub sup kbd mark small span
  div table thead tbody tr th td`;
const MATHML = `math mrow mi mn mo mtext mspace ms mfrac msqrt mroot mstyle merror mpadded mphantom menclose msub msup
  msubsup munder mover munderover mmultiscripts mtable mtr mtd`;
const SVG = 'svg path line'; // KaTeX draws roots and braces with them

const words = (text) => text.split(/\s+/);

const ATTRIBUTES = words(`title class start align aria-hidden data-style data-tex xmlns display mathvariant stretchy
  fence separator accent accentunder minsize maxsize lspace rspace rowspacing columnspacing columnalign columnlines
  rowlines notation mathcolor mathbackground mathsize linethickness displaystyle scriptlevel movablelimits width height
  depth voffset viewBox preserveAspectRatio d x1 x2 y1 y2 stroke-width`);

const CONFIG = {
  ALLOWED_TAGS: words(`${HTML} ${MATHML} ${SVG}`),
  ALLOWED_ATTR: ['href', ...ATTRIBUTES],
  ADD_URI_SAFE_ATTR: ATTRIBUTES, // only href holds an address
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
  RETURN_DOM_FRAGMENT: true,
};

const purify = DOMPurify(window);

purify.addHook('afterSanitizeAttributes', (node) => {
  if (node.nodeName !== 'A') return;
  node.setAttribute('target', '_blank');
  node.setAttribute('rel', 'noopener noreferrer nofollow');
});

// KaTeX places its boxes with style attributes, which the Content-Security-Policy refuses. They arrive here as
// data-style and are set through the CSSOM, which it allows; nothing but lengths and colours gets through.
const STYLE_NAME = /^(?:(?:min-|max-)?(?:width|height)|top|bottom|left|right|(?:margin|padding)(?:-\w+)?|border(?:-\w+){0,2}|vertical-align|color|background-color|position)$/;
const STYLE_VALUE = /^(?:[-+.#%\w\s]|rgba?\([\d\s.,%]+\))+$/;

function applyStyles(root) {
  for (const node of root.querySelectorAll('[data-style]')) {
    if (node.closest('.katex')) {
      for (const rule of node.dataset.style.split(';')) {
        const [name, value = ''] = rule.split(':').map((part) => part.trim());
        const unsafe = name === 'position' && value !== 'relative';
        if (STYLE_NAME.test(name) && STYLE_VALUE.test(value) && !unsafe) node.style.setProperty(name, value);
      }
    }
    node.removeAttribute('data-style');
  }
}

/** Rendered HTML as a DocumentFragment that holds no script, no style, no image and no link but http, https, mailto. */
export function sanitize(html) {
  const fragment = purify.sanitize(html, CONFIG);
  applyStyles(fragment);
  return fragment;
}

/** Text as HTML that shows it. */
export function escapeHtml(text) {
  return text.replace(/[&<>"']/g, (c) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&#39;' })[c]);
}
