"""The commands of `wenlan-data`, one file per group, and its terminal output.

A command is a function `add_NAME(commands)`, which declares its arguments, and a function that does the work: it
receives the parsed arguments and returns the object printed with --json. Whatever is slow to import (Arrow, Ray, the
stages) is imported inside that function, so that `wenlan-data --help` answers at once.
"""
