"""`jaxcpt import`: the run folder that it writes, and the errors of folders that do not fit."""

import json
from dataclasses import replace

import jax
import ml_dtypes
import numpy as np
import pytest
from conftest import PAIRS
from hf_folder import (
    BERT_CONFIG,
    WORDS,
    add_modules,
    bert_shapes,
    make_arrays,
    write_folder,
    write_tokenizer,
)
from tiny_run import PAIRS_FILE, tiny_experiment

from jaxcpt import cli, import_model
from jaxcpt.config import InitFrom, Mesh, Model, Optimizer, Tokenizer
from jaxcpt.embed import Embedder
from jaxcpt.errors import UserError
from jaxcpt.interop.families import FAMILIES, Options, find_family
from jaxcpt.interop.folder import find_folder
from jaxcpt.pairs import write_pairs
from jaxcpt.train import train


@pytest.fixture
def refuse_import(refuse, tmp_path):
    """A function that imports a folder that must be refused without a trace; returns the error."""

    def call(folder, *options):
        line = refuse(
            import_model, "--input", folder, "--output", tmp_path / "made" / "run", *options
        )
        assert not (tmp_path / "made").exists() or not list((tmp_path / "made").iterdir())
        return line.replace(str(folder), "FOLDER")

    return call


def run_import(folder, run_dir, *options):
    cli.main(["import", "--input", str(folder), "--output", str(run_dir), *map(str, options)])
    return Embedder.load(run_dir)


def test_the_command_writes_a_run_that_embeds(tmp_path, capsys):
    embedder = run_import(write_folder(tmp_path / "bert"), tmp_path / "run")
    said = capsys.readouterr().out
    for part in ("bert, 2 layers, width 8, float32", "mean, to unit length", "own", "x 16 tokens"):
        assert part in said
    assert "2: pooler.dense.weight, pooler.dense.bias" in said
    vectors = embedder.embed(["w1 w2", "", "w3"], "x")
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert embedder.step == 0
    files = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert files == [".jaxcpt", "checkpoints", "experiment.json", "imported.json", "tokenizer"]
    imported = json.loads((tmp_path / "run" / "imported.json").read_text())
    assert imported["source"] == "bert"
    assert imported["model_type"] == "bert"
    assert list(imported["weights"]) == ["model.safetensors"]


def test_prefix_old_names_and_buffers(tmp_path):
    arrays = make_arrays()
    plain = run_import(write_folder(tmp_path / "plain", arrays), tmp_path / "plain_run")
    renamed = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): array
        for name, array in arrays.items()
    }
    renamed |= {
        "bert.embeddings.position_ids": np.arange(16)[None],
        "cls.predictions.bias": np.zeros(90, np.float32),
    }
    other = run_import(write_folder(tmp_path / "renamed", renamed), tmp_path / "renamed_run")
    jax.tree.map(np.testing.assert_array_equal, plain.params, other.params)


def test_token_types_and_padding_rows_go_into_the_positions(tmp_path):
    arrays = make_arrays()
    types = arrays["embeddings.token_type_embeddings.weight"]
    table = arrays["embeddings.position_embeddings.weight"]
    bert = run_import(write_folder(tmp_path / "bert", arrays), tmp_path / "bert_run")
    np.testing.assert_array_equal(bert.params["positions"], table + types[0])
    folder = write_folder(tmp_path / "r", arrays, model_type="roberta", pad_token_id=1)
    roberta = run_import(folder, tmp_path / "roberta_run", "--x-tokens", 14, "--y-tokens", 9)
    np.testing.assert_array_equal(roberta.params["positions"], table[2:] + types[0])
    assert roberta.experiment.model.position_rows == 14


