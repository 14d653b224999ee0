// Keyboard shortcuts of the whole page; those of a text field are with the field.

const MAC = /Mac|iP(hone|ad)/.test(navigator.platform);

const isWriting = (target) => target.closest?.('input, textarea, select, [contenteditable]') !== null;

/** Calls `actions` (newChat, focus, stop, sidebar, help) for their keys. */
export function onKeys(actions) {
  for (const node of document.querySelectorAll('.mod')) node.textContent = MAC ? '⌘' : 'Ctrl';
  document.addEventListener('keydown', (event) => {
    if (event.isComposing || document.querySelector('dialog[open]') !== null) return;
    const action = actionOf(event);
    if (action === null) return;
    event.preventDefault();
    actions[action]();
  });
}

function actionOf(event) {
  const { key, shiftKey, altKey } = event;
  const mod = MAC ? event.metaKey : event.ctrlKey;
  if (mod && !altKey && !shiftKey && key.toLowerCase() === 'k') return 'newChat';
  if (mod && !altKey && !shiftKey && key.toLowerCase() === 'b') return 'sidebar';
  if (event.ctrlKey || event.metaKey || altKey) return null;
  if (key === 'Escape') return 'stop';
  if (isWriting(event.target)) return null;
  return { '/': 'focus', '?': 'help' }[key] ?? null;
}
