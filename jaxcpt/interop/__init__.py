"""Hugging Face folders in, run folders out: safetensors, a table of names for each family."""

from jaxcpt.interop.importing import Choices, import_model

__all__ = ["Choices", "import_model"]
