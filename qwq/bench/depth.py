"""`qwq bench depth`: what dynamic depth buys.

Speculation: tokens a second of one reply with the first layers as draft, against plain decoding of the same model by
the same kernel; the model is trained here on the demo corpus with exits (LayerSkip), which `train` keeps and resumes.
Hops: a task whose items need more or fewer steps; how deep a token goes, what that costs, and what it gets right.
Mixture: how far a mixture-of-depths model in decoding is from what it was in training.
"""

import dataclasses
import functools
import statistics
import threading
import time
from pathlib import Path

import torch
from torch import Tensor

from qwq.bench import common
from qwq.bench.runs import prepare
from qwq.checkpoint import native
from qwq.data.documents import read_documents
from qwq.data.loader import PackedLoader
from qwq.engine import ComputePolicy, Engine, SamplingParams
from qwq.model import Decoder, KVCache, ModelConfig
from qwq.model.depth import MixtureOfDepthsBlock, filling_flops, flops_of_token, leave_early
from qwq.objectives import Batch, CausalLM
from qwq.objectives.early_exit import loss_sum
from qwq.recipe import DataConfig, ObjectiveConfig, Recipe, TokenizerConfig, TrainingConfig
from qwq.tokenizer import load_tokenizer
from qwq.train import optim, train
from qwq.train.gradients import compute_gradients

PROMPT, REPLY = 64, 96  # tokens
SETTINGS = {"greedy": 0.0, "temperature-0.7": 0.7}
DRAFTS, TUNED_ON = (2, 3, 4, 6, 8, 12), 8  # guesses that are tried, on so many prompts that are not measured
CONFIDENCE = 0.95
NODES, HOPS, QUERIES = 8, 5, 24  # of the task: nodes of a graph, 0 to 4 steps, questions about one graph


def run(
    json_path: common.JsonPath = None,
    *,
    folder: Path = Path("bench-depth"),
    steps: int = 1200,
    hop_steps: int = 1500,
    mixture_steps: int = 400,
    prompts: int = 24,
    identical: int = 200,
) -> dict:
    """Train both models in `folder` (what is finished there is taken from there), then measure."""
    prepare(folder)
    rows, more = speculation(_trained(folder, steps), _prompts(folder, max(prompts, identical)), prompts, identical)
    hop_rows, hop_more = hops(hop_steps, folder / "hops.pt")
    more = {"speculation": more, "hops": hop_more, "mixture": mixture(folder, mixture_steps)}
    return common.report("depth", rows + hop_rows, common.limits(), common.versions(), json_path, **more)


# Speculation ----------------------------------------------------------------------------------------------------------


def _trained(folder: Path, steps: int) -> Decoder:
    """12 layers, 256 wide, an exit after the second; one thread, some 20 minutes."""
    recipe = Recipe(
        name="depth-12",
        model=ModelConfig(num_hidden_layers=12, use_qk_norm=True, exit_layers=(1,)),
        data=DataConfig(path=str(folder / "tokens")),
        tokenizer=TokenizerConfig(path=str(folder / "tokenizer")),
        objective=ObjectiveConfig(early_exit_loss_coef=1.0, layer_dropout=0.1),
        training=TrainingConfig(
            steps=steps, batch_size=2, micro_batch_size=2, zero_residual=False, save_every=200, eval_tokens=10_000
        ),
    )
    tokenizer = load_tokenizer(folder / "tokenizer")
    result = train(recipe, folder / "tokens", tokenizer, folder / "depth-12", resume=True)
    model = native.load_model(result.checkpoint)[1]
    assert isinstance(model, Decoder)
    return model.eval()


def _prompts(folder: Path, count: int) -> list[list[int]]:
    """The beginnings of held-out documents, en, zh and code in turn."""
    tokenizer, domains = load_tokenizer(folder / "tokenizer"), []
    for name in ("en", "zh", "code"):
        documents = read_documents(folder / "tokens" / "heldout" / f"{name}.jsonl.zst")
        pieces = (ids[at : at + PROMPT] for ids in (tokenizer.encode(d.text) for d in documents if d.text)
                  for at in range(0, max(1, len(ids) - PROMPT), 4 * PROMPT))  # fmt: skip
        domains.append([piece for piece, _ in zip(pieces, range(count), strict=False)])
    return [piece for group in zip(*domains, strict=False) for piece in group][:count]


