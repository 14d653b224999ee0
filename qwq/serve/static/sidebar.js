// The list of chats: found, opened, renamed, deleted.

import { button, h } from './dom.js';
import { t } from './i18n.js';

const DAY = 86_400_000;

/** The heading that a chat of this time stands under, as a key of lang/*.js. */
export function ageOf(time, now = Date.now()) {
  const today = new Date(now).setHours(0, 0, 0, 0);
  if (time >= today) return 'age.today';
  if (time >= today - DAY) return 'age.yesterday';
  return time >= today - 7 * DAY ? 'age.week' : 'age.older';
}

export class Sidebar {
  /** `actions` has open, rename, remove; `isRunning(id)` says whether an answer is being made. */
  constructor(element, history, isRunning, actions) {
    this.list = element.querySelector('#chats');
    this.search = element.querySelector('#search');
    Object.assign(this, { history, isRunning, actions, current: null });
    this.search.addEventListener('input', () => this.refresh());
    document.addEventListener('languagechange', () => this.refresh());
  }

  refresh(current = this.current) {
    this.current = current;
    if (this.list.querySelector('input')) return; // a name is being written
    const chats = this.history.list(this.search.value);
    const groups = Map.groupBy(chats, (chat) => ageOf(chat.updated));
    this.list.replaceChildren(...[...groups].map(([age, members]) => this.group(age, members)));
    if (chats.length === 0) {
      this.list.append(h('p.empty', { i18n: this.search.value.trim() ? 'history.none' : 'history.empty' }));
    }
  }

  group(age, chats) {
    return h('section', {}, h('h2', { i18n: age }), h('ul', {}, ...chats.map((chat) => this.entry(chat))));
  }

  entry(chat) {
    const current = chat.id === this.current;
    const title = chat.title || t('chat.untitled');
    const link = h('a', { href: `#${chat.id}`, title, 'aria-current': current ? 'page' : null }, h('span', {}, title));
    link.addEventListener('click', (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return; // a new tab or window
      event.preventDefault();
      this.actions.open(chat.id);
    });
    if (this.isRunning(chat.id)) link.append(h('i.pulse', { label: 'chat.running' }));
    const item = h(current ? 'li.current' : 'li', {}, link);
    item.append(
      button('edit', { label: 'chat.rename', onclick: () => this.rename(item, chat) }),
      button('trash', { label: 'chat.delete', onclick: () => this.actions.remove(chat) }),
    );
    link.addEventListener('keydown', (event) => {
      if (event.key === 'F2') this.rename(item, chat);
      else if (event.key === 'Delete') this.actions.remove(chat);
    });
    return item;
  }

  rename(item, chat) {
    const input = h('input', { type: 'text', maxlength: '200', label: 'chat.rename' });
    input.value = chat.title;
    let open = true;
    const close = (keep) => {
      if (!open) return;
      open = false;
      const name = input.value.trim();
      input.remove();
      if (keep && name !== '' && name !== chat.title) this.actions.rename(chat, name);
      this.refresh();
      this.list.querySelector(`a[href="#${chat.id}"]`)?.focus();
    };
    input.addEventListener('keydown', (event) => {
      event.stopPropagation();
      if (event.isComposing) return;
      if (event.key === 'Enter') close(true);
      else if (event.key === 'Escape') close(false);
    });
    input.addEventListener('blur', () => close(true));
    item.replaceChildren(input);
    input.select();
  }
}
