// The server's API: OpenAI's routes and server-sent events.

import { session } from './preferences.js';

/**
 * What went wrong, as a kind that the page has words for: "offline", "key", "busy" (with `wait` in seconds), "long",
 * "refused", "server", "broken". `detail` is the server's own sentence.
 */
export class ApiError extends Error {
  constructor(kind, detail = '', wait = 0) {
    super(`${kind}: ${detail}`);
    this.kind = kind;
    this.detail = detail;
    this.wait = wait;
  }
}

function headers() {
  const key = session.get('key');
  return key === '' ? {} : { Authorization: `Bearer ${key}` };
}

async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ApiError('offline', error.message);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const body = await response.json().catch(() => null); // a proxy answers in HTML
  const detail = body?.error?.message ?? `HTTP ${response.status}`;
  const wait = Number(response.headers.get('retry-after')) || 0;
  if (response.status === 401) return new ApiError('key', detail);
  if (response.status === 429 || (response.status === 503 && wait)) return new ApiError('busy', detail, wait || 5);
  if (body?.error?.code === 'context_length_exceeded') return new ApiError('long', detail);
  return new ApiError(response.status >= 500 ? 'server' : 'refused', detail);
}

/** The models that can chat: [{id, context_length, parameters, default_sampling}, ...]. */
export async function listModels() {
  const { data } = await (await request('/v1/models')).json();
  return data.filter((model) => model.chat !== false);
}

/**
 * Streams an answer as {content, reasoning, finish, usage}, each where there is one. Aborting `signal` frees the
 * server's slot and raises an AbortError.
 */
export async function* streamChat({ model, messages, sampling, signal }) {
  const body = { model, messages, ...sampling, stream: true, stream_options: { include_usage: true } };
  const response = await request('/v1/chat/completions', {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify(body),
    signal,
  });
  let finished = false;
  for await (const data of events(response.body)) {
    if (data === '[DONE]') return;
    const chunk = parse(data);
    if (chunk.error) throw new ApiError('server', chunk.error.message);
    const [choice] = chunk.choices ?? [];
    const { content = '', reasoning_content: thought, reasoning = '' } = choice?.delta ?? {};
    finished ||= Boolean(choice?.finish_reason);
    yield { content: content ?? '', reasoning: thought ?? reasoning ?? '', finish: choice?.finish_reason, usage: chunk.usage };
  }
  if (!finished) throw new ApiError('broken');
}

function parse(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new ApiError('broken', data.slice(0, 80));
  }
}

/** The data of each server-sent event. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = '';
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (buffer + value).split(/\r?\n/);
      buffer = lines.pop();
      for (const line of lines) {
        if (line.startsWith('data:')) yield line.slice(5).trim();
      }
    }
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ApiError('broken', error.message);
  } finally {
    reader.cancel().catch(() => {}); // it may have failed already, and that was raised
  }
}
