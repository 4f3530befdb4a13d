"""models: a model that is not there, or is none, is named."""

from __future__ import annotations

import pytest

from pipeline.errors import ModelError
from pipeline.pictures import models


def test_a_model_that_is_not_installed_is_named_before_anything_runs() -> None:
    with pytest.raises(ModelError, match=r"^some-package: not installed: pip install .*\[models\]'"):
        models.find("no_such_package_here", "*.onnx", "some-package")
    with pytest.raises(ModelError, match=r"^numpy: contains no \*\.onnx"):
        models.find("numpy", "*.onnx", "numpy")