def speculation(model: Decoder, prompts: list[list[int]], timed: int, identical: int) -> tuple[list[common.Row], dict]:
    """Rows of both settings over the first `timed` prompts, a reply of each contender for each prompt in turn.

    How many tokens are guessed at a time is chosen on the last prompts. And over `identical` prompts the greedy replies
    that are not those of full depth, with how far the two best logits are apart where they part.
    """
    engine = Engine(model, max_batch_size=1)
    policies = {"speculative": ComputePolicy("speculative"), "full": ComputePolicy()}
    more: dict = {"kernel": type(engine.decode).__name__, "prompt": PROMPT, "reply": REPLY, "layers_a_token": {}}
    rows, more["draft_tokens"] = [], {}
    try:
        for setting, temperature in SETTINGS.items():
            spent: list[float] = []
            swept = _sweep(engine, prompts[-TUNED_ON:], temperature)
            more["draft_tokens"][setting] = swept
            best = max(swept, key=lambda count: swept[count])
            policies["speculative"] = ComputePolicy("speculative", draft_tokens=best)
            queues = {name: iter(enumerate(prompts[:timed])) for name in policies}

            def rate(name: str, temperature: float = temperature, queues: dict = queues, spent: list = spent) -> float:
                seed, prompt = next(queues[name])
                params = SamplingParams(REPLY, temperature, seed=seed, compute=policies[name])
                tokens, seconds, layers = _reply(engine, prompt, params)
                if name == "speculative":
                    spent.append(layers / len(tokens))
                return (len(tokens) - 1) / seconds

            rates = common.interleave({name: functools.partial(rate, name) for name in policies}, timed)
            case = f"speculative-{setting}-{torch.get_num_threads()}-threads"
            peer_setting = f"the same model, kernel and engine; {best} tokens guessed at a time"
            where = {"peer": "qwq-full-depth", "peer_setting": peer_setting, "unit": "tokens/s"}
            rows.append(common.compare(case, rates["speculative"], rates["full"], **where))  # type: ignore[arg-type]
            more["layers_a_token"][setting] = round(statistics.mean(spent), 2)
        replies = {
            name: [_reply(engine, p, SamplingParams(32, 0.0, compute=policy))[0] for p in prompts[:identical]]
            for name, policy in policies.items()
        }
    finally:
        engine.close()
    distances = []
    for prompt, ours, theirs in zip(prompts, replies["speculative"], replies["full"], strict=False):
        place = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), None)
        if place is not None:
            with torch.no_grad():
                best = model(torch.tensor([prompt + theirs[:place]]))[0, -1].topk(2).values
            distances.append(float(best[0] - best[1]))
    return rows, more | {"compared": len(replies["full"]), "different": len(distances), "distances": distances}


def _sweep(engine: Engine, prompts: list[list[int]], temperature: float) -> dict[int, float]:
    """Median tokens a second by the number of tokens that are guessed at a time, prompt by prompt in turn."""
    rates: dict[int, list[float]] = {count: [] for count in DRAFTS}
    for seed, prompt in enumerate(prompts):
        for count in DRAFTS:
            policy = ComputePolicy("speculative", draft_tokens=count)
            tokens, seconds, _ = _reply(engine, prompt, SamplingParams(REPLY, temperature, seed=seed, compute=policy))
            rates[count].append((len(tokens) - 1) / seconds)
    return {count: round(statistics.median(values), 1) for count, values in rates.items()}


def _reply(engine: Engine, prompt: list[int], params: SamplingParams) -> tuple[list[int], float, int]:
    """Tokens, seconds from the first to the last, layers that were computed for them."""
    times: list[float] = []
    tokens: list[int] = []
    ended = threading.Event()

    def on_token(request: object, token: int | None, reason: str | None) -> None:
        if token is None:
            ended.set()
        else:
            times.append(time.perf_counter())
            tokens.append(token)

    request = engine.submit(prompt, params, on_token)
    ended.wait()
    return tokens, times[-1] - times[0], request.layers


# Hops -----------------------------------------------------------------------------------------------------------------


