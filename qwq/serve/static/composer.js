// Where one writes: grows with its text, Enter sends (never while an input method composes), drafts survive a reload.

import { setText } from './dom.js';
import { session } from './preferences.js';

export class Composer {
  /** `actions` has send(text), stop() and editLast(). */
  constructor(element, actions) {
    this.area = element.querySelector('textarea');
    this.sendButton = element.querySelector('#send');
    this.stopButton = element.querySelector('#stop');
    this.actions = actions;
    this.chatId = null;
    this.running = false;
    this.area.addEventListener('keydown', (event) => this.key(event));
    this.area.addEventListener('input', () => this.changed());
    this.sendButton.addEventListener('click', () => this.send());
    this.stopButton.addEventListener('click', () => actions.stop());
    element.addEventListener('click', ({ target }) => target === element && this.area.focus());
  }

  get draftName() {
    return `draft.${this.chatId ?? 'new'}`;
  }

  key(event) {
    if (event.isComposing || event.keyCode === 229) return; // 229: Safari ends a composition before this event
    if (event.key === 'Enter' && !event.shiftKey && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      this.send();
    } else if (event.key === 'ArrowUp' && this.area.value === '') {
      event.preventDefault();
      this.actions.editLast();
    }
  }

  /** Sends what is written; it stays written where it was not taken. */
  send() {
    const [text, draft] = [this.area.value.trim(), this.draftName];
    if (text === '' || this.running || !this.actions.send(text)) return;
    session.set(draft, '');
    this.fill('');
  }

  fill(text) {
    this.area.value = text;
    this.changed();
  }

  changed() {
    const { area } = this;
    area.style.height = 'auto';
    area.style.height = `${area.scrollHeight}px`;
    this.sendButton.disabled = area.value.trim() === '';
    session.set(this.draftName, area.value);
  }

  /** Another chat is on the screen (null: a new one). */
  show(chatId) {
    this.chatId = chatId;
    this.fill(session.get(this.draftName));
  }

  setRunning(running) {
    this.running = running;
    this.sendButton.hidden = running;
    this.stopButton.hidden = !running;
  }

  setModel(name) {
    this.area.dataset.i18nPlaceholder = name ? 'composer.placeholder' : 'composer.offline';
    setText(this.area, { label: 'composer.label', vars: { model: name } });
  }

  focus() {
    this.area.focus({ preventScroll: true });
  }
}
