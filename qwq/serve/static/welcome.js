// What an empty chat shows: whom one talks to, and four questions to begin with.

import { h, setText } from './dom.js';
import { format, t } from './i18n.js';

const EXAMPLES = ['capital', 'poem', 'explain', 'code'];

export class Welcome {
  constructor(element, examples, ask) {
    this.element = element;
    this.about = element.querySelector('#about');
    this.shown = null;
    for (const name of EXAMPLES) {
      const card = h(
        'button.example',
        { type: 'button', on: { click: () => ask(t(`example.${name}`)) } },
        h('strong', { i18n: `example.${name}.title` }),
        h('span', { i18n: `example.${name}` }),
      );
      examples.append(card);
    }
    document.addEventListener('languagechange', () => this.shown?.());
  }

  /** Describes the model, or the `problem` (a kind of error) that there is none; `fix` is what its button does. */
  show(model, problem, fix) {
    this.shown = () => this.about.replaceChildren(...(problem ? this.explain(problem, fix) : describe(model)));
    this.shown();
    this.element.classList.toggle('problem', Boolean(problem));
  }

  explain(problem, fix) {
    const label = problem === 'key' ? 'key.enter' : 'retry';
    const text = h('span', { role: 'alert' });
    setText(text, { i18n: `error.${problem}` });
    return [text, h('button.plain', { type: 'button', i18n: label, on: { click: fix } })];
  }
}

function describe(model) {
  const { id, parameters, context_length: length } = model;
  const facts = [
    parameters && t('model.parameters', { n: format.parameters(parameters) }),
    length && t('model.context', { n: format.number(length) }),
  ];
  return [h('strong', {}, id), h('span', {}, facts.filter(Boolean).map((fact) => ` · ${fact}`).join(''))];
}
