"""Imports Hugging Face folders as run folders, and exports runs as folders for other libraries.

In: a Hugging Face folder, or a run. Out: a run folder, or a folder that other libraries load. The
package does not know how a run trains. `families` has a table of tensor names for each family of
models.
"""

from jaxcpt.interop.importing import Choices, foresee_import, import_model

__all__ = ["Choices", "foresee_import", "import_model"]
