// One answer being made: it streams from the server into its message, whether or not the chat is on the screen.

import { ApiError, streamChat } from './api.js';
import { pathTo, requestMessages } from './conversation.js';
import { chosenSampling, preferences } from './preferences.js';

const SAVE_EVERY = 1000; // milliseconds: a page that goes away loses no more than this

export class Run extends EventTarget {
  /** Dispatches "piece" (detail {content, reasoning}) as text comes and "end" once. `save` stores the chat. */
  constructor(chat, message, save) {
    super();
    Object.assign(this, { chat, message, save });
    this.abort = new AbortController();
    this.started = performance.now();
    this.thinkingSince = null;
    this.firstPiece = null;
    this.lastSave = this.started;
  }

  stop() {
    this.abort.abort();
  }

  async start() {
    const { chat, message } = this;
    Object.assign(message, { reasoning: '', finish: null, usage: null, error: null, pieces: 0, thought_ms: 0, stream_ms: 0 });
    try {
      const messages = requestMessages(pathTo(chat, message.parent), preferences.system);
      const asked = { model: message.model, messages, sampling: chosenSampling(), signal: this.abort.signal };
      for await (const piece of streamChat(asked)) this.take(piece);
    } catch (error) {
      if (this.abort.signal.aborted) message.finish = 'stopped';
      else this.fail(error);
    }
    message.finish ??= 'broken';
    chat.updated = Date.now();
    await this.save(chat);
    this.dispatchEvent(new Event('end'));
  }

  fail(error) {
    if (!(error instanceof ApiError)) console.error(error);
    const known = error instanceof ApiError ? error : new ApiError('broken', error.message);
    this.message.finish = 'error';
    this.message.error = { kind: known.kind, detail: known.detail, until: Date.now() + 1000 * known.wait };
  }

  take({ content, reasoning, finish, usage }) {
    const { message } = this;
    const now = performance.now();
    if (usage) message.usage = usage;
    if (finish) message.finish = finish;
    if (!content && !reasoning) return;
    this.firstPiece ??= now;
    message.stream_ms = now - this.firstPiece;
    message.pieces += 1;
    if (reasoning) this.thinkingSince ??= this.started;
    if (reasoning || message.content === '') {
      if (this.thinkingSince !== null) message.thought_ms = now - this.thinkingSince;
    }
    message.reasoning += reasoning;
    message.content += content;
    this.dispatchEvent(new CustomEvent('piece', { detail: { content, reasoning } }));
    if (now - this.lastSave > SAVE_EVERY) {
      this.lastSave = now;
      void this.save(this.chat);
    }
  }
}
