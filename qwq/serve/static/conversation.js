// A conversation is a tree: an edited question or another answer is a sibling of the first, and nothing is overwritten.
//
// chat: {id, title, named, created, updated, model, leaf, messages: {id: message}}
// message: {id, parent, role: "user" | "assistant", content, created} and, of an answer, {reasoning, model, finish, usage,
//   error, thought_ms, stream_ms, pieces}. Times are milliseconds, `created` and `updated` since 1970. Everything is JSON.

const TITLE_LENGTH = 60;

export const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(9)), (b) => b.toString(36).padStart(2, '0')).join('');

export function newChat(model) {
  const now = Date.now();
  return { id: newId(), title: '', named: false, created: now, updated: now, model, leaf: null, messages: {} };
}

/** Adds a message below `parent` (an id or null) and makes it the end of what is shown. */
export function addMessage(chat, parent, fields) {
  const message = { id: newId(), parent, created: Date.now(), content: '', ...fields };
  chat.messages[message.id] = message;
  chat.leaf = message.id;
  chat.updated = message.created;
  if (!chat.named && chat.title === '' && message.role === 'user') chat.title = titleOf(message.content);
  return message;
}

export function titleOf(text) {
  const line = text.trim().split('\n', 1)[0];
  return line.length <= TITLE_LENGTH ? line : `${line.slice(0, TITLE_LENGTH - 1).trimEnd()}…`;
}

/** The messages from the first to `leaf`, in order. */
export function pathTo(chat, leaf = chat.leaf) {
  const path = [];
  for (let id = leaf; id !== null; id = chat.messages[id].parent) path.unshift(chat.messages[id]);
  return path;
}

/** The messages that stand at the same place, oldest first, the message itself among them. */
export function siblings(chat, message) {
  return Object.values(chat.messages)
    .filter((other) => other.parent === message.parent)
    .sort((a, b) => a.created - b.created);
}

/** Shows another sibling: the end moves to the newest message below it. */
export function showBranch(chat, id) {
  let leaf = id;
  for (;;) {
    const below = Object.values(chat.messages).filter((message) => message.parent === leaf);
    if (below.length === 0) break;
    leaf = below.reduce((a, b) => (b.created >= a.created ? b : a)).id;
  }
  chat.leaf = leaf;
}

/** What the model is sent: answers without their thinking; an answer that says nothing is left out. */
export function requestMessages(path, system) {
  const said = path.filter((message) => message.content.trim() !== '').map(({ role, content }) => ({ role, content }));
  return system.trim() === '' ? said : [{ role: 'system', content: system.trim() }, ...said];
}

const isText = (value) => typeof value === 'string';
const isId = (value) => isText(value) && /^[A-Za-z0-9-]{1,64}$/.test(value);
const isTime = (value) => Number.isFinite(value) && value >= 0 && value < 8.64e15;
const timeOr = (value, other) => (isTime(value) ? value : other);

function readUsage(value) {
  const names = ['prompt_tokens', 'completion_tokens'];
  return value && names.every((name) => Number.isFinite(value[name])) ? value : null;
}

function readMessage(value) {
  if (!value || !isId(value.id) || !isText(value.content) || !['user', 'assistant'].includes(value.role)) return null;
  const { id, role, content } = value;
  const parent = isId(value.parent) ? value.parent : null;
  const message = { id, parent, role, content, created: timeOr(value.created, 0) };
  if (role === 'user') return message;
  return {
    ...message,
    reasoning: isText(value.reasoning) ? value.reasoning : '',
    model: isText(value.model) ? value.model : '',
    finish: isText(value.finish) ? value.finish : 'broken', // it was still streaming when the page went away
    usage: readUsage(value.usage),
    error: value.error && isText(value.error.kind) ? value.error : null,
    thought_ms: timeOr(value.thought_ms, 0),
    stream_ms: timeOr(value.stream_ms, 0),
    pieces: timeOr(value.pieces, 0),
  };
}

/** A chat from stored or imported data: what can be read of it, or null where that is nothing. */
export function readChat(value) {
  if (!value || typeof value !== 'object' || !isId(value.id) || !value.messages) return null;
  const messages = {};
  for (const raw of Object.values(value.messages)) {
    const message = readMessage(raw);
    if (message !== null) messages[message.id] = message;
  }
  const safe = (id) => isId(id) && Object.hasOwn(messages, id);
  for (const message of Object.values(messages)) {
    if (message.parent !== null && !safe(message.parent)) message.parent = null;
  }
  breakCycles(messages);
  const newest = Object.values(messages).reduce((a, b) => (a && a.created > b.created ? a : b), null);
  if (newest === null) return null;
  const created = timeOr(value.created, newest.created);
  const chat = {
    id: value.id,
    title: isText(value.title) ? value.title.slice(0, 200) : '',
    named: value.named === true,
    created,
    updated: timeOr(value.updated, created),
    model: isText(value.model) ? value.model : '',
    leaf: safe(value.leaf) ? value.leaf : null,
    messages,
  };
  if (chat.leaf === null) showBranch(chat, newest.id);
  return chat;
}

function breakCycles(messages) {
  for (const start of Object.values(messages)) {
    const seen = new Set();
    for (let message = start; message.parent !== null; message = messages[message.parent]) {
      seen.add(message.id);
      if (seen.has(message.parent)) message.parent = null;
      if (message.parent === null) break;
    }
  }
}
