// One message on the page: a question in its bubble, or an answer with its thinking, its text and what it cost.

import { siblings } from './conversation.js';
import { button, copyText, flash, h, setText } from './dom.js';
import { format, t } from './i18n.js';
import { StreamingMarkdown } from './markdown.js';

/** What a view and the page say to each other: `actions` has edit, regenerate, retry, branch, newChat, askKey. */
export function makeTurn(chat, message, actions) {
  const Kind = message.role === 'user' ? Question : Answer;
  return new Kind(chat, message, actions);
}

class Turn {
  constructor(chat, message, actions) {
    Object.assign(this, { chat, message, actions });
    this.tools = h('div.tools');
    this.element = h(`article.turn.${message.role}`, { 'data-id': message.id });
  }

  /** ‹ 2 / 3 › where there are several messages at this place. */
  branches() {
    const all = siblings(this.chat, this.message);
    if (all.length < 2) return null;
    const at = all.indexOf(this.message);
    const step = (symbol, label, to) =>
      button(symbol, { label, disabled: !all[to], onclick: () => this.actions.branch(all[to].id) });
    const count = h('span', { i18n: 'turn.branch', vars: { n: at + 1, of: all.length } });
    return h('span.branches', {}, step('left', 'turn.previous', at - 1), count, step('right', 'turn.next', at + 1));
  }

  copyButton() {
    const onclick = async ({ currentTarget }) => {
      if (await copyText(this.message.content)) flash(currentTarget, 'code.copied');
    };
    return button('copy', { label: 'turn.copy', onclick });
  }

  refresh() {}

  dispose() {
    this.element.remove();
  }
}

class Question extends Turn {
  constructor(...args) {
    super(...args);
    this.bubble = h('div.bubble', {}, this.message.content);
    this.element.append(h('h2.sr-only', { i18n: 'turn.you' }), this.bubble, this.tools);
    this.refresh();
  }

  refresh() {
    const edit = button('edit', { label: 'turn.edit', onclick: () => this.edit() });
    this.tools.replaceChildren(...[edit, this.copyButton(), this.branches()].filter(Boolean));
  }

