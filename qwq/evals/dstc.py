"""Schema-guided dialogue state (DSTC8, arXiv:1909.05855) by prompt, scored as the SGD baseline's scorer does."""

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qwq.errors import QwqError
from qwq.evals.files import Source, read_json, some
from qwq.evals.task import Example, Split, Task, mean


def token_sort_ratio(a: str, b: str) -> float:
    """Likeness of two values from 0 to 1 in hundredths, whatever the order of their words: fuzzywuzzy's."""
    a, b = (" ".join(sorted(re.sub(r"[\W_]", " ", text.lower()).split())) for text in (a, b))
    return round(100 * difflib.SequenceMatcher(None, a, b).ratio()) / 100 if a or b else 1.0


def joint_goal_accuracy(truth: Mapping[str, Sequence[str]], predicted: Mapping[str, str], service: dict) -> float:
    """Product over the slots of a service's schema. `truth` holds every spelling of a value that counts as right.

    Categorical values must be equal, others are compared fuzzily; a slot that is filled on one side only is wrong.
    """
    score = 1.0
    for slot in service["slots"]:
        expected, given = truth.get(slot["name"]), predicted.get(slot["name"])
        if expected is None or given is None:
            score *= expected is given
        elif slot["is_categorical"]:
            score *= expected[0] == given
        else:
            score *= max(token_sort_ratio(value, given) for value in expected)
    return score


def slot_f1(truth: Sequence[tuple[str, str]], predicted: Sequence[tuple[str, str]]) -> float:
    """F1 of the (slot, value) pairs of one frame; a side without pairs makes no mistakes, as the baseline counts."""
    same = (Counter(predicted) & Counter(truth)).total()
    precision, recall = (same / len(side) if side else 1.0 for side in (predicted, truth))
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


class Dstc(Task):
    """The state after a user's turn, which the model writes as "slot = value; ..." from schema and dialogue.

    slot_f1 is the baseline's slot tagging F1, the mean over frames: non-categorical values that stand in the turn
    itself. Most frames have none, and a model that writes nothing is right there.
    """

    name, fewshot, max_tokens = "dstc", 2, 96
    metrics = {"joint_goal_accuracy": mean("joint"), "slot_f1": mean("slot_f1")}  # noqa: RUF012

    def load(self, source: Source) -> Split:
        folder, train = source.need("sgd/test", "sgd/dev"), source.find("sgd/train")
        examples = frames(folder)
        official = folder.name == "test" and len({example.group for example in examples}) == 4201
        return Split(examples, official, None if train is None else frames(train))

    def grade(self, example: Example, answer: Any) -> dict[str, float]:
        frame, service, utterance = example.target
        categorical = {slot["name"]: slot["is_categorical"] for slot in service["slots"]}
        predicted = {slot: value for slot, value in parse_state(answer[0]).items() if slot in categorical}
        said = [(s["slot"], utterance[s["start"] : s["exclusive_end"]]) for s in frame["slots"]]
        found = [(slot, utterance.lower().find(value.lower()), len(value)) for slot, value in predicted.items()]
        tagged = [(slot, utterance[at : at + size]) for slot, at, size in found if at >= 0]
        spans = ([(s, v) for s, v in pairs if not categorical.get(s, True)] for pairs in (said, tagged))
        joint = joint_goal_accuracy(frame["state"]["slot_values"], predicted, service)
        return {"joint": joint, "slot_f1": slot_f1(*spans)}


def parse_state(text: str) -> dict[str, str]:
    """ "a = x; b = y" -> {"a": "x", "b": "y"}; what is not so is left out."""
    pairs = (part.partition("=") for part in text.split(";"))
    return {slot.strip(): value.strip() for slot, mark, value in pairs if mark and value.strip()}


def frames(folder: Path) -> list[Example]:
    """An example for every service in every turn of a user, from a folder of the official archive."""
    examples: list[Example] = []
    path = folder / "schema.json"
    try:
        services = {service["service_name"]: service for service in read_json(path)}
        for path in sorted(folder.glob("dialogues_*.json")):
            for dialogue in read_json(path):
                text, group = "", dialogue["dialogue_id"]
                for number, turn in enumerate(dialogue["turns"]):
                    text += f"\n{turn['speaker'].title()}: {turn['utterance']}"
                    for frame in turn["frames"] if turn["speaker"] == "USER" else ():
                        service = services[frame["service"]]
                        state = [f"{slot} = {values[0]}" for slot, values in frame["state"]["slot_values"].items()]
                        name, answer = f"{group}-{number}-{frame['service']}", f" {'; '.join(state) or 'none'}"
                        target = (frame, service, turn["utterance"])
                        examples.append(Example(name, f"{_slots(service)}{text}\nState:", answer, (), target, group))
    except (LookupError, TypeError, AttributeError) as error:
        raise QwqError(f"{path}: not in the format of schema-guided dialogue: {error!r}") from None
    return some(examples, folder)


def _slots(service: dict) -> str:
    values = {
        s["name"]: f": {', '.join(s['possible_values'])}" if s["is_categorical"] else "" for s in service["slots"]
    }
    return "Slots: " + "; ".join(f"{s['name']} ({s['description']}{values[s['name']]})" for s in service["slots"])
