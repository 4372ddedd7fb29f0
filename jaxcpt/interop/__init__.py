"""Hugging Face folders in, run folders out: safetensors, a table of names for each family."""

from jaxcpt.interop.importing import Choices, foresee_import, import_model

__all__ = ["Choices", "foresee_import", "import_model"]
