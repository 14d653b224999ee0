// Runs before the first paint, so that a dark page never flashes white. The rest of the preferences is read later.
(() => {
  let theme = 'auto';
  try {
    theme = JSON.parse(localStorage.getItem('qwq.preferences'))?.theme;
  } catch {
    // Unreadable preferences are reported by preferences.js; here the system's theme is right.
  }
  if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
})();
