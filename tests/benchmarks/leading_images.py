"""Images that lead, at the shipped radius and threshold: for benchmarks that ask image by image."""

from __future__ import annotations

from typing import Any

import numpy as np


class Leaders:
    """Looks of images in the order in which they were added."""

    def __init__(self, turned: bool = False) -> None:
        """turned: as `dedup.image_turned`."""
        self._turned, self._looks = turned, list[tuple[Any, Any, Any]]()

    def add(self, phash: Any, signature: Any, details: Any) -> None:
        """Add one image."""
        self._looks.append((phash, signature, details))

    def first(self, phash: Any, signature: Any, details: Any) -> Any:
        """[N] the number of the first leader that each image looks like, -1 for none."""
        from data_specs.build import Dedup
        from pipeline.matching.image_comparison import Details, Rule
        from pipeline.matching.image_edges import first_alike

        if not self._looks:
            return np.full(len(phash), -1)
        kept = [np.concatenate([looks[at] for looks in self._looks]) for at in (0, 1)]
        moved = [own.shifted(number) for number, (_, _, own) in enumerate(self._looks)]
        all_details = Details(*(np.concatenate([getattr(own, name) for own in moved]) for name in ("of", "stored")))
        rules = Dedup()
        asked = (phash, signature, details)
        rule = Rule(rules.image_distance, rules.image_signature, self._turned)
        return first_alike(rule, asked, (kept[0], kept[1], all_details))
