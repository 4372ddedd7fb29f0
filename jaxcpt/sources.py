"""Where pairs come from: one frozen dataclass for each kind of source, and `Data`, their mixture.

They hold values alone; `jaxcpt.pairs` opens what they name. The column `negatives` is optional. If
you name another column of hard negatives, it must exist: in JSONL and ArrayRecord in one pair at
least, in the other formats in every file.
"""

from dataclasses import KW_ONLY, dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Prefixes:
    """What every text of a source begins with, such as `query: `. Negatives get the y prefix."""

    x_prefix: str = ""
    """Text put before each x."""
    y_prefix: str = ""
    """Text put before each y and each hard negative."""


@dataclass(frozen=True, kw_only=True)
class Columns(Prefixes):
    """Where a row or a JSON object holds the texts of its pair."""

    x: str = "x"
    """Name of the field or column that holds x."""
    y: str = "y"
    """Name of the field or column that holds y."""
    negatives: str = "negatives"
    """Name of the field or column that lists hard negatives."""


@dataclass(frozen=True)
class PythonPackages(Prefixes):
    """(docstring, function) pairs from the standard library and installed packages.

    The split is by module: whole modules are held out until they hold `heldout_functions`, and
    training pairs that share a docstring or a body with them are dropped.
    """

    split: Literal["train", "heldout"] = "train"
    """train or heldout part of the mined pairs."""
    _: KW_ONLY
    heldout_functions: int = 1000
    """Functions that are held out, in whole modules."""
    packages: tuple[str, ...] = ()
    """Import names to mine, such as `json`; empty: the standard library and jaxcpt's own needs."""
    neighbours: bool = False
    """Train on other texts of the same files too: later paragraphs, classes, comments."""


@dataclass(frozen=True)
class JsonlPairs(Columns):
    """One JSON object a line, with the two texts under `x` and `y`; may end in .gz."""

    path: str
    """The file."""


@dataclass(frozen=True)
class TfdsPairs(Columns):
    """A prepared tensorflow-datasets dataset in ArrayRecord form, by its directory or its name."""

    directory: str = ""
    """Directory of one version of a dataset. Give this or `name`."""
    _: KW_ONLY
    split: str = "train"
    """Name of the split."""
    prepare: str = ""
    """The command that makes the directory, shown when it is missing."""
    name: str = ""
    """In place of `directory`: a name such as `paws_wiki` or `mine/config:1.0.0`."""
    data_dir: str | None = None
    """Where the dataset of that name was prepared; None: where tensorflow-datasets puts it."""


@dataclass(frozen=True)
class ArrayRecordPairs(Columns):
    """ArrayRecord files without a dataset round them: a file, or a folder of `*.array_record*`.

    Each record is a tf.train.Example with text features, as tensorflow-datasets and grain's own
    examples write it, or a JSON object.
    """

    path: str
    """A file or a folder."""


@dataclass(frozen=True)
class ParquetPairs(Columns):
    """A Parquet file, or a folder of `*.parquet` in the order of their names."""

    path: str
    """A file or a folder."""


@dataclass(frozen=True)
class DatasetsPairs(Columns):
    """A Hugging Face dataset as `save_to_disk` writes it, read through a memory map."""

    directory: str
    """The folder that `save_to_disk` wrote."""
    _: KW_ONLY
    split: str = ""
    """Of a saved DatasetDict; empty where a Dataset was saved."""


@dataclass(frozen=True)
class BeirPairs(Prefixes):
    """A search task in BEIR layout: `corpus.jsonl`, `queries.jsonl` and `qrels/<split>.tsv`.

    x is a query and y a document (title and text) that the qrels grade above 0. Those graded 0
    are its hard negatives, after those that `negatives` lists.
    """

    directory: str
    """The folder of the task."""
    split: str = "train"
    """Which qrels file is read."""
    negatives: str = ""
    """A file in the directory like the qrels, such as `hard_negatives.tsv`: `query-id`,
    `corpus-id` and `score`, hardest first; the score is not read."""


@dataclass(frozen=True)
class TokenizedPairs(Prefixes):
    """Token ids that `jaxcpt tokenize-pairs` wrote, for where tokenising is the limit.

    The tokenizer and the prefixes must be those that they were made with.
    """

    directory: str
    """The folder that `jaxcpt tokenize-pairs` wrote."""


Source = (
    PythonPackages
    | JsonlPairs
    | TfdsPairs
    | ArrayRecordPairs
    | ParquetPairs
    | DatasetsPairs
    | BeirPairs
    | TokenizedPairs
)


@dataclass(frozen=True)
class Data:
    """The sources of a run, and how they are mixed."""

    train: tuple[Source, ...]
    """Sources that are trained on, mixed by `weights`."""
    weights: tuple[float, ...] = ()
    """Share of each source in a batch, or of the batches where they are homogeneous; empty: in
    proportion to their sizes."""
    homogeneous: bool = False
    """Each batch from one source, so that negatives are of its kind, instead of from all."""
    heldout: Source | None = None
    """Pairs never trained on: the x of each searches the y of all."""
