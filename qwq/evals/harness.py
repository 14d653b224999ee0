"""lm-evaluation-harness's view of our models: its tasks run on them (`pip install lm-eval`).

from qwq.evals.harness import Harness
lm_eval.simple_evaluate(model=Harness("smollm2"), tasks=["lambada_openai"])
"""

from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from tqdm import tqdm

from qwq.checkpoint import load
from qwq.engine import LanguageModel
from qwq.evals.requests import Requests


class Harness(LM):
    """`LM` over a loaded `LanguageModel`, or over the name or path of a model."""

    def __init__(self, model: LanguageModel | str, batch_size: int = 16):
        super().__init__()
        lm = LanguageModel(load(model), max_batch_size=batch_size) if isinstance(model, str) else model
        self.requests = Requests(lm, batch_size)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """(log p in nats, whether greedy decoding writes it) of each (context, continuation)."""
        contexts: dict[str, list[int]] = {}  # continuations of one context are one request
        for i, request in enumerate(requests):
            contexts.setdefault(request.args[0], []).append(i)
        asked, places = [(c, [requests[i].args[1] for i in at]) for c, at in contexts.items()], list(contexts.values())
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for number, likelihoods in tqdm(self.requests.likelihoods(asked), total=len(asked), desc="loglikelihood"):
            for i, likelihood in zip(places[number], likelihoods, strict=True):
                answers[i] = likelihood.nats, likelihood.greedy
        return answers

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """log p in nats of each text."""
        found = dict(self.requests.rolling([request.args[0] for request in requests]))
        return [found[i] for i in range(len(requests))]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Texts up to one of `until`; greedy unless `do_sample` and a temperature say otherwise."""
        kinds: dict[str, list[int]] = {}  # requests with the same settings run together
        for i, request in enumerate(requests):
            kinds.setdefault(repr(request.args[1]), []).append(i)
        texts = [""] * len(requests)
        for at in kinds.values():
            sampling = _sampling(requests[at[0]].args[1])
            for number, (written, _) in self.requests.generate([requests[i].args[0] for i in at], **sampling):
                texts[at[number]] = written[0]
        return texts


def _sampling(given: dict[str, Any]) -> dict[str, Any]:
    until = given.get("until", [])
    sampling = {"max_tokens": given.get("max_gen_toks", 256), "stop": [until] if isinstance(until, str) else until}
    if given.get("do_sample") and given.get("temperature", 1.0) > 0:
        sampling |= {name: given[name] for name in ("temperature", "top_p", "top_k") if name in given}
    return sampling
