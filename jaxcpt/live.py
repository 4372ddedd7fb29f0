"""Sends the numbers of a run to Weights & Biases and to MLflow while it trains.

In: scalars by name, and their step. Out: calls of the libraries wandb and mlflow. Where they write,
and under which project or experiment, is set by their own environment variables, such as WANDB_MODE
and MLFLOW_TRACKING_URI. `live.json` in the run folder keeps the ids there, so that a resumed run
goes on in the same place. The module does not know what the numbers mean.
"""

import argparse
import importlib.util
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from jaxcpt.errors import UserError
from jaxcpt.experiments import EXPERIMENT_FILE
from jaxcpt.files import write_file

LIVE_FILE = "live.json"


class Board(Protocol):
    """A place that shows the numbers of a run."""

    id: str

    def log(self, step: int, scalars: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class WandbBoard:
    """A run of Weights & Biases. The step is one of its numbers, because a step may come twice."""

    def __init__(self, name: str, id: str | None, settings: dict[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "jaxcpt"),
            name=name,
            id=id,
            resume="allow",
            config=settings,
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("*", step_metric="step")
        self.id = self._run.id

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log({"step": step, **scalars})

    def close(self) -> None:
        self._run.finish()


class MlflowBoard:
    """A run of MLflow."""

    def __init__(self, name: str, id: str | None, settings: dict[str, Any]) -> None:
        import mlflow

        self._mlflow = mlflow
        mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "jaxcpt"))
        self.id = mlflow.start_run(run_id=id, run_name=name).info.run_id
        mlflow.log_dict(settings, EXPERIMENT_FILE)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(scalars), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


BOARDS: dict[str, Callable[[str, str | None, dict[str, Any]], Board]] = {
    "wandb": WandbBoard,
    "mlflow": MlflowBoard,
}


def add_live_arguments(parser: argparse.ArgumentParser) -> None:
    """`--wandb` and `--mlflow`, which fill `live` with the names of their libraries."""
    for library in BOARDS:
        parser.add_argument(
            f"--{library}",
            action="append_const",
            dest="live",
            const=library,
            default=[],
            help=f"send the numbers there too (pip install 'jaxcpt[{library}]')",
        )


def check_libraries(libraries: Iterable[str]) -> None:
    """Raises UserError where one is not installed."""
    for library in libraries:
        if importlib.util.find_spec(library) is None:
            raise UserError(f"--{library}: needs {library}: pip install 'jaxcpt[{library}]'")


class LiveBoards:
    """All boards of a run. One that fails is named, and gets nothing more before the next start."""

    def __init__(
        self, libraries: Iterable[str], run_dir: Path, warn: Callable[[str], None]
    ) -> None:
        """Goes on with the runs that this run folder has begun there, or begins new ones.

        Raises UserError with the first line of what a library says.
        """
        self._warn = warn
        self._boards: dict[str, Board] = {}
        path = run_dir / LIVE_FILE
        ids = json.loads(path.read_text()) if path.is_file() else {}
        for library in dict.fromkeys(libraries):
            settings = json.loads((run_dir / EXPERIMENT_FILE).read_text())
            try:
                board = BOARDS[library](run_dir.name, ids.get(library), settings)
            except Exception as error:
                raise UserError(f"--{library}: {describe_error(error)}") from error
            self._boards[library] = board
            ids[library] = board.id
            write_file(path, json.dumps(ids))

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._call(lambda board: board.log(step, scalars))

    def close(self) -> None:
        self._call(lambda board: board.close())

    def _call(self, call: Callable[[Board], None]) -> None:
        for library, board in list(self._boards.items()):
            try:
                call(board)
            except Exception as error:
                del self._boards[library]
                self._warn(f"{library} gets no more numbers of this start: {describe_error(error)}")


def describe_error(error: Exception) -> str:
    """The kind of an error and the first line of its text."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
