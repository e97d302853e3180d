"""The version of flowdata, where any module can read it."""

__version__ = "0.1.0"
