"""Searches texts with a trained run and shows the nearest ones.

    jaxcpt search --run-dir DIR [--code FOLDER | --text FOLDER | --corpus FILE.jsonl |
        --vectors FOLDER] QUERY...

The corpus is embedded once, and its vectors are kept in the run folder. When a folder of code or
texts is searched again, only changed texts are embedded. A hit is marked as weak if the best of
equally many unrelated texts would reach its score by chance.
"""

import argparse
import dataclasses
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxcpt.config import TokenizedPairs
from jaxcpt.documents import read_documents
from jaxcpt.embed import Embedder, add_arguments, describe, load_embedder
from jaxcpt.errors import CommandParser, UserError, run_command
from jaxcpt.experiments import find_shared_folder, read_experiment
from jaxcpt.files import hash_file, remove_tree, to_path
from jaxcpt.lines import read_lines
from jaxcpt.pairs import JoinedPairs, open_source, read_all
from jaxcpt.sharding import use_cpu_cores
from jaxcpt.terminal import cut_text
from jaxcpt.text_folder import read_pieces
from jaxcpt.top_k import top_k
from jaxcpt.vectors import Storage, TextWithId, VectorFolder, fill, normalise_rows, truncate

MOST_OWN_PAIRS = 1_000_000
"""Most pairs of a run whose texts are searched without --corpus. They are all held in memory."""
LEAST_TEXTS = 100
"""Fewest texts of a corpus for which the score by chance is estimated."""
SAMPLED_TEXTS = 2000


def read_own_texts(run_dir: Path) -> list[TextWithId]:
    """The y of all pairs of the run, each text once and without the prefix of its data source.

    Raises UserError if there are too many pairs, or no texts.
    """
    experiment = read_experiment(run_dir)
    data = experiment.data
    sources = [*data.train, *([data.heldout] if data.heldout else [])]
    if any(isinstance(source, TokenizedPairs) for source in sources):
        raise UserError(f"{run_dir}: trained on token ids, which are not texts; add --corpus")
    bare = [replace(source, x_prefix="", y_prefix="") for source in sources]
    home = find_shared_folder(run_dir)
    pairs = JoinedPairs([open_source(source, home, experiment.seed) for source in bare])
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
    """Embeds the documents. Their vectors are kept in the run folder for the next search."""
    named = json.dumps({**about, "path": "", "storage": dataclasses.astuple(storage)})
    folder = run_dir / "search" / digest_text(named)[:16]
    return fill(folder, about, documents, _embed_y(embedder), storage)


@dataclass(frozen=True)
class Corpus:
    """The texts that are searched: their vectors, and a function that reads them in that order."""

    vectors: VectorFolder
    read: Callable[[], Iterable[TextWithId]]

    @cached_property
    def sample_nd(self) -> np.ndarray:
        """Read once, however many queries come one after another."""
        return sample_rows(self.vectors)


def read_code(folder: Path) -> tuple[list[TextWithId], Counter[str]]:
    """The functions of a folder, and the number of left-out files by reason. Raises UserError."""
    try:
        from jaxcpt.repository import read_functions  # needs the libraries of an extra
    except ModuleNotFoundError as error:
        raise UserError(
            f"--code: needs {error.name}, which is not installed; run: pip install 'jaxcpt[mining]'"
        ) from None
    return read_functions(folder)


def search_folder(
    run_dir: Path,
    embedder: Embedder,
    kind: Literal["code", "text"],
    folder: Path,
    storage: Storage,
) -> Corpus:
    """A corpus of the functions or the texts of a folder. Raises UserError if there are none.

    The vectors of texts that have not changed since an earlier search are used again.
    """
    found, left_out = read_code(folder) if kind == "code" else read_pieces(folder)
    for reason, count in left_out.items():
        print(f"left out: {count:,} x {reason}", file=sys.stderr)
    place = str(folder.resolve())
    home = run_dir / "search" / f"{kind}-{digest_text(place)[:16]}"
    about = {"checkpoint": embedder.fingerprint, "step": embedder.step, "path": place}
    documents = [TextWithId(f"{digest_text(text.text)} {text.id}", text.text) for text in found]
    about |= {"prefix": embedder.prefixes["y"], "input": digest_text(json.dumps(documents))}
    kept = home / digest_text(json.dumps([about, dataclasses.astuple(storage)]))[:16]
    known = {} if kept.is_dir() else _read_known(home, about, storage)
    vectors = fill(kept, about, documents, _reuse(known, _embed_y(embedder)), storage)
    for other in home.iterdir():
        if other != kept:
            remove_tree(other)
    return Corpus(vectors, lambda: found)


