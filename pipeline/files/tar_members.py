"""Members of tars that others wrote, and the holes between them, read by Python's tarfile.

tarfile ends at the first header that it cannot read. Here reading goes on at the next block of 512 bytes with the magic
of ustar and a right checksum, which has the name, size and place of a member wherever it lies. Zeros may also stand
where tars were joined into one file; more of them than a tar ends with were members once.

Limits: the oldest tars (V7) lack the magic, so behind damage nothing of them is found. Members of a tar within a tar
are taken for members if damage follows it.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from pipeline.files.damage import Beginning, Hole, size_of
from pipeline.files.inputs import no_damage, reason
from pipeline.files.tars import BLOCK, padded

MAX_PADDING = 64 << 10
"""Zeros between members, or behind the last one, that no member was lost in: tar ends one with up to 10 kB."""


@dataclass(frozen=True, slots=True)
class Member:
    """A member of an open tar; `info.offset_data` is its place in the file."""

    file: IO[bytes]
    info: tarfile.TarInfo
    tar: tarfile.TarFile

    @property
    def name(self) -> str:
        """Its name without `./`."""
        return self.info.name.removeprefix("./")

    def read(self) -> bytes:
        """Bytes of a regular file that is not sparse."""
        self.file.seek(self.info.offset_data)
        return self.file.read(self.info.size)

    def opened(self) -> IO[bytes]:
        """The content of a regular file, of a sparse one with its zeros."""
        return self.tar.fileobject(self.tar, self.info)


def members_of(file: IO[bytes]) -> Iterator[Member | Hole]:
    """The members of a tar in their order, with a Hole for what cannot be read; none for a file without any member.

    file: open for reading at any position, which the caller may change. Raises what the file itself raises.
    """
    size = size_of(file)
    start = 0
    while start < size:
        reading = _MemberReader(file, start, size)
        try:
            yield from reading.members()
            return
        except no_damage():
            raise
        except Exception as e:  # tarfile raises its own, and whatever odd numbers raise
            why = reason(e)
        if reading.end >= size:  # it lacks the zeros at its end
            yield from reading.last()
            return
        start = reading.end
        if reading.held is not None and (within := _header_position(file, reading.held, start)) >= 0:
            start, following = reading.held.info.offset, within
        else:
            yield from reading.last()
            following = _HEADER.after(file, start + 1)
        stop = size if following < 0 else following
        yield Hole(start, stop - start, why)
        start = stop


def _header_position(file: IO[bytes], member: Member, end: int) -> int:
    """The position of a header within the data of a member, -1 for none: a member that lost bytes seems to end within
    the next one."""
    start = member.info.offset + 1
    header = _HEADER.after(file, start, end - start)
    return header if header < end else -1


class _MemberReader:
    """Members from `start` on, up to the first damage. end: of the last sound one; held: that one, until the next
    header shows that it ends where it says."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        self._file, self._size = file, size
        self.end = start
        self.held: Member | None = None

    def members(self) -> Iterator[Member | Hole]:
        """Raises what tarfile raises at a damage."""
        self._file.seek(self.end)
        with _JoinedTar.open(fileobj=self._file, mode="r:") as tar:
            for info in tar:
                tar.members = []  # type: ignore[attr-defined]  # or it keeps all of them
                yield from self.last()
                if info.offset - self.end > MAX_PADDING:
                    yield _zero_hole(self.end, info.offset)
                self.end = info.offset
                if tar.offset > padded(self._size) or info.offset_data + _stored_size(info) > self._size:
                    raise tarfile.ReadError(f"the tar ends within {info.name[:100]}")
                self.held, self.end = Member(self._file, info, tar), tar.offset
        yield from self.last()
        if self._size - self.end > MAX_PADDING:
            yield _zero_hole(self.end, self._size)

    def last(self) -> Iterator[Member]:
        """The member that is held, once."""
        held, self.held = self.held, None
        if held is not None:
            yield held


def _zero_hole(start: int, stop: int) -> Hole:
    return Hole(start, stop - start, "zeros where members were")


def _stored_size(info: tarfile.TarInfo) -> int:
    """Bytes of a member's data in the file; a link has none, and of a sparse one tarfile does not say."""
    return info.size if info.isreg() and not info.issparse() else 0


def _is_header(block: memoryview) -> bool:
    """True for a header block of POSIX or GNU tar with a right checksum."""
    try:
        return len(block) == BLOCK and tarfile.nti(bytes(block[148:156])) in tarfile.calc_chksums(bytes(block))  # type: ignore[attr-defined]
    except tarfile.HeaderError:
        return False


_HEADER = Beginning(b"ustar", 257, BLOCK, _is_header)


class _JoinedTar(tarfile.TarFile):
    """A tar that ends where its file does: zeros may also stand where tars were joined, or where a header was lost."""

    ignore_zeros = True
    zeros = 0  # blocks of them in a row


MAX_ZEROS = 1 << 13
"""Blocks of zeros in a row, 4 MB, behind which the next header is searched for, not read block by block."""


class _StrictTarInfo(tarfile.TarInfo):
    """A member whose damaged header is an error; to tarfile it is the end of the tar, if it is not the first one."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _StrictTarInfo:
        assert isinstance(tarfile_, _JoinedTar)
        try:
            member = super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            tarfile_.zeros += 1
            if tarfile_.zeros > MAX_ZEROS:
                raise tarfile.ReadError("zeros where members were") from None
            raise
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as e:  # type: ignore[attr-defined]
            raise tarfile.ReadError(str(e)) from None
        tarfile_.zeros = 0
        return member


_JoinedTar.tarinfo = _StrictTarInfo
