"""Eight fake devices, tiny models and planted pairs, shared by all tests of a process."""

import os
import signal

# Eight CPU devices on two busy cores can be late for a collective. XLA would abort after 40 s.
# Tests compile much and compute little, so the compiler's last optimisations are turned off.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_cpu_collective_call_terminate_timeout_seconds=600"
    + " --xla_cpu_collective_call_warn_stuck_timeout_seconds=120"
    + " --xla_backend_optimization_level=0"
)

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from jaxcpt.checks import validate
from jaxcpt.config import Batching, Data, Evals, Experiment, JsonlPairs, Model, Optimizer, Tokenizer
from jaxcpt.errors import run_command
from jaxcpt.pair import Pair
from jaxcpt.pairs import PairList, write_pairs
from jaxcpt.tokenizer import train_tokenizer

settings.register_profile("busy", deadline=None)  # a test must not fail because the machine is busy
settings.load_profile("busy")

EXACT: dict[str, float] = {"rtol": 0.0, "atol": 0.0}
CLOSE: dict[str, float] = {"rtol": 1e-5, "atol": 1e-7}  # float32; atol for values about zero

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("JAXCPT_DATA", REPOSITORY.parent / "shared" / "data"))

needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"{DATA} is absent; set JAXCPT_DATA to the evaluation data"
)


def make_pairs(count: int = 90) -> list[Pair]:
    """Pairs of random words. y contains the words of x, so that a model can learn them."""
    random = np.random.default_rng(0)
    words = [f"w{number}" for number in range(150)]
    pairs = []
    for _ in range(count):
        y = random.choice(words, random.integers(4, 24))
        x = random.choice(y, random.integers(1, 5))
        negatives = tuple(" ".join(random.choice(words, 6)) for _ in range(random.integers(0, 3)))
        pairs.append(Pair(" ".join(x), " ".join(y), "made", negatives))
    return pairs


PAIRS = make_pairs()


def change(node, names, value):
    """A copy of the dataclass `node`, in which the field at the path `names` is changed."""
    name, *rest = names
    return replace(node, **{name: change(getattr(node, name), rest, value) if rest else value})


def make_experiment(path: Path | str = "pairs.jsonl", **changes: object) -> Experiment:
    """A tiny experiment in float32. changes: fields of its parts, as `part__field=value`."""
    experiment = Experiment(
        name="tiny",
        train_steps=6,
        data=Data(train=(JsonlPairs(str(path)),), heldout=JsonlPairs(str(path))),
        tokenizer=Tokenizer(vocabulary=400, x_tokens=12, y_tokens=24),
        batching=Batching(pairs_per_batch=15, row_tokens=32),
        model=Model(width=16, layers=2, heads=4, compute_dtype="float32"),
        optimizer=Optimizer(learning_rate=1e-3, warmup_steps=1),
        log_every_steps=1,
        evals=Evals(every_steps=3),
    )
    for name, value in changes.items():
        experiment = change(experiment, name.split("__"), value)
    return validate(experiment)


@pytest.fixture(scope="session")
def tokenizer():
    settings = make_experiment().tokenizer
    return train_tokenizer([text for pair in PAIRS for text in (pair.x, pair.y)], settings)


@pytest.fixture(scope="session")
def sources():
    return [PairList(PAIRS)]


@pytest.fixture
def pairs_file(tmp_path):
    path = tmp_path / "pairs.jsonl"
    write_pairs(path, PAIRS)
    return path


@pytest.fixture
def as_many_cores_as_devices(monkeypatch):
    """Keeps the commands from making each core a device: this process already has its devices."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))


@pytest.fixture
def hangups():
    """Gives SIGHUP its default handler, because nohup makes a process ignore the signal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def pytest_addoption(parser):
    parser.addoption("--write-skipped", type=Path, help="list skipped tests and files there")
    parser.addoption("--only-listed", type=Path, help="run the tests and files listed there")


def pytest_configure(config):
    config.pluginmanager.register(SkippedTests(config), "skipped_tests")


class SkippedTests:
    """Lets a second run, with more libraries, run only the tests that the first run skipped."""

    def __init__(self, config):
        # With `-n`, the workers report to the process that started them, and that one writes.
        worker = hasattr(config, "workerinput")
        self.write_to = None if worker else config.getoption("--write-skipped")
        self.read_from = config.getoption("--only-listed")
        self.skipped = []

    def pytest_collectreport(self, report):  # a whole file may be skipped
        if report.skipped:
            self.skipped.append(report.nodeid)

    def pytest_runtest_logreport(self, report):
        if report.skipped and not hasattr(report, "wasxfail"):
            self.skipped.append(report.nodeid)

    def pytest_collection_modifyitems(self, config, items):
        if self.read_from is not None:
            listed = set(self.read_from.read_text().splitlines())
            wanted = [i for i in items if {i.nodeid, i.nodeid.split("::")[0]} & listed]
            config.hook.pytest_deselected(items=[i for i in items if i not in wanted])
            items[:] = wanted

    def pytest_sessionfinish(self):
        if self.write_to is not None:
            self.write_to.write_text("".join(f"{name}\n" for name in self.skipped))


@pytest.fixture
def refuse(capsys):
    """A function that runs a command that must raise UserError, and returns the error's line."""

    def call(module, *arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            run_command(module.main, list(map(str, arguments)))
        assert left.value.code == 2
        said = capsys.readouterr().err
        assert said.startswith("jaxcpt: ")
        assert said.count("\n") == 1
        return said.removeprefix("jaxcpt: ").rstrip("\n")

    return call
