"""Mines deduplicated pairs from raw text and source code.

In: files. Out: a tensorflow-datasets folder of pairs. The package knows no model, no tokenizer and
no batch.
"""
