"""Funnels that papers published, to set a build's own beside them: `report.published` of a spec.

A ready one is a file of `pipeline/report/funnels/`; any other is a YAML file that the spec names:

    name: DanQing
    source: arXiv 2601.10305
    start: 1_047_085_609                  # pairs before the first step
    steps:
      - {name: stop words, name_zh: 停用词, left: 442_680_171, reasons: [stop_words]}

`reasons` are those of `DropReason` for which this pipeline drops what the step drops. A step without any is one that
the pipeline does not have.

Limits: steps are compared in the paper's order, whatever the order of a build's stages, so that a candidate with two
faults may count for another step than in the paper.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import fsspec
import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from data_specs.build import Spec, SpecError, within
from data_specs.spec_file import describe
from pipeline.files.inputs import faults, reason
from pipeline.records import DropReason

READY = Path(__file__).with_name("funnels")
"""Folder of the ready funnels, `<name>.yaml`."""

MAX_BYTES = 100_000
"""Bytes of a file at most."""


class Step(Spec):
    """One step: pairs that were left after it, and our reasons to drop what it drops."""

    name: str = Field(min_length=1, max_length=80)
    name_zh: str = Field("", max_length=80)
    left: int = Field(ge=0)
    reasons: tuple[DropReason, ...] = ()


class PublishedFunnel(Spec):
    """The funnel of a paper."""

    name: str = Field(min_length=1, max_length=80)
    source: str = Field(min_length=1, max_length=200)
    start: int = Field(gt=0)
    steps: tuple[Step, ...] = Field(min_length=1, max_length=100)

    @model_validator(mode="after")
    def _goes_down(self) -> PublishedFunnel:
        before = self.start
        for step in self.steps:
            if step.left > before:
                raise ValueError(f"step {step.name!r} leaves {step.left:,} of {before:,}")
            before = step.left
        return self

    @field_validator("steps")
    @classmethod
    def _each_reason_once(cls, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        every = [reason for step in steps for reason in step.reasons]
        for one in every:
            if every.count(one) > 1:
                raise ValueError(f"reason {one.value!r} stands twice")
        return steps


def ready() -> list[str]:
    """Names of the ready funnels."""
    return sorted(file.stem for file in READY.glob("*.yaml"))


def digest(name: str, base: str) -> str:
    """sha256 of a funnel's file. Raises SpecError that names what cannot be read."""
    return hashlib.sha256(_content(name, base)).hexdigest()


def read(name: str, base: str) -> PublishedFunnel:
    """A ready funnel by its name, or that of a file by its path or URL. Raises SpecError with a line per fault."""
    return _parsed(_content(name, base), _place(name, base))


def _place(name: str, base: str) -> str:
    return str(READY / f"{name}.yaml") if name in ready() else within(base, name)


def _content(name: str, base: str) -> bytes:
    where = _place(name, base)
    try:
        with fsspec.open(where, "rb") as file:
            data = bytes(file.read(MAX_BYTES + 1))
    except faults(ValueError, ImportError) as e:
        known = ", ".join(ready())
        raise SpecError([f"report.published: {where}: cannot be read ({reason(e)}); ready ones: {known}"]) from None
    if len(data) > MAX_BYTES:
        raise SpecError([f"report.published: {where}: is larger than {MAX_BYTES:,} bytes"])
    return data


@functools.lru_cache(maxsize=4)
def _parsed(content: bytes, where: str) -> PublishedFunnel:
    try:
        raw = yaml.safe_load(content)
        if not isinstance(raw, dict):
            raise SpecError([f"report.published: {where}: is no mapping with name, source, start and steps"])
        return PublishedFunnel.model_validate(raw)
    except ValidationError as e:
        raise SpecError([f"report.published: {where}: {line}" for line in describe(e, PublishedFunnel)]) from None
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        if isinstance(e, SpecError):
            raise
        raise SpecError([f"report.published: {where}: is not YAML: {' '.join(str(e).split())[:120]}"]) from None
