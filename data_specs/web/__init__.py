"""HTTP servers and pages of both halves: the rules for every request, and the elements that both pages are made of."""

from __future__ import annotations

from pathlib import Path

PAGE_KIT = Path(__file__).with_name("page")
"""Folder of the files that both pages import, served beside their own."""
