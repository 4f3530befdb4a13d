"""Routes of the page and of programs that search: /collections, /search, pictures.

    GET    /collections                        name, rows, images, texts, facets, calibrated, own, problem
    POST   /collections                        multipart: name, files (pictures, or UTF-8 text files of lines)
    DELETE /collections/NAME                   an own one
    POST   /search                             by text, picture, a box of it, or a sample of the collection
    GET    /collections/NAME/samples/ID        one sample as a hit
    GET    /collections/NAME/images/ID?side=   its picture, checked against its sha256

A score is the cosine's place among those of unrelated pictures and texts, so it and `chance` are null where a picture
is searched by a picture, or a text by a text.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Response, UploadFile
from fastapi import Query as Parameter
from pydantic import BaseModel, ConfigDict, Field

from data_specs.search.search import Filters, Hit, Query, Row
from training.serve.embeddings import json_of
from training.serve.galleries import Galleries, Gallery, Upload
from training.serve.inputs import picture_of
from training.serve.pictures import LARGEST_SIDE, Pictures, unknown_sample
from training.serve.refusals import bad_request
from training.serve.service import Service
from training.serve.towers import Features

Modality = Literal["image", "text"]
Box = Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=4, max_length=4)]
_Names = Annotated[list[Annotated[str, Field(max_length=1_000)]], Field(max_length=1_000)]
_Side = Annotated[int, Field(ge=0, le=1_000_000)]

_CACHED = "private, max-age=300"


class FiltersRequest(BaseModel):
    """Conditions on the samples to find; a field that is left out does not limit anything."""

    model_config = ConfigDict(extra="forbid")
    source: _Names = []
    license: _Names = []
    split: _Names = []
    min_side: _Side | None = None
    min_width: _Side | None = None
    max_width: _Side | None = None
    min_height: _Side | None = None
    max_height: _Side | None = None
    min_score: float | None = Field(None, ge=0, le=1)
    url: str = Field("", max_length=2_000, description="a part of the picture's or the page's URL")
    leader: str = Field("", max_length=200, description="near-copies of one sample: a hit's `leader`")


class SearchRequest(BaseModel):
    """A search: by `text`, `image` (data URI), or `id` (a sample of the collection); without these, all samples."""

    model_config = ConfigDict(extra="forbid")
    collection: str = Field(max_length=200)
    text: str = Field("", max_length=100_000)
    image: str = ""
    region: Box | None = Field(None, description="x1, y1, x2, y2 in pixels of `image`, or of the sample's picture")
    id: str = Field("", max_length=4_000)
    target: Modality = "image"
    mode: Literal["meaning", "words", "both"] = "meaning"
    limit: int = Field(20, ge=1, le=200)
    offset: int = Field(0, ge=0, le=100_000)
    filters: FiltersRequest = FiltersRequest()
    copies: bool = False
    exact: bool | None = None


class TextOf(BaseModel):
    """A text of a sample and what it is."""

    kind: str
    text: str


class HitAnswer(BaseModel):
    """A sample that was found. words: BM25 of its text. copies: near-copies that it stands for.

    chance: of the samples at least as near, the share that unrelated ones make by chance in a collection of this size.
    """

    id: str
    modality: Modality
    cosine: float | None
    score: float | None
    chance: float | None
    words: float | None
    text: str
    texts: list[TextOf]
    image: str | None
    width: int
    height: int
    boxes: list[list[float]]
    source: str
    license: str
    split: str
    page_url: str
    leader: str
    copies: int


class QueryPicture(BaseModel):
    """The picture that was searched by: its sides, and the boxes that the tower looked at."""

    width: int
    height: int
    boxes: list[list[float]]


class SearchAnswer(BaseModel):
    """A page of the ranking. more: whether another page follows."""

    hits: list[HitAnswer]
    took_ms: float
    exact: bool
    more: bool
    query: QueryPicture | None


class CollectionAnswer(BaseModel):
    """A collection. calibrated: whether its hits have scores. own: whether it can be deleted.

    problem: why a damaged collection cannot be searched now; its rows are 0 then.
    """

    name: str
    rows: int
    images: int
    texts: int
    facets: dict[str, dict[str, int]]
    calibrated: bool
    own: bool
    problem: str = ""


class Unread(BaseModel):
    """A file that could not be read, and why."""

    file: str
    message: str


class AddedAnswer(CollectionAnswer):
    """The collection after an upload. refused: files that could not be read."""

    refused: list[Unread]


class DeletedAnswer(BaseModel):
    """A collection that no longer exists."""

    deleted: str


def routes(service: Service, galleries: Galleries) -> APIRouter:
    router = APIRouter(tags=["search"])
    pictures = Pictures(service)

    @router.get("/collections", response_model=list[CollectionAnswer])
    async def collections() -> Response:
        every = await service.run_search(galleries.with_problems)
        return json_of([await service.run_search(lambda g=one, p=bad: _collection_answer(g, p)) for one, bad in every])  # type: ignore[misc]

    @router.post("/collections", response_model=AddedAnswer)
    async def add(name: Annotated[str, Form(max_length=200)], files: Annotated[list[UploadFile], File()]) -> Response:
        """Load pictures, or text files of lines, into an uploaded collection. A TAB in a line divides the text that
        is embedded from what is told of it."""
        uploads = [Upload(file.filename or "", await file.read(), _is_text(file)) for file in files]
        gallery, refused = await galleries.add(name, uploads)
        return json_of({**await service.run_search(lambda: _collection_answer(gallery)), "refused": refused})

    @router.delete("/collections/{name}", response_model=DeletedAnswer)
    async def delete(name: str) -> Response:
        await galleries.delete(name)
        return json_of({"deleted": name})

    @router.post("/search", response_model=SearchAnswer)
    async def search(request: SearchRequest) -> Response:
        """A page of the samples that are nearest to the query."""
        return json_of(await _search(service, galleries, pictures, request))

    @router.get("/collections/{name}/samples/{id:path}", response_model=HitAnswer)
    async def sample(name: str, id: str) -> Response:
        """One sample, as a hit without a query."""
        gallery = await service.run_search(lambda: galleries.get(name))
        record = await service.run_search(lambda: gallery.index.row(id))
        if record is None:
            raise unknown_sample(id)
        target: Modality = "image" if record.has_image else "text"
        return json_of(_hit_answer(Hit(0, record, None, None, None, None, 0), target, gallery.name))

    @router.get(
        "/collections/{name}/images/{id:path}",
        response_class=Response,
        responses={200: {"content": {"image/jpeg": {}, "image/png": {}, "image/webp": {}, "image/gif": {}}}},
    )
    async def image(
        name: str, id: str, side: Annotated[int | None, Parameter(ge=16, le=LARGEST_SIDE)] = None
    ) -> Response:
        """The picture of a sample: as it is stored, or a JPEG of at most `side` pixels on its longer side."""
        gallery = await service.run_fetch(lambda: galleries.get(name))
        content, kind = await pictures.read(gallery, id, side)
        return Response(content, media_type=kind, headers={"Cache-Control": _CACHED})

    return router


async def _search(service: Service, galleries: Galleries, pictures: Pictures, request: SearchRequest) -> dict[str, Any]:
    began = time.perf_counter()
    gallery = await service.run_search(lambda: galleries.get(request.collection))
    vector_D, kind, seen = await _vector(service, gallery, pictures, request)
    words = request.text if request.mode != "meaning" else ""
    filters = _filters(request.filters)
    query = Query(
        vector_D,
        words,
        request.target,
        request.limit,
        request.offset,
        filters,
        request.exact,
        request.copies,
        of=kind,
    )
    results = await service.run_search(lambda: gallery.search(query))
    hits = [_hit_answer(hit, request.target, gallery.name) for hit in results.hits]
    took_ms = (time.perf_counter() - began) * 1000
    return {"hits": hits, "took_ms": took_ms, "exact": results.exact, "more": results.more, "query": seen}


async def _vector(
    service: Service, gallery: Gallery, pictures: Pictures, request: SearchRequest
) -> tuple[Features | None, Modality | None, dict[str, Any] | None]:
    """Returns the query's vector, its modality, and the picture that it is of. Raises Refused."""
    given = [name for name in ("text", "image", "id") if getattr(request, name)]
    if len(given) > 1:
        raise bad_request("query", f"give one of text, image and id, not {' and '.join(given)}", given[1])
    if request.region is not None and not request.image and not request.id:
        raise bad_request("region", "a region needs `image` or `id`", "region")
    if request.image:
        content = picture_of(request.image, "image")
        vector_D, kind = await _picture_vector(service, content, request.region)
        width, height, boxes = await service.regions(content)
        return vector_D, kind, {"width": width, "height": height, "boxes": boxes}
    if request.id:
        return await _sample_vector(service, gallery, pictures, request)
    if request.text and request.mode != "words":
        return (await service.texts([request.text], "text")).row_D, "text", None
    return None, None, None


