"""Searches texts with a trained run: embeds a corpus, or opens its vectors, and shows the nearest.

python -m jaxcpt.search --run-dir DIR [--corpus FILE.jsonl | --vectors FOLDER] QUERY...
"""

import dataclasses
import hashlib
import json
from collections.abc import Container, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxcpt.config import TokenizedPairs
from jaxcpt.documents import read_documents
from jaxcpt.embed import Embedder, add_arguments, describe, load_embedder
from jaxcpt.errors import CommandParser, UserError, run_command
from jaxcpt.experiments import read_experiment
from jaxcpt.files import hash_file, to_path
from jaxcpt.pairs import JoinedPairs, open_source, read_all
from jaxcpt.sharding import use_cpu_cores
from jaxcpt.top_k import top_k
from jaxcpt.vectors import Storage, TextWithId, VectorFolder, fill, truncate

SHOWN_LINES = 12
MOST_OWN_PAIRS = 1_000_000
"""A run's own texts are held in memory, and embedded before the first answer."""


def read_own_texts(run_dir: Path) -> list[TextWithId]:
    """The y of all pairs of the run, each text once and without the prefix of its source.

    Raises UserError where they are too many.
    """
    experiment = read_experiment(run_dir)
    data = experiment.data
    sources = [*data.train, *([data.heldout] if data.heldout else [])]
    if any(isinstance(source, TokenizedPairs) for source in sources):
        raise UserError(f"{run_dir}: trained on token ids, which are no texts; add --corpus")
    bare = [replace(source, x_prefix="", y_prefix="") for source in sources]
    pairs = JoinedPairs([open_source(source, run_dir, experiment.seed) for source in bare])
    if len(pairs) > MOST_OWN_PAIRS:
        raise UserError(
            f"{run_dir}: {len(pairs):,} pairs, too many to search at once; add --corpus"
        )
    texts = {pair.y: pair.source for pair in read_all(pairs)}
    if not texts:
        raise UserError(f"{run_dir}: an empty corpus; it needs at least one text")
    return [TextWithId(source, text) for text, source in texts.items()]


def embed_corpus(
    run_dir: Path,
    embedder: Embedder,
    about: dict[str, Any],
    documents: Iterable[TextWithId],
    storage: Storage,
) -> VectorFolder:
    """Vectors of the documents, kept in the run folder for the next search."""
    named = json.dumps({**about, "path": "", "storage": dataclasses.astuple(storage)})
    digest = hashlib.sha256(named.encode()).hexdigest()[:16]
    return fill(
        run_dir / "search" / digest,
        about,
        documents,
        lambda texts: embedder.embed(texts, "y", progress=True),
        storage,
    )


def open_vectors(folder: Path, embedder: Embedder) -> VectorFolder:
    """Opens a folder that `jaxcpt embed` filled.

    Raises UserError where other parameters made the vectors, and where the file of their texts,
    which are shown, has changed since.
    """
    vectors = VectorFolder.open(folder)
    about = vectors.about
    for name in ("checkpoint", "side", "path", "input"):
        if not isinstance(about.get(name), str):
            raise UserError(f"{folder}: about.json does not tell its {name}; embed anew")
    if about["checkpoint"] != embedder.fingerprint:
        raise UserError(
            f"{folder}: made by another checkpoint (step {about.get('step')}, sha256 "
            f"{about['checkpoint'][:12]}) than step {embedder.step} of this run "
            f"({embedder.fingerprint[:12]}); choose --step, or embed anew"
        )
    prefix, asked = about.get("prefix", ""), embedder.prefixes["y"]
    if prefix != asked:
        raise UserError(
            f"{folder}: made with the prefix {prefix!r} before each text, but {asked!r} is asked "
            "for; give that --y-prefix, or embed anew"
        )
    if about["side"] != "y":
        raise UserError(
            f"{folder}: holds vectors of side x, which are queries; embed with --side y"
        )
    path = to_path(about["path"])
    if path.is_file() and hash_file(path) != about["input"]:
        raise UserError(
            f"{path}: changed since {folder} was made of it; put it back, or embed anew"
        )
    return vectors


def find_texts(documents: Iterable[TextWithId], rows: Container[int]) -> dict[int, TextWithId]:
    """The documents of these row numbers, in one pass."""
    return {row: document for row, document in enumerate(documents) if row in rows}


def show(query: str, total: int, found: Iterable[tuple[float, TextWithId]]) -> None:
    print(f"{query}  (of {total:,} texts)")
    for score, document in found:
        print(f"\n{score:.3f}  {document.id}")
        lines = document.text.strip().split("\n")
        print("\n".join(f"    {line}" for line in lines[:SHOWN_LINES]))
        if len(lines) > SHOWN_LINES:
            print(f"    ... {len(lines) - SHOWN_LINES} more lines")
    print()


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(prog="jaxcpt search", description="Search texts with a trained run.")
    add_arguments(parser)
    parser.add_argument(
        "--corpus", type=to_path, help="JSONL with 'text'; default: the run's own y"
    )
    parser.add_argument("--vectors", type=to_path, help="folder filled by jaxcpt.embed")
    parser.add_argument("--top", type=int, default=5, help="how many to show")
    parser.add_argument("queries", nargs="+", metavar="QUERY")
    arguments = parser.parse_args(argv)
    run_dir = arguments.run_dir
    if arguments.top < 1:
        raise UserError(f"--top {arguments.top}: must be at least 1")
    stored = Storage(arguments.width, arguments.int8)
    if arguments.vectors and (arguments.corpus or stored != Storage()):
        raise UserError("--vectors: comes without --corpus, --width and --int8; it has its own")
    use_cpu_cores()
    embedder = load_embedder(arguments)
    documents: Iterable[TextWithId]
    if arguments.vectors:
        vectors = open_vectors(arguments.vectors, embedder)
        documents = read_documents(to_path(vectors.about["path"]), "y")
    elif arguments.corpus:
        about = describe(embedder, "y", arguments.corpus)
        documents = read_documents(arguments.corpus, "y")
        vectors = embed_corpus(run_dir, embedder, about, documents, stored.check(embedder.width))
        documents = read_documents(arguments.corpus, "y")
    else:
        documents = read_own_texts(run_dir)
        digest = hashlib.sha256(repr(documents).encode()).hexdigest()
        about = {"checkpoint": embedder.fingerprint, "step": embedder.step, "input": digest}
        about |= {"prefix": embedder.prefixes["y"]}
        vectors = embed_corpus(run_dir, embedder, about, documents, stored.check(embedder.width))
    queries_qd = embedder.embed(arguments.queries, "x")
    if vectors.storage.width is not None:
        queries_qd = truncate(queries_qd, vectors.storage.width)
    scores_qk, rows_qk = top_k(queries_qd, vectors.shards(), arguments.top)
    texts = find_texts(documents, set(rows_qk.ravel().tolist()))
    for query, scores_k, rows_k in zip(arguments.queries, scores_qk, rows_qk, strict=True):
        found = [(score, texts[row]) for score, row in zip(scores_k, rows_k.tolist(), strict=True)]
        show(query, len(vectors), found)


if __name__ == "__main__":
    run_command(main)
