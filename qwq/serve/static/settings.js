// The settings sheet: language, theme, system prompt, sampling, key, history.

import { confirmAction, openDialog, toast } from './dialogs.js';
import { button, h, setText } from './dom.js';
import { setLanguage } from './i18n.js';
import { preferences, readSampling, SAMPLING, savePreferences, session } from './preferences.js';

const MAX_TOKENS_SLIDER = 4096;

export function applyTheme(theme) {
  if (theme === 'auto') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

export class Settings {
  /** `actions` has historyChanged() and keyChanged(). */
  constructor(dialog, history, actions) {
    Object.assign(this, { dialog, history, actions, defaults: {} });
    this.rows = Object.keys(SAMPLING).map((name) => new SamplingRow(name));
    this.find('#sampling').append(...this.rows.map((row) => row.element));
    this.choice('language', (value) => setLanguage(value));
    this.choice('theme', (value) => applyTheme(value));
    const system = this.find('#system');
    system.value = preferences.system;
    system.addEventListener('change', () => savePreferences({ system: system.value }));
    this.find('#sampling-reset').addEventListener('click', () => this.rows.forEach((row) => row.set(null)));
    this.prepareHistory();
    this.prepareKey();
  }

  find(selector) {
    return this.dialog.querySelector(selector);
  }

  choice(name, apply) {
    for (const input of this.dialog.querySelectorAll(`input[name="${name}"]`)) {
      input.checked = input.value === preferences[name];
      input.addEventListener('change', () => {
        savePreferences({ [name]: input.value });
        apply(input.value);
      });
    }
  }

  open() {
    this.find('#forget-key').disabled = session.get('key') === '';
    openDialog(this.dialog);
  }

  /** Shows what a parameter is where nothing was chosen: the model's own default, or the server's. */
  showDefaults(model) {
    this.rows.forEach((row) => row.showDefault(model?.default_sampling?.[row.name]));
  }

  prepareHistory() {
    this.find('#export').addEventListener('click', () => {
      const url = URL.createObjectURL(new Blob([this.history.exportText()], { type: 'application/json' }));
      h('a', { href: url, download: `qwq-chats-${new Date().toISOString().slice(0, 10)}.json` }).click();
      setTimeout(() => URL.revokeObjectURL(url), 1000);
    });
    const file = this.find('#import-file');
    this.find('#import').addEventListener('click', () => file.click());
    file.addEventListener('change', () => this.importFile(file));
    this.find('#delete-all').addEventListener('click', async () => {
      if (!(await confirmAction('history.clear.ask', 'history.clear'))) return;
      await this.history.clear();
      this.actions.historyChanged();
    });
  }

  async importFile(input) {
    const [file] = input.files;
    input.value = '';
    if (file === undefined) return;
    try {
      const n = await this.history.importText(await file.text());
      toast('history.imported', { vars: { n } });
    } catch (error) {
      if (!(error instanceof SyntaxError)) throw error;
      toast('history.unreadable', { vars: { name: file.name } });
    }
    this.actions.historyChanged();
  }

  prepareKey() {
    const forget = this.find('#forget-key');
    forget.addEventListener('click', () => {
      session.set('key', '');
      forget.disabled = true;
      this.actions.keyChanged();
    });
  }
}

class SamplingRow {
  constructor(name) {
    this.name = name;
    const { min, max, step } = SAMPLING[name];
    const limits = { min, max: name === 'max_tokens' ? MAX_TOKENS_SLIDER : max, step };
    this.number = h('input', { type: 'text', inputmode: 'decimal', id: `sampling-${name}`, autocomplete: 'off' });
    this.slider = name === 'seed' ? null : h('input', { type: 'range', ...limits, label: `sampling.${name}` });
    this.reset = button('undo', { label: 'sampling.reset', onclick: () => this.set(null) });
    this.element = h(
      'div.sampling',
      {},
      h('label', { for: `sampling-${name}`, i18n: `sampling.${name}` }),
      this.reset,
      this.number,
      this.slider,
      h('small', { i18n: `sampling.${name}.hint` }),
    );
    this.number.addEventListener('change', () => this.write(this.number.value.trim()));
    this.slider?.addEventListener('input', () => this.set(Number(this.slider.value)));
    this.showDefault(undefined);
    this.show();
  }

  write(text) {
    const value = readSampling(this.name, text);
    const { min, max } = SAMPLING[this.name];
    if (value === null && text !== '') toast('sampling.invalid', { vars: { text, min, max } });
    this.set(value ?? (text === '' ? null : preferences.sampling[this.name]));
  }

  set(value) {
    savePreferences({ sampling: { ...preferences.sampling, [this.name]: value } });
    this.show();
  }

  show() {
    const value = preferences.sampling[this.name];
    this.number.value = value ?? '';
    this.reset.hidden = value === null;
    this.element.classList.toggle('chosen', value !== null);
    if (this.slider) this.slider.value = value ?? this.fallback ?? this.slider.max;
  }

  showDefault(value) {
    this.fallback = value ?? SAMPLING[this.name].neutral;
    if (this.fallback === null) {
      this.number.dataset.i18nPlaceholder = `sampling.${this.name}.open`;
      setText(this.number, { label: `sampling.${this.name}` });
    } else {
      this.number.placeholder = this.fallback;
    }
    this.show();
  }
}
