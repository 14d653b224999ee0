"""What a recipe takes: memory, FLOPs, parameters. `qwq train RECIPE --dry-run` prints it for one device.

Weights and optimizer state are counted from the model itself on the meta device; activations by formula. Both are held
against the tensors of real steps in tests/train/test_plan.py.
"""

from dataclasses import dataclass

import torch

from qwq.model import ModelConfig, build
from qwq.recipe import Recipe
from qwq.train import optim


@dataclass(frozen=True)
class Weight:
    """One parameter: where it is, and what a step keeps for it."""

    name: str
    numel: int
    state: int  # numbers that its optimizer keeps beside it, per number of its own: Muon 1, AdamW 2, frozen 0

    @property
    def layer(self) -> int | None:
        """The number of its block; None outside of them."""
        return int(self.name.split(".layers.")[1].split(".")[0]) if ".layers." in self.name else None

    @property
    def expert(self) -> bool:
        """Whether it is stacked by expert."""
        return ".experts." in self.name


def weights(recipe: Recipe) -> list[Weight]:
    """Every parameter of the recipe's model, shared ones once."""
    with torch.device("meta"):
        model = build(recipe.model)
    kept = {}
    for optimizer in optim.build(model, recipe.training):
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            kept[parameter] = 2 if isinstance(optimizer, torch.optim.AdamW) else 1
    return [Weight(name, p.numel(), kept.get(p, 0)) for name, p in model.named_parameters()]


def block_activations(config: ModelConfig, layer: int, *, gpu: bool = False) -> tuple[int, int]:
    """Numbers that the backward pass needs of one token in a block: (of the residual stream, of what products read)."""
    query, key = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    kept = 2 * query + 2 * key + config.use_qk_norm * (query + key)  # q, k, v and the output; q and k before their norm
    kept += 2 * config.hidden_size  # what the two sublayers read
    if config.is_moe(layer):
        # kernels/experts.py: what is between the two products; on a GPU also the sorted tokens, in and out.
        each = 4 * config.moe_intermediate_size + 2 * config.hidden_size if gpu else 2 * config.moe_intermediate_size
        kept += config.num_experts_per_tok * each + 3 * config.num_experts + 4 * config.shared_expert_intermediate_size
    else:
        kept += (4 if config.gated_mlp else 2) * config.intermediate_size
    return 2 * config.hidden_size, kept


def activation_bytes(recipe: Recipe, layers: list[int], tokens: int, *, gpu: bool = False) -> int:
    """Bytes that `tokens` tokens keep in these layers: all in fp32, on a GPU all but the residual stream in bf16."""
    counts = [block_activations(recipe.model, layer, gpu=gpu) for layer in layers]
    return tokens * sum(4 * stream + (2 if gpu else 4) * kept for stream, kept in counts)


def head_bytes(recipe: Recipe, tokens: int, *, gpu: bool = False) -> int:
    """Bytes around the loss: hidden states and their gradient, the output matrix's own twice, a chunk of logits twice.

    A loss at an exit has its states and its gradients beside those of the end.
    """
    model, losses = recipe.model, 2 if recipe.objective.early_exit_loss_coef > 0 else 1
    matrix, chunk = model.vocab_size * model.hidden_size, min(recipe.objective.chunk_size, tokens)
    states = (1 + 2 * losses) * (2 if gpu else 4) * tokens * model.hidden_size
    return states + (1 + losses) * 4 * matrix + 2 * 4 * chunk * model.vocab_size


def memory_bytes(recipe: Recipe) -> dict[str, int]:
    """Bytes of weights, gradients, optimizer state and activations of one micro-batch, in fp32 on one device."""
    counted, tokens = weights(recipe), recipe.training.micro_batch_size * recipe.data.seq_len
    return {
        "weights": 4 * sum(w.numel for w in counted),
        "gradients": 4 * sum(w.numel for w in counted if w.state),
        "optimizer": 4 * sum(w.numel * w.state for w in counted),
        "activations": activation_bytes(recipe, list(range(recipe.model.num_hidden_layers)), tokens),
        "head": head_bytes(recipe, tokens),
    }


def dry_run(recipe: Recipe) -> dict:
    """The resolved recipe with parameters, memory and FLOPs, as plain JSON values."""
    model, training = recipe.model, recipe.training
    tokens = training.batch_size * recipe.data.seq_len
    flops = model.flops_per_token(recipe.data.seq_len // 2, training=True)
    memory = memory_bytes(recipe)
    return {
        "recipe": recipe.to_dict(),
        "parameters": parameters(model),
        "memory_bytes": {**memory, "total": sum(memory.values())},
        "tokens_per_step": tokens,
        "tokens": tokens * training.steps,
        "flops_per_token": flops,
        "flops": flops * tokens * training.steps,
    }


def parameters(model: ModelConfig) -> dict[str, int]:
    """How many in total, how many one token passes through, how many without embeddings."""
    return {
        "total": model.num_parameters(),
        "active": model.num_parameters(active=True),
        "without_embeddings": model.num_parameters(embeddings=False),
    }
