from .edit import Edit
from .formats import FORMATS
from .readers import read_edits
from .reference import reference_prompts, reference_relations


__all__ = ["FORMATS", "Edit", "read_edits", "reference_prompts", "reference_relations"]