async def _picture_vector(
    service: Service, content: bytes, region: Sequence[float] | None
) -> tuple[Features, Modality]:
    if region is not None:
        return await service.region(content, region), "image"
    return (await service.pictures([content], param="image")).row_D, "image"


async def _sample_vector(
    service: Service, gallery: Gallery, pictures: Pictures, request: SearchRequest
) -> tuple[Features | None, Modality | None, dict[str, Any] | None]:
    record = await service.run_search(lambda: gallery.index.row(request.id))
    if record is None:
        raise unknown_sample(request.id)
    boxes = {"width": record.width, "height": record.height, "boxes": [list(box) for box in record.boxes]}
    seen = boxes if record.has_image else None
    if request.region is not None:
        content, _ = await pictures.read_stored(gallery.index, request.id)
        return *await _picture_vector(service, content, request.region), seen
    kind: Modality = "image" if record.has_image else "text"
    return await service.run_search(lambda: gallery.index.vector(request.id, kind)), kind, seen


def _filters(given: FiltersRequest) -> Filters:
    values = given.model_dump()
    for name in ("source", "license", "split"):
        values[name] = frozenset(values[name])
    return Filters(**values)


def _hit_answer(hit: Hit, target: Modality, collection: str) -> dict[str, Any]:
    from urllib.parse import quote

    record: Row = hit.record
    has_picture = record.has_image and record.where is not None
    place = f"/collections/{quote(collection, safe='')}/images/{quote(record.id, safe='')}"
    return {
        "id": record.id,
        "modality": target,
        "cosine": hit.cosine,
        "score": hit.score,
        "chance": hit.chance,
        "words": hit.words_score,
        "text": record.caption,
        "texts": [{"kind": text.kind, "text": text.text} for text in record.texts],
        "image": place if has_picture else None,
        "width": record.width,
        "height": record.height,
        "boxes": [list(box) for box in record.boxes],
        "source": record.source,
        "license": record.license,
        "split": record.split,
        "page_url": record.page_url,
        "leader": record.image_leader if target == "image" else record.text_leader,
        "copies": hit.copies,
    }


def _collection_answer(gallery: Gallery, problem: str = "") -> dict[str, Any]:
    index = gallery.index
    counts = {} if problem else index.counts()
    return {
        "name": gallery.name,
        "rows": 0 if problem else index.rows,
        "images": counts.get("image", 0),
        "texts": counts.get("text", 0),
        "facets": {} if problem else index.facets(),
        "calibrated": index.about.background is not None,
        "own": gallery.own,
        "problem": problem,
    }


def _is_text(file: UploadFile) -> bool:
    return (file.content_type or "").startswith("text/") or (file.filename or "").lower().endswith((".txt", ".tsv"))
