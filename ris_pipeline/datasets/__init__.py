"""Data sets: images, refs and expressions, and a reader for each format."""

from ris_pipeline.datasets.card import Card as Card
from ris_pipeline.datasets.card import load_card as load_card
from ris_pipeline.datasets.load import describe_missing as describe_missing
from ris_pipeline.datasets.load import list_files as list_files
from ris_pipeline.datasets.load import load_dataset as load_dataset
from ris_pipeline.datasets.records import Annotation as Annotation
from ris_pipeline.datasets.records import Dataset as Dataset
from ris_pipeline.datasets.records import Expression as Expression
from ris_pipeline.datasets.records import Image as Image
from ris_pipeline.datasets.records import Ref as Ref
