"""Writes run folders with known numbers, and parses the pages that are made from them."""

import json
import math
import re
from html.parser import HTMLParser

from jaxcpt.config import Batching, Data, Experiment, Model, Optimizer, PythonPackages, Tokenizer
from jaxcpt.experiments import to_json
from jaxcpt.metrics import MetricsLog

EXPERIMENT = Experiment(
    name="planted",
    train_steps=400,
    data=Data(train=(PythonPackages(packages=("json", "email")),)),
    tokenizer=Tokenizer(vocabulary=600),
    batching=Batching(pairs_per_batch=30),
    model=Model(width=32, layers=2, heads=4),
    optimizer=Optimizer(learning_rate=0.123),
)
TABLE = [
    {"name": "this run", "mrr": 0.5432, "recall_at_1": 0.4},
    {"name": "BM25", "mrr": 0.4711, "recall_at_1": 0.45},
    {"name": "chance", "mrr": 0.0075},
]
RESULT = {"score": 0.8125, "text": "def f(a):\n    return a", "source": "m.f", "right": True}
SUMMARY = {
    "table": TABLE,
    "examples": [{"query": "find f", "results": [RESULT, RESULT | {"right": False}]}],
    "derived": {"parameters": "3.1 M"},
}
VOID = {"meta"}


class Page(HTMLParser):
    """A parsed page: its text, tags in order, and their attributes. Fails if tags do not nest."""

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)


def scalars_at(step):
    return {
        "loss": 100 / step,
        "accuracy_x_to_y": 0.5,
        "accuracy_y_to_x": 0.7,
        "scale": 14.0,
        "learning_rate": 0.001,
        "gradient_norm": 2.0 + math.sin(step),
        "padding": 0.031,
        "pairs_per_s": 10.0 if step == 1 else 400.0,
        "tokens_per_s": 58_123.0,
    }


def plant(run_dir, steps, planted=None, summary=None):
    """Writes a run folder as training does. planted: scalars of steps that replace others."""
    run_dir.mkdir(exist_ok=True)
    (run_dir / "experiment.json").write_text(to_json(EXPERIMENT))
    with MetricsLog(run_dir, EXPERIMENT.train_steps, 0, writes=True) as log:
        for step in range(1, steps + 1):
            log.log(step, scalars_at(step) | (planted or {}).get(step, {}))
            if step % 100 == 0:
                log.log_evals(step, {"heldout/mrr": step / 1000, "baseline/mrr": 0.3})
    if summary:
        (run_dir / "summary.json").write_text(json.dumps(summary))
    return run_dir


def headings(page):
    return re.findall(r"<h2>(.*?)</h2>", page.source)


def charts(page):
    return re.findall(r"<figcaption><b>(.*?)</b>", page.source)