  edit() {
    const area = h('textarea', { rows: '1', 'data-i18n-label': 'turn.edit' });
    area.value = this.message.content;
    const close = () => {
      editor.remove();
      this.bubble.hidden = this.tools.hidden = false;
      this.tools.firstElementChild.focus();
    };
    const send = () => {
      const text = area.value.trim();
      if (text !== '' && this.actions.edit(this.message, text)) close();
    };
    const editor = h(
      'div.editor',
      {},
      area,
      h('div.row', {}, h('button.plain', { type: 'button', i18n: 'cancel', on: { click: close } }),
        h('button.primary', { type: 'button', i18n: 'send', on: { click: send } })),
    );
    area.addEventListener('keydown', (event) => {
      if (event.isComposing) return;
      if (event.key === 'Escape') close();
      else if (event.key === 'Enter' && !event.shiftKey) send();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    this.bubble.hidden = this.tools.hidden = true;
    setText(area, { label: 'turn.edit' });
    this.bubble.before(editor);
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }
}

class Answer extends Turn {
  constructor(...args) {
    super(...args);
    this.summary = h('span.summary');
    this.thought = h('div.prose.thought');
    this.thinking = h('details.thinking', { hidden: true }, h('summary', {}, this.summary), this.thought);
    this.thinking.addEventListener('toggle', () => this.showThought());
    this.prose = h('div.prose');
    this.waiting = h('div.waiting', { 'aria-hidden': 'true' }, h('i'), h('i'), h('i'));
    this.notice = h('div.notice', { hidden: true });
    const heading = h('h2.sr-only', { i18n: 'turn.answer' });
    this.element.append(heading, this.thinking, this.prose, this.waiting, this.notice, this.tools);
    this.markdown = new StreamingMarkdown(this.prose);
    this.thoughtMarkdown = null;
    if (this.message.content) this.markdown.push(this.message.content);
    this.refresh();
  }

  get running() {
    return this.message.finish === null;
  }

  /** New text, from the run. */
  take({ content, reasoning }) {
    if (content) this.markdown.push(content);
    if (reasoning && this.thoughtMarkdown) this.thoughtMarkdown.push(reasoning);
    this.refreshThinking();
    this.waiting.hidden = this.message.content !== '' || this.message.reasoning !== '';
  }

  /** The thinking is only rendered when it is looked at. */
  showThought() {
    if (!this.thinking.open || this.thoughtMarkdown) return;
    this.thoughtMarkdown = new StreamingMarkdown(this.thought);
    this.thoughtMarkdown.push(this.message.reasoning);
    if (!this.running) this.thoughtMarkdown.finish();
  }

  refresh() {
    this.element.classList.toggle('running', this.running);
    this.refreshThinking();
    this.waiting.hidden = !this.running || this.message.content !== '' || this.message.reasoning !== '';
    if (this.running) {
      this.notice.hidden = true;
      this.tools.replaceChildren();
      return;
    }
    this.markdown.finish();
    this.thoughtMarkdown?.finish();
    this.showNotice();
    const again = button('again', { label: 'turn.regenerate', onclick: () => this.actions.regenerate(this.message) });
    const parts = [this.message.content ? this.copyButton() : null, again, this.branches(), this.meta()];
    this.tools.replaceChildren(...parts.filter(Boolean));
  }

  refreshThinking() {
    const { reasoning, content, thought_ms: ms } = this.message;
    this.thinking.hidden = reasoning === '';
    const active = this.running && content === '';
    this.thinking.classList.toggle('active', active);
    const vars = { time: format.seconds(ms) };
    setText(this.summary, { i18n: active ? 'think.now' : ms >= 100 ? 'think.done' : 'think.title', vars });
  }

  /** Model, tokens and speed. */
  meta() {
    const { model, usage, pieces, stream_ms: ms, content, reasoning } = this.message;
    if (!content && !reasoning) return null;
    const tokens = usage ? usage.completion_tokens : pieces;
    const parts = [model, t(usage ? 'meta.tokens' : 'meta.about', { n: format.number(tokens) })];
    if (tokens > 1 && ms > 0) {
      const rate = ((tokens - 1) * 1000) / ms;
      parts.push(t('meta.rate', { n: format.number(rate, rate < 100 ? 1 : 0) }));
    }
    if (usage) parts.push(t('meta.prompt', { n: format.number(usage.prompt_tokens) }));
    return h('span.meta', {}, parts.filter(Boolean).join(' · '));
  }

  showNotice() {
    const { finish, error, content, reasoning } = this.message;
    const key = { length: 'finish.length', stopped: 'finish.stopped', broken: 'finish.broken' }[finish];
    clearInterval(this.countdown);
    this.notice.className = error ? 'notice error' : 'notice';
    this.notice.setAttribute('role', error ? 'alert' : 'note');
    this.notice.replaceChildren();
    if (error) this.notice.replaceChildren(...this.explain(error));
    else if (key) this.notice.replaceChildren(h('span', { i18n: key }));
    else if (!content && !reasoning) this.notice.replaceChildren(h('span', { i18n: 'finish.empty' }));
    this.notice.hidden = this.notice.childElementCount === 0;
  }

  explain({ kind, detail, until }) {
    const retry = h('button.plain', { type: 'button', i18n: 'retry', on: { click: () => this.actions.retry(this.message) } });
    const other = {
      long: h('button.plain', { type: 'button', i18n: 'chat.new', on: { click: () => this.actions.newChat() } }),
      key: h('button.plain', { type: 'button', i18n: 'key.enter', on: { click: () => this.actions.askKey(this.message) } }),
    }[kind];
    if (kind === 'busy') this.waitFor(retry, until);
    const text = h('div', {}, h('strong', { i18n: `error.${kind}` }), detail ? h('small', {}, detail) : null);
    return [text, h('div.row', {}, other, retry)];
  }

  waitFor(retry, until) {
    const tick = () => {
      const left = Math.ceil((until - Date.now()) / 1000);
      retry.disabled = left > 0;
      setText(retry, left > 0 ? { i18n: 'retry.in', vars: { n: left } } : { i18n: 'retry' });
      if (left <= 0) clearInterval(this.countdown);
    };
    this.countdown = setInterval(tick, 500);
    tick();
  }

  dispose() {
    clearInterval(this.countdown);
    this.markdown.dispose();
    this.thoughtMarkdown?.dispose();
    super.dispose();
  }
}
