"""The command `jaxcpt export`: writes a run as a folder that other libraries load.

jaxcpt export --run-dir RUN --output DIR [--dtype bfloat16] [--format safetensors]
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from jaxcpt.adapter import merge_adapters
from jaxcpt.embed import Embedder
from jaxcpt.errors import CommandParser, UserError, run_command
from jaxcpt.experiments import read_experiment
from jaxcpt.files import new_folder, to_path
from jaxcpt.interop.card import read_data_cards, write_card
from jaxcpt.interop.exporting import DTYPES, ExportedRun, export_arrays, export_library
from jaxcpt.metrics import EVALS_FILE, find_row
from jaxcpt.pair import Side
from jaxcpt.prefixes import add_prefix_options, describe_differences, read_prefix_options

FORMATS = {"sentence-transformers": export_library, "safetensors": export_arrays}


def export_run(
    run_dir: Path,
    output: Path,
    step: int | None,
    dtype: str,
    form: str,
    prefixes: Mapping[Side, str] | None = None,
) -> list[str]:
    """Writes the folder. Returns lines that say what differs from the run.

    form: sentence-transformers or safetensors. prefixes: for some sides, the prompt of the exported
    model instead of the run's prefix. If it raises UserError, no folder is left.
    """
    if output.exists():
        raise UserError(f"{output}: exists; name an output folder that does not exist")
    for_library = form == "sentence-transformers"
    embedder = Embedder.load(run_dir, step, prefixes=prefixes, embeds=for_library)
    experiment, params = embedder.experiment, embedder.params
    if experiment.adapter is not None:
        params = merge_adapters(params, experiment.adapter)
        experiment = replace(experiment, adapter=None)
    params = jax.tree.map(np.asarray, jax.device_get(params))
    scores = find_row(run_dir / EVALS_FILE, embedder.step)
    run = ExportedRun(
        experiment=experiment,
        tokenizer=embedder.tokenizer,
        params=params,
        prompts={"query": embedder.prefixes["x"], "document": embedder.prefixes["y"]},
        card=write_card(
            embedder.experiment,
            embedder.step,
            output.name,
            scores,
            read_data_cards(embedder.experiment),
            for_library,
        ),
    )
    with new_folder(output) as folder:
        return FORMATS[form](run, folder, dtype)


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(
        prog="jaxcpt export", description="Write a run as a folder that other tools load."
    )
    parser.add_argument("--run-dir", required=True, type=to_path, help="a trained or imported run")
    parser.add_argument("--step", type=int, help="default: the newest whole checkpoint")
    add_prefix_options(parser)
    parser.add_argument("--output", required=True, type=to_path, help="folder to make")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32")
    parser.add_argument(
        "--format",
        choices=tuple(FORMATS),
        default="sentence-transformers",
        help="safetensors: only the arrays, under jaxcpt's own names; works for any run",
    )
    arguments = parser.parse_args(argv)
    given = read_prefix_options(arguments)
    notes = export_run(
        arguments.run_dir,
        arguments.output,
        arguments.step,
        arguments.dtype,
        arguments.format,
        given,
    )
    for line in describe_differences(read_experiment(arguments.run_dir), given):
        print(line)
    for note in notes:
        print(f"note: {note}")
    print(f"{arguments.output}: {arguments.format}, {arguments.dtype}")


if __name__ == "__main__":
    run_command(main)
