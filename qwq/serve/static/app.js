// The page's wiring: which chat is on the screen, which answers are being made, and who tells whom.

import { listModels } from './api.js';
import { Composer } from './composer.js';
import { addMessage, newChat, pathTo, showBranch } from './conversation.js';
import { askKey, prepareDialogs, toast } from './dialogs.js';
import { Follow } from './follow.js';
import { History } from './history.js';
import { setLanguage, t } from './i18n.js';
import { onKeys } from './keys.js';
import { Log } from './log.js';
import { preferences, savePreferences, session } from './preferences.js';
import { Run } from './run.js';
import { applyTheme, Settings } from './settings.js';
import { Sidebar } from './sidebar.js';
import { Welcome } from './welcome.js';

const $ = (selector) => document.querySelector(selector);
const RECONNECT = [1000, 2000, 4000, 8000, 15000]; // milliseconds between tries to reach the server

class App {
  constructor(history) {
    this.history = history;
    this.chat = newChat('');
    this.runs = new Map(); // chat id -> Run
    this.models = [];
    this.log = new Log($('#log'), {
      edit: (message, text) => this.ask(text, message.parent),
      regenerate: (message) => this.answer(message.parent),
      retry: (message) => this.retry(message),
      branch: (id) => this.showBranch(id),
      newChat: () => this.open(null),
      askKey: (message) => this.unlock(() => this.retry(message)),
    });
    this.composer = new Composer($('#composer'), {
      send: (text) => this.ask(text, this.chat.leaf),
      stop: () => this.stop(),
      editLast: () => this.running || this.log.editLast(),
    });
    this.sidebar = new Sidebar($('#sidebar'), history, (id) => this.runs.has(id), {
      open: (id) => this.open(id),
      rename: (chat, title) => this.rename(chat, title),
      remove: (chat) => this.remove(chat),
    });
    this.settings = new Settings($('#settings'), history, {
      historyChanged: () => this.historyChanged(),
      keyChanged: () => this.connect(),
    });
    this.welcome = new Welcome($('#welcome'), $('#examples'), (text) => this.ask(text, this.chat.leaf));
    this.follow = new Follow($('#scroller'), (atEnd) => $('#to-end').classList.toggle('shown', !atEnd));
    this.bind();
  }

  get running() {
    return this.runs.get(this.chat.id);
  }

  get model() {
    return this.models.find(({ id }) => id === preferences.model) ?? this.models[0];
  }

  get narrow() {
    return matchMedia('(max-width: 760px)').matches;
  }

  bind() {
    const click = (selector, action) => $(selector).addEventListener('click', action);
    click('#new-chat', () => this.open(null));
    click('#new-chat-top', () => this.open(null));
    click('#open-settings', () => this.settings.open());
    click('#open-shortcuts', () => $('#shortcuts').showModal());
    click('#to-end', () => this.follow.toEnd());
    for (const selector of ['#hide-sidebar', '#show-sidebar', '#scrim']) {
      click(selector, () => this.setSidebar(selector === '#show-sidebar', true));
    }
    $('#model').addEventListener('change', ({ target }) => this.chooseModel(target.value));
    addEventListener('hashchange', () => this.openHash());
    this.history.addEventListener('change', ({ detail }) => this.historyChanged(detail));
    this.history.addEventListener('lost', () => toast('history.lost', { ms: 12000 }));
    document.addEventListener('languagechange', () => this.refreshTitle());
    onKeys({
      newChat: () => this.open(null),
      focus: () => this.composer.focus(),
      stop: () => this.running && this.stop(),
      sidebar: () => this.setSidebar(!document.body.classList.contains('with-sidebar'), true),
      help: () => $('#shortcuts').showModal(),
    });
  }

  // The server ---------------------------------------------------------------------------------------------------------

  async connect(attempt = 0) {
    clearTimeout(this.reconnect);
    try {
      this.models = await listModels();
    } catch (error) {
      this.models = [];
      this.showModels(error.kind ?? 'broken');
      if (error.kind === 'key') return void this.unlock(() => this.connect());
      const wait = RECONNECT[Math.min(attempt, RECONNECT.length - 1)];
      this.reconnect = setTimeout(() => this.connect(attempt + 1), wait);
      return;
    }
    this.showModels(this.models.length === 0 ? 'empty' : null);
  }

  async unlock(then) {
    const key = await askKey();
    if (key === null) return;
    session.set('key', key);
    then();
  }

  showModels(problem) {
    const select = $('#model');
    select.replaceChildren(...this.models.map(({ id }) => new Option(id, id)));
    select.hidden = this.models.length === 0;
    if (this.model) select.value = this.model.id;
    this.problem = problem;
    this.showModel();
  }

  chooseModel(id) {
    savePreferences({ model: id });
    this.showModel();
    this.composer.focus();
  }

  showModel() {
    this.welcome.show(this.model, this.problem, () => (this.problem === 'key' ? this.unlock(() => this.connect()) : this.connect()));
    this.composer.setModel(this.model?.id ?? '');
    this.settings.showDefaults(this.model);
  }

  // The chat on the screen ---------------------------------------------------------------------------------------------

