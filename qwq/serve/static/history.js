// The history: chats in this browser's IndexedDB, all of them in memory while the page is open. Other tabs are told of
// changes. Where the browser keeps nothing (a private window may refuse), the history lasts as long as the page.

import { newId, readChat } from './conversation.js';

const NAME = 'qwq';
const FORMAT = 'qwq-chats';

const wait = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

function openDatabase() {
  const request = indexedDB.open(NAME, 1);
  request.onupgradeneeded = () => request.result.createObjectStore('chats', { keyPath: 'id' });
  return wait(request);
}

export class History extends EventTarget {
  /** Dispatches "change" when another tab changed it, and "lost" when something could not be stored. */
  constructor() {
    super();
    this.chats = new Map();
    this.database = null;
    this.damaged = 0; // stored records that could not be read
    this.channel = new BroadcastChannel(NAME);
    this.channel.onmessage = ({ data }) => this.reload(data);
  }

  async open() {
    try {
      this.database = await openDatabase();
      const stored = await wait(this.store('readonly').getAll());
      for (const record of stored) this.take(record);
    } catch (error) {
      this.fail(error);
    }
  }

  store(mode) {
    return this.database.transaction('chats', mode).objectStore('chats');
  }

  take(record) {
    const chat = readChat(record);
    if (chat === null) this.damaged += 1;
    else this.chats.set(chat.id, chat);
  }

  fail(error) {
    console.warn('history:', error);
    this.dispatchEvent(new CustomEvent('lost', { detail: error }));
  }

  /** Newest first; only those that hold `query` in title or text, where one is given. */
  list(query = '') {
    const wanted = query.trim().toLowerCase();
    const holds = (text) => text.toLowerCase().includes(wanted);
    return [...this.chats.values()]
      .filter((chat) => holds(chat.title) || Object.values(chat.messages).some((m) => holds(m.content)))
      .sort((a, b) => b.updated - a.updated);
  }

  get(id) {
    return this.chats.get(id);
  }

  async save(chat) {
    this.chats.set(chat.id, chat);
    await this.write(chat.id, (store) => store.put(chat));
  }

  async remove(id) {
    this.chats.delete(id);
    await this.write(id, (store) => store.delete(id));
  }

  async clear() {
    this.chats.clear();
    await this.write(null, (store) => store.clear());
  }

  async write(id, change) {
    if (this.database === null) return;
    try {
      await wait(change(this.store('readwrite')));
      this.channel.postMessage(id);
    } catch (error) {
      this.fail(error);
    }
  }

  async reload(id) {
    if (this.database === null) return;
    const records = id === null ? [] : [await wait(this.store('readonly').get(id))];
    if (id === null) this.chats.clear();
    else if (records[0] === undefined) this.chats.delete(id);
    else this.take(records[0]);
    this.dispatchEvent(new CustomEvent('change', { detail: id }));
  }

  /** Everything as the text of a JSON file. */
  exportText() {
    return JSON.stringify({ format: FORMAT, version: 1, chats: this.list() }, null, 1);
  }

  /** Adds the chats of an exported file; one that is here in another form gets an id of its own. Returns how many. */
  async importText(text) {
    const data = JSON.parse(text);
    if (data?.format !== FORMAT || !Array.isArray(data.chats)) throw new SyntaxError(`no file of format ${FORMAT}`);
    const chats = data.chats.map(readChat).filter((chat) => chat !== null);
    for (const chat of chats) {
      const mine = this.get(chat.id);
      if (mine !== undefined && JSON.stringify(mine.messages) !== JSON.stringify(chat.messages)) chat.id = newId();
      await this.save(chat);
    }
    return chats.length;
  }
}
