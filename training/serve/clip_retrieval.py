"""Routes of clip-retrieval's back end, for its clients: /knn-service, /metadata, /indices-list.

Its client sends JSON without a content type, and numbers of rows for ids. `deduplicate` is our near-copies once; the
safety and aesthetic fields are taken and do nothing, since no such model runs here; `image_url` is refused, since no
URL is ever fetched.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_specs.search.search import Query, Row
from training.serve.embeddings import json_of
from training.serve.galleries import Galleries
from training.serve.inputs import URL_REFUSED, picture_of, vector_of
from training.serve.refusals import bad_request
from training.serve.service import Service
from training.serve.towers import Features

_MOST = 1_000
Number = Annotated[float, Field(allow_inf_nan=False)]


class KnnRequest(BaseModel):
    """A search, as clip-retrieval's client sends it. Unknown fields are ignored, as by its server."""

    model_config = ConfigDict(extra="ignore")
    text: str | None = Field(None, max_length=100_000)
    image: str | None = Field(None, description="base64 of a picture's file")
    image_url: str | None = None
    embedding_input: list[Number] | None = Field(None, max_length=65_536)
    modality: Literal["image", "text"] = "image"
    num_images: int = Field(40, ge=1, le=_MOST)
    num_result_ids: int | None = Field(None, ge=1, le=_MOST)
    indice_name: str | None = Field(None, max_length=200)
    deduplicate: bool = False


class KnnHit(BaseModel):
    """A row that was found. Hits after the first `num_images` have id and similarity only."""

    id: int
    similarity: float
    url: str | None = None
    caption: str | None = None
    key: str | None = Field(None, description="the sample's own id")


class MetadataRequest(BaseModel):
    """Request for the metadata of rows."""

    model_config = ConfigDict(extra="ignore")
    ids: list[Annotated[int, Field(ge=0, lt=2**62)]] = Field(max_length=_MOST)
    indice_name: str | None = Field(None, max_length=200)


class MetadataRow(BaseModel):
    """A row's metadata."""

    id: int
    metadata: dict[str, Any]


def routes(service: Service, galleries: Galleries) -> APIRouter:
    router = APIRouter(tags=["clip-retrieval"])

    @router.post("/knn-service", response_model=list[KnnHit], openapi_extra=_body(KnnRequest))
    async def knn(request: Request) -> Response:
        """Rows nearest to a text, a picture or a vector."""
        return json_of(await _knn(service, galleries, _read(KnnRequest, await request.body())))

    @router.post("/metadata", response_model=list[MetadataRow], openapi_extra=_body(MetadataRequest))
    async def metadata(request: Request) -> Response:
        """Metadata of rows by their numbers; numbers that are not rows are left out."""
        asked = _read(MetadataRequest, await request.body())
        index = (await service.run_search(lambda: galleries.get(asked.indice_name))).index
        rows = await service.run_search(lambda: [(id, index.at(id)) for id in asked.ids])
        return json_of([{"id": id, "metadata": _metadata(row)} for id, row in rows if row is not None])

    @router.get("/indices-list", response_model=list[str])
    async def indices() -> Response:
        return json_of(galleries.names())

    return router


def _body(model: type[BaseModel]) -> dict[str, Any]:
    """The body of a route that reads it itself, for the OpenAPI."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": model.model_json_schema()}}}}


def _read(model: type[Any], body: bytes) -> Any:
    try:
        return model.model_validate_json(body)
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "body"
        raise bad_request("invalid", f"{place}: {first['msg']}", place) from None


async def _knn(service: Service, galleries: Galleries, asked: KnnRequest) -> list[dict[str, Any]]:
    gallery = await service.run_search(lambda: galleries.get(asked.indice_name))
    vector_D = await _vector(service, asked)
    count = asked.num_result_ids or asked.num_images
    query = Query(vector_D, target=asked.modality, limit=count, copies=not asked.deduplicate)
    results = await service.run_search(lambda: gallery.search(query))
    answer: list[dict[str, Any]] = []
    for number, hit in enumerate(results.hits):
        row = {"id": hit.row, "similarity": hit.cosine}
        answer.append(row | _metadata(hit.record) if number < asked.num_images else row)
    return answer


async def _vector(service: Service, asked: KnnRequest) -> Features:
    """The query [D], by the first that is given, in clip-retrieval's order. Raises Refused."""
    if asked.text:
        return (await service.texts([asked.text], "text")).row_D
    if asked.image:
        return (await service.pictures([picture_of(asked.image, "image")], param="image")).row_D
    if asked.image_url:
        raise bad_request("url_refused", URL_REFUSED, "image_url")
    if asked.embedding_input:
        return vector_of(asked.embedding_input, service.width, "embedding_input")
    raise bad_request("query", "give text, image or embedding_input")


def _metadata(row: Row) -> dict[str, Any]:
    return {"url": row.url or None, "caption": row.caption, "key": row.id}
