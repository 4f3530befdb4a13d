"""img2dataset's downloader: what it is loaded with. Downloads from real servers: stages/test_fetch.py."""

from __future__ import annotations

import subprocess
import sys


def test_the_downloader_comes_without_what_its_package_imports():
    code = (
        "import sys; from pipeline.web.downloader import downloader_class; "
        "assert downloader_class().__name__ == 'Downloader'; "
        "print([n for n in ('torch', 'pandas', 'cv2', 'albumentations', 'wandb', 'img2dataset') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.strip() == "[]"
