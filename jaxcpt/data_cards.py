"""Reads the data card of a folder of mined pairs: their number, and what they were mined from.

In: a folder. Out: the object in its `data_card.json`, which mining wrote. The module does not know
the pairs themselves.
"""

import json
from typing import Any

from jaxcpt.errors import UserError
from jaxcpt.files import to_path

DataCard = dict[str, Any]
CARD_TABLES = ("pairs", "counts", "dropped", "options")


def read_data_card(folder: str) -> DataCard | None:
    """The data card of a folder; None if there is no folder or it has no data card.

    folder: an empty name means a source without a folder. Raises UserError if the card is damaged.
    """
    file = to_path(folder) / "data_card.json"
    if not folder or not file.is_file():
        return None
    try:
        card = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not JSON: {str(error)[:200]}; mine the pairs again") from None
    if not isinstance(card, dict):
        raise UserError(f"{file}: damaged: expected an object; mine the pairs again")
    if missing := [part for part in ("name", "version", *CARD_TABLES) if part not in card]:
        raise UserError(f"{file}: damaged: it has no {missing[0]}; mine the pairs again")
    if wrong := [part for part in CARD_TABLES if not isinstance(card[part], dict)]:
        raise UserError(f"{file}: damaged: {wrong[0]} is not an object; mine the pairs again")
    return card
