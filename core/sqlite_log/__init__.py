"""The log in one SQLite file: the default on one machine, durable with every acknowledgement."""

from .check import Report, check_file
from .readonly import ReadOnlyLog, check_there
from .writer import SqliteLog

__all__ = ["ReadOnlyLog", "Report", "SqliteLog", "check_file", "check_there"]
