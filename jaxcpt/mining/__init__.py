"""Raw text and source code in, deduplicated pairs out.

It knows no model, no tokenizer and no batch.
"""
