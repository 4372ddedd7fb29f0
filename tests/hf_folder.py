"""Makes Hugging Face folders without torch: random weights under the names of a family."""

import json
import struct
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[", "]", "{", "}", *(f"w{n}" for n in range(82))]

BERT_CONFIG = {
    "model_type": "bert",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
    "vocab_size": len(WORDS),
    "hidden_act": "gelu",
}


def bert_shapes(layers=2, d=8, f=12, rows=16):
    """The tensors of a BERT model without a head, and their shapes."""
    v = len(WORDS)
    shapes = {
        "embeddings.word_embeddings.weight": (v, d),
        "embeddings.position_embeddings.weight": (rows, d),
        "embeddings.token_type_embeddings.weight": (2, d),
        "embeddings.LayerNorm.weight": (d,),
        "embeddings.LayerNorm.bias": (d,),
        "pooler.dense.weight": (d, d),
        "pooler.dense.bias": (d,),
    }
    for layer in range(layers):
        for name, (out, into) in {
            "attention.self.query": (d, d),
            "attention.self.key": (d, d),
            "attention.self.value": (d, d),
            "attention.output.dense": (d, d),
            "intermediate.dense": (f, d),
            "output.dense": (d, f),
        }.items():
            shapes[f"encoder.layer.{layer}.{name}.weight"] = (out, into)
            shapes[f"encoder.layer.{layer}.{name}.bias"] = (out,)
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes[f"encoder.layer.{layer}.{name}.weight"] = (d,)
            shapes[f"encoder.layer.{layer}.{name}.bias"] = (d,)
    return shapes


def make_arrays(shapes=None, dtype=np.float32, seed=0):
    draw = np.random.default_rng(seed)
    shapes = bert_shapes() if shapes is None else shapes
    return {name: draw.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def pack_safetensors(arrays):
    """The bytes of a safetensors file."""
    names = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64"}
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, array in arrays.items():
        span = [end, end := end + array.nbytes]
        header[name] = {
            "dtype": names[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": span,
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(a.tobytes() for a in arrays.values())


def write_tokenizer(folder: Path, words=WORDS):
    """Writes a tokenizer.json of whole words with BERT's template."""
    vocabulary = {word: number for number, word in enumerate(words)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "[SEP]"}))


def write_folder(folder: Path, arrays=None, **changes):
    """Writes a complete BERT folder. changes: values of config.json; None removes a value."""
    folder.mkdir(parents=True)
    values = {k: v for k, v in (BERT_CONFIG | changes).items() if v is not None}
    (folder / "config.json").write_text(json.dumps(values))
    content = pack_safetensors(make_arrays() if arrays is None else arrays)
    (folder / "model.safetensors").write_bytes(content)
    write_tokenizer(folder)
    return folder


def add_modules(folder: Path, pooling=None, names=("Transformer", "Pooling", "Normalize")):
    """Adds the files that make a folder a sentence-transformers folder."""
    paths = ("", "1_Pooling", "2_Normalize", "3_More")
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{name}"}
        for n, (name, path) in enumerate(zip(names, paths, strict=False))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    pooling = pooling or {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder
