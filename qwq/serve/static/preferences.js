// What the person chose, in localStorage (the API key in sessionStorage, so it ends with the tab).

const KEY = 'qwq.preferences';

/** Sampling parameters: null leaves the model's own default. `neutral` is what the server takes where it has none. */
export const SAMPLING = {
  temperature: { min: 0, max: 2, step: 0.05, neutral: 1 },
  top_p: { min: 0.01, max: 1, step: 0.01, neutral: 1 },
  top_k: { min: 0, max: 200, step: 1, neutral: 0 },
  min_p: { min: 0, max: 1, step: 0.01, neutral: 0 },
  max_tokens: { min: 1, max: 1_000_000, step: 1, neutral: null },
  seed: { min: 0, max: 2 ** 53 - 1, step: 1, neutral: null },
};

const CHOICES = { language: ['auto', 'en', 'zh'], theme: ['auto', 'light', 'dark'] };
const DEFAULTS = { language: 'auto', theme: 'auto', model: '', system: '', sidebar: true, sampling: {} };

/** A number that the parameter may have, or null. */
export function readSampling(name, value) {
  const { min, max, step } = SAMPLING[name];
  const number = typeof value === 'string' && value.trim() === '' ? NaN : Number(value);
  if (value === null || value === undefined || !Number.isFinite(number) || number < min || number > max) return null;
  return step === 1 && !Number.isInteger(number) ? null : number;
}

function read(value) {
  const given = value !== null && typeof value === 'object' ? value : {};
  const preferences = { ...DEFAULTS };
  for (const [name, fallback] of Object.entries(DEFAULTS)) {
    if (name !== 'sampling' && typeof given[name] === typeof fallback) preferences[name] = given[name];
  }
  for (const [name, choices] of Object.entries(CHOICES)) {
    if (!choices.includes(preferences[name])) preferences[name] = 'auto';
  }
  preferences.sampling = Object.fromEntries(
    Object.keys(SAMPLING).map((name) => [name, readSampling(name, given.sampling?.[name])]),
  );
  return preferences;
}

function load() {
  try {
    return read(JSON.parse(localStorage.getItem(KEY)));
  } catch (error) {
    console.warn('preferences could not be read, so they start afresh:', error.message);
    return read(null);
  }
}

export const preferences = load();

export function savePreferences(changes) {
  Object.assign(preferences, changes);
  try {
    localStorage.setItem(KEY, JSON.stringify(preferences));
  } catch (error) {
    console.warn('preferences could not be kept:', error.message);
  }
}

/** The sampling parameters that were chosen, for a request. */
export function chosenSampling() {
  return Object.fromEntries(Object.entries(preferences.sampling).filter(([, value]) => value !== null));
}

/** Texts that end with the tab: the API key, and drafts. */
export const session = {
  get: (name) => sessionStorage.getItem(`qwq.${name}`) ?? '',
  set: (name, value) =>
    value === '' ? sessionStorage.removeItem(`qwq.${name}`) : sessionStorage.setItem(`qwq.${name}`, value),
};
