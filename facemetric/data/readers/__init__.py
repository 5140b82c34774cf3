"""Readers of images. To add one: a file beside these with a subclass of `Reader`, and its line here."""

from facemetric.data.readers.bin import BinReader
from facemetric.data.readers.csv import CsvReader
from facemetric.data.readers.lmdb import LmdbReader
from facemetric.data.readers.parquet import ParquetReader
from facemetric.data.readers.reader import Reader
from facemetric.data.readers.rec import RecReader
from facemetric.data.readers.tar import TarReader

READERS: dict[str, type[Reader]] = {  # by the ending of a file; folders are read by folder.FolderReader
    ".csv": CsvReader,
    ".tar": TarReader,
    ".bin": BinReader,
    ".rec": RecReader,
    ".parquet": ParquetReader,
    ".lmdb": LmdbReader,
    ".mdb": LmdbReader,
}
