"""models: a model that is not there, or is none, is named."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import ModelError
from pipeline.pictures import models


def test_a_model_that_is_not_installed_is_named_before_anything_runs() -> None:
    with pytest.raises(ModelError, match=r"^some-package: is not installed; .*pip install 'wenlan\[models\]'"):
        models.find("no_such_package_here", "*.onnx", "some-package")
    with pytest.raises(ModelError, match=r"^numpy: holds no \*\.onnx"):
        models.find("numpy", "*.onnx", "numpy")


def test_a_model_that_is_none_is_named(tmp_path: Any) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"x\.onnx: is not an ONNX model"):
        models.session(tmp_path / "x.onnx")