def test_bfloat16_is_computed_in_bfloat16(tmp_path):
    arrays = make_arrays(dtype=ml_dtypes.bfloat16)
    embedder = run_import(write_folder(tmp_path / "bert", arrays), tmp_path / "run")
    assert embedder.experiment.model.compute_dtype == "bfloat16"
    words = arrays["embeddings.word_embeddings.weight"]
    np.testing.assert_array_equal(embedder.params["tokens"], words.astype(np.float32))


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "first"),
        ({"pooling_mode": "cls", "include_prompt": True}, "first"),
        ({"pooling_mode": ["mean"]}, "mean"),
    ],
)
def test_pooling_of_a_sentence_transformers_folder(tmp_path, pooling, expected):
    folder = add_modules(write_folder(tmp_path / "st"), pooling, ("Transformer", "Pooling"))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 12}')
    prompts = {"query": "find: ", "document": ""}
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    run = run_import(folder, tmp_path / "run")
    experiment = run.experiment
    assert (experiment.model.pooling, experiment.tokenizer.longest) == (expected, 12)
    assert (experiment.tokenizer.x_prefix, experiment.tokenizer.y_prefix) == ("find: ", "")
    (x,), (y,) = (run.tokenizer.encode(["a"], side) for side in ("x", "y"))
    assert len(x) > len(y)  # only queries have a prompt
    imported = json.loads((tmp_path / "run" / "imported.json").read_text())
    assert imported["prompts"] == prompts


@pytest.mark.parametrize(
    ("prompts", "default", "expected"),
    [
        ({"query": "q: ", "passage": "p: "}, None, ("q: ", "p: ")),
        ({"query": "q: ", "corpus": "c: "}, "query", ("q: ", "c: ")),
        ({"query": "q: ", "document": ""}, "query", ("q: ", "")),
        ({"query": "q: "}, "query", ("q: ", "q: ")),
        ({"sts": "s: "}, "sts", ("s: ", "s: ")),
        ({"sts": "s: "}, None, ("", "")),
    ],
)
def test_prompts_are_chosen_as_sentence_transformers_chooses(tmp_path, prompts, default, expected):
    folder = add_modules(write_folder(tmp_path / "st"))
    values = {"prompts": prompts, "default_prompt_name": default}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(values))
    tokenizer = run_import(folder, tmp_path / "run").experiment.tokenizer
    assert (tokenizer.x_prefix, tokenizer.y_prefix) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompts": ["a"]}, r"prompts: expected texts by name, found \['a'\]"),
        ({"prompts": {"query": 7}}, r"prompts: expected texts by name, found \{'query': 7\}"),
        (
            {"prompts": {"query": "q: "}, "default_prompt_name": "passage"},
            r"default_prompt_name: 'passage' is not among the prompts \(query\)",
        ),
    ],
)
def test_damaged_prompts_are_refused(tmp_path, values, message):
    folder = add_modules(write_folder(tmp_path / "st"))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=f"config_sentence_transformers.json: {message}"):
        run_import(folder, tmp_path / "run")


def test_choices_overrule_the_folder(tmp_path):
    folder = add_modules(write_folder(tmp_path / "st"))
    options = ("--delimiters", "brackets", "--pooling", "eos", "--x-tokens", 8, "--y-tokens", 10)
    embedder = run_import(folder, tmp_path / "run", *options)
    tokenizer = embedder.experiment.tokenizer
    assert (tokenizer.delimiters, tokenizer.x_tokens, tokenizer.y_tokens) == ("brackets", 8, 10)
    assert embedder.experiment.model.pooling == "eos"
    assert embedder.tokenizer.encode(["w1"], "y")[0].tolist() == [
        WORDS.index(word) for word in ("{", "w1", "}")
    ]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"model_type": "t5"}, "model_type: 't5' is not supported; there are bert, roberta, "
         "xlm-roberta, gpt2, gpt_neox, llama, mistral, qwen2, qwen3"),
        ({"model_type": "modernbert"}, "model_type: modernbert is not supported: its layers "
         "alternate between local and global attention"),
        ({"auto_map": {}}, "auto_map: the model needs its own code, which is not run; only the "
         "standard form of bert is supported"),
        ({"hidden_act": "silu"}, "hidden_act: 'silu' is not supported; there is 'gelu', "
         "'gelu_python', 'gelu_new', 'gelu_fast', 'gelu_pytorch_tanh', 'relu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type: 'relative_key' is "
         "not supported; there is 'absolute'"),
        ({"is_decoder": True}, "is_decoder: True is not supported; there is False"),
        ({"hidden_size": None}, "hidden_size: expected a number above 0, found None"),
        ({"num_attention_heads": "2"}, "num_attention_heads: expected a number above 0, found '2'"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps: expected a number, found 'small'"),
    ],
)  # fmt: skip
def test_options_of_config_json(refuse_import, tmp_path, changes, line):
    folder = write_folder(tmp_path / "bert", **changes)
    assert refuse_import(folder) == f"FOLDER/config.json: {line}"


