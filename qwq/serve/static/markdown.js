// Streaming Markdown. Text comes in pieces; blocks that can no longer change are sealed: their elements are never
// touched again, so a selection in them survives and the work grows with the text, not with its square. Only the tail
// after them is parsed again, at most once a frame.

import { lexBlocks, renderBlock } from './blocks.js';
import { morph } from './dom.js';

const CODE_CHUNK = 2000; // characters of live code above which colours come in growing steps
const CODE_GROWTH = 1.25;

export class StreamingMarkdown {
  /**
   * @param {HTMLElement} root where the blocks go; emptied.
   * @param {() => void} [onRender] called after each change of the page.
   */
  constructor(root, onRender = () => {}) {
    this.root = root;
    this.onRender = onRender;
    this.tail = ''; // text that is not sealed
    this.live = []; // blocks of the tail: {raw, node, coloured, text}
    this.links = {};
    this.sealedEnd = null; // the last sealed element
    this.anchor = null; // the element after which the next block goes
    this.timer = null;
    this.notBefore = 0;
    this.finished = false;
    this.parsedCharacters = 0; // work done so far, for tests
    root.replaceChildren();
    root.classList.add('live');
  }

  /** Adds text; it shows with the next frame. */
  push(text) {
    if (this.finished) throw new Error('this text is finished');
    this.tail += text.replaceAll('\r', '');
    this.timer ??= requestAnimationFrame(() => this.frame());
  }

  frame() {
    if (performance.now() >= this.notBefore) this.render();
    else this.timer = requestAnimationFrame(() => this.frame());
  }

  /** Shows everything and seals it; nothing can be added any more. */
  finish() {
    if (this.finished) return;
    this.finished = true;
    this.render();
    this.root.classList.remove('live');
  }

  /** Stops without another change: for a view that is taken away. */
  dispose() {
    if (this.timer !== null) cancelAnimationFrame(this.timer);
    this.timer = null;
    this.finished = true;
  }

  /** Brings the page up to date now. */
  render() {
    if (this.timer !== null) cancelAnimationFrame(this.timer);
    this.timer = null;
    const started = performance.now();
    const tokens = lexBlocks(this.tail, this.links, !this.finished);
    this.parsedCharacters += this.tail.length;
    const sealed = this.finished ? tokens.length : this.countSealed(tokens);
    const before = this.live;
    this.anchor = this.sealedEnd;
    this.live = tokens.map((token, i) => this.update(before[i], token, i < sealed));
    before.slice(tokens.length).forEach((block) => block.node?.remove());
    for (const { type, tag, href, title } of tokens.slice(0, sealed)) {
      if (type === 'def') this.links[tag] ??= { href, title };
    }
    this.live.splice(0, sealed).forEach((block) => {
      this.tail = this.tail.slice(block.raw.length);
      this.sealedEnd = block.node ?? this.sealedEnd;
    });
    this.notBefore = started + 5 * (performance.now() - started); // a long tail takes a fifth of the time, not all
    this.onRender();
  }

  /** How many blocks at the beginning of the tail are complete: those before the last block whose first line is. */
  countSealed(tokens) {
    let [offset, sealed] = [0, 0];
    tokens.forEach((token, i) => {
      const visible = token.type !== 'space' && token.type !== 'def';
      if (visible && this.tail.indexOf('\n', offset) >= 0) sealed = i;
      offset += token.raw.length;
    });
    return sealed;
  }

  /** The block for a token, made from the one that stood at its place. */
  update(block, token, sealed) {
    const made = this.reuse(block, token, sealed) ?? {
      type: token.type,
      raw: token.raw,
      node: this.place(block?.node, renderBlock(token)),
      ...(token.type === 'code' && { lang: token.lang, text: token.text, coloured: token.text.length }),
    };
    this.anchor = made.node ?? this.anchor;
    return made;
  }

  reuse(block, token, sealed) {
    if (block === undefined || block.type !== token.type) return null;
    const whole = block.type !== 'code' || block.coloured === block.text.length;
    if (block.raw === token.raw && (whole || !sealed)) return block;
    return !sealed && this.extendCode(block, token) ? { ...block, raw: token.raw, text: token.text } : null;
  }

  /** Long code that is still being written gets its new text as it is, and colours each time it grew by a quarter. */
  extendCode(block, token) {
    if (token.type !== 'code' || block.lang !== token.lang) return false;
    if (token.text.length < CODE_CHUNK || token.text.length > block.coloured * CODE_GROWTH) return false;
    if (!token.text.startsWith(block.text)) return false;
    const code = block.node.querySelector('code');
    const more = token.text.slice(block.text.length);
    if (code.lastChild?.nodeType === Node.TEXT_NODE) code.lastChild.appendData(more);
    else code.append(more);
    return true;
  }

  place(old, fresh) {
    if (old && fresh) return morph(old, fresh);
    old?.remove();
    if (fresh && this.anchor) this.anchor.after(fresh);
    else if (fresh) this.root.prepend(fresh);
    return fresh;
  }
}

/** Shows a complete text. */
export function renderMarkdown(root, text) {
  const stream = new StreamingMarkdown(root);
  stream.push(text);
  stream.finish();
  return stream;
}