def digest_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _embed_y(embedder: Embedder) -> Callable[[Sequence[str]], np.ndarray]:
    return lambda texts: embedder.embed(texts, "y", progress=True)


def _reuse(
    known: dict[str, np.ndarray], embed: Callable[[Sequence[str]], np.ndarray]
) -> Callable[[Sequence[str]], np.ndarray]:
    """A function like `embed` that first looks up the hash of a text in `known`."""

    def embed_new(texts: Sequence[str]) -> np.ndarray:
        names = [digest_text(text) for text in texts]
        new = {name: text for name, text in zip(names, texts, strict=True) if name not in known}
        known.update(zip(new, embed(list(new.values())) if new else (), strict=True))
        return np.stack([known[name] for name in names])

    return embed_new


def _read_known(home: Path, about: dict[str, Any], storage: Storage) -> dict[str, np.ndarray]:
    """Vectors of earlier searches with the same parameters, by the hash of their text."""
    known: dict[str, np.ndarray] = {}
    if storage != Storage() or not home.is_dir():
        return known  # stored vectors are cut or rounded, so they cannot replace embeddings
    for folder in home.iterdir():
        try:
            earlier = VectorFolder.open(folder)
        except UserError:
            continue  # unfinished or damaged
        same = all(earlier.about.get(name) == about[name] for name in ("checkpoint", "prefix"))
        if same and earlier.storage == storage:
            vectors = (vector_d for shard_nd in earlier.shards() for vector_d in shard_nd)
            names = (name.partition(" ")[0] for name in earlier.ids())
            known |= dict(zip(names, vectors, strict=True))
    return known


def open_vectors(folder: Path, embedder: Embedder) -> VectorFolder:
    """Opens a folder that `jaxcpt embed` filled.

    Raises UserError if other parameters made the vectors, or if the file of their texts, from which
    the hits are shown, has changed since.
    """
    vectors = VectorFolder.open(folder)
    about = vectors.about
    for name in ("checkpoint", "side", "path", "input"):
        if not isinstance(about.get(name), str):
            raise UserError(f"{folder}: about.json does not name its {name}; embed again")
    if about["checkpoint"] != embedder.fingerprint:
        raise UserError(
            f"{folder}: made by another checkpoint (step {about.get('step')}, sha256 "
            f"{about['checkpoint'][:12]}) than step {embedder.step} of this run "
            f"({embedder.fingerprint[:12]}); choose --step, or embed again"
        )
    prefix, asked = about.get("prefix", ""), embedder.prefixes["y"]
    if prefix != asked:
        raise UserError(
            f"{folder}: made with the prefix {prefix!r} before each text, but this search uses "
            f"{asked!r}; choose --y-prefix, or embed again"
        )
    if about["side"] != "y":
        raise UserError(
            f"{folder}: holds vectors of side x, which are queries; embed with --side y"
        )
    path = to_path(about["path"])
    if path.is_file() and hash_file(path) != about["input"]:
        raise UserError(
            f"{path}: changed since {folder} was made from it; put it back, or embed again"
        )
    return vectors


def find_texts(documents: Iterable[TextWithId], rows: Set[int]) -> dict[int, TextWithId]:
    """The documents with these row numbers. Documents after the last of them are not read."""
    upto = islice(documents, max(rows, default=-1) + 1)
    return {row: document for row, document in enumerate(upto) if row in rows}


class Hit(NamedTuple):
    """A found text. score: the cosine with the query, from -1 to 1. is_weak: see `find_chance`."""

    score: float
    id: str
    text: str
    is_weak: bool


