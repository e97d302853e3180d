"""Data files for trainers that read files: weights as a field, epochs of draws as rows."""

from flowdata.data_files.attach import attach_file as attach_file
from flowdata.data_files.export import export_file as export_file
from flowdata.data_files.manifest import verify_file as verify_file
