"""Peak memory of `jaxcpt import` on a made-up Llama model of a given size.

    python tools/bench_import.py --gigabytes 2

Private memory (RssAnon) is what the import asks for. The files that it maps (RssFile) are pages of
the disk that the system takes back when it needs them.
"""

import argparse
import json
import struct
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from jaxcpt.interop import import_model
from jaxcpt.interop.convert import list_slots
from jaxcpt.interop.families import FAMILIES, Options
from jaxcpt.interop.importing import measure_letters
from jaxcpt.interop.safetensors import WEIGHTS_FILE

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "intermediate_size": 5632,
    "max_position_embeddings": 512,
    "vocab_size": 32_000,
}


def write_model(folder: Path, layers: int) -> int:
    """A folder with random float32 weights; returns their bytes."""
    values = CONFIG | {"num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(values))
    model = FAMILIES["llama"].read(Options(values, "made-up"))
    slots = list_slots(FAMILIES["llama"], measure_letters(model, values["vocab_size"]))
    header, end = {}, 0
    for name, slot in slots.items():
        size = 4 * int(np.prod(slot.shape))
        header[name] = {"dtype": "F32", "shape": slot.shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    block = np.random.default_rng(0).normal(size=1 << 20).astype(np.float32).tobytes()
    with (folder / WEIGHTS_FILE).open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for start in range(0, end, len(block)):
            file.write(block[: end - start])
    words = {word: number for number, word in enumerate("[]{}a")}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return end


def read_memory() -> dict[str, int]:
    """This process's memory now, in bytes."""
    status = Path("/proc/self/status").read_text()
    names = ("RssAnon", "RssFile", "VmHWM")
    return {name: 1024 * int(status.split(f"{name}:")[1].split()[0]) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.0)
    layers = max(round((parser.parse_args().gigabytes * 1e9 - 262e6) / 205.5e6), 1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "folder")
        folder.mkdir()
        size = write_model(folder, layers)
        before, peak, done = read_memory()["RssAnon"], [0], threading.Event()

        def watch() -> None:
            while not done.wait(0.01):
                peak[0] = max(peak[0], read_memory()["RssAnon"])

        watcher = threading.Thread(target=watch)
        watcher.start()
        start = time.perf_counter()
        import_model(str(folder), Path(scratch, "run"))
        seconds = time.perf_counter() - start
        done.set()
        watcher.join()
    largest = 4 * layers * CONFIG["hidden_size"] * CONFIG["intermediate_size"]
    print(f"weights {size / 1e9:.2f} GB, largest parameter {largest / 1e9:.2f} GB, {seconds:.0f} s")
    print(f"private memory: {before / 1e9:.2f} GB before, {peak[0] / 1e9:.2f} GB at most")
    print(f"with mapped files: {read_memory()['VmHWM'] / 1e9:.2f} GB at most")


if __name__ == "__main__":
    main()