LLAMA = {
    "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 12, "vocab_size": 90, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope: rope_type: 'yarn' is not "
         "supported; there is 'default', 'linear', 'llama3'"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "rope: rope_type: 'dynamic' is not "
         "supported; there is 'default', 'linear', 'llama3'"),
        ({"rope_scaling": 2.0}, "rope_scaling: expected options by name, found 2.0"),
        ({"attention_bias": True}, "attention_bias: True is not supported; there is False"),
        ({"mlp_bias": True}, "mlp_bias: True is not supported; there is False"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu' is not supported; there is 'silu'"),
        ({"layer_types": ["chunked_attention"]}, "layer_types: 'chunked_attention' is not "
         "supported"),
        ({"model_type": "mistral", "sliding_window": 32}, "sliding_window: 32 tokens, fewer than "
         "a text of 64; lower --x-tokens and --y-tokens to 32"),
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 32},
         "sliding_window: 32 tokens, fewer than a text of 64; lower --x-tokens and --y-tokens to "
         "32"),
    ],
)  # fmt: skip
def test_options_of_generative_models(refuse_import, tmp_path, changes, line):
    folder = write_folder(tmp_path / "llama")
    (folder / "config.json").write_text(json.dumps(LLAMA | changes))
    assert refuse_import(folder) == f"FOLDER/config.json: {line}"


