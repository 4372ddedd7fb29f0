"""Settings of the data sources: a frozen dataclass for each kind, and `Data`, their mixture.

The classes only hold settings; `jaxcpt.pairs` opens the files that they name. The column of hard
negatives is optional while it has its default name `negatives`. If you name another column, it must
exist: in JSONL and ArrayRecord in at least one pair, in the other formats in every file.
"""

from dataclasses import KW_ONLY, dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Prefixes:
    """Prefixes of the texts of a data source, such as `query: `. Negatives get the y prefix."""

    x_prefix: str = ""
    """Text put before each x."""
    y_prefix: str = ""
    """Text put before each y and each hard negative."""


@dataclass(frozen=True, kw_only=True)
class Columns(Prefixes):
    """Names of the columns, or of the JSON fields, that hold the texts of a pair."""

    x: str = "x"
    """Name of the field or column that holds x."""
    y: str = "y"
    """Name of the field or column that holds y."""
    negatives: str = "negatives"
    """Name of the field or column that lists hard negatives."""


@dataclass(frozen=True)
class PythonPackages(Prefixes):
    """(docstring, function) pairs from the standard library and installed packages.

    Whole modules are held out, until they have `heldout_functions` functions. Training pairs that
    have the same docstring or body as a held-out function are dropped.
    """

    split: Literal["train", "heldout"] = "train"
    """Which part of the mined pairs is read."""
    _: KW_ONLY
    heldout_functions: int = 1000
    """Number of functions to hold out, in whole modules."""
    packages: tuple[str, ...] = ()
    """Import names of the packages to mine, such as `json`. Empty: the standard library and the
    packages that jaxcpt needs."""
    neighbours: bool = False
    """Also train on other texts of the same files: later paragraphs, classes and comments."""


@dataclass(frozen=True)
class JsonlPairs(Columns):
    """A file with one JSON object per line, whose fields `x` and `y` hold the texts."""

    path: str
    """The file. It may be gzipped; its name then ends in .gz."""


@dataclass(frozen=True)
class TfdsPairs(Columns):
    """A prepared tensorflow-datasets dataset in ArrayRecord form, by its directory or its name."""

    directory: str = ""
    """Directory of one version of a dataset. Give this or `name`."""
    _: KW_ONLY
    split: str = "train"
    """Name of the split."""
    prepare: str = ""
    """The command that creates the directory. It is shown if the directory is missing."""
    name: str = ""
    """Name of a dataset instead of a `directory`, such as `paws_wiki` or `mine/config:1.0.0`."""
    data_dir: str | None = None
    """Folder in which the named dataset was prepared. None: the default of tensorflow-datasets."""


@dataclass(frozen=True)
class ArrayRecordPairs(Columns):
    """ArrayRecord files that are not part of a dataset: a file, or a folder of `*.array_record*`.

    Each record is a tf.train.Example with text features, as tensorflow-datasets and the examples of
    grain write it, or a JSON object.
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
    """Name of the split in a saved DatasetDict; empty if a Dataset was saved."""


@dataclass(frozen=True)
class BeirPairs(Prefixes):
    """A search task in BEIR layout: `corpus.jsonl`, `queries.jsonl` and `qrels/<split>.tsv`.

    x is a query, and y is a document (title and text) that the qrels grade above 0. The hard
    negatives are the documents in the file `negatives`, followed by those that the qrels grade 0.
    """

    directory: str
    """The folder of the task."""
    split: str = "train"
    """Which qrels file is read."""
    negatives: str = ""
    """A file of hard negatives in the directory, such as `hard_negatives.tsv`. Like the qrels, it
    has the columns `query-id`, `corpus-id` and `score`. The hardest come first; the score
    must be a number, and is not used."""


@dataclass(frozen=True)
class TokenizedPairs(Prefixes):
    """Token ids that `jaxcpt tokenize-pairs` wrote, for runs that would wait for the tokenizer.

    The run must have the tokenizer and the prefixes with which the ids were made.
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
    """The data sources of a run, and how they are mixed."""

    train: tuple[Source, ...]
    """Sources of the training pairs, mixed by `weights`."""
    weights: tuple[float, ...] = ()
    """Share of each source in a batch; for homogeneous batches, its share of the batches. Empty: in
    proportion to the sizes of the sources."""
    homogeneous: bool = False
    """True: all pairs of a batch are from one source, so that the negatives of a pair are from its
    own source too. False: every batch mixes all sources."""
    heldout: Source | None = None
    """Pairs to score the run on: each x searches the y of all of them. They are not trained on."""
