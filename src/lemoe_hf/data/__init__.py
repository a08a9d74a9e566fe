from .edit import Edit
from .readers import read_edits
from .reference import reference_prompts


__all__ = ["Edit", "read_edits", "reference_prompts"]