  open(id) {
    const known = id === null ? undefined : this.history.get(id);
    const hash = known ? `#${id}` : '';
    if (location.hash !== hash) window.history.pushState(null, '', hash || location.pathname);
    this.chat = known ?? newChat('');
    const { model } = this.chat;
    if (this.models.some((other) => other.id === model)) {
      savePreferences({ model });
      $('#model').value = model;
      this.showModel();
    }
    this.composer.show(known ? id : null);
    this.render();
    this.follow.toEnd();
    if (this.narrow) this.setSidebar(false);
    else this.composer.focus();
  }

  openHash() {
    const id = location.hash.slice(1);
    if (id !== (this.history.get(this.chat.id) ? this.chat.id : '')) this.open(this.history.get(id) ? id : null);
  }

  render() {
    this.log.show(this.chat);
    document.body.classList.toggle('empty', this.chat.leaf === null);
    this.composer.setRunning(Boolean(this.running));
    this.sidebar.refresh(this.chat.id);
    this.refreshTitle();
  }

  refreshTitle() {
    document.title = this.chat.title ? `${this.chat.title} – QwQ` : 'QwQ';
  }

  showBranch(id) {
    if (this.running) return;
    showBranch(this.chat, id);
    void this.history.save(this.chat);
    this.render();
  }

  // Questions and answers ----------------------------------------------------------------------------------------------

  /** Asks below the message `parent`; returns whether it could. */
  ask(text, parent) {
    if (this.running || this.model === undefined) {
      if (!this.running) toast('error.offline');
      return false;
    }
    const question = addMessage(this.chat, parent, { role: 'user', content: text });
    if (location.hash !== `#${this.chat.id}`) window.history.pushState(null, '', `#${this.chat.id}`);
    this.answer(question.id);
    return true;
  }

  answer(parent) {
    if (this.running || this.model === undefined) return;
    const { chat } = this;
    chat.model = this.model.id;
    const message = addMessage(chat, parent, { role: 'assistant', reasoning: '', model: chat.model, finish: null });
    const run = new Run(chat, message, () => this.history.save(chat));
    this.runs.set(chat.id, run);
    run.addEventListener('piece', ({ detail }) => this.log.take(message, detail));
    run.addEventListener('end', () => this.ended(run));
    const begun = run.start();
    this.composer.chatId = chat.id;
    void this.history.save(chat);
    this.render();
    this.follow.toEnd();
    this.say('status.answering');
    return begun;
  }

  ended(run) {
    this.runs.delete(run.chat.id);
    if (run.chat === this.chat) this.render();
    else this.sidebar.refresh();
    const { finish, error } = run.message;
    this.say(error ? `error.${error.kind}` : finish === 'stopped' ? 'finish.stopped' : 'status.done');
    if (error?.kind === 'key' && run.chat === this.chat) void this.unlock(() => this.retry(run.message));
    if (error?.kind === 'offline') void this.connect();
  }

  /** An answer that failed before it said anything is replaced; one that said something stays as a sibling. */
  retry(message) {
    if (this.running) return;
    if (message.content === '' && message.reasoning === '') delete this.chat.messages[message.id];
    void this.answer(message.parent);
  }

  stop() {
    this.running?.stop();
    this.composer.focus();
  }

  /** Tells a screen reader. */
  say(key) {
    $('#status').textContent = t(key);
  }

  // The history --------------------------------------------------------------------------------------------------------

  rename(chat, title) {
    Object.assign(chat, { title, named: true });
    void this.history.save(chat);
    this.refreshTitle();
  }

  async remove(chat) {
    const run = this.runs.get(chat.id);
    if (run) run.save = async () => {}; // its end must not bring the chat back
    run?.stop();
    await this.history.remove(chat.id);
    if (chat === this.chat) this.open(null);
    else this.sidebar.refresh();
    const restore = async () => {
      await this.history.save(chat);
      location.hash = chat.id;
    };
    toast('chat.deleted', { vars: { title: chat.title }, action: { text: 'undo', run: restore }, ms: 10000 });
  }

  /** Another tab, an import or a clean-up changed the history (`id`: of this chat only). */
  historyChanged(id = null) {
    const mine = this.history.get(this.chat.id);
    const concerned = id === null || id === this.chat.id;
    if (concerned && !this.running && this.chat.leaf !== null && mine !== this.chat) this.open(mine ? mine.id : null);
    else this.sidebar.refresh();
  }

  setSidebar(shown, keep = false) {
    document.body.classList.toggle('with-sidebar', shown);
    $('#sidebar').inert = !shown;
    if (keep && !this.narrow) savePreferences({ sidebar: shown });
  }
}

async function begin() {
  applyTheme(preferences.theme);
  prepareDialogs();
  const history = new History();
  const app = new App(history);
  setLanguage(preferences.language);
  app.setSidebar(preferences.sidebar && !app.narrow);
  await history.open();
  app.open(history.get(location.hash.slice(1)) ? location.hash.slice(1) : null);
  if (history.damaged > 0) toast('history.damaged', { vars: { n: history.damaged } });
  addEventListener('pagehide', () => app.runs.forEach((run) => void history.save(run.chat)));
  await app.connect();
  if (app.chat.model === '') return;
  app.open(app.chat.id); // now that the models are known, the chat's own is chosen
}

void begin();
