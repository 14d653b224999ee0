"""SmolLM2-135M out of its GGUF file, against `transformers` on the dequantised weights and against llama.cpp."""

import pytest
import torch
import transformers
from shared_text import TEXT

from qwq.checkpoint import convert, load


@pytest.fixture(scope="module")
def theirs(smollm2, tmp_path_factory):
    """`transformers`' Llama from the folder that `qwq convert --to hf` writes."""
    folder = tmp_path_factory.mktemp("smollm2") / "hf"
    convert("smollm2", "hf", folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.folder = folder
    return model


@pytest.fixture(scope="module")
def ids(smollm2):
    found = smollm2.tokenizer.encode(TEXT * 20)[:2000]
    assert len(found) == 2000
    return torch.tensor([found])


def perplexity(logits: torch.Tensor, ids: torch.Tensor) -> float:
    return float(torch.nn.functional.cross_entropy(logits[0, :-1].double(), ids[0, 1:]).exp())


@torch.no_grad()
def test_perplexity_of_2000_tokens_equals_transformers(smollm2, theirs, ids):
    ours, reference = perplexity(smollm2.logits(ids), ids), perplexity(theirs(ids).logits, ids)
    assert ours == pytest.approx(reference, rel=1e-4)


def test_greedy_tokens_equal_transformers(smollm2, theirs):
    messages = [{"role": "user", "content": "Explain in two sentences why the sky is blue."}]
    prompt = smollm2.chat_ids(messages)
    inputs = torch.tensor([prompt])
    # The mask is given: left to itself, generate() takes the end-of-turn tokens of the prompt for padding.
    options = {"attention_mask": torch.ones_like(inputs), "pad_token_id": 0, "eos_token_id": sorted(smollm2.stop_ids)}
    reference = theirs.generate(inputs, max_new_tokens=60, do_sample=False, **options)[0, len(prompt) :].tolist()
    reference = [t for t in reference if t not in smollm2.stop_ids]
    reply = smollm2.chat(messages, temperature=0, max_tokens=60)
    assert reply.content == smollm2.tokenizer.decode(reference)
    assert reply.usage.completion_tokens == len(reference)


def test_transformers_reads_the_converted_tokenizer_identically(smollm2, theirs):
    tokenizer = transformers.AutoTokenizer.from_pretrained(theirs.folder)
    assert tokenizer(TEXT, add_special_tokens=False)["input_ids"] == smollm2.tokenizer.encode(TEXT)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert rendered == smollm2.chat_ids(messages)


def test_converted_weights_come_back_identical(smollm2, theirs):
    again = load(theirs.folder)
    assert again.config == smollm2.config
    for (name, a), (_, b) in zip(smollm2.model.state_dict().items(), again.model.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_the_capital_of_france_is_paris(smollm2):
    reply = smollm2.chat([{"role": "user", "content": "What is the capital of France?"}], temperature=0, max_tokens=20)
    assert "Paris" in reply.content
    assert smollm2.generate("The capital of France is", max_tokens=4, temperature=0).strip().startswith("Paris")
