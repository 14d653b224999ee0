"""What a recipe would take, before it is started: `qwq train RECIPE --dry-run`."""

from qwq.recipe import Recipe


def memory_bytes(recipe: Recipe) -> dict[str, int]:
    """Bytes of weights, gradients, optimizer state and an estimate of activations, in fp32 on one device.

    Activations: what autograd keeps of one micro-batch, counted in the blocks' own tensors, and one chunk of logits.
    """
    model, training = recipe.model, recipe.training
    total, matrices = model.num_parameters(), model.num_parameters(embeddings=False)
    adamw = total - matrices if training.optimizer == "muon" else total
    tokens = training.micro_batch_size * recipe.data.seq_len
    heads = model.head_dim * (3 * model.num_attention_heads + 3 * model.num_key_value_heads)
    block = 6 * model.hidden_size + 2 * heads + 4 * model.intermediate_size
    logits = 2 * recipe.objective.chunk_size * model.vocab_size
    return {
        "weights": 4 * total,
        "gradients": 4 * total,
        "optimizer": 4 * (2 * adamw + (total - adamw)),
        "activations": 4 * (tokens * block * model.num_hidden_layers + logits),
    }


def dry_run(recipe: Recipe) -> dict:
    """The resolved recipe with parameters, memory and FLOPs, as plain JSON values."""
    model, training = recipe.model, recipe.training
    tokens = training.batch_size * recipe.data.seq_len
    flops = model.flops_per_token(recipe.data.seq_len // 2, training=True)
    memory = memory_bytes(recipe)
    return {
        "recipe": recipe.to_dict(),
        "parameters": {"total": model.num_parameters(), "active": model.num_parameters(),
                       "without_embeddings": model.num_parameters(embeddings=False)},
        "memory_bytes": {**memory, "total": sum(memory.values())},
        "tokens_per_step": tokens,
        "tokens": tokens * training.steps,
        "flops_per_token": flops,
        "flops": flops * tokens * training.steps,
    }  # fmt: skip
