"""Imported models of each family give the hidden states of transformers (small random models)."""

from copy import deepcopy
from dataclasses import replace

import jax
import numpy as np
import pytest
from hf_folder import write_tokenizer

from jaxcpt.embed import Embedder
from jaxcpt.interop import Choices, import_model
from jaxcpt.model import encode, make_cells, make_encoder
from jaxcpt.packing import CellArrays, Place

torch = pytest.importorskip("torch", reason="needs the interop extra")
transformers = pytest.importorskip("transformers", reason="needs the interop extra")

LENGTHS = (21, 3, 9, 40, 2, 17)
ROW, LONGEST = 44, 40
SIZES = {
    "vocab_size": 90,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
GPT2 = {"vocab_size": 90, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}

MODELS = {
    "bert": ("Bert", "Model", SIZES),
    "bert_tanh_with_head": ("Bert", "ForMaskedLM", SIZES | {"hidden_act": "gelu_new"}),
    "roberta": ("Roberta", "Model", SIZES | {"pad_token_id": 1}),
    "xlm_roberta_with_head": ("XLMRoberta", "ForMaskedLM", SIZES | {"type_vocab_size": 1}),
    "gpt2_tied": ("GPT2", "LMHeadModel", GPT2),
    "gpt2_wide": ("GPT2", "Model", GPT2 | {"n_inner": 40, "activation_function": "relu"}),
    "gpt_neox": ("GPTNeoX", "ForCausalLM", SIZES | {"rotary_pct": 0.25}),
    "gpt_neox_not_parallel": (
        "GPTNeoX",
        "Model",
        SIZES | {"rotary_pct": 0.5, "use_parallel_residual": False, "rope_scaling": LINEAR},
    ),
    "llama_untied": ("Llama", "ForCausalLM", GROUPED | {"rope_parameters": LLAMA3}),
    "llama_tied": ("Llama", "ForCausalLM", SIZES | {"tie_word_embeddings": True}),
    "llama_linear": ("Llama", "Model", GROUPED | {"rope_parameters": LINEAR}),
    "mistral": ("Mistral", "Model", GROUPED | {"head_dim": 16, "sliding_window": LONGEST}),
    "qwen2": ("Qwen2", "ForCausalLM", GROUPED | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", "Model", GROUPED | {"head_dim": 16}),
    "qwen3_bidirectional": ("Qwen3", "Model", GROUPED | {"head_dim": 16, "is_causal": False}),
}


def make_model(name, folder, dtype=None):
    """Saves a random model of transformers, in which biases and norms are random too."""
    torch.manual_seed(0)
    family, head, options = MODELS[name]
    options = deepcopy(options)  # transformers adds to them
    is_causal = options.pop("is_causal", True)
    config = getattr(transformers, f"{family}Config")(**options)
    if not is_causal:
        config.is_causal = False
    model = getattr(transformers, f"{family}{head}")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model = model if dtype is None else model.to(dtype)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model.float()


def draw_texts():
    draw = np.random.default_rng(1)
    return [draw.integers(8, 90, length).astype(np.int32) for length in LENGTHS]


def find_hidden(model, texts):
    """The last hidden states of each text, computed by transformers."""
    inner = model.base_model
    with torch.no_grad():
        return [
            inner(torch.tensor(text[None]).long()).last_hidden_state[0].numpy() for text in texts
        ]


PLACES = [Place(0, 0), Place(0, 21), Place(0, 24), Place(1, 0), Place(1, 40), Place(2, 0)]


def encode_packed(run_dir, texts):
    """Our hidden states of each text. The texts are packed into rows of ROW tokens."""
    embedder = Embedder.load(run_dir)
    arrays = CellArrays((1,), rows=4, row_tokens=ROW, texts=len(texts))
    for slot, (text, place) in enumerate(zip(texts, PLACES, strict=True)):
        arrays.put((0,), slot, text, place)
    # With pooling eos, an embedding is the hidden state at a text's end. Ask for all positions.
    cells = replace(make_cells(arrays), ends_gt=np.arange(4 * ROW, dtype=np.int32)[None])
    encoder, params = make_encoder(embedder.experiment), jax.device_get(embedder.params)
    hidden_sd = np.asarray(jax.jit(lambda p, c: encode(encoder, p, c))(params, cells))[0]
    starts = [place.row * ROW + place.column for place in PLACES]
    return [hidden_sd[s : s + len(text)] for s, text in zip(starts, texts, strict=True)]


@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_of_packed_texts(name, tmp_path):
    model = make_model(name, tmp_path / "folder")
    choices = Choices(delimiters="brackets", pooling="eos", x_tokens=LONGEST, y_tokens=LONGEST)
    import_model(str(tmp_path / "folder"), tmp_path / "run", choices)
    texts = draw_texts()
    found, expected = encode_packed(tmp_path / "run", texts), find_hidden(model, texts)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_and_shards(dtype, tmp_path):
    model = make_model("llama_untied", tmp_path / "one", getattr(torch, dtype))
    model.to(getattr(torch, dtype)).save_pretrained(tmp_path / "many", max_shard_size="20KB")
    write_tokenizer(tmp_path / "many")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    choices = Choices(x_tokens=LONGEST, y_tokens=LONGEST)
    found = []
    for folder in ("one", "many"):
        import_model(str(tmp_path / folder), tmp_path / f"{folder}_run", choices)
        found.append(Embedder.load(tmp_path / f"{folder}_run"))
    jax.tree.map(np.testing.assert_array_equal, *(embedder.params for embedder in found))
    table = model.base_model.embed_tokens.weight.detach().float().numpy()
    np.testing.assert_array_equal(found[0].params["tokens"], table)
    computed = {"float16": "float32", "bfloat16": "bfloat16"}
    assert found[0].experiment.model.compute_dtype == computed[dtype]
