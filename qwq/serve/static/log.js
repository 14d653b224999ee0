// The chat on the screen: the turns from the first message to the end of the branch that is shown.

import { pathTo } from './conversation.js';
import { copyText, flash } from './dom.js';
import { makeTurn } from './turn.js';

export class Log {
  constructor(element, actions) {
    this.element = element;
    this.actions = actions;
    this.chat = null;
    this.turns = [];
    element.addEventListener('click', (event) => this.copyCode(event));
    document.addEventListener('languagechange', () => this.refresh());
  }

  async copyCode({ target }) {
    const clicked = target.closest('.copy-code');
    if (clicked === null) return;
    if (await copyText(clicked.closest('figure').querySelector('code').textContent)) flash(clicked, 'code.copied');
  }

  /** Shows a chat, keeping the turns that stay. */
  show(chat) {
    const path = pathTo(chat);
    let same = 0;
    if (chat === this.chat) while (same < path.length && this.turns[same]?.message === path[same]) same += 1;
    this.turns.splice(same).forEach((turn) => turn.dispose());
    this.chat = chat;
    this.refresh();
    for (const message of path.slice(same)) {
      const turn = makeTurn(chat, message, this.actions);
      this.turns.push(turn);
      this.element.append(turn.element);
    }
    this.element.setAttribute('aria-busy', String(path.at(-1)?.finish === null));
  }

  /** A piece of an answer that may be on the screen. */
  take(message, piece) {
    this.turns.find((turn) => turn.message === message)?.take(piece);
  }

  refresh() {
    this.turns.forEach((turn) => turn.refresh());
  }

  /** Opens the editor of the last question. */
  editLast() {
    this.turns.findLast((turn) => turn.edit !== undefined)?.edit();
  }
}
