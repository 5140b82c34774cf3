"""facemetric: from a folder of faces to a verified identity embedding."""

__version__ = "0.1.0"
