"""The cases of the gradient table: ways to cut a batch, and the batch, tokenizer and models.

Out: `Case`, lists of cases, and what `gradient_table.py` needs to run one. It knows neither the
truth nor the faults.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from tempfile import TemporaryDirectory
from typing import Any, Literal

import jax
import numpy as np
import tokenizers
from gradient_adapters import ADAPTER

from jaxcpt import config
from jaxcpt.checks import validate
from jaxcpt.config import Batching, Data, Experiment, JsonlPairs, Model, Optimizer
from jaxcpt.pair import Pair
from jaxcpt.sharding import make_mesh
from jaxcpt.tokenizer import Tokenizer, read_tokenizer, train_tokenizer
from jaxcpt.update import shard_state

Form = Literal["dense", "streaming"]
MeshShape = tuple[int, int, int]
"""Devices along data, fsdp and tensor."""

GPT = Model(width=16, layers=2, heads=8, compute_dtype="float32")
BERT = replace(
    GPT,
    norm_placement="post",
    norm_epsilon=1e-12,
    embedding_norm=True,
    final_norm=False,
    mlp="gelu_exact",
    causal=False,
)
MODELS: dict[str, Model] = {
    "gpt": GPT,
    "bert, mean": replace(BERT, pooling="mean"),
    "bert, first": replace(BERT, pooling="first"),
    "gpt, lora": GPT,
    "gpt, hf": GPT,
    "bert, hf": replace(BERT, pooling="mean"),
    "gpt, tokens": GPT,
}
"""gpt: the paper's encoder. bert: norms after each branch and after the embedding, exact GELU,
attention in both directions, pooled by the mean or at the first token. lora: only adapters are
trained, and the other parameters are frozen in bfloat16. hf: the texts are cut by a Hugging Face
tokenizer. Its delimiters are brackets for gpt, and its own template [CLS] x [SEP] for bert. tokens:
trained by the generative objective, which has no temperature and no form of the loss."""
GENERATIVE = "gpt, tokens"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way of cutting a batch, for one of MODELS."""

    data: int
    fsdp: int
    tensor: int
    chunks: int
    form: Form
    pack: bool
    negatives: int
    pairs: int
    model: str = "gpt"
    processes: int = 1
    compute_dtype: Literal["float32", "bfloat16"] = "float32"

    @property
    def mesh(self) -> MeshShape:
        return self.data, self.fsdp, self.tensor


def list_meshes(devices: int) -> list[MeshShape]:
    """Every data x fsdp x tensor that multiplies to `devices`."""
    sizes = [size for size in (1, 2, 4, 8) if size <= devices]
    return [m for m in itertools.product(sizes, sizes, sizes) if m[0] * m[1] * m[2] == devices]


MESHES = [mesh for devices in (1, 2, 4, 8) for mesh in list_meshes(devices)]
CUTS: list[tuple[int, Form]] = list(itertools.product((1, 2, 4, 8), ("dense", "streaming")))
# 64 pairs are one for each of 8 devices and 8 chunks; 61 divide by nothing.
CONTENTS: list[tuple[bool, int, int]] = list(itertools.product((True, False), (0, 2), (64, 61)))

COVERED = """\
Covered in full: every mesh x chunks x form; every mesh x packing x negatives x pairs;
every chunks x form x packing x negatives x pairs; every mesh with a bert; every mesh with lora;
every mesh with a Hugging Face tokenizer; every mesh x chunks of the generative objective.
Each case is run at both temperatures, but for the generative objective, which has none."""
COVERED_QUICKLY = """\
Quick: every chunks x form, and every packing x negatives x pairs, once; each bert, lora and each
Hugging Face tokenizer once; the generative objective with every number of chunks once."""
QUICK_CUTS = {0: 0, 1: 1, 3: 2, 5: 4, 8: 7, 13: 6, 15: 5, 19: 3}  # mesh number: cut number
QUICK_BERTS = (4, 15)  # mesh numbers
QUICK_LORA = 14  # mesh number
QUICK_TOKENIZERS = (10, 17)  # mesh numbers
QUICK_GENERATIVE = {0: 0, 9: 1, 12: 2, 18: 3}  # mesh number: number of its chunks


def list_cases(quick: bool) -> list[Case]:
    """Cases of one process. Content number (mesh + cut) mod 8 makes a Latin square of both."""
    gpt = [
        make_case(mesh, CUTS[at], CONTENTS[(number + at) % 8])
        for number, mesh in enumerate(MESHES)
        for at in range(len(CUTS))
        if not quick or QUICK_CUTS.get(number) == at
    ]
    bert = [
        make_case(
            mesh,
            CUTS[(3 * number) % 8],
            CONTENTS[(5 * number) % 8],
            model=("bert, mean", "bert, first")[number % 2],
        )
        for number, mesh in enumerate(MESHES)
        if not quick or number in QUICK_BERTS
    ]
    lora = [
        make_case(mesh, CUTS[(5 * number) % 8], CONTENTS[(3 * number) % 8], model="gpt, lora")
        for number, mesh in enumerate(MESHES)
        if not quick or number == QUICK_LORA
    ]
    hugging_face = [
        make_case(
            mesh,
            CUTS[(7 * number + 1) % 8],
            CONTENTS[(3 * number + 2) % 8],
            model=("gpt, hf", "bert, hf")[number % 2],
        )
        for number, mesh in enumerate(MESHES)
        if not quick or number in QUICK_TOKENIZERS
    ]
    return gpt + bert + lora + hugging_face + list_generative_cases(quick)


