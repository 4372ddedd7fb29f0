"""The command `jaxcpt`: the table of its verbs, in the order of use.

Each verb is a module with `main(argv)`. The module is imported only when its verb is called, so
the help needs no JAX.
"""

import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

from jaxcpt import __version__
from jaxcpt.errors import UserError, ending_at_once, find_nearest, run_command

VERBS = {
    "mine-text": "documents to pairs of neighbouring pieces of text",
    "mine-code": "source code to pairs of documentation and function",
    "clean-pairs": "deduplicate and decontaminate pairs that you already have",
    "nli-pairs": "entailment and contradiction (SNLI, MNLI) to pairs with hard negatives",
    "train-tokenizer": "pairs to a SentencePiece vocabulary",
    "tokenize-pairs": "pairs to token ids on disk, for runs that wait for the tokenizer",
    "import": "a Hugging Face model to a run folder at step 0",
    "init": "write a commented experiment for your own pairs",
    "inspect": "what a run would train on: lengths, what is cut, copies, padding, examples",
    "plan": "memory, traffic and time of a run, before you rent the machine",
    "train": "train an experiment, or resume its run",
    "replay": "repeat a training step that was not finite, and show where that began",
    "evaluate": "score runs on held-out pairs, the paper's suites or MTEB",
    "mine-negatives": "find hard negatives for pairs with a trained run",
    "search": "search texts with a trained run",
    "embed": "texts to unit vectors, in shards on disk",
    "vectors": "shards of vectors to one file that another search index reads",
    "export": "a run to a folder that sentence-transformers and transformers load",
    "report": "write the HTML report of a run again, or compare several runs",
}

MODULES = {"import": "import_model", "init": "init_experiment", "inspect": "inspect_pairs"}
"""The modules of those verbs whose own name cannot be the name of a module."""

MINING_VERBS = ("mine-text", "mine-code", "clean-pairs")
"""The verbs that need the libraries of the extra `mining`."""


def describe_verbs() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:{width}}  {purpose}" for verb, purpose in VERBS.items()]
    return "\n".join(
        [
            "usage: jaxcpt VERB [options]",
            "",
            "Contrastive pre-training of text and code embeddings. The verbs, in the order of use:",
            "",
            *lines,
            "",
            "jaxcpt VERB --help lists the options of a verb; jaxcpt --version prints the version.",
        ]
    )


def import_verb(verb: str) -> ModuleType:
    """Imports the module of a verb. Raises UserError if a library of an extra is missing."""
    try:
        with ending_at_once():
            return importlib.import_module(f"jaxcpt.{MODULES.get(verb, verb.replace('-', '_'))}")
    except ModuleNotFoundError as error:
        if verb not in MINING_VERBS or (error.name or "").startswith("jaxcpt"):
            raise
        raise UserError(f"{verb}: needs {error.name}: pip install 'jaxcpt[mining]'") from None


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the verb that `argv` (default: the command line) names. Raises UserError."""
    verb, *rest = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if verb in ("-h", "--help"):
        print(describe_verbs())
    elif verb == "--version":
        print(f"jaxcpt {__version__}")
    elif verb in VERBS:
        import_verb(verb).main(rest)
    else:
        names = find_nearest(verb, VERBS)
        near = f"nearest: {', '.join(names)}; " * bool(names)
        raise UserError(f"{verb}: no such verb; {near}there are {', '.join(VERBS)}")


def run() -> None:
    """The entry point of the installed command."""
    run_command(main)


if __name__ == "__main__":
    run()