def find(
    embedder: Embedder, corpus: Corpus, queries: Sequence[str], top: int
) -> Iterator[tuple[str, list[Hit]]]:
    """Yields each query with its `top` best hits, best first."""
    queries_qd = embedder.embed(queries, "x")
    if corpus.vectors.storage.width is not None:
        queries_qd = truncate(queries_qd, corpus.vectors.storage.width)
    scores_qk, rows_qk = top_k(queries_qd, corpus.vectors.shards(), top)
    chance_q = find_chance(queries_qd, corpus.sample_nd, len(corpus.vectors)).tolist()
    texts = find_texts(corpus.read(), set(rows_qk.ravel().tolist()))
    for at, query in enumerate(queries):
        rows_and_scores = zip(rows_qk[at].tolist(), scores_qk[at].tolist(), strict=True)
        yield query, [Hit(s, *texts[row], s <= chance_q[at]) for row, s in rows_and_scores]


def sample_rows(vectors: VectorFolder) -> np.ndarray:
    """About SAMPLED_TEXTS float32 vectors of unit length, spread evenly over the corpus: [n, d]."""
    every = -(-len(vectors) // SAMPLED_TEXTS)
    start, sample = 0, []
    for shard_nd in vectors.shards():
        sample.append(normalise_rows(shard_nd[-start % every :: every]))
        start += len(shard_nd)
    return np.concatenate(sample)


def find_chance(queries_qd: np.ndarray, sample_nd: np.ndarray, texts: int) -> np.ndarray:
    """The score that the best of n unrelated texts reaches by chance, for each query: [q].

    It is assumed that the scores of texts that do not answer a query are normally distributed. The
    largest of n such scores is about their mean plus sqrt(2 ln n) standard deviations. Mean and
    deviation are estimated on the sample. texts: n, the size of the corpus. The result is minus
    infinity if the corpus is too small.
    """
    if texts < LEAST_TEXTS:
        return np.full(len(queries_qd), -np.inf)
    scores_qn = queries_qd @ sample_nd.T
    deviations = np.sqrt(2 * np.log(texts))
    return scores_qn.mean(axis=1) + deviations * scores_qn.std(axis=1)


def show(query: str, total: int, found: Sequence[Hit], shown_lines: int) -> None:
    print(f"{query}  (of {total:,} texts)")
    for hit in found:
        print(f"\n{hit.score:.3f}  {hit.id}{'  (weak)' if hit.is_weak else ''}")
        lines = hit.text.strip().split("\n")
        print("".join(f"    {cut_text(line)}\n" for line in lines[:shown_lines]), end="")
        if shown_lines and len(lines) > shown_lines:
            print(f"    ... {len(lines) - shown_lines} more lines")
    if any(hit.is_weak for hit in found):
        print("\n(weak): the best of as many unrelated texts would reach this score by chance")
    print()


def show_json(query: str, found: Iterable[Hit]) -> None:
    """Prints a query and its hits as one line of JSON."""
    print(json.dumps({"query": query, "hits": [hit._asdict() for hit in found]}))


def list_kept(run_dir: Path) -> None:
    """Lists the corpora that earlier searches have kept in the run folder."""
    for path in sorted((run_dir / "search").rglob("about.json")):
        try:
            about = json.loads(path.read_bytes())
            what, texts = about.get("path", "the run's own texts"), f"{about.get('texts', 0):,}"
        except (ValueError, AttributeError, TypeError):
            what, texts = "damaged", "?"
        size = sum(file.stat().st_size for file in path.parent.iterdir())
        print(f"{texts:>12} texts  {size / 2**20:8.1f} MiB  {path.parent}  {what}")


def open_corpus(arguments: argparse.Namespace, embedder: Embedder) -> Corpus:
    """The corpus that the options name; by default, the run's own y."""
    run_dir, storage = arguments.run_dir, Storage(arguments.width, arguments.int8)
    if arguments.vectors:
        vectors = open_vectors(arguments.vectors, embedder)
        return Corpus(vectors, lambda: read_documents(to_path(vectors.about["path"]), "y"))
    storage.check(embedder.width)
    if arguments.code:
        return search_folder(run_dir, embedder, "code", arguments.code, storage)
    if arguments.text:
        return search_folder(run_dir, embedder, "text", arguments.text, storage)
    if arguments.corpus:
        about = describe(embedder, "y", arguments.corpus)
        documents = read_documents(arguments.corpus, "y")
        vectors = embed_corpus(run_dir, embedder, about, documents, storage)
        return Corpus(vectors, lambda: read_documents(arguments.corpus, "y"))
    own = read_own_texts(run_dir)
    about = {"checkpoint": embedder.fingerprint, "step": embedder.step}
    about |= {"input": digest_text(repr(own)), "prefix": embedder.prefixes["y"]}
    return Corpus(embed_corpus(run_dir, embedder, about, own, storage), lambda: own)


def read_queries(arguments: argparse.Namespace) -> list[str]:
    """The queries that the options name. Raises UserError if there are none, or if one is blank."""
    asked, source = [("", query) for query in arguments.queries], arguments.queries_from
    if str(source) == "-":
        asked += [(f"-:{n}: ", line.rstrip("\n")) for n, line in enumerate(sys.stdin, start=1)]
    elif source is not None:
        asked += [(f"{source}:{line.number}: ", line.text) for line in read_lines(source)]
    for where, query in asked:
        if not query.strip():
            raise UserError(f"{where}a blank query; remove it, or write what to search for")
    if not asked and not arguments.interactive:
        raise UserError("no query; name one, or give --queries-from FILE or --interactive")
    return [query for _, query in asked]


def _make_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="jaxcpt search",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    what = parser.add_mutually_exclusive_group()
    code = "folder of source code whose functions are searched; needs [mining]"
    what.add_argument("--code", type=Path, metavar="FOLDER", help=code)
    text = "folder of texts, such as .md and .txt, which are searched in pieces"
    what.add_argument("--text", type=Path, metavar="FOLDER", help=text)
    corpus = "JSONL with 'text'; default: the run's own y"
    what.add_argument("--corpus", type=to_path, metavar="FILE", help=corpus)
    vectors = "folder filled by jaxcpt embed"
    what.add_argument("--vectors", type=to_path, metavar="FOLDER", help=vectors)
    add = parser.add_argument
    add("--top", type=int, default=5, metavar="N", help="number of hits; default: %(default)s")
    lines = "lines of each text to show; default: %(default)s"
    add("--lines", type=int, default=12, metavar="N", help=lines)
    add("--json", action="store_true", help="print one JSON object for each query")
    queries = "file with one query a line; -: standard input"
    add("--queries-from", type=Path, metavar="FILE", help=queries)
    interactive = "load once, then answer each line of standard input"
    add("--interactive", action="store_true", help=interactive)
    add("--list", action="store_true", help="list the corpora that are kept, and end")
    add("--clear", action="store_true", help="delete the corpora that are kept, and end")
    add("queries", nargs="*", metavar="QUERY")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _make_parser().parse_args(argv)
    for name, least in (("top", 1), ("lines", 0)):
        if (number := getattr(arguments, name)) < least:
            raise UserError(f"--{name} {number}: must be at least {least}")
    if arguments.vectors and Storage(arguments.width, arguments.int8) != Storage():
        raise UserError("--vectors: comes without --width and --int8; it has its own")
    if arguments.list or arguments.clear:
        read_experiment(arguments.run_dir)  # raises if it is not a run folder
        list_kept(arguments.run_dir)
        if arguments.clear:
            remove_tree(arguments.run_dir / "search")
        return
    queries = read_queries(arguments)
    use_cpu_cores()
    with redirect_stdout(sys.stderr if arguments.json else sys.stdout):  # only JSON goes there
        embedder = load_embedder(arguments)
        corpus = open_corpus(arguments, embedder)

    def answer(asked: Sequence[str]) -> None:
        for query, hits in find(embedder, corpus, asked, arguments.top):
            if arguments.json:
                show_json(query, hits)
            else:
                show(query, len(corpus.vectors), hits, arguments.lines)
        sys.stdout.flush()

    if queries:
        answer(queries)
    if arguments.interactive:
        print("Write one query per line. Ctrl-D ends.", file=sys.stderr)
        for line in filter(str.strip, iter(sys.stdin.readline, "")):
            answer([line.strip()])


if __name__ == "__main__":
    run_command(main)
