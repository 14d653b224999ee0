"""SmolLM2 here and in llama.cpp, which reads the same file and quantises its activations to 8 bits."""

import pytest
from shared_text import TEXT

POSITIONS = 300


@pytest.fixture(scope="module")
def llama_cpp(smollm2_path):
    xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp (PyPI xllamacpp) is not installed")
    params = xllamacpp.CommonParams()
    params.model.path = str(smollm2_path)
    params.n_ctx, params.n_parallel, params.warmup = 1024, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
    return xllamacpp.Server(params)


def test_the_most_likely_token_agrees_at_95_percent_of_300_positions(smollm2, llama_cpp):
    ids = smollm2.tokenizer.encode(TEXT)
    ours = smollm2.logits([ids])[0].argmax(-1).tolist()
    agree = asked = 0
    for end in range(8, len(ids)):
        request = {"prompt": ids[:end], "n_predict": 1, "n_probs": 1, "temperature": 0, "cache_prompt": True}
        reply = llama_cpp.handle_completions(request)["choices"][0]
        if reply["logprobs"] is None:  # its server holds back a token that ends in the middle of a character
            continue
        asked += 1
        agree += reply["logprobs"]["content"][0]["id"] == ours[end - 1]
        if asked == POSITIONS:
            break
    assert asked == POSITIONS
    assert agree >= 0.95 * POSITIONS
