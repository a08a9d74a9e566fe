from .collect import inputs_of, samples_of, second_moments
from .keys import SubjectRow, check_subject, keys_of, subject_row
from .whitening import RIDGE, Whitening


__all__ = [
    "RIDGE",
    "SubjectRow",
    "Whitening",
    "check_subject",
    "inputs_of",
    "keys_of",
    "samples_of",
    "second_moments",
    "subject_row",
]
