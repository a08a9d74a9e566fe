from .edit import Edit
from .readers import read_edits
from .reference import reference_prompts, reference_relations


__all__ = ["Edit", "read_edits", "reference_prompts", "reference_relations"]
