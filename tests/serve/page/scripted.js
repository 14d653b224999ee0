// Before the page's own scripts: answers of the chat route come from the test, piece by piece, through window.script, which
// also remembers what passed by.
(() => {
  const real = window.fetch.bind(window);
  const script = { requests: [], answers: [], violations: [], toasts: [] };
  window.script = script;
  document.addEventListener('securitypolicyviolation', (event) => script.violations.push(event.violatedDirective));
  new MutationObserver((records) => {
    const added = records.flatMap(({ addedNodes }) => [...addedNodes]);
    script.toasts.push(...added.filter((node) => node.classList?.contains('toast')).map((node) => node.innerText));
  }).observe(document, { childList: true, subtree: true });
  window.fetch = (url, options = {}) => {
    if (!window.scripted || !String(url).endsWith('/v1/chat/completions')) return real(url, options);
    script.requests.push(JSON.parse(options.body));
    let controller;
    const body = new ReadableStream({ start: (given) => (controller = given) });
    const bytes = new TextEncoder();
    const send = (data) => controller.enqueue(bytes.encode(`data: ${JSON.stringify(data)}\n\n`));
    const answer = {
      say: (content) => send({ choices: [{ index: 0, delta: { content }, finish_reason: null }] }),
      think: (text) => send({ choices: [{ index: 0, delta: { reasoning_content: text }, finish_reason: null }] }),
      end: (finish = 'stop') => {
        send({ choices: [{ index: 0, delta: {}, finish_reason: finish }] });
        send({ choices: [], usage: { prompt_tokens: 31, completion_tokens: 128, total_tokens: 159 } });
        controller.enqueue(bytes.encode('data: [DONE]\n\n'));
        controller.close();
      },
      breakOff: () => controller.error(new TypeError('network error')),
      leave: () => controller.close(),
      aborted: false,
    };
    options.signal.addEventListener('abort', () => {
      answer.aborted = true;
      controller.error(new DOMException('aborted', 'AbortError'));
    });
    script.answers.push(answer);
    return Promise.resolve(new Response(body, { headers: { 'Content-Type': 'text/event-stream' } }));
  };
})();
