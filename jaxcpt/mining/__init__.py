"""Documents in, pairs out: pure functions that know no model, no tokenizer and no batch."""