def test_both_forms_of_rotary_options_are_read():
    scaling = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 32
    old = LLAMA | {"rope_theta": 500.0, "rope_scaling": {"type": "llama3", **scaling}}
    new = LLAMA | {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0, **scaling}}
    models = [find_family(o).read(o) for o in (Options(old, "old"), Options(new, "new"))]
    assert models[0] == models[1]
    assert models[0].rotary_base == 500
    assert models[0].rotary_scaling.original_tokens == 32
    neox = LLAMA | {"model_type": "gpt_neox", "rotary_pct": 0.5, "rotary_emb_base": 77}
    model = FAMILIES["gpt_neox"].read(Options(neox, "neox"))
    assert (model.rotary_share, model.rotary_base) == (0.5, 77)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"output": None}, "lacks encoder.layer.1.output.dense.bias, which should have the shape "
         "(8,)"),
        ({"extra": (3, 4)}, "extra of shape (3, 4) has no place in a model of this config.json"),
        ({"embeddings.position_embeddings.weight": (8, 8)}, "embeddings.position_embeddings.weight "
         "has the shape (8, 8); config.json says (16, 8)"),
        ({"encoder.layer.0.intermediate.dense.weight": (8, 12)},
         "encoder.layer.0.intermediate.dense.weight has the shape (8, 12); config.json says "
         "(12, 8)"),
        ({"bert.embeddings.LayerNorm.weight": (8,)}, "bert.embeddings.LayerNorm.weight and "
         "embeddings.LayerNorm.weight are the same parameter"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(refuse_import, tmp_path, change, line):
    shapes = bert_shapes()
    if "output" in change:
        del shapes["encoder.layer.1.output.dense.bias"]
    else:
        shapes |= change
    assert refuse_import(write_folder(tmp_path / "bert", make_arrays(shapes))) == f"FOLDER: {line}"


def test_folders_that_are_no_model(refuse_import, tmp_path):
    assert refuse_import(tmp_path / "none") == (
        "FOLDER: no config.json; name the folder of a Hugging Face model"
    )
    assert refuse_import("package:no_such_package/model") == (
        "FOLDER: no such package; install it, and write package:NAME/PATH"
    )
    assert refuse_import("package:jaxcpt/../tests").endswith("write package:NAME/PATH")
    folder = write_folder(tmp_path / "bert")
    (folder / "config.json").write_text("{")
    assert refuse_import(folder).startswith("FOLDER/config.json: not JSON: ")
    (folder / "config.json").write_text(json.dumps(BERT_CONFIG))
    (folder / "model.safetensors").unlink()
    assert refuse_import(folder).startswith("FOLDER: no weights; it needs model.safetensors")
    assert find_folder("package:jaxcpt/interop").name == "interop"


def test_an_output_folder_that_exists(refuse, tmp_path):
    (tmp_path / "run").mkdir()
    folder = write_folder(tmp_path / "bert")
    line = refuse(import_model, "--input", folder, "--output", tmp_path / "run")
    assert line == f"{tmp_path / 'run'}: exists; name a folder that does not exist"


def test_tokenizers_that_do_not_fit(refuse_import, tmp_path):
    folder = write_folder(tmp_path / "bert")
    write_tokenizer(folder, [*WORDS, "more", "words"])
    assert refuse_import(folder) == (
        "FOLDER/tokenizer.json: has 92 tokens, but the table of tokens has 90 rows; put the "
        "model's own tokenizer.json there"
    )
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    assert refuse_import(folder).startswith(
        'FOLDER: no tokenizer.json; write one: python -c "from transformers import AutoTokenizer'
    )


@pytest.mark.parametrize(
    ("pooling", "names", "line"),
    [
        ({"pooling_mode": "max"}, ("Transformer", "Pooling"), "FOLDER/1_Pooling/config.json: "
         "pooling max is not supported; there are lasttoken, mean, cls"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True},
         ("Transformer", "Pooling"), "FOLDER/1_Pooling/config.json: pooling mean with max is not "
         "supported; there are lasttoken, mean, cls"),
        ({"pooling_mode": "mean", "include_prompt": False}, ("Transformer", "Pooling"),
         "FOLDER/1_Pooling/config.json: include_prompt: False is not supported; prompts are pooled "
         "too"),
        (None, ("Transformer", "Pooling", "Dense"), "FOLDER/modules.json: the module "
         "sentence_transformers.models.Dense is not supported; there are Transformer, Pooling, "
         "Normalize"),
        (None, ("Transformer", "Normalize"), "FOLDER/modules.json: its modules are Transformer, "
         "Normalize; expected Transformer, Pooling and perhaps Normalize"),
    ],
)  # fmt: skip
def test_modules_that_are_not_supported(refuse_import, tmp_path, pooling, names, line):
    assert refuse_import(add_modules(write_folder(tmp_path / "st"), pooling, names)) == line


def test_other_damage_of_a_sentence_transformers_folder(refuse_import, tmp_path):
    folder = add_modules(write_folder(tmp_path / "st"))
    (folder / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    assert refuse_import(folder) == (
        "FOLDER/sentence_bert_config.json: do_lower_case is not supported if tokenizer.json "
        "does not lower-case"
    )
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = "../1_Pooling"
    (folder / "modules.json").write_text(json.dumps(modules))
    assert refuse_import(folder) == "FOLDER/modules.json: '../1_Pooling' is not in its folder"
    (folder / "modules.json").write_text("[{}]")
    assert refuse_import(folder) == "FOLDER/modules.json: damaged: KeyError('type')"


def test_a_run_starts_from_a_hugging_face_folder(tmp_path):
    folder = write_folder(tmp_path / "bert")
    experiment = replace(
        tiny_experiment(),
        name="tuned",
        train_steps=2,
        model=Model(),
        tokenizer=Tokenizer(),
        init_from=InitFrom(str(folder)),
        mesh=Mesh(-1, fsdp=2, tensor=2),
        optimizer=Optimizer(learning_rate=1e-30, warmup_steps=1),  # too small to change anything
    )
    write_pairs(PAIRS_FILE, PAIRS)
    train(experiment, tmp_path / "run", tmp_path / "run")
    trained, imported = Embedder.load(tmp_path / "run"), run_import(folder, tmp_path / "imported")
    assert trained.experiment.model.pooling == "mean"
    assert trained.tokenizer.fingerprint == imported.tokenizer.fingerprint
    jax.tree.map(
        np.testing.assert_array_equal, *map(jax.device_get, (trained.params, imported.params))
    )
