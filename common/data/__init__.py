"""Annotated sequences: loading them from folders, dealing them out to edges, and the built-in clip."""

from fogline.common.data.load import load_sequence
from fogline.common.data.sequence import AnnotatedSequence, Frame
from fogline.common.data.split import split_runs, split_train_eval

__all__ = ["AnnotatedSequence", "Frame", "load_sequence", "split_runs", "split_train_eval"]
