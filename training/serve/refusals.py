"""Refused: the error for a request that cannot be answered, in the common format (data_specs/web/http_app.py)."""

from __future__ import annotations

from typing import Any

from data_specs.web.http_app import error_body


class Refused(Exception):
    """A request that is refused.

    status: of HTTP. message: what is wrong and what to do. code: one word for programs and for the metrics. param: the
    field of the request that is wrong. retry_after: seconds after which it may be asked again.
    """

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        return error_body(self.status, self.message, param=self.param, code=self.code)

    def headers(self) -> dict[str, str]:
        """Retry-After in whole seconds, if it is set."""
        return {} if self.retry_after is None else {"Retry-After": str(max(1, round(self.retry_after)))}


def bad_request(code: str, message: str, param: str | None = None) -> Refused:
    return Refused(400, code, message, param=param)


def overloaded(code: str, message: str, retry_after: float) -> Refused:
    """The answer 503: the server is overloaded, or temporarily unable to answer."""
    return Refused(503, code, message, retry_after=retry_after)
