"""Progress is drawn where it can be seen."""

from __future__ import annotations

import pytest

from training.outputs.progress import Progress


@pytest.mark.parametrize("seen", ["rich.console.Console.is_terminal", "rich.console._is_jupyter"])
def test_a_bar_is_drawn_on_a_terminal_and_in_a_notebook(seen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Progress(3, "pictures")._bar.disable
    monkeypatch.setattr(seen, lambda *_: True)
    assert not Progress(3, "pictures")._bar.disable
    assert Progress(0, "pictures")._bar.disable, "nothing to show"
