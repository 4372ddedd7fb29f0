"""Explains each number of the page in one line.

In: the name of a number. Out: a sentence. The module does not know the values.
"""

import re

RATES = "The first step of each start is slower."
MEANINGS = {
    "loss": "Mean cross-entropy of finding the other text of each pair among all texts of the "
    "batch, in both directions. A new model starts near ln(pairs in a batch), which is chance.",
    "accuracy_x_to_y": "Share of x whose own y is nearest among all y of the batch.",
    "accuracy_y_to_x": "Share of y whose own x is nearest among all x of the batch.",
    "mrr": "Mean of 1 / rank of the right text; 1 means that it always comes first.",
    "scale": "The learnt factor on the cosines before the softmax.",
    "learning_rate": "The size of the optimizer's steps.",
    "gradient_norm": "Length of the whole gradient before clipping. A jump shows an unstable step.",
    "pairs_per_s": f"Pairs that all devices train on in a second. {RATES}",
    "tokens_per_s": f"Tokens that all devices train on in a second, without padding. {RATES}",
    "padding": "Share of the computed tokens that are padding, which is wasted work.",
    "data_wait": "Share of the time in which the devices wait for the next batch.",
    "save_share": "Share of the time since the row before that was spent on saving.",
    "eval_share": "Share of the time since the row before that was spent on evals. All other rates "
    "leave out the time of saves and evals.",
    "mfu": "Useful FLOP/s as a share of the published peak of the devices.",
    "alignment": "Mean squared distance between the two texts of a pair. Lower is closer.",
    "uniformity": "Log of how near the texts of different pairs are. Lower is more spread out.",
    "zx_norm": "Mean length of the vectors of x before they are scaled to length 1.",
    "zy_norm": "Mean length of the vectors of y before they are scaled to length 1.",
    "masked_duplicates": "Comparisons left out because both texts are equal.",
    "masked_overflow": "Pairs of the batch that did not fit into its rows and were left out.",
    "predicted": "Tokens that the step predicted.",
    "bad_steps": "Steps in a row whose loss or gradient was not finite. They changed nothing.",
    "bits_per_byte": "Bits that the model needs for a byte of text. Lower is better.",
    "perplexity": "exp of the mean cross-entropy of a token. Lower is better.",
    "recall_at_1": "Share of the searches whose first text is right.",
    "map": "Mean average precision: how early all right texts come. 1 is best.",
    "spearman": "How well the order of the cosines agrees with people's ratings. 1 is best.",
    "pearson": "Linear correlation of the cosines with people's ratings. 1 is best.",
}
GENERATIVE_LOSS = "Mean cross-entropy of the next token, in nats. Lower is better."
PATTERNS = {
    r"recall_at_(\d+)": "Share of the right texts that are among the first {}.",
    r"mrr_at_(\d+)": "Mean of 1 / rank of the right text; a rank above {} counts as 0.",
    r"ndcg_at_(\d+)": "How early the right texts come among the first {}. 1 is best.",
    r"answer_recall_at_(\d+)": "Share of questions whose answer is in one of the first {} texts.",
}


def explain(name: str, is_generative: bool = False) -> str:
    """The sentence for a scalar or a score, such as `heldout/mrr`; empty for an unknown name."""
    name = name.rpartition("/")[2]
    if name == "loss" and is_generative:
        return GENERATIVE_LOSS
    if name in MEANINGS:
        return MEANINGS[name]
    for pattern, meaning in PATTERNS.items():
        if found := re.fullmatch(pattern, name):
            return meaning.format(found[1])
    return ""