def list_generative_cases(quick: bool) -> list[Case]:
    return [
        make_case(mesh, (2**at, "dense"), CONTENTS[(3 * number + at) % 8], model=GENERATIVE)
        for number, mesh in enumerate(MESHES)
        for at in range(4)
        if not quick or QUICK_GENERATIVE.get(number) == at
    ]


def list_process_cases(processes: int, quick: bool) -> list[Case]:
    """Cases of several processes with two devices each: every mesh, with all else in turn."""
    meshes = list_meshes(2 * processes)
    gpt = [
        make_case(
            mesh, CUTS[(4 + 3 * number) % 8], CONTENTS[(2 + 5 * number) % 8], processes=processes
        )
        for number, mesh in enumerate(meshes)
        if not quick or number % 5 == 0
    ]
    generative = [
        make_case(
            mesh,
            (2 ** (number % 4), "dense"),
            CONTENTS[(3 + 5 * number) % 8],
            model=GENERATIVE,
            processes=processes,
        )
        for number, mesh in enumerate(meshes)
        if not quick
    ]
    return gpt + generative


def choose(cases: Sequence[Case], models: Sequence[str]) -> list[Case]:
    """The cases of these models."""
    return [case for case in cases if case.model in models]


def make_case(
    mesh: MeshShape, cut: tuple[int, Form], content: tuple[bool, int, int], **others: Any
) -> Case:
    (data, fsdp, tensor), (chunks, form), (pack, negatives, pairs) = mesh, cut, content
    return Case(
        data=data,
        fsdp=fsdp,
        tensor=tensor,
        chunks=chunks,
        form=form,
        pack=pack,
        negatives=negatives,
        pairs=pairs,
        **others,
    )


def make_pairs(count: int) -> list[Pair]:
    """Random words. A few texts occur twice, and a few pairs lack some of their negatives."""
    random = np.random.default_rng(0)
    words = [f"w{number}" for number in range(60)]

    def draw(low: int, high: int) -> str:
        return " ".join(random.choice(words, random.integers(low, high)))

    pairs = [
        Pair(draw(1, 5), draw(3, 12), "", tuple(draw(3, 12) for _ in range(random.integers(0, 3))))
        for _ in range(count)
    ]
    pairs[7] = replace(pairs[7], x=pairs[3].x)
    pairs[11] = replace(pairs[11], y=pairs[5].y)
    pairs[20] = replace(pairs[20], negatives=(pairs[20].y,))
    pairs[21] = replace(pairs[21], negatives=(pairs[2].y, pairs[30].x))
    return pairs


def make_experiment(case: Case) -> Experiment:
    return validate(
        Experiment(
            name="gradient table",
            objective="generative" if case.model == GENERATIVE else "contrastive",
            train_steps=2,
            data=Data(train=(JsonlPairs("made"),)),
            tokenizer=choose_tokenizer(case.model),
            batching=Batching(
                pairs_per_batch=case.pairs,
                chunks=case.chunks,
                row_tokens=32,
                pack=case.pack,
                negatives=case.negatives,
            ),
            model=replace(MODELS[case.model], compute_dtype=case.compute_dtype),
            loss=config.Loss(form=case.form),
            mesh=config.Mesh(*case.mesh),
            init_from=config.InitFrom("made"),
            adapter=ADAPTER if case.model == "gpt, lora" else None,
            optimizer=Optimizer(learning_rate=1e-3),
        )
    )


def choose_tokenizer(model: str) -> config.Tokenizer:
    settings = config.Tokenizer(vocabulary=320, x_tokens=12, y_tokens=24)
    if not model.endswith(", hf"):
        return settings
    delimiters: Literal["own", "brackets"] = "own" if model == "bert, hf" else "brackets"
    return replace(settings, kind="hugging_face", delimiters=delimiters)


@cache
def make_tokenizer(model: str) -> Tokenizer:
    """A tokenizer of the kind that the model has, trained on the batch's texts."""
    settings = choose_tokenizer(model)
    texts = [text for pair in make_pairs(64) for text in (pair.x, pair.y)]
    if settings.kind != "hugging_face":
        return train_tokenizer(texts, settings)
    trained = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    trained.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=128,
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"],
        initial_alphabet=list("[]{}"),
        show_progress=False,
    )
    trained.train_from_iterator(texts, trainer)
    ids = trained.get_vocab()
    trained.post_processor = tokenizers.processors.BertProcessing(
        ("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"])
    )
    with TemporaryDirectory() as folder:
        file = f"{folder}/tokenizer.json"
        trained.save(file)
        return read_tokenizer(replace(settings, model_file=file))


@cache
def draw_encoder(model: str) -> Any:
    """Parameters far from their start, so that embeddings differ and every gradient counts."""
    experiment = make_experiment(make_case((1, 1, 1), CUTS[0], CONTENTS[0], model=model))
    one = make_mesh(experiment.mesh, jax.local_devices()[:1])
    random = np.random.default_rng(1)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        values = random.normal(0.0, 0.3, leaf.shape)
        return (values + (path[-1].key == "scale")).astype(leaf.dtype)

    return jax.tree.map_with_path(draw, shard_state(experiment, one).encoder)
