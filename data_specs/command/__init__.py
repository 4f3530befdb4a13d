"""Command lines of both halves: arguments, output for programs, missing extras, an embedded Ray."""