def graphs(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """`count` sequences: a permutation of the nodes as one token an edge, in any order, then questions "k steps from
    node i" of one token each. ids [count, T], labels (the node reached, at the questions), hops [count, QUERIES]."""
    target = torch.rand(count, NODES, generator=generator).argsort(1)
    order = torch.rand(count, NODES, generator=generator).argsort(1)
    hops = torch.randint(HOPS, (count, QUERIES), generator=generator)
    start = torch.randint(NODES, (count, QUERIES), generator=generator)
    reached = start.clone()
    for step in range(1, HOPS):
        reached = torch.where(hops >= step, target.gather(1, reached), reached)
    edges = NODES + order * NODES + target.gather(1, order)
    questions = NODES + NODES * NODES + hops * NODES + start
    unlabelled = torch.full_like(edges, -100)
    return torch.cat((edges, questions), 1), torch.cat((unlabelled, reached), 1), hops


def hops(steps: int, path: Path | None = None, *, layers: int = 6, test: int = 40) -> tuple[list[common.Row], dict]:
    """Train (or take from `path`) a model with an exit after every layer; answer held-out questions one by one.

    At full depth and leaving early: a row for each number of hops, FLOPs a token; mean depth and accuracy beside them.
    """
    config = ModelConfig(
        vocab_size=NODES + NODES * NODES + HOPS * NODES, hidden_size=64, intermediate_size=192, head_dim=32,
        num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=1, use_qk_norm=True,
        exit_layers=tuple(range(layers - 1)),
    )  # fmt: skip
    model = Decoder(config)
    model.init_weights(0)
    if path is not None and path.is_file():
        model.load_state_dict(torch.load(path, weights_only=True))
    else:
        _learn(model, steps)
        if path is not None:
            torch.save(model.state_dict(), path)
    ids, labels, asked = graphs(test, torch.Generator().manual_seed(1))
    results = {confidence: _answer(model.eval(), ids, confidence) for confidence in (CONFIDENCE, 2.0)}
    right = {confidence: found == labels[:, NODES:] for confidence, (found, _, _) in results.items()}
    rows: list[common.Row] = []
    by_hops: list[dict[str, float]] = []
    for count in range(HOPS):
        these = asked == count
        ours, theirs = (float(results[c][2][these].mean()) for c in (CONFIDENCE, 2.0))
        case = f"early-exit-{count}-hops"
        ratio = theirs / ours
        setting = f"{layers} layers of 64"
        rows.append(
            common.Row(case, "qwq-full-depth", setting, ours, theirs, "FLOPs/token", ratio, (ratio, ratio), None)
        )
        found = {"hops": count, "mean_depth": float(results[CONFIDENCE][1][these].mean())}
        found |= {"accuracy": float(right[CONFIDENCE][these].float().mean())}
        found |= {"accuracy_full": float(right[2.0][these].float().mean()), "flops_share": 1 / ratio}
        by_hops.append({key: round(value, 4) for key, value in found.items()})
    return rows, {"steps": steps, "confidence": CONFIDENCE, "by_hops": by_hops}


def _learn(model: Decoder, steps: int) -> None:
    training = dataclasses.replace(TrainingConfig(), steps=steps, weight_decay=0.0)
    optimizers, parameters = optim.build(model, training), list(model.parameters())
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        ids, labels, _ = graphs(64, generator)
        loss = loss_sum(model, Batch(ids, labels), early_exit_loss_coef=1.0, generator=generator)
        (loss / labels.numel()).backward()
        optim.clip(parameters, 1.0)
        optim.update(optimizers, optim.learning_rate_factor(step, training))


@torch.no_grad()
def _answer(model: Decoder, ids: Tensor, confidence: float) -> tuple[Tensor, Tensor, Tensor]:
    """Best node, depth and FLOPs of every question, one decoded after the other; each [count, QUERIES]."""
    config, count = model.config, len(ids)
    found, depths = torch.zeros(count, QUERIES, dtype=torch.long), torch.zeros(count, QUERIES)
    cost = torch.zeros(count, QUERIES)
    for item in range(count):
        rows = KVCache(config, 1, torch.float32).rows(0, 1)
        model.hidden(ids[item : item + 1, :NODES], cache=rows)
        for place in range(QUERIES):
            at = NODES + place
            logits, depth = leave_early(model, ids[item : item + 1, at : at + 1], rows, confidence)
            tried = depth if confidence <= 1 else 1
            found[item, place], depths[item, place] = logits[0, 0, :NODES].argmax(), depth
            cost[item, place] = flops_of_token(config, depth, at, heads=tried) + filling_flops(config, depth)
    return found, depths, cost


# Mixture of depths ----------------------------------------------------------------------------------------------------


def mixture(folder: Path, steps: int) -> dict[str, float]:
    """Train a small mixture-of-depths model on the token shards in `folder`, then read 20 further batches twice.

    Nats a token where the best of each sequence go through, as in training; where each token goes by its own score, as
    in decoding; and the share of tokens that do so, beside the capacity.
    """
    config = ModelConfig(
        hidden_size=128, intermediate_size=384, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, use_qk_norm=True, mod_layers=(1, 3, 5),
    )  # fmt: skip
    model, loader = Decoder(config), PackedLoader(folder / "tokens", 4, 256, 0, checksums=False)
    model.init_weights(0)
    training = dataclasses.replace(TrainingConfig(), steps=steps)
    optimizers, objective = optim.build(model, training), CausalLM()
    for step in range(steps):
        compute_gradients(model, [next(loader)], objective)
        optim.clip(list(model.parameters()), 1.0)
        optim.update(optimizers, optim.learning_rate_factor(step, training))
    blocks = [layer for layer in model.model.layers if isinstance(layer, MixtureOfDepthsBlock)]
    went: list[float] = []

    def note(_: object, __: object, scores: Tensor) -> None:
        went.append(float((scores > 0).float().mean()))

    best, own = 0.0, 0.0
    for input_ids, labels in (next(loader) for _ in range(20)):
        batch = Batch(input_ids, labels)
        best += float(objective.loss(model, batch).detach()) / labels.numel() / 20
        hooks = [block.mod_router.register_forward_hook(note) for block in blocks]
        with torch.no_grad():
            own += float(objective.loss(model, batch)) / labels.numel() / 20
        for hook in hooks:
            hook.remove()
    found = {"best_of_sequence": best, "own_score": own, "share": statistics.mean(went), "steps": steps}
    return {name: round(value, 4) for name, value in found.items()} | {"capacity": config.mod_capacity}
