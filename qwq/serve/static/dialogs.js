// Dialogs and passing messages.

import { button, h } from './dom.js';

/** Shows a message at the foot of the page for a while; `action` is {text, run} for a button in it. */
export function toast(key, { vars, action, ms = 6000 } = {}) {
  const place = document.querySelector('#toasts');
  const node = h('div.toast', { role: 'status' }, h('span', { i18n: key, vars }));
  const close = () => node.remove();
  if (action) {
    const run = () => {
      close();
      action.run();
    };
    node.append(h('button.plain', { type: 'button', i18n: action.text, on: { click: run } }));
  }
  node.append(button('close', { label: 'close', onclick: close }));
  place.append(node);
  setTimeout(close, ms);
}

/** Opens a modal dialog that a click beside it closes. */
export function openDialog(dialog) {
  if (!dialog.open) dialog.showModal();
}

/** Makes the dialogs of the page close by their buttons and by a click on the backdrop. */
export function prepareDialogs() {
  for (const dialog of document.querySelectorAll('dialog')) {
    dialog.addEventListener('click', ({ target }) => {
      if (target === dialog || target.closest('[data-close]')) dialog.close();
    });
  }
}

/** Asks for a yes. Resolves to whether it was given. */
export function confirmAction(key, confirmKey) {
  return new Promise((resolve) => {
    const yes = h('button.danger', { type: 'button', i18n: confirmKey, on: { click: () => done(true) } });
    const no = h('button.plain', { type: 'button', i18n: 'cancel', on: { click: () => done(false) } });
    const dialog = h('dialog.small', { role: 'alertdialog' }, h('p', { i18n: key }), h('div.row', {}, no, yes));
    const done = (answer) => {
      dialog.remove();
      resolve(answer);
    };
    dialog.addEventListener('close', () => done(false));
    document.body.append(dialog);
    dialog.showModal();
    no.focus();
  });
}

let asking = null;

/** Asks for the server's API key, once at a time. Resolves to the key, or to null where none was given. */
export function askKey() {
  asking ??= openKeyDialog().finally(() => (asking = null));
  return asking;
}

function openKeyDialog() {
  const dialog = document.querySelector('#key-dialog');
  const input = dialog.querySelector('input');
  const form = dialog.querySelector('form');
  return new Promise((resolve) => {
    let key = null;
    const take = (event) => {
      event.preventDefault();
      key = input.value.trim() || null;
      dialog.close();
    };
    const end = () => {
      form.removeEventListener('submit', take);
      input.value = '';
      resolve(key);
    };
    form.addEventListener('submit', take);
    dialog.addEventListener('close', end, { once: true });
    openDialog(dialog);
    input.focus();
  });
}
